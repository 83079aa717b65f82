"""Sequences of item ids as recommender papers ship them, whose figures need their very splits.

`<version>.txt` holds a user per line, `user item item ...` (S3-Rec, arXiv 2008.07873), or an event
per line, `user item` (SASRec, arXiv 1808.09781), in the order of time. What S3-Rec keeps beside it
in `<version>_item2attributes.json` becomes a bag of each item. There are no times: an event's is
its place in its user's sequence.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from user_llm.data.builders.base import Raw, Record, TimelineBuilder, bare_item
from user_llm.data.features import Bag, Categorical
from user_llm.data.schema import TimelineSchema

ITEM = Categorical(name="item")
ATTRIBUTES = Bag(name="attributes", of="item")


class Sequences(TimelineBuilder, skip_registration=True):
    """Users' items in order; ids are kept as they are written."""

    name = "sequences"

    @classmethod
    def files(cls, source: Path | None, version: str) -> list[Path]:
        if source is None or not (source / f"{version}.txt").is_file():
            there = sorted(p.stem for p in source.glob("*.txt")) if source else []
            raise ValueError(
                f"sequences needs the file {version or 'VERSION'}.txt in {source}; "
                f"versions there: {', '.join(there) or 'none'}"
            )
        attributes = source / f"{version}_item2attributes.json"
        return [source / f"{version}.txt", *([attributes] if attributes.is_file() else [])]

    @classmethod
    def read(cls, source: Path, version: str) -> Raw:
        path, *attributes_file = cls.files(source, version)
        sequences = _sequences(path)
        occurring = sorted({item for items in sequences.values() for item in items}, key=_number)
        attributes = _attributes(attributes_file[0]) if attributes_file else None
        items: list[Record] = [bare_item(item) for item in occurring]
        if attributes is not None:
            for item in items:
                item["attributes"] = attributes.get(item["item"], [])

        def timelines() -> Iterator[Record]:
            for user, bought in sequences.items():
                times = np.arange(len(bought), dtype=np.int64)
                yield {"user": user, "item": np.array(bought, object), "timestamp": times}

        features = (ITEM,) if attributes is None else (ITEM, ATTRIBUTES)
        return Raw(TimelineSchema(features=features), len(sequences), timelines, items, [])


def _sequences(path: Path) -> dict[str, list[str]]:
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    if wrong := [number for number, row in enumerate(rows, 1) if len(row) < 2]:
        told = ", ".join(map(str, wrong[:5]))
        raise ValueError(f"{path} must name a user and items in each line; not so line {told}")
    if not rows:
        raise ValueError(f"{path} holds no sequences")
    found: dict[str, list[str]] = {}
    by_event = all(len(row) == 2 for row in rows)
    for user, *items in rows:
        if user in found and not by_event:
            raise ValueError(f"{path} has two lines of user {user}")
        found.setdefault(user, []).extend(items)
    return found


def _attributes(path: Path) -> dict[str, list[str]]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {str(item): [str(value) for value in values] for item, values in table.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must map items to lists of attributes: {error}") from error


def _number(item: str) -> tuple[int, str]:
    """Sorts numbers as numbers, before names."""
    return (int(item), "") if item.isdecimal() else (2**62, item)
