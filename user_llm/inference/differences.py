"""What sets every event apart from those of its peers, computed before training begins."""

import hashlib
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
AT_ONCE = 2**15  # events


class Compared(NamedTuple):
    """The vectors of a data set's events that are compared."""

    vectors: Float[np.ndarray, "N D"]
    known: Bool[np.ndarray, " N"]  # which events have one
    source: str  # what made them, by which differences are kept


def column(
    data: Dataset, compared: Compared, config: PeerConfig, folder: Path
) -> Float[np.ndarray, "N columns"]:
    """Each event's difference from its peers, and a last number: 1 where there was any, else 0.

    They are made now unless `folder` holds them; so is the index of who came before whom.

    Raises:
      ValueError: as `peer_building.build`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = f"{data.hash}{compared.source}{config.model_dump_json()}"
    path = folder / f"differences-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if not path.is_file():
        index = peer_building.build(folder, data.offsets, data.times, data.item)
        write_whole(path, partial(_write, index=index, compared=compared, config=config))
    return np.load(path, mmap_mode="r")


def _write(path: Path, *, index: PeerIndex, compared: Compared, config: PeerConfig) -> None:
    vectors, known = compared.vectors, compared.known
    events, width = np.arange(len(vectors)), vectors.shape[1]
    means = None if config.weights == "uniform" else peers.running_means(vectors, index.offsets)
    found = np.lib.format.open_memmap(path, "w+", np.float32, (len(vectors), width + 1))
    with tqdm(total=len(events), desc="differences", unit="event") as bar:
        for start in range(0, len(events), AT_ONCE):
            some = events[start : start + AT_ONCE]
            others = chosen(index, compared, some, config)
            apart, paired = peers.differences(
                vectors, others, some, config.weights, means=means, temperature=config.temperature
            )
            there = paired & known[some]
            kept = there & (config.chosen != "none")
            found[some, :-1], found[some, -1] = apart * kept[:, None], there
            bar.update(len(some))
    found.flush()


def chosen(
    index: PeerIndex, compared: Compared, events: Int[np.ndarray, " M"], config: PeerConfig
) -> Int[np.ndarray, "M P"]:
    """The peers of these events, as a config chooses them among those that have a vector."""
    vectors, most = compared.vectors, config.most
    wide = config.chosen in ("random", "least_similar", "representatives")
    others = index.same_item(events, most * CANDIDATES if wide else most)
    others = np.where((others >= 0) & compared.known[others], others, -1)
    if config.chosen == "random":
        return peers.random_peers(others, events, most)
    if config.chosen == "least_similar":
        return peers.least_similar_peers(vectors, others, events, most)
    if config.chosen == "representatives":
        return peers.representative_peers(vectors, others, events, most)
    if config.chosen == "shuffled":
        return strangers(index, events, others >= 0)
    return others


def strangers(
    index: PeerIndex, events: Int[np.ndarray, " M"], wanted: Bool[np.ndarray, "M P"]
) -> Int[np.ndarray, "M P"]:
    """As many random earlier events of others as are wanted, whatever their item."""
    order = np.argsort(index.times, kind="stable")
    before = np.searchsorted(index.times[order], index.times[events])  # strictly earlier ones
    drawn = [np.random.default_rng([event, 4]).random(wanted.shape[1]) for event in events]
    found = order[(np.stack(drawn) * before[:, None]).astype(np.int64)]
    own = user_of(events, index.offsets)[:, None]
    return np.where(wanted & (user_of(found, index.offsets) != own), found, -1)
