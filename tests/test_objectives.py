"""Objectives against their formulas in float64, and what they draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_made import VOCAB, case, in_jax, log_softmax

from user_llm.config import ObjectiveConfig
from user_llm.training import objectives


def total_of(kind, arrays, candidates=None, **options):
    """A function of a key and of what is learnt: the weighted sum of an objective's losses."""
    queries, table, targets, weights = arrays
    config = ObjectiveConfig(kind=kind, **options)

    def total(key, queries=queries, table=table):
        return objectives.item_loss(config, table, queries, targets, weights, key, candidates)

    return total


def objective_of(kind, arrays, candidates=None, **options):
    """A compiled function of keys: for each the weighted sum of an objective's losses."""
    return jax.jit(jax.vmap(total_of(kind, arrays, candidates, **options)))


def sampled(negatives, keys, weights=None, **options):
    """The sampled losses of a batch for many keys, and the batch's logits."""
    hidden, head, _, given = case(2, 4)
    targets = np.array([[2, 3, 3, 9], [3, 4, 10, 2]])
    arrays = in_jax((hidden, head.T, targets, given if weights is None else weights))
    loss = objective_of("sampled_softmax", arrays, negatives=negatives, **options)
    found = loss(jax.random.split(jax.random.key(0), keys))
    return np.asarray(found, np.float64), hidden @ head, targets


DRAWS = [
    {"proposal": "mixed"},
    {"proposal": "uniform"},
    {"proposal": "uniform", "shared": False},
]


@pytest.mark.parametrize("draws", DRAWS, ids=["mixed", "uniform", "each its own"])
@pytest.mark.parametrize("place", [(0, 1), (1, 3)])
def test_the_sampled_normaliser_is_on_average_that_of_all_known_items(place, draws):
    """From one row's loss = log(e^own + sum) - own follows the sum over its negatives."""
    weights = np.zeros((2, 4))
    weights[place] = 1
    found, logits, targets = sampled(4, 20_000, weights, **draws)
    logits, own = logits[place], targets[place]
    sums = np.exp(logits[own]) * np.expm1(found)
    others = [item for item in range(objectives.FIRST_KNOWN, VOCAB) if item != own]
    error = sums.std() / len(sums) ** 0.5
    assert abs(sums.mean() - np.exp(logits[others]).sum()) < 4 * error
    assert error < 0.02 * sums.mean()


def test_popular_items_alone_are_drawn_where_asked_for():
    """The only other target of the batch is the only negative, as often as it is drawn."""
    hidden, head, *_ = case(1, 2)
    targets, weights = np.array([[2, 7]]), np.ones((1, 2))
    arrays = in_jax((hidden, head.T, targets, weights))
    options = {"proposal": "popularity", "log_q": False, "negatives": 3}
    found = objective_of("sampled_softmax", arrays, **options)(
        jax.random.split(jax.random.key(0), 200)
    )
    logits = (hidden @ head)[0]
    wanted = [
        sum(
            np.log1p(count * np.exp(row[other] - row[own]))
            for row, own, other, count in zip(logits, (2, 7), (7, 2), (n, 3 - n), strict=True)
        )
        for n in range(4)  # of the draws are the second target
    ]
    nearest = np.abs(np.asarray(found)[:, None] - wanted).min(1)
    np.testing.assert_allclose(nearest, 0, atol=1e-5)
    assert len(set(np.abs(np.asarray(found)[:, None] - wanted).argmin(1).tolist())) == 4


def test_many_negatives_come_close_to_the_full_softmax():
    found, logits, targets = sampled(50_000, 2, proposal="mixed")
    logs = log_softmax(logits[..., objectives.FIRST_KNOWN :])
    own = np.take_along_axis(logs, targets[..., None] - objectives.FIRST_KNOWN, -1)[..., 0]
    np.testing.assert_allclose(found, -(own * case(2, 4)[3]).sum(), rtol=5e-3)


@pytest.mark.parametrize(
    "options", [{"kind": "softmax"}, {"kind": "sampled_softmax", "negatives": 50_000}]
)
def test_only_candidates_are_held_against_the_targets(options):
    hidden, head, _, weights = case(2, 4)
    targets, candidates = np.array([[2, 3, 3, 9], [3, 4, 10, 5]]), np.arange(VOCAB) != 5
    weights[1, 3] = 0  # of the target that is no candidate
    candidates[: objectives.FIRST_KNOWN] = False
    arrays = in_jax((hidden, head.T, targets, weights))
    total = total_of(arrays=arrays, candidates=jnp.array(candidates), **options)
    found, by_queries, by_table = jax.jit(
        lambda key: (total(key), *jax.grad(total, argnums=(1, 2))(key, *arrays[:2]))
    )(jax.random.key(0))
    logs = log_softmax(np.where(candidates, hidden @ head, -np.inf))
    own = np.take_along_axis(logs, targets[..., None], -1)[..., 0]
    loss = -(own[weights > 0] * weights[weights > 0]).sum()
    error = (np.exp(logs) - np.eye(VOCAB)[targets]) * weights[..., None]
    near = {"rtol": 1e-5, "atol": 1e-5} if options["kind"] == "softmax" else {"rtol": 5e-3}
    np.testing.assert_allclose(found, loss, **near)
    if options["kind"] == "softmax":
        np.testing.assert_allclose(by_queries, error @ head.T, **near)
        np.testing.assert_allclose(by_table, np.einsum("btv,btd->vd", error, hidden), **near)
    np.testing.assert_array_equal(np.asarray(by_table)[~candidates], 0)


