"""A built data set in memory: events as flat arrays, users as ranges of them, items as rows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from user_llm.config import EVENT_TIME, QUERY_TIME, TEXT_VECTOR, FeatureConfig
from user_llm.data import records
from user_llm.data.features import KNOWN, Text, Time, Vocabulary
from user_llm.data.records import plain
from user_llm.data.schema import TimelineSchema


@dataclass(frozen=True)
class Items:
    """Row i describes the encoded item id i; rows 0 (missing) and 1 (unknown) are blank."""

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    genres: tuple[tuple[str, ...], ...]
    texts: tuple[str, ...]
    features: dict[str, np.ndarray]  # encoded, [V, ...]


class Asked(NamedTuple):
    """What users asked at events of theirs, beside what the others tell; empty where nothing."""

    told: Sequence[str]  # an event as a prompt spells it out
    inputs: Sequence[str]
    outputs: Sequence[str]  # the right answers, where they are known


@dataclass(frozen=True)
class Dataset:
    """The timelines of users: user u's events are offsets[u] to offsets[u + 1], in time order."""

    schema: TimelineSchema
    vocabularies: dict[str, Vocabulary]
    users: tuple[str, ...]
    offsets: Int[np.ndarray, " offsets"]  # one more than users
    items: Items
    item: Int[np.ndarray, " events"]  # encoded ids, from 2 on
    times: Int[np.ndarray, " events"]  # seconds
    features: dict[str, np.ndarray]  # encoded event features other than the item, [N, ...]
    ratings: Float[np.ndarray, " events"] | None
    reviews: Sequence[str] | None
    asked: Asked | None = None
    since: int | None = None  # seconds, from which the clock's columns count where it is known

    @property
    def origin(self) -> int | None:
        """The time from which the clock's columns count; None where there are none."""
        if self.since is not None or EVENT_TIME not in self.features:
            return self.since
        return int(self.times[0]) - int(self.features[EVENT_TIME][0])

    def review(self, event: int) -> str:
        """What the user wrote of an event; empty where there is no review."""
        return "" if self.reviews is None else self.reviews[event].strip()

    @property
    def inputs(self) -> tuple[FeatureConfig, ...]:
        """What an encoder must know of the features: the item first, then in the schema's order."""
        rest = [f for f in self.schema.features if f.name != self.schema.item]
        return tuple(
            f.config(self.vocabularies[f.name], f.name in self.schema.predicted)
            for f in (self.schema[self.schema.item], *rest)
        )

    def gather(self, events: Int[np.ndarray, "..."]) -> dict[str, np.ndarray]:
        """The encoded features, by name, of these events and of their items; -1 pads with zeros."""
        return gather(self.columns, events)

    @cached_property
    def columns(self) -> "Columns":
        """All encoded features."""
        events = {self.schema.item: self.item, **self.features}
        return {"events": events, "items": self.items.features, "item": self.item}

    def without(self, dropped: Bool[np.ndarray, " events"]) -> "Dataset":
        """The data set without these events; what a kept event says stays, but for its clock."""
        keep = ~dropped
        before = np.concatenate([[0], np.cumsum(keep)])
        offsets, times = before[self.offsets], self.times[keep]
        features = {name: values[keep] for name, values in self.features.items()}
        if EVENT_TIME in features:
            features |= clock_columns(times, offsets, origin=self.origin)
        left = np.flatnonzero(keep).tolist()

        def of(texts: Sequence[str]) -> list[str]:
            return [texts[event] for event in left]

        return replace(
            self,
            offsets=offsets,
            item=self.item[keep],
            times=times,
            features=features,
            ratings=None if self.ratings is None else self.ratings[keep],
            reviews=None if self.reviews is None else of(self.reviews),
            asked=None if self.asked is None else Asked(*map(of, self.asked)),
        )

    def some(self, first: int, last: int) -> "Dataset":
        """The data set of users `first` to `last` alone, the last excluded."""
        start, stop = self.offsets[[first, last]].tolist()
        own = slice(start, stop)
        return replace(
            self,
            users=self.users[first:last],
            offsets=self.offsets[first : last + 1] - start,
            item=self.item[own],
            times=self.times[own],
            features={name: values[own] for name, values in self.features.items()},
            ratings=None if self.ratings is None else self.ratings[own],
            reviews=None if self.reviews is None else self.reviews[own],
            asked=None if self.asked is None else Asked(*(texts[own] for texts in self.asked)),
        )

    def with_vectors(self, vectors: Float[np.ndarray, "events D"], seen: bool) -> "Dataset":
        """The data set with a vector of each event's review as a feature, `TEXT_VECTOR`.

        Of an event without a review it is all zeros. If it is `seen`, encoders read it.
        """
        feature = Text(name=TEXT_VECTOR, vector=vectors.shape[1])
        there = np.array([bool(self.review(event)) for event in range(len(self.item))])
        column = np.concatenate([vectors * there[:, None], there[:, None]], 1, dtype=np.float32)
        schema, vocabularies = self.schema, self.vocabularies
        if seen:
            schema = schema.model_copy(update={"features": (*schema.features, feature)})
            vocabularies = vocabularies | {TEXT_VECTOR: Vocabulary()}
        features = {**self.features, TEXT_VECTOR: column}
        return replace(self, schema=schema, vocabularies=vocabularies, features=features)

    def with_column(self, name: str, column: Float[np.ndarray, "events _"]) -> "Dataset":
        """The data set with a column of its events that no encoder reads."""
        return replace(self, features={**self.features, name: column})

    @property
    def columns_size(self) -> int:
        """The bytes that they take."""
        return sum(x.nbytes for table in ("events", "items") for x in self.columns[table].values())

    @cached_property
    def hash(self) -> str:
        """The SHA-256 of the content, features and vocabularies included."""
        digest = hashlib.sha256(self.schema.model_dump_json().encode())
        texts = (self.users, self.items.ids, self.items.titles, self.items.genres, self.items.texts)
        said = (*texts, self.reviews) if self.asked is None else (*texts, self.reviews, self.asked)
        digest.update(json.dumps(said).encode())
        for name in sorted(self.vocabularies):
            digest.update(self.vocabularies[name].model_dump_json().encode())
        arrays = {"offsets": self.offsets, "item": self.item, "times": self.times}
        arrays |= {"ratings": self.ratings} if self.ratings is not None else {}
        for table in (arrays, self.features, self.items.features):
            for name in sorted(table):
                digest.update(f"{name}{table[name].dtype}{table[name].shape}".encode())
                digest.update(np.ascontiguousarray(table[name]).tobytes())
        return digest.hexdigest()


