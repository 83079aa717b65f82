"""The command line: quick to answer, strict about flags, plain about mistakes."""

import inspect
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from user_llm import cli

CONFIG = """
from user_llm.config import DataConfig, Experiment, Sweep

def config() -> Experiment:
    return Experiment(name="tiny", data=DataConfig(users=7))

def sweep() -> Sweep:
    return Sweep(experiments=(config(),))
"""
CONFIGS = str(Path(__file__).parents[1] / "configs")
TARGETS = dict(cli.TARGETS)
COMMANDS = {
    "quickstart": ["quickstart"],
    "run": ["run", "tiny.py"],
    "sweep": ["sweep", "tiny.py", "--only", "t*"],
    "pretrain": ["pretrain", "tiny.py"],
    "finetune": ["finetune", "tiny.py"],
    "evaluate": ["evaluate", "runs/tiny"],
    "report": ["report", "runs/tiny"],
    "benchmark inference": ["benchmark", "inference", "--decoder", "3m", "--history", "50", "200"],
    "benchmark encoder": ["benchmark", "encoder", "--steps", "2", "--rectools", "python3"],
    "benchmark decode": ["benchmark", "decode", "--rounds", "1", "--decoder", "llama3_1b"],
    "benchmark catalog": ["benchmark", "catalog", "--record", "configs/benchmarks"],
    "benchmark difference": ["benchmark", "difference", "--rounds", "2"],
    "benchmark training": ["benchmark", "training", "--decoder", "3m", "--steps", "2"],
    "benchmark embedding": ["benchmark", "embedding", "--users", "1000"],
    "benchmark serving": ["benchmark", "serving", "--decoder", "3m", "--rounds", "1"],
    "benchmark int8": ["benchmark", "int8", "models/tiny", "--text", "words.txt"],
    "benchmark rectools": ["benchmark", "rectools", "runs/tiny", "--python", "python3"],
    "predict": ["predict", "runs/tiny", "--events", "new.jsonl", "--top", "3"],
    "embed": ["embed", "runs/tiny", "--out", "vectors"],
    "zoo sizes": ["zoo", "sizes", "--items", "9"],
    "zoo list": ["zoo", "list", "--configs", CONFIGS],
    "zoo show": ["zoo", "show", "quickstart", "--configs", CONFIGS],
    "zoo table": ["zoo", "table", "--configs", CONFIGS],
    "zoo count": ["zoo", "count", "--configs", CONFIGS],
    "export": ["export", "runs/tiny", "--out", "exports/tiny", "--format", "stablehlo"],
    "serve": ["serve", "exports/tiny", "--port", "0", "--rows", "4"],
    "embed-texts": ["embed-texts", "models/bert", "datasets/tiny", "--out", "vectors"],
    "dpl": ["dpl", "datasets/tiny", "--url", "http://host/v1", "--model", "m", "--out", "dpl"],
    "data build": ["data", "build", "movielens", "--source", "ml-1m", "--version", "1m"],
    "data inspect": ["data", "inspect", "datasets/world"],
    "data lamp-from-reviews": ["data", "lamp-from-reviews", "datasets/tiny", "--out", "lamp"],
    "launch render": ["launch", "render", "tiny.py", "--target", "slurm", "--run-dir", "runs/x"],
    "launch check": ["launch", "check", "tiny.py", "--topology", "v5e:4x4", "--search", "3"],
}


@pytest.fixture
def config_file(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(CONFIG)
    return "tiny.py"


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """What the verbs' functions would have been called with, in their stead."""
    seen: list[dict] = []
    module = ModuleType("recorder")
    module.record = lambda **options: seen.append(options)
    monkeypatch.setitem(sys.modules, "recorder", module)
    for verb in cli.TARGETS:
        monkeypatch.setitem(cli.TARGETS, verb, "recorder:record")
    return seen


def raising(monkeypatch, error: BaseException):
    def fail(**options):
        raise error

    monkeypatch.setattr(cli, "_load", lambda target: fail)


def test_help_is_quick_and_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "user_llm.cli", "--help"]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert all(verb.split()[0] in done.stdout for verb in cli.TARGETS)
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"jax", "numpy", "pydantic", "transformers", "tyro"}
    assert min(seconds) < 1.5


@pytest.mark.parametrize("verb", TARGETS)
def test_every_verb_calls_a_function_that_takes_its_options(verb, config_file, calls):
    assert cli.main(COMMANDS[verb]) == 0
    inspect.signature(cli._load(TARGETS[verb])).bind(**calls[0])


def test_fields_are_overridden_at_any_depth(config_file, calls):
    flags = "--seed 3 --pretrain.optim.learning-rate 3e-4 --encoder.dtype bfloat16"
    flags += " --data.features item genre --evaluation.baselines"
    flags += " --finetune.tasks.next-item 0.5 --system.cross_attention.every 4"
    flags += " --language-model.architecture.no-tie-word-embeddings"
    assert cli.main(["run", config_file, *flags.split()]) == 0
    experiment = calls[0]["experiment"]
    assert experiment.data.users == 7  # the file's, not the class's
    assert experiment.model_dump(exclude_defaults=True) == {
        "name": "tiny",
        "seed": 3,
        "data": {"users": 7, "features": ("item", "genre")},
        "encoder": {"dtype": "bfloat16"},
        "language_model": {"architecture": {"tie_word_embeddings": False}},
        "system": {"cross_attention": {"every": 4}},
        "pretrain": {"optim": {"learning_rate": 3e-4}},
        "finetune": {"tasks": {"next_item": 0.5}},
        "evaluation": {"baselines": ()},
    }


