"""Who reviewed an item before a user did.

Source: arXiv 2503.02450, whose published code also reads what was written later; here nothing is.
"""

import numpy as np

from user_llm.data.dataset import Dataset


class Reviewers:
    """Who wrote of an item, and when."""

    def __init__(self, data: Dataset):
        self.times, self.users = data.times, len(data.users)
        self.user = np.repeat(np.arange(len(data.users)), np.diff(data.offsets))
        self.item = data.item
        written = np.array([bool(data.review(event)) for event in range(len(data.item))], bool)
        events = np.flatnonzero(written)
        self._events = events[np.lexsort((self.times[events], self.item[events]))]
        self._items = self.item[self._events]
        # Each user's first one of an item, in the same order, and again by user and item.
        pairs = self._items.astype(np.int64) * self.users + self.user[self._events]
        self._pairs, first = np.unique(pairs, return_index=True)
        self._began = self.times[self._events[first]]
        firsts = self._events[np.sort(first)]
        self._firsts, self._first_items = self.times[firsts], self.item[firsts]

    def count(self, event: int) -> int:
        """How many others reviewed an event's item strictly before it."""
        item, time = int(self.item[event]), self.times[event]
        start, stop = np.searchsorted(self._first_items, [item, item + 1])
        users = int(np.searchsorted(self._firsts[start:stop], time))
        own = item * self.users + int(self.user[event])
        place = int(np.searchsorted(self._pairs, own))
        there = place < len(self._pairs) and self._pairs[place] == own
        return users - bool(there and self._began[place] < time)

    def before(self, event: int) -> tuple[int, ...]:
        """The others' reviews of an event's item from strictly before it, oldest first.

        Of each user who wrote several the last one counts.
        """
        first, last = np.searchsorted(self._items, self.item[event] + np.arange(2))
        same = self._events[first:last]
        earlier = same[: np.searchsorted(self.times[same], self.times[event])]
        latest = {int(self.user[other]): other for other in earlier.tolist()}
        latest.pop(int(self.user[event]), None)
        kept = set(latest.values())
        return tuple(other for other in earlier.tolist() if other in kept)
