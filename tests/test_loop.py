"""The loop on a model of one matrix: what is logged, validated, saved, and taken up again."""

import dataclasses
import logging
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import SingleDeviceSharding

from user_llm.config import OptimConfig, StageConfig
from user_llm.training import goodput, loop, tracking
from user_llm.training.checkpoint import Checkpoints
from user_llm.training.loop import Stage, fit
from user_llm.training.step import graft, merge

CONFIG = StageConfig(
    steps=12,
    batch_size=4,
    optim=OptimConfig(learning_rate=0.05),
    log_every=1,
    validate_every=3,
    checkpoint_every=2,
    skips=0,
)


class Matrix(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (32, 32)))


def loss(model, batch, key):
    """How far the kernel is from random matrices; not finite where the batch says so."""
    x = batch["x"] + jax.random.uniform(key, batch["x"].shape)
    distance = jnp.square(model.kernel[...] - x).sum()
    length = jnp.sqrt(batch["one"] * jnp.square(model.kernel[...]).sum())
    return distance + 1e-6 * length, {"events": jnp.ones(())}


def batches(steps, before=None):
    """Batches that depend on the step alone; `before(step)` is called ahead of the step's."""

    def start(done):
        for step in range(done + 1, steps + 1):
            one = before(step) if before else None
            x = np.random.default_rng(step).uniform(size=(32, 32)).astype(np.float32)
            yield {"x": jnp.array(x), "one": jnp.float32(1.0 if one is None else one)}

    return start


def stage(before=None, validate=None, **changes):
    config = CONFIG.model_copy(update=changes)
    return Stage(
        config=config,
        make_model=Matrix,
        loss=loss,
        batches=batches(config.steps, before),
        validate=validate or nearness,
    )


def nearness(params):
    """Rises throughout the training."""
    return {"score": -float(jnp.square(params["kernel"] - 1.0).sum()), "other": 0.0}


def run(made, folder, mesh):
    return np.asarray(fit(made, folder=folder, mesh=mesh(), seed=0, config={"name": "t"})["kernel"])


def figures(folder):
    """All that was logged, but for the times."""
    times = ("seconds", "events_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in tracking.read(folder)]


def saved(folder):
    return Checkpoints(folder / "checkpoints")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, mesh):
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(stage(), folder, mesh), figures(folder)


def test_logs_each_step_then_its_validation(undisturbed):
    _, rows = undisturbed
    assert [(row["step"], "score" in row) for row in rows if row["step"] in (2, 3)] == [
        (2, False),
        (3, False),
        (3, True),
    ]
    assert {*rows[0]} == {"step", "loss", "grad_norm"}
    scores = [row["score"] for row in rows if "score" in row]
    assert scores == sorted(scores)
    assert len(scores) == 4


def test_logs_the_mean_over_the_steps_since_the_last_time(undisturbed, tmp_path, mesh):
    run(stage(log_every=5, checkpoint_every=100, validate_every=0), tmp_path, mesh)
    single = [row["loss"] for row in undisturbed[1] if "loss" in row]
    means = {row["step"]: row["loss"] for row in figures(tmp_path)}
    assert means == pytest.approx(
        {5: np.mean(single[:5]), 10: np.mean(single[5:10]), 12: np.mean(single[10:])}
    )


def test_a_sigterm_saves_and_exits_with_42_and_the_rest_is_as_if_undisturbed(
    undisturbed, tmp_path, mesh
):
    def interrupt(step):
        if step in (5, 9):  # in the middle, and where a validation is due
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    for steps in ([4, 5], [8, 9]):
        with pytest.raises(SystemExit) as stopped:
            run(stage(interrupt), tmp_path, mesh)
        assert stopped.value.code == loop.PREEMPTED == 42
        assert saved(tmp_path).steps()[-2:] == steps
        assert signal.getsignal(signal.SIGTERM) is handler
    np.testing.assert_array_equal(run(stage(), tmp_path, mesh), undisturbed[0])
    assert figures(tmp_path) == undisturbed[1]


def test_a_sigterm_at_the_last_step_leaves_a_finished_stage(undisturbed, tmp_path, mesh):
    def interrupt(step):
        if step == CONFIG.steps:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        run(stage(interrupt), tmp_path, mesh)
    np.testing.assert_array_equal(run(stage(), tmp_path, mesh), undisturbed[0])
    assert figures(tmp_path) == undisturbed[1]


