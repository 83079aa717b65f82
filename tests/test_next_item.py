"""Ranks over the whole catalogue against loops over users and items."""

from collections import Counter
from functools import partial

import models_made
import numpy as np
import pytest
import timelines_made
from flax import nnx

from user_llm.data.features import KNOWN
from user_llm.inference.next_item import (
    chunks,
    encoder_ranker,
    popularity_ranks,
    seen_items,
)
from user_llm.models.encoders import AutoregressiveEncoder

TIMELINES = [[0, 1, 2, 1, 3], [4, 4, 4], [5, 0, 6, 7, 8, 2, 9], [1, 0], [9, 8, 7]]
CONFIG = models_made.ENCODER.model_copy(update={"window": 4})  # with dropout, which must not act


@pytest.fixture(scope="module")
def data():
    return timelines_made.dataset(TIMELINES, items=12)


def targets_of(data):
    return np.array([e for e in range(len(data.item)) if e not in data.offsets])


def ranked(scores, before, target):
    """1 + the unseen items with a score no lower than the target's, by a loop."""
    rivals = [i for i in range(KNOWN, len(scores)) if i != target and i not in before]
    return 1 + sum(scores[i] >= scores[target] for i in rivals)


def before_each(data, targets):
    for target in targets.tolist():
        start = max(o for o in data.offsets.tolist() if o <= target)
        yield data.item[start:target].tolist()


def test_seen_are_the_items_of_the_past_and_what_is_no_item_but_never_the_target(data):
    targets = targets_of(data)
    seen = seen_items(data, targets)
    for row, target, before in zip(seen, targets, before_each(data, targets), strict=True):
        wanted = {*range(KNOWN), *before} - {data.item[target]}
        assert set(np.flatnonzero(row).tolist()) == wanted


@pytest.mark.parametrize("batch_size", [4, 16])
def test_the_ranker_agrees_with_a_loop_over_users_in_numpy(data, mesh, batch_size):
    make = partial(AutoregressiveEncoder, CONFIG, data.inputs)
    encoder, targets = models_made.random_model(make), targets_of(data)
    p = models_made.parameters(encoder)
    table = p["embedding"]["tables"]["item"]
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    wanted = []
    for target, before in zip(targets.tolist(), before_each(data, targets), strict=True):
        events = np.arange(target - len(before), target)[-CONFIG.window :]
        state = models_made.encode(p, data.gather(events), data.inputs, CONFIG)[-1]
        wanted.append(ranked(table @ state, before, data.item[target]))
    ranker = encoder_ranker(make, data, targets, mesh=mesh(2, 2), batch_size=batch_size)
    found = ranker(nnx.to_pure_dict(nnx.state(encoder)))
    assert found.tolist() == wanted
    assert len(set(wanted)) > 3


def test_the_ranker_of_nobody_ranks_nothing(data, mesh):
    make = partial(AutoregressiveEncoder, CONFIG, data.inputs)
    nobody = np.zeros(0, np.int64)
    assert encoder_ranker(make, data, nobody, mesh=mesh())({}).shape == (0,)
    assert popularity_ranks(data, np.arange(3), nobody).shape == (0,)


def test_popularity_counts_training_events_alone(data):
    targets, training = targets_of(data), np.array([0, 1, 3, 5, 6, 8, 9, 10, 15])
    counts = Counter(data.item[training].tolist())
    scores = [counts[i] for i in range(len(data.items.ids))]
    wanted = [
        ranked(scores, before, data.item[target])
        for target, before in zip(targets, before_each(data, targets), strict=True)
    ]
    assert popularity_ranks(data, training, targets).tolist() == wanted
    twice = np.tile(targets, 30)  # more than one piece
    assert popularity_ranks(data, training, twice).tolist() == wanted * 30


def test_pieces_have_one_size_and_tell_how_much_of_them_is_real():
    pieces = list(chunks(np.arange(10), 4))
    assert [piece.tolist() for piece, _ in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert [length for _, length in pieces] == [4, 4, 2]
    assert list(chunks(np.arange(0), 4)) == []
