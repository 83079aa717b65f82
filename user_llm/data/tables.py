"""Tables of events or items in Parquet, CSV or JSON, as columns that a schema can read.

CSV is read as text, so that no id loses its zeros; times are seconds or ISO 8601, in UTC where they
name no zone.
"""

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from user_llm.data.features import Bag, Numeric, Text, Time, missing, plain
from user_llm.data.schema import AnyFeature, Of, TimelineSchema

logger = logging.getLogger(__name__)
Table = Mapping[str, Sequence[Any]]  # columns by name


def read(path: Path, schema: TimelineSchema, of: Of, *, optional: bool = False) -> Table:
    """The columns of a file under the schema's names, checked by the schema.

    Where they are `optional`, a feature of the event without its column is missing in every event.

    Raises:
      ValueError: the file cannot be read, holds nothing, or lacks columns; or values do not fit,
        by feature, user (or item) and row.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path} is no table; its name must end in {', '.join(READERS)}")
    if not path.is_file():
        raise ValueError(f"{path} is not there; name a file")
    table = READERS[path.suffix](path)
    if not table or not len(next(iter(table.values()))):
        raise ValueError(f"{path} holds no {of}s")
    table = named(table, schema)
    if optional:
        table = absent_as_missing(table, schema)
    try:
        return checked(table, schema, of)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def absent_as_missing(table: Table, schema: TimelineSchema) -> Table:
    """A table of events with the columns of features that it lacks, every value missing."""
    rows = len(next(iter(table.values())))
    read = dict.fromkeys(f.column for f in schema.of("event") if f.column != "timestamp")
    if absent := [column for column in read if column not in table]:
        logger.warning("the events have no column %s: read as missing", ", ".join(absent))
    return {**table, **{column: [None] * rows for column in absent}}


def named(table: Table, schema: TimelineSchema) -> dict[str, Sequence[Any]]:
    """The columns under the schema's names."""
    called = {theirs: ours for ours, theirs in schema.columns.items()}
    return {called.get(name, name): values for name, values in table.items()}


def checked(table: Table, schema: TimelineSchema, of: Of) -> Table:
    """The table with its times in seconds, once the schema has found nothing wrong with it."""
    table = dict(table)
    if "timestamp" in table:
        table["timestamp"] = [seconds(t) for t in table["timestamp"]]
    schema.check(table, of)
    return table


def event_columns(table: Table, schema: TimelineSchema) -> dict[str, np.ndarray]:
    """A checked table of events as arrays: the columns that every data set keeps of events."""
    readers = schema.readers("event", table)
    columns = {name: column(reader, table[name]) for name, reader in readers.items()}
    return columns | {  # float32 would lose the digits of an id
        name: np.array([str(v) for v in table[name]], object)
        for name in ("user", "item")
        if columns[name].dtype.kind == "f"
    }


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
    return by_column(rows)


def _json(path: Path) -> dict[str, Sequence[Any]]:
    """A list of objects, or as JSON lines an object a line."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return _json_lines(path)
    rows = rows if isinstance(rows, list) else [rows]
    if wrong := [n for n, row in enumerate(rows, 1) if not isinstance(row, dict)]:
        raise ValueError(f"{path} lists what is no object in the places {wrong[:5]}")
    return by_column(rows)


def by_column(rows: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[Any]]:
    """Rows as columns, with None where a row lacks one."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


READERS = {".parquet": _parquet, ".csv": _csv, ".jsonl": _json_lines, ".json": _json}


def seconds(value: Any) -> Any:
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


def column(feature: AnyFeature, values: Sequence[Any]) -> np.ndarray:
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
