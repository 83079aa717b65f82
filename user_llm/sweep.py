"""A table of experiments, run one after the other, and what came of them in one tidy file.

Each runs in a process of its own and goes on where it was interrupted. One that fails does not stop
the others.
"""

import csv
import io
import logging
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from user_llm.config import Experiment, Sweep
from user_llm.evaluation import comparison, evaluate, records
from user_llm.files import AnyPath, write_atomically
from user_llm.runs import Run, flat
from user_llm.training.loop import PREEMPTED

ORIGIN = ("commit", "date", "device")  # of a figure

logger = logging.getLogger(__name__)

Row = dict[str, Any]  # of the tidy file


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


def finished(folder: AnyPath) -> bool:
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

    found = os.pathsep.join(sys.path)  # so that what a config found beside it is found there, too
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": found}) as process:
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
    put(folder, sweep, rows(folder, sweep.experiments))


def write_recorded(folder: Path, sweep: Sweep, file: Path) -> None:
    """The same of the figures recorded beside the sweep's file, whose runs may be long gone.

    Raises:
      ValueError: none are, or the folder holds runs, whose own figures it would replace.
    """
    if any(finished(place(folder, experiment)) for experiment in sweep.experiments):
        raise ValueError(f"{folder} holds runs of {file}; report on it, or name another --run-dir")
    if not (found := list(recorded(file, sweep.experiments))):
        raise ValueError(f"no figures of {file.name} are recorded beside it; `--record` does that")
    folder.mkdir(parents=True, exist_ok=True)
    put(folder, sweep, found)


def put(folder: Path, sweep: Sweep, rows: Iterable[Row]) -> None:
    write_atomically(folder / comparison.SWEEP, sweep.model_dump_json(indent=1))
    told = list(rows)
    text = io.StringIO()
    if told:
        table = csv.DictWriter(text, list(told[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(told)
    write_atomically(folder / comparison.RESULTS, text.getvalue())


def rows(folder: Path, experiments: Sequence[Experiment]) -> Iterator[Row]:
    """What the finished experiments have come to, beside every field in which they all differ.

    Raises:
      ValueError: a folder holds another experiment.
    """
    differing = differences(experiments)
    for nth, experiment in enumerate(experiments):
        if not finished(place(folder, experiment)):
            continue
        judged = evaluate.read(Run(experiment, place(folder, experiment)))
        origin = {name: judged[name] for name in ORIGIN}
        for row in judged["rows"]:
            metrics = row["metrics"] | row.get("cost", {})
            yield from tidy(experiment, row["system"], metrics, differing[nth] | origin)


def recorded(file: Path, experiments: Sequence[Experiment]) -> Iterator[Row]:
    """The same, as the records beside the experiments' file have it."""
    found: dict[tuple[str, int], list[records.Record]] = defaultdict(list)
    for record in records.read(file.parent):
        if record.config == file.name:
            found[record.run.partition("/")[0], record.seed].append(record)
    differing = differences(experiments)
    for nth, experiment in enumerate(experiments):
        for record in found[experiment.name, experiment.seed]:
            origin = {name: getattr(record, name) for name in ORIGIN}
            system = record.run.partition("/")[2]
            yield from tidy(experiment, system, record.metrics, differing[nth] | origin)


def differences(experiments: Sequence[Experiment]) -> list[dict[str, Any]]:
    """Of each experiment the fields in which not all are alike, but for its name and seed."""
    fields = [flat(experiment.model_dump(mode="json")) for experiment in experiments]
    names = dict.fromkeys(name for own in fields for name in own if name not in ("name", "seed"))
    varied = [n for n in names if any(own.get(n) != fields[0].get(n) for own in fields)]
    return [{name: own.get(name) for name in varied} for own in fields]


def tidy(
    experiment: Experiment, system: str, metrics: Mapping[str, float], told: Mapping[str, Any]
) -> Iterator[Row]:
    """A row for each metric."""
    own = {"experiment": experiment.name, "seed": experiment.seed, "system": system}
    for metric, value in metrics.items():
        yield {**own, "metric": metric, "value": value, **told}
