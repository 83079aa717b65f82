"""Steps that would do harm: known by their loss, passed over, and counted."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

SIGMAS = 6.0  # above the mean of recent losses, a loss is a spike
LEAST = 0.01  # of the mean's size, what counts as their standard deviation at least
RECENT = 100  # good steps that are judged by, as many as must have been before any is a spike

Tree = TypeVar("Tree")


class Health(NamedTuple):
    """What is remembered of good steps, and how many bad ones came since the last of them."""

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    good: Int[Array, ""]
    skipped: Int[Array, ""]

    @staticmethod
    def fresh() -> "Health":
        """Before the first step."""
        zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        return Health(zero, zero, none, none)

    def check(
        self, loss: Float[Array, ""], norm: Float[Array, ""]
    ) -> tuple[Bool[Array, ""], "Health"]:
        """Whether a step may be taken, by its loss and its gradient's norm, and what is known then.

        It may not where either is not finite, or where the loss is a spike: more than six standard
        deviations above the running mean of the good steps before.
        """
        loss = loss.astype(jnp.float32)
        deviation = jnp.maximum(jnp.sqrt(self.variance), LEAST * jnp.abs(self.mean))
        spike = (self.good >= RECENT) & (loss > self.mean + SIGMAS * deviation)
        good = jnp.isfinite(loss) & jnp.isfinite(norm) & ~spike
        share = 1 / jnp.minimum(self.good + 1, RECENT).astype(jnp.float32)
        away = loss - self.mean
        seen = Health(
            mean=self.mean + share * away,
            variance=(1 - share) * (self.variance + share * away**2),
            good=self.good + 1,
            skipped=jnp.zeros_like(self.skipped),
        )
        return good, chosen(good, seen, self._replace(skipped=self.skipped + 1))


def chosen(good: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """The new tree where a step was good, else the old one."""
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), new, old)
