"""TPU topologies by name: what their chips can do, and devices to compile for without having them.

The figures are those of Google's pages on its chips (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e).
"""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from math import prod
from typing import Any, NamedTuple

import jax

GIB = 2**30
LARGEST = 1024  # chips that are tried here
HOST = (2, 2, 1)  # chips of a host, of which every slice has whole ones


class Chip(NamedTuple):
    """What one chip can do."""

    flops: float  # products and sums of bfloat16 a second
    hbm: float  # bytes
    bandwidth: float  # bytes a second between a chip and its memory
    link: float  # bytes a second to one neighbour
    clock: float  # cycles a second
    axes: int  # in which there are neighbours
    ring: int  # chips in a row from which on the last one is the first one's neighbour
    largest: int  # chips of a slice


# HBM is what libtpu's compiler leaves to a program. A clock follows from the peak of so many MXUs
# of 128 x 128: 8 in a chip of v4 and v5p, 4 in v5e, and in v6e what are 16. A link is a sixth, or
# on two axes a fourth, of the bandwidth between chips one way.
CHIPS = {
    "v4": Chip(275e12, 30.75 * GIB, 1.2e12, 50e9, 1.05e9, 3, 4, LARGEST),
    "v5e": Chip(197e12, 15.75 * GIB, 0.82e12, 50e9, 1.5e9, 2, 16, 256),
    "v5p": Chip(459e12, 95.74 * GIB, 2.765e12, 100e9, 1.75e9, 3, 4, LARGEST),
    "v6e": Chip(918e12, 31.25 * GIB, 1.64e12, 100e9, 1.75e9, 2, 16, 256),
}


class Topology(NamedTuple):
    """A slice of a kind of chip, such as v5e:16x16."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str) -> "Topology":
        """The topology of that name.

        Raises:
          ValueError: there is no such kind of chip, or no slice of that shape.
        """
        known = ", ".join(CHIPS)
        kind, _, sizes = name.partition(":")
        if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", sizes):
            raise ValueError(
                f"--topology {name}: name a kind of chip ({known}) and its shape, as in v5e:16x16 "
                "or v5p:8x8x16"
            )
        chip, shape = CHIPS[kind], tuple(int(x) for x in sizes.split("x"))
        if len(shape) != chip.axes:
            example = "x".join(["4"] * chip.axes)
            raise ValueError(
                f"--topology {name}: {kind} has {chip.axes} axes, as in {kind}:{example}"
            )
        if any(size % of or not size for size, of in zip(shape, HOST, strict=False)):
            raise ValueError(
                f"--topology {name}: a slice is made of hosts of 2x2 chips; take even sizes"
            )
        if prod(shape) > chip.largest:
            raise ValueError(
                f"--topology {name}: {prod(shape)} chips are more than the {chip.largest} of the "
                f"largest slice of {kind} that is known here"
            )
        return cls(name, chip, shape)

    @property
    def chips(self) -> int:
        return prod(self.shape)

    @property
    def hosts(self) -> int:
        return self.chips // prod(HOST)

    def devices(self) -> Sequence[Any]:
        """A device for every chip, to compile for; no TPU is looked for.

        Raises:
          ValueError: libtpu, which holds the compiler, is not installed.
        """
        if not find_spec("libtpu"):
            raise ValueError(
                "libtpu, which compiles for TPUs, is not installed: pip install 'user-llm[tpu]'"
            )
        from jax.experimental import topologies

        # Else libtpu asks for a TPU's name over the network, and complains that it has none.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # as nothing is run there
        jax.config.update("jax_platforms", "cpu")  # what is run here runs on the CPU
        # A v4 chip is two cores, which are programmed as one.
        options = {"chip_config_name": "megacore"} if self.name.startswith("v4") else {}
        return topologies.get_topology_desc(self.name, "tpu", **options).devices

    def speed(self, coordinates: Sequence[Sequence[int]]) -> float:
        """Bytes a second that a chip can send along all the axes on which these chips differ.

        An axis that closes to a ring is used in both directions.
        """
        links = 0
        for axis, size in enumerate(self.shape):
            if len({at[axis] for at in coordinates}) > 1:
                links += 2 if size % self.chip.ring == 0 else 1
        return max(links, 1) * self.chip.link
