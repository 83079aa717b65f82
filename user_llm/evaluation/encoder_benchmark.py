"""What training an encoder costs, beside a plain SASRec in PyTorch of the same size and loss.

Each side is a process of its own that is given the same timelines. Of each figure the best round
counts.
"""

import dataclasses
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from user_llm.data.movielens_shape import MOVIELENS_1M, Shape, timelines
from user_llm.evaluation import records, rectools, sides
from user_llm.evaluation.peers.work import Work, cores
from user_llm.files import write_atomically

SIDES = {
    "user_llm": "user_llm.evaluation.encoder_side",
    "torch SASRec": "user_llm.evaluation.peers.torch_sasrec",
}
LOSSES = {"softmax": 2.0, "sampled_softmax": 1.3}  # with how many times the peer's targets a second
MEMORY = 0.5  # of the peer's, at most
EVALUATION = 4.0  # times the users that RecTools recommends to in a second

Rows = list[dict[str, Any]]


def benchmark(
    folder: Path,
    *,
    steps: int = 24,
    rounds: int = 3,
    shape: Shape = MOVIELENS_1M,
    rectools_python: str | None = None,
    **sizes: Any,
) -> dict[str, Any]:
    """Both sides' figures for each loss, written to `benchmark.json` in the folder.

    Args:
      steps: counted steps of each process; 47 are about an epoch.
      rounds: processes of each side.
      rectools_python: the interpreter of an environment that has RecTools, to evaluate beside it.
      sizes: fields of `Work` in which it differs from its defaults.

    Raises:
      ValueError: a side could not do its work, or the sides' work differs.
    """
    started, rows, evaluation = os.getloadavg(), [], None
    with TemporaryDirectory() as place:
        data = Path(place, "timelines.npz")
        work = Work(str(data), shape.items, steps=steps, threads=cores(), **sizes)
        items, offsets = shown(*timelines(shape), work.window)
        np.savez(data, items=items, offsets=offsets)
        if rectools_python is not None:  # first, for it may turn out that it has no RecTools
            evaluation = rectools.evaluation(rectools_python, work, shape)
        for loss in tqdm(LOSSES, desc="benchmark", leave=False):
            rows += compare(dataclasses.replace(work, loss=loss), rounds)
    result = {
        **records.provenance(),
        "shape": dataclasses.asdict(shape),
        "work": dataclasses.asdict(dataclasses.replace(work, data="", loss="")),
        "rounds": rounds,
        "load_average": [started[0], os.getloadavg()[0]],
        "rows": rows,
        "evaluation": evaluation,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "benchmark.json", json.dumps(result, indent=1))
    return result


def shown(items: np.ndarray, offsets: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The last events of every timeline but its very last, which would be for test."""
    stops = offsets[1:] - 1
    starts = np.maximum(offsets[:-1], stops - window)
    kept = np.concatenate([items[a:b] for a, b in zip(starts, stops, strict=True)])
    return kept, np.concatenate([[0], np.cumsum(stops - starts)])


def compare(work: Work, rounds: int) -> Rows:
    """A row for each side.

    Raises:
      ValueError: they do not train on the same targets.
    """
    found: dict[str, Rows] = {side: [] for side in SIDES}
    devices = {
        "JAX_NUM_CPU_DEVICES": str(work.threads)
    }  # small operations gain little from threads
    for side in sides.turns(tuple(SIDES), rounds, work.loss):
        found[side].append(sides.run(SIDES[side], work, **devices))
    epochs = {side: runs[0]["targets_per_epoch"] for side, runs in found.items()}
    if len(set(epochs.values())) > 1:
        raise ValueError(f"the sides do not train on the same targets: {epochs}")
    return [{"side": side, "loss": work.loss, **best(runs)} for side, runs in found.items()]


def best(runs: Rows) -> dict[str, Any]:
    """The best of each figure, and what is the same in every run."""
    return {
        "targets_per_second": max(r["targets"] / r["seconds"] for r in runs),
        "targets_per_cpu_second": max(r["targets"] / r["cpu_seconds"] for r in runs),
        "memory": min(r["memory"] for r in runs),
        **{name: runs[0][name] for name in ("targets_per_epoch", "parameters", "block_parameters")},
        "runs": runs,
    }


def ratios(rows: Rows) -> dict[str, dict[str, float]]:
    """By loss, how often the peer's figure ours is."""
    figures = ("targets_per_second", "targets_per_cpu_second", "memory")
    ours, peer = ({row["loss"]: row for row in rows if row["side"] == side} for side in SIDES)
    return {
        loss: {name: ours[loss][name] / max(peer[loss][name], 1) for name in figures}
        for loss in ours
    }


def table(result: dict[str, Any]) -> str:
    """The rows for a terminal, and beside the ratios what is wanted of them."""
    rows, work = result["rows"], result["work"]
    load = " to ".join(f"{x:.1f}" for x in result["load_average"])
    lines = [
        f"{result['shape']['users']} users, {result['shape']['items']} items, "
        f"{rows[0]['targets_per_epoch']} targets an epoch\n{work['steps']} steps of about "
        f"{work['users']} users; {work['threads']} threads, load average {load}",
        f"{'':32}{'targets/s':>12}{'/CPU-s':>12}{'memory, MB':>12}{'parameters':>12}{'a block':>9}",
    ]
    for loss, ratio in ratios(rows).items():
        for row in (row for row in rows if row["loss"] == loss):
            lines.append(
                f"{loss:17}{row['side']:15}{row['targets_per_second']:12.0f}"
                f"{row['targets_per_cpu_second']:12.0f}{row['memory'] / 1e6:12.0f}"
                f"{row['parameters']:12}{row['block_parameters']:9}"
            )
        per_second, per_cpu, memory = ratio.values()
        lines.append(
            f"{'':17}{'× torch':15}{per_second:12.2f}{per_cpu:12.2f}{memory:12.2f}"
            f"   wanted: ≥ {LOSSES[loss]}, memory ≤ {MEMORY}"
        )
    if result["evaluation"]:
        users = result["shape"]["users"]
        lines.append(f"{'':32}{'users/s':>12}{'/CPU-s':>12}")
        for side, spent in result["evaluation"].items():
            speeds = "".join(f"{users / spent[name]:12.0f}" for name in rectools.SPENT)
            lines.append(f"{'evaluation':17}{side:15}{speeds}")
        ours, peer = result["evaluation"].values()
        times = "".join(f"{peer[name] / ours[name]:12.2f}" for name in rectools.SPENT)
        lines.append(f"{'':17}{'× RecTools':15}{times}   wanted: ≥ {EVALUATION}")
    return "\n".join(lines)
