"""A batch gone through in parts: the step of the whole, and no second look at the model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models_made import CROSS, DECODER, ENCODER, FEATURES, PERCEIVER, random_batch

from user_llm.config import ObjectiveConfig, OptimConfig, StageConfig, SystemConfig
from user_llm.models.encoders import ENCODERS, AutoregressiveEncoder
from user_llm.models.user_llm import UserLLM, trained
from user_llm.sharding import batch_sharding
from user_llm.training import losses
from user_llm.training.step import Lesson, make_train_step, setup

STILL = ENCODER.model_copy(update={"dropout": 0.0})  # what is drawn is drawn for each part
SYSTEM = SystemConfig(cross_attention=CROSS, perceiver=PERCEIVER, strategy="encoder")
LENGTHS = (6, 2, 0, 6, 5, 1, 3, 6)  # of which every second part has less to tell
FAR = ObjectiveConfig(next_k=2, weights={"rating": 0.3})
LESSONS = {
    "encoder": (partial(AutoregressiveEncoder, STILL, FEATURES), losses.next_event, nnx.Param),
    "next_few": (
        partial(ENCODERS["dual"], STILL.model_copy(update={"kind": "dual"}), FEATURES),
        partial(losses.encoder_loss, objective=FAR),
        nnx.Param,
    ),
    "user_llm": (
        partial(UserLLM, SYSTEM, DECODER, STILL, FEATURES),
        losses.answer,
        trained(SYSTEM),
    ),
}


def uneven(batch):
    """Answers of other lengths in every row, one of none."""
    lengths = np.arange(len(batch["tokens"])) % 4
    places = np.arange(batch["tokens"].shape[1])[::-1]
    return batch | {"weights": (places < lengths[:, None]).astype(np.float32)}


def stepped(name, mesh, parts):
    make, loss, moved = LESSONS[name]
    tx = optax.sgd(1.0)
    graphdef, abstract, init = setup(make, tx, moved, mesh)
    step = make_train_step(graphdef, loss, tx, abstract, accumulate=parts)
    batch = jax.device_put(uneven(random_batch(0, LENGTHS)), batch_sharding(mesh))
    with jax.set_mesh(mesh):
        return step(init(jax.random.key(0)), batch, jax.random.key(1))


SLOW = pytest.param("user_llm", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["encoder", "next_few", SLOW])
def lesson(request, mesh):
    """A lesson's name, and the step of its whole batch."""
    return request.param, stepped(request.param, mesh(1, 1, 1), 1)


@pytest.mark.parametrize(("shape", "parts"), [((1, 1, 1), 4), ((2, 1, 2), 2)])
def test_parts_make_the_step_of_the_whole_batch(lesson, shape, parts, mesh):
    name, (whole, wanted) = lesson
    state, metrics = stepped(name, mesh(*shape), parts)
    assert metrics.keys() == wanted.keys() and "counts" not in metrics
    for figure in wanted:
        np.testing.assert_allclose(metrics[figure], wanted[figure], rtol=2e-6, err_msg=figure)
    # A rate of 1 makes of the parameters the first ones less the gradient.
    for found, given in zip(*map(jax.tree.leaves, (state.trained, whole.trained)), strict=True):
        np.testing.assert_allclose(found, given, atol=1e-5 * np.abs(given).max())


def test_what_counts_is_counted_without_the_model(mesh):
    make, loss, moved = LESSONS["user_llm"]
    tx = optax.sgd(1.0)
    graphdef, abstract, _ = setup(make, tx, moved, mesh())

    def operations(rows, parts):
        batch = jax.eval_shape(lambda: uneven(random_batch(0, (6,) * rows)))
        step = make_train_step(graphdef, loss, tx, abstract, accumulate=parts)
        with jax.set_mesh(mesh()):
            made = step.lower(abstract, batch, jax.eval_shape(jax.random.key, 0)).compile()
        return made.cost_analysis()["flops"]  # of which a loop's are those of one turn

    assert operations(8, 2) < 1.05 * operations(4, 1)


def test_gradients_of_narrow_weights_add_up_in_float32(mesh):
    make, loss, _ = LESSONS["user_llm"]
    narrow = DECODER.model_copy(update={"param_dtype": "bfloat16"})
    make = partial(UserLLM, SYSTEM, narrow, STILL, FEATURES)
    graphdef, abstract, init = setup(make, optax.sgd(1.0), nnx.Param, mesh())
    step = make_train_step(graphdef, loss, optax.sgd(1.0), abstract, accumulate=2)
    with jax.set_mesh(mesh()):
        state, _ = step(init(jax.random.key(0)), random_batch(0, LENGTHS), jax.random.key(1))
    assert state.trained["decoder"]["embed_tokens"].dtype == jnp.bfloat16


def test_a_batch_that_cannot_be_cut_is_refused(mesh):
    with pytest.raises(ValueError, match="batch_size=8 must be a multiple of accumulate=3"):
        StageConfig(batch_size=8, accumulate=3)
    make, loss, moved = LESSONS["user_llm"]
    config = StageConfig(batch_size=8, accumulate=2, optim=OptimConfig())
    lesson = Lesson(config=config, make_model=make, loss=loss, trained=moved)
    with pytest.raises(ValueError, match="batch_size=8 must be a multiple of .* = 2 x 8"):
        lesson.compose(mesh(8))
