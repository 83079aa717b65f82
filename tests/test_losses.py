"""Losses against the plain formulas in float64, one pair or token at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_made import random_model

from user_llm.config import (
    DecoderConfig,
    EncoderConfig,
    FeatureConfig,
    ObjectiveConfig,
    PerceiverConfig,
    SystemConfig,
)
from user_llm.models.encoders import AutoregressiveEncoder, BERT4RecEncoder
from user_llm.models.user_llm import UserLLM
from user_llm.training import losses, objectives

VOCAB, WIDTH = 11, 8
FEATURES = (
    FeatureConfig(name="item", kind="categorical", size=VOCAB, predicted=True),
    FeatureConfig(name="rating", kind="categorical", size=5, predicted=True),
    FeatureConfig(name="genres", kind="bag", size=6),
)
ENCODER = EncoderConfig(
    window=12, embed=WIDTH, feature_embed=4, heads=1, mlp=8, layers=1, temperature=0.5, dropout=0
)
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 3, 0], [1, 1, 2, 2, 2, 2, 2, 2]], np.int32)


next_event = jax.jit(losses.next_event, static_argnames="objective")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def case(batch, length):
    """Hidden states, head, targets and uneven weights, some of them 0."""
    rng = np.random.default_rng(length)
    weights = rng.uniform(size=(batch, length)) * (rng.uniform(size=(batch, length)) < 0.7)
    targets = rng.integers(VOCAB, size=(batch, length))
    return numbers(batch, length, WIDTH), numbers(WIDTH, VOCAB, seed=1), targets, weights


def plain_cross_entropy(hidden, head, targets, weights):
    """The sum, and its gradients by hidden and head: (softmax - one_hot) times the rest."""
    logs = log_softmax(hidden @ head)
    total = -(np.take_along_axis(logs, targets[..., None], -1)[..., 0] * weights).sum()
    error = (np.exp(logs) - np.eye(VOCAB)[targets]) * weights[..., None]
    return total, error @ head.T, np.einsum("btd,btv->dv", hidden, error)


def test_cross_entropy_of_capped_logits_and_its_gradient():
    hidden, head, targets, weights = case(3, 7)
    logits = np.tanh(hidden @ head / 1.5) * 1.5
    logs = log_softmax(logits)
    wanted = -(np.take_along_axis(logs, targets[..., None], -1)[..., 0] * weights).sum()
    error = (np.exp(logs) - np.eye(VOCAB)[targets]) * weights[..., None]
    error *= 1 - (logits / 1.5) ** 2
    fixed = jnp.array(targets, jnp.int32), jnp.array(weights, jnp.float32), 1.5
    gradient = jax.value_and_grad(lambda h, w: losses.cross_entropy(h, w, *fixed), argnums=(0, 1))
    found, (by_hidden, by_head) = jax.jit(gradient)(
        jnp.array(hidden, jnp.float32), jnp.array(head, jnp.float32)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(by_hidden, error @ head.T, rtol=1e-4, atol=1e-5)
    by_all = np.einsum("btd,btv->dv", hidden, error)
    np.testing.assert_allclose(by_head, by_all, rtol=1e-4, atol=1e-5)


# Of a batch of three, the chunks have 2, 2, 3, 1 and all the steps of time.
@pytest.mark.parametrize(("length", "chunk"), [(1, 6), (5, 6), (7, 10), (7, 1), (7, 512)])
def test_cross_entropy_and_its_gradient_are_those_of_full_logits(length, chunk, monkeypatch):
    monkeypatch.setattr(losses, "chunk_size", lambda width: chunk)
    hidden, head, targets, weights = case(3, length)
    fixed = jnp.array(targets, jnp.int32), jnp.array(weights, jnp.float32)
    gradient = jax.value_and_grad(lambda h, w: losses.cross_entropy(h, w, *fixed), argnums=(0, 1))
    found, (by_hidden, by_head) = jax.jit(gradient)(
        jnp.array(hidden, jnp.float32), jnp.array(head, jnp.float32)
    )
    wanted = plain_cross_entropy(hidden, head, targets, weights)
    np.testing.assert_allclose(found, wanted[0], rtol=1e-5)
    np.testing.assert_allclose(by_hidden, wanted[1], atol=1e-5)
    np.testing.assert_allclose(by_head, wanted[2], atol=1e-5)


def test_cross_entropy_never_holds_all_logits(monkeypatch):
    monkeypatch.setattr(losses, "chunk_size", lambda width: 6)
    program = str(jax.make_jaxpr(jax.grad(losses.cross_entropy))(*in_jax(case(3, 40))))
    assert f"f32[6,{VOCAB}]" in program
    assert not any(f"f32[{shape},{VOCAB}]" in program for shape in ("3,40", "120", "20,6"))


def test_chunks_in_which_nothing_counts_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(losses, "chunk_size", lambda width: 6)
    hidden, head, targets, weights = in_jax(case(3, 8))
    hidden, weights = hidden.at[:, 4:].set(jnp.nan), weights.at[:, 4:].set(0).at[:, 0].set(1)
    gradient = jax.jit(jax.value_and_grad(losses.cross_entropy, argnums=(0, 1)))
    loss, (by_hidden, by_head) = gradient(hidden, head, targets, weights)
    assert np.isfinite(loss) and np.isfinite(by_head).all()
    assert by_hidden[:, 0].all() and not by_hidden[:, 4:].any()


def in_jax(arrays):
    kinds = (jnp.float32, jnp.float32, jnp.int32, jnp.float32)
    return [jnp.array(x, kind) for x, kind in zip(arrays, kinds, strict=True)]


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


def timelines():
    """Events of two packed rows, with values that are missing (0) or out of vocabulary (1)."""
    rng = np.random.default_rng(3)
    events = {
        "item": rng.integers(2, VOCAB, size=(2, 8)),
        "rating": rng.integers(2, 5, size=(2, 8)),
        "genres": rng.integers(0, 6, size=(2, 8, 3)),
    }
    events["item"][0, 2], events["item"][1, 4], events["rating"][1, 3] = 1, 0, 0
    events = {name: jnp.array(x, jnp.int32) for name, x in events.items()}
    return {"events": events, "segments": jnp.array(SEGMENTS)}


@jax.jit
def encode(encoder, batch):
    return encoder(batch["events"], batch["segments"])


@jax.jit
def answer(model, batch):
    """The loss, and all logits."""
    return losses.answer(model, batch, jax.random.key(0)), model(batch)


def mean_of_pairs(logs, values):
    """Over each pair of neighbours in one segment whose second event has a known value."""
    pairs = [
        (b, t)
        for b, row in enumerate(SEGMENTS)
        for t in range(len(row) - 1)
        if row[t] and row[t] == row[t + 1] and values[b, t + 1] >= 2
    ]
    return -np.mean([logs[b, t, values[b, t + 1]] for b, t in pairs]), len(pairs)


def test_next_event_is_the_mean_over_the_pairs_within_segments():
    encoder, batch = random_model(partial(AutoregressiveEncoder, ENCODER, FEATURES)), timelines()
    loss, metrics = next_event(encoder, batch, jax.random.key(0))
    states = encode(encoder, batch)
    logits = {"item": encoder.item_logits(states), "rating": encoder.heads["rating"](states)}
    logs = {name: log_softmax(values) for name, values in logits.items()}
    wanted = {name: mean_of_pairs(logs[name], batch["events"][name]) for name in logs}
    assert (wanted["item"][1], wanted["rating"][1]) == (8, 9)  # of ten pairs
    for name in logs:
        np.testing.assert_allclose(metrics[f"loss_{name}"], wanted[name][0], rtol=1e-5)
    np.testing.assert_allclose(loss, wanted["item"][0] + wanted["rating"][0], rtol=1e-5)
    assert int(metrics["events"]) == (SEGMENTS > 0).sum()
    assert set(metrics) == {"events", "loss_item", "loss_rating", "counts"}


def test_next_event_takes_the_objective_and_the_weights_that_it_is_given():
    objective = ObjectiveConfig(
        kind="sampled_softmax", negatives=50_000, proposal="mixed", weights={"rating": 0.1}
    )
    encoder, batch = random_model(partial(AutoregressiveEncoder, ENCODER, FEATURES)), timelines()
    loss, metrics = losses.next_event(encoder, batch, jax.random.key(0), objective)
    logits = encoder.item_logits(encode(encoder, batch))
    logs = log_softmax(logits.at[..., : objectives.FIRST_KNOWN].set(-jnp.inf))
    wanted, _ = mean_of_pairs(logs, batch["events"]["item"])
    np.testing.assert_allclose(metrics["loss_item"], wanted, rtol=5e-3)
    np.testing.assert_allclose(loss, metrics["loss_item"] + 0.1 * metrics["loss_rating"], rtol=1e-6)


def test_the_next_few_events_count_alike():
    encoder, batch = random_model(partial(AutoregressiveEncoder, ENCODER, FEATURES)), timelines()
    _, metrics = losses.next_event(encoder, batch, jax.random.key(0), ObjectiveConfig(next_k=3))
    logs, items = log_softmax(encoder.item_logits(encode(encoder, batch))), batch["events"]["item"]
    found = [
        logs[b, t, items[b, t + ahead]]
        for b, row in enumerate(SEGMENTS)
        for t in range(len(row))
        for ahead in (1, 2, 3)
        if t + ahead < len(row) and row[t] and row[t] == row[t + ahead] and items[b, t + ahead] >= 2
    ]
    np.testing.assert_allclose(metrics["loss_item"], -np.mean(found), rtol=1e-5)


def test_masked_events_are_told_from_what_is_left():
    """Of many draws about the asked share is masked, and every second timeline's last event."""
    config = ENCODER.model_copy(update={"kind": "bert4rec"})
    encoder, batch = random_model(partial(BERT4RecEncoder, config, FEATURES)), timelines()
    seen = []

    class Spy(BERT4RecEncoder):
        def __call__(self, events, segments, *, key=None, masked=None):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), masked)
            return super().__call__(events, segments, key=key, masked=masked)

    spy = nnx.merge(
        nnx.graphdef(nnx.eval_shape(lambda: Spy(config, FEATURES, rngs=nnx.Rngs(0)))),
        nnx.state(encoder),
    )
    loss = jax.jit(partial(losses.encoder_loss, objective=ObjectiveConfig(masked=0.3)))
    for seed in range(200):
        _, metrics = loss(spy, batch, jax.random.key(seed))
    jax.effects_barrier()
    share = np.mean(seen, axis=0)
    there, last = SEGMENTS > 0, np.diff(SEGMENTS, axis=1, append=-1) != 0
    assert not share[~there].any()
    assert abs(share[there & ~last].mean() - 0.3) < 0.04
    assert abs(share[there & last].mean() - (1 - 0.7 * 0.5)) < 0.06
    states = encoder(batch["events"], batch["segments"], masked=jnp.asarray(seen[-1]))
    logs = log_softmax(encoder.item_logits(states))
    items = np.asarray(batch["events"]["item"])
    places = [p for p in zip(*seen[-1].nonzero(), strict=True) if items[p] >= 2]
    wanted = -np.mean([logs[p][items[p]] for p in places])
    np.testing.assert_allclose(metrics["loss_item"], wanted, rtol=1e-5)


