"""A run whose folder is in a bucket: nothing that counts is lost there, and nothing half counts.

The bucket is one of `gcs_server`, which gcsfs and tensorstore take for Google's.
"""

import json
import logging
import os
import random
import subprocess
import sys
import time
from importlib.util import find_spec

import fsspec
import gcs_server
import pytest
from jobs_made import Job
from runs_made import EXPERIMENT
from test_checkpoint import CONFIG, abstract, bits, make_state
from test_resume import STEPS, Training

from user_llm.evaluation import report
from user_llm.files import entries, nearby, to_path
from user_llm.runs import Run
from user_llm.training import tracking
from user_llm.training.checkpoint import Checkpoints
from user_llm.training.tracking import Tracker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not find_spec("gcsfs"), reason="reaches buckets: pip install gcsfs"),
]
KILLS = 2


@pytest.fixture(scope="module")
def served():
    """A bucket; its environment is that of this process, too."""
    with gcs_server.serve() as (bucket, environment), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})  # it has read the environment
        yield bucket, environment


@pytest.fixture
def bucket(served):
    served[0].objects.clear()
    return served[0]


@pytest.fixture
def two_steps(bucket, mesh):
    """Checkpoints of steps 1 and 2, and the states that were saved."""
    checkpoints = Checkpoints(to_path("gs://bucket/run/checkpoints"))
    states = {step: make_state(mesh(2, 2, 2), step) for step in (1, 2)}
    for step, state in states.items():
        checkpoints.save(step, state, config=CONFIG, metrics={"loss": 1 / step})
    checkpoints.wait()
    return checkpoints, states


def of_step(bucket, step: int) -> list[str]:
    """The names of a checkpoint's files, in the order of their writing."""
    own = [name for name in bucket.objects if f"/{step:08d}-" in name]
    return sorted(own, key=lambda name: bucket.objects[name][1])


def warnings(caplog) -> list[str]:
    own = (x for x in caplog.records if x.name.startswith("user_llm"))
    return [x.getMessage() for x in own if x.levelno >= logging.WARNING]


def test_restores_what_was_saved(two_steps, mesh):
    checkpoints, states = two_steps
    assert checkpoints.steps() == [1, 2]
    restored = checkpoints.restore(abstract(make_state(mesh(1, 2, 2))))
    assert (restored.step, restored.config, restored.metrics) == (2, CONFIG, {"loss": 0.5})
    assert bits(restored.state) == bits(states[2])


def test_the_manifest_is_written_last_and_removed_first(two_steps, bucket, monkeypatch):
    checkpoints, states = two_steps
    assert all(of_step(bucket, step)[-1].endswith("/manifest.json") for step in (1, 2))
    gone, delete = [], gcs_server.Handler.delete

    def note(self, path):
        if (code := delete(self, path)) == 204:  # gcsfs removes what it writes anew, there or not
            gone.append(path)
        return code

    monkeypatch.setattr(gcs_server.Handler, "delete", note)
    checkpoints.save(3, states[2], config=CONFIG)
    assert checkpoints.steps() == [2, 3]
    assert gone[0].endswith("manifest.json") and len(gone) > 3
    assert of_step(bucket, 1) == []


def test_a_save_that_was_killed_is_passed_over_quietly_and_removed(two_steps, bucket, caplog):
    checkpoints, states = two_steps
    remains = of_step(bucket, 2)
    del bucket.objects[remains[-1]]
    assert checkpoints.restore(abstract(states[2])).step == 1
    assert checkpoints.steps() == [1]
    assert warnings(caplog) == []
    checkpoints.save(3, states[2], config=CONFIG)
    assert checkpoints.steps() == [1, 3]
    assert not set(remains) & set(bucket.objects)


def test_a_bucket_that_takes_nothing_ends_no_training(two_steps, bucket, monkeypatch, caplog):
    checkpoints, states = two_steps
    monkeypatch.setattr(bucket, "closed", True)
    checkpoints.save(3, states[1], config=CONFIG)
    checkpoints.save(4, states[1], config=CONFIG)
    assert "could not be written to gs://bucket/run/checkpoints" in caplog.text
    with pytest.raises(OSError, match="could not be written"):
        checkpoints.wait()
    monkeypatch.setattr(bucket, "closed", False)
    checkpoints.save(5, states[1], config=CONFIG)
    assert checkpoints.steps() == [2, 5]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own
def test_flipped_bits_are_detected_or_harmless(two_steps, bucket, caplog):
    checkpoints, states = two_steps
    rng, steps = random.Random(0), set()
    for name in of_step(bucket, 2):
        good = bucket.objects[name]
        if not good[0]:
            continue
        bad = bytearray(good[0])
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        bucket.objects[name] = (bytes(bad), good[1] + 1000, good[2])
        caplog.clear()
        restored = checkpoints.restore(abstract(states[2]))
        assert bits(restored.state) == bits(states[restored.step])
        if restored.step == 1:
            assert "is DAMAGED and passed over" in caplog.text
        steps.add(restored.step)
        bucket.objects[name] = good
    assert 1 in steps


