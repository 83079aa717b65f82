"""Harmful steps are known by their loss, as a plain statement of the rule says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.training.health import LEAST, RECENT, Health


def judged(losses, norms=None):
    """Which steps are good, and what is remembered after all of them."""
    check = jax.jit(lambda health, loss, norm: health.check(loss, norm))
    health, good = Health.fresh(), []
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        fine, health = check(health, jnp.float32(loss), jnp.float32(norm))
        good.append(bool(fine))
    return good, health


def stated(losses):
    """The same in float64: a loss beyond six deviations of the good ones before is a spike."""
    mean = variance = 0.0
    count, good = 0, []
    for loss in losses:
        deviation = max(variance**0.5, LEAST * abs(mean))
        fine = np.isfinite(loss) and not (count >= RECENT and loss > mean + 6 * deviation)
        good.append(bool(fine))
        if fine:
            share = 1 / min(count + 1, RECENT)
            mean, variance = (
                mean + share * (loss - mean),
                (1 - share) * (variance + share * (loss - mean) ** 2),
            )
            count += 1
    return good, mean, variance


def test_steps_are_judged_as_the_rule_says_and_bad_ones_are_not_remembered():
    rng = np.random.default_rng(0)
    losses = 3 * np.exp(-np.arange(400) / 200) + rng.normal(0, 0.1, 400)
    losses[[150, 151, 300]] += 5
    losses[[20, 350]] = np.nan, np.inf
    good, health = judged(losses)
    wanted, mean, variance = stated(losses)
    assert good == wanted
    assert [step for step, fine in enumerate(good) if not fine] == [20, 150, 151, 300, 350]
    np.testing.assert_allclose([health.mean, health.variance], [mean, variance], rtol=1e-3)
    assert (int(health.good), int(health.skipped)) == (395, 0)


def test_the_first_hundred_losses_may_be_anything_finite():
    losses = [*range(1, RECENT), 1e6]
    assert judged(losses)[0] == [True] * len(losses)


def test_a_loss_that_hardly_varies_may_rise_a_little():
    flat = [2.0] * 200
    assert judged([*flat, 2.0 * (1 + 5 * LEAST)])[0][-1]
    assert not judged([*flat, 2.0 * (1 + 7 * LEAST)])[0][-1]


@pytest.mark.parametrize("norm", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_harmful(norm):
    good, health = judged([1.0, 1.0, 1.0], [1.0, norm, norm])
    assert good == [True, False, False]
    assert int(health.skipped) == 2
