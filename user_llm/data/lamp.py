"""LaMP's official files: who asks, what they wrote before, and what would be right.

Source: arXiv 2304.11406. A folder holds `train_questions.json`, a list of `{"id", "input",
"profile"}`, and `train_outputs.json`, `{"task", "golds": [{"id", "output"}]}`; `dev` and `test`
likewise, of the last perhaps the questions alone. User-based and time-based splits look the same,
but that entries of the latter have a `date`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from user_llm.files import AnyPath, write_atomically

SPLITS = ("train", "dev", "test")
SHOWN = 10  # problems of a folder that an error tells
QUOTED = re.compile(r'"([^"]*)"')

Entry = dict[str, str]


@dataclass(frozen=True)
class Question:
    """What a user asks, beside what they wrote before."""

    id: str
    input: str
    profile: tuple[Entry, ...]
    output: str | None  # the right answer, where it is known


@dataclass(frozen=True)
class Kind:
    """One of the benchmark's tasks, in the words of its files.

    `text` is made of the fields that say what an entry is about, without its label; retrieval and
    embeddings read no more. `told` is how a prompt spells an entry out.
    """

    fields: tuple[str, ...]  # of an entry, beside its id
    text: tuple[str, ...]
    told: str
    # The present text stands behind it in the input. "": it is all of it. None: there is none, as
    # of a citation, of which the two references are taken.
    marker: str | None
    after: str = ". "  # what stands between the entries and the input in a prompt
    label: str = ""  # the field that says what the answer would be, where that is not free text
    labels: tuple[str, ...] = ()  # all possible answers; none: the answer is free text

    def says(self, entry: Entry) -> str:
        """What a past entry is about."""
        return " ".join(entry[name] for name in self.text)

    def present(self, text: str) -> str:
        """The present text, without the instruction around it; empty if there is none."""
        if self.marker is None:
            return " ".join(QUOTED.findall(text)[1:3])
        return (text.partition(self.marker)[2] if self.marker else text).strip()

    def tells(self, entry: Entry) -> str:
        """A past entry as prompts spell it out."""
        return self.told.format(**entry)

    def prompt(self, text: str, told: Sequence[str]) -> str:
        """An input with what some entries tell before it, as the authors' prompts have it."""
        if not told:
            return text
        joined = ", and ".join(told)
        if self.marker is None and (title := QUOTED.search(text)):  # the author's others beside it
            return f"{text[: title.end()]}, and {joined}{text[title.end() :]}"
        return joined + self.after + text


TAGS = (
    *("sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy"),
    *("classic", "psychology", "fantasy", "romance", "thought-provoking", "social commentary"),
    *("violence", "true story"),
)
KINDS: dict[str, Kind] = {
    "LaMP_1": Kind(
        fields=("title", "abstract"),
        text=("title", "abstract"),
        told='"{title}"',
        marker=None,
        labels=("[1]", "[2]"),
    ),
    "LaMP_2": Kind(
        fields=("tag", "description"),
        text=("description",),
        told='the tag for the movie: "{description}" is "{tag}"',
        marker="description:",
        label="tag",
        labels=TAGS,
    ),
    "LaMP_3": Kind(
        fields=("text", "score"),
        text=("text",),
        told='{score} is the score for "{text}"',
        marker="review:",
        label="score",
        labels=("1", "2", "3", "4", "5"),
    ),
    "LaMP_4": Kind(
        fields=("title", "text"),
        text=("title", "text"),
        told='"{title}" is the title for "{text}"',
        marker="article:",
    ),
    "LaMP_5": Kind(
        fields=("title", "abstract"),
        text=("title", "abstract"),
        told='"{title}" is the title for "{abstract}"',
        marker="paper:",
        after=". Following the given patterns ",
    ),
    "LaMP_7": Kind(
        fields=("text",),
        text=("text",),
        told='"{text}"',
        marker=":",
        after=" are written by a person. Following the given patterns ",
    ),
    # LongLaMP's, whose layout `data.longlamp` reads.
    "LongLaMP_2": Kind(
        fields=("title", "abstract"),
        text=("title", "abstract"),
        told='"{abstract}" is the abstract for the title "{title}"',
        marker="items:",
        after=". Use the above abstracts as context to understand the style and language of the "
        "user and, ",
    ),
    "LongLaMP_3": Kind(
        fields=("overall", "summary", "description", "reviewText"),
        text=("overall", "summary", "description", "reviewText"),
        told='"{overall}" is a rating for the product with description "{description}". '
        '"{summary}" is summary for "{reviewText}"',
        marker="",
        after=". Following the given patterns ",
    ),
    "LongLaMP_4": Kind(
        fields=("summary", "content"),
        text=("summary", "content"),
        told='"{content}" is a summary for "{summary}"',  # so the authors have it
        marker="",
        after=". Following the given patterns, ",
    ),
}


def read(folder: Path) -> tuple[str, dict[str, list[Question]]]:
    """The task of a folder in LaMP's official layout, and its questions by split.

    Raises:
      ValueError: there are no questions, or files are not as they should be: what is wrong is named
        by file, index and field.
    """
    paths = {split: folder / f"{split}_questions.json" for split in SPLITS}
    if not any(path.is_file() for path in paths.values()):
        raise ValueError(f"{folder} holds none of {', '.join(p.name for p in paths.values())}")
    outputs = {split: folder / f"{split}_outputs.json" for split in SPLITS}
    golds = {split: _json(path) for split, path in outputs.items() if path.is_file()}
    task = _task(folder, golds)
    kind, found, problems = KINDS[task], {}, []
    for split, path in paths.items():
        if not path.is_file():
            continue
        right = (
            dict(_outputs(golds[split], outputs[split].name, problems)) if split in golds else {}
        )
        found[split] = list(_questions(_json(path), path.name, kind, right, problems))
        asked = {question.id for question in found[split]}
        if split in golds and asked != right.keys():
            odd = sorted(asked ^ right.keys())
            problems.append(
                f"{path.name} and {outputs[split].name} differ in ids such as {odd[0]!r}"
            )
    refuse(folder, problems)
    return task, found


