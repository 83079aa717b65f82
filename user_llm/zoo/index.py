"""The zoo's systems with all that is known of them: configs, records and counted parameters."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from user_llm.config import Config, DataConfig, Experiment
from user_llm.evaluation import records
from user_llm.evaluation.records import Record
from user_llm.zoo.entries import Entry, Family, Paper, Zoo

COUNTED = "parameters.json"  # beside the configs
COMPILED = "never run"  # says the protocol of what was but compiled
SHAPING = {"data", "encoder", "system", "language_model"}  # parts that parameters depend on

Kind = Literal["encoder", "system", "language_model"]
# By kind the row of a run's table that is the system itself.
OWN: dict[Kind, str] = {
    "encoder": "encoder",
    "system": "user_llm",
    "language_model": "language_model",
}


class Counted(Config):
    """How many parameters a system has, and the config, as `fingerprint` has it, that says so."""

    parameters: int
    config: str


COUNTS = TypeAdapter(dict[str, Counted])


class Value(NamedTuple):
    """A metric over seeds: its mean, and of several the standard deviation of a sample."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class System:
    """One system of the zoo."""

    entry: Entry
    family: Family
    experiment: Experiment  # with the language model of the run that lends it
    recorded: dict[str, list[Record]]  # the records of its runs, by row of their table
    before: tuple[list[Record], ...]  # of the runs that it begins with
    counted: Counted | None
    readme: str  # of its config's folder, if there is one: what the results there say

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def kind(self) -> Kind:
        return kind(self.experiment)

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (*self.family.papers, *self.entry.papers)

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.entry.metrics or self.family.metrics

    @property
    def row(self) -> str:
        """The row of the table that is the system itself."""
        return self.entry.recorded or OWN[self.kind]

    @property
    def records(self) -> list[Record]:
        """Its own, a seed each."""
        return self.recorded.get(self.row, [])

    @property
    def trained(self) -> bool:
        """Whether it has been, and not but compiled."""
        return bool(self.records) and not is_compiled(self.records)

    @cached_property
    def values(self) -> dict[str, dict[str, Value]]:
        """Of each row that has any, its own first, what it comes to in the system's metrics."""
        rows = {self.row: self.records} | self.recorded
        found = {
            row: {key: value for key in self.metrics if (value := over_seeds(some, key))}
            for row, some in rows.items()
        }
        return {row: own for row, own in found.items() if own}

    @property
    def seconds(self) -> float | None:
        """What a seed takes to train, without what it begins with."""
        return mean(one.seconds for one in self.records) if self.trained else None

    @property
    def parameters(self) -> int | None:
        """None where they were not counted, or the config is another since."""
        if self.counted is None or self.counted.config != fingerprint(self.experiment):
            return None
        return self.counted.parameters


def is_compiled(some: Sequence[Record]) -> bool:
    """Whether records are of what was but compiled."""
    return any(COMPILED in one.protocol for one in some)


def over_seeds(some: Sequence[Record], key: str) -> Value | None:
    """A metric's mean and spread over records; None where none of them has it."""
    found = [one.metrics[key] for one in some if key in one.metrics]
    if not found:
        return None
    return Value(mean(found), stdev(found) if len(found) > 1 else None)


def kind(experiment: Experiment) -> Kind:
    """What an experiment's stages make."""
    if experiment.finetune.steps:
        return "system"
    return "language_model" if experiment.warmup.steps else "encoder"


