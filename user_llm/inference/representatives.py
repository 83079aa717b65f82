"""With whom a user's review is compared: others who reviewed the item before, some for all of them.

Source: arXiv 2503.02450, whose published code also reads what was written later; here nothing is.
"""

import warnings
from functools import cache

import numpy as np
from jaxtyping import Float, Int

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


def representatives(
    own: Float[np.ndarray, " D"], others: Float[np.ndarray, "N D"], k: int, seed: int
) -> Int[np.ndarray, " K"]:
    """The rows of at most `k` others, of whom each stands for those who write alike.

    All vectors are put into k + 1 clusters by k-means, and of each that does not hold the own
    vector the one nearest to its centre is taken.

    Raises:
      ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise ValueError("clusters want scikit-learn; install the extra `dpl`") from error
    vectors = np.concatenate([own[None], others]).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal vectors make fewer clusters
        found = KMeans(min(k + 1, len(vectors)), random_state=seed)
        labels = found.fit_predict(vectors)
    apart = np.square(vectors - np.asarray(found.cluster_centers_)[labels]).sum(1)
    nearest = [
        min(np.flatnonzero(labels == label), key=apart.__getitem__)
        for label in np.unique(labels)
        if label != labels[0]
    ]
    return np.sort(np.array(nearest, np.int64)) - 1
