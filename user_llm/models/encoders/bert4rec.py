"""BERT4Rec: a Transformer that reads a timeline both ways and guesses its masked events."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from user_llm.models.blocks import BertBlock, gelu
from user_llm.models.encoders.base import Encoder, same_segment, segment_positions
from user_llm.models.layers import Linear, dropout, rematerialized
from user_llm.sharding import axes, constrain, look_up


class BERT4RecEncoder(Encoder):
    """arXiv 1904.06690, section 3, with as many features an event as there are.

    A state at a masked event says what the event was, and so a mask behind the last one what comes
    next. The similarity is the paper's own: a projection's dot product with items, and a bias.
    """

    causal = False

    def build(self, rngs: nnx.Rngs) -> None:
        config = self.config
        init, width = nnx.initializers.normal(0.02), config.embed
        self.mask = nnx.Param(init(rngs.params(), (width,)), **axes("embed"))
        # One more than the window, for the mask behind it.
        positions = init(rngs.params(), (config.window + 1, width))
        self.positions = nnx.Param(positions, **axes(None, "embed"))

        def block(rngs):
            dropout = config.dropout
            return BertBlock(width, config.heads, config.mlp, dropout=dropout, rngs=rngs)

        self.layers = jax.vmap(block)(rngs.split(config.layers))
        self.out_proj = Linear(width, width, ("embed", None), rngs=rngs, bias=True)
        self.item_bias = nnx.Param(jnp.zeros(self.features[0].size), **axes("vocab"))

    def __call__(
        self,
        events: dict[str, Array],
        segments: Int[Array, "B T"],
        *,
        key: Key[Array, ""] | None = None,
        masked: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """As the base; of the events that are `masked` nothing but their place is seen."""
        keys = None if key is None else jax.random.split(key, self.config.layers + 1)
        x = self.embed(events, key=key)
        if masked is not None:
            x = jnp.where(masked[..., None], self.mask[...].astype(x.dtype), x)
        table = constrain(self.positions[...], None, None)
        x += table[segment_positions(segments)].astype(x.dtype)
        x = dropout(x, self.config.dropout, None if keys is None else keys[0])
        mask = same_segment(segments)

        @rematerialized
        def layer(x, block_and_key):
            block, key = block_and_key
            return block(x, mask, key=key), None

        return jax.lax.scan(layer, x, (self.layers, None if keys is None else keys[1:]))[0]

    def ask(self, events: dict[str, Array], segments: Int[Array, "B T"]) -> Float[Array, "B D"]:
        there = segments > 0
        end = there.sum(1)  # where the mask goes: behind the last event
        wide = {n: jnp.pad(x, [(0, i == 1) for i in range(x.ndim)]) for n, x in events.items()}
        masked = jnp.arange(segments.shape[1] + 1) == end[:, None]
        states = self(
            wide, (jnp.pad(there, ((0, 0), (0, 1))) | masked).astype(jnp.int32), masked=masked
        )
        return jnp.take_along_axis(states, end[:, None, None], axis=1)[:, 0]

    def queries(self, states: Float[Array, "... D"]) -> Float[Array, "... Q"]:
        x = gelu(self.out_proj(states.astype(jnp.float32)))
        return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)

    def item_vectors(
        self, key: Key[Array, ""] | None = None, ids: Int[Array, "..."] | None = None
    ) -> Float[Array, "... Q"]:
        items = self.embedding.items(key, ids).astype(jnp.float32)
        bias = self.item_bias[...]
        bias = bias if ids is None else look_up(bias, ids)
        return jnp.concatenate([items, bias[..., None]], axis=-1)
