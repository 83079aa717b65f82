"""What the verbs of the command line do."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from user_llm import stages
from user_llm.config import Experiment
from user_llm.data import builders, inspect, unseen
from user_llm.evaluation import benchmark as benchmarks
from user_llm.evaluation import evaluate as evaluation
from user_llm.evaluation import records, report
from user_llm.evaluation.metrics import table
from user_llm.inference import embeddings
from user_llm.runs import Run, data_path
from user_llm.training import tracking

PREDICTED = 4096  # users whose recommendations are in memory at a time


def run(
    experiment: Experiment, folder: Path, verb: str, config: str = "", record: bool = False
) -> None:
    """Goes through the stages of an experiment that the verb names; each is resumed or skipped."""
    made = Run(experiment, folder)
    own_encoder = experiment.pretrain.steps and not experiment.encoder_from
    if verb in ("run", "pretrain") and own_encoder:
        stages.pretrain(made)
    if verb in ("run", "finetune") and experiment.finetune.steps:
        for name in made.systems:
            stages.finetune(made, name)
    if verb != "run":
        return
    evaluate(folder)
    if experiment.finetune.steps:
        benchmark(folder)
    write_report(folder)
    if record:
        store(made, config)


def evaluate(folder: Path) -> None:
    """Judges a run and prints the table."""
    print(table(evaluation.evaluate(Run.open(folder))["rows"]))


def benchmark(folder: Path) -> None:
    """Times a run's system beside the text prompt and prints the table."""
    print(benchmarks.table(benchmarks.inference(Run.open(folder))))


def write_report(folder: Path) -> None:
    print(f"report: {report.write(folder)}")


def store(made: Run, config: str) -> None:
    """Adds a run's figures, a record for each system, to the `results.json` beside its config.

    The seconds are those of all the stages that were trained in its folder, interruptions apart.
    """
    experiment, judged = made.experiment, evaluation.read(made)
    logs = made.folder.glob(f"*/{tracking.FILE}")
    seconds = sum(tracking.read(log.parent)[-1]["seconds"] for log in logs)
    for row in judged["rows"]:
        record = records.Record(
            run=f"{experiment.name}/{row['system']}",
            config=Path(config).name,
            command=" ".join(["user-llm", *sys.argv[1:]]),
            commit=judged["commit"],
            date=judged["date"],
            device=judged["device"],
            seconds=round(seconds, 1),
            seed=experiment.seed,
            dataset="_".join(filter(None, (experiment.data.name, experiment.data.version))),
            protocol=protocol(experiment),
            metrics=row["metrics"],
        )
        records.add(record, Path(config).parent)


def protocol(experiment: Experiment) -> str:
    """How a run's test events were chosen, as results name it."""
    data = experiment.data
    if (data.name, data.version, data.min_count, data.protocol) == (
        "movielens",
        "1m",
        5,
        "leave_one_out",
    ):
        return "sasrec_file"  # the same events, items and order as the SASRec project's file
    return data.protocol


def predict(folder: Path, events: Path, top: int, out: Path | None) -> None:
    """What a run's encoder recommends to the users of a file: JSON lines, to a file or shown."""
    recommender = stages.recommender(Run.open(folder))
    data = unseen.read(recommender.dataset, events)
    users = np.arange(len(data.users))

    def lines() -> Iterator[str]:
        for first in range(0, len(users), PREDICTED):
            some = users[first : first + PREDICTED]
            for user, found in zip(some, recommender.best(data, some, top), strict=True):
                told = {
                    "user": data.users[user],
                    "items": [one.item for one in found],
                    "titles": [one.title for one in found],
                    "scores": [round(one.score, 6) for one in found],
                }
                yield json.dumps(told, ensure_ascii=False) + "\n"

    if out is None:
        sys.stdout.writelines(lines())
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(lines())
    unfinished.replace(out)


def embed(folder: Path, events: Path | None, out: Path) -> None:
    """Writes the vectors that a run's encoder makes of all users, its data set's or a file's."""
    recommender = stages.recommender(Run.open(folder))
    data = unseen.read(recommender.dataset, events) if events else recommender.dataset
    made = embeddings.write(recommender, data, out)
    print(f"{out}: {len(data.users)} users, {recommender.width} numbers each; {made} new shards")


def data_build(name: str, source: Path | None, data_dir: Path, version: str) -> None:
    path = data_path(str(source)) if source else None
    print(builders.build(name, source=path, data_dir=data_dir, version=version))


def data_inspect(folder: Path) -> None:
    print(inspect.describe(folder))
