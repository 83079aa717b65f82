"""The vectors of all users on disk, shard after shard, for millions of them.

A folder holds `index.json`, which says whose vectors they are by which encoder, and one safetensors
file a shard: `vectors` [n, D], and in its metadata the ids of the users as a JSON list. What was
interrupted goes on with the first shard that is not there.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors import safe_open
from safetensors.numpy import save_file

from user_llm.data.dataset import Dataset
from user_llm.files import write_whole
from user_llm.inference.recommend import Recommender
from user_llm.inference.vectors import begin, fingerprint

SHARD = 65_536  # users


def write(recommender: Recommender, data: Dataset, folder: Path, *, shard: int = SHARD) -> int:
    """Writes the vector of every user of a data set as of the last event; how many shards it made.

    Beside the data set itself, no more than a shard is in memory.

    Raises:
      ValueError: the folder holds the vectors of another encoder or of other users.
    """
    users = len(data.users)
    index = {
        "users": users,
        "width": recommender.width,
        "shard": shard,
        "encoder": fingerprint(recommender.params),
        "data": data.hash,
    }
    begin(folder, index)
    made = 0
    for number, first in enumerate(range(0, users, shard)):
        path = folder / _name(number)
        if path.is_file():
            continue
        chosen = np.arange(first, min(first + shard, users))
        vectors = {"vectors": recommender.states(data, chosen)}
        told = {"users": json.dumps(data.users[first : first + shard])}
        write_whole(path, lambda path, v=vectors, t=told: save_file(v, path, metadata=t))
        made += 1
    return made


def read(folder: Path) -> Iterator[tuple[list[str], Float[np.ndarray, "N D"]]]:
    """The users and their vectors [n, D], a shard at a time.

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
        with safe_open(path, "numpy") as file:
            yield json.loads(file.metadata()["users"]), file.get_tensor("vectors")


def _name(number: int) -> str:
    return f"vectors-{number:05d}.safetensors"
