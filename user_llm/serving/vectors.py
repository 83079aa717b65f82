"""Users' vectors as one table, as feature stores take it."""

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from user_llm import trained
from user_llm.data.dataset import Dataset
from user_llm.inference import embeddings
from user_llm.inference.vectors import fingerprint
from user_llm.serving import sealed
from user_llm.serving.leaving import Leaving
from user_llm.serving.served import TEST

FORMAT = "vectors"
TABLE = "users.parquet"
SHARD = embeddings.SHARD
KEPT = 16  # users of the self-test at most


def write(leaving: Leaving, folder: Path) -> None:
    """Writes the vector that a run's encoder makes of each user: what `user-llm embed` writes.

    The table has the columns `user`, `vector`, a list of as many numbers as its dimension, and
    `event_timestamp`, of the newest event that was read. Its metadata are the model's hash, the
    dimension and the date.

    Raises:
      ValueError: there is something already, the encoder has not been trained, or a system is
        named, of which the vectors know nothing.
    """
    if leaving.name != "user_llm":
        raise ValueError(f"{FORMAT} are of the run's encoder; leave --system {leaving.name} out")
    made, users = trained.recommender(leaving.run), leaving.users
    told = {
        "model": fingerprint(made.params),
        "dimension": made.width,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }

    def fill(new: Path) -> None:
        with TemporaryDirectory(dir=new.parent) as place:
            shards, asked = Path(place, "shards"), (made.states, len(users.users), users.some)
            embeddings.write(*asked, shards, told={"width": made.width}, shard=SHARD)
            put_together(shards, users, new / TABLE, {k: str(x) for k, x in told.items()})
        save_file(kept(pq.read_table(new / TABLE)), new / f"{TEST}.safetensors")

    sealed.sealed(folder, FORMAT, fill, {"run": leaving.run.experiment.name} | told)


def put_together(shards: Path, users: Dataset, path: Path, told: dict[str, str]) -> None:
    """Makes one table of shards, of which no more than one is in memory."""
    ends = zip(users.offsets[:-1].tolist(), users.offsets[1:].tolist(), strict=True)
    newest = [1000 * int(users.times[stop - 1]) if stop > start else None for start, stop in ends]
    at, writer = 0, None
    try:
        for names, vectors in embeddings.read(shards):
            vectors = np.asarray(vectors, np.float32)
            column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
            times = pa.array(newest[at : at + len(names)], pa.timestamp("ms", "UTC"))
            table = pa.table({"user": names, "vector": column, "event_timestamp": times})
            table = table.replace_schema_metadata(told)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
            at += len(names)
    finally:
        if writer:
            writer.close()


def load(folder: Path) -> pa.Table:
    """The table in an export's folder.

    Raises:
      ValueError: the folder is not as it was written, or the table is not read as it was.
    """
    told = sealed.opened(folder, FORMAT)
    table = pq.read_table(folder / TABLE)
    wanted, found = load_file(folder / f"{TEST}.safetensors"), kept(table)
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    differing = [name for name in wanted if not np.array_equal(wanted[name], found[name])]
    differing += [k for k in ("model", "dimension", "date") if metadata.get(k) != str(told[k])]
    if differing:
        raise ValueError(f"{folder}: {', '.join(differing)} differ from what was exported")
    return table


def kept(table: pa.Table) -> dict[str, Any]:
    """Some rows, from the first to the last, and their vectors."""
    rows = np.unique(np.linspace(0, len(table) - 1, min(KEPT, len(table))).astype(np.int64))
    vectors = table["vector"].take(pa.array(rows)).combine_chunks()
    return {"rows": rows, "vectors": vectors.flatten().to_numpy().reshape(len(rows), -1).copy()}
