"""Named sizes: they are built as they say, and count what they hold."""

import json
from itertools import pairwise

import jax
import pytest
from flax import nnx

from user_llm.config import FeatureConfig
from user_llm.huggingface.configs import decoder_config, described
from user_llm.models import zoo
from user_llm.models.encoders import ENCODERS


@pytest.mark.parametrize("kind", ["hstu", "bert4rec"])
def test_parameters_are_counted_as_they_are_in_a_real_model(kind):
    config = zoo.encoder("tiny", kind, layers=3)
    item = FeatureConfig(name="item", kind="categorical", size=100, predicted=True)
    model = ENCODERS[kind](config, (item,), rngs=nnx.Rngs(0))
    total = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    tables, rest = zoo.count_parameters(config, 100)
    bias = 100 if kind == "bert4rec" else 0
    assert (tables, tables + rest) == (100 * 64 + bias, total)


def test_sizes_grow_and_are_all_in_the_table():
    counts = [
        zoo.count_parameters(zoo.encoder(size), 1000)[1]
        for size in ("tiny", "small", "base", "large")
    ]
    assert all(4 * a < b for a, b in pairwise(counts))
    lines = zoo.table(1000).splitlines()
    assert len(lines) == 1 + 4 * len(ENCODERS) + 2
    (large,) = (line for line in lines if line.startswith("large") and "autoregressive" in line)
    assert f"{counts[-1]:,}" in large
    assert "512,000" in large


# As the makers' files count them, in safetensors' own headers or a model's num_parameters().
PUBLISHED = {
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1p7b": 1_711_376_384,
    "tinyllama_1b": 1_100_048_384,
    "llama2_7b": 6_738_415_616,
    "llama3_1b": 1_235_814_400,
    "llama3_3b": 3_212_749_824,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "mistral_7b": 7_241_732_096,
    "qwen2_0p5b": 494_032_768,
    "qwen2_1p5b": 1_543_714_304,
    "qwen2_7b": 7_615_616_512,
    "qwen3_0p6b": 596_049_920,
    "qwen3_1p7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b_text": 3_880_263_168,
    "gemma3_12b_text": 11_766_034_176,
    "gemma3_27b_text": 27_009_346_304,
}


def test_every_decoder_has_the_published_number_of_parameters():
    assert {name: zoo.count_decoder(zoo.decoder(name)) for name in zoo.DECODERS} == PUBLISHED


def test_decoders_are_listed_with_their_parameters_and_cache():
    lines = {line.split()[0]: line.split() for line in zoo.decoder_table().splitlines()}
    assert lines["llama3_8b"][-3:] == ["8,030,261,248", "128", "KiB"]  # 32 layers x 8 heads x 128
    assert lines["gemma3_1b"][1:4] == ["gemma3_text", "1152", "26"]


@pytest.mark.parametrize("name", zoo.DECODERS)
def test_config_of_each_decoder_survives_hugging_face(tmp_path, name):
    config = zoo.decoder(name)
    (tmp_path / "config.json").write_text(json.dumps(described(config, "bfloat16")))
    assert decoder_config(tmp_path) == config


def test_an_unknown_decoder_names_those_there_are():
    with pytest.raises(ValueError, match="no decoder is named 'gpt2'; choose from smollm2_135m"):
        zoo.decoder("gpt2")


def test_an_unknown_size_names_those_there_are():
    with pytest.raises(ValueError, match="no size is named 'huge'; choose from tiny, small"):
        zoo.encoder("huge")
