"""Where an imported decoder first departs from the one that it was imported from."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from user_llm.models.decoder import Decoder


def hidden_states(decoder: Decoder, tokens: Int[Array, "B T"]) -> list[Float[Array, "B T D"]]:
    """The embeddings, what comes out of each layer, and of the last one normalised.

    As transformers' `output_hidden_states=True` has them.
    """
    single: Any = decoder.unstacked()
    views = single.views(np.arange(tokens.shape[1])[None])
    states = [single.embed(tokens)]
    for block, slides in zip(single.layers, single.config.slides, strict=True):
        states.append(block(states[-1], *views.of(slides))[0])
    return [*states[:-1], single.norm(states[-1])]


def first_difference(
    decoder: Decoder,
    tokens: Int[np.ndarray, "B T"],
    theirs: Sequence[Float[np.ndarray, "B T D"]],
    tolerance: float = 2e-5,
) -> str | None:
    """The first part whose output departs from `theirs`, and by how much; None if none does.

    Args:
      theirs: the `hidden_states` of transformers for the same tokens.
      tolerance: allowed of a value, and of its size.

    Raises:
      ValueError: there is not one state for each layer, and one before them.
    """
    layers = decoder.config.num_hidden_layers
    if len(theirs) != layers + 1:
        raise ValueError(f"{len(theirs)} hidden states for {layers} layers; give {layers + 1}")
    names = ["embed_tokens", *(f"layers.{i}" for i in range(layers))]
    names[-1] += " or norm"
    ours = jax.jit(hidden_states)(decoder, jnp.asarray(tokens))
    for name, x, y in zip(names, ours, theirs, strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        if not np.allclose(x, y, tolerance, tolerance):
            return f"{name}: differs by up to {np.abs(x - y).max():.2g}"
    return None
