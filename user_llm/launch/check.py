"""Compiles an experiment's stages for a TPU topology, on a machine without a TPU, and tells.

What is compiled is the very step that training runs, on the largest batch that it can meet.
"""

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from user_llm import stages
from user_llm.config import Experiment
from user_llm.evaluation import records
from user_llm.launch import cost, memory, shapes
from user_llm.launch.cost import Time
from user_llm.launch.hlo import Collective, Program
from user_llm.launch.memory import Memory
from user_llm.launch.topology import GIB, Topology, parse
from user_llm.runs import Run
from user_llm.sharding import make_mesh
from user_llm.training.step import Lesson

EXHAUSTED = "RESOURCE_EXHAUSTED"
DATASETS = Path("datasets")
log = logging.getLogger(__name__)


class Job(NamedTuple):
    """One stage of an experiment, ready to be compiled."""

    name: str
    lesson: Lesson
    batch: dict[str, Any]
    operations: int  # of a row of the batch, by formula
    remat: str


class Report(NamedTuple):
    """What compiling one stage for a topology told."""

    stage: str
    topology: Topology
    mesh: dict[str, int]
    rows: int
    length: int  # tokens, or in pre-training events, of a row
    accumulate: int
    remat: str
    seconds: float  # that it took to compile
    problem: str  # why it does not fit; empty where it does
    memory: Memory | None = None
    # By kind, how many there are and their bytes.
    collectives: dict[str, tuple[int, int]] = {}  # noqa: RUF012 -- nobody changes it
    time: Time | None = None
    operations: float = 0.0  # of a step on each chip, by formula

    @property
    def unit(self) -> str:
        return "events" if self.stage == "pretrain" else "tokens"

    @property
    def rate(self) -> float:
        """Tokens or events a second, on all chips; 0 where it does not fit."""
        if self.time is None or self.problem:
            return 0.0
        return self.rows * self.length / self.time.total

    @property
    def utilisation(self) -> float:
        """The share of the chips' peak that the model's own operations make up."""
        if self.time is None:
            return 0.0
        return self.operations / self.time.total / self.topology.chip.flops

    @property
    def metrics(self) -> dict[str, float]:
        """What a record keeps."""
        if self.memory is None or self.time is None or self.problem:
            return {"fits": 0.0}
        found = {f"hbm_gib/{kind}": x / GIB for kind, x in self.memory._asdict().items()}
        found["hbm_gib/total"] = self.memory.total / GIB
        for kind, (count, sent) in self.collectives.items():
            found |= {f"{kind}/count": count, f"{kind}/gib_sent": sent / GIB}
        found |= {f"seconds/{part}": x for part, x in self.time._asdict().items()}
        found["seconds/total"] = self.time.total
        found |= {"flops": self.operations, "mfu": self.utilisation}
        return {"fits": 1.0} | found | {f"{self.unit}_per_second": self.rate}


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
        from user_llm.launch import search as layouts

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


def check(experiment: Experiment, topology: Topology) -> Iterator[Report]:
    """What each stage that an experiment trains takes on a topology.

    Raises:
      ValueError: the mesh does not fit the topology or the batch, or there is nothing to train.
    """
    if experiment.mesh.slices > 1:
        raise ValueError(
            "a check is of one slice; give the mesh of one of them, with --mesh.slices 1: between "
            "slices only gradients travel, once a step"
        )
    devices = topology.devices()
    mesh = make_mesh(experiment.mesh, devices)
    with TemporaryDirectory() as folder:
        made = list(jobs(Run(experiment, Path(folder) / "run", DATASETS), mesh))
        if not made:
            raise ValueError(f"{experiment.name} trains neither an encoder nor a system")
        for job in made:
            yield compiled(job, topology, mesh)


def jobs(run: Run, mesh: Mesh) -> Iterator[Job]:
    """The stages of a run that are trained."""
    experiment = run.experiment
    if experiment.pretrain.steps and not experiment.encoder_from:
        batch, operations = shapes.pretraining(run, mesh), cost.pretraining(run)
        yield Job("pretrain", stages.pretraining(run), batch, operations, "full")
    if experiment.finetune.steps:
        lesson, remat = stages.finetuning(run), run.decoder_config.remat
        if lesson.config.steps:
            batch, operations = (
                shapes.finetuning(run, "user_llm", mesh),
                cost.finetuning(run, "user_llm"),
            )
            yield Job("finetune", lesson, batch, operations, remat)


