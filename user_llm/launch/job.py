"""A job to be launched: what runs where, checked before a cluster is asked for it."""

import re
from functools import cached_property
from pathlib import PurePosixPath
from posixpath import dirname, join
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from user_llm.config.base import Config
from user_llm.launch import topology
from user_llm.launch.topology import Topology

# A run that was preempted and has saved exits with 42; from 127 on it crashed, was killed or hung.
# Either goes on from its last checkpoint. Other codes tell of a mistake, which would only recur.
RESTARTED = (42, *range(127, 256))
PORT = 8476  # of the first process, where the others meet
CACHE = "JAX_COMPILATION_CACHE_DIR"
PER_HOST = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
POD_SUFFIX = "-xxxxx"  # what Kubernetes adds to a pod's name
LABEL = r"[a-z]([-a-z0-9]*[a-z0-9])?"


def _text(text: str) -> str:
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"{text!r} is no text in UTF-8 without NUL; programs are given no other")
    return text


Text = Annotated[str, AfterValidator(_text)]


class Job(Config):
    """What runs, on how many hosts, and how often it is started anew."""

    target: Literal["jobset", "slurm", "skypilot"]
    name: str
    config: Text  # the file that says what is trained
    command: tuple[Text, ...]
    run_dir: Text = Field(min_length=1)
    env: dict[str, Text] = Field(default={})
    image: str = ""  # of containers; on SLURM, empty: what is installed
    tpu: str = ""  # a slice such as v5e:16x16
    slices: PositiveInt = 1  # of TPUs, as the mesh says
    nodes: PositiveInt = 1  # without TPUs
    gpus: str = ""  # of each node: their number, or the cluster's name for them, a colon and it
    grace: int = Field(default=300, ge=1, le=65_535)  # seconds from SIGTERM to SIGKILL
    max_restarts: NonNegativeInt = 100

    @field_validator("name")
    @classmethod
    def _label(cls, name: str) -> str:
        if not re.fullmatch(LABEL, name) or len(name) > 63:
            raise ValueError(
                f"the job's name {name!r} is no DNS label; give one by --name, of a-z, 0-9 and -, "
                "which begins with a letter, does not end in -, and has 63 characters at most"
            )
        return name

    @field_validator("env")
    @classmethod
    def _variables(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is no name of an environment variable")
            if name in PER_HOST:
                raise ValueError(f"{name} differs between hosts and is set here; leave it out")
        return env

    @field_validator("image")
    @classmethod
    def _image(cls, image: str) -> str:
        if image and not re.fullmatch(r"[A-Za-z0-9][\w./:@#-]*", image, re.ASCII):
            raise ValueError(f"{image!r} is no name of an image, such as ghcr.io/owner/user_llm:1")
        return image

    @field_validator("tpu")
    @classmethod
    def _known_slice(cls, tpu: str) -> str:
        if tpu:
            topology.parse(tpu)
        return tpu

    @field_validator("gpus")
    @classmethod
    def _counted(cls, gpus: str) -> str:
        if gpus and not re.fullmatch(r"([A-Za-z0-9][\w.-]*:)?[1-9][0-9]?", gpus, re.ASCII):
            raise ValueError(f"--gpus {gpus!r} is no number of each node's, such as 8 or H100:8")
        return gpus

    @model_validator(mode="after")
    def _devices(self):
        if self.tpu and (self.gpus or self.nodes != 1):
            raise ValueError(
                f"--topology {self.tpu} says how many hosts there are and what is in them; leave "
                "out --nodes and --gpus"
            )
        if self.tpu and self.target == "slurm":
            raise ValueError("SLURM is not asked for TPUs here; leave out --topology")
        if self.slices > 1 and not (self.target == "jobset" and self.hosts > 1):
            raise ValueError("--mesh.slices joins TPU slices of several hosts, in a JobSet alone")
        if self.target == "skypilot" and self.gpus and not self.gpu_kind:
            raise ValueError(f"SkyPilot wants to know which GPUs; write --gpus H100:{self.gpus}")
        return self

    @model_validator(mode="after")
    def _places(self):
        path = PurePosixPath(self.config)
        if self.target == "slurm":
            return self
        if not self.image:
            raise ValueError("the job's containers are made of an image; name it by --image")
        if path.is_absolute() or ".." in path.parts or path.suffix != ".py":
            raise ValueError(
                f"{self.config} is looked for in the image; name a .py file of the repository by "
                "its path from there"
            )
        if not re.match(r"gs://[^/]+/.", self.run_dir):
            raise ValueError(
                f"--run-dir {self.run_dir} is not where all hosts, and the next start, can keep a "
                "run; name a folder of a bucket of Google's, such as gs://bucket/run"
            )
        return self

    @model_validator(mode="after")
    def _short_names(self):
        hosts = f"-worker-{self.slices - 1}-{self.hosts - 1}"
        most = 63 - len(hosts) - len(POD_SUFFIX)
        if self.target == "jobset" and len(self.name) > most:
            raise ValueError(
                f"the job's name {self.name} is longer than {most} characters, of which its pods' "
                "names are made; give a shorter one by --name"
            )
        return self

    @cached_property
    def slice(self) -> Topology | None:
        return topology.parse(self.tpu) if self.tpu else None

    @property
    def hosts(self) -> int:
        """Of a slice, or all nodes."""
        return self.slice.hosts if self.slice else self.nodes

    @property
    def gpu_kind(self) -> str:
        """Whatever the cluster calls them, or nothing."""
        return self.gpus.rpartition(":")[0]

    @property
    def gpus_per_node(self) -> int:
        return int(self.gpus.rpartition(":")[2] or 0)

    @property
    def devices(self) -> int:
        """All that the job's mesh is made of; a node without GPUs has its CPUs as one."""
        if self.slice:
            return self.slices * self.slice.chips
        return self.nodes * (self.gpus_per_node or 1)

    @property
    def variables(self) -> dict[str, str]:
        """The environment that all hosts share; what was compiled once is kept beside the run."""
        return {CACHE: join(dirname(self.run_dir.rstrip("/")), "cache")} | self.env
