"""Systems trained for some steps from the same start on any mesh; here too as one of two processes.

`python systems_trained.py OUT 2x2x2 CASE ...` writes the losses of those systems.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from systems_made import CASES

from user_llm import processes
from user_llm.config import MeshConfig, OptimConfig
from user_llm.sharding import batch_sharding, make_mesh
from user_llm.training.optim import make_optimizer
from user_llm.training.step import make_train_step, placement, setup

STEPS = 20
TX = make_optimizer(OptimConfig(), STEPS)


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
        return put(values.astype(x.dtype), x.sharding)

    return jax.tree.map_with_path(draw, abstract)


def put(x, sharding):
    """An array that every process has whole, where each device gets its part of it."""
    return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])


def train(case, mesh):
    """The losses of twenty steps, and the state after them."""
    average = 0.9 if case.startswith("autoregressive") else 0.0
    make_model, loss, moved, batch, norms = CASES[case]
    graphdef, abstract, _ = setup(make_model, TX, moved, mesh, averaged=average > 0)
    state, key = random_state(abstract, norms), jax.random.key(0)
    train_step = make_train_step(graphdef, loss, TX, abstract, average=average)
    batch, found = jax.tree.map(lambda x: put(x, batch_sharding(mesh)), batch), []
    with jax.set_mesh(mesh):
        for _ in range(STEPS):
            before = jax.tree.leaves(state)
            state, metrics = train_step(state, batch, key)
            found.append(float(metrics["loss"]))
            assert all(x.is_deleted() for x in before), "the old state is not donated"
    assert train_step._cache_size() == 1, "the step was compiled more than once"
    assert placement(state) == placement(abstract)
    return found, state


if __name__ == "__main__":
    out, shape = Path(sys.argv[1]), map(int, sys.argv[2].split("x"))
    processes.join()
    grid = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), shape, strict=True))))
    found = {case: train(case, grid)[0] for case in sys.argv[3:]}
    if jax.process_index() == 0:
        out.write_text(json.dumps(found))
