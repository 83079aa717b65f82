"""Timelines as index ranges: splits, windows, packed rows, histories.

All events of a data set lie in one order, by user and then by time; user u owns the indices from
`offsets[u]` to `offsets[u + 1]`. Everything here is index arithmetic on that order.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from user_llm.config import DataConfig

Indices = Int[np.ndarray, "..."]
LAST = 10  # events of each user that the protocol "last_ten" asks about


@dataclasses.dataclass(frozen=True)
class Split:
    """Which events train, and which are asked for.

    A target's history is its user's events before it; training asks about those from `train_first`
    on. `cold` holds the test targets of the users
    whom training never saw, and `new_items` the validation and test targets, whoever's they are,
    whose item is held out; neither is part of `validation` or `test`.
    """

    train_first: Indices  # [U]
    train_stop: Indices  # [U]: user u trains on events offsets[u] to train_stop[u] not held out
    validation: Indices  # event indices
    test: Indices
    cold: Indices
    new_items: Indices
    held_out: Bool[np.ndarray, " events"]  # whose item training never sees


def split(
    config: DataConfig,
    offsets: Indices,
    times: Indices,
    item: Indices,
    parts: Sequence[str] = (),
) -> Split:
    """Splits each timeline by its last events or all of them by the clock (see `DataConfig`).

    Held out are shares of the users, and of the items that occur. `parts` are each user's, `train`,
    `dev` or `test`, for the protocol that goes by them.
    """
    rng = np.random.default_rng(config.seed)
    users = len(offsets) - 1
    cold = np.zeros(users, bool)
    cold[rng.permutation(users)[: round(config.held_out_users * users)]] = True
    occurring = np.unique(item)
    chosen = np.random.default_rng([config.seed, 1]).permutation(occurring)
    held_out = np.isin(item, chosen[: round(config.held_out_items * len(occurring))])
    if config.protocol == "by_file":
        train_stop, validation, test = by_file(parts, offsets)
    else:
        by = by_time if config.protocol == "by_time" else leave_one_out
        train_stop, validation, test = by(config, offsets, times)
    is_cold = cold[user_of(np.arange(len(item)), offsets)]
    asked = np.concatenate([validation[~is_cold[validation]], test])
    asks_last = config.protocol == "last_ten"
    return Split(
        train_first=np.maximum(offsets[:-1], offsets[1:] - LAST) if asks_last else offsets[:-1],
        train_stop=np.where(cold, offsets[:-1], train_stop),
        validation=validation[~is_cold[validation] & ~held_out[validation]],
        test=test[~is_cold[test] & ~held_out[test]],
        cold=test[is_cold[test] & ~held_out[test]],
        new_items=np.sort(asked[held_out[asked]]),
        held_out=held_out,
    )


def leave_one_out(config: DataConfig, offsets: Indices, times: Indices) -> tuple:
    """Each user's last event is for test, the one before for validation; short timelines train."""
    asked = offsets[1:][np.diff(offsets) >= 3]
    train_stop = np.where(np.diff(offsets) >= 3, offsets[1:] - 2, offsets[1:])
    return train_stop, asked - 2, asked - 1


def by_time(config: DataConfig, offsets: Indices, times: Indices) -> tuple:
    """Two moments cut all timelines; asked for is each user's first event after a cut."""
    cuts = np.quantile(times, [1 - 2 * config.test_share, 1 - config.test_share])
    user = user_of(np.arange(len(times)), offsets)
    seen = [
        offsets[:-1] + np.bincount(user[times < cut], minlength=len(offsets) - 1) for cut in cuts
    ]
    validation = seen[0][(seen[0] > offsets[:-1]) & (seen[0] < seen[1])]
    test = seen[1][(seen[1] > offsets[:-1]) & (seen[1] < offsets[1:])]
    return seen[0], validation, test


def by_file(parts: Sequence[str], offsets: Indices) -> tuple:
    """Whole timelines train, or their last event is asked for; `dev` is test where there is none.

    Raises:
      ValueError: there are no users of `dev`.
    """
    part, last = np.array(parts), offsets[1:] - 1
    if not (part == "dev").any():
        raise ValueError('protocol "by_file" judges by the users of `dev`, and there are none')
    validation, test = last[part == "dev"], last[part == "test"]
    train_stop = np.where(part == "train", offsets[1:], offsets[:-1])
    return train_stop, validation, test if len(test) else validation


def user_of(events: Indices, offsets: Indices) -> Indices:
    """The user who owns each event."""
    return np.searchsorted(offsets, events, side="right") - 1


