"""What the sides of the benchmark of training are asked to do, and how each measures itself.

Standard library and numpy only: a side imports what it trains with, and no more.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Training:
    """Steps of AdamW that move every weight of a decoder, by the loss over all tokens."""

    folder: str  # a decoder in Hugging Face's layout
    vocab_size: int
    reads: str = ""  # of our side alone: nothing, a memory that is "given", or "encoded" there
    remat: str = "dots"  # of our side alone: what is kept of a layer for the way back
    batch: int = 16  # rows, each with a user of its own
    length: int = 128  # tokens of a row
    events: int = 200  # of a user
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.98
    clip: float = 1.0  # of the global gradient norm
    warmup: int = 2  # steps that are not counted: they compile, and fill caches
    steps: int = 8
    threads: int = 2


def asked() -> Training:
    """The work that this process was started for."""
    return Training(**json.loads(sys.argv[1]))


def tokens(work: Training, step: int) -> np.ndarray:
    """The batch [B, T] of a step; some tokens are likelier than others, which can be learned."""
    drawn = np.random.default_rng(step).random((work.batch, work.length))
    return (work.vocab_size * drawn**3).astype(np.int32)


def measure(
    train: Callable[[np.ndarray], float], work: Training, peak: Callable[[], int], **facts: int
) -> None:
    """Prints as JSON what training costs, and the facts.

    Args:
      train: trains on a batch and returns the loss before, when all is done.
      peak: bytes that training took of the device's memory at most.
    """
    losses, seconds = [], []
    for nth in range(work.warmup + work.steps):
        batch = tokens(work, nth)
        begun = time.perf_counter()
        losses.append(train(batch))
        seconds.append(time.perf_counter() - begun)
    figures = {"losses": losses, "seconds": seconds[work.warmup :], "memory": peak()}
    print(json.dumps(figures | facts))
