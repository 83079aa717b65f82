"""Gradients of a batch too large to go through at once: of one part of it after the other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from user_llm.sharding import constrain
from user_llm.training.losses import COUNTS


def accumulated(
    measure: Callable, parts: int, places: Any, trained: dict, batch: dict, key: jax.Array
) -> tuple[tuple[jax.Array, dict], dict]:
    """What `jax.value_and_grad(measure, has_aux=True)` gives, of one part of the batch at a time.

    What a loss draws is drawn for each part anew.

    Args:
      places: where the gradients lie.
    """
    cut = jax.tree.map(partial(by_parts, parts=parts), batch), jax.random.split(key, parts)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, part)

    def placed(gradient, place):
        return jax.lax.with_sharding_constraint(gradient.astype(jnp.float32), place)

    # How much counts in all is known before any gradient; XLA leaves the model out of this loop.
    def count(sums, part):
        return add(sums, measure(trained, *part)[1][COUNTS]), None

    def learn(sums, part):
        grad = jax.value_and_grad(partial(measure, of=counts), has_aux=True)
        found, by_trained = grad(trained, *part)
        wide = jax.tree.map(placed, by_trained, places)
        return add(sums, (found, wide)), None

    first = jax.tree.map(lambda x: x[0], cut)
    empty = partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype))
    found = empty(jax.eval_shape(measure, trained, *first))
    counts, _ = jax.lax.scan(count, found[1][COUNTS], cut)
    grads = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), trained)
    (found, grads), _ = jax.lax.scan(learn, (found, grads), cut)
    return found, jax.tree.map(lambda g, p: g.astype(p.dtype), grads, trained)


def by_parts(x: jax.Array, parts: int) -> jax.Array:
    """Every `parts`th row in one part, so that each device has its rows of each part already."""
    cut = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
    return constrain(cut, None, "batch", *(None,) * (x.ndim - 1))
