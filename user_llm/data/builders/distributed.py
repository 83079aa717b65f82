"""Reviews read, grouped and written by many machines: Apache Beam makes what one machine would.

Files are read in pieces, events meet by user, and descriptions by item. Every machine sees the
source and the data set's folder, and holds one user's events at a time, never all of them.
"""

import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from user_llm.data.builders import lines, reviews
from user_llm.data.builders.base import Record, bare_item
from user_llm.data.builders.reviews import Layout
from user_llm.data.schema import TimelineSchema

PIECE = 2**26  # bytes of a file that are read by one machine at a time
HEAD = 5  # letters of a name that decide who else is sorted beside it
TALLY = "user_llm"  # the namespace of what is counted
Named = tuple[str, Any]
FAR = 2**48  # bytes that no file has
Piece = tuple[int, Path, int, int]  # of a file, its number before it: from a byte to another
Place = int  # of a line: its file's number and its first byte, so that places are in lines' order


class Plan(NamedTuple):
    """How to make the records of both configs, keyed by their position among them."""

    schema: TimelineSchema
    makers: Mapping[str, beam.PTransform]
    examples: Mapping[str, Record]
    options: PipelineOptions

    def remarks(self, tally: Mapping[str, int]) -> list[str]:
        """What was repaired.

        Raises:
          ValueError: more than one line of a hundred is malformed.
        """
        for what in ("reviews", "items"):
            bad, of = tally.get(f"malformed {what}", 0), tally.get(f"lines of {what}", 0)
            if bad > lines.TOLERATED * of:
                raise ValueError(
                    f"{bad} of {of} lines of {what} are malformed. Are they of another version?"
                )
        return [f"{tally[name]} {name}" for name in REMARKED if tally.get(name)]


REMARKED = (
    "malformed reviews",
    "malformed items",
    "reviews without a time, which are dropped",
    "reviews that repeat an earlier one in every column, which are dropped",
    "items described in several ways, of which the first one counts",
    "items that occur in events and are not described",
)


def plan(
    paths: list[Path],
    item_paths: list[Path],
    layout: Layout,
    describe: Callable[[lines.Row], Record],
    flags: list[str],
) -> Plan:
    """The plan for files of reviews and of items' descriptions; flags are Beam's own."""
    example = _timeline("", [(0, 0, "", 0.0, "")], ticks=1)
    return Plan(
        schema=reviews.SCHEMA,
        makers={
            "timelines": _timelines(paths, layout),
            "items": _items(paths, item_paths, layout, describe),
        },
        examples={"timelines": example, "items": bare_item("")},
        options=PipelineOptions(flags, pipeline_type_check=False),
    )


@beam.ptransform_fn
def _timelines(begin: Any, paths: list[Path], layout: Layout) -> Any:
    return (
        _events(begin, paths, layout)
        | "meet by user" >> beam.GroupByKey()
        | beam.MapTuple(partial(_timeline, ticks=layout.ticks))
        | "by name" >> beam.Map(lambda record: (record["user"][:HEAD], (record["user"], record)))
        | _numbered("timelines")
    )


@beam.ptransform_fn
def _items(
    begin: Any,
    paths: list[Path],
    item_paths: list[Path],
    layout: Layout,
    describe: Callable[[lines.Row], Record],
) -> Any:
    """Items that occur: the described ones in the order of their lines, then the others by name."""
    form, wanted = layout.items_form, reviews.wanted_of_items(layout)
    told = (
        begin
        | "files of items" >> beam.Create(list(_pieces(item_paths)))
        | "read items" >> beam.ParDo(_Read(form, wanted, "items"))
        | beam.MapTuple(
            lambda place, row: (
                row[layout.item],
                (place, {"item": row[layout.item], **describe(row)}),
            )
        )
    )
    occurring = (
        _events(begin, paths, layout)
        | beam.MapTuple(lambda user, event: (event[2], None))
        | beam.Distinct()
    )
    items = (
        {"told": told, "occurring": occurring}
        | "meet by item" >> beam.CoGroupByKey()
        | beam.FlatMapTuple(_item)
    )
    roots = (
        items
        | "roots" >> beam.FlatMap(lambda item: item[1][1]["genres"][:1])
        | "distinct roots" >> beam.Distinct()
        | beam.combiners.Count.Globally()
    )
    return items | beam.Map(_without_root, beam.pvalue.AsSingleton(roots)) | _numbered("items")


