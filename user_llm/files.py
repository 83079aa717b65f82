"""Files that are whole, or not there: written under another name first."""

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file in the place of what was there."""
    data = content.encode() if isinstance(content, str) else content
    write_whole(path, lambda new: new.write_bytes(data))


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
