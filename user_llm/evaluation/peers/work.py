"""What both sides of the encoder's benchmark are asked to do, and how each measures itself.

Standard library and numpy only: a side imports what it trains with, and no more.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Work:
    """Next items of timelines, told by an encoder of this size and trained by this loss."""

    data: str  # an .npz of `items` [N] from 0 on and `offsets` [U + 1]; every event is read
    catalog: int  # items
    loss: str = "softmax"  # over all items, or "sampled_softmax": over the item and negatives
    negatives: int = 128  # drawn uniformly for each target
    window: int = 200  # events of a timeline at most
    embed: int = 50
    blocks: int = 2
    heads: int = 1
    dropout: float = 0.2
    temperature: float = 0.05
    learning_rate: float = 1e-3
    users: int = 128  # of a step, or as many rows as hold that many
    warmup: int = 3  # steps that are not counted: they compile, and fill caches
    steps: int = 24
    threads: int = 2


def asked() -> Work:
    """The work that this process was started for."""
    return Work(**json.loads(sys.argv[1]))


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def timelines(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """The items of all events, and where each user's begin."""
    with np.load(work.data) as arrays:
        return arrays["items"], arrays["offsets"]


def memory(peak: bool = False, process: int | str = "self") -> int:
    """Bytes of a process that are in memory now, or were at most; 0 where Linux is not.

    Not `getrusage`: its peak begins with that of the process that started this one.
    """
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    name = "VmHWM:" if peak else "VmRSS:"
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def measure(
    train: Callable[[int], tuple[int, float]], work: Work, baseline: int, **facts: int
) -> None:
    """Prints as JSON what training costs, and the facts.

    Args:
      train: takes that many steps to their end, and returns how many targets they had and the
        last loss.
      baseline: bytes in memory once everything was imported.
    """
    train(work.warmup)
    wall, cpu = time.perf_counter(), time.process_time()
    targets, loss = train(work.steps)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    figures = {"targets": targets, "seconds": wall, "cpu_seconds": cpu, "loss": loss}
    print(json.dumps(figures | {"memory": memory(peak=True) - baseline} | facts))
