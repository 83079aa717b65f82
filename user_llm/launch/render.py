"""`user-llm launch render`: the manifest of a job, from the config that says what is trained."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from user_llm.config import Experiment
from user_llm.files import write_atomically
from user_llm.launch import jobset, skypilot, slurm
from user_llm.launch.job import Job

SUBMIT = {"jobset": "kubectl apply -f", "slurm": "sbatch", "skypilot": "sky jobs launch"}
PLAIN = re.compile(r"(--)?[A-Za-z][\w./:-]*", re.ASCII)
BREAKS = re.compile("[\x85\u2028\u2029]")  # which a reader of YAML takes for the end of a line
WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}  # not texts, to some reader


def parser(prog: str) -> argparse.ArgumentParser:
    """The options of the launch; all others name fields of the experiment."""
    made = argparse.ArgumentParser(
        prog=prog,
        allow_abbrev=False,
        description="Writes the manifest of a job.",
        epilog="All other options replace fields of the experiment and are passed on to the job; "
        "`user-llm run CONFIG --help` lists them.",
    )
    add = made.add_argument
    add("--target", required=True, choices=tuple(SUBMIT), help="what the job is submitted to")
    add("--verb", default="run", choices=("run", "pretrain", "finetune"), help="default: run")
    add("--run-dir", required=True, metavar="DIR", help="where the run is kept: gs://bucket/run")
    add("--name", help="of the job, a DNS label (default: the experiment's, with - for _)")
    add("--image", default="", help="of the containers; see launch/Dockerfile")
    slices = "a slice, such as v5e:16x16; of a JobSet, --mesh.slices so many"
    add("--topology", dest="tpu", default="", metavar="TPU", help=slices)
    add("--nodes", type=int, default=1, metavar="N", help="hosts without TPUs (default: 1)")
    kinds = "of each node: a number, or the cluster's name for their kind and a number: H100:8"
    add("--gpus", default="", metavar="[KIND:]N", help=kinds)
    variable = "a variable of the job's environment; may be given several times"
    add("--env", action="append", default=[], metavar="NAME=VALUE", help=variable)
    grace = "seconds between SIGTERM and SIGKILL (default: 300); SkyPilot leaves it to the cloud"
    add("--grace", type=int, metavar="N", help=grace)
    restarts = "starts anew at most (default: 100); SkyPilot does not count them"
    add("--max-restarts", type=int, metavar="N", help=restarts)
    add("--out", type=Path, metavar="FILE", help="shown if not given")
    return made


def main(
    experiment: Experiment, config: str, overrides: list[str], out: Path | None, **options: Any
) -> None:
    """Writes the manifest to a file, or shows it.

    Raises:
      ValueError: such a job cannot be, or not train this experiment; it says why.
    """
    text = render(job(experiment, config, overrides, **options), ["user-llm", *sys.argv[1:]])
    if out is None:
        print(text, end="")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text)


def job(
    experiment: Experiment,
    config: str,
    overrides: Sequence[str],
    *,
    verb: str,
    run_dir: str,
    name: str | None,
    env: Sequence[str],
    **options: Any,
) -> Job:
    """The job that the options describe, checked against the experiment.

    Raises:
      ValueError: as `main`.
    """
    if bad := [one for one in env if "=" not in one]:
        raise ValueError(f"--env {bad[0]} sets nothing; write NAME=VALUE")
    told = {key: value for key, value in options.items() if value is not None}
    if told["target"] == "skypilot" and (unused := told.keys() & {"grace", "max_restarts"}):
        flags = " and ".join(f"--{key.replace('_', '-')}" for key in sorted(unused))
        raise ValueError(f"SkyPilot has no place for {flags}; leave it out")
    try:
        made = Job(
            name=name or experiment.name.replace("_", "-").lower(),
            config=config,
            command=("user-llm", verb, config, "--run-dir", run_dir, *overrides),
            run_dir=run_dir,
            env=dict(one.split("=", 1) for one in env),
            slices=experiment.mesh.slices if told.get("tpu") else 1,
            **told,
        )
    except ValidationError as error:
        raise ValueError("; ".join(map(_problem, error.errors()))) from error
    experiment.mesh.shape(made.devices)
    return made


def _problem(error: Any) -> str:
    """A problem in our own words where it was found by us, else with its field."""
    if "error" in error.get("ctx", {}):
        return str(error["ctx"]["error"])
    return (
        f"--{'.'.join(map(str, error['loc'])).replace('_', '-')} {error['input']}: {error['msg']}"
    )


def render(job: Job, command: Sequence[str]) -> str:
    """The manifest of a job, with the command that made it in its head."""
    header = f"# {' '.join(map(quote, command))}\n# {SUBMIT[job.target]} FILE"
    if job.target == "slurm":
        return slurm.script(job, header)
    tree = jobset.manifest(job) if job.target == "jobset" else skypilot.task(job)
    return f"{header}\n{dump(tree)}"


def quote(word: str) -> str:
    """A word as bash reads it, on one line of readable characters."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = (c if c.isprintable() and c not in "'\\" else _bytes(c) for c in word)
    return f"$'{''.join(escaped)}'"


def _bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode())


def dump(tree: dict[str, Any]) -> str:
    """YAML of which every reader makes the same: what might be no text to one is in quotes."""
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 100}
    return yaml.dump(tree, Dumper=_Dumper, default_flow_style=None, **options)


class _Dumper(yaml.SafeDumper):
    """Writes several lines as they are, and no text unquoted that a reader could take for more."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain = PLAIN.fullmatch(text) and text.lower() not in WORDS
    lines = text.endswith("\n") and not BREAKS.search(text)
    style = None if plain else "|" if lines else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent)
