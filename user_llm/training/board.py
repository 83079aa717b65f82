"""Scalars in TensorBoard's files."""

import socket
import struct
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any


class Board:
    """Scalars for TensorBoard, on disk as soon as they are logged.

    tensorboardX would write them in a thread, which a full disk ends; then whoever logs waits for
    ever. A file that a failure may have torn is left behind, and another begun.
    """

    def __init__(self, folder: Path, step: int):
        self._folder, self._step = folder, step  # the last one that is written
        self._file: IO[bytes] | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        Event, scalar, _ = _library()
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


@cache
def _library() -> tuple[Any, Any, Any]:
    """tensorboardX's event, scalar and checksum.

    Its writer, which is not used, imports torch where it can: two seconds and 180 MB.
    """
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType] -- cannot be imported
    try:
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c
        from tensorboardX.summary import scalar
    finally:
        if absent:
            del sys.modules["torch"]
    Event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue] -- generated
    return Event, scalar, masked_crc32c


def _framed(data: bytes) -> bytes:
    """A record of TensorFlow's: the length, its checksum, the data, its checksum."""
    *_, masked_crc32c = _library()
    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return b"".join((length, next(sums), data, next(sums)))
