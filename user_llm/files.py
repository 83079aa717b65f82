"""Files that are whole, or not there: written under another name first."""

import os
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
