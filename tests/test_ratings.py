"""What others gave before, beside a loop over all pairs of events."""

import numpy as np
import timelines_made
from hypothesis import given
from hypothesis import strategies as st

from user_llm.data.ratings import of_others_before

TIMELINES = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
)


@given(TIMELINES, st.integers(0, 2**32 - 1))
def test_only_others_count_and_only_what_was_before(timelines, seed):
    timelines = [sorted(one, key=lambda event: event[1]) for one in timelines]
    data = timelines_made.dataset([[item for item, _ in one] for one in timelines], items=4)
    data.times[:] = [time for one in timelines for _, time in one]
    rng = np.random.default_rng(seed)
    data.ratings[:] = np.where(
        rng.random(len(data.item)) < 0.2, np.nan, rng.integers(1, 6, len(data.item))
    )
    user = np.repeat(np.arange(len(timelines)), [len(one) for one in timelines])
    for event, found in enumerate(of_others_before(data)):
        others = [
            data.ratings[other]
            for other in range(len(data.item))
            if data.item[other] == data.item[event]
            and data.times[other] < data.times[event]
            and user[other] != user[event]
            and not np.isnan(data.ratings[other])
        ]
        np.testing.assert_allclose(found, np.mean(others) if others else np.nan, atol=1e-9)
