"""The step on one device and on eight: the same losses, everything split, nothing made twice."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems_made import CASES

from user_llm.config import OptimConfig
from user_llm.sharding import batch_sharding
from user_llm.training.loop import make_train_step, placement, setup
from user_llm.training.optim import make_optimizer

TX = make_optimizer(OptimConfig(), steps=20)
SHAPES = ("8x1x1", "1x8x1", "1x1x8", "2x2x2", "4x2x1", "2x1x4", "1x2x4", "1x4x2")
QUICK = (
    ("2x2x2", "autoregressive"),
    ("2x2x2", "dual_tall"),
    ("1x8x1", "bert4rec_tall"),
    ("2x2x2", "full"),
    ("1x2x4", "lanes"),
)
STEPS = 20


def random_state(abstract, norms):
    """The same start on every mesh, without a compilation: parameters random, moments zero.

    Norms do about nothing, as at a real start: of larger ones a step amplifies what is rounded.
    """
    rng = np.random.default_rng(0)

    def draw(path, x):
        keys = [getattr(part, "key", "") for part in path]
        parameter = path[0].name in ("trained", "frozen", "average")
        around = (norms if "decoder" in keys else 1.0) if keys[-1] == "weight" else 0.0
        if not jnp.issubdtype(x.dtype, jnp.floating):  # of what is known of items
            values = rng.integers(0, 2, x.shape) * parameter
        else:
            values = rng.normal(around, 0.2, x.shape) if parameter else np.zeros(x.shape)
        return jax.device_put(values.astype(x.dtype), x.sharding)

    return jax.tree.map_with_path(draw, abstract)


def train(case, mesh):
    """The losses of twenty steps, and the state after them."""
    average = 0.9 if case.startswith("autoregressive") else 0.0
    make_model, loss, moved, batch, norms = CASES[case]
    graphdef, abstract, _ = setup(make_model, TX, moved, mesh, averaged=average > 0)
    state, key = random_state(abstract, norms), jax.random.key(0)
    train_step = make_train_step(graphdef, loss, TX, abstract, average=average)
    batch, found = jax.device_put(batch, batch_sharding(mesh)), []
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
    """The losses on one device, by case; each is trained there once."""
    found = {}

    def losses(case):
        if case not in found:
            found[case], _ = train(case, mesh())
        assert min(found[case]) < found[case][0]
        return found[case]

    return losses


def moments(state):
    leaves = jax.tree.leaves(state.opt, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    return next(x for x in leaves if isinstance(x, optax.ScaleByAdamState))


def share(tree):
    """The share of a tree's bytes that the first device holds."""
    leaves = jax.tree.leaves(tree)
    return sum(x.addressable_shards[0].data.nbytes for x in leaves) / sum(x.nbytes for x in leaves)


def whole(tree):
    """The shapes of the leaves that every device holds whole, by name."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(p): x.shape for p, x in leaves if x.sharding.is_fully_replicated}


def places(quick):
    everywhere = [(shape, case) for case in CASES for shape in SHAPES]
    return [place for place in everywhere if (place in QUICK) == quick]


def check(shape, case, single, mesh, capfd):
    found, state = train(case, mesh(*map(int, shape.split("x"))))
    assert "rematerialization" not in capfd.readouterr().err
    np.testing.assert_allclose(found, single(case), rtol=1e-4)
    adam = moments(state)
    for tree in (adam.mu, adam.nu):
        assert placement(tree) == placement(state.trained)
    _, fsdp, tensor = map(int, shape.split("x"))
    trees = {"trained": state.trained, "mu": adam.mu, "nu": adam.nu}
    trees |= {"frozen": state.frozen, "average": state.average}
    for name, tree in trees.items():
        if jax.tree.leaves(tree):  # at most a quarter of it is held whole, such as norms
            split = 1 / (fsdp * tensor)
            assert share(tree) <= split + 0.25 * (1 - split), (name, share(tree), whole(tree))


@pytest.mark.parametrize(("shape", "case"), places(quick=True))
def test_losses_are_the_same_on_any_mesh_and_the_state_is_split(shape, case, single, mesh, capfd):
    check(shape, case, single, mesh, capfd)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "case"), places(quick=False))
def test_every_system_trains_alike_on_every_mesh(shape, case, single, mesh, capfd):
    check(shape, case, single, mesh, capfd)


def test_a_split_start_is_that_of_one_device(mesh):
    """Whatever the mesh, `init` draws the same parameters, each straight to its devices."""
    make_model, _, moved, *_ = CASES["autoregressive"]
    states = []
    for grid in (mesh(), mesh(2, 2, 2)):
        _, abstract, init = setup(make_model, TX, moved, grid)
        states.append(init(jax.random.key(3)))
        assert placement(states[-1]) == placement(abstract)
    for one, split in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, split, rtol=1e-6, atol=1e-7)
    assert share(states[1].trained) < 0.45
