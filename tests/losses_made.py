"""Hidden states and targets that losses are taken of, and the log-softmax in float64."""

import jax.numpy as jnp
import numpy as np

VOCAB, WIDTH = 11, 8


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


def in_jax(arrays):
    kinds = (jnp.float32, jnp.float32, jnp.int32, jnp.float32)
    return [jnp.array(x, kind) for x, kind in zip(arrays, kinds, strict=True)]
