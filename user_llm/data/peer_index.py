"""Who was there before on the same item: an index of events that gives each one its peers.

It lists all events by item, then time, then number, so what came before an event on its item is a
range of that list, found by bisection. `peer_building` makes it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from user_llm.data.timelines import Indices, user_of

PIECE = 2**18  # values that are looked at at a time: they stay in a processor's cache


@dataclass(frozen=True)
class PeerIndex:
    """All events by item, then time, then number: item i's are starts[i] to starts[i + 1].

    Of the data set it holds `offsets`, `times` and `item`, as `Dataset` does.
    """

    offsets: Int[np.ndarray, " offsets"]
    times: Int[np.ndarray, " N"]
    item: Int[np.ndarray, " N"]
    starts: Int[np.ndarray, " starts"]
    events: Int[np.ndarray, " N"]

    def earlier(self, events: Int[np.ndarray, " M"]) -> tuple[Indices, Indices]:
        """Where in the index what is strictly earlier on the item of each event starts and stops.

        What happened at the same time as an event is not earlier.
        """
        start, when = self.starts[self.item[events]], self.times[events]
        stop = self.starts[self.item[events] + 1]

        def before(places: Indices, rows: Indices) -> Bool[np.ndarray, "..."]:
            return self.times[self.events[places]] < when[rows]

        return start, bisect(start, stop, before)

    def same_item(self, events: Int[np.ndarray, " M"], most: int) -> Int[np.ndarray, "M P"]:
        """The peers of each event: the newest strictly earlier events of others on its item.

        There are at most `most`, one a user (that user's newest), the newest first and of those at
        the same time the one with the highest number; -1 stands behind them. DEP's published code
        (arXiv 2507.20849) takes later ones as well.

        Raises:
          ValueError: `most` is less than 1.
        """
        if most < 1:
            raise ValueError(f"an event has {most} peers at most; ask for 1 or more")
        found = np.full((len(events), most), -1)
        start, stop = self.earlier(events)
        own = user_of(events, self.offsets)
        left, width = np.arange(len(events)), 2 * most
        while len(left):  # a user's older events fill places, so some must look further back
            for part in pieces(len(left), width):
                rows = left[part]
                found[rows] = self._newest(start[rows], stop[rows], own[rows], width, most)
            left = left[(found[left, -1] < 0) & (stop[left] - start[left] > width)]
            width *= 2
        return found

    def _newest(
        self, start: Indices, stop: Indices, own: Indices, width: int, most: int
    ) -> Int[np.ndarray, "M P"]:
        """Of the last `width` events of each range each other user's newest, `most` of them."""
        places = stop[:, None] - 1 - np.arange(width)
        there = places >= start[:, None]
        events = self.events[np.where(there, places, 0)]
        users = np.where(there, user_of(events, self.offsets), -1)
        chosen = _first_of_their_kind(users) & there & (users != own[:, None])
        rank = np.cumsum(chosen, axis=1)
        row, place = np.nonzero(chosen & (rank <= most))
        found = np.full((len(start), most), -1)
        found[row, rank[row, place] - 1] = events[row, place]
        return found


def pieces(rows: int, width: int = 1) -> Iterator[slice]:
    """All rows in slices of as many as keep a piece of memory, each `width` values wide."""
    size = max(1, PIECE // max(1, width))
    return (slice(start, start + size) for start in range(0, rows, size))


def bisect(low: Indices, high: Indices, before: Callable[..., np.ndarray]) -> Indices:
    """The first place of each range at which `before(places, rows)` no longer holds."""
    low, high = low.copy(), high.copy()
    while len(rows := np.flatnonzero(low < high)):
        middle = (low[rows] + high[rows]) // 2
        under = before(middle, rows)
        low[rows[under]] = middle[under] + 1
        high[rows[~under]] = middle[~under]
    return low


def _first_of_their_kind(rows: Int[np.ndarray, "M W"]) -> Bool[np.ndarray, "M W"]:
    """Which values stand in their row for the first time."""
    order = np.argsort(rows, axis=1, kind="stable")
    ranked = np.take_along_axis(rows, order, axis=1)
    new = np.ones(rows.shape, bool)
    new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    first = np.empty_like(new)
    np.put_along_axis(first, order, new, axis=1)
    return first
