"""The vector of every event, beside the encoder's own states of what came before it."""

from functools import partial

import jax
import models_made
import numpy as np
import pytest
import timelines_made
from flax import nnx

from user_llm.data.dataset import clock_columns
from user_llm.inference import event_vectors
from user_llm.models.encoders import ENCODERS

LENGTHS = (9, 1, 4, 2, 13, 3)
rng = np.random.default_rng(1)
TIMELINES = [rng.integers(12, size=n).tolist() for n in LENGTHS]
TIMES = [np.sort(rng.integers(10**6, size=n)) for n in LENGTHS]


def made(cut=0, **changes):
    """A data set without everyone's last `cut` events, an encoder's constructor, its parameters."""
    kept = [timeline[: max(1, len(timeline) - cut)] for timeline in TIMELINES]
    times = np.concatenate([t[: len(k)] for t, k in zip(TIMES, kept, strict=True)])
    data = timelines_made.dataset(kept, items=14)
    data.times[:] = times
    ratings = np.concatenate([np.arange(len(k)) % 5 + 2 for k in kept])
    data.features["rating"] = ratings.astype(data.features["rating"].dtype)
    if changes.get("kind") == "hstu":
        data.features.update(clock_columns(data.times, data.offsets, origin=0))
    config = models_made.ENCODER.model_copy(update={"window": 6} | changes)
    make = partial(ENCODERS[config.kind], config, data.inputs, None)
    return data, make, nnx.to_pure_dict(nnx.state(models_made.random_model(make)))


@pytest.mark.parametrize("kind", ["autoregressive", "hstu"])
def test_an_event_is_read_after_earlier_ones_alone(kind, mesh, tmp_path):
    data, make, params = made(kind=kind)
    found = event_vectors.of(data, make, params, mesh(2), tmp_path).vectors
    encoder = nnx.merge(nnx.graphdef(models_made.random_model(make)), params)
    read = jax.jit(lambda encoder, *shown: (encoder(*shown), encoder.embed(shown[0])))
    half = encoder.config.window // 2
    for first, stop in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        for event in range(first, stop):
            start = max(first, first + (event - first) // half * half - half)
            events = np.full((1, 2 * half), -1)
            events[0, : event + 1 - start] = np.arange(start, event + 1)
            shown = data.gather(events)
            if "event_time" in shown:
                shown["query_time"] = shown["event_time"]
            states, embedded = read(encoder, shown, (events >= 0).astype(np.int32))
            wanted = np.concatenate([states[0, event - start], embedded[0, event - start]])
            np.testing.assert_allclose(found[event], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["autoregressive", "hstu"])
def test_later_events_change_nothing(kind, mesh, tmp_path):
    whole, make, params = made(kind=kind)
    early, _, _ = made(cut=3, kind=kind)
    after = event_vectors.of(whole, make, params, mesh(), tmp_path).vectors
    before = event_vectors.of(early, make, params, mesh(), tmp_path).vectors
    for first, old_first, old_stop in zip(
        whole.offsets[:-1], early.offsets[:-1], early.offsets[1:], strict=True
    ):
        same = after[first : first + old_stop - old_first]
        np.testing.assert_allclose(same, before[old_first:old_stop], atol=1e-5, rtol=1e-5)


def test_what_is_kept_is_not_made_again(mesh, tmp_path, monkeypatch):
    data, make, params = made()
    found = np.array(event_vectors.of(data, make, params, mesh(), tmp_path).vectors)
    monkeypatch.setattr(event_vectors, "pack", None)
    again = event_vectors.of(data, make, params, mesh(), tmp_path).vectors
    np.testing.assert_array_equal(again, found)
    other = jax.tree.map(lambda x: x + 1, params)
    with pytest.raises(TypeError):  # another encoder's are made, which needs what was taken away
        event_vectors.of(data, make, other, mesh(), tmp_path)
    _, wider, same = made(window=12)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    with pytest.raises(TypeError):  # the same parameters read further back
        event_vectors.of(data, wider, params, mesh(), tmp_path)


def test_an_encoder_that_reads_later_events_is_refused(mesh, tmp_path):
    data, make, params = made(kind="bert4rec", similarity="dot")
    with pytest.raises(ValueError, match=r"encoder\.kind=bert4rec reads later events too"):
        event_vectors.of(data, make, params, mesh(), tmp_path)
