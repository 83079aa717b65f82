"""A real Redis server: this machine's own, or that of Debian's package."""

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import debian
import redis

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def find(folder: Path) -> list[str]:
    """The command that starts one; unpacked below the folder where the machine has none.

    Raises:
      OSError, CalledProcessError: the package cannot be had.
    """
    if own := shutil.which("redis-server"):
        return [own]
    root = debian.unpack(folder, "redis-server")
    return ["env", f"LD_LIBRARY_PATH={root / debian.LIBRARIES}", str(root / "usr/bin/redis-server")]


class Server:
    """One on this machine alone, in a folder, where it finds again what it has written."""

    def __init__(self, command: list[str], folder: Path, *options: str):
        folder.mkdir(exist_ok=True)
        self.folder, self.port, self.process = folder, debian.free_port(), None
        own = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", str(folder)]
        self.command = [*command, *own, *(options or DURABLE)]
        self.url = f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.end(signal.SIGKILL)  # asked politely, one that cannot save stays

    def start(self) -> None:
        with (self.folder / "redis.log").open("a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        for _ in range(600):
            try:
                self.call("PING")
                return
            except redis.ConnectionError:  # not yet there, or still reading what it has written
                time.sleep(0.05)
        raise RuntimeError(f"Redis is not up; its log is in {self.folder}")

    def end(self, sign: int) -> None:
        self.process.send_signal(sign)
        self.process.wait(30)
        self.process = None

    def call(self, *command: str) -> Any:
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            return client.execute_command(*command)
