"""What stands in the text of a compiled program: its loops, its collectives, its cycles.

XLA prints a program as computations of instructions. A loop's body is printed once, so whatever is
counted in it is counted as often as it runs. Of branches that exclude each other the one of the
most cycles is taken to run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16, "token": 0}  # others have their bits
MOVES = ("tuple", "copy", "bitcast", "reshape", "transpose", "copy-start", "copy-done")
KERNEL = "tpu_custom_call"  # the target of a Pallas kernel's call
SCATTER = "reduce-scatter"
SCATTERS = "all-reduce-scatter"  # in the name of a fusion that does it as an all-reduce
ASYNC = "AsyncCollectiveStart"  # of the call that begins a collective inside of a fusion

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
BEGIN = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
CALLED = re.compile(r"\b(body|condition|calls|to_apply)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
BRANCH = re.compile(r"\b(?:true|false)_computation=%?([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
MESH = re.compile(
    r"replica_groups=mesh\[(?P<sizes>[^\]]*)\]"
    r"(?:, device_ids=\(\[(?P<dims>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?\))?"
    r"\s*\{(?P<axes>[^}]*)\}"
)
TARGET = re.compile(r'custom_call_target="([^"]*)"')


class Shape(NamedTuple):
    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        bits = re.match(r"[a-z]+(\d+)", self.dtype)
        width = WIDTHS.get(self.dtype) or (int(bits[1]) / 8 if bits else 0)
        return int(prod(self.dims) * width)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    root: bool
    shapes: tuple[Shape, ...]  # of its result, which may be a tuple
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @cached_property
    def called(self) -> dict[str, str]:
        """The computations that it names, by how: body, condition, calls, to_apply."""
        return dict(CALLED.findall(self.attributes))

    @property
    def branches(self) -> list[str]:
        if several := BRANCHES.search(self.attributes):
            return [name.strip().lstrip("%") for name in several[1].split(",")]
        return BRANCH.findall(self.attributes)

    @property
    def cycles(self) -> int:
        """The compiler's estimate; of kernels and of collectives it makes none."""
        found = CYCLES.search(self.attributes)
        return int(found[1]) if found else 0

    @property
    def target(self) -> str:
        found = TARGET.search(self.attributes)
        return found[1] if found else ""


class Collective(NamedTuple):
    """A collective of a program, as often as it runs in one run of the program."""

    kind: str
    sent: int  # bytes by each device at a time, over all its links
    group: tuple[int, ...]  # the devices that device 0 meets in it, by their place in the mesh
    hidden: bool  # whether something else is computed meanwhile
    times: int


class Step(NamedTuple):
    """One computation with how often it runs."""

    computation: str
    times: int


