"""The autoregressive encoder of User-LLM: many features an event, fused early, read forwards."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from user_llm.models.attention import Positions, frequencies
from user_llm.models.blocks import Block
from user_llm.models.encoders.base import Encoder, EventCache, apart, causal_mask
from user_llm.models.layers import RMSNorm, known, picked, rematerialized


class AutoregressiveEncoder(Encoder):
    """A causal Transformer over events (arXiv 2402.13598, section 3.1).

    Items are scored by cosine similarity unless the config says otherwise, after arXiv 2402.17152.
    """

    def build(self, rngs: nnx.Rngs) -> None:
        config = self.config

        def block(rngs):
            kinds = {"dropout": config.dropout, "gated": config.gated}
            return Block(config.embed, config.heads, config.mlp, rngs=rngs, **kinds)

        self.layers = jax.vmap(block)(rngs.split(config.layers))  # [L, ...]
        self.norm = RMSNorm(config.embed)

    def __call__(
        self,
        events: dict[str, Array],
        segments: Int[Array, "B T"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        x, keys = self.inputs(events, key)
        mask, positions = causal_mask(segments), self.in_row(segments)
        return self.norm(through(self.layers, x, mask, positions, keys))

    def at(
        self, events: dict[str, Array], segments: Int[Array, "B T"], places: Int[Array, "B S"]
    ) -> Float[Array, "B S D"]:
        """As the base; of the last layer no more is computed than these states and all keys."""
        before = jax.tree.map(lambda stacked: stacked[:-1], self.layers)
        last = jax.tree.map(lambda stacked: stacked[-1], self.layers)
        mask, positions = causal_mask(segments), self.in_row(segments)
        x = through(before, self.embed(events), mask, positions)
        return self.norm(last(x, picked(mask, places), positions, at=places)[0])

    def extend(
        self,
        events: dict[str, Array],
        positions: Int[Array, "B K"],
        cache: EventCache,
        blocks: Sequence[Any] = (),
    ) -> tuple[Float[Array, "B K D"], EventCache]:
        mask = jnp.arange(self.config.window) <= positions[..., None]
        there = self.positions(positions)

        x, layers = self.embed(events), []
        blocks = blocks or apart(self.layers, self.config.layers)
        # Scanned, each layer would copy its parameters and its part of the cache.
        for block, kept in zip(blocks, cache.layers, strict=True):
            x, kept = block(x, mask, there, cache=kept)
            layers.append(kept)
        return self.norm(x), cache._replace(layers=layers)

    def positions(self, at: Array | np.ndarray) -> Positions:
        """What the blocks know of where their events stand."""
        return Positions.of(at, frequencies(self.config.embed // self.config.heads))

    def in_row(self, segments: Int[Array, "B T"]) -> Positions:
        """Positions that serve every segment of a row, since only their differences count."""
        length = segments.shape[1]
        return self.positions((np if known(length) else jnp).arange(length)[None])


def through(
    layers: Block,  # stacked
    x: Float[Array, "B T D"],
    mask: Bool[Array, "B T T"],
    positions: Positions,
    keys: Key[Array, " L"] | None = None,
) -> Float[Array, "B T D"]:
    """Events in the light of those that the mask shows, through one layer after the other."""

    @rematerialized
    def layer(x, block_and_key):
        block, key = block_and_key
        return block(x, mask, positions, key=key)[0], None

    return jax.lax.scan(layer, x, (layers, keys))[0]
