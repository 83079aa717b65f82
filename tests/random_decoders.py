"""Decoders with weights drawn by numpy, which takes no compilation."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from user_llm.config import DecoderConfig
from user_llm.models.decoder import Decoder

# All that families do beyond Llama at once: norms of heads and behind, capped scores and logits,
# layers that see the last few tokens alone, and turn their heads by other angles.
PECULIAR = {
    "model_type": "gemma3_text",
    "layer_types": ("sliding_attention", "full_attention"),
    "sliding_window": 5,
    "rope_local_base_freq": 50.0,
    "query_pre_attn_scalar": 13,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}


def random_decoder(config: DecoderConfig, **parts) -> Decoder:
    """All parameters random, those included that start at zero or one."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), **parts)))
    rng = np.random.default_rng(0)

    def draw(path, x):
        around = 1.0 if path[-1].key == "weight" else 0.0
        return jnp.asarray(rng.normal(around, 0.15, x.shape), x.dtype)

    return nnx.merge(graphdef, jax.tree.map_with_path(draw, nnx.to_pure_dict(state)))
