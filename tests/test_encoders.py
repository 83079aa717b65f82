"""Every encoder against its paper's formulas in numpy, user by user, and what each may see."""

from functools import partial

import jax
import jax.numpy as jnp
import models_made
import numpy as np
import pytest
from flax import nnx
from models_made import ENCODER, FEATURES, random_events

from user_llm.config import EncoderConfig, FeatureConfig
from user_llm.models.encoders import ENCODERS, AutoregressiveEncoder
from user_llm.models.encoders.base import causal_mask, segment_positions
from user_llm.models.encoders.hstu import BUCKETS, time_buckets

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 3], [1] * 7, [0] * 7], np.int32)
run = jax.jit(lambda encoder, events, segments, key=None: encoder(events, segments, key=key))
embed = jax.jit(lambda encoder, events: encoder.embed(events))
ask = jax.jit(lambda encoder, events, segments: encoder.ask(events, segments))
extend = jax.jit(lambda encoder, events, positions, cache: encoder.extend(events, positions, cache))


KINDS = {kind: {"kind": kind} for kind in ENCODERS} | {
    "gated": {"gated": True},
    "hstu, time of the query": {"kind": "hstu", "query_time": True},
    "hstu, no times": {"kind": "hstu", "time_bias": False},
}


def random_encoder(**changes):
    config = ENCODER.model_copy(update=changes)
    make = partial(ENCODERS[config.kind], config, FEATURES)
    return models_made.random_model(make)


@pytest.fixture(scope="module", params=KINDS)
def encoder(request):
    return random_encoder(**KINDS[request.param])


@pytest.fixture(scope="module")
def events():
    return random_events(0, *SEGMENTS.shape)


def spans():
    """Row, first and last place of every segment."""
    for row, numbers in enumerate(SEGMENTS):
        for number in sorted({*numbers.tolist()} - {0}):
            (places,) = np.nonzero(numbers == number)
            yield row, slice(places[0], places[-1] + 1)


def test_states_are_those_of_each_segment_alone_in_numpy(encoder, events):
    p, states = models_made.parameters(encoder), run(encoder, events, SEGMENTS)
    assert states.dtype == jnp.float32
    for row, span in spans():
        alone = {name: values[row, span] for name, values in events.items()}
        np.testing.assert_allclose(
            states[row, span],
            models_made.encode(p, alone, config=encoder.config),
            rtol=1e-5,
            atol=1e-5,
        )


def test_packing_changes_no_state(encoder, events):
    states, found = run(encoder, events, SEGMENTS), list(spans())
    rows = {name: np.zeros((len(found), *x.shape[1:]), x.dtype) for name, x in events.items()}
    segments = np.zeros((len(found), SEGMENTS.shape[1]), np.int32)
    for i, (row, span) in enumerate(found):
        length = span.stop - span.start
        segments[i, :length] = 1
        for name, values in events.items():
            rows[name][i, :length] = values[row, span]
    alone = run(encoder, rows, segments)
    for i, (row, span) in enumerate(found):
        np.testing.assert_allclose(
            alone[i, : span.stop - span.start], states[row, span], rtol=1e-5, atol=1e-6
        )


def test_states_at_some_places_are_those_of_all(encoder, events):
    places = np.array([[4, 2], [0, 6], [6, 6], [1, 3]])
    found = jax.jit(type(encoder).at)(encoder, events, SEGMENTS, places)
    states = np.asarray(run(encoder, events, SEGMENTS))
    wanted = np.take_along_axis(states, places[..., None], axis=1)
    there = np.take_along_axis(SEGMENTS, places, axis=1) > 0
    np.testing.assert_allclose(found[there], wanted[there], rtol=1e-5, atol=1e-5)


