"""Which tokens may be drawn, and how often: against transformers' filters and against shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from user_llm.inference.sampling import Choice, Sampling, add_tokens, choose, filtered, seen_tokens

LOGITS = np.random.default_rng(0).normal(0, 2, (4, 50)).astype(np.float32)


def their_filtered(how):
    """What transformers' warpers leave, in the order of its generate()."""
    scores = torch.tensor(LOGITS)
    for warper in (
        theirs.TemperatureLogitsWarper(how.temperature),
        theirs.TopKLogitsWarper(how.top_k) if how.top_k else None,
        theirs.TopPLogitsWarper(how.top_p),
        theirs.MinPLogitsWarper(how.min_p) if how.min_p else None,
    ):
        scores = scores if warper is None else warper(None, scores)
    return scores.numpy()


@pytest.mark.parametrize(
    "how",
    [
        Sampling(1.0),
        Sampling(0.7, top_k=5),
        Sampling(1.3, top_p=0.6),
        Sampling(1.0, min_p=0.2),
        Sampling(1.0, top_k=8, top_p=0.8),
        Sampling(2.0, top_k=20, top_p=0.9, min_p=0.1),
        Sampling(1.0, top_p=1e-6),
        Sampling(1.0, top_p=0.0),
    ],
    ids=str,
)
def test_filters_leave_what_those_of_transformers_leave(how):
    ours = filtered(jnp.asarray(LOGITS) / how.temperature, Choice.of([how] * 4))
    np.testing.assert_allclose(ours, their_filtered(how), rtol=1e-5)


def test_a_row_is_filtered_as_its_own_sampling_says():
    how = [Sampling(1.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.5), Sampling(1.0, top_k=60)]
    together = filtered(jnp.asarray(LOGITS), Choice.of(how))
    for row, one in enumerate(how):
        alone = filtered(jnp.asarray(LOGITS[row : row + 1]), Choice.of([one]))
        np.testing.assert_array_equal(together[row], alone[0])
    assert np.isfinite(together).sum(1).tolist()[::3] == [50, 50]
    assert np.isfinite(together[1]).sum() == 3


def test_what_is_as_good_as_the_last_is_kept_and_what_cannot_be_is_not():
    logits = jnp.array([[1.0, 3.0, 1.0, -jnp.inf, 2.0, 1.0, -1.0]])
    kept = filtered(logits, Choice.of([Sampling(1.0, top_k=3)]))[0]
    assert np.flatnonzero(np.isfinite(kept)).tolist() == [0, 1, 2, 4, 5]
    assert np.isfinite(filtered(logits, Choice.of([Sampling(1.0, top_k=7)]))).sum() == 6


def test_repetition_penalty_is_that_of_transformers():
    tokens = np.random.default_rng(1).integers(0, 50, (4, 12))
    processor = theirs.RepetitionPenaltyLogitsProcessor(1.7)
    scores = processor(torch.tensor(tokens), torch.tensor(LOGITS)).numpy()
    seen = seen_tokens(jnp.asarray(LOGITS), jnp.asarray(tokens[:, :11]), jnp.full(4, 11))
    seen = add_tokens(seen, jnp.asarray(tokens[:, 11]))
    choice = Choice.of([Sampling(repetition_penalty=1.7)] * 4)
    np.testing.assert_array_equal(choose(LOGITS, choice, 0, seen), scores.argmax(-1))
    assert (choose(LOGITS, choice, 0, seen) != LOGITS.argmax(-1)).any()


def test_what_lies_behind_a_prompt_was_not_seen():
    tokens = jnp.array([[3, 4, 0, 0], [5, -1, 7, 8]])  # and a memory's vector among them
    seen = np.asarray(seen_tokens(jnp.zeros((2, 10)), tokens, jnp.array([2, 4])))
    assert [set(np.flatnonzero(row)) for row in seen] == [{3, 4}, {5, 7, 8}]


def test_tokens_are_drawn_by_their_shares():
    shares = jnp.array([0.4, 0.3, 0.2, 0.1])
    draws = 20_000
    logits = jnp.broadcast_to(jnp.log(shares), (draws, 4))

    def frequencies(**how):
        choice = Choice.of([Sampling(**how, seed=seed) for seed in range(draws)])
        return np.bincount(choose(logits, choice, 3), minlength=4) / draws

    np.testing.assert_allclose(frequencies(temperature=1.0), shares, atol=0.02)
    nucleus = frequencies(temperature=1.0, top_p=0.6)
    np.testing.assert_allclose(nucleus, [4 / 7, 3 / 7, 0, 0], atol=0.02)
    squared = shares**2 / (shares**2).sum()
    np.testing.assert_allclose(frequencies(temperature=0.5), squared, atol=0.02)
    np.testing.assert_array_equal(frequencies(), [1, 0, 0, 0])


def test_values_out_of_range_are_named_with_their_row():
    with pytest.raises(ValueError) as error:
        Choice.of([Sampling(), Sampling(temperature=-1.0, top_p=1.5), Sampling(top_k=-3)])
    for part in ("sampling 1 has temperature=-1.0", "1 has top_p=1.5", "sampling 2 has top_k=-3"):
        assert part in str(error.value)


def test_rows_are_drawn_apart():
    choice = Choice.of([Sampling(1.5, seed=seed) for seed in range(4)])
    together = choose(LOGITS, choice, 7)
    for row in range(4):
        own = jax.tree.map(lambda x, row=row: x[row : row + 1], choice)
        assert choose(LOGITS[row : row + 1], own, 7)[0] == together[row]
