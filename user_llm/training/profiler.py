"""A trace of some steps, on demand."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from user_llm.files import AnyPath, upload


class Profiler:
    """While it is entered, traces the steps of a range into `folder/profile`, of every process.

    The trace begins when the step before the first is done, or at once if that is the first.
    """

    def __init__(self, folder: AnyPath, steps: range):
        self._folder, self._steps, self._tracing = folder / "profile", steps, False
        if isinstance(self._folder, Path):
            self._here = self._folder
        else:  # JAX writes to this machine alone
            self._kept = TemporaryDirectory()
            self._here = Path(self._kept.name)

    def __enter__(self) -> "Profiler":
        return self

    def after(self, step: int, results: Any) -> None:
        """Tells of a step that was begun, and what it will result in."""
        if self._tracing and step >= self._steps[-1]:
            self._stop(results)
        elif not self._tracing and step + 1 in self._steps:
            jax.block_until_ready(results)
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
            upload(self._here, self._folder)
