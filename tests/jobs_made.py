"""The processes of one job, started here together."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping

from user_llm.training.watchdog import PEER_LOST

LOST = (PEER_LOST, -signal.SIGABRT)  # how a process ends without its peer: by us, or by JAX's watch


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Job:
    """So many processes of one command, which share simulated devices."""

    def __init__(
        self,
        command: list[str],
        count: int,
        devices: int,
        environment: Mapping[str, str] = os.environ,
    ):
        self.began = time.time()
        own = {"JAX_NUM_CPU_DEVICES": str(devices // count)}
        if count > 1:
            own["JAX_COORDINATOR_ADDRESS"] = f"localhost:{free_port()}"
            own["JAX_NUM_PROCESSES"] = str(count)
        self.processes = [
            subprocess.Popen(
                command,
                env=dict(environment) | own | {"JAX_PROCESS_ID": str(i)},
                stderr=subprocess.PIPE,
            )
            for i in range(count)
        ]

    def running(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def kill(self) -> bool:
        """Whether it still lived; where processes are kept apart by load, they lose each other."""
        for process in self.processes:
            process.kill()
        ended = self.end()
        assert {code for code, _ in ended} <= {-signal.SIGKILL, *LOST}, ended
        return ended[0][0] == -signal.SIGKILL

    def end(self) -> list[tuple[int, str]]:
        """The exit codes, and what was said."""
        said = [process.communicate()[1].decode()[-3000:] for process in self.processes]
        return [(one.returncode, text) for one, text in zip(self.processes, said, strict=True)]
