"""Learned latents that attend to a long stream and stand for it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from user_llm.config import PerceiverConfig
from user_llm.models.attention import Attention, attention_weights
from user_llm.models.layers import MLP, Memory, RMSNorm
from user_llm.sharding import axes


class PerceiverLayer(nnx.Module):
    """Latents attend to the stream and to each other, then think."""

    def __init__(self, config: PerceiverConfig, width: int, *, rngs: nnx.Rngs):
        self.stream_norm, self.latent_norm = RMSNorm(width), RMSNorm(width)
        self.attn = Attention(width, config.heads, rngs=rngs)
        self.mlp_norm, self.mlp = RMSNorm(width), MLP(width, 2 * width, rngs=rngs)

    def __call__(self, latents, stream, mask):  # [B, M, D], [B, T, D], [B, 1, T + M]
        x, context = self._inputs(latents, stream)
        latents += self.attn(x, mask, context=context)[0]
        return latents + self.mlp(self.mlp_norm(latents))

    def weights(self, latents, stream, mask):  # -> [B, M, T + M], the mean over heads
        x, context = self._inputs(latents, stream)
        keys = self.attn.keys_values(context)[0].swapaxes(1, 2)
        return attention_weights(self.attn.queries(x), keys, mask).mean((1, 2))

    def _inputs(self, latents, stream):
        x = self.latent_norm(latents)
        return x, jnp.concatenate([self.stream_norm(stream), x], axis=1)


class Perceiver(nnx.Module):
    """[B, T, D] in, [B, M, D] out, after Flamingo's resampler (arXiv 2204.14198, section 2.1).

    Latents see each other beside the stream, so an empty stream still gives a memory: the one of a
    user of whom nothing is known.

    Raises:
      ValueError: `config.heads` does not divide the width.
    """

    def __init__(self, config: PerceiverConfig, width: int, *, rngs: nnx.Rngs):
        if width % config.heads:
            raise ValueError(f"perceiver.heads={config.heads} must divide its width {width}")
        init = nnx.initializers.normal(0.5)
        self.latents = nnx.Param(
            init(rngs.params(), (config.latents, width)), **axes(None, "embed")
        )
        self.layers = jax.vmap(lambda rngs: PerceiverLayer(config, width, rngs=rngs))(
            rngs.split(config.layers)
        )
        self.norm = RMSNorm(width)

    def __call__(self, stream: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Memory:
        latents, seen = self._start(stream, mask)
        latents, _ = jax.lax.scan(
            lambda x, layer: (layer(x, stream, seen), None), latents, self.layers
        )
        return Memory(self.norm(latents), jnp.ones(latents.shape[:2], bool))

    def weights(
        self, stream: Float[Array, "B T D"], mask: Bool[Array, "B T"]
    ) -> Float[Array, "B M T"]:
        """What share of its look at the stream each latent gave to each token, over the layers."""
        latents, seen = self._start(stream, mask)

        def layer(x, layer):
            return layer(x, stream, seen), layer.weights(x, stream, seen)

        _, weights = jax.lax.scan(layer, latents, self.layers)  # [L, B, M, T + M]
        weights = weights.mean(0)[..., : stream.shape[1]]
        return weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-9)

    def _start(self, stream, mask):
        latents = self.latents[...].astype(stream.dtype)
        latents = jnp.broadcast_to(latents, (stream.shape[0], *latents.shape))
        own = jnp.ones(latents.shape[:2], bool)
        return latents, jnp.concatenate([mask, own], axis=1)[:, None]
