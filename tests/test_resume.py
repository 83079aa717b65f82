"""A training that is killed and taken up again ends, bit by bit, as if nothing had happened.

`USER_LLM_KILLS=50` kills it so often, alone and with two processes, instead of a few times, and
with `pytest -s` tells where in its life each kill met it.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import runs_made
from jobs_made import LOST, Job

from user_llm.training import tracking
from user_llm.training.watchdog import STUCK

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
DEVICES = 4  # of all processes together
KILLS = int(os.environ.get("USER_LLM_KILLS", 3))
AHEAD = 4  # steps that a killed job is given to make, and about two more before it is dead
STEPS = max(30, 7 * KILLS)  # so that no kill comes too late
MOMENTS = ("start-up", "step", "save")  # at which a job is killed


class Training:
    """Jobs that pre-train, one after the other, in one folder."""

    def __init__(self, folder: Path, shared: Path):
        self.stage = folder / "pretrain"
        arguments = [str(folder), str(shared / "data"), str(STEPS)]
        self.command = [sys.executable, runs_made.__file__, *arguments]
        self.environment = os.environ.copy()

    def start(self, count: int = 1) -> Job:
        return Job(self.command, count, DEVICES, self.environment)

    def finish(self, count: int = 1) -> None:
        for code, said in self.start(count).end():
            assert code == 0, said

    def after(self, step: int, count: int = 1, wait: float = 0.0) -> Job:
        """A job that has logged that many steps."""
        job = self.start(count)
        while job.running() and self.logged(job) < step:
            time.sleep(0.01)
        time.sleep(wait)
        return job

    def within(self, moment: str, rng: random.Random, count: int) -> Job:
        """A job that has, most likely, come as far as that."""
        if moment == "start-up":
            job = self.start(count)
            time.sleep(rng.uniform(0, 6))
            return job
        step = max(self.saved(), default=0) + rng.randint(1, AHEAD)
        if moment == "step":
            return self.after(step, count, rng.uniform(0, runs_made.PACE))
        job = self.after(step, count)
        while job.running() and not self.saving(job):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))  # as long as a save takes
        return job

    def interrupt(self, step: int, number: int, count: int = 1, wait: float = 0.0) -> list[int]:
        """Sends a signal to each process once so many steps are logged; the exit codes."""
        job = self.after(step, count, wait)
        for process in job.processes:
            process.send_signal(number)
        ended = job.end()
        assert self.logged() < STEPS, ended
        return [code for code, _ in ended]

    def logged(self, by: Job | None = None) -> int:
        """The last step in the log; 0 as long as that job has not taken it up."""
        path = self.stage / tracking.FILE
        if not path.exists() or (by and path.stat().st_ctime < by.began):
            return 0
        return max((row["step"] for row in tracking.read(self.stage)), default=0)

    def saving(self, job: Job) -> bool:
        """Whether a save of that job's has begun, and is not complete."""
        begun = (self.stage / "checkpoints").glob(".*.tmp")
        return any(path.stat().st_ctime > job.began for path in begun)

    def met(self, job: Job) -> str:
        """At which moment a job was killed, as its remains tell."""
        if self.saving(job):
            return "save"
        return "step" if self.logged(job) else "start-up"

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


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def undisturbed(request, shared) -> tuple[Training, int]:
    """A training by so many processes."""
    training = Training(shared / f"by {request.param}", shared)
    training.finish(request.param)
    assert [row["step"] for row in training.figures() if "loss" in row] == [*range(1, STEPS + 1)]
    assert max(training.saved()) == STEPS
    return training, request.param


def test_a_run_killed_again_and_again_loses_nothing(undisturbed, shared, tmp_path):
    whole, count = undisturbed
    training, rng = Training(tmp_path / "run", shared), random.Random(0)
    met, lost, alone, began = Counter(), [], 0, time.monotonic()
    while len(lost) < KILLS:
        kept = max(training.saved(), default=0)
        job = training.within(MOMENTS[len(lost) % len(MOMENTS)], rng, count)
        killed = job.kill()
        now = max(training.saved(), default=0)
        assert now >= kept
        if killed:
            met[training.met(job)] += 1
            lost.append(max(0, training.logged(job) - now))
        else:
            alone += 1
            assert alone < KILLS
    training.finish(count)
    print(
        f"\n{KILLS} kills of {count} process(es) over {STEPS} steps in "
        f"{time.monotonic() - began:.0f} s: {dict(met)}; {sum(lost)} steps lost, at most "
        f"{max(lost)} by one kill; {alone} jobs ended before they could be killed"
    )
    assert max(lost) <= 2 * runs_made.EXPERIMENT.pretrain.checkpoint_every
    assert KILLS < 10 or min(met[moment] for moment in MOMENTS) >= KILLS // 10
    assert training.figures() == whole.figures()
    assert training.saved() == whole.saved()


