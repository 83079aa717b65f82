"""Tables of more items than a batch looks up stay split, by the compiled program of a step."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from models_made import ENCODER

from user_llm.config import FeatureConfig, ObjectiveConfig, OptimConfig
from user_llm.models.encoders import ENCODERS
from user_llm.sharding import batch_sharding
from user_llm.training.losses import encoder_loss
from user_llm.training.optim import make_optimizer
from user_llm.training.step import make_train_step, setup

ROWS = 10 * 2**20
BATCH, EVENTS, NEGATIVES = 32, 10, 64
COLLECTIVE = re.compile(
    r"= (.+?) (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


def compiled(kind, objective, rows, mesh):
    """The step of an encoder of so many items, compiled and never run."""
    features = (FeatureConfig(name="item", kind="categorical", size=rows, predicted=True),)
    config = ENCODER.model_copy(update={"kind": kind, "time_bias": False})
    tx = make_optimizer(OptimConfig(), steps=10)
    make_model = partial(ENCODERS[kind], config, features)
    graphdef, abstract, _ = setup(make_model, tx, nnx.Param, mesh)
    chosen = ObjectiveConfig(kind=objective, negatives=NEGATIVES)
    step = make_train_step(graphdef, partial(encoder_loss, objective=chosen), tx, abstract)
    ids = jax.ShapeDtypeStruct((BATCH, EVENTS), jnp.int32, sharding=batch_sharding(mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        return step.lower(abstract, {"events": {"item": ids}, "segments": ids}, key).compile()


def travelling(program):
    """How many numbers each collective of a program yields on a device."""
    shapes = [re.findall(r"\w\d+\[([\d,]*)\]", found) for found in COLLECTIVE.findall(program)]
    return [sum(math.prod(map(int, filter(None, x.split(",")))) for x in one) for one in shapes]


PLACES = [
    ("autoregressive", "sampled_softmax", (1, 8, 1), ROWS),
    ("autoregressive", "sampled_softmax", (1, 1, 8), ROWS),
    ("autoregressive", "sampled_softmax", (1, 1, 8), ROWS + 1),  # which nothing divides
    ("autoregressive", "sampled_softmax", (2, 2, 2), ROWS + 1),
    ("dual", "in_batch", (4, 2, 1), ROWS),
    ("bert4rec", "gbce", (2, 2, 2), ROWS),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "objective", "shape", "rows"), PLACES)
def test_ten_million_items_are_never_in_one_place(kind, objective, shape, rows, mesh, capfd):
    step = compiled(kind, objective, rows, mesh(*shape))
    assert "rematerialization" not in capfd.readouterr().err
    found = travelling(step.as_text())
    assert found, "nothing is communicated"
    assert max(found) < rows // 100, sorted(found)
    _, fsdp, tensor = shape
    table = 4 * rows * ENCODER.embed // (fsdp * tensor)  # bytes of a device
    state = 3 * table  # with its moments
    if kind == "bert4rec":
        state += 3 * 4 * rows // tensor  # its bias
    memory = step.memory_analysis()
    assert memory.alias_size_in_bytes < 1.01 * state
    assert memory.temp_size_in_bytes < 1.01 * state
