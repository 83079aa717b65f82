"""What builders of review data sets share: from files of reviews and items to their records."""

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from user_llm.data.builders import lines
from user_llm.data.builders.base import Record, TimelineBuilder, complete_items, without_repeats
from user_llm.data.builders.lines import Row
from user_llm.data.features import LATEST, Bag, Categorical, Text, Time
from user_llm.data.schema import TimelineSchema

SCHEMA = TimelineSchema(
    features=(
        Categorical(name="item"),
        Categorical(name="rating"),
        Bag(name="genres", of="item"),
        Time(name="time"),
        Text(name="review"),
    ),
    predicted=("item", "rating"),
)
COLUMNS = np.dtype(
    [
        *(("user", object), ("item", object), ("rating", np.float32)),
        *(("timestamp", np.int64), ("review", object)),
    ]
)
UNTIMED = np.iinfo(np.int64).min


class Layout(NamedTuple):
    """What a release calls its files and a review's fields, and how it writes their lines."""

    reviews: tuple[str, ...]  # globs, each of one file's name, which may end in .gz too
    items: str  # the same, of at most one file; empty: the reviews describe their items
    user: str
    item: str
    rating: str
    time: str
    text: str
    summary: str = ""
    ticks: int = 1  # of `time`, in a second
    form: str = "JSON"  # of lines.PARSERS
    items_form: str = "JSON"
    unfold: Callable[[Row], list[Row]] = lambda row: [row]  # the reviews of a line


class ReviewBuilder(TimelineBuilder, skip_registration=True):
    """A builder of reviews, of which each version has its layout."""

    VERSION = tfds.core.Version("1.1.0")  # 1.1.0: a review's text is one line
    layouts: ClassVar[dict[str, Layout]]

    @classmethod
    def files(cls, source: Path | None, version: str) -> list[Path]:
        reviews, items = find(source, cls.layout(version))
        return [*reviews, *items]

    @classmethod
    def layout(cls, version: str) -> Layout:
        """Which files a version has, and how they say what.

        Raises:
          ValueError: there is no such version.
        """
        if version not in cls.layouts:
            choices = ", ".join(cls.layouts)
            raise ValueError(f"{cls.name} has no version {version!r}; choose from {choices}")
        return cls.layouts[version]


def find(source: Path | None, layout: Layout) -> tuple[list[Path], list[Path]]:
    """The files of reviews in a folder, and that of items, if there is one.

    Raises:
      ValueError: it is no folder, lacks a file, or has two where there must be one.
    """
    wanted = ", ".join(layout.reviews)
    if source is None or not source.is_dir():
        raise ValueError(f"reviews are read from a folder with {wanted}; {source} is none")
    items = _named(source, layout.items) if layout.items else []
    groups = [[p for p in _named(source, name) if p not in items] for name in layout.reviews]
    if any(len(group) != 1 for group in groups) or len(items) > 1:
        there = ", ".join(sorted(p.name for p in source.iterdir())) or "nothing"
        further = f", and items as {layout.items}, at most one" if layout.items else ""
        raise ValueError(
            f"{source} must hold reviews as {wanted}, one file of each name{further}, plain or "
            f"as .gz; it holds {there}"
        )
    return [path for group in groups for path in group], items


def _named(source: Path, name: str) -> list[Path]:
    return [path for end in ("", ".gz") for path in sorted(source.glob(name + end))]


def rows(paths: Iterable[Path], layout: Layout, remarks: list[str]) -> Iterator[Row]:
    """The reviews in files; the time of one may be None."""
    wanted = wanted_of_reviews(layout)
    for path in paths:
        yield from lines.rows(path, layout.form, wanted, remarks, layout.unfold)


def wanted_of_reviews(layout: Layout) -> dict[str, lines.Fits]:
    """What each field of a review must be."""
    return {
        layout.user: _is_id,
        layout.item: _is_id,
        layout.rating: lambda value: isinstance(value, int | float),
        layout.time: lambda value: value is None or _is_time(value, layout.ticks),
    }


def wanted_of_items(layout: Layout) -> dict[str, lines.Fits]:
    """The same of an item's description."""
    return {layout.item: _is_id}


def descriptions(paths: Iterable[Path], layout: Layout, remarks: list[str]) -> Iterator[Row]:
    """The descriptions of items in files."""
    for path in paths:
        yield from lines.rows(path, layout.items_form, wanted_of_items(layout), remarks)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_time(value: Any, ticks: int) -> bool:
    return isinstance(value, int) and abs(value) < LATEST * ticks


def events(rows: Iterable[Row], layout: Layout, remarks: list[str]) -> dict[str, np.ndarray]:
    """The columns of reviews, by time, without those that have none or repeat another.

    Raises:
      ValueError: no review is left.
    """
    table = np.fromiter((event(row, layout) for row in rows), COLUMNS)
    timed = table["timestamp"] != UNTIMED
    if not timed.any():
        raise ValueError(f"of {len(table)} reviews none has a {layout.time}; is a file empty?")
    if not timed.all():
        remarks.append(f"{(~timed).sum()} reviews have no {layout.time}; they are dropped")
    order = np.argsort(table["timestamp"], kind="stable")  # before ticks are cut to seconds
    table = table[order[timed[order]]]
    columns = {name: table[name] for name in COLUMNS.names or ()}
    columns["timestamp"] = columns["timestamp"] // layout.ticks
    return without_repeats(columns, remarks)


def event(row: Row, layout: Layout) -> tuple[str, str, float, int, str]:
    """A review in the order of COLUMNS; its time in ticks."""
    user, item = sys.intern(row[layout.user]), sys.intern(row[layout.item])  # they recur
    time = UNTIMED if row.get(layout.time) is None else row[layout.time]
    return user, item, float(row[layout.rating]), time, _text(row, layout)


def _text(row: Row, layout: Layout) -> str:
    """A review's full text in a line, below its summary unless it begins with that.

    So a first line before another is always the summary, or title.
    """
    summary, text = (
        " ".join(" ".join(lines.flat(row.get(name))).splitlines()).strip()
        for name in (layout.summary, layout.text)
    )
    begins = text.startswith(summary.rstrip(". "))  # a summary may be cut off by dots
    return lines.encodable(text if begins else f"{summary}\n{text}".strip())


def items(
    rows: Iterable[Row],
    layout: Layout,
    describe: Callable[[Row], Record],
    occurring: np.ndarray,
    remarks: list[str],
) -> list[Record]:
    """The items that occur in events, each by the first of the rows that describes it."""
    names, first, differing = set(occurring.tolist()), {}, set()
    for row in rows:
        if (item := row[layout.item]) in names:
            record = {"item": item, **describe(row)}
            if first.setdefault(item, record) != record:
                differing.add(item)
    if differing:
        remarks.append(
            f"{len(differing)} items are described in several ways, such as {min(differing)!r}; "
            "the first one counts"
        )
    return complete_items(list(first.values()), occurring, remarks)
