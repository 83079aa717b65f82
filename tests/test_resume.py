"""A training that is killed and taken up again ends, bit by bit, as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs_made

from user_llm.training import tracking

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = runs_made.EXPERIMENT.pretrain.steps


class Training:
    """Processes that pre-train, one after the other, in one folder."""

    def __init__(self, folder: Path, shared: Path):
        self.stage = folder / "pretrain"
        self.command = [sys.executable, runs_made.__file__, str(folder), str(shared / "data")]
        # What one process compiled, the next one finds: most of their time would go into it.
        cache = {"JAX_COMPILATION_CACHE_DIR": str(shared / "cache")}
        always = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.environment = os.environ | cache | always

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(self.command, env=self.environment, stderr=subprocess.PIPE)

    def finish(self) -> None:
        process = self.start()
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()[-3000:]

    def interrupt(self, after: int, number: int, wait: float = 0.0) -> int:
        """Sends a signal once that many steps are logged, and returns the exit code."""
        process = self.start()
        while process.poll() is None and self.logged() < after:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(number)
        _, errors = process.communicate()
        assert self.logged() < STEPS, errors.decode()[-3000:]
        return process.returncode

    def logged(self) -> int:
        if not (self.stage / tracking.FILE).exists():
            return 0
        return max((row["step"] for row in tracking.read(self.stage)), default=0)

    def figures(self) -> list[dict]:
        """All that was logged, but for the times."""
        times = ("seconds", "events_per_second")
        rows = tracking.read(self.stage)
        return [{k: v for k, v in row.items() if k not in times} for row in rows]

    def saved(self) -> dict[str, dict]:
        """Per checkpoint the hash of every array: parameters, Adam's moments, step."""
        found = {}
        for path in sorted((self.stage / "checkpoints").glob("*/manifest.json")):
            manifest = json.loads(path.read_text())
            best = path.parent.name.endswith("-best")
            found[manifest["step"]] = manifest["leaves"] | {"best": best}
        return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def undisturbed(shared) -> Training:
    training = Training(shared / "run", shared)
    training.finish()
    assert [row["step"] for row in training.figures() if "loss" in row] == [*range(1, STEPS + 1)]
    assert max(training.saved()) == STEPS
    return training


def test_a_run_killed_again_and_again_loses_nothing(undisturbed, shared, tmp_path):
    training, rng = Training(tmp_path / "run", shared), random.Random(0)
    for _ in range(4):
        after = training.logged() + rng.randint(1, 6)
        code = training.interrupt(after, signal.SIGKILL, wait=rng.uniform(0, 0.2))
        assert code == -signal.SIGKILL
    training.finish()
    assert training.figures() == undisturbed.figures()
    assert training.saved() == undisturbed.saved()


def test_a_run_asked_to_go_saves_exits_with_42_and_is_taken_up_again(undisturbed, shared, tmp_path):
    training = Training(tmp_path / "run", shared)
    assert training.interrupt(10, signal.SIGTERM) == 42
    assert max(training.saved()) == training.logged() >= 10
    training.finish()
    assert training.figures() == undisturbed.figures()
    assert training.saved() == undisturbed.saved()
