"""Sets in LaMP's shape and layout, from timelines that one may have where LaMP's files are not."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import numpy as np

from user_llm.data.dataset import Dataset
from user_llm.data.lamp import SPLITS, Entry, Question
from user_llm.data.tasks import stars

LEAST = 3  # entries of a profile
TAGGED = "Which tag does this movie relate to among the following tags? Just answer with the tag "


def from_timelines(
    data: Dataset, task: str, *, profile: int = 512, questions: int = 1
) -> dict[str, list[Question]]:
    """Questions by split about users' last events, with the events before each as the profile.

    The split is time-based: a user's last event is asked about in the test, the one before it in
    `dev`, and those before that in training. `LaMP_2` asks for a film's first genre, its plot
    given; `LaMP_3` for the stars of a review; `LaMP_4` for its summary, where the data set's
    reviews begin with one, as those of Amazon's releases of 2014 and 2018 do.

    Args:
      profile: entries of a profile, the newest.
      questions: of a user for training at most.

    Raises:
      ValueError: the task cannot be made, too few events say what it needs, or too little is asked.
    """
    if min(profile, questions) < 1:
        raise ValueError(f"profile={profile} and questions={questions} must be 1 at least")
    if task not in MADE:
        raise ValueError(f"{task} cannot be made from timelines; {', '.join(MADE)} can")
    describe, ask, field = MADE[task]
    instruction = ask(data)
    found: dict[str, list[Question]] = {split: [] for split in SPLITS}
    for user, (first, last) in enumerate(zip(data.offsets[:-1], data.offsets[1:], strict=True)):
        entries = list(_entries(data, int(first), int(last), describe))
        splits = ["test", "dev", *["train"] * questions]
        asked = range(len(entries) - 1, LEAST - 1, -1)
        for nth, (split, end) in enumerate(zip(splits, asked, strict=False)):
            entry = entries[end]
            text = entry["description" if task == "LaMP_2" else "text"]
            found[split].append(
                Question(
                    id="-".join((data.users[user], split, *([str(nth - 1)] if nth > 2 else []))),
                    input=instruction + text,
                    profile=tuple(entries[max(0, end - profile) : end]),
                    output=entry[field],
                )
            )
    if lost := [split for split, questions in found.items() if not questions]:
        raise ValueError(
            f"no user has the {LEAST + len(SPLITS)} events that {task} needs for {lost[0]}: each "
            f"must say {field} and text"
        )
    return found


def _entries(
    data: Dataset, first: int, last: int, describe: Callable[[Dataset, int], Entry]
) -> Iterator[Entry]:
    """What a user's events say that say all that is asked, oldest first."""
    for event in range(first, last):
        said = describe(data, event)
        if all(text.strip() for text in said.values()):
            day = datetime.fromtimestamp(int(data.times[event]), UTC).date().isoformat()
            yield {"id": str(event), **said, "date": day}


def _film(data: Dataset, event: int) -> Entry:
    item = data.item[event]
    return {"tag": next(iter(data.items.genres[item]), ""), "description": data.items.texts[item]}


def _rated(data: Dataset, event: int) -> Entry:
    return {"text": data.review(event), "score": stars(data, event)}


def _headed(data: Dataset, event: int) -> Entry:
    title, _, text = data.review(event).partition("\n")
    return {"title": title, "text": text}


def _tags(data: Dataset) -> str:
    known = sorted({genre for own in data.items.genres for genre in own})
    return f"{TAGGED}name without further explanation. tags: [{', '.join(known)}] description: "


def _stars(data: Dataset) -> str:
    ratings = np.empty(0) if data.ratings is None else np.unique(data.ratings[data.ratings >= 0])
    if not len(ratings) or (ratings % 1).any():
        raise ValueError("LaMP_3 asks for whole stars, and the data set's ratings are no such")
    low, high = int(ratings[0]), int(ratings[-1])
    among = ", ".join(str(x) for x in range(low, high))
    return (
        f"What is the score of the following review on a scale of {low} to {high}? just answer "
        f"with {among}, or {high} without further explanation. review: "
    )


def _headline(data: Dataset) -> str:
    return "Generate a headline for the following article: "


# What an event says, how it is asked for, and the field that is the answer.
MADE: dict[str, tuple[Callable[[Dataset, int], Entry], Callable[[Dataset], str], str]] = {
    "LaMP_2": (_film, _tags, "tag"),
    "LaMP_3": (_rated, _stars, "score"),
    "LaMP_4": (_headed, _headline, "title"),
}