class Program:
    """A compiled program by its text.

    Raises:
      ValueError: the text is of none.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        self._read(text)
        if not self.entry:
            raise ValueError("this is no text of a compiled program: it has no ENTRY")

    def _read(self, text: str) -> None:
        lines: list[str] = []
        current: list[Instruction] | None = None
        for line in text.splitlines():
            header = HEADER.match(line)
            if header:
                current = self.computations[header[2]] = []
                self.entry = header[2] if header[1] else self.entry
            elif line == "}":
                if lines and current is not None:
                    current.append(instruction(" ".join(lines)))
                lines, current = [], None
            elif current is not None:
                if BEGIN.match(line) and lines:  # else it goes on, as metadata of kernels may
                    current.append(instruction(" ".join(lines)))
                    lines = []
                lines.append(line)

    @cached_property
    def steps(self) -> list[Step]:
        """Every computation that runs on its own, not inside of a fusion."""
        return list(self._steps(self.entry, 1))

    def _steps(self, name: str, times: int) -> Iterator[Step]:
        yield Step(name, times)
        for one in self.computations[name]:
            if one.opcode == "while":
                yield from self._steps(one.called["body"], times * self.trips(name, one))
            elif one.branches:
                yield from self._steps(max(one.branches, key=self.cycles), times)
            elif one.opcode in ("call", "async-start"):
                inner = one.called.get("to_apply") or one.called.get("calls")
                yield from self._steps(inner, times) if inner else ()

    def cycles(self, computation: str = "") -> int:
        """The compiler's estimate of all that a computation runs; without a name, of the whole."""
        within = self._steps(computation or self.entry, 1)
        return sum(t * one.cycles for name, t in within for one in self.computations[name])

    def trips(self, computation: str, loop: Instruction) -> int:
        """How often a loop of a computation runs that counts up to a constant; else 1.

        For CPUs the compiler says so itself, for TPUs it is to be seen.
        """
        if known := TRIPS.search(loop.attributes):
            return int(known[1])
        condition = self._by_name(loop.called["condition"])
        root = next(x for x in condition.values() if x.root)
        if root.opcode != "compare" or "direction=LT" not in root.attributes:
            return 1
        counter, limit = (condition[x] for x in root.operands)
        place = re.search(r"index=(\d+)", counter.attributes)
        end = constant(limit)
        if place is None or end is None:
            return 1
        start = self._start(computation, loop, int(place[1]))
        return -(-(end - start) // self._stride(loop.called["body"], int(place[1])))

    def _by_name(self, computation: str) -> dict[str, Instruction]:
        return {one.name: one for one in self.computations[computation]}

    def _start(self, computation: str, loop: Instruction, place: int) -> int:
        """What a loop's counter begins with."""
        known = self._by_name(computation)
        given = known.get(loop.operands[0])
        first = known.get(given.operands[place]) if given and given.opcode == "tuple" else None
        while first is not None and first.opcode in ("copy", "bitcast", "convert"):
            first = known.get(first.operands[0])
        return (constant(first) if first is not None else None) or 0

    def _stride(self, body: str, place: int) -> int:
        """By how much each run of a body moves the counter."""
        known = self._by_name(body)
        root = next(x for x in known.values() if x.root)
        moved = known.get(root.operands[place]) if root.opcode == "tuple" else None
        total = 0
        while moved is not None and moved.opcode == "add":
            parts = [known.get(x) for x in moved.operands]
            added = [constant(x) for x in parts if x is not None]
            total += sum(x for x in added if x is not None)
            moved = next((x for x in parts if x is not None and constant(x) is None), None)
        return total or 1

    def kept(self) -> int:
        """Bytes that one loop writes and a later one reads: what training keeps for the way back.

        Of loops in loops those of the most.
        """
        return max(self._handed_on(name) for name in {step.computation for step in self.steps})

    def _handed_on(self, computation: str) -> int:
        known = self._by_name(computation)
        loops = [one for one in known.values() if one.opcode == "while"]
        written = {loop.name: self._written(loop) for loop in loops}
        found: set[tuple[str, int]] = set()
        for loop in loops:
            for origin in self._origins(known, loop.operands[0]):
                if origin[1] in written.get(origin[0], ()):
                    found.add(origin)
        return sum(known[name].shapes[place].bytes for name, place in found)

    def _written(self, loop: Instruction) -> set[int]:
        """The places of a loop's state that its body does not hand on as they are."""
        body = self._by_name(loop.called["body"])
        root = next(x for x in body.values() if x.root)
        return {
            place
            for place, name in enumerate(root.operands)
            if not (name in body and body[name].opcode == "get-tuple-element")
        }

    def _origins(self, known: dict[str, Instruction], state: str) -> Iterator[tuple[str, int]]:
        """Which places of which loops' results a loop's state is made of, as they are or moved."""
        todo, seen = [state], set()
        while todo:
            one = known.get(todo.pop())
            if one is None or one.name in seen:
                continue
            seen.add(one.name)
            if one.opcode == "get-tuple-element":
                place = re.search(r"index=(\d+)", one.attributes)
                if known[one.operands[0]].opcode == "while" and place:
                    yield one.operands[0], int(place[1])
            elif one.opcode in MOVES:
                todo += one.operands

    def collectives(self, devices: int) -> list[Collective]:
        """All collectives, each with how often it runs, of a program for that many devices."""
        return [
            collective(kind, one, devices, hidden, times)
            for name, times in self.steps
            for kind, one, hidden in self._of(name)
        ]

    def within(self, computation: str, devices: int, hidden: bool) -> list[Collective]:
        """Those of one computation that run beside others, or that do not, each of them once."""
        return [
            collective(kind, one, devices, hidden, 1)
            for kind, one, beside in self._of(computation)
            if beside == hidden
        ]

    def _of(self, computation: str) -> Iterator[tuple[str, Instruction, bool]]:
        """The collectives of a computation and its fusions, and which of them run beside others."""
        for one in self.computations[computation]:
            kind = one.opcode.removesuffix("-start")
            if kind in KINDS:
                yield kind, one, kind != one.opcode
            elif one.opcode == "fusion":
                inner = self.computations[one.called["calls"]]
                begins = any(x.target == ASYNC for x in inner)
                for x in inner:
                    # Fusions that a collective runs beside repeat it: its begin alone counts.
                    if x.opcode in KINDS and (begins or "chain_id=" not in x.attributes):
                        yield SCATTER if SCATTERS in one.called["calls"] else x.opcode, x, begins


def collective(kind: str, one: Instruction, devices: int, hidden: bool, times: int) -> Collective:
    """A collective by the instruction that begins it."""
    members, shapes = group(one.attributes, devices), one.shapes
    if one.opcode.endswith("-start") and len(shapes) > len(one.operands):
        shapes = shapes[len(one.operands) : 2 * len(one.operands)]  # behind what it is given
    whole = sum(shape.bytes for shape in shapes)
    if kind == SCATTER and one.opcode == "all-reduce":  # whose result is then cut
        whole //= len(members)
    return Collective(kind, sent(kind, whole, len(members)), members, hidden, times)


def instruction(line: str) -> Instruction:
    """An instruction by its text."""
    begin = BEGIN.match(line)
    assert begin is not None, "the reader of programs cuts their text at such lines"
    rest = line[begin.end() :]
    end = closing(rest) if rest.startswith("(") else rest.index(" ")
    shapes = tuple(
        Shape(dtype, tuple(int(x) for x in dims.split(",") if x))
        for dtype, dims in SHAPE.findall(re.sub(r"\{[^}]*\}", "", rest[:end]))
    )
    opcode, _, rest = rest[end:].strip().partition("(")
    end = closing("(" + rest) - 1
    inside = rest[: end - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or (inside.strip(),)
    return Instruction(begin[2], bool(begin[1]), shapes, opcode, operands, rest[end:])


def closing(text: str) -> int:
    """Behind the bracket that closes the text's first one.

    Raises:
      ValueError: none closes it.
    """
    depth = 0
    for at, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return at + 1
    raise ValueError(f"a bracket is not closed in {text[:80]!r}")


def constant(one: Instruction) -> int | None:
    """The value of an integer constant."""
    if one.opcode != "constant" or not re.fullmatch(r"-?\d+", one.operands[0]):
        return None
    return int(one.operands[0])


def sent(kind: str, whole: int, members: int) -> int:
    """The bytes that a device sends, around a ring, where its result has `whole` bytes."""
    if kind == "collective-permute":
        return whole
    if kind == "reduce-scatter":  # its result is but a share
        return whole * (members - 1)
    once = whole * (members - 1) // members
    return 2 * once if kind == "all-reduce" else once


def group(attributes: str, devices: int) -> tuple[int, ...]:
    """The devices of device 0's group, by any of the three ways in which XLA writes groups."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(pairs[1]), int(pairs[2])
    if named := MESH.search(attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named["sizes"])}
        within = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named["axes"])
        moved = named["dims"] or str(prod(sizes.values()))
        return _of_axes(moved_ids(moved, named["order"]), sizes, within)
    if iota := re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        ids = moved_ids(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2]))
        return tuple(ids[ids.argmin() // ids.shape[1]].tolist())
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(int(x) for x in listed[1].split(","))
    return tuple(range(devices))


def moved_ids(dims: str, order: str | None) -> np.ndarray:
    """The devices in a row, of the shape `dims`, their axes in another order."""
    shape = [int(x) for x in dims.split(",")]
    places = [int(x) for x in order.split(",")] if order else range(len(shape))
    return np.arange(prod(shape)).reshape(shape).transpose(places)


def _of_axes(
    ids: np.ndarray, sizes: dict[str, int], within: list[tuple[str, str, str]]
) -> tuple[int, ...]:
    """Device 0's group along some axes of a mesh, or along parts of them."""
    ids, names = ids.reshape(list(sizes.values())), list(sizes)
    index: list = [slice(0, 1)] * len(names)
    for name, before, size in within:
        at = names.index(name)
        # An axis in parts is one of (before, size, rest); a part runs over the middle one.
        step = sizes[name] // (int(before) * int(size)) if before else 1
        index[at] = slice(0, step * int(size) if before else sizes[name], step)
    return tuple(ids[tuple(index)].reshape(-1).tolist())
