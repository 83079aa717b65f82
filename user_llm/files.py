"""Files that are whole, or not there: written under another name first."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file in the place of what was there."""
    data = content.encode() if isinstance(content, str) else content
    write_whole(path, lambda unfinished: unfinished.write_bytes(data))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """The same with what `write` makes of a path; if it fails, nothing is left of it."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(unfinished)
        unfinished.chmod(0o644)  # safetensors writes 0600
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """The same with a folder that `write` fills; what another process made meanwhile stays."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        write(unfinished)
        os.replace(unfinished, path)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
