"""What a data set is without its users: its schema, its vocabularies, and what it knows of items.

That is enough to encode any events as the data set's own were.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter
from safetensors.numpy import load_file, save_file

from user_llm.data.dataset import Dataset, Items
from user_llm.data.features import Vocabulary
from user_llm.data.schema import TimelineSchema

SCHEMA, VOCABULARIES = "schema.json", "vocabularies.json"
TOLD, FEATURES = "items.parquet", "items.safetensors"
_vocabularies = TypeAdapter(dict[str, Vocabulary])


def frame(data: Dataset) -> Dataset:
    """The data set without users."""
    none = slice(0, 0)
    return replace(
        data,
        users=(),
        offsets=np.zeros(1, np.int64),
        item=data.item[none],
        times=data.times[none],
        features={name: values[none] for name, values in data.features.items()},
        ratings=None if data.ratings is None else data.ratings[none],
        reviews=None if data.reviews is None else [],
        asked=None,
        since=data.origin,
    )


def write(data: Dataset, folder: Path) -> None:
    """Writes a data set's frame into a folder: JSON, Parquet and safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCHEMA).write_text(data.schema.model_dump_json(indent=2))
    events = {name: (str(x.dtype), x.shape[1:]) for name, x in data.features.items()}
    said = {
        "vocabularies": _vocabularies.dump_python(data.vocabularies, mode="json"),
        "events": events,
        "rated": data.ratings is not None,
        "reviewed": data.reviews is not None,
        "since": data.origin,
    }
    (folder / VOCABULARIES).write_text(json.dumps(said))
    items = data.items
    columns = {"id": items.ids, "title": items.titles, "genres": items.genres, "text": items.texts}
    table = pa.table({name: list(column) for name, column in columns.items()})
    pq.write_table(table, folder / TOLD)
    save_file(items.features, folder / FEATURES)


def read(folder: Path) -> Dataset:
    """The frame that `write` has written."""
    said = json.loads((folder / VOCABULARIES).read_text())
    table = pq.read_table(folder / TOLD)
    ids, titles, texts = (tuple(table[name].to_pylist()) for name in ("id", "title", "text"))
    genres = tuple(map(tuple, table["genres"].to_pylist()))
    none = {name: np.zeros((0, *shape), kind) for name, (kind, shape) in said["events"].items()}
    return Dataset(
        schema=TimelineSchema.model_validate_json((folder / SCHEMA).read_text()),
        vocabularies=_vocabularies.validate_python(said["vocabularies"]),
        users=(),
        offsets=np.zeros(1, np.int64),
        items=Items(ids, titles, genres, texts, load_file(folder / FEATURES)),
        item=np.zeros(0, np.int32),
        times=np.zeros(0, np.int64),
        features=none,
        ratings=np.zeros(0, np.float32) if said["rated"] else None,
        reviews=[] if said["reviewed"] else None,
        since=said["since"],
    )
