"""Measured results beside the config that made them, with where and on what they were measured."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import jax
from pydantic import BaseModel, ConfigDict, FiniteFloat, TypeAdapter, ValidationError

from user_llm.files import write_atomically

FILE = "results.json"


class Record(BaseModel):
    """One measured run of a config, as `results.json` keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    config: str  # the config's file name; of a benchmark none
    command: str
    commit: str
    date: str
    device: str
    seconds: float
    seed: int
    dataset: str
    protocol: str
    metrics: dict[str, FiniteFloat]  # "test/next_item/recall_at_10": 0.29


RECORDS = TypeAdapter(list[Record])


def add(record: Record, folder: Path) -> Path:
    """Adds the record to the folder's `results.json` and returns the file.

    It takes the place of an earlier record of the same run, config and seed.

    Raises:
      ValueError: the file there is not a list of records.
    """
    path, records = folder / FILE, read(folder)
    folder.mkdir(parents=True, exist_ok=True)
    places = {(r.run, r.config, r.seed): i for i, r in enumerate(records)}
    place = places.get((record.run, record.config, record.seed), len(records))
    records[place : place + 1] = [record]
    write_atomically(path, RECORDS.dump_json(records, indent=2, ensure_ascii=False).decode() + "\n")
    return path


def read(folder: Path) -> list[Record]:
    """The records of the folder's `results.json`, none where there is no such file.

    Raises:
      ValueError: the file is not a list of records.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        return RECORDS.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not a list of records; mend or remove it: {error}") from error


def provenance() -> dict[str, str]:
    """The `commit` of this source tree, the `device` that JAX runs on, and today's `date` (UTC)."""
    return {
        "commit": commit(Path(__file__).parent),
        "device": _device(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def commit(folder: Path) -> str:
    """The commit checked out around a folder of sources, with `+dirty` if anything differs from it.

    `unknown` where git does not track the folder: an installed package may lie inside the checkout
    of another project. Results files do not count, or each record would make the next run dirty.
    """
    sources = (":(top)", f":(top,exclude,glob)**/{FILE}")
    try:
        if not _git(folder, "ls-files", "."):
            return "unknown"
        head = _git(folder, "rev-parse", "HEAD")
        return head + ("+dirty" if _git(folder, "status", "--porcelain", "--", *sources) else "")
    except (OSError, subprocess.CalledProcessError):  # no git, no checkout, no commit yet
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _device() -> str:
    """Such as `8 x NVIDIA H100 80GB HBM3`, or `1 x cpu (Intel(R) Xeon(R) Processor, 2 cores)`."""
    kind = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    if jax.default_backend() != "cpu":
        return kind
    return f"{kind} ({_processor()}, {os.cpu_count()} cores)"


def _processor() -> str:
    info = Path("/proc/cpuinfo")  # platform.processor() is empty on most of Linux
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