def _events(begin: Any, paths: list[Path], layout: Layout) -> Any:
    """Each review by its user: time, place, item, rating and text."""
    read = _Read(layout.form, reviews.wanted_of_reviews(layout), "reviews")
    return (
        begin
        | "files of reviews" >> beam.Create(list(_pieces(paths)))
        | "read reviews" >> beam.ParDo(read)
        | beam.FlatMapTuple(partial(_event, layout=layout))
    )


def _pieces(paths: Iterable[Path]) -> Iterator[Piece]:
    for number, path in enumerate(paths):
        if path.suffix == ".gz":  # nobody can begin in the middle of one
            yield number, path, 0, FAR
        else:
            for start in range(0, path.stat().st_size, PIECE):
                yield number, path, start, start + PIECE


class _Read(beam.DoFn):
    """What each line of a piece holds, with its place; a line is of the piece where it begins."""

    def __init__(self, form: str, wanted: Mapping[str, lines.Fits], what: str):
        self.form, self.wanted, self.what = form, wanted, what

    def process(self, piece: Piece) -> Iterator[tuple[Place, lines.Row]]:
        number, path, start, stop = piece
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            if start:  # the line in which the piece begins is of the one before
                file.seek(start - 1)
                file.readline()
            while (at := file.tell()) < stop and (line := file.readline()):
                if not line.strip():
                    continue
                _count(f"lines of {self.what}")
                try:
                    rows = lines.parsed(line, self.form, self.wanted, lambda row: [row])
                except lines.MALFORMED:
                    _count(f"malformed {self.what}")
                else:
                    yield number * FAR + at, rows[0]


def _event(place: Place, row: lines.Row, layout: Layout) -> Iterator[Named]:
    user, item, rating, time, text = reviews.event(row, layout)
    if time == reviews.UNTIMED:
        _count("reviews without a time, which are dropped")
    else:
        yield user, (time, place, item, rating, text)


def _timeline(user: str, events: Iterable[tuple], ticks: int) -> Record:
    told = sorted(events)  # places differ, so that nothing after them is compared
    rows = list(
        dict.fromkeys((item, rating, time // ticks, text) for time, _, item, rating, text in told)
    )
    items, ratings, times, texts = zip(*rows, strict=True)
    if user:
        _count("events", len(rows))
        repeats = "reviews that repeat an earlier one in every column, which are dropped"
        _count(repeats, len(told) - len(rows))
    return {
        "user": user,
        "item": np.array(items, object),
        "rating": np.array(ratings, np.float32),
        "timestamp": np.array(times, np.int64),
        "review": np.array(texts, object),
    }


def _item(name: str, found: dict[str, list]) -> Iterator[tuple[str, tuple[str, Record]]]:
    """An item that occurs, by what it is sorted by, and by the beginning of that."""
    if not found["occurring"]:
        return
    if not found["told"]:
        _count("items that occur in events and are not described")
        yield f"1{name[:HEAD]}", (name, bare_item(name))
        return
    place, first = min(found["told"], key=lambda told: told[0])
    if any(record != first for _, record in found["told"]):
        _count("items described in several ways, of which the first one counts")
    yield f"0{place // PIECE:016x}", (f"{place:016x}", first)


def _without_root(item: tuple[str, Named], roots: int) -> tuple[str, Named]:
    head, (name, record) = item
    genres = record["genres"] if roots > 1 else record["genres"][1:]
    return head, (name, record | {"genres": genres})


@beam.ptransform_fn
def _numbered(named: Any, what: str) -> Any:
    """Records by their position in the order of names; those that begin alike meet first."""
    alike = named | "meet by head" >> beam.GroupByKey() | beam.MapTuple(_sorted)
    sizes = alike | beam.MapTuple(lambda head, records: (head, len(records)))
    firsts = sizes | beam.combiners.ToList() | beam.Map(_firsts)
    return alike | beam.FlatMap(_number, beam.pvalue.AsSingleton(firsts), what)


def _sorted(head: str, named: Iterable[Named]) -> tuple[str, list[Record]]:
    return head, [record for _, record in sorted(named, key=lambda one: one[0])]


def _firsts(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    firsts, total = {}, 0
    for head, size in sorted(sizes):
        firsts[head], total = total, total + size
    return firsts


def _number(
    alike: tuple[str, list[Record]], firsts: dict[str, int], what: str
) -> Iterator[tuple[int, Record]]:
    head, records = alike
    _count(what, len(records))
    yield from enumerate(records, firsts[head])


def _count(name: str, by: int = 1) -> None:
    beam.metrics.Metrics.counter(TALLY, name).inc(by)


def counted(result: Any) -> dict[str, int]:
    """What a finished pipeline has counted."""
    found = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(TALLY))["counters"]
    return {one.key.metric.name: one.committed for one in found}