def test_a_changed_event_changes_what_may_see_it_and_nothing_else(encoder, events):
    states, others = np.asarray(run(encoder, events, SEGMENTS)), random_events(1, *SEGMENTS.shape)
    for place in range(SEGMENTS.shape[1]):
        changed = {name: values.copy() for name, values in events.items()}
        for name in changed.keys() - {"query_time"}:  # which each event has of the one before it
            changed[name][:, place] = others[name][:, place]
        new = np.asarray(run(encoder, changed, SEGMENTS))
        same = SEGMENTS[:, place : place + 1] == SEGMENTS
        sees = same & (np.arange(SEGMENTS.shape[1]) >= place) if encoder.causal else same
        np.testing.assert_array_equal(new[~sees], states[~sees])
        assert (new != states).any(-1)[sees & (SEGMENTS > 0)].all()


def test_padding_changes_nothing(encoder, events):
    states, others = run(encoder, events, SEGMENTS), random_events(2, *SEGMENTS.shape)
    there = SEGMENTS > 0
    filled = {
        name: np.where(there.reshape(*there.shape, *(1,) * (x.ndim - 2)), x, others[name])
        for name, x in events.items()
    }
    np.testing.assert_array_equal(run(encoder, filled, SEGMENTS)[there], states[there])
    wide = {n: np.pad(x, ((0, 0), (0, 3), *((0, 0),) * (x.ndim - 2))) for n, x in events.items()}
    more = run(encoder, wide, np.pad(SEGMENTS, ((0, 0), (0, 3))))
    np.testing.assert_allclose(more[:, :-3][there], states[there], rtol=1e-5, atol=1e-6)
    assert np.isfinite(more).all()


def test_a_bag_is_a_set_of_its_filled_slots(encoder, events):
    turned = events | {"genres": events["genres"][..., ::-1]}
    padded = events | {"genres": np.pad(events["genres"], ((0, 0), (0, 0), (2, 0)))}
    for same in (turned, padded):
        np.testing.assert_allclose(embed(encoder, same), embed(encoder, events), atol=1e-6)


def test_items_are_scored_by_cosine_over_temperature():
    encoder = random_encoder()
    hidden = np.random.default_rng(3).normal(size=(2, 3, ENCODER.embed)).astype(np.float32)
    table = models_made.parameters(encoder)["embedding"]["tables"]["item"]
    lengths = np.linalg.norm(hidden, axis=-1)[..., None] * np.linalg.norm(table, axis=-1)
    cosine = hidden @ table.T / lengths
    np.testing.assert_allclose(
        encoder.item_logits(jnp.asarray(hidden)), cosine / ENCODER.temperature, rtol=1e-4, atol=1e-4
    )
    nothing = encoder.item_logits(jnp.zeros((1, 1, ENCODER.embed)))
    np.testing.assert_array_equal(nothing, 0)


def test_dropout_follows_its_key_and_without_one_there_is_none(encoder, events):
    keys = jax.random.split(jax.random.key(0))
    first, again, other = (run(encoder, events, SEGMENTS, k) for k in (keys[0], keys[0], keys[1]))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, run(encoder, events, SEGMENTS))


def test_masks_and_positions_are_those_of_brute_force():
    mask, positions = causal_mask(jnp.asarray(SEGMENTS)), segment_positions(jnp.asarray(SEGMENTS))
    for row, numbers in enumerate(SEGMENTS.tolist()):
        for query, number in enumerate(numbers):
            before = [key for key in range(query + 1) if numbers[key] == number]
            assert np.flatnonzero(mask[row, query]).tolist() == before
            assert positions[row, query] == query - before[0]


def test_or_by_dot_product():
    encoder = random_encoder(similarity="dot")
    table = models_made.parameters(encoder)["embedding"]["tables"]["item"]
    hidden = np.random.default_rng(3).normal(size=(5, ENCODER.embed)).astype(np.float32)
    wanted = hidden @ table.T / ENCODER.temperature
    np.testing.assert_allclose(
        encoder.item_logits(jnp.asarray(hidden)), wanted, rtol=1e-4, atol=1e-4
    )


