"""Who reviewed before, beside a loop over all events."""

import numpy as np
import timelines_made
from hypothesis import given
from hypothesis import strategies as st

from user_llm.data.reviewers import Reviewers

# A user's events as (item, seconds since the one before): many at the same time, items that recur.
timelines = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=8),
    min_size=1,
    max_size=6,
)


def made(drawn):
    times = [t for one in drawn for t in np.cumsum([gap for _, gap in one]).tolist()]
    return timelines_made.dataset([[item for item, _ in one] for one in drawn], times=times)


def before(data, event):
    """By the words of `Reviewers.before`, one event at a time."""
    user = lambda e: int(np.searchsorted(data.offsets, e, side="right"))
    found = {}
    for other in range(len(data.item)):
        same = data.item[other] == data.item[event] and user(other) != user(event)
        if same and data.reviews[other] and data.times[other] < data.times[event]:
            known = found.get(user(other))
            if known is None or data.times[other] >= data.times[known]:
                found[user(other)] = other
    return sorted(found.values(), key=lambda e: (data.times[e], e))


@given(timelines)
def test_others_wrote_strictly_before(drawn):
    data = made(drawn)
    reviewers = Reviewers(data)
    for event in range(len(data.item)):
        assert list(reviewers.before(event)) == before(data, event)
        assert reviewers.count(event) == len(before(data, event))
