"""A data set without its users encodes events as the whole one does, from memory and from disk."""

import numpy as np
import pytest
import timelines_made
from test_recommend import made, raw

from user_llm.data import frame, unseen


@pytest.mark.parametrize("kind", ["autoregressive", "hstu"])
@pytest.mark.parametrize("written", [False, True])
def test_events_are_encoded_as_by_the_whole(kind, written, tmp_path):
    data, *_ = made(kind)
    alone = frame.frame(data)
    if written:
        frame.write(data, tmp_path)
        alone = frame.read(tmp_path)
    assert (alone.users, len(alone.item), len(alone.times)) == ((), 0, 0)
    assert alone.items.titles == data.items.titles and alone.items.genres == data.items.genres
    assert [f.model_dump() for f in alone.inputs] == [f.model_dump() for f in data.inputs]
    timelines = [raw(data, *data.offsets[n : n + 2]) for n in range(len(data.users))]
    found, wanted = (unseen.encode(x, timelines) for x in (alone, data))
    np.testing.assert_array_equal(found.item, wanted.item)
    assert found.features.keys() == wanted.features.keys()
    for name, column in wanted.features.items():
        np.testing.assert_array_equal(found.features[name], column)
    for name, column in data.items.features.items():
        np.testing.assert_array_equal(found.items.features[name], column)


def test_without_a_clock_nothing_counts_from_anywhere(tmp_path):
    data = timelines_made.dataset([[1, 2], [3]], items=5)
    frame.write(data, tmp_path)
    assert frame.read(tmp_path).origin is None
