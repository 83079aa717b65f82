"""Debian's packages for tests beside real servers: unpacked, not installed."""

import fcntl
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

LIBRARIES = "usr/lib/x86_64-linux-gnu"


def unpack(folder: Path, *packages: str) -> Path:
    """The packages and what they need beyond this machine's, unpacked below the folder.

    Raises:
      OSError, CalledProcessError: they cannot be had.
    """
    debs, root = folder / "debs", folder / "root"
    debs.mkdir(parents=True)

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=debs, check=True, capture_output=True, text=True)
        return done.stdout

    with (Path(tempfile.gettempdir()) / "user_llm_debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would refuse one another
        run("apt-get", "update", "-qq")
        planned = run("apt-get", "install", "--simulate", "--no-install-recommends", *packages)
        names = [line.split()[1] for line in planned.splitlines() if line.startswith("Inst ")]
        run("apt-get", "download", "-qq", *names)
    for deb in debs.glob("*.deb"):
        run("dpkg", "--extract", str(deb), str(root))
    shutil.rmtree(debs)
    return root


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
