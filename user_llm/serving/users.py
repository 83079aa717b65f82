"""Users who are followed: each event joins what is kept of them, and their memory knows it at once.

What a model made of a user's events, the encoder's cache, is kept beside them as bytes. Where it is
of another model, or of events that have since turned out to be older than others, the user is read
anew from the events that are kept. The memory is made of it when it is asked for, since more
happens than is asked, and is ready for the users who were asked about last.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cachetools import LRUCache
from safetensors.numpy import load, save

from user_llm.data import unseen
from user_llm.data.features import KNOWN
from user_llm.data.tables import named, seconds
from user_llm.inference.generate import Crossed
from user_llm.models.attention import KVCache
from user_llm.models.encoders.base import EventCache
from user_llm.models.layers import Memory
from user_llm.serving.growing import Growing, Grown
from user_llm.serving.store import Event, Made, Record, Store, StoreError

logger = logging.getLogger(__name__)
CACHED = 256 * 2**20  # bytes of memories

Ready = Memory | Crossed  # what an answer takes


class State(NamedTuple):
    """What is made of one user."""

    grown: Grown
    told: int  # events there had been
    last: int  # when the newest of them was, in seconds


class Cached(NamedTuple):
    last: tuple[int, float]  # of which version of the user it is, and when that came to be
    memory: Ready


class Users:
    """Users of a store as a model sees them.

    Args:
      growing: the model; it reads the users who are known.
      model: its name, one for every other content.
      ready: what answers take, made once of each memory; kept for the users asked about last.
      cached: bytes of these at most.
    """

    def __init__(
        self,
        store: Store,
        growing: Growing,
        model: str,
        *,
        ready: Callable[[Memory], Ready],
        cached: int = CACHED,
    ):
        self.store, self.growing, self.model, self.ready = store, growing, model, ready
        self._lock = threading.Lock()
        self._ready: LRUCache[str, Cached] = LRUCache(cached, getsizeof=_size)
        columns = {feature.column for feature in growing.dataset.schema.of("event")}
        self._blank = dict.fromkeys((columns | {"rating", "review"}) - {"timestamp"})
        self._empty = growing.empty()
        self.nobody = ready(growing.memory(self._empty))  # of users without events
        self.hits = self.misses = 0

    def warm(self) -> None:
        """Compiles what it takes to follow users, however many events come at once."""
        window, dataset = self.growing.window, self.growing.dataset
        event = {"item": dataset.items.ids[KNOWN], "timestamp": dataset.origin or 0}
        lengths = {min(2**power, window) for power in range(window.bit_length() + 1)}
        for length in sorted(lengths):
            self.growing.anew(self.checked([event] * length))

    @property
    def cached(self) -> int:
        """Users whose memory is ready."""
        return len(self._ready)

    def append(
        self, user: str, events: Sequence[Event], *, if_version: int | None = None
    ) -> Record:
        """The user with these events, too; one without a `timestamp` is of now.

        Raises:
          ValueError: an event cannot be read.
          StoreError: the store could not take them, or has them in another version.
        """
        return self._told(self.store.append(user, self.checked(events), if_version=if_version))

    def replace(
        self, user: str, events: Sequence[Event], *, if_version: int | None = None
    ) -> Record:
        """The same with these events in the place of all before."""
        return self._told(self.store.replace(user, self.checked(events), if_version=if_version))

    def delete(self, user: str) -> bool:
        """Erases a user; whether there was one."""
        with self._lock:
            self._ready.pop(user, None)
        return self.store.delete(user)

    def memory(self, user: str) -> Ready:
        """What answers to a user take; that of nobody in particular for one who is not known.

        Raises:
          StoreError: the store does not answer.
        """
        last = self.store.last(user)
        with self._lock:
            found = self._ready.get(user)
        if found and found.last == last:
            self.hits += 1
            return found.memory
        self.misses += 1
        record = self.store.get(user)
        if record is None or not record.told:
            return self.nobody
        ready = self.ready(self.growing.memory(self._current(record).grown))
        own = Cached((record.version, record.changed), ready)
        with self._lock:
            if _size(own) <= self._ready.maxsize:
                self._ready[user] = own
        return ready

    def state(self, record: Record) -> State:
        """What the model makes of a user: what it made before, where it can, and what came since.

        Raises:
          ValueError: too few events are kept to read the user anew.
        """
        made, told, events = record.made, record.told, by_time(record.events)
        before = unpacked(made.state, self._empty) if made and made.model == self.model else None
        more = told - before.told if before else 0
        if before and not more:
            return before
        news = record.events[-more:] if more else []
        if before and more < len(events) and before.last <= min(map(_time, news)):
            grown = self.growing.extended(before.grown, events, told, more)
        else:
            grown = self.growing.anew(events, told)
        return State(grown, told, _time(events[-1]))

    def checked(self, events: Sequence[Event]) -> list[Event]:
        """Events with all that the data set's have.

        Raises:
          ValueError: they cannot be read, and why.
        """
        now, schema = int(time.time()), self.growing.dataset.schema
        known = {"item", "timestamp", *self._blank, *schema.columns.values()}
        if strange := sorted({name for event in events for name in event} - known):
            raise ValueError(
                f"events of this data set have no {', '.join(strange)}; they have "
                f"{', '.join(sorted(known))}"
            )
        whole = [{"timestamp": now, **self._blank, **named(event, schema)} for event in events]
        if whole:
            unseen.encode(self.growing.dataset, [whole])
        return [{**event, "timestamp": int(float(seconds(event["timestamp"])))} for event in whole]

    def _told(self, record: Record) -> Record:
        """The user, once the model knows of what is new."""
        if record.told:
            self._current(record)
        return record

    def _current(self, record: Record) -> State:
        """A user as the model knows him now, which is kept where it is new."""
        state, made = self.state(record), record.made
        if made is None or (made.model, made.version) != (self.model, record.version):
            try:  # it is not, where another's events came meanwhile
                self.store.keep(record.user, Made(self.model, record.version, packed(state)))
            except StoreError as error:  # the events are there: who sent them is not to do so again
                logger.warning("what is made of a user is not kept: %s", type(error).__name__)
        return state


def by_time(events: Iterable[Event]) -> list[Event]:
    """The oldest first; those of one time in the order in which they came."""
    return sorted(events, key=_time)


def packed(state: State) -> bytes:
    """A state without the places that no event has taken yet."""
    grown = jax.device_get(state.grown)
    count = int(grown.count[0])
    arrays = {
        "keys": np.stack([layer.keys[..., :count, :] for layer in grown.cache.layers]),
        "values": np.stack([layer.values[..., :count, :] for layer in grown.cache.layers]),
        "timestamps": grown.cache.timestamps[:, :count],
        "told": grown.told[:, :count],
        "at": np.array([count, state.told, state.last]),
    }
    return save({name: np.ascontiguousarray(x) for name, x in arrays.items()})


def unpacked(state: bytes, empty: Grown) -> State:
    """The state that was packed, with the room of an empty one."""
    found = load(state)
    count, told, last = found["at"].tolist()

    def whole(known: np.ndarray, like: jax.Array, axis: int = 1) -> jax.Array:
        x = np.zeros(like.shape, like.dtype)
        x[(slice(None),) * axis + (slice(count),)] = known
        return jnp.asarray(x)

    every = zip(found["keys"], found["values"], empty.cache.layers, strict=True)
    layers = [KVCache(whole(k, like.keys, 2), whole(v, like.values, 2)) for k, v, like in every]
    cache = EventCache(layers, whole(found["timestamps"], empty.cache.timestamps))
    grown = Grown(cache, whole(found["told"], empty.told), jnp.array([count], jnp.int32))
    return State(grown, told, last)


def _time(event: Event) -> int:
    return event["timestamp"]


def _size(cached: Cached) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(cached.memory))
