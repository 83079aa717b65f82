"""A stage's metrics: JSON lines for the report, TensorBoard for the eye, a bar for the terminal.

Beside them stands where the time went, in `goodput.json`.

In a bucket nothing can be appended to, so all of it is written on this machine there, and put into
the bucket every half minute and whenever `publish` says so. A run that is killed loses no line as
long as that is said before each checkpoint: lines after the last one are dropped in any case.
"""

import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax
from tqdm import tqdm

from user_llm.files import AnyPath, upload, write_atomically
from user_llm.training.board import Board
from user_llm.training.goodput import Clock

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
GOODPUT = "goodput.json"
PAUSE = 30.0  # seconds between two copies to a bucket


class Tracker:
    """Writes metrics from the first process of a run; in the others it does nothing.

    A run resumed at `step` goes on where that step left the files: later lines are dropped, and
    seconds count on from the last line kept, so that they read as one run. What cannot be written,
    to a full disk say, is told, and no reason to end a training.

    Args:
      folder: receives `metrics.jsonl` and `tensorboard/`.
      total: steps of the whole stage.
      step: steps already done.
      name: stands before the progress bar.
    """

    def __init__(self, folder: AnyPath, *, total: int, step: int = 0, name: str = "train"):
        self._writes = jax.process_index() == 0
        self._folder, seconds, self.clock = folder, 0.0, Clock()
        if self._writes:
            folder.mkdir(parents=True, exist_ok=True)
            seconds, lost = _forget_after(folder / FILE, step)
            self.clock = Clock(seconds_by_kind(folder), lost)
            self._copied = time.monotonic()
            if isinstance(folder, Path):
                self._here = folder
            else:
                self._here = Path(mkdtemp())
                if (folder / FILE).exists():
                    (self._here / FILE).write_bytes((folder / FILE).read_bytes())
            self._lines = (self._here / FILE).open("a", buffering=1)
            self._board = Board(self._here / "tensorboard", step)
        self._start = time.monotonic() - seconds
        pause = 0.5 if sys.stderr.isatty() else 60.0  # a log file keeps every line of the bar
        hidden: dict[str, Any] = {} if self._writes else {"disable": True}
        self._bar = tqdm(
            desc=name,
            total=total,
            initial=step,
            unit="step",
            mininterval=pause,
            maxinterval=pause,
            **hidden,  # else $TQDM_DISABLE decides
        )

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds the values, scalars by name, of the state after `step` steps.

        The bar shows the loss and the rates, which are the values named `<unit>_per_second`.
        """
        if not self._writes:
            return
        values = {name: float(value) for name, value in values.items()}
        seconds = round(time.monotonic() - self._start, 3)
        with self._surviving(f"step {step}"):
            self._lines.write(json.dumps({"step": step, "seconds": seconds} | values) + "\n")
            self._write_goodput()
        with self._surviving(f"step {step}"):
            self._board.log(step, values)
        if time.monotonic() - self._copied > PAUSE:
            self.publish()
        rates = {
            name.replace("_per_second", "/s"): tqdm.format_sizeof(value)
            for name, value in values.items()
            if name.endswith("_per_second")
        }
        loss = {"loss": f"{values['loss']:.4g}"} if "loss" in values else {}
        if shown := loss | rates:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def publish(self) -> None:
        """Puts what was logged so far where it belongs, if that is in a bucket."""
        if not self._writes or self._here == self._folder:
            return
        with self._surviving("the metrics"):  # the next time all of them are put there
            upload(self._here, self._folder)
        self._copied = time.monotonic()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._writes:
            with self._surviving("the end"):
                self._board.close()
                self._lines.close()
                self._write_goodput()
            self.publish()
            if self._here != self._folder:
                shutil.rmtree(self._here)

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.error("%s could not be logged to %s: %s", what, self._folder, error)

    def _write_goodput(self) -> None:
        seconds = {kind: round(seconds, 3) for kind, seconds in self.clock.seconds.items()}
        write_atomically(self._here / GOODPUT, json.dumps(seconds) + "\n")


def read(folder: AnyPath) -> list[dict[str, Any]]:
    """The metrics that a `Tracker` wrote, a line each: step, seconds, and the values by name.

    Raises:
      ValueError: a line is not JSON.
    """
    path = folder / FILE
    rows = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break  # cut off when the run was killed
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}): {line!r}") from error
    return rows


def seconds_by_kind(folder: AnyPath) -> dict[str, float]:
    """Where a stage's time went, by the kinds of `goodput.KINDS`; empty where nobody has told."""
    path = folder / GOODPUT
    return json.loads(path.read_text()) if path.is_file() else {}


def _forget_after(path: AnyPath, step: int) -> tuple[float, float]:
    """Drops the lines of later steps, all or none.

    Returns:
      The seconds of the last line that stays, and how many more those had that went.
    """
    if not path.exists():
        return 0.0, 0.0
    rows = read(path.parent)
    kept = [row for row in rows if row["step"] <= step]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
    until, all_of_them = (x[-1]["seconds"] if x else 0.0 for x in (kept, rows))
    return until, all_of_them - until
