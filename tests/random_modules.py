"""Modules with parameters drawn by numpy, which takes no compilation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def random_module(make: Callable[..., nnx.Module]) -> nnx.Module:
    """What `make` (called with rngs=) builds, all its parameters random."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, random_like(nnx.to_pure_dict(state)))


def random_like(abstract: Any) -> Any:
    """The same random numbers for the same shapes, each where its abstract leaf says."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        around = 1.0 if getattr(path[-1], "key", "") == "weight" else 0.0  # of a norm
        values = rng.normal(around, 0.2, x.shape).astype(x.dtype)
        return jnp.asarray(values) if x.sharding is None else jax.device_put(values, x.sharding)

    return jax.tree.map_with_path(draw, abstract)
