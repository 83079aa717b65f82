"""LaMP's questions as timelines: a question's profile, and as its last event the question."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from user_llm.data import lamp, longlamp
from user_llm.data.builders.base import Raw, Record, TimelineBuilder, bare_item
from user_llm.data.features import Categorical, Text
from user_llm.data.lamp import KINDS, Kind, Question
from user_llm.data.schema import TimelineSchema

UNLABELED = "text"  # the item where answers are free text
# The item is what an entry is labelled with, so an encoder foretells the coming label.
SCHEMA = TimelineSchema(features=(Categorical(name="item"), Text(name="words", column="review")))


class LaMP(TimelineBuilder, skip_registration=True):
    """A folder in LaMP's or LongLaMP's layout; the version is the task.

    A user is a question, named `SPLIT/ID`, and their events are its profile's entries, by date
    where they have one, else in the order of the file. What an entry is about is its review, and
    so is the question's present text; `told`, `input` and `output` say the rest.
    """

    name = "lamp"

    @classmethod
    def files(cls, source: Path | None, version: str, **options: Any) -> list[Path]:
        if source is None:
            raise ValueError("lamp reads a folder in LaMP's layout; name it as the source")
        parts = ("questions", "outputs")
        paths = [source / f"{split}_{part}.json" for split in lamp.SPLITS for part in parts]
        found = [path for path in paths if path.is_file()]
        return found or [path for some in longlamp.files(source).values() for path in some]

    @classmethod
    def read(cls, source: Path | None, version: str, **options: Any) -> Raw:
        assert source is not None, "`files` refuses that"
        official = any((source / f"{split}_questions.json").is_file() for split in lamp.SPLITS)
        task, splits = (lamp if official or not longlamp.files(source) else longlamp).read(source)
        if version != task:
            raise ValueError(f"{source} is of {task}; name it as the version, not {version!r}")
        kind = KINDS[task]
        asked = [(split, question) for split, some in splits.items() for question in some]
        undated = sum(not all(map(_day, question.profile)) for _, question in asked)
        remarks = []
        if undated:
            remarks.append(
                f"of {undated} of {len(asked)} profiles not all entries have a date; their order "
                "in the file stands for time"
            )
        timelines = [_timeline(kind, split, question) for split, question in asked]
        items = sorted({str(item) for one in timelines for item in one["item"]})
        return Raw(SCHEMA, len(asked), lambda: iter(timelines), list(_items(items)), remarks)


def _timeline(kind: Kind, split: str, question: Question) -> Record:
    entries, days = list(question.profile), [_day(entry) for entry in question.profile]
    times = list(range(len(entries)))
    if all(days):
        order = sorted(times, key=lambda i: days[i])
        entries, times = [entries[i] for i in order], [days[i] for i in order]

    def labels(of: lamp.Entry | None) -> str:
        if not kind.label:
            return UNLABELED
        return of[kind.label] if of else question.output or UNLABELED

    present = kind.present(question.input)
    record = {
        "user": lamp.user(split, question.id),
        "item": [*map(labels, entries), labels(None)],
        "timestamp": np.array([*times, times[-1] + 1 if times else 0], np.int64),
        "review": [*map(kind.says, entries), present],
        "told": [*map(kind.tells, entries), ""],
        "input": [*[""] * len(entries), question.input],
        "output": [*[""] * len(entries), question.output or ""],
    }
    return record


def _day(entry: lamp.Entry) -> int:
    """The seconds of an entry's date, such as 2015-07-31 or 2015; 0 where it has none."""
    for form in ("%Y-%m-%d", "%Y"):
        try:
            return int(
                datetime.strptime(entry.get("date", ""), form).replace(tzinfo=UTC).timestamp()
            )
        except ValueError:
            continue
    return 0


def _items(labels: list[str]) -> Iterator[Record]:
    for label in labels:
        yield bare_item(label) | {"title": label}
