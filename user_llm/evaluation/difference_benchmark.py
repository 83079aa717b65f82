"""What difference tokens add to a step of training, beside the same with the timeline alone.

Both are steps of one process that take turns, so they have the same machine; of each the fastest
counts.
"""

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from user_llm.config import DIFFERENCE, DifferenceConfig, OptimConfig, SystemConfig
from user_llm.evaluation import records
from user_llm.evaluation.inference_subject import Shape, random_events
from user_llm.files import write_atomically
from user_llm.models import zoo
from user_llm.models.user_llm import UserLLM, trained
from user_llm.sharding import batch_sharding, make_mesh
from user_llm.training import losses
from user_llm.training.optim import make_optimizer
from user_llm.training.step import make_train_step, setup

WANTED = 1.15  # times a step of the timeline alone, at most
EVENTS, TOKENS = 50, 64  # of a timeline, all of which are compared, and of a row


def benchmark(
    folder: Path, shape: Shape, *, rounds: int = 10, batch: int = 16, events: int = EVENTS
) -> dict[str, Any]:
    """The seconds of a step of both systems, written to `benchmark.json` in the folder.

    Args:
      shape: the system with a timeline, with its decoder and encoder; all weights are random.
      rounds: steps of each.
      batch: users.
      events: of their timelines.
    """
    started, mesh = os.getloadavg(), make_mesh()
    compared = DifferenceConfig(events=events)
    both = {"streams": ("timeline", "difference"), "difference": compared}
    systems = {
        "timeline": shape.system,
        "timeline and difference": shape.system.model_copy(update=both),
    }
    steps = {name: stepper(shape, system, batch, events, mesh) for name, system in systems.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for nth in range(1 + rounds):  # the first ones compile
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            seconds[name] += [time.perf_counter() - begun] if nth else []
    result = {
        **records.provenance(),
        "decoder": shape.decoder.model_dump(),
        "dataset": "random events",
        "protocol": f"a step of training on {batch} users of {events} events and {TOKENS} tokens; "
        f"{zoo.count_decoder(shape.decoder):,} random weights; the fastest of {rounds}",
        "rounds": rounds,
        "load_average": [started[0], os.getloadavg()[0]],
        "rows": [{"system": name, "seconds": min(own)} for name, own in seconds.items()],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "benchmark.json", json.dumps(result, indent=1))
    return result


def stepper(shape: Shape, system: SystemConfig, batch: int, events: int, mesh):
    """A function that trains a system for one more step, all of it, and waits for its end."""
    make = partial(UserLLM, system, shape.decoder, shape.encoder, shape.features)
    tx = make_optimizer(OptimConfig(), 100)
    graphdef, abstract, init = setup(make, tx, trained(system), mesh)
    step = make_train_step(graphdef, losses.answer, tx, abstract)
    rng = np.random.default_rng(0)
    given = random_events(shape.features, batch, events)
    apart = rng.normal(size=(batch, events, 2 * shape.encoder.embed + 1)).astype(np.float32)
    given = given | {"events": given["events"] | {DIFFERENCE: apart}}
    given["tokens"] = rng.integers(shape.decoder.vocab_size, size=(batch, TOKENS)).astype(np.int32)
    given["weights"] = np.ones((batch, TOKENS), np.float32)
    placed, key = jax.device_put(given, batch_sharding(mesh)), jax.random.key(0)
    state = [init(key)]

    def once() -> None:
        with jax.set_mesh(mesh):
            state[0], metrics = step(state[0], placed, key)
            jax.block_until_ready(metrics)

    return once


def ratio(result: dict[str, Any]) -> float:
    """How often the time of the timeline alone a step with differences takes."""
    alone, both = (row["seconds"] for row in result["rows"])
    return both / alone


def metrics(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The figures of each system by the names that records give them."""
    found = {
        f"difference/{row['system']}": {"step/seconds": row["seconds"]} for row in result["rows"]
    }
    found["difference/timeline and difference"]["step/times_the_timeline"] = ratio(result)
    return found


def table(result: dict[str, Any]) -> str:
    """The rows for a terminal, with the ratio and what is wanted of it."""
    load = " to ".join(f"{x:.1f}" for x in result["load_average"])
    lines = [f"{result['protocol']}; {result['device']}, load average {load}"]
    lines += [f"{row['system']:26}{row['seconds'] * 1e3:10.0f} ms" for row in result["rows"]]
    lines.append(f"{'× the timeline alone':26}{ratio(result):10.2f}, wanted: ≤ {WANTED}")
    return "\n".join(lines)
