"""What the machine can do at most: how fast it reads memory, and how fast it multiplies."""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from user_llm.evaluation.peers.decoding import asked

READ = 32, 4096, 2048  # matrices that no cache holds, read by the product with one vector
MULTIPLIED = 2048  # the size of square matrices


def limits(dtype: str) -> dict[str, float]:
    """Bytes that can be read in a second, and floating-point operations done, in a type."""
    matrices = [jnp.ones(READ[1:], dtype) for _ in range(READ[0])]
    vector, square = jnp.ones(READ[2], dtype), jnp.ones((MULTIPLIED, MULTIPLIED), dtype)
    read = jax.jit(lambda matrices, x: [matrix @ x for matrix in matrices])
    multiply = jax.jit(lambda x: x @ x)
    return {
        "bytes_per_second": sum(x.nbytes for x in matrices) / fastest(read, matrices, vector),
        "flops_per_second": 2 * MULTIPLIED**3 / fastest(multiply, square),
    }


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
