"""What sets every event apart from those of its peers, computed before training begins."""

import hashlib
import tempfile
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm.auto import tqdm

from user_llm.config import PeerConfig
from user_llm.data import peer_building, peers
from user_llm.data.dataset import Dataset
from user_llm.data.peer_index import PeerIndex
from user_llm.data.timelines import user_of
from user_llm.files import write_whole

CANDIDATES = 4  # times as many as are chosen at random, or because they are unlike
AT_ONCE = 2**19  # candidates of events


class Compared(NamedTuple):
    """The vectors of a data set's events that are compared."""

    vectors: Float[np.ndarray, "N D"]
    known: Bool[np.ndarray, " N"]  # which events have one
    source: str  # what made them, by which differences are kept


class Candidates(NamedTuple):
    """The N events that have a vector, and what choosing among them takes."""

    index: PeerIndex  # of these alone, numbered by their place among them
    vectors: Float[np.ndarray, "N D"]
    seeds: Int[np.ndarray, " N"]  # of an event, whatever else the data set holds
    by_time: Int[np.ndarray, " N"] | None  # where strangers are asked for


def column(
    data: Dataset, compared: Compared, config: PeerConfig, folder: Path
) -> Float[np.ndarray, "N columns"]:
    """Each event's difference from its peers, and a last number: 1 where there was any, else 0.

    They are made now unless `folder` holds them; so is the index of who came before whom. Events
    without a vector are nobody's peers and hide no other event of their user.

    Raises:
      ValueError: as `peer_building.build`; or clusters are asked for without scikit-learn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = f"{data.hash}{compared.source}{config.model_dump_json()}"
    path = folder / f"differences-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if not path.is_file():
        write_whole(path, partial(_write, data=data, compared=compared, config=config))
    return np.load(path, mmap_mode="r")


def candidates(data: Dataset, compared: Compared, config: PeerConfig, folder: Path) -> Candidates:
    """Those of a data set; the index is kept in the folder."""
    events = np.flatnonzero(compared.known)
    whole = len(events) == len(data.item)
    pick = (lambda x: x) if whole else (lambda x: x[events])
    offsets = np.concatenate([[0], np.cumsum(compared.known)])[data.offsets]
    index = peer_building.build(folder, offsets, pick(data.times), pick(data.item))
    names = np.array([zlib.crc32(name.encode()) for name in data.users], np.int64)
    user = user_of(events, data.offsets)
    seeds = names[user] << 31 | events - data.offsets[user]
    by_time = np.argsort(index.times, kind="stable") if config.chosen == "shuffled" else None
    return Candidates(index, pick(compared.vectors), seeds, by_time)


def _write(path: Path, *, data: Dataset, compared: Compared, config: PeerConfig) -> None:
    among = candidates(data, compared, config, path.parent)
    events, width = np.flatnonzero(compared.known), among.vectors.shape[1]
    found = np.lib.format.open_memmap(path, "w+", np.float32, (len(data.item), width + 1))
    size = max(1, AT_ONCE // (config.most * CANDIDATES))
    with (
        tempfile.TemporaryFile(dir=path.parent) as unused,
        tqdm(total=len(events), desc="differences", unit="event") as bar,
    ):
        means = None
        if config.weights != "uniform" and len(events):
            means = np.memmap(unused, np.float32, shape=among.vectors.shape)
            peers.running_means(among.vectors, among.index.offsets, means)
        for start in range(0, len(events), size):
            some = np.arange(start, min(start + size, len(events)))
            others = chosen(among, some, config)
            apart, paired = peers.differences(
                among.vectors,
                others,
                some,
                config.weights,
                means=means,
                temperature=config.temperature,
            )
            kept = paired & (config.chosen != "none")
            found[events[some], :-1], found[events[some], -1] = apart * kept[:, None], paired
            bar.update(len(some))
    found.flush()


def chosen(
    among: Candidates, events: Int[np.ndarray, " M"], config: PeerConfig
) -> Int[np.ndarray, "M P"]:
    """The peers of these events, as a config chooses them; all are numbered as `among` has them."""
    vectors, most = among.vectors, config.most
    wide = config.chosen in ("random", "least_similar", "representatives")
    others = among.index.same_item(events, most * CANDIDATES if wide else most)
    if config.chosen == "random":
        return peers.random_peers(others, among.seeds[events], most)
    if config.chosen == "least_similar":
        return peers.least_similar_peers(vectors, others, events, most)
    if config.chosen == "representatives":
        return peers.representative_peers(vectors, others, events, most)
    if among.by_time is not None:
        return strangers(among, among.by_time, events, others >= 0)
    return others


def strangers(
    among: Candidates,
    by_time: Int[np.ndarray, " N"],
    events: Int[np.ndarray, " M"],
    wanted: Bool[np.ndarray, "M P"],
) -> Int[np.ndarray, "M P"]:
    """As many random earlier events of others as are wanted, whatever their item."""
    times, offsets = among.index.times, among.index.offsets
    # Strictly earlier ones: all before the first, by time, that is not.
    first = np.searchsorted(times, times[events], sorter=by_time)
    drawn = [
        np.random.default_rng([seed, 4]).random(wanted.shape[1]) for seed in among.seeds[events]
    ]
    found = by_time[(np.stack(drawn) * first[:, None]).astype(np.int64)]
    own = user_of(events, offsets)[:, None]
    return np.where(wanted & (user_of(found, offsets) != own), found, -1)
