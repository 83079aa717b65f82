"""A user's own files: events and items in Parquet, CSV or JSON lines, and a schema.json.

A folder holds `events.*`, `schema.json` and perhaps `items.*`; `TimelineSchema` says which columns
they have. CSV is read as text, so that no id loses its zeros; times are seconds or ISO 8601, in UTC
where they name no zone.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from user_llm.data.builders.base import (
    Raw,
    Record,
    TimelineBuilder,
    bare_item,
    complete_items,
    timelines,
    without_repeats,
)
from user_llm.data.features import Bag, Numeric, Text, Time, missing, plain
from user_llm.data.schema import AnyFeature, Of, TimelineSchema

SUFFIXES = (".parquet", ".csv", ".jsonl", ".json")


class Table(TimelineBuilder, skip_registration=True):
    """Events and items as the user's schema describes them."""

    name = "table"

    @classmethod
    def files(cls, source: Path | None, version: str) -> list[Path]:
        if source is None or not source.is_dir():
            raise ValueError(f"table needs a folder with events and schema.json; {source} is none")
        events, items = (
            [p for s in SUFFIXES if (p := source / f"{name}{s}").is_file()]
            for name in ("events", "items")
        )
        if len(events) != 1 or len(items) > 1:
            raise ValueError(
                f"{source} must hold events in one file ({', '.join(SUFFIXES)}) and at most one of "
                f"items; it holds {', '.join(p.name for p in events + items) or 'neither'}"
            )
        if not (source / "schema.json").is_file():
            raise ValueError(f"{source} lacks schema.json, which names the features of the table")
        return [source / "schema.json", *events, *items]

    @classmethod
    def read(cls, source: Path, version: str) -> Raw:
        description, events_file, *items_file = cls.files(source, version)
        try:
            schema = TimelineSchema.model_validate_json(description.read_text())
        except ValidationError as error:
            raise ValueError(f"{description} is no schema: {error}") from error
        remarks: list[str] = []
        events = _events(events_file, schema, remarks)
        occurring = np.unique(events["item"])
        items = _items(items_file, schema, occurring, remarks)
        users = len(np.unique(events["user"]))
        return Raw(schema, users, timelines(events), items, remarks)


def _events(path: Path, schema: TimelineSchema, remarks: list[str]) -> dict[str, np.ndarray]:
    table = _read(path, schema, "event")
    readers = schema.readers("event", table)
    columns = {name: _column(reader, table[name]) for name, reader in readers.items()}
    columns |= {  # float32 would lose the digits of an id
        name: np.array([str(v) for v in table[name]], object)
        for name in ("user", "item")
        if columns[name].dtype.kind == "f"
    }
    columns = without_repeats(columns, remarks)
    _, user = np.unique(columns["user"], return_inverse=True)
    rows = np.argsort(user, kind="stable")
    back = (np.diff(columns["timestamp"][rows]) < 0) & (np.diff(user[rows]) == 0)
    if back.any():
        users = len(np.unique(user[rows][1:][back]))
        remarks.append(f"the events of {users} users are not in time order; they are sorted")
    return columns


def _items(
    paths: Sequence[Path], schema: TimelineSchema, occurring: np.ndarray, remarks: list[str]
) -> list[Record]:
    if not paths:
        if features := [f.name for f in schema.of("item")]:
            raise ValueError(f"the features {', '.join(features)} are of items: add an items file")
        return complete_items([], occurring, [])
    table = _read(paths[0], schema, "item")
    readers = schema.readers("item", table)
    rows = [
        dict(zip(readers, row, strict=True)) for row in zip(*map(table.get, readers), strict=True)
    ]
    first = {str(row["item"]): row for row in reversed(rows)}
    if len(first) < len(rows):
        remarks.append(f"{len(rows) - len(first)} items are described twice; the first one counts")
    described = [{**row, "item": item} for item, row in reversed(first.items())]
    rows = complete_items(described, occurring, remarks)
    columns = {
        name: _column(reader, [row.get(name) for row in rows])
        for name, reader in readers.items()
        if name != "item"
    }
    return [
        bare_item(row["item"])
        | {n: _scalar(readers[n], column[i]) for n, column in columns.items()}
        for i, row in enumerate(rows)
    ]


def _read(path: Path, schema: TimelineSchema, of: Of) -> Mapping[str, Sequence[Any]]:
    """The columns of a file under the schema's names, checked by the schema."""
    table = READERS[path.suffix](path)
    if not table or not len(next(iter(table.values()))):
        raise ValueError(f"{path} holds no {of}s")
    called = {theirs: ours for ours, theirs in schema.columns.items()}
    table = {called.get(name, name): column for name, column in table.items()}
    if "timestamp" in table:
        table["timestamp"] = [_seconds(t) for t in table["timestamp"]]
    try:
        schema.check(table, of)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return table


def _parquet(path: Path) -> dict[str, Sequence[Any]]:
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a whole Parquet file: {error}") from error
    return {name: table[name].to_pylist() for name in table.column_names}


def _csv(path: Path) -> dict[str, Sequence[Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = csv.reader(file, strict=True)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not CSV with a header: {error}") from error
    wrong = [f"row {n} has {len(row)}" for n, row in enumerate(rows, 1) if len(row) != len(header)]
    if wrong:
        raise ValueError(
            f"{path} has {len(header)} columns, but {len(wrong)} rows have not: "
            f"{'; '.join(wrong[:5])}. Is the file truncated, or a separator not quoted?"
        )
    return dict(zip(header, zip(*rows, strict=True), strict=bool(rows)))


def _json_lines(path: Path) -> dict[str, Sequence[Any]]:
    rows, wrong = [], []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                rows.append(row)
            except ValueError as error:
                wrong.append(f"line {number}: {error}")
    if wrong:
        raise ValueError(
            f"{path} has {len(wrong)} lines that cannot be read: {'; '.join(wrong[:5])}"
        )
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


READERS = {".parquet": _parquet, ".csv": _csv, ".jsonl": _json_lines, ".json": _json_lines}


def _seconds(value: Any) -> Any:
    """A time as seconds, or as it is where it is none."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return value
    if not isinstance(value, date):
        return value
    if not isinstance(value, datetime):
        value = datetime.combine(value, time())
    return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())


def _column(feature: AnyFeature, values: Sequence[Any]) -> np.ndarray:
    """The raw values as an array that a record can hold, with NaN or "" where one is missing."""
    if isinstance(feature, Time):
        return np.array([int(float(v)) for v in values], np.int64)
    if isinstance(feature, Numeric):
        return np.array([np.nan if missing(v) else float(v) for v in values], np.float32)
    if isinstance(feature, Text) and feature.vector:
        absent = np.full(feature.vector, np.nan)
        return np.array([absent if missing(v) else v for v in values], np.float32)
    if isinstance(feature, Bag):
        join = feature.separator.join
        return np.array(
            ["" if missing(v) else v if isinstance(v, str) else join(map(str, v)) for v in values],
            object,
        )
    array, absent = plain(values)
    if array.dtype.kind == "f":
        return np.where(absent, np.nan, array).astype(np.float32)
    if array.dtype.kind == "i" and not absent.any():
        return array
    return np.where(absent, "", array.astype(str)).astype(object)


def _scalar(feature: AnyFeature, value: Any) -> Any:
    """One value of such a column, as an item's record holds it."""
    if isinstance(feature, Bag):
        return value.split(feature.separator) if value else []
    return value.item() if isinstance(value, np.generic) else value
