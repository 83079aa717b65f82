"""The step on one device and on eight: the same losses, everything split, nothing made twice.

Every system trains on the mesh of all axes and on one other, each of these with systems of several
kinds; `USER_LLM_MESHES=all` trains every system on every mesh.
"""

import json
import os
import sys
from itertools import cycle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import systems_trained
from jobs_made import Job
from systems_made import CASES
from systems_trained import TX, train

from user_llm.training.step import placement, setup

WHOLE = "2x2x2"
SHAPES = ("8x1x1", "1x8x1", "1x1x8", "4x2x1", "2x1x4", "1x2x4", "1x4x2")
QUICK = (("2x2x2", "autoregressive"), ("2x2x2", "dual_tall"), ("2x1x4", "dep"))
APART = ("bert4rec_tall", "streams")  # in two processes


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


def places():
    """Where each system trains, but for the quick ones."""
    every = os.environ.get("USER_LLM_MESHES") == "all"
    shapes = {case: SHAPES if every else (one,) for case, one in zip(CASES, cycle(SHAPES))}
    found = [(shape, case) for case in CASES for shape in (WHOLE, *shapes[case])]
    return [place for place in found if place not in QUICK]


def check(shape, case, single, mesh, capfd):
    found, state = train(case, mesh(*map(int, shape.split("x"))))
    assert "rematerialization" not in capfd.readouterr().err
    np.testing.assert_allclose(found, single(case), rtol=1e-4)
    adam = moments(state)
    for tree in (adam.mu, adam.nu):
        assert placement(tree) == placement(state.trained)
    _, fsdp, tensor = map(int, shape.split("x"))
    trees = {"trained": state.trained, "mu": adam.mu, "nu": adam.nu}
    # What is known of items has no columns to split.
    weights = [x for x in jax.tree.leaves(state.frozen) if jnp.issubdtype(x.dtype, jnp.floating)]
    trees |= {"frozen": weights, "average": state.average}
    for name, tree in trees.items():
        if jax.tree.leaves(tree):  # at most a quarter of it is held whole, such as norms
            split = 1 / (fsdp * tensor)
            assert share(tree) <= split + 0.25 * (1 - split), (name, share(tree), whole(tree))


@pytest.mark.parametrize(("shape", "case"), QUICK)
def test_losses_are_the_same_on_any_mesh_and_the_state_is_split(shape, case, single, mesh, capfd):
    check(shape, case, single, mesh, capfd)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "case"), places())
def test_every_system_trains_alike_on_meshes(shape, case, single, mesh, capfd):
    check(shape, case, single, mesh, capfd)


@pytest.mark.slow
def test_systems_train_alike_in_two_processes(single, tmp_path):
    out = tmp_path / "losses.json"
    command = [sys.executable, systems_trained.__file__, str(out), WHOLE, *APART]
    job = Job(command, count=2, devices=8)
    for code, said in job.end():
        assert code == 0, said
        assert "rematerialization" not in said
    found = json.loads(out.read_text())
    assert [*found] == [*APART]
    for case, losses in found.items():
        np.testing.assert_allclose(losses, single(case), rtol=1e-4, err_msg=case)


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
