"""Held-out text, and how well a decoder foretells it, against logits token by token."""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from runs_made import held_out_run

from user_llm.config import DataConfig, LanguageModelConfig, SystemConfig
from user_llm.data.tasks import corpus
from user_llm.training import language
from user_llm.training.language import foreteller

DOCUMENTS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=700), min_size=1, max_size=4)


@pytest.fixture
def run(tmp_path, mesh):
    """A run whose language model reads two data sets and leaves a third of their texts out."""
    run = held_out_run(tmp_path / "run", mesh(1))
    run.data_dir = tmp_path / "data"
    model = run.experiment.language_model.model_copy(
        update={"held_out": 0.3, "corpora": (DataConfig(users=20),)}
    )
    run.experiment = run.experiment.model_copy(update={"language_model": model})
    return run


@given(DOCUMENTS)
def test_all_tokens_but_the_first_are_foretold_once_and_in_order(documents):
    tokens, weights = language.rows(documents)
    assert tokens.shape == weights.shape and tokens.shape[1] == language.ROW
    ids = [token for document in documents for token in document]
    assert tokens[:, 1:][weights[:, 1:] == 1].tolist() == ids[1:]
    assert tokens[0, 0] == ids[0]
    assert (tokens[1:, 0] == tokens[:-1, -1]).all()


def test_a_texts_checksum_decides_whether_it_is_held_out(run):
    training, held_out = run.texts
    assert training and held_out and not set(training) & set(held_out)
    assert all(zlib.crc32(text.encode()) < 0.3 * 2**32 for text in held_out)
    own = corpus(run.dataset, run.training_events)
    assert set(own) < {*training, *held_out}  # the other data set speaks too
    reviews = {run.dataset.review(e) for e in range(len(run.dataset.item))} - {""}
    unseen = reviews - {run.dataset.review(e) for e in run.training_events.tolist()}
    assert unseen and not unseen & {*training, *held_out}
    run.experiment = run.experiment.model_copy(
        update={"language_model": run.experiment.language_model.model_copy(update={"held_out": 0})}
    )
    del run.__dict__["texts"]
    assert not run.texts.held_out and not run.held_out_texts


def test_perplexity_and_bits_are_those_of_the_logits(run):
    make_model = run.make_model(SystemConfig(streams=()))
    model = make_model(rngs=nnx.Rngs(1))
    texts = run.held_out_texts
    foretell = foreteller(make_model, texts, run.tokenizer, run.mesh)
    found = foretell(nnx.to_pure_dict(nnx.state(model.decoder)))
    documents = [[*ids, run.tokenizer.eos] for ids in run.tokenizer.prompts(texts)]
    nats = []
    for tokens, weights in zip(*language.rows(documents), strict=True):
        logs = jax.nn.log_softmax(model.decoder(jnp.asarray(tokens[None]))[0].astype(jnp.float32))
        told = np.asarray(logs)[np.arange(language.ROW - 1), tokens[1:]]
        nats += (-told[weights[1:] == 1]).tolist()
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)
    size = sum(len(text.encode()) for text in texts)
    assert found["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / size, rel=1e-4)


def test_a_language_model_has_one_origin():
    with pytest.raises(ValueError, match="name one of them"):
        LanguageModelConfig(weights="models/stories3M", from_run="runs/language_model")
