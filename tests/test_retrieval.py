"""Ranks and best items against loops over the items, in tiles of several sizes."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.data.features import KNOWN
from user_llm.inference.retrieval import best, rank

SIZE, BATCH = 9, 4
known = st.integers(KNOWN, SIZE - 1)


@st.composite
def cases(draw):
    """Scores with ties, as products of unit queries with a table; what is seen, and targets."""
    scores = draw(st.lists(st.integers(0, 3), min_size=SIZE * BATCH, max_size=SIZE * BATCH))
    table = np.array(scores, np.float32).reshape(SIZE, BATCH)
    seen = [draw(st.lists(known, max_size=6)) for _ in range(BATCH)]
    targets = np.array(draw(st.lists(known, min_size=BATCH, max_size=BATCH)), np.int32)
    return table, seen, targets


def padded(seen):
    return np.array([items + [0] * (6 - len(items)) for items in seen], np.int32)


@settings(max_examples=60)
@given(cases(), st.sampled_from([2, 4, 9, 16]))
def test_a_rank_counts_the_unseen_items_that_score_no_lower(case, tile):
    table, seen, targets = case
    found = rank(np.eye(BATCH, dtype=np.float32), table, padded(seen), targets, tile=tile)
    wanted = [
        1
        + sum(
            table[i, row] >= table[target, row]
            for i in range(KNOWN, SIZE)
            if i not in {*items, target}
        )
        for row, (items, target) in enumerate(zip(seen, targets.tolist(), strict=True))
    ]
    assert found.tolist() == wanted


@settings(max_examples=60)
@given(cases(), st.sampled_from([2, 4, 9, 16]))
def test_the_best_are_those_of_a_sort(case, tile):
    table, seen, _ = case
    items, scores = best(np.eye(BATCH, dtype=np.float32), table, padded(seen), 3, tile=tile)
    for row, hidden in enumerate(seen):
        rest = [i for i in range(KNOWN, SIZE) if i not in hidden]
        wanted = sorted(rest, key=lambda i: (-table[i, row], i))[:3]
        assert items[row].tolist() == wanted + [-1] * (3 - len(wanted))
        assert scores[row].tolist() == [table[i, row] for i in wanted] + [-np.inf] * (
            3 - len(wanted)
        )


@pytest.mark.parametrize("value", [1.0, np.nan], ids=["alike", "not numbers"])
def test_a_model_that_tells_no_items_apart_is_last(value):
    nothing = np.zeros((1, 1), np.int32)
    queries = np.full((1, 3), value, np.float32)
    assert rank(queries, jnp.ones((12, 3)), nothing, np.array([7], np.int32)).tolist() == [10]
