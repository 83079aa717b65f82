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
from user_llm.training.loop import make_train_step, setup
from user_llm.training.losses import encoder_loss
from user_llm.training.optim import make_optimizer

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


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 1, 8), (2, 2, 2), (4, 2, 1)], ids=str)
@pytest.mark.parametrize(
    ("kind", "objective"), [("autoregressive", "sampled_softmax"), ("bert4rec", "gbce")]
)
def test_ten_million_items_are_never_in_one_place(kind, objective, shape, mesh):
    step = compiled(kind, objective, ROWS, mesh(*shape))
    found = travelling(step.as_text())
    assert found, "nothing is communicated"
    looked_up = (2 * BATCH * EVENTS + NEGATIVES) * (ENCODER.embed + 1)
    assert max(found) <= looked_up < ROWS // 100
    parts = shape[1] * shape[2]
    table = 4 * ROWS * (ENCODER.embed + (kind == "bert4rec")) // parts  # bytes of a device
    memory = step.memory_analysis()
    print(memory.temp_size_in_bytes / table, memory.argument_size_in_bytes / table)
    assert memory.temp_size_in_bytes < 3 * table
