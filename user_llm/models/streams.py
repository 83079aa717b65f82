"""Streams: whatever knows something about a user turns a batch into a Memory."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from user_llm.config import PerceiverConfig
from user_llm.models.encoders.autoregressive import AutoregressiveEncoder
from user_llm.models.layers import Memory
from user_llm.models.perceiver import Perceiver
from user_llm.sharding import axes


class TimelineStream(nnx.Module):
    """The user's events through an encoder, newest marked as such, compressed by a Perceiver.

    Every event gives its encoded state and its own embedding: the state says what may come next,
    the embedding what the event was. One timeline per row, its padding at the end.
    """

    def __init__(
        self, encoder: AutoregressiveEncoder, perceiver: PerceiverConfig, *, rngs: nnx.Rngs
    ):
        self.encoder = encoder
        self.width = 2 * encoder.config.embed
        init, shape = nnx.initializers.normal(0.02), (encoder.config.window, self.width)
        self.age = nnx.Param(init(rngs.params(), shape), **axes(None, "embed"))
        self.perceiver = Perceiver(perceiver, self.width, rngs=rngs) if perceiver.latents else None

    def __call__(self, batch: dict[str, Any]) -> Memory:
        """The memory of `batch["events"]`, where `batch["segments"]` [B, T] is not 0."""
        tokens, mask = self.tokens(batch)
        return self.perceiver(tokens, mask) if self.perceiver else Memory(tokens, mask)

    def tokens(self, batch: dict[str, Any]) -> tuple[Float[Array, "B T D"], Bool[Array, "B T"]]:
        """One vector per event, before compression, and which of them there are."""
        events, segments = batch["events"], batch["segments"]
        mask = segments > 0
        states = self.encoder(events, segments)
        x = jnp.concatenate([states, self.encoder.embed(events)], axis=-1)
        return x + self.age[...].astype(x.dtype)[event_ages(mask)], mask

    def weights(self, batch: dict[str, Any]) -> Float[Array, "B M T"]:
        """What share of each memory token comes from each event."""
        tokens, mask = self.tokens(batch)
        if self.perceiver:
            return self.perceiver.weights(tokens, mask)
        return jnp.eye(tokens.shape[1]) * mask[:, None].astype(jnp.float32)


def event_ages(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """How many events came after each; 0 is the newest."""
    later = mask.sum(1, keepdims=True, dtype=jnp.int32) - 1
    return jnp.maximum(later - jnp.arange(mask.shape[1], dtype=jnp.int32), 0)
