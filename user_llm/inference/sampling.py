"""How the next token is chosen: greedily, or drawn from what filters leave."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

RANGES = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
}


class Sampling(NamedTuple):
    """How an answer's tokens are chosen; temperature 0 is greedy.

    As in transformers, the penalty comes first, then the temperature, `top_k`, `top_p` and `min_p`,
    each of what those before it leave.
    """

    temperature: float = 0.0
    top_p: float = 1.0  # the fewest tokens that hold this share (arXiv 1904.09751, section 3.1)
    seed: int = 0
    top_k: int = 0  # the most probable ones; 0: all
    min_p: float = 0.0  # those of at least this share of the best one's (arXiv 2407.01082)
    # Logits of tokens seen in prompt or answer are divided by it, or multiplied where negative
    # (arXiv 1909.05858, section 4.1).
    repetition_penalty: float = 1.0


class Choice(NamedTuple):
    """The samplings of a batch, as arrays on the device."""

    temperature: Float[Array, " B"]
    top_p: Float[Array, " B"]
    keys: Key[Array, " B"]
    top_k: Int[Array, " B"]
    min_p: Float[Array, " B"]
    repetition_penalty: Float[Array, " B"]

    @staticmethod
    def of(how: Sequence[Sampling]) -> "Choice":
        """Those of each row.

        Raises:
          ValueError: values are out of range; all are named, with their row.
        """
        check(how)
        temperature, top_p, seed, top_k, min_p, penalty = map(np.array, zip(*how, strict=True))
        return Choice(
            temperature=jnp.asarray(temperature, jnp.float32),
            top_p=jnp.asarray(top_p, jnp.float32),
            keys=_keys(seed.astype(np.uint32)),
            top_k=jnp.asarray(top_k, jnp.int32),
            min_p=jnp.asarray(min_p, jnp.float32),
            repetition_penalty=jnp.asarray(penalty, jnp.float32),
        )


_keys = jax.jit(jax.vmap(jax.random.key))


def check(how: Sequence[Sampling]) -> None:
    """Refuses samplings that cannot be.

    Raises:
      ValueError: values are out of range; all are named, with their row.
    """
    if problems := [
        f"sampling {row} has {name}={value}, which must be between {low} and {high}"
        for row, one in enumerate(how)
        for name, (low, high) in RANGES.items()
        if not low <= (value := getattr(one, name)) <= high
    ]:
        raise ValueError("; ".join(problems))


@jax.jit
def seen_tokens(
    logits: Float[Array, "B V"], tokens: Int[Array, "B T"], lengths: Int[Array, " B"]
) -> Bool[Array, "B V"]:
    """Which tokens of the vocabulary stand in each row, up to its length.

    Negative ones are of no vocabulary: a memory's vectors stand there.
    """
    rows = jnp.arange(len(tokens))[:, None]
    real = (jnp.arange(tokens.shape[1]) < lengths[:, None]) & (tokens >= 0)
    return jnp.zeros(logits.shape, bool).at[rows, tokens].max(real)


@jax.jit
def add_tokens(seen: Bool[Array, "B V"], tokens: Int[Array, " B"]) -> Bool[Array, "B V"]:
    """The same after one more token in each row."""
    return seen.at[jnp.arange(len(tokens)), tokens].set(True)


@jax.jit
def choose(
    logits: Float[Array, "B V"],
    choice: Choice,
    count: Int[Array, ""] | Int[Array, " B"] | int,
    seen: Bool[Array, "B V"] | None = None,
) -> Int[Array, " B"]:
    """The token of each row, `count` tokens into its answer, or into those of each row.

    A row's token depends on its own logits, sampling and seed, and on no other row.
    """
    logits = logits.astype(jnp.float32)
    if seen is not None:
        penalty = choice.repetition_penalty[:, None]
        less = jnp.where(logits > 0, logits / penalty, logits * penalty)
        logits = jnp.where(seen, less, logits)
    best = logits.argmax(-1).astype(jnp.int32)
    warm = choice.temperature > 0

    def drawn(_):
        keys = jax.vmap(jax.random.fold_in)(choice.keys, jnp.broadcast_to(count, len(logits)))
        kept = filtered(logits / jnp.where(warm, choice.temperature, 1)[:, None], choice)
        found = jax.vmap(jax.random.categorical)(keys, kept)
        return jnp.where(warm, found.astype(jnp.int32), best)

    return jax.lax.cond(warm.any(), drawn, lambda _: best, None)


def filtered(logits: Float[Array, "B V"], choice: Choice) -> Float[Array, "B V"]:
    """The logits of the tokens that may be drawn, and -inf for all others.

    Of tokens as good as the last one that a filter keeps, it keeps all.
    """
    keys = _ordered(logits)
    few, part = choice.top_k > 0, choice.top_p < 1
    most = jnp.where(few, choice.top_k.astype(jnp.float32), jnp.inf)
    least = _least(keys, None, most, few.any())
    share = jax.nn.softmax(jnp.where(keys >= least, logits, -jnp.inf), axis=-1)
    wanted = jnp.where(part, choice.top_p, jnp.inf)
    least = jnp.maximum(least, _least(keys, share, wanted, part.any()))
    kept = (keys >= least) & (share >= choice.min_p[:, None] * share.max(-1, keepdims=True))
    return jnp.where(kept, logits, -jnp.inf)


def _ordered(x: Float[Array, "B V"]) -> UInt32[Array, "B V"]:
    """Integers that are ordered as the values are."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 > 0, ~bits, bits | np.uint32(1 << 31))


def _least(
    keys: UInt32[Array, "B V"],
    weights: Float[Array, "B V"] | None,
    wanted: Float[Array, " B"],
    needed: Bool[Array, ""],
) -> UInt32[Array, "B 1"]:
    """The key down to which a row's greatest ones weigh `wanted` in sum; 0 if all weigh less.

    It is found bit by bit, as sorting a vocabulary takes many times longer on a CPU. Without
    weights, each weighs one.
    """

    def look(nth, least):
        higher = least | (np.uint32(1 << 31) >> nth.astype(jnp.uint32))
        there = keys >= higher
        total = jnp.where(there, 1.0 if weights is None else weights, 0.0).sum(-1, keepdims=True)
        return jnp.where(total >= wanted[:, None], higher, least)

    none = jnp.zeros((len(keys), 1), jnp.uint32)
    found = jax.lax.cond(needed, lambda: jax.lax.fori_loop(0, 32, look, none), lambda: none)
    return jnp.minimum(found, keys.max(-1, keepdims=True))
