"""Losses against the plain formulas in float64, one pair or token at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from losses_made import VOCAB, WIDTH, case, in_jax, log_softmax
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
