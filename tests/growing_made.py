"""Followers of users: by case a data set, a model of random parameters, and what follows users."""

from functools import partial

import models_made
import numpy as np
from flax import nnx
from test_recommend import made

from user_llm.config import SystemConfig
from user_llm.models.user_llm import UserLLM
from user_llm.serving.growing import Growing

WINDOW = 6
SYSTEM = SystemConfig(perceiver=models_made.PERCEIVER, cross_attention=models_made.CROSS)
SOFT = SYSTEM.model_copy(update={"fusion": "soft_prompt"})
EVENTS = SYSTEM.model_copy(
    update={"perceiver": models_made.PERCEIVER.model_copy(update={"latents": 0})}
)
CASES = {
    "crossed": (SYSTEM, {}),
    "soft prompt": (SOFT, {"content": ("genres", "price")}),
    "every event": (EVENTS, {"kind": "hstu", "time_bias": True, "query_time": False}),
    "query time": (SYSTEM, {"kind": "hstu", "time_bias": True, "query_time": True}),
}


def follower(case: str):
    """A data set, a model of random parameters, and what follows its users."""
    system, changes = CASES[case]
    data, _, _ = made("hstu")
    config = models_made.ENCODER.model_copy(update={"window": WINDOW} | changes)
    content = {"trained": np.arange(len(data.items.ids)) % 5 > 0, **data.items.features}
    make = partial(UserLLM, system, models_made.DECODER, config, data.inputs, content)
    model = models_made.random_model(make)
    params = nnx.to_pure_dict(nnx.state(model))
    return data, model, Growing(data, make, params, window=WINDOW)


def drawn(rng, count: int) -> list[dict]:
    """Raw events in the order of their times, some at once, of items of which some are strange."""
    times = np.cumsum(rng.integers(0, 4, count) * 10 ** rng.integers(0, 6, count)).tolist()
    return [
        {"item": f"{rng.integers(16)}", "timestamp": time, "rating": float(rng.integers(1, 6))}
        for time in times
    ]
