"""`user-llm launch check`: what an experiment takes on TPUs, or which layout takes least."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from user_llm.config import Experiment
from user_llm.evaluation import records
from user_llm.launch import search as layouts
from user_llm.launch.compiled import check
from user_llm.launch.report import Report, table
from user_llm.launch.topology import parse


def parser(prog: str) -> argparse.ArgumentParser:
    """The options of the check; all others name fields of the experiment."""
    made = argparse.ArgumentParser(
        prog=prog,
        allow_abbrev=False,
        description="Compiles an experiment's stages for a TPU topology.",
        epilog="All other options replace fields of the experiment; `user-llm run CONFIG --help` "
        "lists them.",
    )
    add = made.add_argument
    add("--topology", required=True, metavar="KIND:SHAPE", help="such as v5e:16x16 or v5p:8x8x16")
    tries = "tries so many meshes, remat policies and batch sizes, and ranks them"
    add("--search", type=int, default=0, metavar="N", help=tries)
    add("--record", action="store_true", help="adds the results to the config's results.json")
    return made


def main(
    experiment: Experiment,
    config: str,
    topology: str,
    overrides: Sequence[str] = (),
    search: int = 0,
    record: bool = False,
) -> None:
    """Prints what each stage takes on a topology, or with `search` the best of so many layouts.

    Raises:
      ValueError: a stage does not fit; what would help is said.
    """
    place = parse(topology)
    if search:
        found = layouts.search(experiment, place, search)
        print(layouts.table(found))
    else:
        found = list(check(experiment, place))
        print("\n\n".join(map(table, found)))
    if record:
        for report in found:
            store(experiment, report, Path(config))
    unfit = [report.stage for report in found if report.problem]
    if unfit and (not search or len(unfit) == len(found)):
        raise ValueError(f"{', '.join(unfit)} does not fit on {topology}; why stands above")


def store(experiment: Experiment, report: Report, config: Path) -> None:
    """Adds a report to the `results.json` beside its config."""
    mesh = "x".join(map(str, report.mesh.values()))
    place = report.topology
    record = records.Record(
        run=f"{experiment.name}/{report.stage}/{place.name}",
        config=config.name,
        command=" ".join(["user-llm", *sys.argv[1:]]),
        seconds=round(report.seconds, 1),
        seed=experiment.seed,
        dataset=experiment.data.name,
        protocol=f"compiled for {place.name} as {mesh}, never run",
        metrics=report.metrics,
        **records.provenance() | {"device": f"{place.chips} x TPU {place.name.partition(':')[0]}"},
    )
    records.add(record, config.parent)
