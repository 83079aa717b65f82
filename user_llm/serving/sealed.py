"""A folder that says what is in it, file by file, and is refused where that is no longer so."""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from user_llm.files import write_folder

INDEX = "export.json"
# Of each format, what this release writes and reads.
LAYOUTS = {"huggingface": 1, "stablehlo": 1, "soft-prompt": 1, "vectors": 1}
CACHED = "__pycache__"  # what Python leaves beside a module that it imports


def sealed(
    folder: Path, form: str, fill: Callable[[Path], Any], told: dict[str, Any] | None = None
) -> None:
    """Writes a folder that `fill` fills, whole or not at all, with an index of its files.

    Raises:
      ValueError: there is something already.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already; choose another folder, or remove it")

    def write(new: Path) -> None:
        fill(new)
        for path in new.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes 0600
        said = {
            "format": form,
            "layout": LAYOUTS[form],
            "user_llm": version("user-llm"),
            **(told or {}),
            "files": hashes(new),
        }
        (new / INDEX).write_text(json.dumps(said, indent=2) + "\n")

    folder.parent.mkdir(parents=True, exist_ok=True)
    write_folder(folder, write)


def opened(folder: Path, form: str) -> dict[str, Any]:
    """What the index of such a folder says, once everything has been found to be as it says.

    Raises:
      ValueError: the folder is no export, of another format or layout, or files of it are missing,
        damaged or of another export; all are named.
    """
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds no export; make one with `user-llm export RUN`")
    try:
        said = json.loads((folder / INDEX).read_text())
        known, found = said["files"], (said["format"], said["layout"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / INDEX} is damaged; export the run again") from error
    if found != (form, LAYOUTS[form]):
        raise ValueError(
            f"{folder} is of format {found[0]}, layout {found[1]}, made by user_llm "
            f"{said.get('user_llm')}; {form}, layout {LAYOUTS[form]} is read here: export the run "
            "again with this release"
        )
    there = hashes(folder)
    problems = [f"{name} is missing" for name in sorted(known.keys() - there.keys())]
    problems += [f"{name} does not belong to it" for name in sorted(there.keys() - known.keys())]
    problems += [
        f"{name} is damaged, or of another export"
        for name in sorted(known.keys() & there.keys())
        if known[name] != there[name]
    ]
    if problems:
        raise ValueError(f"{folder}: {'; '.join(problems)}; export the run again")
    return said


def of_text(text: str) -> str:
    """A text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file but the index, by its path in the folder."""
    files = (
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / INDEX and CACHED not in path.parts
    )
    return {path.relative_to(folder).as_posix(): _hash(path) for path in files}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
