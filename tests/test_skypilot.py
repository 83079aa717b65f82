"""Tasks for SkyPilot, read by SkyPilot's own parser in an environment of its own."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from manifests_made import ROOT, job

from user_llm.launch import render

PINS = Path(__file__).with_name("skypilot.txt")
READ = """
import json, sys
import sky

task = sky.Task.from_yaml(sys.argv[1])
resources, = task.resources
told = {
    "name": task.name,
    "num_nodes": task.num_nodes,
    "envs": task.envs,
    "run": task.run,
    "accelerators": resources.accelerators,
    "accelerator_args": resources.accelerator_args,
    "image": resources.image_id,
    "job_recovery": resources.job_recovery,
}
print("told", json.dumps(told))
"""
TEXTS = ["$(HOME) ${HOME} `id`", 'it\'s "so"', "a\nb\n", "null", "1e3", "é # x", ""]


@pytest.fixture(scope="module")
def read(request, tmp_path_factory):
    """SkyPilot's parser, installed once for its pins into pytest's cache."""
    mark = hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]
    folder = request.config.cache.mkdir(f"skypilot-{mark}")
    python = folder / "venv/bin/python"
    if not (folder / "installed").exists():
        venv = ["venv", "--clear", "--without-pip", str(folder / "venv")]
        pip = ["pip", "--python", str(python), "install", "--quiet", "--requirement", str(PINS)]
        for command in (venv, pip):
            if subprocess.run([sys.executable, "-m", *command]).returncode:
                pytest.skip(f"SkyPilot cannot be installed here: {' '.join(command)} failed")
        (folder / "installed").touch()
    home = tmp_path_factory.mktemp("home")  # where SkyPilot keeps its state
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}

    def read(path: Path) -> subprocess.CompletedProcess:
        command = [str(python), "-c", READ, str(path)]
        return subprocess.run(command, env=env, cwd=home, capture_output=True, text=True)

    return read


def told(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("told "))
    return json.loads(line.removeprefix("told "))


def gpu_task() -> str:
    env = [f"X_{i}={text}" for i, text in enumerate(TEXTS)]
    return render.render(job("skypilot", env=env, overrides=TEXTS), ["user-llm", "a\nb"])


def tpu_task() -> str:
    slice = {"gpus": "", "nodes": 1, "tpu": "v5e:4x4"}
    return render.render(job("skypilot", **slice), ["user-llm"])


def example() -> str:
    return (ROOT / "launch/skypilot.yaml").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("make", [gpu_task, tpu_task, example], ids=lambda make: make.__name__)
def test_skypilot_reads_a_task_as_it_was_meant(read, make, tmp_path):
    path = tmp_path / "task.yaml"
    path.write_bytes(make().encode())
    found = told(read(path))
    meant = yaml.safe_load(make())
    resources = meant["resources"]
    kind, count = resources["accelerators"].split(":")
    assert found["accelerators"] == {kind: int(count)}
    assert found["accelerator_args"] == resources.get("accelerator_args")
    assert resources["image_id"] in str(found["image"])
    recovery = found["job_recovery"]
    assert {name: recovery[name] for name in resources["job_recovery"]} == resources["job_recovery"]
    assert {name: found[name] for name in ("name", "num_nodes", "envs", "run")} == {
        name: meant[name] for name in ("name", "num_nodes", "envs", "run")
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("field", "value"), [("hosts", 2), ("num_nodes", "two"), ("envs", {"a b": "c"})]
)
def test_skypilot_refuses_what_is_no_task(read, tmp_path, field, value):
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(example()) | {field: value}))
    done = read(path)
    assert done.returncode != 0 and field in done.stderr + done.stdout
