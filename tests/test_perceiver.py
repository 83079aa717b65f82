"""The Perceiver against its statement in numpy; padding is not there, nobody is no trouble."""

import jax
import models_made
import numpy as np
import pytest
from flax import nnx
from models_made import PERCEIVER

from user_llm.models.perceiver import Perceiver

WIDTH, LENGTHS, SIZE = 8, (5, 1, 0, 3), 5
MASK = np.arange(SIZE) < np.array(LENGTHS)[:, None]


@pytest.fixture(scope="module")
def perceiver():
    return models_made.random_model(lambda rngs: Perceiver(PERCEIVER, WIDTH, rngs=rngs))


@pytest.fixture(scope="module")
def stream():
    return np.random.default_rng(1).normal(size=(len(LENGTHS), SIZE, WIDTH)).astype(np.float32)


@jax.jit
def run(perceiver, stream, mask):
    return perceiver(stream, mask), perceiver.weights(stream, mask)


def in_numpy(p, stream):
    """The memory of one user's stream [T, D], and the latents' shares of it by layer [L, M, T]."""
    latents, shares = p["latents"], []
    for layer in models_made.layers(p["layers"]):
        x = models_made.rms_norm(layer["latent_norm"], latents)
        context = np.concatenate([models_made.rms_norm(layer["stream_norm"], stream), x])
        y, weights = models_made.attention(layer["attn"], x, context, PERCEIVER.heads)
        latents = latents + y
        latents = latents + models_made.swiglu(
            layer["mlp"], models_made.rms_norm(layer["mlp_norm"], latents)
        )
        shares.append(weights.mean(0)[:, : len(stream)])
    return models_made.rms_norm(p["norm"], latents), np.stack(shares)


def test_memory_and_weights_are_those_of_each_user_alone_in_numpy(perceiver, stream):
    memory, weights = run(perceiver, stream, MASK)
    p = models_made.parameters(perceiver)
    for user, length in enumerate(LENGTHS):
        tokens, shares = in_numpy(p, stream[user, :length])
        np.testing.assert_allclose(memory.tokens[user], tokens, rtol=1e-5, atol=1e-5)
        shares = shares.mean(0)
        if length:
            shares = shares / shares.sum(1, keepdims=True)
        np.testing.assert_allclose(weights[user, :, :length], shares, rtol=1e-4, atol=1e-6)


def test_weights_sum_to_one_and_give_nothing_to_padding(perceiver, stream):
    _, weights = run(perceiver, stream, MASK)
    assert weights.shape == (len(LENGTHS), PERCEIVER.latents, SIZE)
    np.testing.assert_allclose(weights.sum(-1)[MASK.any(1)], 1, rtol=1e-6)
    np.testing.assert_array_equal(np.where(MASK[:, None], 0, weights), 0)
    np.testing.assert_array_equal(weights[2], 0)  # there was nothing to look at


def test_memory_does_not_depend_on_padding(perceiver, stream):
    memory, weights = run(perceiver, stream, MASK)
    other = np.where(MASK[..., None], stream, 1e3 * stream[::-1])
    for before, after in zip(
        jax.tree.leaves((memory, weights)),
        jax.tree.leaves(run(perceiver, other, MASK)),
        strict=True,
    ):
        np.testing.assert_array_equal(before, after)
    assert np.isfinite(memory.tokens).all()
    assert memory.mask.all()
    assert memory.tokens.shape == (len(LENGTHS), PERCEIVER.latents, WIDTH)


def test_memory_of_nobody_is_the_same_for_all_and_unlike_that_of_anybody(perceiver, stream):
    nobody = np.asarray(run(perceiver, stream, np.zeros_like(MASK))[0].tokens)
    np.testing.assert_allclose(nobody, np.broadcast_to(nobody[:1], nobody.shape), atol=1e-6)
    tokens = np.asarray(run(perceiver, stream, MASK)[0].tokens)
    for user, length in enumerate(LENGTHS):
        assert (np.abs(tokens[user] - nobody[user]).max() > 1e-3) == bool(length)


def test_order_of_the_stream_is_left_to_its_tokens(perceiver, stream):
    whole = np.ones_like(MASK)
    memory, weights = run(perceiver, stream, whole)
    turned, shares = run(perceiver, stream[:, ::-1], whole)
    np.testing.assert_allclose(turned.tokens, memory.tokens, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shares[..., ::-1], weights, rtol=1e-4, atol=1e-6)


def test_heads_that_do_not_divide_the_width_are_refused():
    config = PERCEIVER.model_copy(update={"heads": 3})
    with pytest.raises(ValueError, match="perceiver.heads=3 must divide its width 8"):
        nnx.eval_shape(lambda: Perceiver(config, WIDTH, rngs=nnx.Rngs(0)))


def test_latents_start_apart():
    made = jax.jit(lambda: Perceiver(PERCEIVER, WIDTH, rngs=nnx.Rngs(0)).latents[...])()
    assert np.linalg.matrix_rank(made) == PERCEIVER.latents
