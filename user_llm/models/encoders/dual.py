"""The dual encoder: one tower reads users, another items, and they meet in a dot product."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from user_llm.models.encoders.autoregressive import AutoregressiveEncoder
from user_llm.models.encoders.base import unit
from user_llm.models.layers import MLP, Linear


class DualEncoder(AutoregressiveEncoder):
    """User-LLM's baseline (arXiv 2402.13598, section 4); its paper leaves the towers open.

    The user tower is the autoregressive encoder and a projection; the item tower reads the items'
    own embeddings. Their cosine is the score, trained against the items of other users' rows.
    """

    def build(self, rngs: nnx.Rngs) -> None:
        super().build(rngs)
        config = self.config
        self.user_proj = Linear(config.embed, config.embed, ("embed", None), rngs=rngs, bias=True)
        self.item_tower = MLP(config.embed, config.mlp, rngs=rngs)

    def queries(self, states: Float[Array, "... D"]) -> Float[Array, "... Q"]:
        return unit(self.user_proj(states.astype(jnp.float32)))

    def item_vectors(
        self, key: Key[Array, ""] | None = None, ids: Int[Array, "..."] | None = None
    ) -> Float[Array, "... Q"]:
        items = self.embedding.items(key, ids).astype(jnp.float32) * self.embedding.scale
        return unit(items + self.item_tower(items)) / self.config.temperature
