"""The difference stream, beside DEP's formulas in plain numpy."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import models_made
import numpy as np
import pytest
from flax import nnx

from user_llm.config import DIFFERENCE, TEXT_VECTOR, DifferenceConfig, PerceiverConfig
from user_llm.models.streams import DifferenceStream

INPUTS, WIDTH, EVENTS = 12, 10, 4
DEP = DifferenceConfig.dep(events=EVENTS, code=7)
LATENT = DifferenceConfig(events=EVENTS, perceiver=PerceiverConfig(latents=3, layers=1, heads=2))
gelu = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))


def make(config, seed=0):
    return models_made.random_model(partial(DifferenceStream, config, INPUTS, WIDTH), seed)


@pytest.fixture(scope="module")
def batch():
    """Users of six, five, two and no events, of which one has no peer and one no text."""
    rng = np.random.default_rng(2)
    there = np.arange(6) < np.array([[6], [5], [2], [0]])
    columns = {}
    for name in (TEXT_VECTOR, DIFFERENCE):
        column = rng.normal(size=(4, 6, INPUTS + 1)).astype(np.float32)
        column[..., -1] = 1
        columns[name] = column
    columns[DIFFERENCE][1, 4, -1] = 0
    columns[TEXT_VECTOR][2, 0, -1] = 0
    told = {"events": columns, "segments": there.astype(np.int32)}
    return jax.tree.map(jnp.asarray, told)


@jax.jit
def run(stream, batch):
    return stream(batch), stream.own_loss(batch)


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


def rows_of(batch, user):
    """What the stream should read of a user: per event its age, and its vectors or None."""
    count = int((np.asarray(batch["segments"])[user] > 0).sum())
    for event in range(max(0, count - EVENTS), count):
        pair = [np.asarray(batch["events"][n])[user, event] for n in (TEXT_VECTOR, DIFFERENCE)]
        yield [row[:-1] if row[-1] else None for row in pair]


def plain_dep(stream, batch):
    """Tokens and loss, event by event, as the paper and its authors' code have them."""
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(stream)))["coder"]
    memories, losses = [], []
    for user in range(4):
        tokens, vectors = [], []
        for pair in rows_of(batch, user):
            for kind, vector in enumerate(pair):
                own = params["projectors"][kind]
                if vector is None:
                    tokens.append(params["incomparable"][kind])
                    continue
                vectors.append(vector)
                code = gelu(linear(params["encode_proj"], vector))
                tokens.append(linear(own["down_proj"], gelu(linear(own["up_proj"], code))))
        memories.append(np.array(tokens).reshape(-1, WIDTH))
        if not vectors:
            continue
        codes = gelu(linear(params["encode_proj"], np.stack(vectors)))
        wrong = np.abs(gelu(linear(params["decode_proj"], codes)) - np.stack(vectors))
        rebuilt = np.where(wrong < 1, 0.5 * wrong**2, wrong - 0.5).mean()
        active, rho = np.clip(codes.mean(0), 1e-6, 1 - 1e-6), 0.05
        sparse = rho * np.log(rho / active) + (1 - rho) * np.log((1 - rho) / (1 - active))
        losses.append(100 * (rebuilt + 1e-3 * sparse.mean()))
    return memories, np.mean(losses)


def test_deps_setting_is_its_papers_formulas(batch):
    stream = make(DEP)
    memory, loss = run(stream, batch)
    tokens, wanted = plain_dep(stream, batch)
    for user, own in enumerate(tokens):
        assert memory.mask[user].sum() == len(own)
        found = np.asarray(memory.tokens[user])[np.asarray(memory.mask[user])]
        np.testing.assert_allclose(found, own, atol=1e-5, rtol=1e-5)
    total, users = loss
    np.testing.assert_allclose(total / users, wanted, rtol=1e-5)
    assert memory.tokens.shape == (4, DEP.width, WIDTH)


def test_what_cannot_be_compared_keeps_its_place(batch):
    """A user's tokens are a pair an event, the newest last, whether there was a peer or not."""
    stream = make(DEP)
    memory, _ = run(stream, batch)
    mark = np.asarray(stream.coder.incomparable[...])
    np.testing.assert_array_equal(memory.tokens[1, -1], mark[1])  # the newest has no peer
    np.testing.assert_array_equal(memory.tokens[2, -4], mark[0])  # the older of two has no text
    assert (np.asarray(memory.tokens[1, -2]) != mark[0]).any()


@pytest.mark.parametrize("config", [DEP, LATENT], ids=["autoencoder", "perceiver"])
def test_only_the_newest_events_count_and_no_padding(batch, config):
    stream = make(config)

    def without(user, event, by=3.0):
        events = {n: x.at[user, event, :-1].add(by) for n, x in batch["events"].items()}
        return np.asarray(run(stream, batch | {"events": events})[0].tokens)

    before = np.asarray(run(stream, batch)[0].tokens)
    np.testing.assert_array_equal(without(0, 1), before)  # the fifth newest of six
    assert (without(0, 2)[0] != before[0]).any()
    padded = np.asarray(run(stream, batch)[0].mask)
    np.testing.assert_array_equal(without(2, 3)[padded], before[padded])


def test_the_perceivers_memory_has_its_latents(batch):
    memory, loss = run(make(LATENT), batch)
    assert memory.tokens.shape == (4, 3, INPUTS) and memory.mask.all() and loss is None
    no_peer = {DIFFERENCE: batch["events"][DIFFERENCE].at[..., -1].set(0)}
    silent, _ = run(make(LATENT), batch | {"events": no_peer})
    other = {DIFFERENCE: no_peer[DIFFERENCE].at[..., :-1].multiply(2.0)}
    again, _ = run(make(LATENT), batch | {"events": other})
    np.testing.assert_array_equal(silent.tokens, again.tokens)  # a vector of no peers is not read
    assert (np.asarray(silent.tokens[0]) != np.asarray(memory.tokens[0])).any()


@pytest.mark.parametrize("config", [DEP, LATENT], ids=["autoencoder", "perceiver"])
def test_gradients_reach_all_parameters(batch, config):
    def total(stream):
        own = stream.own_loss(batch)
        return jnp.sin(stream(batch).tokens).sum() + (0 if own is None else own[0])

    assert not models_made.idle(make(config), total)


def test_contradictory_settings_are_refused():
    with pytest.raises(ValueError, match="difference.own reads texts' own vectors"):
        DifferenceConfig(own=True)
    with pytest.raises(ValueError, match="latents must be 1 at least"):
        DifferenceConfig(perceiver=PerceiverConfig(latents=0))
