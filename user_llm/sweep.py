"""A table of experiments, run one after the other, and what came of them in one tidy file.

Each runs in a process of its own and goes on where it was interrupted. One that fails does not stop
the others.
"""

import csv
import io
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from user_llm.config import Experiment, Sweep
from user_llm.evaluation import comparison, evaluate, records
from user_llm.runs import Run, flat
from user_llm.training.loop import PREEMPTED

logger = logging.getLogger(__name__)


def run(sweep: Sweep, folder: Path, only: str = "*") -> list[str]:
    """Runs those experiments whose name fits the pattern `only`; the names of those that failed.

    A run's folder is `folder/NAME/seed-SEED`. After each, `results.csv` in the folder holds what
    all of the experiments have come to so far.

    Raises:
      ValueError: a folder holds another experiment, or no name fits the pattern.
      SystemExit: with code 42 after a SIGTERM, once the run under way has ended.
    """
    chosen = [experiment for experiment in sweep.experiments if fnmatchcase(experiment.name, only)]
    if not chosen:
        names = ", ".join(dict.fromkeys(experiment.name for experiment in sweep.experiments))
        raise ValueError(f"no experiment's name fits {only!r}; there are {names}")
    runs = [Run(experiment, place(folder, experiment)) for experiment in chosen]
    write(folder, sweep)
    failed = []
    for nth, one in enumerate(runs):
        name = str(one.folder.relative_to(folder))
        told = f"{name} ({nth + 1} of {len(runs)})"
        if finished(one.folder):
            logger.info("%s: there already", told)
            continue
        logger.info("%s: running", told)
        code = child([sys.executable, "-m", "user_llm.cli", "run", str(one.folder)])
        if code == PREEMPTED:
            raise SystemExit(PREEMPTED)
        if code:
            logger.error("%s: failed with exit code %d", told, code)
            failed.append(name)
        write(folder, sweep)
    write(folder, sweep)
    return failed


def default_folder(file: str) -> Path:
    """Where the experiments of a file run, unless another folder is asked for."""
    return Path("runs", Path(file).stem)


def place(folder: Path, experiment: Experiment) -> Path:
    """Where an experiment of a sweep runs."""
    return folder / experiment.name / f"seed-{experiment.seed}"


def finished(folder: Path) -> bool:
    """Whether a run has gone through to its report."""
    return (folder / "report.html").is_file()


def child(command: Sequence[str]) -> int:
    """The exit code of a process, which gets the SIGTERM that is meant for this one.

    After one it is `PREEMPTED`, whatever the process was at: only training knows to say so.
    """
    preempted = False

    def passed_on(*_: Any) -> None:
        nonlocal preempted
        preempted = True
        process.terminate()

    with subprocess.Popen(command) as process:
        before = signal.signal(signal.SIGTERM, passed_on)
        try:
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    return PREEMPTED if preempted else code


def write(folder: Path, sweep: Sweep) -> None:
    """Writes the tidy file, a row for each metric and cost of each system of each experiment.

    And the sweep itself, of which a report draws the figures.
    """
    records.write_atomically(folder / comparison.SWEEP, sweep.model_dump_json(indent=1))
    told = list(rows(folder, sweep.experiments))
    text = io.StringIO()
    if told:
        table = csv.DictWriter(text, list(told[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(told)
    records.write_atomically(folder / comparison.RESULTS, text.getvalue())


def rows(folder: Path, experiments: Sequence[Experiment]) -> Iterator[dict[str, Any]]:
    """What the finished experiments have come to, beside every field in which they all differ.

    Raises:
      ValueError: a folder holds another experiment.
    """
    fields = [flat(experiment.model_dump(mode="json")) for experiment in experiments]
    names = dict.fromkeys(name for own in fields for name in own)
    varied = [n for n in names if any(own.get(n) != fields[0].get(n) for own in fields)]
    for experiment, own in zip(experiments, fields, strict=True):
        if not finished(place(folder, experiment)):
            continue
        judged = evaluate.read(Run(experiment, place(folder, experiment)))
        differing = {name: own.get(name) for name in varied if name not in ("name", "seed")}
        for row in judged["rows"]:
            for metric, value in (row["metrics"] | row.get("cost", {})).items():
                yield {
                    "experiment": experiment.name,
                    "seed": experiment.seed,
                    "system": row["system"],
                    "metric": metric,
                    "value": value,
                    **differing,
                    "commit": judged["commit"],
                    "date": judged["date"],
                    "device": judged["device"],
                }
