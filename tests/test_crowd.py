"""A crowd has the sizes that it is to be measured with."""

import numpy as np
import pytest

from user_llm.data.builders import build
from user_llm.data.builders.crowd import CHUNK, EVENTS, Crowd
from user_llm.data.dataset import load


def test_a_crowd_is_of_short_timelines_and_of_items_by_zipf(tmp_path):
    data = load(build("crowd", source=None, data_dir=tmp_path, users=1000))
    lengths = np.diff(data.offsets)
    assert len(data.users) == len(set(data.users)) == 1000
    assert (lengths.min(), lengths.max()) == EVENTS
    assert 13 < lengths.mean() < 15
    own = np.ones(len(data.times) - 1, bool)
    own[data.offsets[1:-1] - 1] = False  # between users
    assert (np.diff(data.times)[own] > 0).all()
    counts = np.sort(np.bincount(data.item))[::-1]
    assert 1.7 < counts[0] / counts[1] < 2.3


def test_the_same_seed_makes_the_same_crowd():
    crowd, same, other = (
        list(Crowd.read(None, "", users=CHUNK + 2, seed=seed).timelines()) for seed in (0, 0, 1)
    )
    assert len(crowd) == len(same) == CHUNK + 2
    for one, again in zip(crowd, same, strict=True):
        assert all(np.array_equal(one[name], again[name]) for name in one)
    assert [len(one["item"]) for one in other] != [len(one["item"]) for one in crowd]


def test_a_crowd_has_no_source(tmp_path):
    with pytest.raises(ValueError, match="a crowd is made, not read from a source"):
        build("crowd", source=tmp_path, data_dir=tmp_path)
