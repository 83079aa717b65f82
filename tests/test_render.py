"""Manifests: as bash runs them, and the same words at the other end."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from manifests_made import ENV, ROOT, STRANGE, TARGETS, TWO, WORDS, job, rendered, strange

from user_llm import cli
from user_llm.config import MeshConfig
from user_llm.launch import render, skypilot
from user_llm.launch.job import RESTARTED

EXAMPLES = ("jobset.yaml", "slurm.sh", "skypilot.yaml")

# In the place of SLURM's commands and of the program: they note what they are given.
NOTED = """#!{python}
import json, os, signal, sys, time
noted = {{"argv": sys.argv[1:], "env": dict(os.environ)}}
with open({log!r} + os.path.basename(sys.argv[0]), "w") as file:
    json.dump(noted, file)
if "TERM" in os.environ.get("FAKE", ""):
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(0.1)
sys.exit(int(os.environ["CODE"]) if not sys.argv[0].endswith("scontrol") else 0)
"""


class Bash:
    """Runs scripts among programs that only note what they are given."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        for name in ("srun", "scontrol", "user-llm"):
            path = folder / "bin" / name
            path.write_text(NOTED.format(python=sys.executable, log=f"{folder}/noted_"))
            path.chmod(0o755)

    def __call__(self, script: str, code: int = 0, **env: str) -> subprocess.CompletedProcess:
        for noted in self.folder.glob("noted_*"):
            noted.unlink()
        path = self.folder / "script.sh"
        path.write_bytes(script.encode())
        subprocess.run(["bash", "-n", path], check=True)
        own = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "CODE": str(code), **env}
        return subprocess.run(
            ["bash", path], env=own, cwd=self.folder, capture_output=True, text=True
        )

    def noted(self, name: str) -> dict | None:
        path = self.folder / f"noted_{name}"
        return json.loads(path.read_text()) if path.exists() else None


@pytest.fixture(scope="module")
def bash(tmp_path_factory) -> Bash:
    return Bash(tmp_path_factory.mktemp("bash"))


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, 0, False),
        (1, 0, False),
        (126, 0, False),
        (42, 0, True),
        (127, 0, True),
        (255, 0, True),
        (137, 6, True),
        (42, 7, False),
        (137, 9, False),
    ],
)
def test_slurm_requeues_after_42_and_from_127_on_so_often_and_no_more(
    bash, code, restarts, requeued
):
    script = render.render(job(max_restarts=7), ["user-llm"])
    env = {"SLURM_JOB_ID": "31", "SLURM_RESTART_COUNT": str(restarts)}
    assert bash(script, code, **(env if restarts else {"SLURM_JOB_ID": "31"})).returncode == code
    asked = bash.noted("scontrol")
    assert (asked and asked["argv"]) == (["requeue", "31"] if requeued else None)


def test_slurms_script_outlives_the_signal_that_its_processes_get(bash):
    script = render.render(job(), ["user-llm"])
    done = bash(script, 42, FAKE="TERM", SLURM_JOB_ID="31")
    assert done.returncode == 42
    assert bash.noted("scontrol")["argv"] == ["requeue", "31"]


def test_slurm_starts_a_process_for_each_gpu():
    script = render.render(job(grace=77), ["user-llm"])
    told = dict(line[10:].partition("=")[::2] for line in re.findall("#SBATCH .*", script))
    assert told == {
        "job-name": "x",
        "nodes": "2",
        "ntasks-per-node": "8",
        "gpus-per-node": "h100:8",
        "output": "%x-%j.log",
        "open-mode": "append",
        "requeue": "",
        "signal": "TERM@77",
    }
    assert script.startswith("#!/bin/bash\n")
    assert "gpus" not in render.render(job(gpus=""), ["user-llm"])


@given(env=ENV, words=WORDS)
@settings(max_examples=20)
def test_slurm_hands_any_text_on_whole(bash, env, words):
    made = strange("slurm", env, words)
    assert bash(render.render(made, ["user-llm"])).returncode == 0
    noted = bash.noted("srun")
    assert noted["argv"] == ["--kill-on-bad-exit=0", *made.command]
    assert noted["env"].items() >= env.items()