def histories(targets: Indices, offsets: Indices, size: int) -> Indices:
    """[N, size]: the last `size` events before each target, oldest first, -1 behind them."""
    start = np.maximum(offsets[user_of(targets, offsets)], targets - size)
    events = start[:, None] + np.arange(size)
    return np.where(events < targets[:, None], events, -1)


def thinned(events: Int[np.ndarray, "N T"], most: float, seeds: Indices) -> Indices:
    """The same histories, as `histories` gives them, without a random part of most of them.

    Of more than two events, up to the share `most` of them and one more are left out, in ten of
    eleven cases (Persona-Plug's augmentation, arXiv 2409.11901, as its authors' code has it).
    """
    thin = np.full_like(events, -1)
    for row, own, seed in zip(thin, events, seeds, strict=True):
        own, rng = own[own >= 0], np.random.default_rng([seed, 2])
        if len(own) > 2 and rng.random() < 10 / 11:
            left = len(own) - int(len(own) * rng.uniform(0, most)) - 1
            own = own[np.sort(rng.permutation(len(own))[:left])]
        row[: len(own)] = own
    return thin


def training_events(split: Split, offsets: Indices) -> Indices:
    """All events that training may see, first ones of a timeline included."""
    events = np.concatenate([np.arange(*r) for r in zip(offsets, split.train_stop, strict=False)])
    return events[~split.held_out[events]]


def training_targets(train_first: Indices, train_stop: Indices, offsets: Indices) -> Indices:
    """Every training event that is asked about and has another before it."""
    start = np.maximum(offsets[:-1] + 1, train_first)
    counts = np.maximum(train_stop - start, 0)
    first = np.cumsum(counts) - counts
    return np.repeat(start - first, counts) + np.arange(counts.sum())


def sample(events: Indices, size: int) -> Indices:
    """At most `size` of the events, always the same ones, in their order."""
    chosen = np.random.default_rng(0).permutation(len(events))[:size]
    return events[np.sort(chosen)]


def windows(starts: Indices, stops: Indices, size: int) -> Indices:
    """[W, 2]: each range in windows of at most `size` events, from its end backwards.

    A window begins with the event that ends the one before it, so each pair of neighbours lies in
    exactly one window. Ranges of a single event hold no pair and give none.
    """
    lengths = stops - starts
    counts = np.where(lengths >= 2, -(-(lengths - 1) // (size - 1)), 0)
    owner = np.repeat(np.arange(len(starts)), counts)
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    stop = stops[owner] - nth * (size - 1)
    return np.stack([np.maximum(starts[owner], stop - size), stop], axis=1)


def pack(windows: Indices, size: int) -> tuple[Indices, Indices]:
    """Rows of at most `size` events, several windows in each: their starts and lengths, [R, S].

    Best fit, longest window first. Behind a row's last window both are 0; `spread` makes events of
    them.
    """
    lengths = windows[:, 1] - windows[:, 0]
    rows: list[list[int]] = []
    room: list[list[int]] = [[] for _ in range(size + 1)]  # rows by the room left in them
    for window in np.argsort(-lengths, kind="stable"):
        length = lengths[window]
        left = next((r for r in range(length, size + 1) if room[r]), None)
        if left is None:
            rows.append([])
            row, left = len(rows) - 1, size
        else:
            row = room[left].pop()
        rows[row].append(window)
        room[left - length].append(row)
    packed = np.zeros((2, len(rows), max(map(len, rows), default=1)), np.int32)
    for row, members in enumerate(rows):
        packed[:, row, : len(members)] = windows[members, 0], lengths[members]
    return packed[0], packed[1]


def spread(starts: Any, lengths: Any, size: int, xp: Any = np) -> tuple[Any, Any]:
    """The events of packed windows and the number of each one's window from 1, [B, size].

    Behind the last one the events are -1 and the segments 0. `xp` is numpy, or jax.numpy to do this
    on the device.
    """
    ends = xp.cumsum(lengths, axis=1)
    place = xp.arange(size)
    over = (place[None, :, None] >= ends[:, None]).sum(-1)  # the windows that are over
    there = place < ends[:, -1:]
    nth = xp.where(there, over, 0)
    first = xp.take_along_axis(ends - lengths, nth, axis=1)
    events = xp.take_along_axis(starts, nth, axis=1) + place - first
    segments = xp.where(there, nth + 1, 0)
    return xp.where(there, events, -1), segments.astype(np.int32)
