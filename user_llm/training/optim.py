"""The optimizer of every stage."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from user_llm.config import OptimConfig

FLOOR = 1 / 20  # of the peak rate, where a cosine ends
PRETRAINED = ("encoder", "text_encoder")  # what streams call them, which come trained


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm, its rate by the schedule over `steps`."""
    rate = learning_rate(config, steps)
    parts: list[optax.GradientTransformation] = [
        clipped(config.clip),
        optax.adamw(rate, config.beta1, config.beta2, weight_decay=config.weight_decay),
    ]
    if config.encoder_rate != 1:
        parts.append(optax.stateless(lambda updates, params: slowed(updates, config.encoder_rate)))
    return optax.chain(*parts)


def clipped(most: float) -> optax.GradientTransformationExtraArgs:
    """Scales updates to a global norm of at most `most`; their `norm` need not be told.

    `optax.clip_by_global_norm` divides each of them by it, and again where each is used.
    """

    def update(updates, state, params=None, *, norm=None, **_):
        norm = optax.tree.norm(updates) if norm is None else norm
        share = jnp.minimum(1.0, most / jnp.maximum(norm, 1e-30))
        return jax.tree.map(lambda x: x * share.astype(x.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def slowed(updates: Any, share: float) -> Any:
    """The updates of parameters, those of encoders by that share."""

    def scale(path: tuple, update: jax.Array) -> jax.Array:
        names = {getattr(key, "key", None) for key in path}
        return update * share if names.intersection(PRETRAINED) else update

    return jax.tree.map_with_path(scale, updates)


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """From 0 straight up to the peak, then constant or down a cosine that ends with `steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), FLOOR)
    else:
        rate = optax.constant_schedule(peak)
    if not warmup:
        return rate
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), rate], [warmup])
