"""How many users a second `embed` writes, in how much memory, and what a kill costs it.

It is the verb itself, in processes of its own that are watched from outside: one that is left
alone, then some that are killed at random moments and one that goes on with what they have left.
"""

import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from user_llm import stages
from user_llm.config import DataConfig, EncoderConfig, Experiment, PretrainConfig
from user_llm.data.builders import build
from user_llm.data.records import counts
from user_llm.evaluation import records
from user_llm.evaluation.peers import work
from user_llm.files import write_atomically
from user_llm.inference import embeddings
from user_llm.runs import Run

GROWTH = 1.1  # of the memory between the first third of the work and the last, at most
PAUSE = 0.5  # seconds between two looks at a process

Sample = dict[str, Any]  # seconds, shards, memory

EXPERIMENT = Experiment(
    name="embedding_benchmark",
    data=DataConfig(name="crowd", users=2000),
    encoder=EncoderConfig(window=50),
    pretrain=PretrainConfig(steps=20, validate_every=0),
)


def benchmark(folder: Path, *, users: int = 1_000_000, kills: int = 3) -> dict[str, Any]:
    """The figures of both, written to `benchmark.json` in the folder.

    Args:
      users: whose timelines are of 5 to 50 events.
      kills: of the second writing, each at a random moment.

    Raises:
      ValueError: so few users are too few shards to be killed between, a process failed, or the two
        have not written the very same.
    """
    shards = -(-users // embeddings.SHARD)
    if kills >= shards:
        raise ValueError(
            f"{users} users are {shards} shard(s), too few for {kills} kills; ask for "
            f"{kills * embeddings.SHARD + 1} or more"
        )
    started, folder = os.getloadavg(), folder.absolute()
    run = Run(EXPERIMENT, folder / "run", folder / "datasets")
    stages.pretrain(run)
    crowd = build("crowd", source=None, data_dir=run.data_dir, users=users)
    events = counts(crowd)["events"]

    def embed(name: str, **kill: Any) -> list[Sample]:
        return watch([str(run.folder), str(crowd)], folder / name, **kill)

    for name in ("whole", "killed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    samples, rng, left = embed("whole"), random.Random(0), []
    for at in sorted(rng.sample(range(shards - 1), kills)):
        after = rng.uniform(0, samples[-1]["seconds"] / shards)
        left.append(embed("killed", at=at, after=after)[-1])
    embed("killed")
    if wrong := differing(folder / "whole", folder / "killed"):
        raise ValueError(f"{folder}/killed is not as {folder}/whole in {', '.join(wrong)}")
    result = {
        **records.provenance(),
        "dataset": f"a crowd of {users:,} users and {events:,} events",
        "protocol": f"an encoder of {EXPERIMENT.encoder.layers} layers, of width "
        f"{EXPERIMENT.encoder.embed}, in one process; then the same killed {kills} times",
        "load_average": [started[0], os.getloadavg()[0]],
        "users": users,
        "left": left,
        "samples": samples,
    }
    write_atomically(folder / "benchmark.json", json.dumps(result, indent=1))
    return result


def watch(
    arguments: list[str], out: Path, *, at: int | None = None, after: float = 0.0
) -> list[Sample]:
    """What was seen of `embed`: the seconds since it began, shards there, bytes in memory.

    It is killed so many seconds `after` there are `at` shards.

    Raises:
      ValueError: it failed, or was done before it could be killed.
    """
    command = [sys.executable, "-m", "user_llm.cli", "embed", *arguments, "--out", str(out)]
    began, seen, memory = time.perf_counter(), [], 0
    with out.with_suffix(".log").open("w+") as told:
        # `embed` looks for its run's data set below the folder that it is in.
        process = subprocess.Popen(command, stdout=told, stderr=told, cwd=out.parent)
        while not seen or process.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(PAUSE)
            seconds, shards = time.perf_counter() - began, len(list(out.glob("users-*")))
            memory = work.memory(process=process.pid) or memory  # none is left of one that ended
            seen.append({"seconds": seconds, "shards": shards, "memory": memory})
            if at is not None and shards >= at:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(after)
                process.kill()
        if process.returncode not in (0, -signal.SIGKILL):
            told.seek(0)
            raise ValueError(f"embed failed; it said {told.read()[-2000:]}")
    if at is not None and not process.returncode:
        raise ValueError("embed was done before it could be killed; ask for more users")
    return seen


def differing(one: Path, other: Path) -> list[str]:
    """The files that are not the same, byte for byte, in two folders."""
    names = {path.name for folder in (one, other) for path in folder.iterdir()}
    equal, *_ = filecmp.cmpfiles(one, other, names, shallow=False)
    return sorted(names - set(equal))


def metrics(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The figures by the names that records give them.

    Of the memory the most in each third of the time from the first shard on, when all is compiled.
    """
    seen = result["samples"]
    working = [sample["memory"] for sample in seen if sample["shards"]]
    thirds = [float(max(part)) for part in np.array_split(working, 3) if len(part)]
    return {
        "embedding": {
            "users_per_second": result["users"] / seen[-1]["seconds"],
            "seconds": seen[-1]["seconds"],
            "memory/first_third": thirds[0],
            "memory/last_third": thirds[-1],
            "memory/peak": float(max(sample["memory"] for sample in seen)),
            "kills": float(len(result["left"])),
        }
    }


def table(result: dict[str, Any]) -> str:
    """The figures for a terminal, and beside them what is wanted."""
    own, load = (
        metrics(result)["embedding"],
        " to ".join(f"{x:.1f}" for x in result["load_average"]),
    )
    first, last = own["memory/first_third"], own["memory/last_third"]
    left = ", ".join(
        f"{one['shards']} shards after {one['seconds']:.0f} s" for one in result["left"]
    )
    return "\n".join(
        (
            f"{result['dataset']}; {result['protocol']}; {result['device']}, load average {load}",
            f"{own['users_per_second']:.0f} users/s, {own['seconds']:.0f} s in all",
            f"memory: {own['memory/peak'] / 1e6:.0f} MB at most; {first / 1e6:.0f} MB in the first "
            f"third, {last / 1e6:.0f} MB in the last, × {last / first:.2f}, wanted: ≤ {GROWTH}",
            f"killed with {left}: the files are the same, byte for byte",
        )
    )