def crash(step):
    if step == 9:
        raise ConnectionError("the machine is gone")


def test_a_flipped_bit_in_the_newest_checkpoint_costs_steps_and_changes_nothing(
    undisturbed, tmp_path, mesh, caplog
):
    with pytest.raises(ConnectionError):
        run(stage(crash), tmp_path, mesh)
    newest = next((tmp_path / "checkpoints").glob("00000008-*"))
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 16
    largest.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(run(stage(), tmp_path, mesh), undisturbed[0])
    assert "DAMAGED" in caplog.text
    assert "fell back to the checkpoint of step 6" in caplog.text
    assert figures(tmp_path) == undisturbed[1]


@pytest.mark.parametrize(
    ("value", "name"), [(float("nan"), "the loss is nan at step 7"), (0.0, "its gradient nan")]
)
@pytest.mark.parametrize(
    "changes", [{"log_every": 10, "checkpoint_every": 4}, {"log_every": 100, "validate_every": 1}]
)
def test_what_is_not_finite_ends_the_stage_before_it_is_saved(value, name, changes, tmp_path, mesh):
    """The gradient of sqrt(0 * x) is 0 times infinity."""
    with pytest.raises(FloatingPointError, match=name) as error:
        run(stage(lambda step: value if step == 7 else None, **changes), tmp_path, mesh)
    assert "step 7" in str(error.value)
    assert max(saved(tmp_path).steps()) < 7
    state = saved(tmp_path).folder
    assert not list(state.glob("0000000[789]-*"))


def bad_at(*bad):
    """What makes the gradient of those steps infinite."""
    return lambda step: 0.0 if step in bad else None


def test_a_harmful_step_changes_nothing_and_is_counted(undisturbed, tmp_path, mesh):
    changes = {"skips": 2, "validate_every": 1, "checkpoint_every": 7}
    kernels = []

    def validate(params):
        kernels.append(np.asarray(params["kernel"]))
        return {"score": float(len(kernels))}

    found = run(stage(bad_at(7, 8), validate, **changes), tmp_path, mesh)
    np.testing.assert_array_equal(kernels[7], kernels[5])
    assert not np.array_equal(kernels[8], kernels[7])
    rows = {row["step"]: row for row in figures(tmp_path) if "score" not in row}
    assert rows[7] == {"step": 7, "skipped": 1.0}
    assert rows[8] == {"step": 8, "skipped": 1.0}
    assert "skipped" not in rows[9]
    assert rows[6] == undisturbed[1][[row["step"] for row in undisturbed[1]].index(6)]
    stop = stage(lambda step: crash(step) or bad_at(7, 8)(step), validate, **changes)
    with pytest.raises(ConnectionError):  # and then on from step 7, in the middle of them
        run(stop, tmp_path / "again", mesh)
    np.testing.assert_array_equal(
        run(stage(bad_at(7, 8), validate, **changes), tmp_path / "again", mesh), found
    )


def test_too_many_harmful_steps_in_a_row_end_the_stage(tmp_path, mesh):
    changes = {"skips": 2, "log_every": 4, "checkpoint_every": 5, "validate_every": 0}
    with pytest.raises(FloatingPointError, match=r"at step 7.*the 2 steps before.*since step 4"):
        run(stage(bad_at(3, 5, 6, 7), **changes), tmp_path, mesh)
    assert [(row["step"], row["skipped"]) for row in figures(tmp_path)] == [(4, 1), (5, 1)]


def test_the_steps_that_are_asked_for_are_traced(tmp_path, mesh):
    traced = fit(
        stage(validate_every=0),
        folder=tmp_path,
        mesh=mesh(),
        seed=0,
        config={},
        profiled=range(3, 5),
    )
    assert "kernel" in traced
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_the_time_is_told_by_what_it_was_spent_on(tmp_path, mesh, caplog):
    caplog.set_level(logging.INFO)
    run(stage(), tmp_path, mesh)
    seconds = tracking.seconds_by_kind(tmp_path)
    assert tuple(seconds) == goodput.KINDS
    assert min(seconds[kind] for kind in goodput.KINDS if kind not in ("lost", "data")) > 0
    assert seconds["lost"] == 0
    assert re.search(r"goodput \d+\.\d% of [\d.]+ s: .*compile .*step ", caplog.text)


