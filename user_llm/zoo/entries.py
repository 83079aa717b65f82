"""What only a person knows of the zoo's systems, as `configs/zoo.py` says it.

All else of the index is derived: from the configs, from the results that are recorded beside them,
and from the parameters that were counted where the data are.
"""

from collections import Counter

from pydantic import Field, model_validator

from user_llm.config import Config


class Paper(Config):
    """Where a system comes from."""

    title: str
    arxiv: str = Field(pattern=r"^\d{4}\.\d{4,5}$")

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


class Entry(Config):
    """One system of the zoo."""

    config: str  # its file, below the folder of configs
    row: str = ""  # of a file with a sweep, the name of an experiment
    what: str = Field(pattern=r"^[^|\n]+$")  # it is, in a line
    papers: tuple[Paper, ...] = ()  # beside its family's
    metrics: tuple[str, ...] = ()  # that tell how good it is, chief one first; empty: its family's
    recorded: str = ""  # which of the recorded rows is its own; empty: as its stages have it
    remark: str = ""  # what must be known to read its figures

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.config.removesuffix(".py"), self.row)))


class Family(Config):
    """Systems of one idea, in the order in which they are read."""

    title: str
    about: str
    papers: tuple[Paper, ...] = ()
    metrics: tuple[str, ...] = ()
    systems: tuple[Entry, ...] = Field(min_length=1)


class Zoo(Config):
    """All systems."""

    families: tuple[Family, ...] = Field(min_length=1)

    @property
    def systems(self) -> tuple[Entry, ...]:
        return tuple(entry for family in self.families for entry in family.systems)

    @model_validator(mode="after")
    def _told_apart(self):
        names = Counter(entry.name for entry in self.systems)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"the zoo lists twice: {', '.join(twice)}; keep one of each")
        return self

    @model_validator(mode="after")
    def _measured(self):
        for family in self.families:
            if lost := [e.name for e in family.systems if not (e.metrics or family.metrics)]:
                raise ValueError(f"no metrics tell how good these are: {', '.join(lost)}")
        return self
