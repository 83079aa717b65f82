"""Runs whose systems nothing was trained for: exports ask of parameters but that they are some."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from runs_made import EXPERIMENT

from user_llm import trained
from user_llm.runs import Run


def random_params(make) -> dict:
    """Parameters such that all that is read shows in what is answered."""
    state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))))
    rng = np.random.default_rng(0)

    def draw(path, x):
        if x.dtype == bool:
            return jnp.asarray(rng.random(x.shape) < 0.7)
        around = 1.0 if path[-1].key == "weight" else 0.0
        return jnp.asarray(rng.normal(around, 0.3, x.shape), x.dtype)

    return jax.tree.map_with_path(draw, state)


def untrained(folder, monkeypatch, decoder=(), encoder=(), **system) -> Run:
    """The tiny run, but for these fields, with random parameters in place of trained ones."""
    own, model = EXPERIMENT, EXPERIMENT.language_model
    architecture = model.architecture.model_copy(update=dict(decoder))
    changes = {
        "system": own.system.model_copy(update=system),
        "encoder": own.encoder.model_copy(update=dict(encoder)),
        "language_model": model.model_copy(update={"architecture": architecture}),
    }
    run = Run(own.model_copy(update=changes), folder)

    def trained_system(run, name="user_llm"):
        return random_params(run.make_model(run.systems[name]))

    monkeypatch.setattr(trained, "system", trained_system)
    monkeypatch.setattr(trained, "encoder", lambda run: random_params(run.make_encoder))
    return run
