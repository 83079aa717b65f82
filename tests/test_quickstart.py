"""The quickstart as a user runs it: a real process, and what its table has to show."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, "-m", "user_llm.cli", "quickstart", "--run-dir", "run"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "report: run/report.html" in done.stdout
    assert "What now?" in done.stdout
    return home / "run"


@pytest.fixture(scope="module")
def figures(folder):
    rows = json.loads((folder / "evaluation.json").read_text())["rows"]
    return {row["system"]: row["metrics"] for row in rows}


def test_encoder_is_near_the_oracle_and_far_above_popularity(figures):
    recall = {name: row["test/next_item/recall_at_10"] for name, row in figures.items()}
    assert recall["encoder"] >= 4 * recall["popularity"]
    assert recall["encoder"] >= 0.7 * recall["oracle"]


def test_reading_the_user_doubles_first_place_and_knows_the_favorite_genre(figures):
    ours, plain = figures["user_llm"], figures["no_context"]
    first, genre = "test/next_item/recall_at_1", "test/favorite_category/accuracy"
    assert ours[first] >= 2 * plain[first] and ours[first] > 0.05
    assert ours[genre] >= plain[genre] + 0.15


def test_somebody_elses_memory_takes_the_gain_away(figures):
    ours, plain = figures["user_llm"], figures["no_context"]
    shuffled = figures["shuffled_memory"]
    for name in ("test/next_item/recall_at_10", "test/favorite_category/accuracy"):
        gain, rest = ours[name] - plain[name], shuffled[name] - plain[name]
        assert rest < 0.2 * gain, f"{name}: {rest:.3f} of {gain:.3f} is left"


def test_memory_costs_fewer_prompt_tokens_than_text(folder):
    rows = json.loads((folder / "benchmark.json").read_text())["rows"]
    tokens = {(row["system"], row["history"]): row["prompt_tokens"] for row in rows}
    assert tokens["text_prompt", 10] > 10 * tokens["user_llm", 10]
