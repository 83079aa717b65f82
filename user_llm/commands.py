"""What the verbs of the command line do."""

import sys
from pathlib import Path

from user_llm import stages
from user_llm.config import Experiment
from user_llm.data import builders, inspect
from user_llm.evaluation import benchmark, encoder_benchmark, records, report
from user_llm.evaluation import evaluate as evaluation
from user_llm.evaluation.metrics import table
from user_llm.runs import Run, data_path
from user_llm.training import tracking


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
        benchmark_inference(folder)
    write_report(folder)
    if record:
        store(made, config)


def evaluate(folder: Path) -> None:
    """Judges a run and prints the table."""
    print(table(evaluation.evaluate(Run.open(folder))["rows"]))


def benchmark_inference(folder: Path) -> None:
    """Times a run's system beside the text prompt and prints the table."""
    print(benchmark.table(benchmark.inference(Run.open(folder))))


def benchmark_encoder(folder: Path, steps: int, rounds: int) -> None:
    """Times an encoder's training beside its peers and prints the table."""
    result = encoder_benchmark.benchmark(folder, steps=steps, rounds=rounds)
    print(encoder_benchmark.table(result))


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


def data_build(name: str, source: Path | None, data_dir: Path, version: str) -> None:
    path = data_path(str(source)) if source else None
    print(builders.build(name, source=path, data_dir=data_dir, version=version))


def data_inspect(folder: Path) -> None:
    print(inspect.describe(folder))
