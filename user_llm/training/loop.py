"""One stage of training: its state, its compiled step, and the order of operations around it.

For every step: take the batch, step, and then, where due, in this order: log, validate, save, stop.
Whatever is validated or saved is logged before. A step that would do harm changes nothing but the
count of such steps (see `health`); too many of them in a row end the run where they are logged.
"""

import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx, traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from user_llm.config import StageConfig
from user_llm.files import AnyPath
from user_llm.sharding import shardings
from user_llm.training import goodput
from user_llm.training.accumulate import accumulated
from user_llm.training.checkpoint import Best, Checkpoints
from user_llm.training.health import Health
from user_llm.training.losses import COUNTS
from user_llm.training.optim import make_optimizer
from user_llm.training.profiler import Profiler
from user_llm.training.tracking import Tracker
from user_llm.training.watchdog import Watchdog

logger = logging.getLogger(__name__)

PREEMPTED = 42  # the exit code that says: saved, start me again

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(Lesson):
    """A lesson, and what it is learned from."""

    batches: Callable[[int], Iterator[dict]]  # from a step on, placed on the mesh
    given: Callable[[Params], Params] | None = None  # random parameters -> those that replace some
    validate: Callable[[Params], dict[str, float]] | None = None  # its first figure is the score


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


class Preemption:
    """Notes a SIGTERM, so that the loop can save before it goes.

    Of several processes each may get its own, at another time, or only one; JAX tells them all at
    which step they have heard of it.
    """

    def __enter__(self):
        self._noted, self._alone = False, jax.process_count() == 1
        if self._alone:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def asked(self, step: int) -> bool:
        """Whether to go after this step; to be asked after every one."""
        return self._noted if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def _note(self, *_):
        self._noted = True

    def __exit__(self, *_):
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)


def fit(
    stage: Stage,
    *,
    folder: AnyPath,
    mesh: Mesh,
    seed: int,
    config: dict,
    name: str = "train",
    profiled: range = range(0),
) -> Params:
    """Trains a stage to its end, from its last checkpoint where there is one.

    Args:
      profiled: the steps that are traced into `folder/profile`, as TensorBoard and XProf read it.

    Returns:
      The parameters of the best validation, or the last ones where nothing is validated.

    Raises:
      FloatingPointError: more steps in a row than `skips` would have done harm; names the first.
      OSError: the last checkpoint could not be written. Before it, such a failure is only logged.
      SystemExit: with code 42 after a SIGTERM, once the state is saved.
    """
    began = time.monotonic()
    cfg, (train_step, abstract, init) = stage.config, stage.compose(mesh)
    checkpoints = Checkpoints(folder / "checkpoints", keep=cfg.keep, keep_every=cfg.keep_every)
    restored = checkpoints.restore(abstract)
    state = restored.state if restored else start(stage, init, seed)
    step = restored.step if restored else 0
    best = checkpoints.best(until=step)
    if not over(cfg, step, best):
        key, batches, meter = jax.random.key(seed), stage.batches(step), Meter(cfg.skips)
        stop = False
        tracker = Tracker(folder, total=cfg.steps, step=step, name=name)
        clock, doing = tracker.clock, "compile"
        clock.add("initialise", time.monotonic() - began)
        watchdog, profiler = Watchdog(cfg.stuck_after, folder), Profiler(folder, profiled)
        preemption = Preemption()
        with jax.set_mesh(mesh), preemption, tracker, checkpoints, watchdog, profiler:
            while not over(cfg, step, best):
                watchdog.beat()
                with clock.spend("data"):
                    batch = next(batches)
                with clock.spend(doing):
                    state, metrics = train_step(state, batch, key)
                step, doing = step + 1, "step"
                meter.add(step, metrics)
                profiler.after(step, metrics)
                stop = preemption.asked(step)
                save = stop or step == cfg.steps or step % cfg.checkpoint_every == 0
                validate = stage.validate if validates(cfg, step) else None
                if save or validate or step % cfg.log_every == 0:
                    with clock.spend("step"):
                        means = meter.flush()
                    tracker.log(step, means)
                figures, improved = {}, False
                if validate:
                    watchdog.beat()
                    with clock.spend("validate"):
                        figures = validate(state.params)
                    tracker.log(step, figures)
                    meter.restart()  # the rates are those of training alone
                    improved = best is None or score(figures) > score(best.metrics)
                    best = Best(step, figures) if improved else best
                if save or improved or over(cfg, step, best):
                    watchdog.beat()
                    with clock.spend("checkpoint"):
                        tracker.publish()
                        checkpoints.save(step, state, config=config, metrics=figures, best=improved)
                if stop:
                    break
            with clock.spend("checkpoint"):
                checkpoints.wait()
        logger.info("%s: %s", name, goodput.told(clock.seconds))
        if stop:
            raise SystemExit(PREEMPTED)
    if best and best.step != step and (restored := checkpoints.restore(abstract, best=True)):
        state = restored.state
    return state.params


