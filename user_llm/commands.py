"""What the verbs of the command line do; those of `benchmark` have a file of their own."""

import json
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np

from user_llm import processes, stages, trained
from user_llm import sweep as sweeps
from user_llm.config import DataConfig, Experiment, Sweep
from user_llm.data import builders, inspect, lamp, lamp_made, unseen
from user_llm.data.dataset import load
from user_llm.data.records import fingerprint
from user_llm.evaluation import (
    comparison,
    inference_benchmark,
    inference_table,
    records,
    report,
)
from user_llm.evaluation import evaluate as evaluation
from user_llm.evaluation.rows import spread, table
from user_llm.files import AnyPath, write_whole
from user_llm.inference import embeddings, text_vectors, vectors
from user_llm.inference.memories import Memories
from user_llm.launch import shapes
from user_llm.runs import Run
from user_llm.serving import export as exports
from user_llm.sharding import make_mesh
from user_llm.sources import data_path
from user_llm.training import tracking

PREDICTED = 4096  # users whose recommendations are in memory at a time


def run(
    experiment: Experiment,
    folder: AnyPath,
    verb: str,
    config: str = "",
    record: bool = False,
    seeds: int = 1,
    profiled: range = range(0),
) -> None:
    """Goes through the stages of an experiment that the verb names; each is resumed or skipped.

    With several seeds, in a folder for each, and then shows the mean and its spread. The processes
    of a job train together and leave it to one alone to judge.
    """
    processes.join()
    if seeds > 1:
        folders = [folder / f"seed-{seed}" for seed in range(seeds)]
        for seed, own in enumerate(folders):
            run(experiment.model_copy(update={"seed": seed}), own, verb, config, record)
        if verb == "run":
            print(f"mean and standard deviation of {seeds} seeds")
            print(table(*spread([evaluation.read(Run.open(own))["rows"] for own in folders])))
        return
    made = Run(experiment, folder)
    made.profiled = profiled
    if verb in ("run", "finetune") and (experiment.finetune.steps or experiment.warmup.steps):
        made.check_language_model()
    if verb in ("run", "finetune") and experiment.finetune.steps:
        made.check_systems()
        shapes.check_memories(made)
    own_encoder = experiment.pretrain.steps and not experiment.encoder_from
    if verb in ("run", "pretrain") and own_encoder:
        stages.pretrain(made)
    if verb in ("run", "finetune") and experiment.warmup.steps:
        stages.warmup(made)
    if verb in ("run", "finetune") and experiment.finetune.steps:
        for name in made.systems:
            stages.finetune(made, name)
    if verb != "run":
        return
    if jax.process_count() > 1:
        print(f"several processes have trained it; now, in one: user-llm run {folder}")
        return
    evaluate(folder)
    if experiment.finetune.steps and inference_benchmark.measurable(made):
        print(inference_table.first_table(inference_benchmark.first_tokens(Run.open(folder))))
    write_report(folder)
    if record:
        store(made, config)


def sweep(table: Sweep, file: str, folder: Path | None, only: str, record: bool) -> None:
    """Runs the experiments of a file, one after the other, and reports on them.

    Raises:
      ValueError: some failed; they are named.
    """
    folder = folder or sweeps.default_folder(file)
    failed = sweeps.run(table, folder, only)
    if record:
        for experiment in table.experiments:
            if sweeps.finished(place := sweeps.place(folder, experiment)):
                again = f"user-llm sweep {file} --only {experiment.name}"
                store(Run(experiment, place), file, again)
    print(f"results: {folder / comparison.RESULTS}")
    write_report(folder)
    if failed:
        raise ValueError(f"failed: {', '.join(failed)}; what they said stands above")


def evaluate(folder: AnyPath) -> None:
    """Judges a run and prints the table."""
    print(table(evaluation.evaluate(Run.open(folder))["rows"]))


def write_report(
    folder: AnyPath, png: bool = False, run_dir: Path | None = None, table: Sweep | None = None
) -> None:
    """Writes the page of a run, or of a sweep with its figures, as pixels too if asked.

    Given a sweep's file and its `table`, of the figures recorded beside it, into `run_dir`.

    Raises:
      ValueError: pixels are asked for of a run, which has no figures of its own; or `run_dir`
        without a file.
    """
    if run_dir and not table:
        raise ValueError(f"--run-dir goes with a sweep's file, and the report of {folder} into it")
    if table:
        file = Path(folder)
        folder = run_dir or Path(f"{sweeps.default_folder(str(file))}_recorded")
        sweeps.write_recorded(folder, table, file)
    swept = isinstance(folder, Path) and (folder / comparison.SWEEP).is_file()
    if png and not swept:
        raise ValueError(f"{folder} is not of a sweep, whose figures alone are drawn as --png")
    path = comparison.write(Path(folder), pixels=png) if swept else report.write(folder)
    print(f"report: {path}")


