"""TPU slices by name, such as `v5e:16x16`: their chips and hosts, and what clouds call them.

The figures of a chip are those of Google's pages (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e).
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

GIB = 2**30

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # larger ones are made of cubes of 4x4x4


@dataclass(frozen=True)
class Chip:
    """What one chip can do."""

    flops: float  # products and sums of bfloat16 a second
    hbm: float  # bytes
    link: float  # bytes a second to one neighbour
    clock: float  # cycles a second
    axes: int  # in which there are neighbours
    ring: int  # chips in a row from which on the last one is the first one's neighbour


# HBM is what libtpu's compiler leaves to a program. A clock follows from the peak of so many MXUs
# of 128 x 128: 8 in a chip of v4 and v5p, 4 in v5e, and in v6e what are 16. A link is a sixth, or
# on two axes a fourth, of the bandwidth between chips one way.
CHIPS = {
    "v4": Chip(275e12, 30.75 * GIB, 50e9, 1.05e9, 3, 4),
    "v5e": Chip(197e12, 15.75 * GIB, 50e9, 1.5e9, 2, 16),
    "v5p": Chip(459e12, 95.74 * GIB, 100e9, 1.75e9, 3, 4),
    "v6e": Chip(918e12, 31.25 * GIB, 100e9, 1.75e9, 2, 16),
}


@dataclass(frozen=True)
class Generation:
    """What is common to the slices of one kind of TPU."""

    label: str  # of GKE's nodes: cloud.google.com/gke-tpu-accelerator
    accelerator: str  # of accelerator types: v5litepod of v5litepod-256
    runtime: str  # of TPU VMs
    cores: int  # that an accelerator type counts in a chip
    most: int  # chips of a slice


GENERATIONS = {
    "v4": Generation("tpu-v4-podslice", "v4", "tpu-ubuntu2204-base", 2, 4096),
    "v5e": Generation("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite", 1, 256),
    "v5p": Generation("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5", 2, 6144),
    "v6e": Generation("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e", 1, 256),
}


@dataclass(frozen=True)
class Topology:
    """A slice; JAX sees a device in each of its chips."""

    name: str
    generation: Generation
    chip: Chip
    shape: tuple[int, ...]

    @property
    def text(self) -> str:
        """Such as 16x16."""
        return "x".join(map(str, self.shape))

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def chips_per_host(self) -> int:
        single = len(self.shape) == 2 and self.chips <= 8
        return self.chips if single else 4

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """Such as v5litepod-256, or v5p-1024 of 512 chips."""
        return f"{self.generation.accelerator}-{self.chips * self.generation.cores}"

    def devices(self) -> Sequence[Any]:
        """A device for every chip, to compile for; no TPU is looked for.

        Raises:
          ValueError: libtpu, which holds the compiler, is not installed.
        """
        if not find_spec("libtpu"):
            raise ValueError(
                "libtpu, which compiles for TPUs, is not installed: pip install 'user-llm[tpu]'"
            )
        import jax
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


def parse(name: str) -> Topology:
    """The slice of that name.

    Raises:
      ValueError: there is no such slice; it says which there are.
    """
    kind, _, text = name.partition(":")
    if not (generation := GENERATIONS.get(kind)):
        raise ValueError(
            f"topology {name!r} is of no known TPU; write one of {', '.join(GENERATIONS)}, a colon "
            "and a shape, such as v5e:16x16 or v5p:8x8x16"
        )
    if kind in ("v5e", "v6e"):
        if text not in FLAT:
            raise ValueError(f"topology {name!r}: {kind} has slices of {', '.join(FLAT)}")
    elif text not in SMALL and not _of_cubes(text, generation.most):
        raise ValueError(
            f"topology {name!r}: {kind} has slices of {', '.join(SMALL)}, and of AxBxC chips, all "
            f"three multiples of 4, A <= B <= C, {generation.most} chips at most"
        )
    return Topology(name, generation, CHIPS[kind], tuple(map(int, text.split("x"))))


def _of_cubes(text: str, most: int) -> bool:
    if not re.fullmatch(r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){2}", text):
        return False
    sides = list(map(int, text.split("x")))
    return sides == sorted(sides) and not any(n % 4 for n in sides) and math.prod(sides) <= most
