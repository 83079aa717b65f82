"""A small data set made by hand: every user a list of items, every event with its own words."""

import numpy as np

from user_llm.data.dataset import Dataset, Items
from user_llm.data.features import KNOWN, Bag, Categorical, Numeric
from user_llm.data.schema import TimelineSchema

GENRES = ((), ("Drama",), ("Comedy", "Drama"), ("Action",), ("Action", "Comedy"))  # of item % 5
SCHEMA = TimelineSchema(
    features=(
        Categorical(name="item"),
        Categorical(name="rating"),
        Bag(name="genres", of="item"),
        Numeric(name="price", of="item"),
    ),
    predicted=("item", "rating"),
)


def title(item: int) -> str:
    return f"Film {item} of many"


def review(event: int) -> str:
    return f"note {event} ends" if event % 3 else ""


def lengths_to_items(lengths: list[int]) -> list[list[int]]:
    """Timelines of these lengths in which every event has an item of its own."""
    stops = np.cumsum(lengths).tolist()
    return [list(range(stop - n, stop)) for stop, n in zip(stops, lengths, strict=True)]


def dataset(timelines: list[list[int]], *, items: int = 0, times=None) -> Dataset:
    """The users' items in time order; `items` of them exist, by default those that occur."""
    flat = np.array([item for timeline in timelines for item in timeline], np.int64)
    catalog = np.arange(items or int(flat.max()) + 1)
    columns = {
        "item": catalog,
        "rating": np.arange(len(flat)) % 5 + 1,
        "genres": [list(GENRES[item % 5]) for item in catalog],
        "price": catalog % 7 * 1.5,
    }
    vocabularies = {f.name: f.fit(columns[f.name]) for f in SCHEMA.features}
    encoded = {f.name: f.encode(columns[f.name], vocabularies[f.name]) for f in SCHEMA.features}
    blank = {n: np.zeros((KNOWN, *encoded[n].shape[1:]), encoded[n].dtype) for n in encoded}
    return Dataset(
        schema=SCHEMA,
        vocabularies=vocabularies,
        users=tuple(f"user {u}" for u in range(len(timelines))),
        offsets=np.cumsum([0, *map(len, timelines)]),
        items=Items(
            ids=("",) * KNOWN + tuple(map(str, catalog)),
            titles=("",) * KNOWN + tuple(map(title, catalog)),
            genres=((),) * KNOWN + tuple(GENRES[item % 5] for item in catalog),
            texts=("",) * KNOWN + tuple(f"The plot of {item}." for item in catalog),
            features={n: np.concatenate([blank[n], encoded[n]]) for n in ("genres", "price")},
        ),
        item=encoded["item"][flat],
        times=np.arange(len(flat)) if times is None else np.asarray(times),
        features={"rating": encoded["rating"]},
        ratings=columns["rating"].astype(np.float32),
        reviews=[review(event) for event in range(len(flat))],
    )
