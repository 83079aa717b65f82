"""The step on one device and on eight: the same losses, everything split, nothing made twice."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from models_made import CROSS, DECODER, ENCODER, FEATURES, PERCEIVER, random_batch

from user_llm.config import ObjectiveConfig, OptimConfig, SystemConfig
from user_llm.models.encoders import ENCODERS, AutoregressiveEncoder
from user_llm.models.user_llm import UserLLM, trained
from user_llm.sharding import batch_sharding
from user_llm.training import losses
from user_llm.training.loop import make_train_step, placement, setup
from user_llm.training.optim import make_optimizer

# Sizes that eight divides, so that whatever may be split is split.
WIDE = ENCODER.model_copy(update={"embed": 16, "mlp": 32, "heads": 4, "feature_embed": 8})
ITEMS = tuple(
    f if f.kind == "vector" else f.model_copy(update={"size": 16 * -(-f.size // 16)})
    for f in FEATURES
)
SYSTEM = SystemConfig(cross_attention=CROSS, perceiver=PERCEIVER, strategy="encoder")


def encoder(kind, objective, **options):
    config = ObjectiveConfig(kind=objective, **options)
    loss = partial(losses.encoder_loss, objective=config)
    config = WIDE.model_copy(update={"kind": kind, "gated": True})
    return partial(ENCODERS[kind], config, ITEMS), loss, nnx.Param


CASES = {
    "encoder": (partial(AutoregressiveEncoder, WIDE, ITEMS), losses.next_event, nnx.Param),
    "hstu": encoder("hstu", "sampled_softmax", negatives=8, shared=False),
    "bert4rec": encoder("bert4rec", "gbce", negatives=8),
    "dual": encoder("dual", "in_batch"),
    "user_llm": (partial(UserLLM, SYSTEM, DECODER, WIDE, ITEMS), losses.answer, trained(SYSTEM)),
}
TX = make_optimizer(OptimConfig(learning_rate=1e-2), steps=10)
BATCH = random_batch(0, (6, 2, 0, 6, 5, 1, 3, 6))
SHAPES = {"8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2), "1x1x8": (1, 1, 8)}
STEPS = 4


def random_state(abstract):
    """The same start on every mesh, without a compilation: parameters random, moments zero."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        parameter = path[0].name in ("trained", "frozen", "average")
        around = 1.0 if getattr(path[-1], "key", "") == "weight" else 0.0
        values = rng.normal(around, 0.2, x.shape) if parameter else np.zeros(x.shape)
        return jax.device_put(values.astype(x.dtype), x.sharding)

    return jax.tree.map_with_path(draw, abstract)


def train(case, mesh):
    """The losses of a few steps, and the state after them."""
    make_model, loss, moved = CASES[case]
    average = 0.9 if case == "encoder" else 0.0
    graphdef, abstract, _ = setup(make_model, TX, moved, mesh, averaged=average > 0)
    state, key = random_state(abstract), jax.random.key(0)
    train_step = make_train_step(graphdef, loss, TX, abstract, average=average)
    batch, found = jax.device_put(BATCH, batch_sharding(mesh)), []
    with jax.set_mesh(mesh):
        for _ in range(STEPS):
            before = jax.tree.leaves(state)
            state, metrics = train_step(state, batch, key)
            found.append(float(metrics["loss"]))
            assert all(x.is_deleted() for x in before), "the old state is not donated"
    assert train_step._cache_size() == 1, "the step was compiled more than once"
    assert placement(state) == placement(abstract)
    return found, state


@pytest.fixture(scope="module")
def single(mesh):
    """The losses on one device."""
    found = {}
    for case in CASES:
        found[case], _ = train(case, mesh())
        assert found[case][-1] < found[case][0]
    return found


def moments(state):
    leaves = jax.tree.leaves(state.opt, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    return next(x for x in leaves if isinstance(x, optax.ScaleByAdamState))


def share(tree):
    """The share of a tree's bytes that the first device holds."""
    leaves = jax.tree.leaves(tree)
    return sum(x.addressable_shards[0].data.nbytes for x in leaves) / sum(x.nbytes for x in leaves)


EVERYWHERE = [(shape, case) for shape in SHAPES for case in ("encoder", "user_llm")]
OTHERS = [("2x2x2", case) for case in ("hstu", "bert4rec", "dual")]


@pytest.mark.parametrize(("shape", "case"), EVERYWHERE + OTHERS)
def test_losses_are_the_same_on_any_mesh_and_the_state_is_split(shape, case, single, mesh, capfd):
    found, state = train(case, mesh(*SHAPES[shape]))
    np.testing.assert_allclose(found, single[case], rtol=2e-4)
    assert "rematerialization" not in capfd.readouterr().err
    adam = moments(state)
    for tree in (adam.mu, adam.nu):
        assert placement(tree) == placement(state.trained)
    if shape == "8x1x1":
        assert share(state) == 1
    else:
        further = filter(jax.tree.leaves, [state.frozen, state.average])
        for tree in (state.trained, adam.mu, adam.nu, *further):
            assert share(tree) < 0.45, share(tree)


def test_a_split_start_is_that_of_one_device(mesh):
    """Whatever the mesh, `init` draws the same parameters, each straight to its devices."""
    make_model, _, moved = CASES["encoder"]
    states = []
    for grid in (mesh(), mesh(2, 2, 2)):
        _, abstract, init = setup(make_model, TX, moved, grid)
        states.append(init(jax.random.key(3)))
        assert placement(states[-1]) == placement(abstract)
    for one, split in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, split, rtol=1e-6, atol=1e-7)
    assert share(states[1].trained) < 0.45
