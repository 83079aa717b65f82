"""What all user encoders share: events to vectors, states to scores, masks of packed rows.

An encoder turns a batch of events [B, T] into states [B, T, D]. The dot products of its `queries`
of the states with its `item_vectors` say how likely each item is next.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from user_llm.config import EncoderConfig, FeatureConfig
from user_llm.models.attention import KVCache
from user_llm.models.layers import Linear, dropout, picked
from user_llm.sharding import axes, constrain, look_up, scarce


class Content(nnx.Variable):
    """What is known of the items before any training: part of the state, and never trained."""


class EventEmbedding(nnx.Module):
    """An event's item, and on top of it the other features: one table each, projected together.

    With `config.content`, an item's vector is the sum of its id's and of what its content says,
    and an item that training never saw has no id of its own. Content is read there, not again as a
    feature of the event.

    Args:
      items: for the features named in `config.content` their encoded values [V, ...], and
        `trained` [V], whether training saw the item.

    Raises:
      ValueError: `config.content` names what items have no values of.
    """

    def __init__(
        self,
        features: tuple[FeatureConfig, ...],
        config: EncoderConfig,
        items: Mapping[str, Any] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.item_feature, *others = features
        self.content_features = tuple(f for f in others if f.name in config.content)
        self.event_features = tuple(f for f in others if f.name not in config.content)
        self.scale = config.embed**0.5  # of tables: their values start small
        self.id_dropout = config.id_dropout
        init, width = nnx.initializers.normal(0.02), config.feature_embed

        def table(feature, width):
            return nnx.Param(init(rngs.params(), (feature.size, width)), **axes("vocab", "embed"))

        def proj(features, bias):
            if not features:
                return None
            inputs = width * len(features)
            return Linear(inputs, config.embed, (None, "embed"), rngs=rngs, bias=bias)

        tables = {self.item_feature.name: table(self.item_feature, config.embed)}
        vectors = {}
        for feature in others:
            if feature.kind == "vector":
                vectors[feature.name] = Linear(feature.size, width, (None, "embed"), rngs=rngs)
            else:
                tables[feature.name] = table(feature, width)
        self.tables, self.vectors = nnx.Dict(tables), nnx.Dict(vectors)
        # The item goes by it, so that like items begin as like events.
        self.proj = proj(self.event_features, bias=False)
        names = tuple(f.name for f in self.content_features)
        items = {} if items is None or not config.content else items
        if lost := {*config.content} - {*names} | ({*config.content} - {*items}):
            raise ValueError(f"encoder.content: no item feature is named {', '.join(sorted(lost))}")

        def content(values):
            inner = (None,) * (np.ndim(values) - 1)
            return Content(jnp.asarray(values), **axes("vocab", *inner))

        self.content = nnx.Dict({n: content(items[n]) for n in names})
        self.trained = content(items["trained"]) if names else None
        self.content_proj = proj(self.content_features, bias=True)

    def __call__(
        self, events: dict[str, Array], key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T D"]:
        x = self.items(key, events[self.item_feature.name]) * self.scale
        if self.proj is None:
            return x
        told = [self._embed(f, events[f.name]) for f in self.event_features]
        return x + self.proj(jnp.concatenate(told, -1))

    def items(
        self, key: Key[Array, ""] | None = None, ids: Int[Array, "..."] | None = None
    ) -> Float[Array, "... D"]:
        """Every item's vector [V, D], or those of some.

        With a key, `id_dropout` of the ids are hidden, by the key alone.
        """
        table = self.tables[self.item_feature.name][...]
        if ids is not None and not scarce(ids.size, len(table)):
            return self.items(key)[ids]
        table = constrain(table, "vocab", None) if ids is None else look_up(table, ids)
        if self.trained is None or self.content_proj is None:
            return table
        at = ... if ids is None else ids
        shown = self.trained[...]
        if key is not None:
            shown &= jax.random.bernoulli(key, 1 - self.id_dropout, shown.shape)
        told = [self._embed(f, self.content[f.name][...][at]) for f in self.content_features]
        content = self.content_proj(jnp.concatenate(told, -1)) / self.scale
        found = jnp.where(shown[at][..., None], table, 0) + content
        return constrain(found, "vocab", None) if ids is None else found

    def _embed(self, feature, values):
        if feature.kind == "vector":
            return self.vectors[feature.name](values)
        rows = look_up(self.tables[feature.name][...] * self.scale, values)
        if feature.kind == "categorical":
            return rows  # [..., F]
        filled = (values > 0).astype(rows.dtype)[..., None]  # [..., K, 1]
        return (rows * filled).sum(-2) / jnp.maximum(filled.sum(-2), 1)


class EventCache(NamedTuple):
    """What a causal encoder keeps of timelines, so that new events cost no more than themselves."""

    layers: list[KVCache]  # slot s holds the event at position s
    timestamps: Int[Array, "B S"]


class Encoder(nnx.Module):
    """Events of many features, fused early; a state for each, and a head per predicted feature.

    The first feature is the item, and its head is the item table itself.
    """

    causal: ClassVar[bool] = True  # whether a state depends on the past alone

    def __init__(
        self,
        config: EncoderConfig,
        features: tuple[FeatureConfig, ...],
        items: Mapping[str, Any] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        """Builds the embedding and the heads.

        Raises:
          ValueError: the first feature is not a predicted item, or a feature of several values is
            to be predicted, or `config.content` names what is no item feature.
        """
        if odd := [f.name for f in features if f.predicted and f.kind != "categorical"]:
            raise ValueError(f"only categorical features can be predicted, not {', '.join(odd)}")
        if not features or not features[0].predicted:
            raise ValueError("the first feature must be the item, and predicted")
        self.config, self.features = config, features
        self.embedding = EventEmbedding(features, config, items, rngs=rngs)
        self.heads = nnx.Dict(
            {
                f.name: Linear(config.embed, f.size, ("embed", "vocab"), rngs=rngs, bias=True)
                for f in features[1:]
                if f.predicted
            }
        )
        self.build(rngs)

    def build(self, rngs: nnx.Rngs) -> None:
        """Adds what a kind of encoder has beside the embedding and the heads."""
        raise NotImplementedError

    @property
    def item(self) -> str:
        """The name of the item feature."""
        return self.features[0].name

    @property
    def candidates(self) -> Bool[Array, " V"] | None:
        """The items that training has seen, where others are known by their content; else None.

        Held against the right ones while it learns, an encoder would rank new items last.
        """
        trained = self.embedding.trained
        return None if trained is None else trained[...]

    def embed(
        self, events: dict[str, Array], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T D"]:
        """Each event on its own, before any context."""
        x = self.embedding(events, key).astype(self.config.dtype)
        return constrain(x, "batch", None, None)

    def inputs(self, events, key):
        """Embedded events, with dropout, and a key for each layer."""
        keys = None if key is None else jax.random.split(key, self.config.layers + 1)
        x = dropout(
            self.embed(events, key=key), self.config.dropout, None if keys is None else keys[0]
        )
        return x, None if keys is None else keys[1:]

    def __call__(
        self,
        events: dict[str, Array],
        segments: Int[Array, "B T"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Each event in the light of its segment: of what came before, if the encoder is causal.

        Args:
          events: encoded features by name, [B, T] or [B, T, K] (see `FeatureConfig`), and where
            `config.reads_clock` the columns `EVENT_TIME` and `QUERY_TIME`.
          segments: which timeline of its row an event belongs to, from 1; 0 is padding.
          key: for dropout; without it there is none.
        """
        raise NotImplementedError

    def at(
        self, events: dict[str, Array], segments: Int[Array, "B T"], places: Int[Array, "B S"]
    ) -> Float[Array, "B S D"]:
        """The states of the events at some places of each row, which may cost less than all."""
        return picked(self(events, segments), places)

    def ask(self, events: dict[str, Array], segments: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """The state that tells what comes after each row's only timeline."""
        last = jnp.maximum((segments > 0).sum(1) - 1, 0)
        return self.at(events, segments, last[:, None])[:, 0]

    def queries(self, states: Float[Array, "... D"]) -> Float[Array, "... Q"]:
        """What is compared with the item vectors, in float32."""
        states = states.astype(jnp.float32)
        return unit(states) if self.config.similarity == "cosine" else states

    def item_vectors(
        self, key: Key[Array, ""] | None = None, ids: Int[Array, "..."] | None = None
    ) -> Float[Array, "... Q"]:
        """What queries are compared with, of every item [V, Q] or of some, over the temperature.

        With the key of a call of the encoder, the same ids are hidden as there.
        """
        items = self.embedding.items(key, ids).astype(jnp.float32)
        return (unit(items) if self.config.similarity == "cosine" else items) / (
            self.config.temperature
        )

    def item_logits(self, states: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """How likely each item is next."""
        return self.queries(states) @ self.item_vectors().T

    def directions(self, items: Int[Array, "..."]) -> Float[Array, "... D"]:
        """Unit vectors among the states that point at items."""
        return unit(self.embedding.items(ids=items))

    def empty(self, batch: int) -> EventCache:
        """The cache of users without events, with room for `config.window` of them."""
        size, heads = self.config.window, self.config.heads
        shape = batch, heads, size, self.config.embed // heads, self.config.dtype
        layers = [KVCache.empty(*shape) for _ in range(self.config.layers)]
        return EventCache(layers, jnp.zeros((batch, size), jnp.int32))

    def extend(
        self,
        events: dict[str, Array],
        positions: Int[Array, "B K"],
        cache: EventCache,
        blocks: Sequence[Any] = (),
    ) -> tuple[Float[Array, "B K D"], EventCache]:
        """States of new events at their positions in a timeline, given a cache of those before.

        Who has the `blocks` already saves taking them apart, which takes longer than an event.

        Raises:
          NotImplementedError: the encoder is not causal.
        """
        raise NotImplementedError(f"a {self.config.kind} encoder reads both ways: encode anew")


def apart(layers: Any, count: int) -> list[Any]:
    """Stacked layers one by one, be they modules or parameters."""
    return [jax.tree.map(lambda x, i=i: x[i], layers) for i in range(count)]


def unit(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """x at length one; zero stays zero."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def same_segment(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Which events belong to one timeline."""
    return segments[:, :, None] == segments[:, None, :]


def causal_mask(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Which events each event sees: itself and those before it in its segment."""
    length = segments.shape[1]
    return same_segment(segments) & jnp.tril(jnp.ones((length, length), bool))


def segment_positions(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Each event's position within its segment; segments are contiguous."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    first = jnp.diff(segments, axis=1, prepend=-1) != 0
    return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)
