"""Builders: raw files become timelines and items in array_record, ready to load."""

from importlib import import_module
from pathlib import Path
from typing import Any

BUILDERS = {  # by module
    "amazon_reviews": "AmazonReviews",
    "crowd": "Crowd",
    "google_local": "GoogleLocal",
    "lamp": "LaMP",
    "movielens": "MovieLens",
    "sequences": "Sequences",
    "table": "Table",
    "world": "World",
}


def build(
    name: str,
    *,
    data_dir: Path,
    source: Path | None = None,
    version: str = "",
    **options: Any,
) -> Path:
    """The folder below `data_dir` of the built data set, built now unless it is there already.

    The folder's name tells the content of the source files, the schema and the options, so whatever
    changes is built anew. `options` are those of the builder's `read`; `beam`, a list of Apache
    Beam's options, lets that build it, and the records are the same.

    Raises:
      ValueError: an unknown builder or version, or source files that cannot be read.
    """
    if name not in BUILDERS:
        raise ValueError(f"no builder is named {name!r}; choose from {', '.join(BUILDERS)}")
    module = import_module(f"{__name__}.{name}")  # TFDS takes a second to import
    return getattr(module, BUILDERS[name]).build(source, data_dir, version, **options)
