"""Jobs for each target, and texts that their manifests must carry whole."""

from pathlib import Path

import yaml
from hypothesis import strategies as st

from user_llm.config import Experiment, MeshConfig
from user_llm.launch import render
from user_llm.launch.job import Job

ROOT = Path(__file__).parents[1]
CONFIG = "configs/quickstart.py"
CLOUD = {"image": "ghcr.io/owner/user_llm:1", "run_dir": "gs://bucket/run"}
TARGETS = {
    "jobset": {**CLOUD, "nodes": 2, "gpus": "8"},
    "slurm": {"run_dir": "runs/x", "nodes": 2, "gpus": "h100:8"},
    "skypilot": {**CLOUD, "nodes": 2, "gpus": "H100:8"},
}
TWO = MeshConfig(slices=2)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
STRANGE = TEXT | st.sampled_from(
    [
        *("$(HOME)", "$$(A)", "${HOME}", "`id`", "'", '"', "\\", "y", "No", "null", "1e3", "0o17"),
        *("1_000", "12:30:00", "~", "{a: b}", "é", "🙂", "-n", "--", "*", "%x", "- x", "# x"),
        *("x # y", "a: b", "!!int 3", "", " ", " x", "x\t", "a\nb\n", "\n", "\t\n", "\n\n  x\n"),
        *("---\n", "|\n  y", "\r\n", "\x85", "\x1b[0m", "\u2028", "\ufeff"),
    ]
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True).map("X_{}".format)
ENV = st.dictionaries(NAMES, STRANGE, max_size=4)
WORDS = st.lists(STRANGE, max_size=4)


def job(target: str = "slurm", overrides: list[str] | None = None, **options) -> Job:
    given = {"verb": "run", "name": "x", "env": [], "config": CONFIG, **TARGETS[target]} | options
    mesh = given.pop("mesh", MeshConfig())
    experiment = Experiment(name="some_run", mesh=mesh)
    return render.job(experiment, overrides=overrides or [], target=target, **given)


def strange(target: str, env: dict[str, str], words: list[str]) -> Job:
    return job(target, overrides=words, env=[f"{name}={text}" for name, text in env.items()])


def rendered(made: Job) -> dict:
    return yaml.safe_load(render.render(made, ["user-llm"]))
