"""What int8 loses, against the same figures in numpy; and in generation."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from random_decoders import random_decoder

from user_llm.config import DecoderConfig
from user_llm.data.text import Tokenizer
from user_llm.evaluation import int8
from user_llm.huggingface import import_decoder, save_decoder
from user_llm.inference.generate import Generator

TEXT = "a user watched a film and rated it, and then another film, and wrote of it. " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("decoder")
    vocab = len(Tokenizer.train([TEXT], 300, place))
    config = DecoderConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )
    decoder = random_decoder(config)
    save_decoder(place, config, nnx.to_pure_dict(nnx.state(decoder)))
    (place / "text.txt").write_text(TEXT)
    return place


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def rounded_to_int8(decoder):
    """The decoder with every projection's weights as int8 would have them, by numpy."""
    graphdef, state = nnx.split(decoder)

    def nearest(path, x):
        if "kernel" not in jax.tree_util.keystr(path):
            return x
        scale = np.abs(np.asarray(x)).max(-2, keepdims=True) / 127  # [..., in, out]
        return np.rint(np.asarray(x) / scale) * scale

    return nnx.merge(graphdef, jax.tree.map_with_path(nearest, nnx.to_pure_dict(state)))


def test_figures_are_those_of_rounded_weights(folder, tmp_path):
    result = int8.loss(folder, folder / "text.txt", tmp_path, window=32, pieces=3)
    assert json.loads((tmp_path / "int8.json").read_text()) == result
    ids = Tokenizer.load(folder).prompts([TEXT])[0][: 3 * 32]
    tokens = np.array(ids, np.int32).reshape(3, 32)
    decoder = import_decoder(folder)
    whole, rounded = (
        log_softmax(jax.jit(lambda d, t: d(t))(d, tokens))[:, :-1]
        for d in (decoder, rounded_to_int8(decoder))
    )
    for name, logs in (("float", whole), ("int8", rounded)):
        told = np.take_along_axis(logs, tokens[:, 1:, None], axis=-1)
        np.testing.assert_allclose(result["perplexity"][name], np.exp(-told.mean()), rtol=1e-4)
    wanted = (np.exp(whole) * (whole - rounded)).sum(-1).mean()
    np.testing.assert_allclose(result["divergence"], wanted, rtol=2e-2)
    same = (whole.argmax(-1) == rounded.argmax(-1)).mean()
    assert result["same_choice"] == pytest.approx(same, abs=0.04) and result["tokens"] == 93
    assert result["bytes"]["int8"] < 0.6 * result["bytes"]["float"]
    assert "perplexity" in int8.table(result)


def test_text_shorter_than_a_piece_is_refused(folder, tmp_path):
    (tmp_path / "short.txt").write_text("a film")
    with pytest.raises(ValueError, match="give a text of at least 256"):
        int8.loss(folder, tmp_path / "short.txt", tmp_path)


def test_generation_in_int8_is_that_of_rounded_weights(folder):
    decoder, prompts = import_decoder(folder), [[5, 6, 7], [9], list(range(20, 33))]
    found, _ = Generator(decoder, int8=True).start(prompts)
    wanted, _ = Generator(rounded_to_int8(decoder)).start(prompts)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
