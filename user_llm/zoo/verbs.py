"""What the verbs of `user-llm zoo` do."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from user_llm.config import Experiment
from user_llm.files import write_atomically
from user_llm.models import zoo as named
from user_llm.zoo import count, page
from user_llm.zoo.entries import Zoo
from user_llm.zoo.index import collect

Configs = Mapping[str, Sequence[Experiment]]


def sizes(items: int) -> None:
    """Lists the named sizes."""
    print(named.table(items), named.decoder_table(), sep="\n\n")


def listed(configs: Path, zoo: Zoo, experiments: Configs) -> None:
    """Lists the systems."""
    print(page.listed(collect(configs, zoo, experiments)))


def show(configs: Path, zoo: Zoo, experiments: Configs, name: str) -> None:
    """Tells all of one system.

    Raises:
      ValueError: there is none of that name.
    """
    systems = {one.name: one for one in collect(configs, zoo, experiments)}
    if name not in systems:
        near = difflib.get_close_matches(name, systems, n=3) or list(systems)
        near = [one for one in systems if one.endswith(f"/{name}")] or near
        raise ValueError(f"no system is named {name}; there are {', '.join(near)}")
    print(page.shown(systems[name]))


def table(configs: Path, zoo: Zoo, experiments: Configs) -> None:
    """Writes the index beside the configs."""
    systems = collect(configs, zoo, experiments)
    write_atomically(configs / page.PAGE, page.page(systems))
    print(f"{configs / page.PAGE}: {len(systems)} systems")


def parameters(configs: Path, zoo: Zoo, experiments: Configs) -> None:
    """Counts the parameters of systems whose config is another than when they were counted."""
    print(count.write(configs, collect(configs, zoo, experiments), Path("datasets")))
