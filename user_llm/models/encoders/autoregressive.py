"""The autoregressive encoder of User-LLM: many features an event, fused early, read forwards."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from user_llm.config import EncoderConfig, FeatureConfig
from user_llm.models.layers import Block, Linear, RMSNorm, dropout
from user_llm.sharding import axes, constrain


class EventEmbedding(nnx.Module):
    """One table per feature, side by side, projected to one vector per event."""

    def __init__(
        self, features: tuple[FeatureConfig, ...], config: EncoderConfig, *, rngs: nnx.Rngs
    ):
        item, *others = self.features = features
        self.scale = config.embed**0.5  # small initial values, unit-sized events
        init, width = nnx.initializers.normal(0.02), config.feature_embed

        def table(feature, width):
            return nnx.Param(init(rngs.params(), (feature.size, width)), **axes("vocab", "embed"))

        tables = {item.name: table(item, config.embed)}
        vectors = {}
        for feature in others:
            if feature.kind == "vector":
                vectors[feature.name] = Linear(feature.size, width, (None, "embed"), rngs=rngs)
            else:
                tables[feature.name] = table(feature, width)
        self.tables, self.vectors = nnx.Dict(tables), nnx.Dict(vectors)
        total = config.embed + width * len(others)
        self.proj = Linear(total, config.embed, (None, "embed"), rngs=rngs)

    def __call__(self, events: dict[str, Array]) -> Float[Array, "B T D"]:
        return self.proj(
            jnp.concatenate([self._embed(f, events[f.name]) for f in self.features], -1)
        )

    def _embed(self, feature, values):
        if feature.kind == "vector":
            return self.vectors[feature.name](values)
        table = constrain(self.tables[feature.name][...], "vocab", None) * self.scale
        if feature.kind == "categorical":
            return table[values]  # [B, T, F]
        filled = (values > 0).astype(table.dtype)[..., None]  # [B, T, K, 1]
        return (table[values] * filled).sum(-2) / jnp.maximum(filled.sum(-2), 1)


class AutoregressiveEncoder(nnx.Module):
    """A causal Transformer over events, with a head for every feature that it predicts.

    The first feature is the item; its head is the item table itself, by cosine similarity
    (arXiv 2402.13598, section 3.1; the similarity after arXiv 2402.17152).
    """

    def __init__(
        self, config: EncoderConfig, features: tuple[FeatureConfig, ...], *, rngs: nnx.Rngs
    ):
        if odd := [f.name for f in features if f.predicted and f.kind != "categorical"]:
            raise ValueError(f"only categorical features can be predicted, not {', '.join(odd)}")
        if not features or not features[0].predicted:
            raise ValueError("the first feature must be the item, and predicted")
        self.config, self.features = config, features
        self.embedding = EventEmbedding(features, config, rngs=rngs)

        def block(rngs):
            return Block(config.embed, config.heads, config.mlp, dropout=config.dropout, rngs=rngs)

        self.layers = jax.vmap(block)(rngs.split(config.layers))  # [L, ...]
        self.norm = RMSNorm(config.embed)
        self.heads = nnx.Dict(
            {
                f.name: Linear(config.embed, f.size, ("embed", "vocab"), rngs=rngs, bias=True)
                for f in features[1:]
                if f.predicted
            }
        )

    @property
    def item(self) -> str:
        """The name of the item feature."""
        return self.features[0].name

    def embed(self, events: dict[str, Array]) -> Float[Array, "B T D"]:
        """Each event on its own, before any context."""
        x = self.embedding(events).astype(self.config.dtype)
        return constrain(x, "batch", None, None)

    def __call__(
        self,
        events: dict[str, Array],
        segments: Int[Array, "B T"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Each event in the light of those before it in its segment.

        Args:
          events: encoded features by name, [B, T] or [B, T, K] (see `FeatureConfig`).
          segments: which timeline of its row an event belongs to, from 1; 0 is padding.
          key: for dropout; without it there is none.
        """
        keys = None if key is None else jax.random.split(key, self.config.layers + 1)
        x = dropout(self.embed(events), self.config.dropout, None if keys is None else keys[0])
        mask, positions = causal_mask(segments), segment_positions(segments)

        @jax.checkpoint
        def layer(x, block_and_key):
            block, key = block_and_key
            return block(x, mask, positions, key=key)[0], None

        x, _ = jax.lax.scan(layer, x, (self.layers, None if keys is None else keys[1:]))
        return self.norm(x)

    def item_vectors(self) -> Float[Array, "V D"]:
        """The unit vectors that states are compared with, divided by the temperature."""
        table = constrain(self.embedding.tables[self.item][...], "vocab", None)
        return unit(table) / self.config.temperature

    def item_logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """How likely each item is next: cosine similarity over temperature."""
        return unit(hidden.astype(jnp.float32)) @ self.item_vectors().T


def unit(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """x at length one; zero stays zero."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def causal_mask(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Which events each event sees: itself and those before it in its segment."""
    length = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    return same & jnp.tril(jnp.ones((length, length), bool))


def segment_positions(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Each event's position within its segment; segments are contiguous."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    first = jnp.diff(segments, axis=1, prepend=-1) != 0
    return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)
