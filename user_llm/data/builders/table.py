"""A user's own files: events and items in Parquet, CSV or JSON lines, and a schema.json.

A folder holds `events.*`, `schema.json` and perhaps `items.*`; `TimelineSchema` says which columns
they have, `tables` which files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
from user_llm.data.features import Bag
from user_llm.data.schema import AnyFeature, TimelineSchema
from user_llm.data.tables import READERS, column, event_columns, read


class Table(TimelineBuilder, skip_registration=True):
    """Events and items as the user's schema describes them."""

    name = "table"

    @classmethod
    def files(cls, source: Path | None, version: str) -> list[Path]:
        if source is None or not source.is_dir():
            raise ValueError(f"table needs a folder with events and schema.json; {source} is none")
        events, items = (
            [p for s in READERS if (p := source / f"{name}{s}").is_file()]
            for name in ("events", "items")
        )
        if len(events) != 1 or len(items) > 1:
            raise ValueError(
                f"{source} must hold events in one file ({', '.join(READERS)}) and at most one of "
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
    columns = event_columns(read(path, schema, "event"), schema)
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
    table = read(paths[0], schema, "item")
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
        name: column(reader, [row.get(name) for row in rows])
        for name, reader in readers.items()
        if name != "item"
    }
    return [
        bare_item(row["item"])
        | {n: _scalar(readers[n], values[i]) for n, values in columns.items()}
        for i, row in enumerate(rows)
    ]


def _scalar(feature: AnyFeature, value: Any) -> Any:
    """One value of such a column, as an item's record holds it."""
    if isinstance(feature, Bag):
        return value.split(feature.separator) if value else []
    return value.item() if isinstance(value, np.generic) else value
