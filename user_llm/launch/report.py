"""What compiling a stage for a topology told, as numbers and as text."""

from typing import NamedTuple

from user_llm.launch.cost import Time
from user_llm.launch.memory import Memory
from user_llm.launch.topology import GIB, Topology


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
