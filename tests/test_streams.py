"""The timeline's stream: what its tokens hold, how old they are, whom they depend on."""

import jax
import jax.numpy as jnp
import models_made
import numpy as np
import pytest
from models_made import ENCODER, FEATURES, PERCEIVER, random_batch

from user_llm.models.encoders import AutoregressiveEncoder
from user_llm.models.streams.timeline import TimelineStream, event_ages

LENGTHS = (6, 1, 0, 3)


def make(perceiver):
    def stream(rngs):
        encoder = AutoregressiveEncoder(ENCODER, FEATURES, rngs=rngs)
        return TimelineStream(encoder, perceiver, rngs=rngs)

    return models_made.random_model(stream)


@pytest.fixture(scope="module")
def compressed():
    return make(PERCEIVER)


@pytest.fixture(scope="module")
def plain():
    return make(PERCEIVER.model_copy(update={"latents": 0}))


@pytest.fixture(scope="module")
def batch():
    return random_batch(0, LENGTHS)


@jax.jit
def run(stream, batch):
    return stream(batch), stream.weights(batch)


def test_the_newest_event_has_age_zero():
    mask = np.arange(6) < np.array(LENGTHS)[:, None]
    for ages, length in zip(np.asarray(event_ages(jnp.asarray(mask))), LENGTHS, strict=True):
        assert ages[:length].tolist() == list(range(length))[::-1]
        assert (ages >= 0).all()


def test_tokens_are_states_and_embeddings_marked_by_age(plain, batch):
    memory, _ = run(plain, batch)
    p = models_made.parameters(plain)
    assert memory.tokens.shape == (4, 6, plain.width) == (4, 6, 2 * ENCODER.embed)
    np.testing.assert_array_equal(memory.mask, batch["segments"] > 0)
    for user, length in enumerate(LENGTHS):
        if not length:
            continue
        own = {name: values[user, :length] for name, values in batch["events"].items()}
        states = models_made.encode(p["encoder"], own)
        embedded = models_made.embed(p["encoder"]["embedding"], own, FEATURES, ENCODER)
        tokens = np.concatenate([states, embedded], axis=1) + p["age"][:length][::-1]
        np.testing.assert_allclose(memory.tokens[user, :length], tokens, rtol=1e-5, atol=1e-5)


def test_without_latents_each_token_comes_from_its_event(plain, batch):
    _, weights = run(plain, batch)
    for shares, length in zip(weights, LENGTHS, strict=True):
        np.testing.assert_array_equal(shares, np.diag(np.arange(6) < length).astype(np.float32))


def test_with_latents_weights_are_shares_of_the_events_there_are(compressed, batch):
    memory, weights = run(compressed, batch)
    assert memory.tokens.shape == (4, PERCEIVER.latents + 1, compressed.width)
    assert weights.shape == (4, PERCEIVER.latents + 1, 6)
    there = batch["segments"] > 0
    np.testing.assert_allclose(weights.sum(-1)[there.any(1)], 1, rtol=1e-6)
    np.testing.assert_array_equal(np.where(there[:, None], 0, weights), 0)


@pytest.mark.parametrize("name", ["compressed", "plain"])
def test_memory_does_not_depend_on_padding_or_on_other_users(request, name, batch):
    stream = request.getfixturevalue(name)
    memory = run(stream, batch)[0]
    assert np.isfinite(memory.tokens).all()
    there = np.asarray(memory.mask)
    other = random_batch(1, LENGTHS)["events"]
    filled = {
        n: np.where((batch["segments"] > 0).reshape(4, 6, *(1,) * (x.ndim - 2)), x, other[n])
        for n, x in batch["events"].items()
    }
    again = run(stream, batch | {"events": filled})[0]
    np.testing.assert_array_equal(again.tokens[there], memory.tokens[there])
    for user in range(4):  # alone among strangers
        strangers = random_batch(2 + user, (2, 5, 6, 0))
        events = {n: x.copy() for n, x in strangers["events"].items()}
        for n, x in batch["events"].items():
            events[n][user] = x[user]
        segments = strangers["segments"].copy()
        segments[user] = batch["segments"][user]
        mixed = run(stream, {"events": events, "segments": segments})[0]
        np.testing.assert_array_equal(
            mixed.tokens[user][there[user]], memory.tokens[user][there[user]]
        )


def test_a_wider_batch_gives_the_same_memory(compressed, batch):
    wide = {
        n: np.pad(x, ((0, 0), (0, 2), *((0, 0),) * (x.ndim - 2)))
        for n, x in batch["events"].items()
    }
    segments = np.pad(batch["segments"], ((0, 0), (0, 2)))
    memory = run(compressed, batch)[0]
    again = run(compressed, {"events": wide, "segments": segments})[0]
    np.testing.assert_allclose(again.tokens, memory.tokens, rtol=1e-5, atol=1e-5)


def test_a_hint_turns_the_newest_state_towards_its_item(plain, batch):
    without = run(plain, batch)[0].tokens
    item = np.array([3, 5, 7, 2])
    table = models_made.parameters(plain)["encoder"]["embedding"]["tables"]["item"]
    for share in (0.0, 0.3, 1.0):
        hint = {"item": item, "share": np.full(4, share, np.float32)}
        tokens = run(plain, batch | {"hint": hint})[0].tokens
        for user, length in enumerate(LENGTHS):
            old, new = (np.asarray(t[user, :length], np.float64) for t in (without, tokens))
            np.testing.assert_allclose(new[:-1], old[:-1], rtol=1e-5, atol=1e-6)
            if not length:
                continue
            age = models_made.parameters(plain)["age"][0]
            old, new = old[-1] - age, new[-1] - age
            np.testing.assert_allclose(new[ENCODER.embed :], old[ENCODER.embed :], atol=1e-6)
            state, target = old[: ENCODER.embed], table[item[user]]
            size = np.linalg.norm(state)
            mixed = (1 - share) * state / size + share * target / np.linalg.norm(target)
            wanted = size * mixed / np.linalg.norm(mixed)
            np.testing.assert_allclose(new[: ENCODER.embed], wanted, rtol=1e-4, atol=1e-5)
