"""What a builder told while it built a data set."""

import json
from pathlib import Path


def remarks(folder: Path) -> str:
    return "\n".join(json.loads((folder / "counts.json").read_text())["remarks"])