def test_slurms_containers_see_the_folder_that_the_job_was_submitted_from(bash):
    bash(render.render(job(image="nvcr.io#owner/user_llm:1"), ["user-llm"]))
    here = bash.folder
    assert bash.noted("srun")["argv"][1:4] == [
        "--container-image=nvcr.io#owner/user_llm:1",
        f"--container-mounts={here}:{here}",
        f"--container-workdir={here}",
    ]


@example(env={}, words=["\x85", "\u2028"])
@given(env=ENV, words=WORDS)
@settings(max_examples=20)
def test_skypilots_task_hands_any_text_on_whole(bash, env, words):
    made = strange("skypilot", env, words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skypilot, "FOLDER", bash.folder)
        task = rendered(made)
    assert task["envs"].items() >= env.items()
    nodes = {"NODE_IPS": "10.0.0.7\n10.0.0.8", "NUM_NODES": "2", "NODE_RANK": "1"}
    bash(task["run"], **{f"SKYPILOT_{name}": text for name, text in nodes.items()})
    noted = bash.noted("user-llm")
    assert noted["argv"] == list(made.command[1:])
    assert noted["env"]["JAX_COORDINATOR_ADDRESS"] == "10.0.0.7:8476"
    assert (noted["env"]["JAX_NUM_PROCESSES"], noted["env"]["JAX_PROCESS_ID"]) == ("2", "1")


@pytest.mark.parametrize("code", [0, 1, 42, 127, 137, 255])
def test_skypilot_recovers_on_what_the_program_says_not_on_nodes_killed_for_another(
    bash, code, monkeypatch
):
    monkeypatch.setattr(skypilot, "FOLDER", bash.folder)
    task = rendered(job("skypilot"))
    said = bash(task["run"], code).returncode
    recovery = task["resources"]["job_recovery"]
    assert (said in recovery["recover_on_exit_codes"]) == (code in RESTARTED)
    assert said == code or code == 137
    assert 137 not in recovery["recover_on_exit_codes"]
    assert recovery["max_restarts_on_errors"] == 0


def test_skypilot_asks_for_a_slice_as_one_node():
    task = rendered(job("skypilot", gpus="", nodes=1, tpu="v5e:4x4"))
    assert task["num_nodes"] == 1
    assert task["resources"]["accelerators"] == "tpu-v5litepod-16:1"
    assert "JAX_COORDINATOR_ADDRESS" not in task["run"]


@given(words=st.lists(STRANGE, min_size=1, max_size=6), target=st.sampled_from(list(TARGETS)))
@settings(max_examples=20)
def test_the_command_in_a_manifests_head_is_one_line_that_bash_reads_the_same(words, target):
    lines = render.render(job(target), words).splitlines()
    head = lines[1:2] if target == "slurm" else lines[:1]
    assert head[0].startswith("# ")
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {head[0][2:]}"], capture_output=True)
    assert printed.stdout.decode().split("\0")[:-1] == words


