"""The serving benchmark: real servers are loaded, told of events, and asked beside text."""

import json
import math

import pytest
from models_made import UNTIED

from user_llm import benchmarks
from user_llm.config import EncoderConfig
from user_llm.evaluation import load, records, serving_benchmark, serving_table
from user_llm.evaluation.load import Answer

DECODER = UNTIED.model_copy(update={"vocab_size": 512, "max_position_embeddings": 256})
ENCODER = EncoderConfig(window=16, embed=8, feature_embed=4, layers=1, heads=1, mlp=8)
SIZES = serving_benchmark.Sizes(
    clients=(1, 3),
    answers=2,
    each=1,
    tokens=4,
    history=12,
    histories=(5, 40),
    updates=10,
    posted=3,
    told=1,
    flags=("--length", "32", "--rows", "2", "--cold"),
)


@pytest.mark.slow
def test_servers_are_loaded_and_told_of_events(tmp_path, monkeypatch):
    result = serving_benchmark.benchmark(
        tmp_path,
        decoders=["tiny"],
        rounds=1,
        sizes=SIZES,
        shapes={"tiny": DECODER},
        encoder=ENCODER,
    )
    assert json.loads((tmp_path / "benchmark.json").read_text())["rows"] == result["rows"]
    (row,) = result["rows"]
    loads = [(one["side"], one["clients"], one["answers"]) for one in row["answers"]]
    assert loads == [("user_llm", 1, 2), ("user_llm", 3, 3), ("user_llm, one row", 1, 2)]
    for one in row["answers"]:
        assert 0 < one["first"]["p50"] <= one["whole"]["p50"] <= one["whole"]["p99"]
        assert one["tokens_per_second"] == pytest.approx(4 * one["answers_per_second"])
    few, many = row["updates"]
    assert (few["history"], many["history"]) == (5, 40)
    assert few["bytes"]["events"] < many["bytes"]["events"]
    assert few["bytes"]["state"] < many["bytes"]["state"]
    assert few["bytes"]["ready"] == many["bytes"]["ready"]  # whatever the history, so many tokens
    for one in row["updates"]:
        assert min(one[name]["p50"] for name in ("update", "anew", "memory")) > 0
        assert one["append"]["p50"] > 0 and one["posted"]["p50"] > 0
    text = row["text"]
    assert text["tokens"]["text"] > 12 * text["tokens"]["question"] / 2
    assert text["fresh"]["p50"] > text["event"]["p50"] > 0
    assert "one row" in serving_benchmark.table(result)
    assert "read anew" in (tmp_path / "updates_tiny.svg").read_text()
    figures = serving_benchmark.metrics(result)
    assert list(figures) == ["serving/tiny"]
    assert all(math.isfinite(x) and x > 0 for x in figures["serving/tiny"].values())
    benchmarks.keep(result, figures, tmp_path / "kept", 1.0)
    kept = records.read(tmp_path / "kept")[0].metrics
    assert kept["clients_3/tokens_per_second"] == row["answers"][1]["tokens_per_second"]
    assert kept["history_40/state_bytes"] == many["bytes"]["state"]


def test_unknown_decoders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no decoder 7b; there are 3m, 134m"):
        serving_benchmark.benchmark(tmp_path, decoders=["7b"])


def test_speed_is_of_the_time_when_all_clients_were_there():
    quick = [Answer(0.0, [1.0, 2.0]), Answer(2.0, [3.0, 4.0])]
    slow = [Answer(0.0, [2.0, 4.0]), Answer(4.0, [6.0, 8.0])]
    assert load.speed([quick, slow]) == 6 / 4
    assert quick[1].first == 1.0 and quick[1].whole == 2.0
    found = load.percentiles([*quick, *slow], lambda answer: answer.whole)
    assert found["p50"] == 3.0 and found["p99"] == pytest.approx(4.0)


def test_what_is_wanted_is_told_as_far_as_it_was_measured():
    def middles(x):
        return {"p50": x, "mean": x, "max": x}

    def change(history, update, anew):
        parts = {"update": middles(update), "anew": middles(anew), "memory": middles(1.25)}
        return {"history": history} | parts

    row = {
        "answers": [
            {"side": "user_llm", "clients": 16, "tokens_per_second": 60.0},
            {"side": "user_llm, one row", "clients": 1, "tokens_per_second": 20.0},
        ],
        "updates": [change(10, 1.0, 2.0), change(200, 1.25, 50.0)],
        "text": {"kept": middles(0.1), "fresh": middles(0.2), "text": middles(3.0)},
    }
    assert serving_table.ratios(row) == pytest.approx(
        {
            "update/dearest_to_cheapest": 1.25,
            "times_one_by_one": 3.0,
            "update/times_cheaper": 40.0,
            "update/times_cheaper_with_memory": 20.5,
            "kept/times_sooner_than_text": 30.0,
            "fresh/times_sooner_than_text": 15.0,
        }
    )
    bare = row | {"answers": row["answers"][1:], "updates": row["updates"][:1]}
    assert "times_one_by_one" not in serving_table.ratios(bare)
