"""The files of a built data set: records of users and of items, read as they were written."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

logger = logging.getLogger(__name__)


def counts(folder: Path) -> dict[str, Any]:
    """What was counted as the data set was built: users, events, items, and remarks.

    Raises:
      ValueError: none is built there.
    """
    if not (folder / "counts.json").is_file():
        raise ValueError(f"{folder} holds no built data set; build one there first")
    return json.loads((folder / "counts.json").read_text())


def fingerprint(folder: Path) -> str:
    """The SHA-256 of a built data set's files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def count(folder: Path) -> int:
    """The records that a folder's files really hold; TFDS only repeats what it meant to write.

    Raises:
      ValueError: a file is cut off or damaged.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        return len(ArrayRecordDataSource(sorted(folder.glob("*.array_record-*"))))
    except RuntimeError as error:
        raise ValueError(f"the records in {folder} are damaged; rebuild them: {error}") from error


def opened(folder: Path, config: str, expected: int) -> Any:
    """The records of a built data set on disk, `timelines` or `items`: dicts by number.

    Raises:
      ValueError: there are not as many as expected, or their files are damaged.
    """
    import tensorflow_datasets as tfds

    (info,) = folder.glob(f"*/{config}/*/dataset_info.json")
    written = count(info.parent)
    if written != expected:
        raise ValueError(f"{folder} has {written} {config}, not {expected}; rebuild it")
    builder: Any = tfds.builder_from_directory(info.parent)
    return builder.as_data_source("train")


def read(folder: Path, config: str, expected: int, damaged: float = 0.0) -> list[dict[str, Any]]:
    """All of them; up to a share of `damaged` may be left out, with a warning.

    Raises:
      ValueError: as `opened`, or more of them are damaged.
    """
    source = opened(folder, config, expected)
    try:
        return source.__getitems__(range(expected))
    except RuntimeError:  # array_record checks every chunk that it reads
        return _readable(source, expected, damaged, f"the {config} of {folder}")


def _readable(source: Any, expected: int, damaged: float, what: str) -> list[dict[str, Any]]:
    """The records of a source that are not damaged, read one by one."""
    found, lost = [], 0
    for place in range(expected):
        try:
            found.append(source[place])
        except RuntimeError as error:
            lost += 1
            if lost > damaged * expected:
                raise ValueError(f"{what} are damaged; rebuild it: {error}") from error
    logger.warning("%d of %d of %s are DAMAGED and left out; rebuild it", lost, expected, what)
    return found


def columns_of(
    timelines: Sequence[dict[str, Any]],
) -> tuple[list[str], Int[np.ndarray, " users"], dict[str, np.ndarray]]:
    """Users, how many events each has, and all events by column, from timelines' records."""
    users = [one["user"].decode() for one in timelines]
    lengths = np.array([len(one["timestamp"]) for one in timelines], np.int64)
    names = [name for name in timelines[0] if name != "user"] if timelines else []
    return users, lengths, {name: _joined([t[name] for t in timelines]) for name in names}


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    column = np.concatenate(parts)
    return column if column.dtype != object else np.array([v.decode() for v in column], object)


def plain(value: Any) -> Any:
    """A record's value with text where the file has bytes."""
    if isinstance(value, bytes):
        return value.decode()
    strings = isinstance(value, np.ndarray) and value.dtype.kind == "O"
    return [v.decode() for v in value] if strings else value
