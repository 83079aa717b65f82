"""An experiment's stages, compiled for a TPU topology on a machine without a TPU.

What is compiled is the very step that training runs, on the largest batch that it can meet.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from user_llm import stages
from user_llm.config import Experiment
from user_llm.launch import cost, memory, shapes
from user_llm.launch.hlo import Collective, Program
from user_llm.launch.memory import Memory
from user_llm.launch.report import Report
from user_llm.launch.topology import GIB, Topology
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
            yield report_of(job, topology, mesh)


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


def report_of(job: Job, topology: Topology, mesh: Mesh) -> Report:
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
