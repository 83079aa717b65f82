"""HSTU: pointwise attention that counts instead of comparing, biased by position and time."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from user_llm.config import EVENT_TIME, QUERY_TIME, EncoderConfig
from user_llm.models.attention import KVCache
from user_llm.models.encoders.base import Encoder, EventCache, apart, causal_mask
from user_llm.models.layers import LayerNorm, Linear, dropout, rematerialized
from user_llm.sharding import axes, constrain

BUCKETS = 128  # of logarithmic time
STEP = 0.301  # natural logs a bucket, as published


class HSTULayer(nnx.Module):
    """x + f2(norm(A V) * U), A = silu(Q K + bias) / window (arXiv 2402.17152, section 3.2)."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.heads, self.window, self.dropout = config.heads, config.window, config.dropout
        self.input_norm = LayerNorm(config.embed, affine=False)
        self.attn_norm = LayerNorm(config.embed, affine=False)
        self.uvqk_proj = Linear(config.embed, 4 * config.embed, ("embed", "heads"), rngs=rngs)
        self.o_proj = Linear(config.embed, config.embed, ("heads", "embed"), rngs=rngs, bias=True)
        position = init(rngs.params(), (config.window,))
        self.position_bias = nnx.Param(position, **axes(None))
        time = init(rngs.params(), (BUCKETS + 1,)) if config.time_bias else None
        self.time_bias = None if time is None else nnx.Param(time, **axes(None))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T S"],
        distances: Int[Array, "*B T S"],
        buckets: Int[Array, "B T S"] | None,
        *,
        cache: KVCache | None = None,
        positions: Int[Array, "B T"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """The layer's output, and its keys and values.

        Args:
          distances: how many events each key lies before each query.
          buckets: of the time between them.
          cache: of earlier events, which the new ones join at their `positions`.
        """
        u, v, q, k = jnp.split(jax.nn.silu(self.uvqk_proj(self.input_norm(x))), 4, axis=-1)
        q, k, v = (rearrange(y, "b t (n h) -> b n t h", n=self.heads) for y in (q, k, v))
        if cache is None or positions is None:
            cache = KVCache(k, v)
        else:
            k, v = (rearrange(y, "b n t h -> b t n h") for y in (k, v))
            cache = cache.write(k, v, positions)
        bias = self.position_bias[...][distances]
        if self.time_bias is not None and buckets is not None:
            bias = bias + self.time_bias[...][buckets]
        scores = jnp.einsum("bnth,bnsh->bnts", q, cache.keys) + jnp.expand_dims(
            bias.astype(x.dtype), -3
        )
        weights = jnp.where(mask[:, None], jax.nn.silu(scores) / self.window, 0)
        y = jnp.einsum("bnts,bnsh->bnth", weights, cache.values)
        y = self.attn_norm(rearrange(y, "b n t h -> b t (n h)")) * u
        x += self.o_proj(dropout(y, self.dropout, key))
        return constrain(x, "batch", None, None), cache


class HSTUEncoder(Encoder):
    """A stack of HSTU layers over events.

    With `config.time_bias`, a query knows how long ago each event was: before itself, or with
    `config.query_time` before the event that it is to predict.
    """

    def build(self, rngs: nnx.Rngs) -> None:
        make_layer = jax.vmap(lambda rngs: HSTULayer(self.config, rngs=rngs))
        self.layers = make_layer(rngs.split(self.config.layers))  # [L, ...]

    def __call__(
        self,
        events: dict[str, Array],
        segments: Int[Array, "B T"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        x, keys = self.inputs(events, key)
        index = jnp.arange(segments.shape[1])
        distances = jnp.clip(index[:, None] - index, 0, self.config.window - 1)
        buckets = self._buckets(events, events.get(EVENT_TIME))

        @rematerialized
        def layer(x, layer_and_key):
            layer, key = layer_and_key
            # The mask is made anew in each layer: of all that a layer reads it is the largest.
            return layer(x, causal_mask(segments), distances, buckets, key=key)[0], None

        return jax.lax.scan(layer, x, (self.layers, keys))[0]

    def extend(
        self,
        events: dict[str, Array],
        positions: Int[Array, "B K"],
        cache: EventCache,
        blocks: Sequence[Any] = (),
    ) -> tuple[Float[Array, "B K D"], EventCache]:
        """As the base; with `query_time`, a user's last event is to come again before new ones.

        Only then is it known when the event after it was.
        """
        before = positions[..., None] - jnp.arange(self.config.window)
        mask, distances = before >= 0, jnp.clip(before, 0, self.config.window - 1)
        timestamps = cache.timestamps
        if self.config.time_bias:
            rows = jnp.arange(len(positions))[:, None]
            timestamps = timestamps.at[rows, positions].set(events[EVENT_TIME])
        buckets = self._buckets(events, timestamps)

        x, layers = self.embed(events), []
        blocks = blocks or apart(self.layers, self.config.layers)
        for block, kept in zip(blocks, cache.layers, strict=True):
            x, kept = block(x, mask, distances, buckets, cache=kept, positions=positions)
            layers.append(kept)
        return x, EventCache(layers, timestamps)

    def _buckets(self, events, timestamps):
        if not self.config.time_bias:
            return None
        now = events[QUERY_TIME if self.config.query_time else EVENT_TIME]
        return time_buckets(now[:, :, None] - timestamps[:, None])


def time_buckets(seconds: Int[Array, "..."]) -> Int[Array, "..."]:
    """Buckets of the logarithm of times, from 0 for a second or less to BUCKETS."""
    logs = jnp.log(jnp.maximum(jnp.abs(seconds), 1).astype(jnp.float32)) / STEP
    return jnp.clip(logs.astype(jnp.int32), 0, BUCKETS)
