"""TPU slices by name, such as `v5e:16x16`: their chips and hosts, and what clouds call them."""

import math
import re
from dataclasses import dataclass

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # larger ones are made of cubes of 4x4x4


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

    generation: Generation
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
    return Topology(generation, tuple(map(int, text.split("x"))))


def _of_cubes(text: str, most: int) -> bool:
    if not re.fullmatch(r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){2}", text):
        return False
    sides = list(map(int, text.split("x")))
    return sides == sorted(sides) and not any(n % 4 for n in sides) and math.prod(sides) <= most
