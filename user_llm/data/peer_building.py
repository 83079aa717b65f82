"""The index of peers on disk: built block by block of items.

A folder holds `events.npy` and `starts.npy`, the arrays of `PeerIndex`, and `index.json`, which
tells of which data set they are, and the SHA-256 of both.
"""

import hashlib
import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Int

from user_llm.data.peer_index import PeerIndex, pieces
from user_llm.data.timelines import Indices
from user_llm.files import write_folder

FILES = ("events.npy", "starts.npy")
MEMORY = 512 * 2**20  # bytes
EVENT = 72  # bytes that sorting takes for each event of a block, and some to spare


def build(
    folder: Path,
    offsets: Int[np.ndarray, " offsets"],
    times: Int[np.ndarray, " N"],
    item: Int[np.ndarray, " N"],
    *,
    memory: int = MEMORY,
) -> PeerIndex:
    """The index of a data set's events, from `folder` if it is there, and else built there.

    It goes by a hash of the arrays, which may be memory-mapped. Beside them building takes at most
    `memory` bytes, or what the events of the one most frequent item take. The folder is not the
    data set's own, whose fingerprint tells of all that is in it.

    Raises:
      ValueError: the arrays do not fit each other, or the index that is there is damaged.
    """
    if not len(times) == len(item) == offsets[-1]:
        raise ValueError(
            f"{len(times)} times and {len(item)} items are not the {offsets[-1]} events of offsets"
        )
    digest = hashlib.sha256()
    for array in (offsets, times, item):
        digest.update(f"{array.dtype}{array.shape}".encode())
        for piece in pieces(len(array)):
            digest.update(np.ascontiguousarray(array[piece]).data)
    path = folder / f"peers-{digest.hexdigest()[:16]}"
    if not path.exists():
        write_folder(path, partial(_write, digest.hexdigest(), times, item, memory))
    return PeerIndex(offsets, times, item, **_read(path, digest.hexdigest()))


def _write(data: str, times: Indices, item: Indices, memory: int, folder: Path) -> None:
    counts = np.zeros(max((int(item[piece].max()) for piece in pieces(len(item))), default=-1) + 1)
    counts = counts.astype(np.int64)
    for piece in pieces(len(item)):
        counts += np.bincount(item[piece], minlength=len(counts))
    starts = np.concatenate([[0], np.cumsum(counts)])
    np.save(folder / "starts.npy", starts)
    dtype = np.dtype(np.int32 if len(item) < 2**31 else np.int64)
    with (folder / "events.npy").open("wb") as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": (len(item),)}
        np.lib.format.write_array_header_1_0(file, header)
        for first, stop in pairwise(_blocks(starts, memory // EVENT)):
            _sorted(first, stop, times, item).astype(dtype).tofile(file)
    told = {"data": data, "sha256": {name: _sha256(folder / name) for name in FILES}}
    (folder / "index.json").write_text(json.dumps(told, indent=2) + "\n")


def _read(path: Path, data: str) -> dict[str, np.ndarray]:
    try:
        index = json.loads((path / "index.json").read_text())
        sound = index["sha256"] == {name: _sha256(path / name) for name in FILES}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no index of peers; remove it and build again") from error
    if not sound:
        raise ValueError(f"{path} is damaged; remove it and build again")
    if index["data"] != data:
        raise ValueError(f"{path} is the index of another data set; remove it and build again")
    return {Path(name).stem: np.load(path / name, mmap_mode="r") for name in FILES}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blocks(starts: Indices, limit: int) -> list[int]:
    """The items at which blocks of at most `limit` events begin, and where the last one ends."""
    cuts = [0]
    while cuts[-1] < len(starts) - 1:
        fits = np.searchsorted(starts, starts[cuts[-1]] + limit, side="right") - 1
        cuts.append(max(cuts[-1] + 1, int(fits)))
    return cuts


def _sorted(first: int, stop: int, times: Indices, item: Indices) -> Indices:
    """The events of the items from `first` to `stop`."""
    found = []
    for piece in pieces(len(item)):
        mine = (item[piece] >= first) & (item[piece] < stop)
        found.append(np.flatnonzero(mine) + piece.start)
    events = np.concatenate([np.zeros(0, np.int64), *found])
    return events[np.lexsort((times[events], item[events]))]  # stable, so ties are by number
