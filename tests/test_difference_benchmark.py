"""The benchmark of differences: both systems train, and what it cost is recorded."""

import json

import pytest
from models_made import CROSS, DECODER, ENCODER, FEATURES, PERCEIVER

from user_llm import benchmarks
from user_llm.config import SystemConfig
from user_llm.evaluation import difference_benchmark, records
from user_llm.evaluation.inference_subject import Shape


@pytest.mark.slow
def test_both_systems_are_timed_and_recorded(tmp_path):
    system = SystemConfig(cross_attention=CROSS, perceiver=PERCEIVER)
    shape = Shape(system, DECODER, ENCODER, FEATURES[:3])
    result = difference_benchmark.benchmark(tmp_path, shape, rounds=2, batch=8, events=6)
    assert json.loads((tmp_path / "benchmark.json").read_text())["rows"] == result["rows"]
    alone, both = (row["seconds"] for row in result["rows"])
    assert alone > 0 and both > 0
    assert f"{both / alone:.2f}, wanted: ≤ 1.15" in difference_benchmark.table(result)
    benchmarks.keep(result, difference_benchmark.metrics(result), tmp_path / "kept", 1.0)
    kept = {record.run: record.metrics for record in records.read(tmp_path / "kept")}
    both_kept = kept["difference/timeline and difference"]
    assert both_kept["step/times_the_timeline"] == pytest.approx(both / alone)
