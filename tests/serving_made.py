"""A served export: a real process of `user-llm serve`, asked over HTTP."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from runs_made import EXPERIMENT

from user_llm import stages
from user_llm.runs import Run
from user_llm.serving import export

WAITED = 300.0  # seconds for a server to be there


def made_run(folder: Path, **system) -> Run:
    """A run whose system is fine-tuned a little."""
    own = EXPERIMENT.pretrain.model_copy(update={"steps": 2, "validate_every": 0})
    changes = {"system": EXPERIMENT.system.model_copy(update=system), "pretrain": own}
    # Its warm-up is what makes answers of more than a token.
    changes["align"] = EXPERIMENT.align.model_copy(update={"steps": 0})
    run = Run(EXPERIMENT.model_copy(update=changes), folder)
    stages.finetune(run)
    return run


def raw_events(run: Run, user: int) -> list[dict]:
    """A user's events, as whoever serves would send them."""
    data = run.dataset
    return [
        {
            "item": data.items.ids[data.item[e]],
            "timestamp": int(data.times[e]),
            "rating": float(data.ratings[e]),
            "review": data.reviews[e],
        }
        for e in range(*data.offsets[user : user + 2])
    ]


def made_export(folder: Path) -> tuple[Run, Path]:
    """A run and its export, called `tiny`; as they are, where another process has made them."""
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = made_run(folder / "run")
        if not (folder / "tiny").exists():
            export.export(run, folder / "tiny", results="recall 1.0")
    return run, folder / "tiny"


class Server(NamedTuple):
    """A server that is up."""

    url: str
    process: subprocess.Popen
    log: Path

    def client(self, **how) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60.0, **how)

    def logged(self) -> list[dict]:
        """The lines of its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def served(
    exported: Path,
    folder: Path,
    *flags: str,
    ready: bool = True,
    within: Sequence[str] = (),
    **env: str,
):
    """A server of an export, its users in a file of the folder; killed in the end.

    Args:
      within: what runs the command that is behind it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"server-{time.monotonic_ns()}.log"
    command = [*within, sys.executable, "-m", "user_llm.cli", "serve", str(exported)]
    command += ["--port", "0", "--cold"]
    if "--users" not in flags:
        command += ["--users", str(folder / "users.sqlite")]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *flags], stderr=file, stdout=file, env=os.environ | env
        )
    try:
        made = Server(_address(process, log), process, log)
        if ready:
            _await_ready(made)
        yield made
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen, log: Path) -> str:
    for _ in _patience():
        for line in log.read_text().splitlines():
            if "serving" in line and line.startswith("{"):
                return json.loads(line)["said"].split(" at ")[1].split(";")[0]
        if process.poll() is not None:
            break
    raise AssertionError(f"no server came up:\n{log.read_text()}")


def _await_ready(made: Server) -> None:
    for _ in _patience():
        if httpx.get(f"{made.url}/ready").status_code == 200:
            return
    raise AssertionError(f"the server is not ready:\n{made.log.read_text()}")


def _patience() -> Iterator[None]:
    until = time.monotonic() + WAITED
    while time.monotonic() < until:
        yield
        time.sleep(0.1)