def test_a_batch_without_pairs_costs_nothing():
    encoder, batch = random_model(partial(AutoregressiveEncoder, ENCODER, FEATURES)), timelines()
    batch["segments"] = jnp.arange(1, 9)[None].repeat(2, 0)
    loss, metrics = next_event(encoder, batch, jax.random.key(0))
    assert (loss, metrics["events"]) == (0, 16)


@pytest.mark.parametrize("fusion", ["cross_attention", "soft_prompt"])
def test_answer_weighs_the_answers_tokens_alone(fusion):
    decoder = DecoderConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=8, num_hidden_layers=2, head_dim=4
    )
    system = SystemConfig(fusion=fusion, perceiver=PerceiverConfig(latents=3, layers=1))
    model = random_model(partial(UserLLM, system, decoder, ENCODER, FEATURES))
    tokens = np.random.default_rng(5).integers(VOCAB, size=(2, 6))
    weights = np.array([[0, 0, 0, 1, 1, 0], [0, 1, 1, 1, 0, 0]])
    batch = timelines() | {
        "tokens": jnp.array(tokens, jnp.int32),
        "weights": jnp.array(weights, jnp.float32),
    }
    (loss, metrics), logits = answer(model, batch)
    logs = log_softmax(logits)
    own = [logs[b, t - 1, tokens[b, t]] for b, t in zip(*weights.nonzero(), strict=True)]
    np.testing.assert_allclose(loss, -np.mean(own), rtol=1e-5)
    assert metrics["tokens"] == len(own) == 5
