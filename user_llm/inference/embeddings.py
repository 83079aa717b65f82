"""What is known of every user on disk, shard after shard, for millions of them.

A folder holds `index.json`, which says whose vectors or memories they are and by which model, and a
Parquet file a shard, whose column `user` stands beside `vector`, a list of D numbers, or `memory`,
a list of tokens of W numbers each. Shards are whole or not there. What was interrupted goes on with
those that are not, and of several processes each makes its own.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from user_llm.data.dataset import Dataset
from user_llm.files import write_whole
from user_llm.inference.vectors import begin

SHARD = 16_384  # users


Known = Sequence[np.ndarray] | Float[np.ndarray, "N D"]


def write(
    make: Callable[[Dataset, Int[np.ndarray, " N"]], Known],
    count: int,
    some: Callable[[int, int], Dataset],
    folder: Path,
    *,
    told: dict[str, Any],
    shard: int = SHARD,
    part: tuple[int, int] = (0, 1),
) -> int:
    """Writes what `make` says of every user as of the last event; how many shards it made.

    No more than a shard is in memory.

    Args:
      make: of users of a data set their vectors [N, D], or of each tokens [M, W].
      count: users there are.
      some: those from a number on, up to another.
      told: of the index, what the vectors depend on.
      part: which of how many processes this is.

    Raises:
      ValueError: the folder holds something else.
    """
    begin(folder, told | {"users": count, "shard": shard})
    made, (own, processes) = 0, part
    firsts = range(own * shard, count, processes * shard)
    with tqdm(total=count, unit="user", desc=f"embed {own + 1} of {processes}") as bar:
        for first in firsts:
            last = min(first + shard, count)
            if not (path := folder / _name(first // shard)).is_file():
                for remains in folder.glob(f".{path.name}.*"):  # of one that was killed over it
                    remains.unlink()
                data = some(first, last)
                table = _table(data.users, make(data, np.arange(len(data.users))))
                write_whole(path, lambda new, table=table: pq.write_table(table, new))
                made += 1
            bar.update(last - first)
    return made


def read(folder: Path) -> Iterator[tuple[list[str], Known]]:
    """The users and what `make` said of them, a shard at a time.

    Raises:
      ValueError: the folder holds none, or not all of them.
    """
    if not (folder / "index.json").is_file():
        raise ValueError(f"{folder} holds no vectors; write some with `user-llm embed`")
    index = json.loads((folder / "index.json").read_text())
    paths = [folder / _name(n) for n in range(-(-index["users"] // index["shard"]))]
    if lost := [path.name for path in paths if not path.is_file()]:
        raise ValueError(
            f"{folder} lacks {len(lost)} of {len(paths)} shards, such as {lost[0]}; run the same "
            "`user-llm embed` again to go on"
        )
    for path in paths:
        table = pq.read_table(path)
        yield table["user"].to_pylist(), _known(table)


def _table(users: Sequence[str], known: Known) -> pa.Table:
    if isinstance(known, np.ndarray):
        width = known.shape[1]
        vectors = pa.FixedSizeListArray.from_arrays(known.astype(np.float32).ravel(), width)
        return pa.table({"user": list(users), "vector": vectors})
    width = known[0].shape[1]
    rows = np.concatenate(known).astype(np.float32).ravel()
    offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in known])])
    tokens = pa.FixedSizeListArray.from_arrays(rows, width)
    memory = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), tokens)
    return pa.table({"user": list(users), "memory": memory})


def _known(table: pa.Table) -> Known:
    if "vector" in table.column_names:
        column = table["vector"].combine_chunks()
        return column.flatten().to_numpy().reshape(len(table), -1)
    column = table["memory"].combine_chunks()
    width = column.type.value_type.list_size
    tokens = column.flatten().flatten().to_numpy().reshape(-1, width)
    lengths = np.diff(column.offsets.to_numpy())
    return np.split(tokens, np.cumsum(lengths)[:-1])


def _name(number: int) -> str:
    return f"users-{number:06d}.parquet"
