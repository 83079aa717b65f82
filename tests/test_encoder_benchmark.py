"""The encoder's benchmark: the sides do the same work, and say what it cost."""

import json
import math
import sys
from itertools import pairwise

import numpy as np

from user_llm.data.movielens_shape import Shape, timelines
from user_llm.evaluation import encoder_benchmark, encoder_side
from user_llm.evaluation.peers.work import Work

SHAPE = Shape(users=40, items=60, events=800, shortest=5, longest=50)


def test_packed_rows_have_the_targets_that_a_loop_counts(tmp_path):
    path, window = tmp_path / "timelines.npz", 16
    items, offsets = timelines(SHAPE)
    cut = encoder_benchmark.shown(items, offsets, window)
    np.savez(path, items=cut[0], offsets=cut[1])
    wanted, told = 0, []
    for start, stop in pairwise(offsets):
        timeline = items[start : stop - 1][-window:].tolist()
        wanted += len(timeline) - 1
        told += timeline
    source = encoder_side.packed(Work(str(path), SHAPE.items, window=window))
    assert encoder_side.targets(source) == wanted
    assert cut[0].tolist() == told
    assert len(source) < SHAPE.users


def test_the_best_round_counts_for_each_figure():
    facts = {"targets_per_epoch": 9, "parameters": 8, "block_parameters": 7}
    runs = [
        {"targets": 10, "seconds": 1.0, "cpu_seconds": 4.0, "memory": 5, **facts},
        {"targets": 12, "seconds": 2.0, "cpu_seconds": 3.0, "memory": 3, **facts},
    ]
    best = encoder_benchmark.best(runs)
    assert (best["targets_per_second"], best["targets_per_cpu_second"]) == (10, 4)
    assert best["memory"] == 3 and best["runs"] == runs and best.items() >= facts.items()


def test_both_sides_are_timed_and_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_benchmark, "LOSSES", {"sampled_softmax": 1.3})
    sizes = {"negatives": 4, "window": 16, "embed": 8, "users": 8, "warmup": 1}
    result = encoder_benchmark.benchmark(tmp_path, steps=2, rounds=1, shape=SHAPE, **sizes)
    assert json.loads((tmp_path / "benchmark.json").read_text()) == result
    assert [row["side"] for row in result["rows"]] == ["user_llm", "torch SASRec"]
    for row in result["rows"]:
        figures = [row[n] for n in ("targets_per_second", "targets_per_cpu_second")]
        assert all(math.isfinite(x) and x > 0 for x in figures)
        assert math.isfinite(row["runs"][0]["loss"])
        assert row["memory"] > 0 or sys.platform != "linux"
    ours, peer = (row["block_parameters"] for row in result["rows"])
    assert abs(ours / peer - 1) < 0.1
    text = encoder_benchmark.table(result)
    assert "user_llm" in text and "× torch" in text and "wanted: ≥ 1.3" in text
    ours, theirs = {"seconds": 2.0, "cpu_seconds": 4.0}, {"seconds": 9.0, "cpu_seconds": 10.0}
    evaluated = result | {"evaluation": {"user_llm": ours, "RecTools": theirs}}
    *_, speeds, _, ratios = encoder_benchmark.table(evaluated).splitlines()
    assert speeds.split()[-2:] == ["20", "10"] and ratios.split()[2:4] == ["4.50", "2.50"]
