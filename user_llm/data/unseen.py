"""Timelines that no data set holds, encoded exactly as one encodes its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from user_llm.config import EVENT_TIME, TEXT_VECTOR
from user_llm.data import records, tables
from user_llm.data.dataset import Dataset, clock_columns, encode_events
from user_llm.data.features import missing

Event = Mapping[str, Any]  # a raw one by column: its item, its timestamp, what features read


def encode(
    dataset: Dataset, timelines: Sequence[Sequence[Any]], *, at: Sequence[float | int] | None = None
) -> Dataset:
    """A data set of these timelines, with the vocabularies and the items of another.

    Events may come in any order; those of one time stay in theirs. A value that the data set does
    not know is out of the vocabulary, an item too; one that is None or not given is missing.

    Args:
      at: seconds, when each user is asked what comes next; by default at the user's last event.
        Read by encoders with `query_time` alone.

    Raises:
      ValueError: a timeline without events, values that cannot be read, by feature, user and row
        (users and rows count over all timelines), or a user who is asked before the last event.
    """
    if empty := [str(n) for n, events in enumerate(timelines) if not len(events)]:
        raise ValueError(f"no events in the timeline(s) {', '.join(empty[:5])}; give at least one")
    events = [event for timeline in timelines for event in timeline]
    if wrong := [e for e in events if not isinstance(e, Mapping)]:
        raise ValueError(f'{wrong[0]!r} is no event; give {{"item": ..., "timestamp": ...}}')
    user = np.repeat(np.arange(len(timelines)), [len(t) for t in timelines])
    table = tables.named(tables.by_column(events), dataset.schema)
    table["user"] = user.tolist()
    table = tables.absent_as_missing(table, dataset.schema)
    columns = tables.event_columns(tables.checked(table, dataset.schema, "event"), dataset.schema)
    names = tuple(map(str, range(len(timelines))))
    asked = None if at is None else np.array([int(float(t)) for t in at], np.int64)
    return _grouped(dataset, names, user, columns, asked)


def read(dataset: Dataset, path: Path) -> Dataset:
    """The same of a file with the columns `user`, `item`, `timestamp` and those of the features.

    As in a data set, users are sorted, and an event that repeats another in every column is
    dropped.

    Raises:
      ValueError: the file cannot be read, or values do not fit, by feature, user and row.
    """
    from user_llm.data.builders.base import without_repeats  # TFDS takes a second to import

    schema = dataset.schema
    table = tables.read(path, schema, "event", optional=True)
    columns = without_repeats(tables.event_columns(table, schema), [])
    names, user = np.unique(columns["user"], return_inverse=True)
    return _grouped(dataset, tuple(map(str, names)), user, columns, None)


class Stored:
    """The timelines of another built data set, read from the disk some users at a time.

    Args:
      dataset: whose vocabularies and items they are encoded by.
      folder: of the built data set.

    Raises:
      ValueError: there is no built data set, or its events lack a column that a feature reads.
    """

    def __init__(self, dataset: Dataset, folder: Path):
        self._users = records.counts(folder)["users"]
        self.dataset, self.folder = dataset, folder
        self._records = records.opened(folder, "timelines", self._users)
        schema = dataset.schema
        read = {feature.column for feature in (schema[schema.item], *schema.of("event"))}
        if self._users and (lacking := read - set(self._records[0])):
            raise ValueError(
                f"events of {folder} have no {', '.join(sorted(lacking))}, which the run's "
                "features read; build it with those columns"
            )

    def __len__(self) -> int:
        return self._users

    def some(self, first: int, last: int) -> Dataset:
        """Users `first` to `last`, the last excluded, in the order in which they are stored.

        Raises:
          ValueError: a record of theirs is damaged.
        """
        try:
            part = self._records.__getitems__(range(first, last))
        except RuntimeError as error:
            raise ValueError(f"{self.folder} is damaged; rebuild it: {error}") from error
        names, lengths, columns = records.columns_of(part)
        user = np.repeat(np.arange(len(names)), lengths)
        return _grouped(self.dataset, tuple(names), user, columns, None)


def _grouped(
    dataset: Dataset,
    names: tuple[str, ...],
    user: Int[np.ndarray, " events"],
    columns: dict[str, np.ndarray],
    asked: Int[np.ndarray, " users"] | None,
) -> Dataset:
    order = np.lexsort((columns["timestamp"], user))  # stable
    columns = {name: column[order] for name, column in columns.items()}
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(names)))])
    times = columns["timestamp"]
    if asked is not None:
        if asked.shape != (len(names),):
            raise ValueError(f"at has {len(asked)} times for {len(names)} timelines")
        if (early := np.flatnonzero(asked < times[offsets[1:] - 1])).size:
            name = names[early[0]]
            raise ValueError(f"user {name!r} is asked before the last event; drop what comes later")
    if TEXT_VECTOR in dataset.features:
        raise ValueError(
            "events of this data set have a text encoder's vectors of their reviews, made when it "
            "is opened; further events have none, so add them to the data set"
        )
    encoded = encode_events(dataset.schema, dataset.vocabularies, columns, offsets)
    if EVENT_TIME in dataset.features:
        encoded |= clock_columns(times, offsets, origin=dataset.origin, asked=asked)
    reviews = columns.get("review")
    return replace(
        dataset,
        users=names,
        offsets=offsets,
        item=encoded.pop(dataset.schema.item),
        times=times,
        features=encoded,
        ratings=columns.get("rating"),
        reviews=None if reviews is None else ["" if missing(x) else x for x in reviews],
    )
