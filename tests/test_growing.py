"""Memories that grow: the same as those encoded from scratch, past the edge of the window too."""

from functools import partial

import jax
import jax.numpy as jnp
import models_made
import numpy as np
import pytest
from flax import nnx
from growing_made import CASES, SYSTEM, WINDOW, drawn, follower

from user_llm.config import SystemConfig
from user_llm.data import unseen
from user_llm.models.user_llm import UserLLM
from user_llm.serving.growing import Growing, first_read

SEQUENCES = 125


@pytest.fixture(scope="module", params=CASES)
def subject(request):
    return follower(request.param)


def from_scratch(data, model, events: list[dict]):
    """The memory by the model's own call, of a timeline encoded whole."""
    whole = unseen.encode(data, [events])
    read = np.arange(first_read(len(events), WINDOW), len(events))[None]
    batch = {"events": whole.gather(read), "segments": np.ones_like(read, np.int32)}
    return jitted(*nnx.split(model), jax.tree.map(jnp.asarray, batch))


@partial(jax.jit, static_argnums=0)
def jitted(graphdef, state, batch):
    model = nnx.merge(graphdef, state)
    return model.fuse(model.memories(batch))


def same(found, wanted):
    tokens, mask = np.asarray(found.tokens[0]), np.asarray(found.mask[0])
    np.testing.assert_allclose(tokens[mask], wanted.tokens[0], atol=1e-5, rtol=1e-5)


def test_the_window_slides_by_half_of_itself():
    assert [first_read(n, 6) for n in range(14)] == [0] * 7 + [3, 3, 3, 6, 6, 6, 9]
    assert [first_read(n, 1) for n in range(4)] == [0, 0, 1, 2]
    for window in range(1, 12):
        read = [n - first_read(n, window) for n in range(60)]
        assert read[: window + 1] == [*range(window + 1)]
        assert all((window + 1) // 2 <= n <= window for n in read[window:])


@pytest.mark.slow
def test_growing_is_encoding_from_scratch(subject):
    data, model, growing = subject
    rng = np.random.default_rng(0)
    for _ in range(SEQUENCES):
        events = drawn(rng, int(rng.integers(1, 5 * WINDOW)))
        known = int(rng.integers(0, len(events)))
        grown = growing.anew(events[:known])
        while known < len(events):
            more = int(min(rng.integers(1, 4), len(events) - known))
            known += more
            # The oldest are no longer known where only so many are kept of each user.
            kept = events[max(0, known - WINDOW - 1 - int(rng.integers(3))) : known]
            grown = growing.extended(grown, kept, known, more)
        same(growing.memory(grown), from_scratch(data, model, events))


def test_nobody_in_particular_has_a_memory(subject):
    _, model, growing = subject
    memory = growing.memory(growing.empty())
    assert np.isfinite(memory.tokens).all()
    assert not memory.mask.any() or model.system.perceiver.latents


def test_events_that_are_lost_are_asked_for(subject):
    *_, growing = subject
    events = drawn(np.random.default_rng(0), 10)
    with pytest.raises(ValueError, match="the last 4 of 10 events are needed and 2 are known"):
        growing.anew(events[-2:], 10)


def test_systems_that_cannot_be_followed_are_refused(subject):
    data, _, _ = subject
    both = models_made.ENCODER.model_copy(update={"kind": "bert4rec"})
    make = partial(UserLLM, SYSTEM, models_made.DECODER, both, data.inputs)
    with pytest.raises(ValueError, match="a bert4rec encoder reads both ways"):
        Growing(data, make, {}, window=WINDOW)
    alone = SystemConfig(streams=())
    make = partial(UserLLM, alone, models_made.DECODER, models_made.ENCODER, data.inputs)
    with pytest.raises(ValueError, match="no memory of timelines alone"):
        Growing(data, make, {}, window=WINDOW)
