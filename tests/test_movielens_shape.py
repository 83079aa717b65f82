"""The made-up timelines: their sizes, and that a seed stands for them."""

from itertools import pairwise

import numpy as np
import pytest

from user_llm.data.movielens_shape import Shape, dataset, timelines

SMALL = Shape(users=50, items=80, events=1500, shortest=5, longest=60)


def test_the_shape_is_that_of_movielens_1m():
    items, offsets = timelines()
    lengths = np.diff(offsets)
    assert (len(lengths), len(items)) == (6040, 1_000_209)
    assert (lengths.min(), lengths.max()) == (20, 2314)
    assert 90 < np.median(lengths) < 102  # of MovieLens 1M it is 96
    counts = np.sort(np.bincount(items, minlength=3706))[::-1]
    assert counts[-1] > 0 and 0.15 < counts[:100].sum() / len(items) < 0.25


def test_no_user_has_an_item_twice():
    items, offsets = timelines(SMALL)
    for start, stop in pairwise(offsets):
        assert len(set(items[start:stop].tolist())) == stop - start


def test_a_seed_stands_for_the_timelines():
    first, again, other = (timelines(SMALL, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first[:5].tolist() == [10, 42, 24, 4, 1]


@pytest.mark.parametrize("sizes", [{"events": 100}, {"events": 5000}, {"items": 59}])
def test_timelines_that_cannot_be_are_refused(sizes):
    with pytest.raises(ValueError, match="cannot be"):
        timelines(
            Shape(
                **{"users": 50, "items": 80, "events": 1500, "shortest": 5, "longest": 60} | sizes
            )
        )


def test_the_data_set_has_the_items_as_its_only_feature():
    items, offsets = timelines(SMALL)
    data = dataset(items, offsets, SMALL.items)
    assert [(f.name, f.size, f.predicted) for f in data.inputs] == [("item", 82, True)]
    np.testing.assert_array_equal(data.item, items + 2)