def refuse(folder: Path, problems: Sequence[str]) -> None:
    """Raises a ValueError that tells the first of a folder's problems, if there are any."""
    if problems:
        told = "; ".join(problems[:SHOWN])
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"{folder} is not as LaMP's files are: {told}{more}")


def user(split: str, id: str) -> str:
    """What a question is called among a data set's users."""
    return f"{split}/{id}"


def asker(user: str) -> tuple[str, str]:
    """The split and the id of the question that is called so."""
    split, _, id = user.partition("/")
    return split, id


def labels(task: str, outputs: Iterable[str]) -> tuple[str, ...]:
    """All possible answers of a task; none where the answer is free text.

    Of sets in LaMP's shape that name others than LaMP's own, those among these outputs.
    """
    own, named = KINDS[task].labels, set(outputs)
    return own if not own or named <= set(own) else tuple(sorted(named))


def write(folder: Path, task: str, questions: Mapping[str, Sequence[Question]]) -> None:
    """Writes questions by split, with the answers that are known, in LaMP's official layout."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, some in questions.items():
        asked = [{"id": q.id, "input": q.input, "profile": list(q.profile)} for q in some]
        _put(folder / f"{split}_questions.json", asked)
        golds = {q.id: q.output for q in some if q.output is not None}
        if golds:
            submit(folder / f"{split}_outputs.json", task, golds)


def submit(path: AnyPath, task: str, answers: dict[str, str]) -> None:
    """Writes answers by their questions' ids as LaMP's evaluation wants them."""
    golds = [{"id": name, "output": answer} for name, answer in answers.items()]
    _put(path, {"task": task, "golds": golds})


def _task(folder: Path, golds: dict[str, Any]) -> str:
    """The one task that all outputs name."""
    named = {
        f"{split}_outputs.json": str(given.get("task") if isinstance(given, dict) else None)
        for split, given in golds.items()
    }
    if not named:
        raise ValueError(f"{folder} holds no outputs, which name the task")
    problems = [
        f"{name}: task is {task!r}, where one of {', '.join(KINDS)} is supported"
        for name, task in named.items()
        if task not in KINDS
    ]
    if problems or len(set(named.values())) > 1:
        problems = problems or [f"outputs name several tasks, {sorted(set(named.values()))}"]
        raise ValueError(f"{folder} is not as LaMP's files are: " + "; ".join(problems))
    return next(iter(named.values()))


def _outputs(given: Any, file: str, problems: list[str]) -> Iterator[tuple[str, str]]:
    golds = given.get("golds")
    if not isinstance(golds, list):
        problems.append(f"{file}: golds is no list")
        return
    for i, gold in enumerate(golds):
        wrong = list(_lacking(gold, ("id", "output")))
        problems += [f"{file}, gold {i}: {what}" for what in wrong]
        if not wrong:
            yield str(gold["id"]), str(gold["output"])


def _questions(
    given: Any, file: str, kind: Kind, right: dict[str, str], problems: list[str]
) -> Iterator[Question]:
    if not isinstance(given, list):
        problems.append(f"{file} is no list of questions")
        return
    for i, asked in enumerate(given):
        wrong = list(wanting(asked, kind, ("id", "input"), ("id", *kind.fields)))
        problems += [f"{file}, question {i}: {what}" for what in wrong]
        if not wrong:
            key = str(asked["id"])
            yield Question(key, str(asked["input"]), entries(asked), right.get(key))


def entries(asked: Mapping[str, Any]) -> tuple[Entry, ...]:
    """The profile of a question as it stands in a file."""
    return tuple({name: str(x) for name, x in entry.items()} for entry in asked["profile"])


def wanting(asked: Any, kind: Kind, own: Iterable[str], of_entry: Sequence[str]) -> Iterator[str]:
    """What a question as it stands in a file lacks of its own fields and of its entries'."""
    wrong = list(_lacking(asked, own))
    profile = asked.get("profile") if isinstance(asked, dict) else None
    if not isinstance(profile, list):
        wrong.append("profile is no list")
        profile = []
    for place, entry in enumerate(profile):
        wrong += [f"profile entry {place}: {x}" for x in _lacking(entry, of_entry)]
    if not wrong and not kind.present(str(asked["input"])):
        behind = f"no text behind {kind.marker!r}" if kind.marker else "not three quoted titles"
        wrong.append("input is empty" if kind.marker == "" else f"input has {behind}")
    yield from wrong


def _lacking(given: Any, names: Iterable[str]) -> Iterator[str]:
    """What of some fields is missing or no text."""
    if not isinstance(given, dict):
        yield "is no object"
        return
    for name in names:
        if name not in given:
            yield f"{name} is missing"
        elif not isinstance(given[name], str | int | float):
            yield f"{name} is {type(given[name]).__name__}, not text"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


def _put(path: AnyPath, content: Any) -> None:
    write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1))
