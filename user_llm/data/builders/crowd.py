"""A crowd of made-up users, to measure on by the million: sizes, not tastes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from user_llm.data.builders.base import Raw, Record, TimelineBuilder, bare_item
from user_llm.data.features import Categorical, Time
from user_llm.data.schema import TimelineSchema

SCHEMA = TimelineSchema(
    features=(Categorical(name="item"), Categorical(name="rating"), Time(name="time")),
    predicted=("item", "rating"),
)
ITEMS = 10_000
EVENTS = (5, 50)  # of the shortest and of the longest timeline; most are short
EPOCH = 1_640_995_200  # 2022-01-01
CHUNK = 4096  # users drawn at a time


class Crowd(TimelineBuilder, skip_registration=True):
    """Users whose every event is drawn alone, popular items more often by Zipf's law."""

    name = "crowd"

    @classmethod
    def files(
        cls, source: Path | None, version: str, *, users: int = 2000, seed: int = 0
    ) -> list[Path]:
        if source is not None or version:
            raise ValueError(f"a crowd is made, not read from a source ({source}), in one version")
        return [Path(__file__)]

    @classmethod
    def read(cls, source: None, version: str, *, users: int = 2000, seed: int = 0) -> Raw:
        items = [bare_item(f"i{n:05d}") for n in range(ITEMS)]
        return Raw(SCHEMA, users, lambda: _timelines(users, seed), items, [])


def _timelines(users: int, seed: int) -> Iterator[Record]:
    names = np.array([f"i{n:05d}" for n in range(ITEMS)], object)
    edges, (shortest, longest) = np.cumsum(1 / np.arange(1, ITEMS + 1)), EVENTS
    for first in range(0, users, CHUNK):
        rng, count = np.random.default_rng((seed, first)), min(CHUNK, users - first)
        lengths = np.minimum(shortest + rng.geometric(0.1, count) - 1, longest)
        stops = np.cumsum(lengths)
        events = stops[-1]
        items = names[np.searchsorted(edges, rng.random(events) * edges[-1])]
        ratings = rng.integers(1, 6, events).astype(np.float32)
        gaps = rng.integers(60, 7 * 86_400, events)
        for nth, (start, stop) in enumerate(zip(stops - lengths, stops, strict=True)):
            own = slice(start, stop)
            yield {
                "user": f"u{first + nth:08d}",
                "item": items[own],
                "timestamp": EPOCH + np.cumsum(gaps[own]),
                "rating": ratings[own],
            }
