"""The quickstart as a user runs it: a real process, and what its table has to show."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from readmes import ROOT, blocks

# What of the README is not run here: it trains anew, compiles for minutes, or ends with a signal.
LEFT = ("bash launch/local.sh", "user-llm run ", "user-llm launch check ", "user-llm serve ")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, "-m", "user_llm.cli", "quickstart"]
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    env.pop("NPROC", None)  # for meshes of many devices; on one it costs a fourth
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "report: runs/quickstart/report.html" in done.stdout
    assert "What now?" in done.stdout
    return home / "runs" / "quickstart"


@pytest.fixture(scope="module")
def figures(folder):
    rows = json.loads((folder / "evaluation.json").read_text())["rows"]
    return {row["system"]: row["metrics"] for row in rows}


def column(figures, metric):
    return {name: row[metric] for name, row in figures.items() if metric in row}


def test_encoder_is_far_above_popularity_and_near_the_oracle(figures):
    recall = column(figures, "test/next_item/recall_at_10")
    assert 4 * recall["popularity"] <= recall["encoder"]
    assert 0.7 * recall["oracle"] <= recall["encoder"] <= recall["oracle"]


def test_memory_tells_the_next_item_and_the_favorite_category(figures):
    recall = column(figures, "test/next_item/recall_at_1")
    assert recall["user_llm"] >= 2 * recall["no_context"]
    assert recall["user_llm"] >= 0.05
    accuracy = column(figures, "test/favorite_category/accuracy")
    assert accuracy["user_llm"] >= accuracy["no_context"] + 0.15


@pytest.mark.parametrize(
    "metric", ["test/next_item/recall_at_10", "test/favorite_category/accuracy"]
)
def test_memory_of_somebody_else_takes_the_gain_away(figures, metric):
    found = column(figures, metric)
    gain = found["user_llm"] - found["no_context"]
    assert found["shuffled_memory"] - found["no_context"] < 0.2 * gain


def test_every_system_answers_every_task(figures):
    asked = set(figures["user_llm"])
    assert {key.split("/")[1] for key in asked} == {
        "next_item",
        "favorite_category",
        "review_generation",
    }
    for name in ("no_context", "text_prompt", "shuffled_memory"):
        assert set(figures[name]) == asked


def test_memory_costs_fewer_prompt_tokens_than_text(folder):
    rows = json.loads((folder / "benchmark.json").read_text())["rows"]
    tokens = {(row["system"], row["history"]): row["prompt_tokens"] for row in rows}
    assert tokens["text_prompt", 10] > 10 * tokens["user_llm", 10]


def test_what_the_readme_shows_can_be_done_with_it(folder):
    home, readme = folder.parents[1], (ROOT / "README.md").read_text()
    (home / "configs").symlink_to(ROOT / "configs")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def done(*command: str) -> str:
        told = {"cwd": home, "env": os.environ | {"PATH": path}, "text": True}
        found = subprocess.run(command, **told, capture_output=True)
        assert found.returncode == 0, found.stderr[-2000:]
        return found.stdout

    lines = "".join(blocks(readme, "bash")).splitlines()
    told = done("bash", "-ec", "\n".join(line for line in lines if not line.startswith(LEFT)))
    assert '{"user": "ann", "items": ["i' in told and "user_llm" in told
    assert (home / "exports/films/export.json").is_file() and (home / "job.yaml").is_file()
    shown = done(sys.executable, "-c", "".join(blocks(readme, "python"))).splitlines()
    assert shown[0].startswith("[Recommendation(item='i") and shown[1] == "(1, 64)"
    assert len(shown) == 5 and all(" | " in line for line in shown[2:])