def fingerprint(experiment: Experiment) -> str:
    """The hash of what is no default in the parts that an experiment's parameters depend on."""
    told = experiment.model_dump_json(include=SHAPING, exclude_defaults=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def collect(folder: Path, zoo: Zoo, configs: Mapping[str, Sequence[Experiment]]) -> list[System]:
    """The zoo's systems, in its order.

    Args:
      folder: of the configs.
      configs: the experiments of each file below it.

    Raises:
      ValueError: the zoo names what is in no config, or a file of results is damaged.
    """
    known = {sub: records.read(sub) for sub in sorted({(folder / f).parent for f in configs})}
    every = [one for some in known.values() for one in some]
    counts = counted(folder)
    families = {entry.name: family for family in zoo.families for entry in family.systems}
    found = []
    for entry in zoo.systems:
        experiment = chosen(entry, configs[entry.config])
        path = folder / entry.config
        rows: dict[str, list[Record]] = {}
        for one in known[path.parent]:
            run, _, row = one.run.partition("/")
            if (one.config, run) == (path.name, experiment.name):
                rows.setdefault(row, []).append(one)
        found.append(
            System(
                entry=entry,
                family=families[entry.name],
                experiment=lent(experiment, configs),
                recorded={r: sorted(some, key=lambda x: x.seed) for r, some in rows.items()},
                before=tuple(of_run(place, every) for place in begins(experiment)),
                counted=counts.get(entry.name),
                readme=readme(folder, entry.config),
            )
        )
    return found


def chosen(entry: Entry, experiments: Sequence[Experiment]) -> Experiment:
    """The experiment that an entry is about; of several seeds the first.

    Raises:
      ValueError: its file has no experiment of that name.
    """
    names = dict.fromkeys(one.name for one in experiments)
    wanted = entry.row or (next(iter(names)) if len(names) == 1 else "")
    if wanted not in names:
        raise ValueError(
            f"the zoo names row={entry.row!r} of {entry.config}, whose experiments are "
            f"{', '.join(names)}; name one of these"
        )
    return next(one for one in experiments if one.name == wanted)


def readme(folder: Path, config: str) -> str:
    """The README.md of a config's own folder below that of all configs; empty without one."""
    told = Path(config).with_name("README.md")
    return told.as_posix() if len(told.parts) > 1 and (folder / told).is_file() else ""


def counted(folder: Path) -> dict[str, Counted]:
    """The parameters that were counted, by system.

    Raises:
      ValueError: their file is damaged.
    """
    path = folder / COUNTED
    if not path.exists():
        return {}
    try:
        return COUNTS.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is damaged; `user-llm zoo count` writes it: {error}") from error


def begins(experiment: Experiment) -> Iterator[str]:
    """The folders of the runs that an experiment begins with."""
    model = experiment.language_model.from_run
    yield from filter(None, (model, experiment.encoder_from, experiment.grow_from))


def told_by(folder: str) -> tuple[str, str]:
    """Of a run's folder `runs/[SWEEP/]NAME[/seed-N]` the sweep, if any, and the name."""
    *above, name = re.sub(r"/seed-\d+$", "", folder).split("/")
    return "/".join(above[1:]), name


def of_run(folder: str, every: Sequence[Record]) -> list[Record]:
    """The records of a run, which its folder tells."""
    sweep, name = told_by(folder)
    return [
        one
        for one in every
        if one.run.partition("/")[0] == name and sweep in ("", Path(one.config).stem)
    ]


def lent(experiment: Experiment, configs: Mapping[str, Sequence[Experiment]]) -> Experiment:
    """The experiment with the language model of the run that it takes it from.

    Raises:
      ValueError: no config of the zoo makes that run.
    """
    while folder := experiment.language_model.from_run:
        sweep, name = told_by(folder)
        for file, some in configs.items():
            lender = next((one for one in some if one.name == name), None)
            if lender and sweep in ("", Path(file).stem):
                break
        else:
            raise ValueError(
                f"{experiment.name} takes the language model of {folder}, which no config of the "
                "zoo makes; list that config in zoo.py"
            )
        experiment = experiment.model_copy(update={"language_model": lender.language_model})
    return experiment


def sources(data: DataConfig) -> list[str]:
    """The folders of raw files that a data set is built of."""
    of = data.made_from
    return [source for source in (data.source, of.source if of else "") if source]
