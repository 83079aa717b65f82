"""Servers to be measured: each a process of its own, asked over HTTP."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from user_llm.evaluation.peers.work import cores
from user_llm.evaluation.sides import HUGE_PAGES

WAITED = 1800.0  # seconds until one is there: it compiles for each length


@contextmanager
def ours(export: Path, folder: Path, *flags: str) -> Iterator[str]:
    """`user-llm serve` of an export, and its address; users and compiled programs in a folder."""
    command = ["-m", "user_llm.cli", "serve", str(export), *flags]
    users = folder / "users.sqlite"
    for path in folder.glob(f"{users.name}*"):
        path.unlink()
    kept = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    with up([*command, "--users", str(users)], folder, "/ready", kept) as url:
        yield url


@contextmanager
def transformers(decoder: Path, folder: Path) -> Iterator[str]:
    """`transformers serve` of a folder with a language model, and its address."""
    command = ["-m", "transformers.cli.transformers", "serve", str(decoder)]
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(cores())}
    with up(command, folder, "/health", offline) as url:
        yield url


@contextmanager
def up(command: Sequence[str], folder: Path, ready: str, env: dict[str, str]) -> Iterator[str]:
    """A server's address, once it answers that it is ready; it is stopped in the end.

    Raises:
      ValueError: it did not come up; says where its log is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    env = HUGE_PAGES | env | os.environ
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command, "--port", str(port)], stdout=file, stderr=file, env=env
        )
    try:
        until = time.monotonic() + WAITED
        while not _answers(f"{url}{ready}"):
            if process.poll() is not None or time.monotonic() > until:
                raise ValueError(f"no server came up; {log} ends with {log.read_text()[-500:]}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5.0).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
