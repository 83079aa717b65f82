"""The index of peers on disk: built block by block of items, and extended as a data set grows.

A folder holds `events.npy` and `starts.npy`, the arrays of `PeerIndex`, and `index.json`, which
tells of which data set they are, and the SHA-256 of both.
"""

import hashlib
import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from user_llm.data.peer_index import PeerIndex, bisect, pieces
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
    return _index(folder, offsets, times, item, memory, None)


def extend(
    old: PeerIndex,
    moved: Int[np.ndarray, " old"],
    folder: Path,
    offsets: Int[np.ndarray, " offsets"],
    times: Int[np.ndarray, " N"],
    item: Int[np.ndarray, " N"],
    *,
    memory: int = MEMORY,
) -> PeerIndex:
    """The same as `build` of a data set that has grown, but only what is new is sorted.

    `moved` are the numbers that the old events, in their order, have in the new data set. Users and
    items may have new numbers too, as long as their order is the old one.

    Raises:
      ValueError: as `build`; or those are not the old events, or they come in another order.
    """
    return _index(folder, offsets, times, item, memory, (old, moved))


def _index(
    folder: Path,
    offsets: Indices,
    times: Indices,
    item: Indices,
    memory: int,
    known: tuple[PeerIndex, Indices] | None,
) -> PeerIndex:
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
        write_folder(path, partial(_write, digest.hexdigest(), times, item, memory, known))
    return PeerIndex(offsets, times, item, **_read(path, digest.hexdigest()))


def _write(
    data: str,
    times: Indices,
    item: Indices,
    memory: int,
    known: tuple[PeerIndex, Indices] | None,
    folder: Path,
) -> None:
    counts = np.zeros(max((int(item[piece].max()) for piece in pieces(len(item))), default=-1) + 1)
    counts = counts.astype(np.int64)
    for piece in pieces(len(item)):
        counts += np.bincount(item[piece], minlength=len(counts))
    starts = np.concatenate([[0], np.cumsum(counts)])
    np.save(folder / "starts.npy", starts)
    dtype = np.dtype(np.int32 if len(item) < 2**31 else np.int64)
    fresh, kept = None, None
    if known is not None:
        renamed = _renamed(*known, times, item)
        fresh = np.ones(len(item), bool)
        fresh[known[1]] = False
        kept = partial(_kept, *known, renamed)
    with (folder / "events.npy").open("wb") as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": (len(item),)}
        np.lib.format.write_array_header_1_0(file, header)
        for first, stop in pairwise(_blocks(starts, memory // EVENT)):
            events = _sorted(first, stop, times, item, fresh)
            if kept is not None:
                events = _merged(kept(first, stop), events, times, item)
            events.astype(dtype).tofile(file)
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


def _sorted(
    first: int, stop: int, times: Indices, item: Indices, fresh: Bool[np.ndarray, " N"] | None
) -> Indices:
    """The events of the items from `first` to `stop`, of the fresh ones if there are old ones."""
    found = []
    for piece in pieces(len(item)):
        mine = (item[piece] >= first) & (item[piece] < stop)
        if fresh is not None:
            mine &= fresh[piece]
        found.append(np.flatnonzero(mine) + piece.start)
    events = np.concatenate([np.zeros(0, np.int64), *found])
    return events[np.lexsort((times[events], item[events]))]  # stable, so ties are by number


def _renamed(old: PeerIndex, moved: Indices, times: Indices, item: Indices) -> Indices:
    """The new number of each old item; -1 of those that do not occur."""
    if len(moved) != len(old.item):
        raise ValueError(f"{len(moved)} events are moved, but {len(old.item)} were there")
    renamed = np.full(len(old.starts) - 1, -1)
    last, sound = -1, True
    for piece in pieces(len(moved)):
        new = moved[piece]
        if not (new[0] > last and (np.diff(new) > 0).all() and new[-1] < len(item)):
            raise ValueError("the moved events are not in their old order; build the index again")
        last = new[-1]
        renamed[old.item[piece]] = item[new]
    for piece in pieces(len(moved)):
        new = moved[piece]
        sound &= np.array_equal(times[new], old.times[piece])
        sound &= np.array_equal(item[new], renamed[old.item[piece]])
    if not sound:
        raise ValueError("the moved events have other items or times; build the index again")
    if (np.diff(renamed[renamed >= 0]) <= 0).any():
        raise ValueError("the old items are not in their old order; build the index again")
    return renamed


def _kept(old: PeerIndex, moved: Indices, renamed: Indices, first: int, stop: int) -> Indices:
    """The old events of the items from `first` to `stop` in the index's order."""
    items = np.flatnonzero((renamed >= first) & (renamed < stop))
    if not len(items):
        return np.zeros(0, np.int64)
    return moved[old.events[old.starts[items[0]] : old.starts[items[-1] + 1]]]


def _merged(kept: Indices, fresh: Indices, times: Indices, item: Indices) -> Indices:
    """Two lists of events in the index's order as one."""

    def before(places: Indices, rows: Indices) -> Bool[np.ndarray, "..."]:
        a, b = kept[places], fresh[rows]
        later = (times[a] < times[b]) | ((times[a] == times[b]) & (a < b))
        return (item[a] < item[b]) | ((item[a] == item[b]) & later)

    ends = np.full(len(fresh), len(kept))
    return np.insert(kept, bisect(np.zeros_like(ends), ends, before), fresh)
