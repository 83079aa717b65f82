"""The benchmark of `embed`: the verb is watched, killed, and what it wrote is compared."""

import json

import numpy as np
import pytest

from user_llm import benchmarks
from user_llm.config import EncoderConfig
from user_llm.evaluation import embedding_benchmark, records
from user_llm.inference import embeddings


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_verb_is_timed_killed_and_recorded(tmp_path, monkeypatch):
    small = EncoderConfig(window=50, embed=8, feature_embed=4, layers=1, heads=1, mlp=8)
    experiment = embedding_benchmark.EXPERIMENT.model_copy(update={"encoder": small})
    monkeypatch.setattr(embedding_benchmark, "EXPERIMENT", experiment)
    monkeypatch.setattr(embedding_benchmark, "PAUSE", 0.05)
    result = embedding_benchmark.benchmark(tmp_path, users=17_000, kills=1)
    assert json.loads((tmp_path / "benchmark.json").read_text())["samples"] == result["samples"]
    assert len(result["left"]) == 1
    assert result["samples"][-1]["shards"] == 2
    for name in ("whole", "killed"):
        users = [user for some, _ in embeddings.read(tmp_path / name) for user in some]
        assert len(set(users)) == len(users) == 17_000
    vectors = np.concatenate([some for _, some in embeddings.read(tmp_path / "killed")])
    assert np.isfinite(vectors).all() and vectors.std(0).min() > 0
    assert "the files are the same, byte for byte" in embedding_benchmark.table(result)
    benchmarks.keep(result, embedding_benchmark.metrics(result), tmp_path / "kept", 1.0)
    (kept,) = records.read(tmp_path / "kept")
    assert kept.metrics["users_per_second"] * kept.metrics["seconds"] == pytest.approx(17_000)
    assert kept.metrics["memory/peak"] >= kept.metrics["memory/last_third"] > 10**8


def test_figures_of_memory_begin_with_the_first_shard():
    samples = [
        {"seconds": float(nth), "shards": max(0, nth - 2), "memory": memory}
        for nth, memory in enumerate([50, 900, 900, 500, 510, 505, 520, 530, 540])
    ]
    found = embedding_benchmark.metrics({"samples": samples, "users": 80, "left": [{}] * 3})
    assert found == {
        "embedding": {
            "users_per_second": 10.0,
            "seconds": 8.0,
            "memory/first_third": 510,
            "memory/last_third": 540,
            "memory/peak": 900,
            "kills": 3,
        }
    }


def test_too_few_users_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"1000 users are 1 shard.* ask for 49153 or more"):
        embedding_benchmark.benchmark(tmp_path, users=1000)


def test_files_that_differ_or_are_missing_are_named(tmp_path):
    for folder, files in {
        "one": {"a": "1", "b": "2"},
        "other": {"a": "1", "b": "3", "c": ""},
    }.items():
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    assert embedding_benchmark.differing(tmp_path / "one", tmp_path / "other") == ["b", "c"]


@pytest.mark.slow
def test_a_writing_that_fails_is_told(tmp_path):
    with pytest.raises(ValueError, match="embed failed; it said[^$]*holds no run"):
        embedding_benchmark.watch([str(tmp_path)], tmp_path / "out")
