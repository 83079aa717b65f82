"""One step of training: the state that it changes, and how it is compiled for a mesh.

A step that would do harm changes nothing but the count of such steps (see `health`).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx, traverse_util
from jax.sharding import Mesh

from user_llm.config import StageConfig
from user_llm.sharding import shardings
from user_llm.training.accumulate import accumulated
from user_llm.training.health import Health
from user_llm.training.losses import COUNTS
from user_llm.training.optim import make_optimizer

# For what runs once on a CPU: optimized, it takes three times as long to compile.
HASTY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

Params = dict[str, Any]  # nested dicts of arrays
# (model, batch, key) to the loss and metrics; also with `of`, see `losses`.
Loss = Callable[..., tuple[jax.Array, dict[str, Any]]]


class TrainState(NamedTuple):
    """All that a step changes, and the parameters that it reads."""

    step: jax.Array
    trained: Params  # what the optimizer moves
    frozen: Params
    opt: optax.OptState
    average: Params  # a running mean of `trained`, or empty
    health: Health

    @property
    def params(self) -> Params:
        """All parameters in one tree, those that are trained by their running mean if there is."""
        return merge(self.average or self.trained, self.frozen)


TrainStep = Callable[[TrainState, dict, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
Init = Callable[[jax.Array], TrainState]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesson:
    """What is trained, towards what: all that a step is made of."""

    config: StageConfig
    make_model: Callable[..., nnx.Module]  # called with rngs=
    loss: Loss
    trained: Any = nnx.Param  # the filter of the parameters that move

    def compose(self, mesh: Mesh) -> tuple[TrainStep, TrainState, Init]:
        """The step, the abstract state that it works on, and a sharded init.

        Raises:
          ValueError: the mesh cannot split a batch evenly, or as `setup`.
        """
        config, optim = self.config, self.config.optim
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        if config.batch_size % (config.accumulate * shards):
            raise ValueError(
                f"batch_size={config.batch_size} must be a multiple of accumulate x data x fsdp = "
                f"{config.accumulate} x {shards}"
            )
        tx = make_optimizer(optim, config.steps)
        averaged = optim.average > 0
        graphdef, abstract, init = setup(self.make_model, tx, self.trained, mesh, averaged=averaged)
        step = make_train_step(
            graphdef,
            self.loss,
            tx,
            abstract,
            average=optim.average,
            accumulate=config.accumulate,
        )
        return step, abstract, init


def merge(*trees: Params) -> Params:
    """Nested dicts with disjoint leaves as one."""
    flat = {}
    for tree in trees:
        flat |= flatten(tree)
    return traverse_util.unflatten_dict(flat)


def flatten(tree: Params) -> dict[tuple, Any]:
    """Leaves by path."""
    return traverse_util.flatten_dict(tree)


def graft(tree: Params, given: Params) -> Params:
    """The tree with the leaves that `given` has too taken from there, on the tree's devices.

    Raises:
      ValueError: naming every leaf whose shape differs.
    """
    flat, new = flatten(tree), flatten(given)
    wrong = [
        f"{'.'.join(map(str, k))}: {new[k].shape} given, {v.shape} wanted"
        for k, v in flat.items()
        if k in new and new[k].shape != v.shape
    ]
    if wrong:
        raise ValueError("parameters do not fit: " + "; ".join(wrong))
    placed = {
        k: jax.device_put(new[k].astype(v.dtype), v.sharding) if k in new else v
        for k, v in flat.items()
    }
    return traverse_util.unflatten_dict(placed)


def plain(tree: Any) -> Any:
    """States of Variables to dicts of arrays."""

    def is_state(x):
        return isinstance(x, nnx.State)

    return jax.tree.map(lambda x: nnx.to_pure_dict(x) if is_state(x) else x, tree, is_leaf=is_state)


def placement(abstract: Any) -> Any:
    """The shardings of an abstract tree."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def setup(
    make_model: Callable[..., nnx.Module],
    tx: optax.GradientTransformation,
    trained: Any,
    mesh: Mesh,
    *,
    averaged: bool = False,
) -> tuple[nnx.GraphDef, TrainState, Callable[[jax.Array], TrainState]]:
    """From a model's constructor: its graphdef, its abstract state on this mesh, a sharded init.

    The abstract state holds every shape, dtype and placement; init, restore and the step share it.

    Raises:
      ValueError: an average is kept of parameters whose steps its dtype rounds away.
    """

    def build(key):
        model = make_model(rngs=nnx.Rngs(key))
        _, moved, frozen = cast(tuple[Any, ...], nnx.split(model, trained, ...))
        mean = jax.tree.map(jnp.copy, moved) if averaged else {}
        first = jnp.zeros((), jnp.int32)
        return TrainState(first, moved, frozen, tx.init(moved), mean, Health.fresh())

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))
    state = jax.eval_shape(build, jax.random.key(0))  # of Variables: the moments keep their axes
    if narrow := {x.dtype.name for x in jax.tree.leaves(state.average)} - {"float32"}:
        raise ValueError(
            f"optim.average moves by less than {', '.join(narrow)} can tell; it needs "
            "parameters in float32"
        )
    abstract = plain(
        jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            state,
            shardings(state, mesh),
        )
    )
    init = jax.jit(
        lambda key: plain(build(key)),
        out_shardings=placement(abstract),
        compiler_options=HASTY if jax.default_backend() == "cpu" else None,
    )
    return graphdef, abstract, init