def test_steps_that_a_crash_cost_are_lost_time(tmp_path, mesh):
    with pytest.raises(ConnectionError):
        run(stage(crash, checkpoint_every=5), tmp_path, mesh)
    before, rows = tracking.seconds_by_kind(tmp_path), tracking.read(tmp_path)
    lost = rows[-1]["seconds"] - max(row["seconds"] for row in rows if row["step"] <= 6)
    run(stage(checkpoint_every=5), tmp_path, mesh)
    after = tracking.seconds_by_kind(tmp_path)
    assert after["lost"] == pytest.approx(min(lost, before["step"]), abs=2e-3)
    assert after["initialise"] > before["initialise"]


def test_the_best_by_validation_is_returned_and_patience_ends_the_stage(
    tmp_path, mesh, monkeypatch
):
    scores, seen = iter([1.0, 3.0, 3.0, 2.0, 9.0]), []

    def validate(params):
        seen.append(np.asarray(params["kernel"]))
        return {"score": next(scores), "other": -float(len(seen))}

    changes = {"validate_every": 2, "patience": 2, "checkpoint_every": 5, "keep": 1}
    found = run(stage(validate=validate, **changes), tmp_path, mesh)
    assert len(seen) == 4
    np.testing.assert_array_equal(found, seen[1])
    assert (saved(tmp_path).steps(), saved(tmp_path).best()[0]) == ([4, 8], 4)
    lines = (tmp_path / tracking.FILE).read_bytes()
    monkeypatch.setattr(
        "user_llm.training.step.make_train_step", lambda *_, **__: pytest.fail
    )  # nothing is left
    np.testing.assert_array_equal(run(stage(validate=validate, **changes), tmp_path, mesh), found)
    assert (tmp_path / tracking.FILE).read_bytes() == lines


def test_a_running_mean_is_judged_kept_and_resumed_and_changes_no_step(tmp_path, mesh):
    start, seen = np.random.default_rng(0).uniform(size=(32, 32)).astype(np.float32), {}

    def given(average, steps=8, folder=None):
        rows = seen.setdefault((average, folder), [])

        def validate(params):
            rows.append(np.asarray(params["kernel"], np.float64))
            return {"score": float(len(rows)), "other": 0.0}

        optim = CONFIG.optim.model_copy(update={"average": average})
        made = stage(validate=validate, steps=steps, validate_every=1, optim=optim)
        made = dataclasses.replace(made, given=lambda params: {"kernel": jnp.array(start)})
        return run(made, tmp_path / (folder or str(average)), mesh)

    given(0.0)
    found = given(0.7)
    mean, wanted = start.astype(np.float64), []
    for step, kernel in enumerate(seen[0.0, None]):
        kept = min(0.7, (1 + step) / (10 + step))
        mean = kept * mean + (1 - kept) * kernel
        wanted.append(mean)
    np.testing.assert_allclose(seen[0.7, None], wanted, rtol=1e-5)
    np.testing.assert_allclose(found, wanted[-1], rtol=1e-5)

    sharding = mesh().devices.flat[0]
    leaf = jax.ShapeDtypeStruct(start.shape, start.dtype, sharding=SingleDeviceSharding(sharding))
    kept = saved(tmp_path / "0.7").restore_params({"kernel": leaf}).state["kernel"]
    np.testing.assert_array_equal(kept, found)

    given(0.7, steps=5, folder="in two")
    np.testing.assert_array_equal(given(0.7, folder="in two"), found)


def test_parameters_that_are_given_replace_the_random_ones():
    tree = {"a": {"b": jnp.zeros((2, 3))}, "c": jnp.ones(4, jnp.bfloat16)}
    placed = graft(tree, {"c": jnp.full(4, 2.0), "unknown": jnp.ones(1)})
    assert (placed["c"].dtype, placed["c"].tolist()) == (jnp.bfloat16, [2.0] * 4)
    assert placed["a"] is not tree["a"]
    np.testing.assert_array_equal(placed["a"]["b"], tree["a"]["b"])
    with pytest.raises(ValueError, match=r"a\.b: \(3, 2\) given, \(2, 3\) wanted; c: \(5,\)"):
        graft(tree, {"a": {"b": jnp.zeros((3, 2))}, "c": jnp.ones(5)})
    assert merge({"a": {"x": 1}}, {"a": {"y": 2}, "b": 3}) == {"a": {"x": 1, "y": 2}, "b": 3}
