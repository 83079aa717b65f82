"""Files that are whole, or not there: written under another name first.

And paths, on this machine or in a bucket. There a file appears when it is whole and not before,
nothing can be appended to it, and what looks like a folder is the beginning of files' names.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from etils import epath

AnyPath = Path | epath.Path  # the latter in a bucket alone


def to_path(text: str) -> AnyPath:
    """What a text names: a path on this machine, or `gs://bucket/run` in Google's storage.

    Raises:
      ValueError: it is in another store, or the package for this one is missing.
    """
    store, given, _ = text.partition("://")
    if not given:
        return Path(text)
    if store != "gs":
        raise ValueError(
            f"{text}: of all stores, checkpoints are written to gs:// alone; mount this one and "
            "name the folder, or copy the run there when it is over"
        )
    if find_spec("gcsfs") is None:
        raise ValueError(f"{text} is reached by a package that is missing: pip install gcsfs")
    # Else gcsfs asks by gRPC what kind of bucket it is, which no stand-in for the store answers.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    from fsspec.config import conf

    # It would not notice what Orbax and other processes write.
    conf.setdefault("gs", {})["use_listings_cache"] = False
    return epath.Path(text)


def in_bucket(path: AnyPath) -> bool:
    return isinstance(path, epath.Path)


def entries(folder: AnyPath) -> list[AnyPath]:
    """What is in a folder; nothing where there is none."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def modified(path: AnyPath) -> int:
    """When it was written last, in nanoseconds."""
    if isinstance(path, Path):
        return path.stat().st_mtime_ns
    from fsspec.core import url_to_fs  # etils knows whole seconds alone

    store, name = url_to_fs(str(path))
    return round(store.modified(name).timestamp() * 1e6) * 1000


def remove_folder(path: AnyPath) -> None:
    """Removes it with all that is in it."""
    shutil.rmtree(path) if isinstance(path, Path) else path.rmtree()


@contextmanager
def nearby(folder: AnyPath) -> Iterator[Path]:
    """A folder of files for those who know this machine alone: one in a bucket as a copy.

    What is written there is put into the bucket in the end.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with TemporaryDirectory() as place:
        known = {path.name: path.read_bytes() for path in entries(folder)}
        for name, content in known.items():
            Path(place, name).write_bytes(content)
        yield Path(place)
        for path in Path(place).iterdir():
            if (content := path.read_bytes()) != known.get(path.name):
                write_atomically(folder / path.name, content)


def upload(folder: Path, to: AnyPath) -> None:
    """Writes all files of a folder, and of those in it, to another."""
    for path in folder.rglob("*"):
        if path.is_file():
            write_atomically(to / path.relative_to(folder), path.read_bytes())


def write_atomically(path: AnyPath, content: str | bytes) -> None:
    """Writes a file in the place of what was there.

    Raises:
      OSError: it could not be written.
    """
    data = content.encode() if isinstance(content, str) else content
    if isinstance(path, Path):
        write_whole(path, lambda new: new.write_bytes(data))
        return
    try:
        path.write_bytes(data)
    except Exception as error:  # each store and each network has its own
        raise OSError(f"{path} could not be written: {error}") from error


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """The same with what `write` makes of a path; if it fails, nothing is left of it."""
    new = _unfinished(path)
    try:
        write(new)
        new.chmod(0o644)  # safetensors writes 0600
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """The same with a folder that `write` fills; what another process made meanwhile stays."""
    new = _unfinished(path)
    new.mkdir(parents=True, exist_ok=True)
    try:
        write(new)
        os.replace(new, path)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def unfinished(path: Path) -> bool:
    """Whether it is such another name, of a file that may be being written."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _unfinished(path: Path) -> Path:
    """One that no other process takes, not even on another machine with the same folder."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
