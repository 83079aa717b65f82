"""A job of a real SLURM: preempted in the middle, it saves, is started anew, and loses nothing."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_made
from test_resume import Training

from user_llm import cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
import runs_made
from user_llm.data import pipeline

pipeline.batches = runs_made.slowly(pipeline.batches)  # so that there is time to be preempted in


def config():
    pretrain = runs_made.EXPERIMENT.pretrain.model_copy(update={{"steps": 30}})
    return runs_made.EXPERIMENT.model_copy(update={{"pretrain": pretrain}})
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "cluster").mkdir()
    try:
        root = slurm_made.unpack(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"Debian's packages of SLURM cannot be had here: {error}")
    with slurm_made.cluster(root, folder / "cluster") as environment:
        cpus = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
        bin = os.path.dirname(sys.executable)
        yield environment | cpus | {"PATH": f"{bin}:{environment['PATH']}"}


class Batch:
    """A job of two tasks that pre-trains in a folder, by the script that `launch render` writes."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        folder.mkdir()
        self.folder, self.environment = folder, environment
        self.training = Training(folder / "run", folder)
        config, script = folder / "tiny.py", folder / "job.sh"
        config.write_text(CONFIG.format(tests=str(Path(__file__).parent)))
        cache = "JAX_COMPILATION_CACHE_DIR"  # would be beside the run, and each has its own
        options = ["--target=slurm", "--verb=pretrain", f"--run-dir={folder / 'run'}"]
        options.append(f"--env={cache}={os.environ[cache]}")
        assert cli.main(["launch", "render", str(config), *options, f"--out={script}"]) == 0
        # The script asks for a task on each node; here is but one node.
        said = self.call("sbatch", "--ntasks-per-node=2", str(script))
        self.number = re.search(r"\d+", said).group()

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def state(self) -> str:
        return self.call("squeue", "--noheader", "--states=all", "--format=%T", f"-j{self.number}")

    def until(self, what, seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, (self.state, self.log)
            time.sleep(0.1)

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("tiny-*.log"))


def test_a_job_that_is_preempted_saves_is_requeued_and_ends_as_if_undisturbed(slurm, tmp_path):
    whole = Batch(tmp_path / "whole", slurm)
    whole.until(lambda: "COMPLETED" in whole.state)

    job = Batch(tmp_path / "preempted", slurm)
    job.until(lambda: job.training.logged() >= 8)
    job.call("scancel", "--signal=TERM", job.number)
    job.until(lambda: "starts anew, after 0 restarts" in job.log)
    assert "exit code 42" in job.log
    saved, logged = max(job.training.saved()), job.training.logged()
    assert saved == logged >= 8
    job.until(lambda: "PENDING" in job.state)
    job.call("scontrol", "update", f"JobId={job.number}", "StartTime=now")  # not two minutes later
    job.until(lambda: "COMPLETED" in job.state)
    assert job.training.figures() == whole.training.figures()
    assert job.training.saved() == whole.training.saved()
