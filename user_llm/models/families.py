"""The families of decoders, as data: what is theirs and does not stand in their `config.json`."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jaxtyping import Array

from user_llm.config import ModelType


class Family(NamedTuple):
    """How a family's blocks differ from Llama's (arXiv 2302.13971)."""

    qkv_bias: bool = False
    qk_norm: bool = False  # each head's queries and keys are normalised before they turn
    post_norms: bool = False  # what attention and MLP add is normalised too
    norm_offset: float = 0.0  # a norm scales by this and its weight
    scaled_embeddings: bool = False  # by the root of their width
    activation: Callable[[Array], Array] = jax.nn.silu


LLAMA = Family()
GEMMA2 = Family(
    post_norms=True,
    norm_offset=1.0,
    scaled_embeddings=True,
    activation=partial(jax.nn.gelu, approximate=True),
)
FAMILIES: dict[ModelType, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2._replace(qk_norm=True),
}
