"""What the sides of the decoder's benchmark are asked to do, and how each measures itself.

Standard library and numpy only: a side imports what it decodes with, and no more.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

# Starts to answer prompts [B, T] by so many tokens each; gives the tokens of all, step by step.
Answer = Callable[[np.ndarray, int], Iterator[list[int]]]


@dataclass(frozen=True)
class Decoding:
    """Greedy answers to prompts of random tokens."""

    folder: str  # a decoder in Hugging Face's layout
    vocab_size: int
    dtype: str = "float32"  # of weights and activations
    int8: bool = False  # weights, of our side alone
    batches: tuple[int, ...] = (1, 8, 32)
    prompt: int = 32  # tokens before an answer
    answer: int = 33  # tokens; the first one is the prefill's
    long_prompt: int = 512  # tokens of the prompt that prefill is timed on
    repeats: int = 2  # after one that compiles; the best counts
    threads: int = 2


def asked() -> Decoding:
    """The work that this process was started for."""
    work = json.loads(sys.argv[1])
    return Decoding(**work | {"batches": tuple(work["batches"])})


def measure(answer: Answer, work: Decoding, peak: Callable[[], int]) -> None:
    """Prints as JSON what answers cost.

    Args:
      peak: bytes that decoding took of the device's memory at most.
    """

    def best(batch: int, prompt: int, tokens: int) -> tuple[float, float, list[int]]:
        """Seconds to the first token and from there to the last, and the first tokens."""
        prompts = np.random.default_rng(0).integers(0, work.vocab_size, (batch, prompt))
        times = []
        for _ in range(1 + work.repeats):
            started = time.perf_counter()
            steps = answer(prompts, tokens)
            first = next(steps)
            begun = time.perf_counter()
            count = 1 + sum(1 for _ in steps)
            times.append((begun - started, time.perf_counter() - begun))
            assert count == tokens
        return *(min(x) for x in zip(*times[1:], strict=True)), first

    figures: dict[str, Any] = {"decode": {}, "first_token_seconds": {}, "first_tokens": {}}
    for batch in work.batches:
        first, rest, tokens = best(batch, work.prompt, work.answer)
        figures["decode"][batch] = batch * (work.answer - 1) / rest
        figures["first_token_seconds"][batch] = first
        figures["first_tokens"][batch] = tokens
    first, *_ = best(1, work.long_prompt, 1)
    print(json.dumps(figures | {"prefill": work.long_prompt / first, "memory": peak()}))
