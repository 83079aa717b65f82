"""Ends a process that cannot go on, with an exit code that says: start me again.

Of several processes, one that is stuck or gone leaves the others waiting for it for ever. JobSet,
xpk and `launch/` start a job anew that ends with 42 or with 127 to 255.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from pathlib import Path

import jax

from user_llm.files import AnyPath

logger = logging.getLogger(__name__)

STUCK = 134  # what a shell says of a process that aborted
PEER_LOST = 135


class Watchdog:
    """Expects a `beat` every so often; while it is entered, it ends the process otherwise.

    Args:
      limit: seconds without a beat; 0: as many as it takes.
      folder: receives `stuck-<process>.txt`, which says where every thread was. If it is in a
        bucket, which may be what is waited for, that is said on standard error.
    """

    def __init__(self, limit: float, folder: AnyPath):
        self._limit, self._folder = limit, folder
        self._last, self._over = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def beat(self) -> None:
        """Says that the process goes on."""
        self._last = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.beat()
        if self._limit:
            self._thread.start()
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        self._over.set()
        if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            # To exit in good order would mean to wait for the others, of which one is gone.
            logger.error("a step failed, as when another process is lost", exc_info=error)
            _leave(PEER_LOST)

    def _watch(self) -> None:
        while not self._over.wait(min(self._limit / 4, 5)):
            if (idle := time.monotonic() - self._last) > self._limit:
                self._dump(idle)
                _leave(STUCK)

    def _dump(self, idle: float) -> None:
        path = self._folder / f"stuck-{jax.process_index()}.txt"
        if not isinstance(path, Path):
            logger.error("no step for %.0f s; where every thread is:", idle)
            faulthandler.dump_traceback()
            return
        logger.error("no step for %.0f s; %s says where every thread is", idle, path)
        with path.open("w") as file:
            faulthandler.dump_traceback(file)


def _leave(code: int) -> None:
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)
