"""Which mesh, remat policy and batch train an experiment fastest on a topology.

All that could be are put in order by a rough estimate, and the likeliest of them are compiled.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple, get_args

from user_llm.config import Experiment, MeshConfig, Remat
from user_llm.launch.compiled import check
from user_llm.launch.report import Report
from user_llm.launch.topology import Topology
from user_llm.models.zoo import count_decoder

MOST_TENSOR = 8  # chips over which the heads of a layer are split
ROWS = (1, 2, 4, 8)  # of a batch on each part of the mesh that has rows of its own
STATE = 12  # bytes of a weight and both of its moments in float32
AGAIN: dict[Remat, float] = {"full": 4 / 3, "dots": 1.05, "none": 1.0}  # of the operations


class Layout(NamedTuple):
    """What a search may change of an experiment."""

    mesh: MeshConfig
    remat: Remat
    rows: int  # of the global batch

    def __str__(self) -> str:
        mesh = f"data {self.mesh.data} x fsdp {self.mesh.fsdp} x tensor {self.mesh.tensor}"
        return f"{mesh}, remat {self.remat}, {self.rows:,} rows"

    def of(self, experiment: Experiment) -> Experiment:
        """The experiment in this layout, its fine-tuning alone where it has one."""
        rows = {"batch_size": self.rows, "accumulate": 1}
        if not experiment.finetune.steps:
            tuned = {"pretrain": experiment.pretrain.model_copy(update=rows)}
        else:
            model = experiment.language_model
            decoder = model.architecture.model_copy(update={"remat": self.remat})
            tuned = {
                "pretrain": experiment.pretrain.model_copy(update={"steps": 0}),
                "finetune": experiment.finetune.model_copy(update=rows),
                "language_model": model.model_copy(update={"architecture": decoder}),
            }
        return experiment.model_copy(update={"mesh": self.mesh, **tuned})


def search(experiment: Experiment, topology: Topology, most: int) -> list[Report]:
    """The reports of the likeliest layouts, at most so many, as `ranked`."""
    weights = count_decoder(experiment.language_model.architecture)
    likely = sorted(
        layouts(experiment, topology), key=lambda one: rough(experiment, topology, one, weights)
    )
    found = [report for one in likely[:most] for report in check(one.of(experiment), topology)]
    return ranked(found)


def ranked(reports: list[Report]) -> list[Report]:
    """By tokens a second, those that do not fit last."""
    return sorted(reports, key=lambda report: -report.rate)


def layouts(experiment: Experiment, topology: Topology) -> Iterator[Layout]:
    """Every mesh of powers of two that its heads allow, with every policy and some batches."""
    chips, decoder = topology.chips, experiment.language_model.architecture
    powers = [2**n for n in range(chips.bit_length()) if chips % 2**n == 0]
    shared = decoder.num_key_value_heads
    tensors = [n for n in powers if n <= MOST_TENSOR and shared % n == 0]
    policies = get_args(Remat) if experiment.finetune.steps else ("full",)
    for tensor, fsdp, remat, rows in product(tensors, powers, policies, ROWS):
        if chips % (fsdp * tensor) == 0:
            data = chips // (fsdp * tensor)
            mesh = MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
            yield Layout(mesh, remat, data * fsdp * rows)


def rough(
    experiment: Experiment, topology: Topology, layout: Layout, weights: int
) -> tuple[float, ...]:
    """Seconds a token, about; before them, whether the layout is likely not to fit.

    Operations beside the weights' way over the links, of which the longer one counts and a tenth of
    the other, and the way of what `tensor` splits, which nothing hides.
    """
    decoder, chip, mesh = experiment.language_model.architecture, topology.chip, layout.mesh
    rows = layout.rows / (mesh.data * mesh.fsdp)
    tokens = rows * experiment.finetune.max_tokens
    computing = 6 * weights * tokens * AGAIN[layout.remat] / mesh.tensor / chip.flops
    links = 2 * chip.axes * chip.link
    moved = 3 * (1 - 1 / mesh.fsdp) + 2 / mesh.fsdp * (1 - 1 / mesh.data)  # times all weights
    moving = moved * 2 * weights / mesh.tensor / links
    split = 2 * decoder.hidden_size * tokens * 8 * decoder.num_hidden_layers / links
    seconds = max(computing, moving) + 0.1 * min(computing, moving)
    seconds += split if mesh.tensor > 1 else 0.0
    inputs = 2 * decoder.hidden_size
    inner = 2 * (decoder.num_attention_heads + decoder.num_key_value_heads) * decoder.head_dim
    products = 2 * (inner + 2 * decoder.intermediate_size + decoder.hidden_size) / mesh.tensor
    each = {"full": inputs, "dots": inputs + products, "none": 2.5 * (inputs + products)}
    kept = each[layout.remat] * decoder.num_hidden_layers * tokens
    head = 6 * decoder.vocab_size * decoder.hidden_size / mesh.tensor  # and its gradient, whole
    held = STATE * weights / mesh.fsdp / mesh.tensor + kept + head
    return float(held > 0.85 * chip.hbm), seconds / tokens * mesh.tensor, held


def table(reports: list[Report]) -> str:
    """What a search found, a layout a line."""
    head = f"{'tokens/s':>12}{'MFU':>7}{'step, s':>9}{'HBM, GiB':>10}  layout"
    return "\n".join([head, *map(line, reports)])


def line(report: Report) -> str:
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    layout = f"{mesh}, remat {report.remat}, {report.rows:,} rows"
    if report.memory is None or report.time is None or report.problem:
        return f"{'does not fit':>38}  {layout}"
    figures: Any = report.rate, report.utilisation, report.time.total, report.memory.total / 2**30
    return "{:12,.0f}{:7.1%}{:9.3f}{:10.2f}  ".format(*figures) + layout
