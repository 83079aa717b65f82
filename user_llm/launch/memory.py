"""What lies in a chip's memory, and of what does not fit: which arrays, and what would help."""

import re
from collections.abc import Iterable, Iterator
from math import ceil, prod
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh

from user_llm.launch.shapes import held
from user_llm.launch.topology import GIB, Topology
from user_llm.training.step import TrainState

SHOWN = 5  # arrays that are named
ALLOCATION = re.compile(
    r"Size: ([\d.]+)([ KMG])\w*\s+"
    r"(?:Operator: [^\n]*?op_name=\"([^\"]*)\"[^\n]*\s+)?Shape: (\w+\[[\d,]*\])"
)


class Memory(NamedTuple):
    """Bytes of one chip by kind; their sum is what the compiler says that the program takes."""

    parameters: int
    optimizer: int
    batch: int
    padding: int  # that the layouts of these three add
    activations: int  # what loops keep for the way back
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        return sum(self)

    @classmethod
    def of(cls, state: TrainState, batch: Any, compiled: Any, kept: int) -> "Memory":
        """That of a compiled step, of which `kept` bytes are activations."""
        told = compiled.memory_analysis()
        parameters, optimizer = given(state)
        own = held(batch)
        made = told.temp_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes
        activations = min(kept, made)
        return cls(
            parameters,
            optimizer,
            own,
            told.argument_size_in_bytes - parameters - optimizer - own,
            activations,
            made - activations,
            told.generated_code_size_in_bytes,
        )


class Large(NamedTuple):
    """An array that takes much of a chip's memory."""

    name: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.bytes / GIB:,.2f} GiB {self.name}"


def given(state: TrainState) -> tuple[int, int]:
    """The bytes of a chip's parameters, a running mean among them, and of its optimizer."""
    parameters = held((state.trained, state.frozen, state.average))
    return parameters, held(state) - parameters


def largest_of_state(state: TrainState) -> list[Large]:
    """The largest arrays of a state on one chip."""
    found = [Large(named(path), held(x)) for path, x in jax.tree.leaves_with_path(state)]
    return sorted(found, key=lambda one: -one.bytes)[:SHOWN]


def named(path: tuple[Any, ...]) -> str:
    """A leaf's place, such as trained.decoder.embed_tokens."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def largest_kept(program: Jaxpr, mesh: Mesh, rows: int) -> list[Large]:
    """The largest arrays that a step keeps for the way back, as one chip has them.

    Of a dimension that holds the `rows` of a batch it has its share; others it may have whole.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    found: dict[str, int] = {}
    for array in kept(program):
        shares = [shards if size % rows == 0 else 1 for size in array.shape[1:3]]
        name = f"{array.dtype.name}[{','.join(map(str, array.shape))}]"
        once = prod(array.shape) * array.dtype.itemsize // max([*shares, 1])
        found[name] = found.get(name, 0) + once
    ordered = sorted(found.items(), key=lambda one: -one[1])[:SHOWN]
    return [Large(f"kept of all layers, {name} on all chips", size) for name, size in ordered]


def kept(program: Jaxpr) -> Iterator[Any]:
    """The shapes of the arrays that a scan writes and a later one reads, in all of a program."""
    written = set()
    for eqn in program.eqns:
        if eqn.primitive.name == "scan":
            yield from (x.aval for x in eqn.invars if id(x) in written)
            written |= {id(x) for x in eqn.outvars[eqn.params["num_carry"] :]}
        for inner in programs(eqn.params.values()):
            yield from kept(inner)


def programs(values: Iterable[Any]) -> Iterator[Jaxpr]:
    """The programs among an equation's parameters."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from programs(value)
        elif isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


def too_large_a_state(state: TrainState, batch: Any, topology: Topology) -> str:
    """Why a state does not fit, and what would help; empty where it does."""
    parameters, optimizer = given(state)
    taken, room = parameters + optimizer + held(batch), topology.chip.hbm
    if taken <= room:
        return ""
    everything = sum(prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    if everything / topology.chips < room:  # half of it is left to what is computed
        splits = 1
        while splits < topology.chips and everything / splits > room / 2:
            splits *= 2
        mend = f"--mesh.fsdp {splits} leaves {everything / splits / GIB:,.2f} GiB on each"
    else:
        chips = ceil(everything / (room / 2))
        mend = (
            f"no mesh of {topology.chips} chips holds {everything / GIB:,.1f} GiB; take {chips} or "
            'more, a smaller decoder, or system.strategy "lora", whose frozen decoder has no '
            "moments and may be in bfloat16"
        )
    told = "; ".join(map(str, largest_of_state(state)))
    return (
        f"parameters and optimizer take {taken / GIB:,.2f} GiB of a chip's {room / GIB:,.2f}. "
        f"The largest: {told}. What helps: {mend}"
    )


def too_large_a_step(
    message: str, program: Jaxpr, mesh: Mesh, rows: int, *, remat: str, parts: int
) -> str:
    """Why a step does not fit whose state does, and what would help."""
    largest = allocations(message) or largest_kept(program, mesh, rows // parts)
    told = "; ".join(map(str, largest[:SHOWN]))
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    each = rows // parts // shards
    helps = []
    if remat != "full":
        helps.append("--language-model.architecture.remat full")
    if each > 1:
        helps.append(f"accumulate {parts * each}, so that a chip goes through one row at a time")
    if mesh.shape["tensor"] == 1:
        helps.append("--mesh.tensor 2 or more")
    helps.append("fewer max_tokens")
    reason = message.partition("\n")[0].rpartition("RESOURCE_EXHAUSTED: ")[2].strip()
    return f"{reason} The largest: {told}. What helps: {'; '.join(helps)}"


def allocations(message: str) -> list[Large]:
    """The arrays that the compiler lists where a program does not fit; it does not always do so."""
    found: dict[str, int] = {}
    for size, unit, operator, shape in ALLOCATION.findall(message):
        name = f"{shape} of {operator.rpartition('/')[2]}" if operator else shape
        found[name] = found.get(name, 0) + int(float(size) * 1024 ** (" KMG".index(unit)))
    return [Large(name, size) for name, size in sorted(found.items(), key=lambda one: -one[1])]