def make_train_step(
    graphdef: nnx.GraphDef,
    loss: Loss,
    tx: optax.GradientTransformation,
    abstract: TrainState,
    *,
    average: float = 0.0,
    accumulate: int = 1,
) -> TrainStep:
    """The compiled step: (state, batch, key) -> (state, metrics). The old state is donated.

    Args:
      average: the most that a running mean keeps of itself in a step; see `OptimConfig`.
      accumulate: parts of the batch whose gradients are made one after the other.
    """

    def mean(step, old, new):
        # At first less is kept, so that the random start is soon forgotten.
        kept = jnp.minimum(average, (1 + step) / (10 + step)).astype(new.dtype)
        return old * kept + new * (1 - kept)

    places, update = placement(abstract.trained), optax.with_extra_args_support(tx).update

    # Left free, XLA answers P() where P(None, None) was asked, and step two misses jit's cache.
    @partial(jax.jit, donate_argnames="state", out_shardings=(placement(abstract), None))
    def train_step(state: TrainState, batch: dict, key: jax.Array):
        def measure(trained, batch, key, **of):
            model = nnx.merge(graphdef, merge(trained, state.frozen))
            return loss(model, batch, key, **of)

        given = state.trained, batch, jax.random.fold_in(key, state.step)
        if accumulate == 1:
            (value, metrics), grads = jax.value_and_grad(measure, has_aux=True)(*given)
        else:
            (value, metrics), grads = accumulated(measure, accumulate, places, *given)
        metrics.pop(COUNTS, None)
        with jax.numpy_dtype_promotion("standard"):  # gradients may be of several types
            norm = optax.tree.norm(grads)
        good, health = state.health.check(value, norm)

        def move():
            with jax.numpy_dtype_promotion("standard"):  # and optax raises floats to integer powers
                updates, opt = update(grads, state.opt, state.trained, norm=norm)
            trained = cast(Params, optax.apply_updates(state.trained, updates))
            if not average:
                return trained, opt, state.average
            return trained, opt, jax.tree.map(partial(mean, state.step), state.average, trained)

        stay = state.trained, state.opt, state.average
        trained, opt, averaged = jax.lax.cond(good, move, lambda: stay)
        new = TrainState(state.step + 1, trained, state.frozen, opt, averaged, health)
        return new, metrics | {"loss": value, "grad_norm": norm, "skipped": health.skipped}

    return train_step
