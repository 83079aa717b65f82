"""Made-up timelines with the shape of MovieLens 1M, to measure speed on: sizes, not tastes."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int

from user_llm.data.dataset import Dataset, Items
from user_llm.data.features import KNOWN, Categorical
from user_llm.data.schema import TimelineSchema

SPREAD = 1.045  # of the logarithm of a timeline's length
SKEW = 0.75  # the exponent of Zipf's law


@dataclass(frozen=True)
class Shape:
    """How many of what there are."""

    users: int
    items: int
    events: int
    shortest: int  # timeline
    longest: int


MOVIELENS_1M = Shape(users=6040, items=3706, events=1_000_209, shortest=20, longest=2314)


def timelines(
    shape: Shape = MOVIELENS_1M, seed: int = 0
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " U1"]]:
    """The items 0 to `shape.items` of all events by user, none twice, and the users' offsets.

    Lengths are log-normal between the shortest and the longest, popularity follows Zipf's law.

    Raises:
      ValueError: timelines of these lengths cannot have so many events, or need more items.
    """
    room = shape.users * shape.shortest, shape.users * shape.longest
    if not room[0] <= shape.events <= room[1] or shape.longest > shape.items:
        raise ValueError(f"{shape} asks for timelines that cannot be; mend its sizes")
    rng = np.random.default_rng(seed)
    lengths = scaled(np.exp(SPREAD * rng.normal(size=shape.users)), shape)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    popularity = -SKEW * np.log(np.arange(1, shape.items + 1))
    items = np.empty(offsets[-1], np.int64)
    for start, stop in pairwise(offsets):
        # The largest of popularity plus Gumbel noise are a draw without replacement, in its order.
        drawn = popularity + rng.gumbel(size=shape.items)
        items[start:stop] = np.argsort(-drawn)[: stop - start]
    return items, offsets


def scaled(lengths: np.ndarray, shape: Shape) -> Int[np.ndarray, " U"]:
    """The lengths times the factor by which, within their bounds, they are as many as asked for."""
    low, high = 0.0, shape.longest / lengths.min()
    for _ in range(100):
        middle = (low + high) / 2
        tried = np.clip(np.floor(middle * lengths), shape.shortest, shape.longest)
        low, high = (middle, high) if tried.sum() <= shape.events else (low, middle)
    found = np.clip(np.floor(low * lengths), shape.shortest, shape.longest).astype(np.int64)
    able = np.flatnonzero(found < shape.longest)
    found[able[: shape.events - found.sum()]] += 1
    return found


def dataset(items: Int[np.ndarray, " N"], offsets: Int[np.ndarray, " U1"], size: int) -> Dataset:
    """A data set of these timelines whose events are `size` items and nothing else."""
    item = Categorical(name="item")
    catalog = tuple(map(str, range(size)))
    vocabulary = item.fit(np.arange(size))
    blank = ("",) * (KNOWN + size)
    return Dataset(
        schema=TimelineSchema(features=(item,)),
        vocabularies={"item": vocabulary},
        users=tuple(map(str, range(len(offsets) - 1))),
        offsets=offsets,
        items=Items(("",) * KNOWN + catalog, blank, ((),) * len(blank), blank, {}),
        item=(items + KNOWN).astype(np.int32),
        times=np.arange(len(items)),
        features={},
        ratings=None,
        reviews=None,
    )