def start(stage: Stage, init: Callable, seed: int) -> TrainState:
    """The state before the first step: random, but for the parameters that are given."""
    state = init(jax.random.key(seed))
    if stage.given is None:
        return state
    given = stage.given(state.params)
    trained, frozen = graft(state.trained, given), graft(state.frozen, given)
    average = jax.tree.map(jnp.copy, trained) if state.average else {}
    return state._replace(trained=trained, frozen=frozen, average=average)


def score(figures: dict[str, float]) -> float:
    """What the best checkpoint has most of: the first figure of a validation."""
    return next(iter(figures.values()))


def validates(config: StageConfig, step: int) -> bool:
    """Whether a stage is validated after this step: every so often, and at its end."""
    every = config.validate_every
    return every > 0 and (step % every == 0 or step == config.steps)


def over(config: StageConfig, step: int, best: Best | None) -> bool:
    """Whether all steps are done, or `patience` validations have passed since the best one."""
    patience = config.patience * config.validate_every
    return step >= config.steps or (best is not None and 0 < patience <= step - best.step)


class Meter:
    """Collects the metrics of steps; they stay on the device until they are asked for.

    Args:
      skips: harmful steps in a row that are put up with.
    """

    def __init__(self, skips: int):
        self._skips = skips
        self.restart()

    def restart(self) -> None:
        """Forgets what it has collected, and when that began."""
        self._pending, self._started = [], time.monotonic()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._pending.append((step, metrics))

    def flush(self) -> dict[str, float]:
        """The means since the last time, and how many events and tokens there were a second.

        Steps that were skipped are in none of them but in `skipped`, which counts them.

        Raises:
          FloatingPointError: too many were skipped in a row.
        """
        steps, rows = zip(*jax.device_get(self._pending), strict=True)
        for step, row in zip(steps, rows, strict=True):
            if (count := int(row["skipped"])) > self._skips:
                raise FloatingPointError(
                    f"the loss is {row['loss']} at step {step}, the norm of its gradient "
                    f"{row['grad_norm']}, which would do harm as did the {count - 1} steps before "
                    f"it; nothing has been learned since step {step - count}. Lower "
                    "optim.learning_rate or optim.clip, then run again to resume before it"
                )
        seconds = time.monotonic() - self._started
        self.restart()
        good = [row for row in rows if not row["skipped"]]
        told = {"skipped": float(len(rows) - len(good))} if len(good) < len(rows) else {}
        if not good:
            return told
        sums = {name: float(sum(row[name] for row in good)) for name in good[0]}
        del sums["skipped"]
        counted = [name for name in ("events", "tokens") if name in sums]
        rates = {f"{name}_per_second": sums.pop(name) / seconds for name in counted}
        return {name: total / len(good) for name, total in sums.items()} | rates | told