def store(made: Run, config: str, command: str = "") -> None:
    """Adds a run's figures, a record for each system, to the `results.json` beside its config.

    The command is that which makes them again, by default the one that was given. The seconds are
    those of all the stages that were trained in its folder, interruptions apart.
    """
    experiment, judged = made.experiment, evaluation.read(made)
    logs = made.folder.glob(f"*/{tracking.FILE}")
    seconds = sum(tracking.read(log.parent)[-1]["seconds"] for log in logs)
    for row in judged["rows"]:
        record = records.Record(
            run=f"{experiment.name}/{row['system']}",
            config=Path(config).name,
            command=command or " ".join(["user-llm", *sys.argv[1:]]),
            commit=judged["commit"],
            date=judged["date"],
            device=judged["device"],
            seconds=round(seconds, 1),
            seed=experiment.seed,
            dataset=dataset(experiment.data),
            protocol=experiment.data.protocol,
            metrics=row["metrics"] | row.get("cost", {}),
        )
        records.add(record, Path(config).parent)


def dataset(data: DataConfig) -> str:
    """What a record calls a data set."""
    of = data.made_from
    made = ("of", of.name, of.version) if of else ()
    return "_".join(filter(None, (data.name, data.version, *made)))


def predict(folder: AnyPath, events: Path, top: int, out: Path | None) -> None:
    """What a run's encoder recommends to the users of a file: JSON lines, to a file or shown."""
    recommender = trained.recommender(Run.open(folder))
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

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(lines())

    write_whole(out, write)


def embed(
    folder: AnyPath, data: Path | None, events: Path | None, out: Path, memory: bool = False
) -> None:
    """Writes what a run knows of all users: its data set's, another built one's, or a file's.

    That is the vector that its encoder makes, or the memory tokens that its decoder reads. Of
    several processes each writes its own shards.

    Raises:
      ValueError: both a data set and a file are given.
    """
    if data and events:
        raise ValueError(f"{data} and --events {events} are users of two origins; give one of them")
    processes.join()
    run = Run.open(folder)
    run.mesh = make_mesh(devices=jax.local_devices())  # what it makes, it makes alone
    made = trained.memories(run) if memory else trained.recommender(run)
    make = made.tokens if isinstance(made, Memories) else made.states
    if data:
        stored = unseen.Stored(run.dataset, data)
        count, some, whose = len(stored), stored.some, fingerprint(data)
    else:
        held = unseen.read(run.dataset, events) if events else run.dataset
        count, some, whose = len(held.users), held.some, held.hash
    told = {
        "what": "memory" if memory else "vector",
        "width": made.width,
        "model": vectors.fingerprint(made.params),
        "data": whose,
    }
    part = jax.process_index(), jax.process_count()
    shards = embeddings.write(make, count, some, out, told=told, part=part)
    print(f"{out}: {count} users, {made.width} numbers each; {shards} new shards")


def export(
    folder: AnyPath, out: Path, form: str, system: str, adapter: bool, events: Path | None
) -> None:
    """Writes a system of a run for serving, in one of the formats, and tells where."""
    made = Run.open(folder)
    judged = (folder / "evaluation.json").is_file()
    results = table(evaluation.read(made)["rows"]) if judged else ""
    asked = {"name": system, "adapter": adapter, "results": results, "events": events}
    exports.export(made, out, form, **asked)
    print(f"{out}: {form} of {folder}; its files are told in {out / 'export.json'}")


def serve(**options: Any) -> None:
    """Serves an export until it is told to stop.

    Raises:
      ValueError: what serving needs is not installed, or as `serving.http.serve.main`.
    """
    if missing := [name for name in ("fastapi", "uvicorn", "cachetools") if not find_spec(name)]:
        raise ValueError(f"{', '.join(missing)} missing; pip install 'user-llm[serve]'")
    from user_llm.serving.http.serve import main

    main(**options)


def embed_texts(encoder: Path, data: Path, of: str, out: Path, instruction: str) -> None:
    """Writes the vectors that a text encoder makes of a built data set's texts.

    Raises:
      ValueError: the data set has no such texts.
    """
    found = load(data)
    texts = found.reviews or () if of == "reviews" else getattr(found.items, of)
    if not (said := [text for text in texts if text.strip()]):
        raise ValueError(f"{data} has no {of}; `user-llm data inspect {data}` tells what it has")
    made = text_vectors.write(
        text_vectors.TextVectorizer(encoder, instruction=instruction), said, out
    )
    print(f"{out}: {len(text_vectors.TextVectors(out))} vectors, of which {made} are new")


def data_build(
    name: str, source: Path | None, data_dir: Path, version: str, beam: str | None = None
) -> None:
    """Builds a data set and tells its folder.

    Raises:
      ValueError: as `builders.build`, or Apache Beam is asked for and missing.
    """
    if beam is not None and not find_spec("apache_beam"):
        raise ValueError(
            "--beam needs Apache Beam; install the extra `beam`, in an environment of its own"
        )
    path, flags = data_path(str(source)) if source else None, {}
    if beam is not None:
        flags = {"beam": shlex.split(beam)}
    print(builders.build(name, source=path, data_dir=data_dir, version=version, **flags))


def data_inspect(folder: Path) -> None:
    print(inspect.describe(folder))


def lamp_from_reviews(folder: Path, task: str, profile: int, questions: int, out: Path) -> None:
    """Writes a set in LaMP's shape, made of a built data set, and tells its sizes."""
    made = lamp_made.from_timelines(load(folder), task, profile=profile, questions=questions)
    lamp.write(out, task, made)
    sizes = ", ".join(f"{len(asked)} of {split}" for split, asked in made.items())
    print(f"{out}: {task}, questions: {sizes}")
