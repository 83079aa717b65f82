"""Who reviewed an item before a user did.

Source: arXiv 2503.02450, whose published code also reads what was written later; here nothing is.
"""

from functools import cache

import numpy as np

from user_llm.data.dataset import Dataset


class Reviewers:
    """Who wrote of an item, and when."""

    def __init__(self, data: Dataset):
        self.times = data.times
        self.user = np.repeat(np.arange(len(data.users)), np.diff(data.offsets))
        self.item = data.item
        written = np.array([bool(data.review(event)) for event in range(len(data.item))], bool)
        events = np.flatnonzero(written)
        self._events = events[np.lexsort((self.times[events], self.item[events]))]
        self._items = self.item[self._events]
        self.before = cache(self._before)

    def _before(self, event: int) -> tuple[int, ...]:
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
