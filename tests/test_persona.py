"""Persona-Plug's stream, beside the paper's formulas in plain numpy."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import models_made
import numpy as np
import pytest
from flax import nnx

from user_llm.config import TEXT_VECTOR, FeatureConfig, PersonaConfig, TextEncoderConfig
from user_llm.models.streams import PersonaStream

WIDTH, DECODER = 16, 24
TEXT = TextEncoderConfig(
    vocab_size=50,
    hidden_size=WIDTH,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=12,
    max_tokens=12,
    pooling="cls",
)
ITEM = FeatureConfig(name="item", kind="categorical", size=7)
LENGTH = jnp.float32(3.5)


def make(config, seed=0):
    return models_made.random_model(partial(PersonaStream, config, TEXT, DECODER, ITEM), seed)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(4, 5, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    there = np.arange(5) < np.array([[5], [2], [2], [0]])
    there[2, 0] = False  # an event without a text
    present = {
        "tokens": rng.integers(1, 50, (4, 9)).astype(np.int32),
        "mask": np.arange(9) < np.array([[9], [3], [5], [7]]),
    }
    column = np.concatenate([vectors, there[..., None]], 2, dtype=np.float32)
    told = {
        "events": {TEXT_VECTOR: column, "item": rng.integers(0, 7, (4, 5)).astype(np.int32)},
        "segments": (np.arange(5) < np.array([[5], [2], [2], [0]])).astype(np.int32),
        "present": present,
    }
    return jax.tree.map(jnp.asarray, told)


@jax.jit
def run(stream, batch):
    return stream(batch | {"embedding_length": LENGTH}), stream.weights(batch)


def plain(stream, batch):
    """The tokens, user by user and text by text, as the paper and its authors' code have them."""
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(stream)))
    column = np.asarray(batch["events"][TEXT_VECTOR])
    vectors, there = column[..., :-1], (column[..., -1] > 0) & (np.asarray(batch["segments"]) > 0)
    config, gelu = stream.config, np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))
    if stream.text_encoder is not None:
        present = np.asarray(stream.text_encoder(**batch["present"]))
    temperatures = config.temperatures
    if config.learned_temperature and stream.text_encoder is not None:
        temperatures = np.exp(params["log_temperature"])

    def proj(name, x):
        own = params[name]
        x = gelu(x @ own["up_proj"]["kernel"] + own["up_proj"]["bias"])
        return (x @ own["down_proj"]["kernel"] + own["down_proj"]["bias"]).reshape(-1, DECODER)

    rows = []
    for user in range(4):
        past = vectors[user][there[user]]
        labels = np.asarray(batch["events"]["item"])[user][there[user]]
        sums = []
        for temperature in temperatures if stream.text_encoder is not None else [np.inf]:
            tokens = np.zeros((config.tokens, DECODER))
            if not len(past):
                tokens += params["projector"]["down_proj"]["bias"].reshape(-1, DECODER)
            else:
                like = past @ present[user] if np.isfinite(temperature) else np.zeros(len(past))
                scores = np.exp(like / temperature)
                for score, vector, label in zip(scores, past, labels, strict=True):
                    known = params["labels"][label] if config.labels else 0
                    tokens += score / scores.sum() * proj("projector", vector + known)
            sums.append(tokens)
        tokens = np.concatenate(sums)
        if config.instruction:
            instruction = proj("instruction_projector", params["instruction"])
            instruction = instruction if config.matched else instruction / 7.0
            tokens = np.concatenate([instruction, tokens])
        if config.matched:
            tokens = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-9)
            tokens = tokens * params["gain"]
        rows.append(tokens * float(LENGTH))
    return np.stack(rows)


@pytest.mark.parametrize(
    "config",
    [
        PersonaConfig.paper(),
        PersonaConfig(),
        PersonaConfig(tokens=3, instruction=False),
        PersonaConfig(weights="mean"),
        PersonaConfig(labels=True),
        PersonaConfig(temperatures=(0.1, 1.0), tokens=2),
    ],
    ids=["paper", "ours", "several tokens", "mean", "labels", "several temperatures"],
)
def test_the_stream_is_the_papers_formulas(batch, config):
    stream = make(config)
    memory, weights = run(stream, batch)
    np.testing.assert_allclose(memory.tokens, plain(stream, batch), atol=1e-5, rtol=1e-5)
    assert memory.mask.all()  # a prompt has no holes
    assert memory.tokens.shape[1] == config.width
    wanted = np.repeat([[1], [1], [1], [0]], weights.shape[1], axis=1)
    np.testing.assert_allclose(weights.sum(2), wanted, atol=1e-6)


def test_a_past_text_that_is_like_the_present_one_counts_more(batch):
    stream = make(PersonaConfig(temperatures=(0.05,), learned_temperature=False))
    present = stream.text_encoder(**batch["present"])
    like = batch["events"][TEXT_VECTOR].at[:, 1, :-1].set(present)
    told = batch | {"events": batch["events"] | {TEXT_VECTOR: like}}
    weights = stream.weights(told)
    assert (np.asarray(weights[:2, 0, 1]) > 0.9).all()
    blunt = make(PersonaConfig.paper()).weights(told)
    assert (np.asarray(blunt[0]) < 0.5).all()  # close to a mean, which is what the paper has


def test_what_is_padding_changes_nothing(batch):
    stream = make(PersonaConfig(labels=True))
    there = (batch["segments"] > 0)[..., None]
    other = {
        TEXT_VECTOR: jnp.where(there, batch["events"][TEXT_VECTOR], 9.0),
        "item": jnp.where(there[..., 0], batch["events"]["item"], 6),
    }
    for mine, theirs in zip(
        run(stream, batch | {"events": other}), run(stream, batch), strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, mine, theirs)


@pytest.mark.parametrize(
    "config", [PersonaConfig.paper(), PersonaConfig(labels=True, temperatures=(0.1, 1.0))]
)
def test_gradients_reach_all_parameters(batch, config):
    assert not models_made.idle(
        make(config), lambda stream: jnp.sin(run(stream, batch)[0].tokens).sum()
    )
