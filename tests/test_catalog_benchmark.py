"""The catalogue's benchmark: what it reports adds up."""

import json
import sys

import pytest

from user_llm.config import DecoderConfig
from user_llm.evaluation import catalog_benchmark, sides
from user_llm.models.zoo import count_decoder

SMALL = DecoderConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1)


def test_the_decoder_is_of_100_million_parameters():
    assert count_decoder(catalog_benchmark.DECODER) == pytest.approx(100e6, rel=0.02)


def test_sizes_are_timed_and_recorded(tmp_path):
    sizes = {"items": (20, 60), "users": (1, 2), "beam": 3, "rounds": 1}
    result = catalog_benchmark.benchmark(tmp_path, config=SMALL, **sizes)
    assert json.loads((tmp_path / "benchmark.json").read_text()) == result
    for made, count in zip(result["tables"], sizes["items"], strict=True):
        titles = catalog_benchmark.titles(count, SMALL.vocab_size).tolist()
        prefixes = {tuple(x[:n]) for x in titles for n in range(len(x) + 1)}
        assert (made["items"], made["nodes"]) == (count, len(prefixes))
        assert made["bytes"] >= 6 * 4 * made["nodes"] and made["seconds"] > 0
        assert made["memory"] > 0 or sys.platform != "linux"
    places = [(row["users"], row["items"], row["depth"]) for row in result["rows"]]
    assert places == [(u, i, d) for u in (1, 2) for i in (20, 60) for d in range(5)]
    kinds = ("chosen", "some", "free", "decoder")
    assert all(row[kind] > 0 for row in result["rows"] for kind in kinds)
    row = {"chosen": 3.0, "free": 1.0, "decoder": 40.0}
    assert catalog_benchmark.masking(row) == 0.05
    assert "wanted: masking ≤ 5%" in catalog_benchmark.table(result)


def test_a_build_that_fails_says_why():
    with pytest.raises(ValueError, match="failed:[^$]*the catalogue is empty"):
        sides.run(catalog_benchmark.__name__, catalog_benchmark.Build(0, 64))
