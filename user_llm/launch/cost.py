"""What a step of training multiplies by formula, and how long it takes by the compiler's cycles."""

import re
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from user_llm.evaluation import flops
from user_llm.evaluation.answer_costs import Shape
from user_llm.launch.hlo import KERNEL, Collective, Instruction, Program
from user_llm.launch.topology import Topology
from user_llm.runs import Run

BACK = 2  # times its way forth is what the way back of a product multiplies: for both its factors
KERNELS = 0.5  # of the peak, which attention's kernels are taken to reach: no cycles are given
# Products of a block of scores, by the kernel: there, back to keys and values, back to queries.
PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}


def pretraining(run: Run) -> int:
    """Operations of one full row of pre-training."""
    config, features = run.experiment.encoder, run.dataset.inputs
    objective, window = run.experiment.pretrain.objective, config.window
    items = features[0].size
    if objective.kind == "in_batch":
        items = 0  # depends on the chunks; a few percent
    elif objective.kind != "softmax":
        items = objective.negatives
    told = sum(f.size for f in features[1:] if f.predicted)
    heads = 2 * config.embed * (items + told) * window
    return (1 + BACK) * (flops.encoder(config, features, window) + heads)


def finetuning(run: Run, name: str) -> int:
    """Operations of one full row of fine-tuning; of the streams a timeline's are counted.

    A frozen decoder still hands gradients down; a frozen encoder stands below all that is trained.
    """
    system, config = run.systems[name], run.experiment.finetune
    shape = Shape(system, run.decoder_config, run.experiment.encoder, tuple(run.dataset.inputs))
    tokens = run.experiment.evaluation.text_tokens if system.told else config.max_tokens
    memory = read = 0
    if system.streams == ("timeline",) and system.remembers:
        frozen = system.encoder_frozen or system.strategy == "projection"
        encoder = flops.encoder(shape.encoder, shape.features, config.history)
        memory = (1 + BACK) * shape.memory(config.history) - BACK * frozen * encoder
        if system.crossed:
            kept, cross = shape.memory_tokens(config.history), system.cross_attention
            read = flops.cross_keys_values(shape.decoder, cross, kept)
            read += flops.cross_attention(shape.decoder, cross, tokens, kept)
    decoder = flops.decoder(shape.decoder, tokens, lora=system.lora)
    decoder += flops.head(shape.decoder) * tokens
    back = BACK if system.strategy == "full" else 1
    return memory + (1 + BACK) * read + (1 + back) * decoder


class Time(NamedTuple):
    """Seconds of one step, and what they are spent on."""

    computing: float  # by the compiler's cycles
    kernels: float  # of attention, at the share of the peak that is assumed
    waiting: float  # for collectives beside which nothing is computed, or too little
    hidden: float  # of collectives beside which something is

    @property
    def total(self) -> float:
        return self.computing + self.kernels + self.waiting


def estimate(program: Program, topology: Topology, devices: Sequence[Any]) -> Time:
    """How long a program takes on the devices of a topology, in their order on the mesh.

    In each computation, collectives that run beside others are hidden by what it computes, as far
    as that lasts. Latencies are left out.
    """
    chip, spent = topology.chip, [0.0] * 4
    for name, times in program.steps:
        here = program.computations[name]
        computing = sum(one.cycles for one in here) / chip.clock
        kernels = sum(kernel_flops(one) for one in here if one.target == KERNEL)
        kernels /= KERNELS * chip.flops
        beside, alone = (
            sum(travel(x, topology, devices) for x in program.within(name, len(devices), hidden))
            for hidden in (True, False)
        )
        hidden = min(beside, computing + kernels)
        parts = computing, kernels, alone + beside - hidden, hidden
        spent = [total + times * x for total, x in zip(spent, parts, strict=True)]
    return Time(*spent)


def travel(collective: Collective, topology: Topology, devices: Sequence[Any]) -> float:
    """Seconds that a collective takes once."""
    places = [devices[member].coords for member in collective.group]
    if collective.kind == "collective-permute":
        return collective.sent / topology.chip.link
    return collective.sent / topology.speed(places)


def kernel_flops(one: Instruction) -> float:
    """What an attention kernel multiplies, by the shapes that it is given; other kernels nothing.

    First comes the grid of blocks of queries and keys: a square one is causal, and in a narrow one
    all blocks are looked at. Then come the queries.
    """
    kind = re.search(r"splash_mha_(fwd|dkv|dq)", one.name)
    given = re.search(r"operand_layout_constraints=\{(.*)", one.attributes)
    if not kind or not given:
        return 0.0
    grid, queries = (re.search(rf"{dtype}\[([\d,]+)\]", given[1]) for dtype in ("s8", "bf16"))
    if not grid or not queries:
        return 0.0
    *_, rows, columns = (int(x) for x in grid[1].split(","))
    *heads, length, width = (int(x) for x in queries[1].split(","))
    blocks = max(rows, columns)
    seen = blocks * (blocks + 1) / 2 if rows == columns else rows * columns
    return PRODUCTS[kind[1]] * 2 * prod(heads) * (length / blocks) ** 2 * seen * width
