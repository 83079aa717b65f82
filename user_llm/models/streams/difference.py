"""What sets a user's events apart from those of others at the same items, as a memory."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from user_llm.config import (
    DIFFERENCE,
    TEXT_VECTOR,
    DifferenceConfig,
    EncoderConfig,
    SystemConfig,
    TextEncoderConfig,
)
from user_llm.models.blocks import gelu
from user_llm.models.layers import Linear, Memory
from user_llm.models.perceiver import Perceiver
from user_llm.models.streams.base import Given
from user_llm.sharding import axes, constrain

CLAMP = 1e-6  # of mean activations, whose logarithms are taken


class Rows(NamedTuple):
    """The newest events' vectors, the oldest of them first; where there are fewer, none lead."""

    vectors: Float[Array, "B N D"]
    known: Bool[Array, "B N"]  # whether there is such a vector: a peer to differ from, or a text
    there: Bool[Array, "B N"]  # whether there is such an event


class DifferenceStream(nnx.Module):
    """Differences of a user's newest events from their peers', compressed.

    They are computed before training (see `data.peers`). An event without a peer keeps its place:
    there stands a learned vector of "no comparison".

    Args:
      inputs: the width of the differences.
      width: the decoder's, in which an autoencoder's tokens are.
    """

    def __init__(self, config: DifferenceConfig, inputs: int, width: int, *, rngs: nnx.Rngs):
        self.config, self.count, self.embedded = config, config.width, _codes(config)
        self.width = width if self.embedded else inputs
        self.coder = SparseTokens(config, inputs, width, rngs=rngs) if _codes(config) else None
        self.compressor = None if _codes(config) else Compressor(config, inputs, rngs=rngs)

    @classmethod
    def of(cls, given: Given, *, rngs: nnx.Rngs) -> "DifferenceStream":
        """That of a system."""
        inputs = difference_width(given.system, given.encoder, given.text_encoder)
        return cls(given.system.difference, inputs, given.decoder.hidden_size, rngs=rngs)

    def __call__(self, batch: dict[str, Any]) -> Memory:
        """The memory of `batch["events"]`, where `batch["segments"]` [B, T] is not 0."""
        if self.coder is not None:
            return self.coder(*self._read(batch))
        assert self.compressor is not None, "there is one of the two"
        return self.compressor(*self._read(batch))

    def own_loss(self, batch: dict[str, Any]) -> tuple[Float[Array, ""], Float[Array, ""]] | None:
        """What an autoencoder adds to the loss of training, a sum and over how many users it is.

        None where there is no autoencoder.
        """
        return None if self.coder is None else self.coder.own_loss(*self._read(batch))

    def _read(self, batch: dict[str, Any]) -> list[Rows]:
        """The differences, and before them the own vectors where they are read."""
        columns = [TEXT_VECTOR] * self.config.own + [DIFFERENCE]
        there = batch["segments"] > 0
        return [newest(batch["events"][name], there, self.config.events) for name in columns]


class Compressor(nnx.Module):
    """Vectors, marked by their age, through a Perceiver."""

    def __init__(self, config: DifferenceConfig, inputs: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.5)
        kinds = 1 + config.own
        self.incomparable = _vector(kinds, inputs, rngs)
        shape = (kinds, config.events, inputs)
        self.age = nnx.Param(init(rngs.params(), shape), **axes(None, None, "embed"))
        self.perceiver = Perceiver(config.perceiver, inputs, rngs=rngs)

    def __call__(self, *kinds: Rows) -> Memory:
        age, incomparable = self.age[...], self.incomparable[...]
        parts = [
            jnp.where(rows.known[..., None], rows.vectors, incomparable[kind]) + age[kind]
            for kind, rows in enumerate(kinds)
        ]
        mask = jnp.concatenate([rows.there for rows in kinds], axis=1)
        return self.perceiver(jnp.concatenate(parts, axis=1), mask)


