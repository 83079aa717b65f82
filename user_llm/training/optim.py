"""The optimizer of every stage."""

import optax

from user_llm.config import OptimConfig


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm, its rate by the schedule over `steps`."""
    if config.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0 if config.warmup_steps else config.learning_rate,
            config.learning_rate,
            config.warmup_steps,
            max(steps, config.warmup_steps + 1),
            end_value=config.learning_rate / 20,
        )
    else:
        rate = optax.warmup_constant_schedule(
            0.0 if config.warmup_steps else config.learning_rate,
            config.learning_rate,
            config.warmup_steps,
        )
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate, config.beta1, config.beta2, weight_decay=config.weight_decay),
    )
