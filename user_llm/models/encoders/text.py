"""A text encoder of BERT's family: tokens to one vector a text."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from user_llm.config import TextEncoderConfig
from user_llm.models.blocks import BertBlock, gelu
from user_llm.models.encoders.base import unit
from user_llm.models.layers import LayerNorm, dropout, rematerialized
from user_llm.sharding import axes, constrain

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class TextEncoder(nnx.Module):
    """BERT (arXiv 1810.04805) as sentence encoders use it (arXiv 1908.10084, section 3).

    BGE, GTE, E5 and MiniLM are of this kind; they differ in sizes, pooling and in the instruction
    that their queries begin with.
    """

    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs, dropout: float = 0.0):
        self.config, self.dropout, width = config, dropout, config.hidden_size
        init = nnx.initializers.normal(0.02)

        def table(size: int, *names: str | None) -> nnx.Param:
            return nnx.Param(init(rngs.params(), (size, width)), **axes(*names))

        self.words = table(config.vocab_size, "vocab", "embed")
        self.positions = table(config.max_position_embeddings, None, "embed")
        self.types = table(config.type_vocab_size, None, "embed")
        self.norm = LayerNorm(width, config.layer_norm_eps)

        def block(rngs):
            return BertBlock(
                width,
                config.num_attention_heads,
                config.intermediate_size,
                eps=config.layer_norm_eps,
                dropout=dropout,
                activation=ACTIVATIONS[config.hidden_act],
                rngs=rngs,
            )

        self.layers = jax.vmap(block)(rngs.split(config.num_hidden_layers))  # [L, ...]

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """The last hidden states of texts, whose padding the mask leaves out."""
        dtype = jnp.dtype(self.config.dtype)
        keys = None if key is None else jax.random.split(key, self.config.num_hidden_layers + 1)
        words = constrain(self.words[...], "vocab", None)[tokens]
        there = constrain(self.positions[...], None, None)[: tokens.shape[1]]
        x = self.norm(words + there + constrain(self.types[...], None, None)[0]).astype(dtype)
        x = dropout(
            constrain(x, "batch", None, None), self.dropout, None if keys is None else keys[0]
        )

        @rematerialized
        def layer(x, block_and_key):
            block, key = block_and_key
            return block(x, mask[:, None], key=key), None

        return jax.lax.scan(layer, x, (self.layers, None if keys is None else keys[1:]))[0]

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B D"]:
        """A vector a text, in float32; of a row without a token it means nothing, but is finite."""
        states = self.hidden(tokens, mask, key=key).astype(jnp.float32)
        if self.config.pooling == "cls":
            x = states[:, 0]
        else:
            shown = mask[..., None].astype(jnp.float32)
            x = (states * shown).sum(1) / jnp.maximum(shown.sum(1), 1)
        return unit(x) if self.config.normalize else x
