"""The embedded synthetic world: a data set for which nothing need be downloaded."""

from pathlib import Path

from user_llm.data import world
from user_llm.data.builders.base import Raw, TimelineBuilder
from user_llm.data.features import Bag, Categorical, Text, Time
from user_llm.data.schema import TimelineSchema

SCHEMA = TimelineSchema(
    features=(
        Categorical(name="item"),
        Categorical(name="rating"),
        Bag(name="genres", of="item"),
        Time(name="time"),
        Text(name="review"),
    ),
    predicted=("item", "rating"),
)


class World(TimelineBuilder, skip_registration=True):
    """What the users of `user_llm.data.world.World` watched, rated and wrote."""

    name = "world"

    @classmethod
    def files(
        cls, source: Path | None, version: str, *, users: int = 2000, seed: int = 0
    ) -> list[Path]:
        if source is not None:
            raise ValueError(f"the world is made, not read from a source ({source})")
        if version and version not in world.MANNERS:
            known = ", ".join(world.MANNERS)
            raise ValueError(f"the world has no version {version!r}; there are {known}")
        return [Path(__file__).parents[1] / name for name in ("world.py", "world_words.py")]

    @classmethod
    def read(cls, source: None, version: str, *, users: int = 2000, seed: int = 0) -> Raw:
        kind = version or "fans"
        films = world.MANNERS[kind].films
        made = world.World(users=users, num_items=films, seed=seed, kind=kind)
        return Raw(SCHEMA, users, made.timelines, list(made.items()), [])
