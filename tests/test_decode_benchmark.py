"""The decoder's benchmark: the sides read the same weights and say the same, and what it cost."""

import json
import math

import jax
import pytest
from models_made import UNTIED

from user_llm import benchmarks
from user_llm.evaluation import decode_benchmark, limits, records
from user_llm.evaluation.peers.decoding import Decoding


@pytest.mark.slow
def test_all_sides_are_timed_and_recorded(tmp_path):
    sizes = {"batches": (1, 2), "prompt": 4, "answer": 5, "long_prompt": 16, "repeats": 1}
    result = decode_benchmark.benchmark(tmp_path, decoder=UNTIED, rounds=1, **sizes)
    assert json.loads((tmp_path / "benchmark.json").read_text())["rows"] == result["rows"]
    kinds = decode_benchmark.SIDES["cpu" if jax.default_backend() == "cpu" else "other"]
    assert [row["side"] for row in result["rows"]] == list(kinds)
    for row in result["rows"]:
        figures = [row["prefill"], *row["decode"].values(), *row["shares"].values()]
        assert all(math.isfinite(x) and x > 0 for x in figures) and row["memory"] > 0
        assert [len(x) for x in row["first_tokens"].values()] == [1, 2]
    text = decode_benchmark.table(result)
    assert "× transformers" in text and "GB/s" in text
    assert "transformers" in (tmp_path / decode_benchmark.PLOT).read_text()
    figures = decode_benchmark.metrics(result)
    assert list(figures) == [f"decode/{side}" for side in kinds]
    ratio = result["rows"][0]["prefill"] / result["rows"][1]["prefill"]
    benchmarks.keep(result, figures, tmp_path / "kept", 1.0)
    ours = records.read(tmp_path / "kept")[0]
    assert ours.metrics["prefill/times_the_peer"] == pytest.approx(ratio)
    assert ours.metrics["decode_2/tokens_per_second"] == result["rows"][0]["decode"]["2"]


def test_shares_are_of_what_a_step_reads_and_a_prompt_multiplies():
    work = Decoding("", 64, prompt=4, answer=8, long_prompt=16)
    row = {"decode": {"2": 10.0}, "prefill": 100.0}
    limit = {"bytes_per_second": 1e6, "flops_per_second": 1e9}
    found = decode_benchmark.shares(row, UNTIED, work, limit)
    projections = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    weights = projections + 2 * 2 * 32 + 32 + 64 * 32  # norms and the head
    cache = 2 * 2 * 2 * 8 * (4 + 4) * 2
    assert found["2"] == pytest.approx(4 * (weights + cache) * 5 / 1e6)
    products = 2 * (weights - 64 * 32) * 16 + 2 * 64 * 32 + 2 * 2 * 4 * 8 * 16**2
    assert found["prefill"] == pytest.approx(products * 100 / 16 / 1e9)


def test_limits_are_measured(monkeypatch):
    monkeypatch.setattr(limits, "READ", (2, 64, 32))
    monkeypatch.setattr(limits, "MULTIPLIED", 16)
    assert all(x > 0 for x in limits.limits("float32").values())