def draw_always(monkeypatch, ids):
    """Has these negatives drawn, whatever the key."""
    proposed = objectives.proposed

    def fixed(*args):
        return proposed(*args)._replace(
            draw=lambda shape, _: jnp.broadcast_to(jnp.array(ids), shape)
        )

    monkeypatch.setattr(objectives, "proposed", fixed)


def test_what_rounding_draws_of_no_share_does_not_count(monkeypatch):
    draw_always(monkeypatch, [5, 9])
    hidden, head, *_ = case(2, 4)
    targets, candidates = np.full((2, 4), 3), jnp.arange(VOCAB) != 5
    arrays = in_jax((hidden, head.T, targets, np.ones((2, 4))))
    total = total_of("sampled_softmax", arrays, candidates, negatives=2)
    found, gradient = jax.value_and_grad(total, argnums=1)(jax.random.key(0), *arrays[:2])
    logits = hidden @ head
    rival = logits[..., 9] - np.log(2 / (VOCAB - 1))
    wanted = np.logaddexp(logits[..., 3], rival) - logits[..., 3]
    np.testing.assert_allclose(found, wanted.sum(), rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_chunks_are_as_large_as_a_cpus_cache():
    sizes = [objectives.chunk_size(width) for width in (1, 256, 4096, 16384, 10**7)]
    assert sizes == [8192, 8192, 1024, 256, 64]


@pytest.mark.parametrize("kind", ["sampled_softmax", "gbce"])
def test_draws_of_the_own_target_do_not_count(kind):
    """With a single known item every draw is the target, and no negative is left."""
    arrays = jnp.ones((1, 2, 4)), jnp.ones((3, 4)), jnp.full((1, 2), 2), jnp.ones((1, 2))
    (found,) = objective_of(kind, arrays, negatives=5)(jax.random.split(jax.random.key(0), 1))
    wanted = 0 if kind == "sampled_softmax" else 2 * np.log1p(np.exp(-4))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_gbce_is_its_formula_on_the_items_drawn(shared, monkeypatch):
    """Loss = -(beta log s(own) + sum of log(1 - s(drawn))) (arXiv 2308.07192, equation 13)."""
    hidden, head, _, weights = case(2, 4)
    targets, count, t = np.array([[2, 3, 3, 9], [3, 4, 10, 2]]), 4, 0.75
    drawn = np.array([5, 9, 5, 3])
    draw_always(monkeypatch, drawn)
    arrays = in_jax((hidden, head.T, targets, weights))
    loss = objective_of("gbce", arrays, negatives=count, shared=shared, calibration=t)
    (found,) = loss(jax.random.split(jax.random.key(0), 1))
    alpha = count / (VOCAB - objectives.FIRST_KNOWN - 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    share = 1 / (1 + np.exp(-(hidden @ head)))
    wanted = 0.0
    for place in np.ndindex(2, 4):
        own = targets[place]
        against = sum(np.log(1 - share[place][item]) for item in drawn if item != own)
        wanted -= weights[place] * (beta * np.log(share[place][own]) + against)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_in_batch_negatives_are_the_other_rows_targets_that_count():
    hidden, head, *_ = case(3, 2)
    targets = np.array([[2, 3], [3, 4], [5, 6]])
    weights = np.array([[1.0, 0.5], [1.0, 1.0], [1.0, 0.0]])
    arrays = in_jax((hidden, head.T, targets, weights))
    (found,) = objective_of("in_batch", arrays)(jax.random.split(jax.random.key(0), 1))
    often = np.bincount(targets.ravel(), weights.ravel(), VOCAB) / weights.sum()
    logits, wanted = hidden @ head, 0.0
    for place in np.ndindex(3, 2):
        own = targets[place]
        rivals = [
            targets[other]
            for other in np.ndindex(3, 2)
            if other[0] != place[0] and weights[other] and targets[other] != own
        ]
        corrected = logits[place] - np.log(np.maximum(often, 1e-9))
        total = np.exp(corrected[own]) + np.exp(corrected[rivals]).sum()
        wanted -= weights[place] * (corrected[own] - np.log(total))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
