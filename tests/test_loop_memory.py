"""What a compiled step holds: a float32 state in place, and never all logits at once."""

import math
import re
from functools import partial

import jax
import pytest
from models_made import CROSS, DECODER, PERCEIVER
from systems_made import ITEMS, WIDE

from user_llm.config import OptimConfig, SystemConfig
from user_llm.models.user_llm import UserLLM, trained
from user_llm.sharding import batch_sharding
from user_llm.training import losses
from user_llm.training.optim import make_optimizer
from user_llm.training.step import make_train_step, setup

BATCH, TOKENS, VOCAB, EVENTS = 64, 513, 1536, 6
SYSTEM = SystemConfig(cross_attention=CROSS, perceiver=PERCEIVER)
HALF = {"dtype": "bfloat16"}
DECODER = DECODER.model_copy(
    update=HALF | {"vocab_size": VOCAB, "max_position_embeddings": 2 * TOKENS}
)


@pytest.fixture(scope="module", params=[(1, 1, 1), (2, 2, 2)], ids=str)
def step(request, mesh):
    """The shape of a mesh, the abstract state on it, and a step lowered for it."""
    grid, tx = mesh(*request.param), make_optimizer(OptimConfig(), steps=10)
    make = partial(UserLLM, SYSTEM, DECODER, WIDE.model_copy(update=HALF), ITEMS[:1])
    graphdef, abstract, _ = setup(make, tx, trained(SYSTEM), grid)
    train_step = make_train_step(graphdef, losses.answer, tx, abstract)

    def column(length, dtype):
        sharding = batch_sharding(grid)
        return jax.ShapeDtypeStruct((BATCH, length), dtype, sharding=sharding)

    batch = {
        "events": {"item": column(EVENTS, "int32")},
        "segments": column(EVENTS, "int32"),
        "tokens": column(TOKENS, "int32"),
        "weights": column(TOKENS, "float32"),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(grid):
        return request.param, abstract, train_step.lower(abstract, batch, key)


@pytest.fixture(scope="module")
def compiled(step):
    return step[2].compile()


def test_parameters_and_moments_are_float32_and_products_bfloat16(step):
    _, abstract, lowered = step
    floats = {x.dtype.name for x in jax.tree.leaves(abstract) if "float" in x.dtype.name}
    assert floats == {"float32"}
    factors = re.findall(r"dot_general.* : \(tensor<(.+?)>, tensor<(.+?)>\) -> ", lowered.as_text())
    kernels = [pair for pair in factors if max(x.count("x") for x in pair) == 2]
    assert len(kernels) > 20
    assert all(x.endswith("bf16") for pair in kernels for x in pair), kernels


def test_the_whole_state_is_updated_in_place(step, compiled):
    _, abstract, _ = step
    leaves = jax.tree.leaves(abstract)
    parts = [math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves]
    assert compiled.memory_analysis().alias_size_in_bytes == sum(parts)
    (aliases,) = re.findall(r"input_output_alias=\{(.*?) \}", compiled.as_text())
    assert aliases.count("-alias)") == len(leaves)


def test_logits_of_a_whole_batch_never_exist(step, compiled):
    (data, fsdp, tensor), _, _ = step
    words = VOCAB // tensor  # that a device scores
    found = {
        tuple(map(int, shape.split(",")))
        for shape in re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
    }
    logits = [shape for shape in found if words in shape or VOCAB in shape]
    whole = BATCH // (data * fsdp) * (TOKENS - 1) * words
    chunk = max(map(math.prod, logits))
    assert 1000 * words < chunk <= whole // 3
