"""The house: which rooms there are, that each leans on lower ones alone, and that none is overfull.

Read from the sources, so that an import inside a function counts as much as one at the top.
"""

import ast
import re
import statistics
import tokenize
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "user_llm"
# From the ground up. A room knows those on the floors below it; those on one floor, nothing of each
# other.
ROOMS = (
    ("config", "files", "metrics", "processes"),  # values, what is written whole, sums, a job
    ("sharding",),  # where every array lives
    ("data", "models"),  # timelines to batches; batches to logits
    ("huggingface", "sources"),  # weights of others; where the data of an experiment come from
    ("training", "inference"),  # losses to checkpoints; prompts to tokens
    ("runs",),  # a folder, and what an experiment is made of
    ("stages", "trained"),  # a run's training; what has come of it
    ("serving",),
    ("evaluation",),  # judges what is served, too
    ("launch", "sweep"),  # one experiment on many machines; many, one after the other
    ("benchmarks", "commands", "grammar", "zoo"),  # what the verbs do; how they are spelled
    ("cli", "quickstart"),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
# Who alone knows a library, and why it may not be met elsewhere.
KEEPERS = {
    "orbax": {"training.checkpoint"},  # it neither notices flipped bits nor keeps types
    "transformers": {
        "data.text",  # tokenizers
        "evaluation.peers",  # what we are measured beside
    },
    "apache_beam": {"data.builders.distributed"},  # an extra with requirements of its own
    "tensorboardX": {"training.board"},
    "redis": {"serving.redis_store"},
    "openai": {"inference.endpoint"},
    "fastapi": {"serving.http"},
    "torch": {
        "evaluation.peers",
        "serving.soft_prompt",  # what vLLM reads
    },
}
# A lazy way back that is meant: Beam builds by what the builder says, where Beam is installed.
BACK = {("data.builders.base", "data.builders.distributed")}
LINES, MEDIAN, FUNCTION = 400, 160, 80


def named(path: Path) -> str:
    """A module's name within the house; of a package, its own."""
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {named(path): path for path in HOUSE.rglob("*.py")}
SOURCES = [path for top in ("user_llm", "configs", "tests") for path in (ROOT / top).rglob("*.py")]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Every name that is imported anywhere in a file, in full."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def home(name: str) -> str:
    """The module of the house that something is in; empty for what is none of it."""
    house, *parts = name.split(".")
    if house == "user_llm":
        for end in range(len(parts), 0, -1):
            if (module := ".".join(parts[:end])) in MODULES:
                return module
    return ""


def known(module: str) -> set[str]:
    """The other modules of the house that one of them imports."""
    return {home(name) for name in imported(MODULES[module])} - {module, ""}


def test_every_module_is_in_a_room():
    rooms = {name.partition(".")[0] for name in MODULES}
    assert rooms - {""} == FLOOR.keys()


def test_rooms_lean_on_lower_ones_alone():
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        if module  # the package itself holds the public names, of all rooms
        for other in known(module)
        if (here := module.partition(".")[0]) != (there := other.partition(".")[0])
        and FLOOR[there] >= FLOOR[here]
    ]
    assert not wrong


def test_no_module_leads_back_to_itself():
    graph = {name: known(name) - {b for a, b in BACK if a == name} for name in MODULES if name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("library", KEEPERS)
def test_a_library_is_known_to_its_keepers_alone(library):
    users = {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == library for name in imported(path))
    }
    own = {k: {m for m in users if f"{m}.".startswith(f"{k}.")} for k in KEEPERS[library]}
    assert all(own.values()) and users == set().union(*own.values())


def test_axes_are_spelled_in_one_place():
    """What dimensions are called and where they lie: elsewhere they are but named to `axes`."""
    spelled = {"out_sharding", "eager_sharding", "sharding_names"}
    for module, path in MODULES.items():
        keywords = {k.arg for k in ast.walk(tree(path)) if isinstance(k, ast.keyword)}
        specs = [name for name in imported(path) if name.endswith("PartitionSpec")]
        assert module == "sharding" or not (specs or keywords & spelled), module


def test_files_are_short():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not {str(path): n for path, n in lines.items() if n > LINES}
    assert statistics.median(lines.values()) <= MEDIAN


def test_functions_are_short():
    long = [
        f"{path.name}: {node.name} has {size} lines"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION
    ]
    assert not long


def test_a_suppression_carries_its_reason():
    told = re.compile(r"#\s*(noqa|type:\s*ignore|pyright:\s*ignore)(\W+[A-Z]+\d+|\[\w+\])\W+\w+")
    bare = []
    for path in SOURCES:
        with tokenize.open(path) as file:
            for token in tokenize.generate_tokens(file.readline):
                said = token.string if token.type == tokenize.COMMENT else ""
                if re.search(r"noqa|(type|pyright):\s*ignore", said) and not told.match(said):
                    bare.append(f"{path.name}:{token.start[0]}: {said}")
    assert not bare
