"""One stage of training: the order of operations around its compiled step.

For every step: take the batch, step, and then, where due, in this order: log, validate, save, stop.
Whatever is validated or saved is logged before. Too many steps in a row that would do harm end the
run where they are logged.
"""

import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from user_llm.config import StageConfig
from user_llm.files import AnyPath
from user_llm.training import goodput
from user_llm.training.checkpoint import Best, Checkpoints
from user_llm.training.profiler import Profiler
from user_llm.training.step import Lesson, Params, TrainState, graft
from user_llm.training.tracking import Tracker
from user_llm.training.watchdog import Watchdog

logger = logging.getLogger(__name__)

PREEMPTED = 42  # the exit code that says: saved, start me again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(Lesson):
    """A lesson, and what it is learned from."""

    batches: Callable[[int], Iterator[dict]]  # from a step on, placed on the mesh
    given: Callable[[Params], Params] | None = None  # random parameters -> those that replace some
    validate: Callable[[Params], dict[str, float]] | None = None  # its first figure is the score


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
