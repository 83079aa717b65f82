"""What the machine can do at most: how fast it reads memory and multiplies, and what it holds."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from user_llm.evaluation.peers.decoding import asked

READ = 32, 4096, 2048  # matrices that no cache holds, read by the product with one vector
MULTIPLIED = 2048  # the size of square matrices


def limits(dtype: str) -> dict[str, float]:
    """Bytes read and floating-point operations done in a second, in a type; and free bytes."""
    free = room()
    matrices = [jnp.ones(READ[1:], dtype) for _ in range(READ[0])]
    vector, square = jnp.ones(READ[2], dtype), jnp.ones((MULTIPLIED, MULTIPLIED), dtype)
    read = jax.jit(lambda matrices, x: [matrix @ x for matrix in matrices])
    multiply = jax.jit(lambda x: x @ x)
    return {
        "bytes_per_second": sum(x.nbytes for x in matrices) / fastest(read, matrices, vector),
        "flops_per_second": 2 * MULTIPLIED**3 / fastest(multiply, square),
        "free_bytes": free,
    }


def room() -> float:
    """Bytes of the first device's memory that are free; infinite where nobody tells."""
    if stats := jax.devices()[0].memory_stats():
        return float(stats["bytes_limit"] - stats["bytes_in_use"])
    memory = Path("/proc/meminfo")
    lines = memory.read_text().splitlines() if memory.exists() else []
    found = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return float(next(found, math.inf))


def fastest(call: Callable[..., Any], *args: Any, repeats: int = 10) -> float:
    """The seconds of the fastest call, one apart that compiles."""
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        jax.block_until_ready(call(*args))
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


if __name__ == "__main__":
    print(json.dumps(limits(asked().dtype)))
