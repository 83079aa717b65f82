"""A user's events as a memory: encoded, marked by their age, compressed."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from user_llm.config import PerceiverConfig
from user_llm.models.encoders import ENCODERS, Encoder
from user_llm.models.encoders.base import unit
from user_llm.models.layers import Memory
from user_llm.models.perceiver import Perceiver
from user_llm.models.streams.base import Given
from user_llm.sharding import axes, constrain


class TimelineStream(nnx.Module):
    """The user's events through an encoder, marked by their age, compressed by a Perceiver.

    Every event gives its encoded state and its own embedding: the state says what may come next,
    the embedding what the event was. The newest event joins the compressed ones as it is: from its
    state the encoder itself would predict. One timeline per row, its padding at the end.
    """

    def __init__(self, encoder: Encoder, perceiver: PerceiverConfig, *, rngs: nnx.Rngs):
        self.encoder = encoder
        self.width = 2 * encoder.config.embed
        self.count = perceiver.latents + 1 if perceiver.latents else None
        init, shape = nnx.initializers.normal(0.5), (encoder.config.window, self.width)
        self.age = nnx.Param(init(rngs.params(), shape), **axes(None, "embed"))
        self.perceiver = Perceiver(perceiver, self.width, rngs=rngs) if perceiver.latents else None

    @classmethod
    def of(cls, given: Given, *, rngs: nnx.Rngs) -> "TimelineStream":
        """That of a system, with an encoder as the config has it."""
        make = ENCODERS[given.encoder.kind]
        encoder = make(given.encoder, given.features, given.items, rngs=rngs)
        return cls(encoder, given.system.perceiver, rngs=rngs)

    def __call__(self, batch: dict[str, Any]) -> Memory:
        """The memory of `batch["events"]`, where `batch["segments"]` [B, T] is not 0.

        With `batch["hint"]`, an item and a share per user, the newest state is turned towards it.
        """
        return self.compressed(*self.tokens(batch))

    def compressed(self, tokens: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Memory:
        """The memory of events' vectors, marked by their age."""
        if self.perceiver is None:
            return Memory(tokens, mask)
        latents = self.perceiver(tokens, mask).tokens
        newest = jnp.einsum("bt,btd->bd", is_newest(mask).astype(tokens.dtype), tokens)
        memory = jnp.concatenate([latents, newest[:, None]], axis=1)
        return Memory(memory, jnp.ones(memory.shape[:2], bool))

    def tokens(self, batch: dict[str, Any]) -> tuple[Float[Array, "B T D"], Bool[Array, "B T"]]:
        """One vector per event, before compression, and which of them there are."""
        events, mask = batch["events"], batch["segments"] > 0
        states = self.encoder(events, batch["segments"])
        if "hint" in batch:
            turned = self.turned(states, **batch["hint"])
            states = jnp.where(is_newest(mask)[..., None], turned, states)
        return self.aged(self.told(states, events), mask), mask

    def told(self, states: Float[Array, "B T E"], events: dict[str, Array]) -> Array:  # [B, T, D]
        """What each event tells, whatever its age: its state and its own embedding."""
        return jnp.concatenate([states, self.encoder.embed(events)], axis=-1)

    def aged(self, told: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """The same, marked by how many events came after each."""
        # Whole on every device, as any table before a look-up.
        age = constrain(self.age[...].astype(told.dtype), None, None)
        return told + constrain(age[event_ages(mask)], "batch", None, None)

    def turned(
        self, states: Float[Array, "B T D"], item: Int[Array, " B"], share: Float[Array, " B"]
    ) -> Float[Array, "B T D"]:
        """States of the same length that point towards an item: straight where `share` is 1."""
        length, share = jnp.linalg.norm(states, axis=-1, keepdims=True), share[:, None, None]
        target = self.encoder.directions(item)[:, None].astype(states.dtype)
        return length * unit((1 - share) * unit(states) + share * target)

    def weights(self, batch: dict[str, Any]) -> Float[Array, "B M T"]:
        """What share of each memory token comes from each event."""
        tokens, mask = self.tokens(batch)
        if self.perceiver:
            newest = is_newest(mask)[:, None].astype(jnp.float32)
            return jnp.concatenate([self.perceiver.weights(tokens, mask), newest], axis=1)
        return jnp.eye(tokens.shape[1]) * mask[:, None].astype(jnp.float32)


def is_newest(mask: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
    """Which event came last."""
    return mask & (event_ages(mask) == 0)


def event_ages(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """How many events came after each; 0 is the newest."""
    later = mask.sum(1, keepdims=True, dtype=jnp.int32) - 1
    return jnp.maximum(later - jnp.arange(mask.shape[1], dtype=jnp.int32), 0)
