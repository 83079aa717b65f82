"""The optimizer: its rate at every step, its clip, its decay."""

import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from user_llm.config import OptimConfig
from user_llm.training.optim import learning_rate, make_optimizer

PEAK = 0.4


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax raises floats to integer powers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def rates(steps: int, **fields) -> list[float]:
    rate = learning_rate(OptimConfig(learning_rate=PEAK, **fields), steps)
    return [float(rate(jnp.int32(step))) for step in range(steps + 3)]


def cosine(share: float) -> float:
    """From the peak to a twentieth of it."""
    return PEAK * (0.05 + 0.95 * (1 + math.cos(math.pi * min(share, 1.0))) / 2)


def test_a_constant_rate_is_reached_in_a_straight_line():
    assert rates(4) == pytest.approx([PEAK] * 7)
    assert rates(6, warmup_steps=4) == pytest.approx([0, 0.1, 0.2, 0.3, *[PEAK] * 5])


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_cosine_ends_at_a_twentieth_and_stays_there(warmup):
    line = [PEAK * step / 3 for step in range(warmup)]
    curve = [cosine(step / (10 - warmup)) for step in range(13 - warmup)]
    found = rates(10, schedule="cosine", warmup_steps=warmup)
    assert found == pytest.approx(line + curve, rel=1e-5)
    assert found[-3:] == pytest.approx([PEAK / 20] * 3)


def test_a_stage_shorter_than_its_warm_up_has_rates_all_the_same():
    assert rates(2, schedule="cosine", warmup_steps=5) == pytest.approx([0, 0.08, 0.16, 0.24, 0.32])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_no_warm_up_is_nothing_to_complain_of(schedule, caplog):
    with caplog.at_level(logging.INFO):
        make_optimizer(OptimConfig(schedule=schedule), 0)
        make_optimizer(OptimConfig(schedule=schedule), 10)
    assert not caplog.records


def test_gradients_are_clipped_by_the_norm_of_all_of_them():
    """Beyond the clip, their length no longer matters; AdamW itself would forget it at step one."""
    config = OptimConfig(learning_rate=0.1, clip=5.0)
    tx, params = make_optimizer(config, 10), {"a": jnp.zeros(1), "b": jnp.zeros(1)}

    def move(*scales: float) -> np.ndarray:
        state, moved = tx.init(params), params
        for scale in scales:
            grads = {"a": jnp.full(1, 3.0 * scale), "b": jnp.full(1, 4.0 * scale)}
            updates, state = tx.update(grads, state, moved)
            moved = optax.apply_updates(moved, updates)
        return np.concatenate([moved["a"], moved["b"]])

    np.testing.assert_allclose(move(1.0, 100.0), move(1.0, 1.0), rtol=1e-5)
    assert abs(move(1.0, 0.1) - move(1.0, 1.0)).min() > 1e-2


def test_weights_decay_apart_from_their_gradients():
    config = OptimConfig(learning_rate=0.1, weight_decay=0.5)
    tx, params = make_optimizer(config, 10), {"a": jnp.array([2.0, -4.0])}
    updates, _ = tx.update({"a": jnp.zeros(2)}, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.1, 0.2], rtol=1e-6)


def test_encoders_move_by_their_share():
    params = {"streams": {"persona": {"text_encoder": {"w": jnp.ones(3)}, "gain": jnp.ones(3)}}}
    grads = jax.tree.map(lambda x: jnp.arange(1.0, 4.0) * x, params)

    def moved(**options):
        tx = make_optimizer(OptimConfig(weight_decay=0.5, **options), 10)
        return tx.update(grads, tx.init(params), params)[0]["streams"]["persona"]

    whole, slowed = moved(), moved(encoder_rate=0.25)
    np.testing.assert_array_equal(slowed["gain"], whole["gain"])
    np.testing.assert_allclose(slowed["text_encoder"]["w"], whole["text_encoder"]["w"] / 4)
    assert (np.asarray(whole["text_encoder"]["w"]) != 0).all()
