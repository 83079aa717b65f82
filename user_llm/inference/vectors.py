"""What folders of vectors have in common: an index that says what they hold."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from user_llm.files import unfinished, write_atomically


def fingerprint(params: dict) -> str:
    """The SHA-256 of parameters, their names included."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def begin(folder: Path, index: dict[str, Any]) -> None:
    """Says in a folder's `index.json` what it holds, unless it says so already.

    Raises:
      ValueError: it holds something else.
    """
    path = folder / "index.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found != index:
            differing = [name for name in index if found.get(name) != index[name]]
            raise ValueError(
                f"{folder} holds other vectors ({', '.join(differing)} differ); choose another "
                "folder, or remove it"
            )
        return
    # What another process is about to name, or was killed over, is no content.
    if folder.exists() and not (folder.is_dir() and all(map(unfinished, folder.iterdir()))):
        raise ValueError(f"{folder} is not an empty folder; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(index, indent=2) + "\n")