ASKED = ("told", "input", "output")  # columns of a table whose users ask something
Columns = dict[str, Any]  # "events" and "items": features by name; "item": each event's


def gather(columns: Columns, events: Any, xp: Any = np) -> dict[str, Any]:
    """The features of these events and of their items, by name; those of event -1 are zero.

    `xp` is numpy, or jax.numpy to do this on the device.
    """
    there, events = events >= 0, xp.maximum(events, 0)

    def of(values, index):
        rows = xp.take(values, index, axis=0)
        shape = (*there.shape, *(1,) * (rows.ndim - there.ndim))
        return xp.where(xp.reshape(there, shape), rows, 0).astype(rows.dtype)

    item = xp.where(there, columns["item"][events], 0)
    told = {name: of(values, events) for name, values in columns["events"].items()}
    return told | {name: xp.take(x, item, axis=0) for name, x in columns["items"].items()}


def load(
    folder: Path,
    *,
    features: tuple[str, ...] = (),
    first_users: int = 0,
    min_count: int = 0,
    clock: bool = False,
    damaged: float = 0.0,
) -> Dataset:
    """The data set built in `folder`, with these features of its schema (all, if none is named).

    Of its users only the first are read where `first_users` is not 0. Up to a share of `damaged`
    are left out, with a warning, where their records cannot be read.

    `min_count` drops the events of users and of items that have fewer events in the whole table,
    counted once, as the preprocessing of SASRec (arXiv 1808.09781) does. `clock` adds the columns
    that tell an encoder when events were (see `clock_columns`).

    Raises:
      ValueError: no data set there, fewer records than were built, more damaged ones than may be,
        an unknown feature, or a `min_count` that leaves nothing.
    """
    counts = records.counts(folder)
    schema = TimelineSchema.model_validate_json((folder / "schema.json").read_text())
    schema = schema.select(features)
    timelines = records.read(folder, "timelines", counts["users"], damaged)
    events = sum(len(one["timestamp"]) for one in timelines)
    if len(timelines) == counts["users"] and events != counts["events"]:
        raise ValueError(f"{folder} has {events} events, not {counts['events']}; rebuild it")
    users, lengths, columns = records.columns_of(timelines[: first_users or None])
    user = np.repeat(np.arange(len(users)), lengths)
    if min_count:
        user, columns = _frequent(user, columns, min_count)
    left, lengths = np.unique(user, return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    vocabularies = {
        feature.name: feature.fit(columns[feature.column])
        for feature in (schema[schema.item], *schema.of("event"))
    }
    encoded = encode_events(schema, vocabularies, columns, offsets)
    if clock:
        encoded |= clock_columns(columns["timestamp"], offsets)
    described = records.read(folder, "items", counts["items"])
    items, of_items = _items(described, schema, vocabularies[schema.item])
    return Dataset(
        schema=schema,
        vocabularies=vocabularies | of_items,
        users=tuple(users[u] for u in left),
        offsets=offsets,
        items=items,
        item=encoded.pop(schema.item),
        times=columns["timestamp"],
        features=encoded,
        ratings=columns.get("rating"),
        reviews=columns["review"].tolist() if "review" in columns else None,
        asked=Asked(*(columns[name].tolist() for name in ASKED)) if "input" in columns else None,
    )


def encode_events(
    schema: TimelineSchema,
    vocabularies: Mapping[str, Vocabulary],
    columns: Mapping[str, np.ndarray],
    offsets: Int[np.ndarray, " offsets"],
) -> dict[str, np.ndarray]:
    """The item and the other features of raw events, each user's in time order, by name."""
    encoded = {}
    for feature in (schema[schema.item], *schema.of("event")):
        values, vocabulary = columns[feature.column], vocabularies[feature.name]
        if isinstance(feature, Time):
            first = np.zeros(len(values), bool)
            first[offsets[:-1]] = True
            encoded[feature.name] = feature.encode(values, vocabulary, first)
        else:
            encoded[feature.name] = feature.encode(values, vocabulary)
    return encoded


def clock_columns(
    times: Int[np.ndarray, " events"],
    offsets: Int[np.ndarray, " offsets"],
    *,
    origin: int | None = None,
    asked: Int[np.ndarray, " users"] | None = None,
) -> dict[str, Int[np.ndarray, " events"]]:
    """Per event its own time and that of its user's next one, in seconds since the first of all.

    After a user's last event stands its own time, or when that user is `asked`. `origin` is the
    time that counts as the first instead.

    Raises:
      ValueError: a time is too far from the first for 32 bits.
    """
    own = times - (times.min() if origin is None else origin)  # users may have no events
    following = np.append(own[1:], own[-1:])
    last = offsets[1:][np.diff(offsets) > 0] - 1
    following[last] = own[last] if asked is None else asked - (times[last] - own[last])
    for column in (own, following):
        if np.abs(column).max(initial=0) >= 2**31:
            raise ValueError(
                "an event is more than 68 years from the data set's first; are all times seconds?"
            )
    return {EVENT_TIME: own.astype(np.int32), QUERY_TIME: following.astype(np.int32)}


def _frequent(
    user: np.ndarray, columns: dict[str, np.ndarray], min_count: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    _, item = np.unique(columns["item"], return_inverse=True)
    keep = (np.bincount(user)[user] >= min_count) & (np.bincount(item)[item] >= min_count)
    if not keep.any():
        raise ValueError(f"min_count={min_count} leaves no event; lower it")
    return user[keep], {name: column[keep] for name, column in columns.items()}


def _items(
    described: list[dict[str, Any]], schema: TimelineSchema, vocabulary: Vocabulary
) -> tuple[Items, dict[str, Vocabulary]]:
    """The rows of the items that occur in events, and the vocabularies of their features."""
    ids = schema[schema.item].encode([r["item"].decode() for r in described], vocabulary)
    rows = dict(zip(ids.tolist(), described, strict=True))
    known = [rows[KNOWN + i] for i in range(len(vocabulary.values))]
    vocabularies, features = {}, {}
    for feature in schema.of("item"):
        values = [plain(r[feature.column]) for r in known]
        vocabularies[feature.name] = feature.fit(values)
        encoded = feature.encode(values, vocabularies[feature.name])
        blank = np.zeros((KNOWN, *encoded.shape[1:]), encoded.dtype)
        features[feature.name] = np.concatenate([blank, encoded])
    blank = ("",) * KNOWN
    items = Items(
        ids=blank + tuple(str(v) for v in vocabulary.values),
        titles=blank + tuple(r["title"].decode() for r in known),
        genres=((),) * KNOWN + tuple(tuple(plain(r["genres"])) for r in known),
        texts=blank + tuple(r["text"].decode() for r in known),
        features=features,
    )
    return items, vocabularies
