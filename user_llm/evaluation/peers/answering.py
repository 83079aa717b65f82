"""What the sides of the inference benchmark are asked, and how each measures itself.

Standard library and numpy only: a side imports what it answers with, and no more.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Begins to answer some prompts; gives the next tokens of all of them, step by step.
Start = Callable[[], Iterator[list[int]]]
PROMPTS, DECODER = "prompts.npz", "decoder"  # in the folder that the sides share
TOKENS = 20  # of an answer
SECONDS, MOST = 1.0, 15  # what is quick is repeated for so long, so often at most


@dataclass(frozen=True)
class Answering:
    """Greedy answers to a question about users whose histories are of these lengths."""

    folder: str  # holds `PROMPTS`, and in `DECODER` the text prompt's in Hugging Face's layout
    # Groups whose systems take turns: a history, how many users ask at once, and the systems.
    asked: Sequence[tuple[int, int, Sequence[str]]]
    run: str = ""  # the folder of a run, or of a made User-LLM its shape as JSON
    data_dir: str = "datasets"
    shape: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    tokens: int = TOKENS
    repeats: int = 2  # after one that compiles; the best counts
    threads: int = 2


class Told(NamedTuple):
    """A prompt that spells the history out."""

    tokens: np.ndarray  # [T]
    kept: int  # of them stand before the question
    event: int  # tokens of one event more


def asked() -> Answering:
    """The work that this process was started for."""
    return Answering(**json.loads(sys.argv[1]))


def write(folder: Path, prompts: Mapping[int, Told]) -> None:
    """Writes the prompts, by history, for all sides."""
    named = {f"{name}_{h}": x for h, told in prompts.items() for name, x in told._asdict().items()}
    np.savez(folder / PROMPTS, **named)


def read(folder: Path, history: int) -> Told:
    """The prompt of a history."""
    with np.load(folder / PROMPTS) as arrays:
        tokens, kept, event = (arrays[f"{name}_{history}"] for name in Told._fields)
    return Told(tokens, int(kept), int(event))


def measure(starts: Callable[[int, int, Sequence[str]], dict[str, Start]], work: Answering) -> None:
    """Prints as JSON what answers cost.

    Args:
      starts: makes the calls of a group, by system. They are let go before the next are made.
    """
    rows = []
    for history, batch, systems in work.asked:
        found = best(starts(history, batch, systems), work.repeats)
        rows += [
            {"system": system, "history": history, "batch": batch, **figures}
            for system, figures in found.items()
        ]
    print(json.dumps(rows))


def best(calls: Mapping[str, Start], repeats: int) -> dict[str, dict[str, Any]]:
    """The least seconds to each call's first tokens, and to each further one; and the first ones.

    The calls take turns, forth and back, after a round that compiles: so often as asked, and the
    quick ones more often.
    """
    first, further = dict.fromkeys(calls, float("inf")), dict.fromkeys(calls, float("inf"))
    tokens: dict[str, list[int]] = {}
    spent = dict.fromkeys(calls, 0.0)
    for nth in range(1 + max(repeats, MOST)):
        for name in reversed(list(calls)) if nth % 2 else calls:
            if nth > repeats and spent[name] > SECONDS:
                continue
            started = time.perf_counter()
            steps = calls[name]()
            tokens[name] = next(steps)
            begun = time.perf_counter()
            count = sum(1 for _ in steps)
            ended = time.perf_counter()
            if nth:
                first[name] = min(first[name], begun - started)
                further[name] = min(further[name], (ended - begun) / max(count, 1))
                spent[name] += ended - started
    return {
        name: {"first": first[name], "further": further[name], "tokens": tokens[name]}
        for name in calls
    }
