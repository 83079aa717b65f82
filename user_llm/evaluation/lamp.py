"""How LaMP's answers are scored, as its own evaluation does it."""

from collections.abc import Mapping, Sequence

from user_llm.metrics import Accuracy, MacroF1, RatingError, TextOverlap


def score(
    task: str, answers: Mapping[str, str], golds: Mapping[str, str], labels: Sequence[str] = ()
) -> dict[str, float]:
    """The task's metrics: accuracy and macro-F1 of labels, errors of stars, ROUGE of texts.

    Args:
      answers: by the question's id, for each one of `golds`.
      labels: all possible answers, where they can be listed.

    Raises:
      ValueError: there are answers to other questions, or some lack one.
    """
    if odd := sorted(answers.keys() ^ golds.keys()):
        raise ValueError(
            f"{len(odd)} questions are either not answered or not known, such as {odd[0]!r}"
        )
    said, right = ([x[name].strip() for name in golds] for x in (answers, golds))
    if task == "LaMP_3":
        stars = [float(x) for x in right]
        return RatingError.from_ratings(
            [_stars(a, wanted) for a, wanted in zip(said, stars, strict=True)], stars
        ).compute()
    if labels:
        found = MacroF1.from_answers(said, right, labels)
        return Accuracy.from_answers(said, right).compute() | found.compute()
    overlap = TextOverlap.from_texts(said, right).compute()
    return {name: overlap[name] for name in ("rouge_1", "rouge_l")}


def _stars(answer: str, wanted: float) -> float:
    """The stars that an answer says; what says none is as far off as can be."""
    try:
        return float(answer)
    except ValueError:
        return 1.0 if abs(1 - wanted) > abs(5 - wanted) else 5.0
