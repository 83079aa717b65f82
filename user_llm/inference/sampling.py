"""How the next token is chosen: greedily, or drawn from what filters leave."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

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
    """Which tokens of the vocabulary stand in each row, up to its length."""
    rows = jnp.arange(len(tokens))[:, None]
    real = jnp.arange(tokens.shape[1]) < lengths[:, None]
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
    """The logits of the tokens that may be drawn, and -inf for all others."""
    ranked = -jnp.sort(-logits, axis=-1)
    rank, size = jnp.arange(logits.shape[-1]), logits.shape[-1]
    few = jnp.where(choice.top_k > 0, choice.top_k, size)[:, None]
    share = jax.nn.softmax(jnp.where(rank < few, ranked, -jnp.inf), axis=-1)
    kept = (rank < few) & (share.cumsum(-1) - share < choice.top_p[:, None])
    kept &= share >= choice.min_p[:, None] * share[:, :1]
    # Every filter keeps the best so many, so that the last one kept tells them from the rest.
    last = jnp.take_along_axis(ranked, jnp.maximum(kept.sum(-1, keepdims=True), 1) - 1, axis=-1)
    return jnp.where(logits >= last, logits, -jnp.inf)