def test_bert4rec_scores_by_a_projection_and_a_bias():
    encoder = random_encoder(kind="bert4rec")
    p, hidden = models_made.parameters(encoder), np.random.default_rng(3).normal(size=(5, 8))
    projected = models_made.gelu(models_made.linear(p["out_proj"], hidden))
    wanted = projected @ p["embedding"]["tables"]["item"].T + p["item_bias"]
    found = encoder.item_logits(jnp.asarray(hidden, jnp.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_dual_encoder_scores_by_the_cosine_of_its_towers():
    encoder = random_encoder(kind="dual")
    p, hidden = models_made.parameters(encoder), np.random.default_rng(3).normal(size=(5, 8))
    users = models_made.linear(p["user_proj"], hidden)
    items = p["embedding"]["tables"]["item"] * np.sqrt(ENCODER.embed)
    items = items + models_made.swiglu(p["item_tower"], items)
    users, items = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (users, items))
    found = encoder.item_logits(jnp.asarray(hidden, jnp.float32))
    np.testing.assert_allclose(found, users @ items.T / ENCODER.temperature, rtol=1e-4, atol=1e-4)


def test_what_comes_next_is_told_by_the_last_state_or_by_a_mask_behind_it(encoder, events):
    lengths = [3, 5, ENCODER.window - 3, 1]

    segments = (np.arange(7) < np.array(lengths)[:, None]).astype(np.int32)
    found, p = ask(encoder, events, segments), models_made.parameters(encoder)
    for row, length in enumerate(lengths):
        alone = {name: values[row, :length] for name, values in events.items()}
        if encoder.causal:
            wanted = models_made.encode(p, alone, config=encoder.config)[-1]
        else:
            x = models_made.embed(p["embedding"], alone, FEATURES, encoder.config)
            x = np.concatenate([x, p["mask"][None]])
            wanted = models_made.bert4rec(p, x, alone, encoder.config)[-1]
        np.testing.assert_allclose(found[row], wanted, rtol=1e-5, atol=1e-5)


def test_masked_events_show_nothing_but_their_place():
    encoder = random_encoder(kind="bert4rec")
    events, others = random_events(0, 2, 6), random_events(1, 2, 6)
    masked = np.array([[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1]], bool)

    @jax.jit
    def read(events):
        return encoder(events, jnp.ones((2, 6), jnp.int32), masked=jnp.asarray(masked))

    changed = {
        name: np.where(masked.reshape(*masked.shape, *(1,) * (x.ndim - 2)), others[name], x)
        for name, x in events.items()
    }
    np.testing.assert_array_equal(read(changed), read(events))
    x = models_made.embed(
        (p := models_made.parameters(encoder))["embedding"],
        {name: values[0] for name, values in events.items()},
        FEATURES,
        encoder.config,
    )
    x[masked[0]] = p["mask"]
    wanted = models_made.bert4rec(p, x, events, encoder.config)
    np.testing.assert_allclose(read(events)[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [[7], [1] * 7, [3, 2, 2]], ids=["at once", "one by one", "some"])
def test_events_that_come_later_give_the_states_of_all_at_once(encoder, events, steps):
    if not encoder.causal:
        with pytest.raises(NotImplementedError, match="a bert4rec encoder reads both ways"):
            encoder.extend(
                jax.tree.map(jnp.asarray, events), jnp.zeros((4, 7), jnp.int32), encoder.empty(4)
            )
        return
    whole = run(encoder, events, np.ones((4, 7), np.int32))
    cache, start = jax.jit(lambda encoder: encoder.empty(4))(encoder), 0
    for count in steps:
        # With the time of the query, the last event comes again: now it is known what followed it.
        first = max(0, start - 1) if encoder.config.query_time else start
        new = {name: values[:, first : start + count] for name, values in events.items()}
        positions = jnp.broadcast_to(jnp.arange(first, start + count), (4, start + count - first))
        states, cache = extend(encoder, new, positions, cache)
        start += count
        np.testing.assert_allclose(
            states, whole[:, first:start], rtol=1e-5, atol=1e-5, err_msg=f"{first} to {start}"
        )


def test_time_buckets_are_those_of_the_published_code():
    seconds = np.array([-5, 0, 1, 2, 60, 3600, 86_400, 31_536_000, 2**31 - 1], np.int32)
    wanted = [int(np.log(max(1, abs(int(s)))) / 0.301) for s in seconds]
    assert time_buckets(jnp.asarray(seconds)).tolist() == wanted
    assert max(wanted) < BUCKETS


CONTENT = {"content": ("genres", "price"), "id_dropout": 0.5}
ITEMS = {
    "genres": np.random.default_rng(1).integers(0, 6, (11, 3)).astype(np.int32),
    "price": np.random.default_rng(2).normal(size=(11, 2)).astype(np.float32),
    "trained": np.arange(11) % 3 > 0,
}


def described(**changes):
    """An encoder whose items have content, the content as given."""
    config = ENCODER.model_copy(update=CONTENT | changes)
    make = partial(ENCODERS[config.kind], config, FEATURES, ITEMS)
    encoder = models_made.random_model(make)
    for name in config.content:
        encoder.embedding.content[name][...] = jnp.asarray(ITEMS[name])
    encoder.embedding.trained[...] = jnp.asarray(ITEMS["trained"])
    return encoder


def test_an_item_is_the_sum_of_its_id_and_its_content_and_a_new_one_content_alone():
    encoder = described()
    p, scale = models_made.parameters(encoder)["embedding"], ENCODER.embed**0.5
    genres = p["tables"]["genres"] * scale
    told = [
        np.mean([genres[i] for i in bag if i] or [np.zeros(4)], axis=0) for bag in ITEMS["genres"]
    ]
    told = np.concatenate([told, models_made.linear(p["vectors"]["price"], ITEMS["price"])], 1)
    wanted = models_made.linear(p["content_proj"], told) / scale
    wanted[ITEMS["trained"]] += p["tables"]["item"][ITEMS["trained"]]
    np.testing.assert_allclose(encoder.embedding.items(), wanted, rtol=1e-5, atol=1e-5)


def test_hidden_ids_are_the_same_for_states_and_scores_of_one_key():
    encoder, key = described(), jax.random.key(0)
    shown, hidden = encoder.embedding.items(), encoder.embedding.items(key)
    changed = (shown != hidden).any(1)
    assert 0 < changed.sum() < ITEMS["trained"].sum()
    assert not changed[~ITEMS["trained"]].any()
    np.testing.assert_array_equal(encoder.embedding.items(key), hidden)
    found = np.asarray(encoder.item_vectors(key)) * ENCODER.temperature
    wanted = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_new_items_are_not_held_against_the_right_ones(encoder):
    assert encoder.candidates is None
    np.testing.assert_array_equal(described().candidates, ITEMS["trained"])


def test_content_that_is_no_item_feature_is_refused():
    config = ENCODER.model_copy(update={"content": ("genres", "plot")})
    with pytest.raises(ValueError, match="no item feature is named .*plot"):
        ENCODERS["autoregressive"](config, FEATURES, ITEMS, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="id_dropout hides ids behind encoder.content"):
        EncoderConfig(id_dropout=0.5)


def test_every_predicted_feature_but_the_item_has_a_head(encoder):
    assert set(encoder.heads) == {"rating"}
    assert encoder.heads["rating"].kernel.shape == (ENCODER.embed, 7)
    assert encoder.item == "item"


def test_features_that_cannot_be_predicted_are_refused():
    def make(*features):
        return nnx.eval_shape(lambda: AutoregressiveEncoder(ENCODER, features, rngs=nnx.Rngs(0)))

    item = FEATURES[0]
    bag = FeatureConfig(name="genres", kind="bag", size=6, predicted=True)
    vector = FeatureConfig(name="price", kind="vector", size=2, predicted=True)
    with pytest.raises(
        ValueError, match="only categorical features can be predicted, not genres, price"
    ):
        make(item, bag, vector)
    for features in ((), FEATURES[2:], (item.model_copy(update={"predicted": False}),)):
        with pytest.raises(ValueError, match="the first feature must be the item, and predicted"):
            make(*features)
    with pytest.raises(ValueError, match="embed=6 must be a multiple of 2 \\* heads=2"):
        EncoderConfig(embed=6, heads=2)
