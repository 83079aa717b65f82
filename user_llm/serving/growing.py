"""A user's memory that grows with every event, at a cost that does not grow with the history.

A causal encoder keeps keys and values of the events it has read, so that a new one costs no more
than itself. A window that slid with each event would change what all others have seen: every state
would be another. So it slides by half of itself at a time, and events are read anew only then.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from user_llm.data import unseen
from user_llm.data.dataset import Dataset
from user_llm.data.unseen import Event
from user_llm.inference.buckets import bucket
from user_llm.inference.memories import check_alone
from user_llm.models.encoders.base import EventCache, apart
from user_llm.models.layers import Memory
from user_llm.models.user_llm import UserLLM


def first_read(events: int, window: int) -> int:
    """The first of a user's events that is read: with it, half a window is read at least, or all.

    It depends on how many events there are alone, and moves by half a window at a time.
    """
    hop = max(1, window // 2)
    return max(0, -(-(events - window) // hop)) * hop


class Grown(NamedTuple):
    """What is kept of B users, who have S places for events each."""

    cache: EventCache
    told: Float[Array, "B S D"]  # what each event tells (see `TimelineStream.told`)
    count: Int[Array, " B"]  # of the events that were read


class Growing:
    """A system whose memory depends on a user's timeline alone, ready to follow users.

    Args:
      dataset: that the system was trained on; its vocabularies encode events.
      make_model: called with `rngs=`; its structure alone is used.
      params: the system's.
      window: events that are read at most.

    Raises:
      ValueError: the system's memory is not of timelines alone, or its encoder reads both ways.
    """

    def __init__(
        self, dataset: Dataset, make_model: Callable[..., UserLLM], params: dict, *, window: int
    ):
        model = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
        check_alone(model.system)
        encoder = model.streams["timeline"].encoder
        if not encoder.causal:
            raise ValueError(
                f"a {encoder.config.kind} encoder reads both ways: each event changes the states "
                "of all; follow users with a causal one"
            )
        self.dataset, self.params, self.window = dataset, params, window
        # With it, an event's state waits for the next event to tell when it was.
        self.waits = encoder.config.query_time
        graphdef, follower, block = map(
            nnx.graphdef, (model, model.streams["timeline"], encoder.layers)
        )
        slots, layers = encoder.config.window, encoder.config.layers
        # What an event needs of the parameters: to hand over all takes longer than to read it.
        self._own = params["streams"]["timeline"]
        self._blocks = apart(self._own["encoder"]["layers"], layers)
        width = 2 * encoder.config.embed

        def empty(params: dict, users: int) -> Grown:
            stream = nnx.merge(follower, params)
            none = jnp.zeros((users, slots, width), stream.encoder.config.dtype)
            return Grown(stream.encoder.empty(users), none, jnp.zeros(users, jnp.int32))

        def extend(
            params: dict, own: list, grown: Grown, events: dict, start: Array, count: Array
        ) -> Grown:
            stream, blocks = nnx.merge(follower, params), [nnx.merge(block, x) for x in own]
            at = start[:, None] + jnp.arange(next(iter(events.values())).shape[1])
            # What stands behind the new events is overwritten before any other could see it.
            states, cache = stream.encoder.extend(events, at, grown.cache, blocks)
            rows = jnp.arange(len(start))[:, None]
            told = grown.told.at[rows, at].set(stream.told(states, events))
            return Grown(cache, told, start + count)

        def remember(params: dict, grown: Grown) -> Memory:
            model = nnx.merge(graphdef, params)
            stream = model.streams["timeline"]
            mask = jnp.arange(slots) < grown.count[:, None]
            memory = stream.compressed(stream.aged(grown.told, mask), mask)
            return model.fuse({"timeline": memory})

        self._empty = jax.jit(empty, static_argnums=1)
        self._extend = jax.jit(extend, donate_argnums=2)
        self._remember = jax.jit(remember)

    def empty(self) -> Grown:
        """Nobody in particular: a user without events."""
        return self._empty(self._own, 1)

    def memory(self, grown: Grown) -> Memory:
        """What the decoder reads of users."""
        return self._remember(self.params, grown)

    def anew(self, events: Sequence[Event], of: int | None = None) -> Grown:
        """A user of whom these events are known, the newest of all `of` them.

        Raises:
          ValueError: an event cannot be read, or too few are known.
        """
        of = len(events) if of is None else of
        return self._read(self.empty(), 0, events, first_read(of, self.window), of)

    def extended(self, grown: Grown, events: Sequence[Event], of: int, more: int) -> Grown:
        """A user, `grown` with all but the last `more` of these events; `grown` is used up.

        Raises:
          ValueError: as `anew`.
        """
        first, before = first_read(of, self.window), of - more
        if first != first_read(before, self.window):
            return self.anew(events, of)
        start = before - first
        if self.waits:
            start = max(0, start - 1)
        return self._read(grown, start, events, first + start, of)

    def _read(
        self, grown: Grown, start: int, events: Sequence[Event], first: int, of: int
    ) -> Grown:
        """A user's events from number `first` on, at `start` of the window and behind it."""
        known = of - len(events)  # the number of the first event that is given
        if first < known:
            raise ValueError(
                f"the last {of - first} of {of} events are needed and {len(events)} are known; "
                f"keep at least {self.window + 1} of each user"
            )
        if first == of:
            return grown
        # How long an event came after another is told by that one.
        before = min(1, first - known)
        data = unseen.encode(self.dataset, [events[first - known - before :]])
        count = of - first
        places = np.full(bucket(count, least=1), -1)
        places[:count] = np.arange(before, before + count)
        sent = data.gather(places[None])
        where = np.array([start], np.int32), np.array([count], np.int32)
        return self._extend(self._own, self._blocks, grown, sent, *where)
