"""A trace of some steps, on demand."""

import logging
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax

from user_llm.files import AnyPath, upload

logger = logging.getLogger(__name__)


class Profiler:
    """While it is entered, traces the steps of a range into `folder/profile`, of every process.

    The trace begins when the step before the first is done, or at once if that is the first.
    """

    def __init__(self, folder: AnyPath, steps: range):
        self._folder, self._steps, self._tracing = folder / "profile", steps, False

    def __enter__(self) -> "Profiler":
        return self

    def after(self, step: int, results: Any) -> None:
        """Tells of a step that was begun, and what it will result in."""
        if self._tracing and step >= self._steps[-1]:
            self._stop(results)
        elif not self._tracing and step + 1 in self._steps:
            jax.block_until_ready(results)
            # JAX writes to this machine alone.
            self._here = self._folder if isinstance(self._folder, Path) else Path(mkdtemp())
            jax.profiler.start_trace(self._here)
            self._tracing = True

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            self._stop(None)

    def _stop(self, results: Any) -> None:
        jax.block_until_ready(results)
        jax.profiler.stop_trace()
        self._tracing = False
        if self._here != self._folder:
            try:
                upload(self._here, self._folder)
            except OSError as error:  # which is no reason to end a training
                logger.error("%s", error)
            shutil.rmtree(self._here)