def test_a_run_is_named_after_its_experiment_unless_told(config_file, calls):
    cli.main(["run", config_file])
    cli.main(["run", config_file, "--name", "other"])
    cli.main(["run", config_file, "--run-dir", "there", "--record"])
    assert [(c["folder"], c["record"]) for c in calls] == [
        (Path("runs/tiny"), False),
        (Path("runs/other"), False),
        (Path("there"), True),
    ]


def test_a_check_is_told_where_and_what(config_file, calls):
    told = ["--topology", "v5e:4x4", "--mesh.fsdp", "16", "--record"]
    assert cli.main(["launch", "check", config_file, *told]) == 0
    assert calls[0].pop("experiment").mesh.fsdp == 16
    assert calls[0] == {
        "topology": "v5e:4x4",
        "search": 0,
        "record": True,
        "config": config_file,
        "overrides": ["--mesh.fsdp", "16"],
    }


def test_where_there_is_only_a_tpu_s_compiler_no_tpu_is_looked_for():
    """Else JAX would, for seconds, and complain of what it does not find."""
    code = "from user_llm import cli; cli._leave_absent_tpus(); import jax; print(jax.devices())"
    free = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=free)
    assert done.stderr == ""


@pytest.mark.parametrize("verb", ["run", "pretrain", "finetune"])
def test_a_verb_with_a_config_is_told_which_and_from_where(verb, config_file, calls):
    cli.main([verb, config_file])
    assert (calls[0]["verb"], calls[0]["config"]) == (verb, config_file)


def test_a_launch_has_options_of_its_own_and_passes_fields_on(config_file, calls):
    flags = "--seed 3 --target slurm --mesh.data -1 --run-dir there --nodes 2 --data.users 9"
    cli.main(["launch", "render", config_file, *flags.split()])
    assert calls[0]["overrides"] == ["--seed", "3", "--mesh.data", "-1", "--data.users", "9"]
    assert calls[0]["experiment"].data.users == 9
    assert (calls[0]["target"], calls[0]["nodes"], calls[0]["run_dir"]) == ("slurm", 2, "there")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--targt", "slurm"], "--target"),
        (["--target", "slurm", "--data.usrs", "9"], "--data.users"),
        (["--target", "slurm", "--nods", "9"], "--nods"),
    ],
)
def test_a_launchs_flag_that_does_not_fit_is_refused(config_file, calls, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(["launch", "render", config_file, "--run-dir", "there", *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not calls


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim.learning-rate", "1"], "--pretrain.optim.learning-rate"),
        (["--data.usrs", "9"], "--data.users"),
        (["--recrd"], "--record"),
        (["--data.users", "many"], "invalid literal for int"),
        (["--data.users", "-1"], "greater than 0"),
        (["--system.fusion", "sum"], "'soft_prompt'"),
        (["--encoder.heads", "7"], "encoder.embed=64 must be a multiple"),
    ],
)
def test_a_flag_that_does_not_fit_is_refused_with_what_would(
    config_file, calls, capsys, flags, message
):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", config_file, *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not calls


def test_help_after_a_config_lists_its_fields_and_values(config_file, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["finetune", config_file, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--run-dir", "--record", "--finetune.optim.learning-rate", "--mesh.fsdp"):
        assert flag in text
    assert "(default: 7)" in text


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("absent.py", None, "absent.py is not a Python file"),
        ("x.yaml", "name: x", "x.yaml is not a Python file"),
        ("x.py", "", "x.py has no config()"),
        ("x.py", "config = 3", "x.py has no config()"),
        ("x.py", "def config(): return {'name': 'x'}", "returned {'name': 'x'}"),
    ],
)
def test_what_is_no_config_is_one_line_of_error(config_file, capsys, name, source, message):
    if source is not None:
        Path(name).write_text(source)
    assert cli.main(["run", name]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_a_value_error_is_told_without_a_traceback(config_file, monkeypatch, capsys):
    raising(monkeypatch, ValueError("window=0 is too small"))
    assert cli.main(["run", config_file]) == 2
    assert capsys.readouterr().err == "error: window=0 is too small\n"


@pytest.mark.parametrize("error", [SystemExit(42), RuntimeError("a bug"), KeyboardInterrupt()])
def test_exits_and_bugs_pass_through(config_file, monkeypatch, error):
    raising(monkeypatch, error)
    with pytest.raises(type(error)) as caught:
        cli.main(["run", config_file])
    assert caught.value is error


@pytest.mark.parametrize("command", [[], ["fly"], ["run"], ["data"], ["data", "build"]])
def test_an_incomplete_command_shows_its_usage(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("usage: user-llm")


def test_a_run_in_a_bucket_that_orbax_does_not_know_is_refused(config_file, capsys):
    assert cli.main(["run", config_file, "--run-dir", "s3://bucket/run"]) == 2
    assert "s3://bucket/run: of all stores" in capsys.readouterr().err


def test_beam_is_asked_for_where_it_is(monkeypatch, capsys):
    monkeypatch.setattr("user_llm.commands.find_spec", lambda name: None)
    assert cli.main(["data", "build", "amazon_reviews", "--beam", ""]) == 2
    assert "install the extra `beam`, in an environment of its own" in capsys.readouterr().err


@pytest.mark.parametrize("said", ["5", "5:", "7:5", "0:3", "a:b"])
def test_what_names_no_steps_to_profile_is_refused(said, config_file, capsys):
    assert cli.main(["run", config_file, "--profile-steps", said]) == 2
    assert f"--profile-steps {said} names no steps; write A:B" in capsys.readouterr().err