@pytest.mark.parametrize(
    ("run_dir", "cache"),
    [
        ("gs://bucket/run", "gs://bucket/cache"),
        ("gs://bucket/a/run/", "gs://bucket/a/cache"),
        ("runs/x", "runs/cache"),
        ("x", "cache"),
        ("/x", "/cache"),
    ],
)
def test_what_was_compiled_is_kept_beside_the_run_unless_told(run_dir, cache):
    name = "JAX_COMPILATION_CACHE_DIR"
    assert job(run_dir=run_dir).variables == {name: cache}
    assert job(run_dir=run_dir, env=[f"{name}=/there"]).variables == {name: "/there"}


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        ("jobset", {"tpu": "v5e:3x3", "gpus": "", "nodes": 1}, "v5e has slices of"),
        ("jobset", {"tpu": "v5e:4x4", "gpus": ""}, "leave out --nodes"),
        ("jobset", {"tpu": "v5e:4x4", "nodes": 1}, "leave out --nodes and --gpus"),
        ("slurm", {"tpu": "v5e:4x4", "gpus": "", "nodes": 1}, "leave out --topology"),
        ("skypilot", {"tpu": "v5e:4x4", "gpus": "", "nodes": 1, "mesh": TWO}, "in a JobSet alone"),
        ("jobset", {"tpu": "v5e:2x2", "gpus": "", "nodes": 1, "mesh": TWO}, "several hosts"),
        ("jobset", {"mesh": MeshConfig(fsdp=3)}, "does not fit 16 devices"),
        ("slurm", {"mesh": MeshConfig(data=4, tensor=2)}, "does not fit 16 devices"),
        ("jobset", {"name": "a_b"}, "no DNS label; give one by --name"),
        ("jobset", {"name": "1a"}, "no DNS label"),
        ("jobset", {"name": "a\n"}, "no DNS label"),
        ("jobset", {"name": "a" * 60}, "longer than 46 characters"),
        ("slurm", {"name": "a" * 64}, "no DNS label"),
        ("jobset", {"run_dir": "runs/x"}, "such as gs://bucket/run"),
        ("jobset", {"run_dir": "gs://bucket"}, "such as gs://bucket/run"),
        ("jobset", {"run_dir": "s3://bucket/run"}, "such as gs://bucket/run"),
        ("skypilot", {"run_dir": "/mnt/x"}, "such as gs://bucket/run"),
        ("slurm", {"run_dir": ""}, "--run-dir : String should have at least 1 character"),
        ("jobset", {"image": ""}, "name it by --image"),
        ("jobset", {"image": "-x"}, "no name of an image"),
        ("slurm", {"image": "a b"}, "no name of an image"),
        ("jobset", {"config": "/home/me/x.py"}, "looked for in the image"),
        ("jobset", {"config": "../x.py"}, "looked for in the image"),
        ("jobset", {"config": "runs/x"}, "looked for in the image"),
        ("slurm", {"env": ["A"]}, "write NAME=VALUE"),
        ("slurm", {"env": ["A B=1"]}, "'A B' is no name"),
        ("slurm", {"env": ["JAX_PROCESS_ID=1"]}, "leave it out"),
        ("slurm", {"env": ["A=\udc80"]}, "no text in UTF-8"),
        ("slurm", {"overrides": ["\0"]}, "no text in UTF-8"),
        ("slurm", {"gpus": "many"}, "such as 8 or H100:8"),
        ("slurm", {"gpus": "h100:0"}, "such as 8 or H100:8"),
        ("skypilot", {"gpus": "8"}, "write --gpus H100:8"),
        ("skypilot", {"grace": 3}, "no place for --grace"),
        ("skypilot", {"max_restarts": 3}, "no place for --max-restarts"),
        ("slurm", {"nodes": 0}, "--nodes 0: Input should be greater than 0"),
        ("slurm", {"grace": 0}, "--grace 0"),
    ],
)
def test_a_job_that_cannot_be_is_refused_with_what_would_mend_it(target, options, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        job(target, **options)


@given(name=st.text("aZ0-_.\n", max_size=70))
def test_a_name_is_a_dns_label_or_refused(name):
    label = re.fullmatch(r"(?!.*-$)[a-z][a-z0-9-]{0,62}", name) and "\n" not in name
    if label or not name:  # the experiment's own name stands for none
        assert job(name=name).name == (name or "some-run")
    else:
        with pytest.raises(ValueError, match="no DNS label"):
            job(name=name)


@pytest.mark.parametrize("file", EXAMPLES)
def test_an_example_is_what_its_command_renders(file, tmp_path, monkeypatch):
    example = (ROOT / "launch" / file).read_bytes()
    command = re.search("^# (user-llm .*)$", example.decode(), re.MULTILINE)
    argv = shlex.split(command[1])
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", argv)
    assert cli.main(argv[1:]) == 0
    assert (tmp_path / "launch" / file).read_bytes() == example


def test_the_image_has_the_configs_where_jobs_look_for_them():
    lines = (ROOT / "launch/Dockerfile").read_text().splitlines()
    assert f"WORKDIR {skypilot.FOLDER}" in lines
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"configs", "user_llm", "pyproject.toml", "constraints.txt"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
