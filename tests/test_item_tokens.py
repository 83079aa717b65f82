"""Items as tokens behind the words: their rows by hand, and what is said and learnt of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from fusions_made import BATCH, NAMED, PLAIN, changed, logits, make, with_decoder_of
from models_made import DECODER, FEATURES, random_batch, random_model

from user_llm.training import losses


def items_in_numpy(params, vectors):
    """The rows of `ItemTokens`, in float64."""

    def normed(x, weight):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * weight

    flat = {n: np.asarray(x, np.float64) for n, x in flatten_dict(params, sep=".").items()}
    up = normed(vectors, flat["projector.norm.weight"]) @ flat["projector.up_proj.kernel"]
    bent = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))  # gelu
    further = flat["gate"] * (bent @ flat["projector.down_proj.kernel"])
    return flat["scale"] * (
        normed(vectors, flat["norm.weight"]) @ flat["skip_proj.kernel"] + further
    )


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_items_are_tokens_behind_the_words(tied):
    decoder = DECODER.model_copy(update={"tie_word_embeddings": tied})
    model, words = random_model(make(NAMED, decoder)), DECODER.vocab_size
    table = np.asarray(model.streams["timeline"].encoder.embedding.items(), np.float64)
    rows = items_in_numpy(nnx.to_pure_dict(nnx.state(model.item_tokens)), table)
    found = np.asarray(logits(model, BATCH))
    hidden = jax.jit(lambda model, batch: model.hidden(batch))(model, BATCH)
    plain = jax.jit(lambda model, x: model.decoder.logits(x))(model, hidden)
    np.testing.assert_allclose(found[..., :words], plain, rtol=1e-5, atol=1e-6)
    by_hand = np.asarray(hidden, np.float64) @ rows.T
    np.testing.assert_allclose(found[..., words:], by_hand, rtol=1e-4, atol=1e-5)
    spoken = model.speaker().embed(words + jnp.arange(len(table))[None])
    np.testing.assert_allclose(spoken[0], rows, rtol=1e-4, atol=1e-5)
    assert len(rows) == FEATURES[0].size


def test_items_can_be_all_that_a_stream_lends():
    model = random_model(make(changed(NAMED, fusion="none")))
    plain = with_decoder_of(random_model(make(PLAIN), seed=1), model)
    found, words = logits(model, BATCH), DECODER.vocab_size
    np.testing.assert_allclose(found[..., :words], logits(plain, BATCH), rtol=1e-5, atol=1e-6)
    table = np.asarray(model.streams["timeline"].encoder.embedding.items(), np.float64)
    rows = items_in_numpy(nnx.to_pure_dict(nnx.state(model.item_tokens)), table)
    hidden = jax.jit(lambda model, batch: model.hidden(batch))(model, BATCH)
    np.testing.assert_allclose(found[..., words:], hidden @ rows.T, rtol=1e-4, atol=1e-5)
    other = BATCH | {"events": random_batch(1, (6, 2, 0))["events"]}
    np.testing.assert_array_equal(logits(model, other), found)


def test_the_loss_of_an_item_is_by_all_words_and_all_items():
    model, words = random_model(make(NAMED)), DECODER.vocab_size
    tokens = BATCH["tokens"].copy()
    tokens[:, -1] = words + np.array([2, 7, 10])
    batch = BATCH | {"tokens": tokens, "weights": (np.arange(5) == 4) * np.ones((3, 5), np.float32)}
    loss, _ = jax.jit(losses.answer)(model, batch, jax.random.key(0))
    before = np.asarray(logits(model, batch), np.float64)[:, -2]
    chosen = np.take_along_axis(before, tokens[:, -1:], 1)[:, 0]
    assert loss == pytest.approx((np.log(np.exp(before).sum(-1)) - chosen).mean(), rel=1e-5)
