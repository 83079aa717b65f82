"""Small worlds of users, the index of their peers, and what they have grown into later."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from user_llm.data.peer_building import build
from user_llm.data.peer_index import PeerIndex
from user_llm.data.timelines import user_of

# Users' events as (time, item), in order of time; few of each, so that ties and repeats abound.
events_of_a_user = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=8)
worlds = st.lists(events_of_a_user.map(lambda own: sorted(own, key=lambda e: e[0])), max_size=7)


class Arrays(NamedTuple):
    offsets: np.ndarray
    times: np.ndarray
    item: np.ndarray


def arrays(users) -> Arrays:
    flat = [event for own in users for event in own]
    times, item = np.array(flat, np.int64).reshape(-1, 2).T
    return Arrays(np.cumsum([0, *map(len, users)]), times.copy(), item.astype(np.int32))


@contextmanager
def index(users, **options) -> Iterator[PeerIndex]:
    with TemporaryDirectory() as folder:
        yield build(Path(folder), *arrays(users), **options)


def everybody(users) -> np.ndarray:
    return np.arange(sum(map(len, users)))


def listed(peers) -> list[list[int]]:
    """The peers of each row, none behind the first -1."""
    for row in peers.tolist():
        assert sorted(row, key=lambda peer: peer < 0) == row
    return [[peer for peer in row if peer >= 0] for row in peers.tolist()]


def grown(data, users):
    """The same world later: events from time 9 on for all users, and new users among them."""
    later = st.lists(st.tuples(st.integers(9, 12), st.integers(0, 6)), max_size=4)
    later = later.map(lambda own: sorted(own, key=lambda e: e[0]))
    new, place = [], []
    for own in users:
        new += data.draw(st.lists(later, max_size=1))
        place.append(len(new))
        new.append([*own, *data.draw(later)])
    new += data.draw(st.lists(later, max_size=2))
    old, offsets = arrays(users), arrays(new).offsets
    user = user_of(everybody(users), old.offsets)
    moved = offsets[np.array(place, int)][user] + everybody(users) - old.offsets[user]
    return new, moved
