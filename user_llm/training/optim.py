"""The optimizer of every stage."""

from typing import Any

import jax
import optax

from user_llm.config import OptimConfig

FLOOR = 1 / 20  # of the peak rate, where a cosine ends
ENCODERS = ("encoder", "text_encoder")  # what streams call them, which come trained


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm, its rate by the schedule over `steps`."""
    rate = learning_rate(config, steps)
    parts = [
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate, config.beta1, config.beta2, weight_decay=config.weight_decay),
    ]
    if config.encoder_rate != 1:
        parts.append(optax.stateless(lambda updates, params: slowed(updates, config.encoder_rate)))
    return optax.chain(*parts)


def slowed(updates: Any, share: float) -> Any:
    """The updates of parameters, those of encoders by that share."""

    def scale(path: tuple, update: jax.Array) -> jax.Array:
        names = {getattr(key, "key", None) for key in path}
        return update * share if names.intersection(ENCODERS) else update

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
