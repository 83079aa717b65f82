"""What training keeps of a layer: the same losses and gradients, by more memory or more work."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_made import CROSS, DECODER, ENCODER, FEATURES, PERCEIVER, random_batch, random_model

from user_llm.config import SystemConfig
from user_llm.launch.memory import kept
from user_llm.models.user_llm import UserLLM
from user_llm.training import losses

SYSTEM = SystemConfig(cross_attention=CROSS, perceiver=PERCEIVER)
BATCH = jax.tree.map(jnp.asarray, random_batch(0, (6, 2, 3, 6)))
POLICIES = ("full", "dots", "none")


def measured(policy):
    """The loss and its gradient as a function of parameters, and these."""
    decoder = DECODER.model_copy(update={"remat": policy})
    model = random_model(partial(UserLLM, SYSTEM, decoder, ENCODER, FEATURES))
    graphdef, state = nnx.split(model)

    def loss(params):
        return losses.answer(nnx.merge(graphdef, params), BATCH, jax.random.key(0))[0]

    return jax.value_and_grad(loss), nnx.to_pure_dict(state)


@pytest.fixture(scope="module")
def plain():
    learn, params = measured("full")
    return jax.jit(learn)(params)


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_losses_and_gradients_are_the_same(policy, plain):
    learn, params = measured(policy)
    loss, gradient = jax.jit(learn)(params)
    np.testing.assert_allclose(loss, plain[0], rtol=1e-6)
    for found, given in zip(*map(jax.tree.leaves, (gradient, plain[1])), strict=True):
        np.testing.assert_allclose(found, given, atol=1e-6 * float(jnp.abs(given).max()) + 1e-9)


def test_each_policy_keeps_more_than_the_one_before():
    sizes = []
    for policy in POLICIES:
        learn, params = measured(policy)
        arrays = kept(jax.make_jaxpr(learn)(params).jaxpr)
        sizes.append(sum(x.size * x.dtype.itemsize for x in arrays))
    assert 0 < sizes[0] < sizes[1] < sizes[2]