def test_a_step_may_be_saved_again(two_steps, bucket, mesh):
    checkpoints, _ = two_steps
    other = make_state(mesh(2, 2, 2), 5)
    checkpoints.save(2, other, config=CONFIG, best=True)
    assert bits(checkpoints.restore(abstract(other)).state) == bits(other)
    assert (checkpoints.steps(), checkpoints.best()) == ([1, 2], (2, {}))
    assert len({name.split("/")[2] for name in bucket.objects}) == 2


def test_what_was_logged_is_in_the_bucket_when_published_and_reads_as_one_run(bucket):
    folder = to_path("gs://bucket/run/pretrain")
    with Tracker(folder, total=4) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"loss": float(step)})
        assert not bucket.objects
        tracker.publish()
        assert [row["step"] for row in tracking.read(folder)] == [1, 2, 3]
    with Tracker(folder, total=4, step=2) as tracker:
        assert [row["step"] for row in tracking.read(folder)] == [1, 2]
        tracker.log(3, {"loss": 30.0})
    assert [row["loss"] for row in tracking.read(folder)] == [1.0, 2.0, 30.0]
    assert len(entries(folder / "tensorboard")) == 2
    assert "compile" in tracking.seconds_by_kind(folder)


def test_a_run_is_opened_and_reported_on(bucket):
    folder = to_path("gs://bucket/runs/tiny")
    Run(EXPERIMENT, folder)
    assert Run.open(folder).experiment == EXPERIMENT
    with nearby(folder / "tokenizer") as here:
        (here / "tokenizer.json").write_text("{}")
    with nearby(folder / "tokenizer") as here:
        assert (here / "tokenizer.json").read_text() == "{}"
    with pytest.raises(ValueError, match=r"holds a run of another experiment \(seed: 0 there, 5"):
        Run(EXPERIMENT.model_copy(update={"seed": 5}), folder)
    assert str(report.write(folder)) == "gs://bucket/runs/tiny/report.html"
    assert set(bucket.objects) == {
        f"runs/tiny/{name}" for name in ("config.json", "tokenizer/tokenizer.json", "report.html")
    }


def test_the_command_line_makes_a_run_in_a_bucket_and_reads_it(bucket, served, tmp_path):
    (tmp_path / "tiny.py").write_text(
        "import runs_made\nfrom user_llm.config import Experiment\n\n\n"
        "def config() -> Experiment:\n    return runs_made.EXPERIMENT\n"
    )
    environment = os.environ | served[1] | {"JAX_COMPILATION_CACHE_DIR": "gs://bucket/cache"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    environment["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *sys.path])

    def done(verb: str, *arguments: str) -> str:
        command = [sys.executable, "-m", "user_llm.cli", verb, *arguments]
        said = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True)
        assert said.returncode == 0, said.stderr.decode()[-3000:]
        return said.stdout.decode()

    def metrics() -> dict[str, dict]:
        rows = json.loads(bucket.objects["tiny/evaluation.json"][0])["rows"]
        return {row["system"]: row["metrics"] for row in rows}

    few = ["--run-dir", "gs://bucket/tiny", "--pretrain.steps", "4", "--warmup.steps", "0"]
    few += ["--align.steps", "0", "--evaluation.baselines", "shuffled_memory"]
    assert "report: gs://bucket/tiny/report.html" in done("run", "tiny.py", *few)
    judged = metrics()
    del bucket.objects["tiny/evaluation.json"]
    assert done("evaluate", "gs://bucket/tiny").count("\n") > 4
    assert metrics() == judged
    assert "60 users" in done("embed", "gs://bucket/tiny", "--out", "vectors")
    report = bucket.objects.pop("tiny/report.html")[0]
    done("report", "gs://bucket/tiny")
    assert len(bucket.objects["tiny/report.html"][0]) == pytest.approx(len(report), rel=0.05)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.py", "datasets", "vectors"}
    assert any(name.startswith("cache/") for name in bucket.objects)


def test_two_processes_killed_again_and_again_lose_nothing(bucket, served, tmp_path):
    """Killed between and in saves, once asked to go; they end as on a disk that was let be."""
    whole = Training(tmp_path / "whole", tmp_path)
    whole.finish(2)
    training = Training(to_path("gs://bucket/run"), tmp_path)
    training.environment |= served[1]
    rng, in_saves = random.Random(2), 0

    def saved() -> list[int]:
        own = (name for name in list(bucket.objects) if name.endswith("/manifest.json"))
        return [int(name.split("/")[3][:8]) for name in own]

    def begun() -> Job:
        """A job that has saved once more than the one before."""
        job, before = training.start(2), max(saved(), default=0)
        while job.running() and max(saved(), default=0) == before:
            time.sleep(0.02)
        return job

    for _ in range(KILLS):
        job = begun()
        time.sleep(rng.uniform(0, 0.5))
        job.kill()
        folders = {name.split("/")[3] for name in list(bucket.objects) if "/checkpoints/" in name}
        in_saves += len(folders) > len(saved())
    job = begun()
    for process in job.processes:
        process.terminate()
    assert [code for code, _ in job.end()] == [42] * 2
    training.finish(2)
    assert max(training.saved()) == STEPS
    assert training.figures() == whole.figures()
    assert training.saved() == whole.saved()
    config = json.loads(bucket.objects["run/config.json"][0])
    assert config["name"] == EXPERIMENT.name
    print(f"{in_saves} of {KILLS} kills were in a save")
