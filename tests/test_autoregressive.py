"""The encoder against its statement in numpy; it sees the past of its segment and nothing else."""

import jax
import jax.numpy as jnp
import models_made
import numpy as np
import pytest
from flax import nnx
from models_made import ENCODER, FEATURES, random_events

from user_llm.config import EncoderConfig, FeatureConfig
from user_llm.models.encoders.autoregressive import (
    AutoregressiveEncoder,
    causal_mask,
    segment_positions,
)

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 3], [1] * 7, [0] * 7], np.int32)
run = jax.jit(lambda encoder, events, segments, key=None: encoder(events, segments, key=key))
embed = jax.jit(lambda encoder, events: encoder.embed(events))


@pytest.fixture(scope="module")
def encoder():
    return models_made.random_model(
        lambda rngs: AutoregressiveEncoder(ENCODER, FEATURES, rngs=rngs)
    )


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
            states[row, span], models_made.encode(p, alone), rtol=1e-5, atol=1e-5
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


def test_a_changed_event_changes_what_follows_in_its_segment_and_nothing_else(encoder, events):
    states, others = np.asarray(run(encoder, events, SEGMENTS)), random_events(1, *SEGMENTS.shape)
    for place in range(SEGMENTS.shape[1]):
        changed = {name: values.copy() for name, values in events.items()}
        for name, values in changed.items():
            values[:, place] = others[name][:, place]
        new = np.asarray(run(encoder, changed, SEGMENTS))
        same = SEGMENTS[:, place : place + 1] == SEGMENTS
        follows = same & (np.arange(SEGMENTS.shape[1]) >= place)
        np.testing.assert_array_equal(new[~follows], states[~follows])
        assert (new != states).any(-1)[follows].all()


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


def test_items_are_scored_by_cosine_over_temperature(encoder):
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