def test_a_run_asked_to_go_saves_exits_with_42_and_is_taken_up_again(undisturbed, shared, tmp_path):
    whole, count = undisturbed
    training = Training(tmp_path / "run", shared)
    assert training.interrupt(10, signal.SIGTERM, count) == [42] * count
    assert max(training.saved()) == training.logged() >= 10
    training.finish(count)
    assert training.figures() == whole.figures()
    assert training.saved() == whole.saved()


def test_one_process_goes_on_where_two_were_asked_to_go(undisturbed, shared, tmp_path):
    """Only one of them is asked; both save the same step. What differs after is rounding."""
    whole, count = undisturbed
    training = Training(tmp_path / "run", shared)
    job = training.after(8, 3 - count)
    job.processes[-1].send_signal(signal.SIGTERM)
    assert [code for code, _ in job.end()] == [42] * (3 - count)
    training.finish(count)
    wanted = {row["step"]: row["loss"] for row in whole.figures() if "loss" in row}
    found = {row["step"]: row["loss"] for row in training.figures() if "loss" in row}
    assert found == pytest.approx(wanted, rel=1e-4)


def test_a_process_whose_peer_is_lost_ends_so_that_the_job_is_started_anew(shared, tmp_path):
    job = Training(tmp_path / "run", shared).after(5, 2)
    job.processes[1].kill()
    (code, said), _ = job.end()
    assert code in LOST, said


def test_a_process_whose_peer_is_stuck_ends_and_says_where_it_waits(shared, tmp_path):
    training = Training(tmp_path / "run", shared)
    training.command.append("--impatient")
    job = training.after(5, 2)
    job.processes[1].send_signal(signal.SIGSTOP)
    assert job.processes[0].wait() == STUCK
    job.processes[1].kill()
    job.end()
    assert "in fit" in (training.stage / "stuck-0.txt").read_text()


IN_A_SMALL_DISK = """
mount -t tmpfs -o size=4m small "$1" || exit 1
folder=$1 kept=$2; shift 2
"$@"; code=$?
cp -r "$folder/." "$kept"  # the disk is gone with its last process
exit $code
"""


@pytest.mark.parametrize("undisturbed", [1], indirect=True, ids=["one process"])
def test_a_disk_that_fills_up_within_a_save_costs_that_save_alone(undisturbed, shared, tmp_path):
    """A real disk, mounted for one process alone, that is filled and emptied from outside."""
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "small", str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run(mount).returncode:
        pytest.skip("no disk can be mounted in a user namespace here")
    whole, _ = undisturbed
    disk, kept, told = (tmp_path / name for name in ("disk", "kept", "told.txt"))
    disk.mkdir()
    kept.mkdir()
    training = Training(disk, shared)
    shell = ["unshare", "-rm", "sh", "-c", IN_A_SMALL_DISK, "sh", str(disk), str(kept)]
    with told.open("w") as errors:
        own = training.environment | {"JAX_NUM_CPU_DEVICES": str(DEVICES)}
        process = subprocess.Popen(
            [*shell, *training.command], env=own, stderr=errors, start_new_session=True
        )
    inside = Training(Path(f"/proc/{process.pid}/root{disk}"), shared)

    def until(true) -> None:
        while not true():
            assert process.poll() is None, told.read_text()
            time.sleep(0.01)

    try:
        until(lambda: inside.logged() >= 8)
        filler = inside.stage / "filler"
        with filler.open("wb", buffering=0) as file:
            with pytest.raises(OSError, match="No space left on device"):
                while True:
                    file.write(bytes(4096))
            file.truncate(file.tell() - 4 * 4096)  # so that a save can begin
        before = inside.saved()
        until(lambda: "free space there: the training goes on, and saves" in told.read_text())
        assert "No space left on device" in told.read_text()
        assert inside.saved() == before
        filler.unlink()
        assert process.wait() == 0, told.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert Training(kept, shared).figures() == whole.figures()
    assert Training(kept, shared).saved() == whole.saved()