def compiled(job: Job, topology: Topology, mesh: Mesh) -> Report:
    """What the compiler tells of a stage's step."""
    config, started = job.lesson.config, time.monotonic()
    step, state, _ = job.lesson.compose(mesh)
    words = job.batch.get("tokens", job.batch["segments"])

    def report(problem: str = "", **found: Any) -> Report:
        return Report(
            job.name,
            topology,
            dict(mesh.shape),
            config.batch_size,
            words.shape[1],
            config.accumulate,
            job.remat,
            time.monotonic() - started,
            problem,
            **found,
        )

    if problem := memory.too_large_a_state(state, job.batch, topology):
        return report(problem)
    log.info("compiling %s for %s, which takes minutes", job.name, topology.name)

    def too_large(message: str) -> str:
        program, rows = traced.jaxpr.jaxpr, config.batch_size
        layout = {"remat": job.remat, "parts": config.accumulate}
        return memory.too_large_a_step(message, program, mesh, rows, **layout)

    with jax.set_mesh(mesh):
        traced = step.trace(state, job.batch, jax.eval_shape(jax.random.key, 0))
        try:
            made = traced.lower().compile()
        except JaxRuntimeError as error:
            if EXHAUSTED not in str(error):
                raise
            return report(too_large(str(error)))
    program, devices = Program(made.as_text()), list(mesh.devices.flat)
    taken = Memory.of(state, job.batch, made, program.kept())
    # The compiler looks at what the program needs beside its arguments.
    room, problem = topology.chip.hbm, ""
    if taken.total > room:
        problem = too_large(f"It takes more than a chip's {room / GIB:.2f} GiB.")
    return report(
        problem,
        memory=taken,
        collectives=summed(program.collectives(len(devices))),
        time=cost.estimate(program, topology, devices),
        operations=job.operations * config.batch_size / topology.chips,
    )


def summed(collectives: list[Collective]) -> dict[str, tuple[int, int]]:
    """By kind, how many there are in a step and the bytes that a chip sends in them."""
    counts, sent = Counter[str](), Counter[str]()
    for one in collectives:
        counts[one.kind] += one.times
        sent[one.kind] += one.times * one.sent
    return {kind: (counts[kind], sent[kind]) for kind in sorted(counts)}


def table(report: Report) -> str:
    """A report as text."""
    place, axes = report.topology, " x ".join(f"{k} {n}" for k, n in report.mesh.items())
    parts = f" in {report.accumulate} parts" if report.accumulate > 1 else ""
    lines = [
        f"{report.stage} on {place.name}, {place.chips:,} chips of {place.hosts:,} hosts: {axes}",
        f"{report.rows:,} rows of {report.length:,} {report.unit} a step{parts}, "
        f"remat {report.remat}; compiled in {report.seconds:.0f} s",
    ]
    if report.memory is None or report.time is None:
        return "\n".join([*lines, f"does NOT fit: {report.problem}"])
    spent = report.time
    lines += ["", f"{'HBM of a chip':20}{'GiB':>9}"]
    lines += [f"{kind:20}{x / GIB:9.2f}" for kind, x in report.memory._asdict().items()]
    total = report.memory.total / GIB
    fits = f"does NOT fit: {report.problem}" if report.problem else "fits"
    lines += [f"{'in all':20}{total:9.2f} of {place.chip.hbm / GIB:.2f}: {fits}"]
    lines += ["", f"{'collectives':20}{'count':>9}{'GiB sent by a chip':>22}"]
    lines += [
        f"{kind:20}{count:9,}{sent / GIB:22.2f}"
        for kind, (count, sent) in report.collectives.items()
    ]
    lines += [
        "",
        f"step time {spent.total:.3f} s: {spent.computing:.3f} computing, {spent.kernels:.3f} in "
        f"attention's kernels, {spent.waiting:.3f} waiting",
        f"for collectives, of which {spent.hidden:.3f} s more are hidden",
        f"{report.operations:.3g} operations a chip by formula: model-FLOPs utilisation "
        f"{report.utilisation:.1%}, {report.rate:,.0f} {report.unit}/s",
    ]
    return "\n".join(lines)


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
