"""A stage's metrics: JSON lines for the report, TensorBoard for the eye, a bar for the terminal.

Beside them stands where the time went, in `goodput.json`.
"""

import json
import logging
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import jax
from tqdm import tqdm

from user_llm.files import write_atomically
from user_llm.training.goodput import Clock

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
GOODPUT = "goodput.json"


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

    def __init__(self, folder: Path, *, total: int, step: int = 0, name: str = "train"):
        self._writes = jax.process_index() == 0
        self._folder, seconds, self.clock = Path(folder), 0.0, Clock()
        if self._writes:
            path = self._folder / FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            seconds, lost = _forget_after(path, step)
            self.clock = Clock(seconds_by_kind(folder), lost)
            self._lines = path.open("a", buffering=1)
            self._board = _Board(path.parent / "tensorboard", step)
        self._start = time.monotonic() - seconds
        pause = 0.5 if sys.stderr.isatty() else 60.0  # a log file keeps every line of the bar
        self._bar = tqdm(
            desc=name,
            total=total,
            initial=step,
            unit="step",
            mininterval=pause,
            maxinterval=pause,
            disable=not self._writes,
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
        rates = {
            name.replace("_per_second", "/s"): tqdm.format_sizeof(value)
            for name, value in values.items()
            if name.endswith("_per_second")
        }
        loss = {"loss": f"{values['loss']:.4g}"} if "loss" in values else {}
        if shown := loss | rates:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._writes:
            with self._surviving("the end"):
                self._board.close()
                self._lines.close()
                self._write_goodput()

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.error("%s could not be logged to %s: %s", what, self._folder, error)

    def _write_goodput(self) -> None:
        seconds = {kind: round(seconds, 3) for kind, seconds in self.clock.seconds.items()}
        write_atomically(self._folder / GOODPUT, json.dumps(seconds) + "\n")


class _Board:
    """Scalars for TensorBoard, on disk as soon as they are logged.

    tensorboardX would write them in a thread, which a full disk ends; then whoever logs waits for
    ever. A file that a failure may have torn is left behind, and another begun.
    """

    def __init__(self, folder: Path, step: int):
        self._folder, self._step = folder, step  # the last one that is written
        self._file: IO[bytes] | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import scalar  # imports torch where that is installed

        now, events = time.time(), []
        if self._file is None:
            self._folder.mkdir(exist_ok=True)
            told = f"{int(now)}.{socket.gethostname()}.{self._step}"
            self._file = (self._folder / f"events.out.tfevents.{told}").open("ab")
            # TensorBoard forgets what other files have from this step on.
            first = Event(wall_time=now, step=self._step + 1, file_version="brain.Event:2")
            start = Event(wall_time=now, step=self._step + 1)
            start.session_log.status = start.session_log.START
            events = [first, start]
        events += [
            Event(wall_time=now, step=step, summary=scalar(name, value))
            for name, value in values.items()
        ]
        try:
            self._file.write(b"".join(_framed(event.SerializeToString()) for event in events))
            self._file.flush()
        except OSError:
            self.close()
            raise
        self._step = step

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be written just now
                self._file.close()
            self._file = None


def _framed(data: bytes) -> bytes:
    """A record of TensorFlow's: the length, its checksum, the data, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return b"".join((length, next(sums), data, next(sums)))


def read(folder: Path) -> list[dict[str, Any]]:
    """The metrics that a `Tracker` wrote, a line each: step, seconds, and the values by name.

    Raises:
      ValueError: a line is not JSON.
    """
    path = Path(folder) / FILE
    rows = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break  # cut off when the run was killed
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}): {line!r}") from error
    return rows


def seconds_by_kind(folder: Path) -> dict[str, float]:
    """Where a stage's time went, by the kinds of `goodput.KINDS`; empty where nobody has told."""
    path = Path(folder) / GOODPUT
    return json.loads(path.read_text()) if path.is_file() else {}


def _forget_after(path: Path, step: int) -> tuple[float, float]:
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
