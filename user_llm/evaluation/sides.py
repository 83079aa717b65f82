"""Benchmarks with a peer: each side is a process of its own, and the sides take turns.

So neither side has the other's memory or threads, nor the quieter machine.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # as `launch/local.sh` asks for


def turns(sides: Sequence[str], rounds: int, desc: str) -> Iterator[str]:
    """The sides in the order in which they run, A B B A A B: none always comes after another."""
    for nth in tqdm(range(rounds), desc=desc, leave=False):
        yield from reversed(sides) if nth % 2 else sides


def run(module: str, work: Any, **env: str) -> Any:
    """What one process of a side says, read from JSON.

    Args:
      module: run as a program that is given its work as JSON, and whose last line is JSON.
      work: a dataclass.
      env: variables for it, where they are not set already.

    Raises:
      ValueError: it failed; says how.
    """
    command = [sys.executable, "-m", module, json.dumps(dataclasses.asdict(work))]
    done = subprocess.run(
        command, capture_output=True, text=True, env=HUGE_PAGES | env | os.environ
    )
    if done.returncode:
        raise ValueError(f"{' '.join(command[:-1])} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])