class SparseTokens(nnx.Module):
    """A token of every vector, of the code that a sparse autoencoder makes of it.

    Source: DEP, arXiv 2507.20849, and its authors' code: one autoencoder for all, and a projector
    for the own vectors and one for differences.
    """

    def __init__(self, config: DifferenceConfig, inputs: int, width: int, *, rngs: nnx.Rngs):
        self.config, kinds = config, 1 + config.own
        self.encode_proj = Linear(inputs, config.code, ("embed", "mlp"), bias=True, rngs=rngs)
        self.decode_proj = Linear(config.code, inputs, ("mlp", "embed"), bias=True, rngs=rngs)
        self.projectors = nnx.List(
            [CodeProjector(config.code, width, rngs=rngs) for _ in range(kinds)]
        )
        self.incomparable = _vector(kinds, width, rngs)

    def __call__(self, *kinds: Rows) -> Memory:
        """Each event's tokens side by side: its own, and what sets it apart."""
        incomparable, tokens = self.incomparable[...], []
        for kind, (rows, projector) in enumerate(zip(kinds, self.projectors, strict=True)):
            told = projector(self.code(rows.vectors))
            tokens.append(jnp.where(rows.known[..., None], told, incomparable[kind]))
        aligned = jnp.stack(tokens, axis=2)  # [B, N, kinds, W]
        mask = jnp.stack([rows.there for rows in kinds], axis=2)
        shape = (aligned.shape[0], -1)
        return Memory(aligned.reshape(*shape, aligned.shape[-1]), mask.reshape(shape))

    def code(self, x: Float[Array, "... D"]) -> Float[Array, "... C"]:
        # Split by `mlp` on a mesh of all three axes, XLA's partitioner got its gradient wrong.
        return gelu(constrain(self.encode_proj(x), "batch", None, None))

    def own_loss(self, *kinds: Rows) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """How ill vectors are rebuilt of their codes, and how far these are from sparse.

        Summed over the users who have vectors, and how many they are. A code's mean is over a
        user's vectors, those of their own and the differences together.
        """
        x = jnp.concatenate([rows.vectors for rows in kinds], axis=1)
        known = jnp.concatenate([rows.known for rows in kinds], axis=1)[..., None].astype(x.dtype)
        counts = jnp.maximum(known.sum(1), 1)  # [B, 1]
        code = self.code(x)
        wrong = optax.losses.huber_loss(gelu(self.decode_proj(code)), x)
        wrong = (wrong * known).sum(1) / counts  # [B, D]
        active = jnp.clip((code * known).sum(1) / counts, CLAMP, 1 - CLAMP)
        wanted = self.config.sparsity
        divergence = wanted * jnp.log(wanted / active)
        divergence += (1 - wanted) * jnp.log((1 - wanted) / (1 - active))
        losses = wrong.mean(1) + self.config.sparse * divergence.mean(1)
        some = known.any(1)[:, 0].astype(x.dtype)  # of users without a vector nothing is asked
        return self.config.reconstruction * (losses * some).sum(), some.sum()


class CodeProjector(nnx.Module):
    """Linear, GELU, linear: from a code to a token in the decoder's width."""

    def __init__(self, inputs: int, width: int, *, rngs: nnx.Rngs):
        self.up_proj = Linear(inputs, width, ("embed", "mlp"), bias=True, rngs=rngs)
        self.down_proj = Linear(width, width, ("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... W"]:
        return self.down_proj(gelu(self.up_proj(x)))


def newest(column: Float[Array, "B T _"], there: Bool[Array, "B T"], count: int) -> Rows:
    """The vectors of the newest `count` events of each row, whose padding is at its end.

    A column's last number says whether an event has a vector.
    """
    length = there.sum(1, dtype=jnp.int32, keepdims=True)
    at: Int[Array, "B N"] = length - count + jnp.arange(count, dtype=jnp.int32)
    rows = jnp.take_along_axis(column, jnp.maximum(at, 0)[..., None], axis=1)
    exists = at >= 0
    return Rows(rows[..., :-1], (rows[..., -1] > 0) & exists, exists)


def difference_width(
    system: SystemConfig, encoder: EncoderConfig, text_encoder: TextEncoderConfig | None
) -> int:
    """The width of the vectors that a difference stream reads: of texts, or of encoded events.

    Raises:
      ValueError: they are of texts, and no text encoder is given.
    """
    if system.difference.vectors == "encoder":
        return 2 * encoder.embed  # as `TimelineStream` has events
    if text_encoder is None:
        raise ValueError(
            "differences of texts are as wide as their encoder's vectors; give its config"
        )
    return text_encoder.hidden_size


def _codes(config: DifferenceConfig) -> bool:
    return config.compressor == "autoencoder"


def _vector(kinds: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    init = nnx.initializers.normal(0.02)
    return nnx.Param(init(rngs.params(), (kinds, width)), **axes(None, "embed"))
