"""What others gave an item before, as far as it could be known at an event."""

import numpy as np
from jaxtyping import Float, Int

from user_llm.data.dataset import Dataset
from user_llm.data.timelines import user_of


def of_others_before(data: Dataset) -> Float[np.ndarray, " events"]:
    """The mean rating of each event's item by others at strictly earlier times; NaN: nobody's."""
    events = np.arange(len(data.item))
    ratings = np.full(len(events), np.nan) if data.ratings is None else data.ratings
    sums, counts = _earlier(data.item, data.times, ratings)
    pair = data.item.astype(np.int64) * len(data.users) + user_of(events, data.offsets)
    own_sums, own_counts = _earlier(pair, data.times, ratings)
    counts = counts - own_counts
    return np.where(counts > 0, (sums - own_sums) / np.maximum(counts, 1), np.nan)


def _earlier(
    group: Int[np.ndarray, " N"], times: Int[np.ndarray, " N"], values: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """The sum and number of known values of the same group at strictly earlier times."""
    order = np.lexsort((times, group))
    known = ~np.isnan(values[order])
    counts = np.concatenate([[0], np.cumsum(known)])
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values[order], 0), dtype=np.float64)])
    new_group = np.diff(group[order], prepend=-1) != 0
    new_time = new_group | (np.diff(times[order], prepend=times.min(initial=0) - 1) != 0)
    places = np.arange(len(order))
    begin = np.maximum.accumulate(np.where(new_group, places, 0))
    stop = np.maximum.accumulate(np.where(new_time, places, 0))
    found = np.empty(len(order)), np.empty(len(order), np.int64)
    for column, total in zip(found, (sums, counts), strict=True):
        column[order] = total[stop] - total[begin]
    return found
