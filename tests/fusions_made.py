"""A tiny system by how it fuses what it knows of its users, and a batch of three of them."""

from functools import partial

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from models_made import CROSS, DECODER, ENCODER, FEATURES, PERCEIVER, random_batch

from user_llm.config import SystemConfig
from user_llm.models.user_llm import UserLLM

CROSSED = SystemConfig(cross_attention=CROSS, perceiver=PERCEIVER)
SOFT = CROSSED.model_copy(update={"fusion": "soft_prompt"})
PLAIN = CROSSED.model_copy(update={"streams": ()})
NAMED = CROSSED.model_copy(update={"item_tokens": True})
BATCH = random_batch(0, (6, 2, 0))

logits = jax.jit(lambda model, batch: model(batch))


def make(system, decoder=DECODER):
    return partial(UserLLM, system, decoder, ENCODER, FEATURES)


def changed(system, **update):
    return system.model_copy(update=update)


def with_decoder_of(model, other):
    """The model with every parameter of the other's decoder that it has too."""
    flat = flatten_dict(nnx.to_pure_dict(nnx.state(model)))
    given = flatten_dict(nnx.to_pure_dict(nnx.state(other)))
    flat = {k: given[k] if k[0] == "decoder" and k in given else v for k, v in flat.items()}
    return nnx.merge(nnx.graphdef(model), unflatten_dict(flat))
