"""Decoding that can only name items of a catalogue: a trie as a flat table, and a beam over it."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from user_llm.inference.buckets import bucket
from user_llm.inference.generate import Generator, forward
from user_llm.models.attention import KVCache, capped
from user_llm.models.layers import Memory


class Table(NamedTuple):
    """A trie, breadth first: a node's children have consecutive numbers; node 0 is the root.

    Below a node are the items `low` to `high` of the lexicographic order.
    """

    token: Int[Array, " N"]  # that leads to the node
    child: Int[Array, " N"]  # its first
    degree: Int[Array, " N"]  # its number of children; 0 at a leaf
    low: Int[Array, " N"]
    high: Int[Array, " N"]


class Catalog:
    """Items as sequences of tokens, of which none may begin with another: end them all alike.

    Items of the same tokens share a leaf.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], vocab_size: int):
        """Compiles the sequences.

        Raises:
          ValueError: a sequence is empty, names a token outside of the vocabulary, or begins with
            another one; all offenders by their index.
        """
        problems = [f"item {i} has no tokens" for i, x in enumerate(sequences) if not len(x)]
        for i, x in enumerate(sequences):
            if odd := [token for token in x if not 0 <= token < vocab_size]:
                problems.append(f"item {i} has tokens {odd} outside of the vocabulary")
        if problems or not len(sequences):
            raise ValueError("; ".join(problems) or "the catalogue is empty")
        lengths = np.array([len(x) for x in sequences])
        padded = np.full((len(lengths), lengths.max()), -1)
        for row, x in zip(padded, sequences, strict=True):
            row[: len(x)] = x
        self.depth = int(lengths.max())
        self.order = np.lexsort(padded.T[::-1])  # item numbers; ties keep theirs
        self.table, leaves = _compile(padded[self.order], lengths[self.order])
        high = np.asarray(self.table.high)
        for row in np.flatnonzero(np.asarray(self.table.degree)[leaves]):
            longer = self.order[high[leaves[row]] - 1]
            problems.append(f"item {longer} begins with all of item {self.order[row]}")
        if problems:
            raise ValueError("; ".join(problems) + ": end every sequence with one same token")

    def __len__(self) -> int:
        return len(self.order)


def _compile(padded: np.ndarray, lengths: np.ndarray) -> tuple[Table, np.ndarray]:
    """The trie of sorted sequences, and each sequence's leaf."""
    node = np.zeros(len(padded), np.int64)  # the prefix read so far, per sequence
    levels, count = [], 1
    for depth in range(padded.shape[1]):
        rows = np.flatnonzero(lengths > depth)
        edges = np.stack([node[rows], padded[rows, depth]])
        new = np.append(True, (edges[:, 1:] != edges[:, :-1]).any(0))
        local = new.cumsum() - 1
        low = rows[new]
        levels.append((*edges[:, new], low, low + np.bincount(local)))
        node[rows] = count + local
        count += len(low)
    parent, token, low, high = np.concatenate(levels, axis=1)
    nodes = np.arange(count)
    columns = (
        np.append(0, token),
        np.searchsorted(parent, nodes) + 1,
        np.bincount(parent, minlength=count),
        np.append(0, low),
        np.append(len(padded), high),
    )
    return Table(*(jnp.asarray(x, jnp.int32) for x in columns)), node


class BeamCache(NamedTuple):
    """A layer's cache for beams: the prompt's part is shared, what follows is each beam's own.

    Beams lie along the time axis, so that all of a user's attend to one copy of the prompt.
    """

    prompt: KVCache  # [B, K, S, H]
    keys: Float[Array, "B K W H R"]  # the layout in which XLA:CPU multiplies fastest
    values: Float[Array, "B K W R H"]
    depth: Int[Array, ""]  # the slot of each beam's next token

    def write(self, keys: Array, values: Array, positions: Array) -> "BeamCache":
        put = jax.lax.dynamic_update_index_in_dim
        return self._replace(
            keys=put(self.keys, rearrange(keys, "b w k h -> b k w h"), self.depth, 4),
            values=put(self.values, rearrange(values, "b w k h -> b k w h"), self.depth, 3),
        )

    def attend(
        self, q: Float[Array, "B W N H"], mask: Bool[Array, "B #W SR"], softcap: float | None = None
    ) -> Array:
        q = rearrange(q, "b w (k g) h -> b k w g h", k=self.keys.shape[1]) * q.shape[-1] ** -0.5
        shared = jnp.einsum("bkwgh,bksh->bkwgs", q, self.prompt.keys)
        own = jnp.einsum("bkwgh,bkwhr->bkwgr", q, self.keys)
        shared, own = _softmax((shared, own), mask[:, None, :, None], softcap)
        y = jnp.einsum("bkwgs,bksh->bkwgh", shared, self.prompt.values)
        y += jnp.einsum("bkwgr,bkwrh->bkwgh", own, self.values)
        return rearrange(y, "b k w g h -> b w (k g h)")


def _softmax(parts: tuple[Array, Array], mask: Array, softcap: float | None) -> list[Array]:
    """The softmax of both parts together in float32, which to concatenate would take longer."""
    masks = jnp.split(mask, [parts[0].shape[-1]], axis=-1)
    low = jnp.finfo(jnp.float32).min
    scores = (capped(x.astype(jnp.float32), softcap) for x in parts)
    kept = [jnp.where(m, x, low) for x, m in zip(scores, masks, strict=True)]
    highest = jnp.maximum(*(x.max(-1, keepdims=True) for x in kept))
    kept = [jnp.exp(x - highest) for x in kept]
    total = sum(x.sum(-1, keepdims=True) for x in kept)
    return [(x / total).astype(parts[0].dtype) for x in kept]


class Beams(NamedTuple):
    """The best prefixes found for each user, unfinished ones first."""

    nodes: Int[Array, "B W"]
    scores: Float[Array, "B W"]  # log-probability of the tokens so far; -inf: no prefix
    parents: Int[Array, "B W"]  # the column that an unfinished one continues
    tokens: Int[Array, "B W"]  # the last of each


def beam_search(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    catalog: Catalog,
    *,
    beam: int,
    memory: Memory | None = None,
    prefix: Memory | None = None,
    exclude: Bool[np.ndarray, "B I"] | None = None,
) -> tuple[Int[np.ndarray, "B W"], Float[np.ndarray, "B W"]]:
    """The items that the decoder most probably names after each prompt, best first.

    A score is the log-probability of an item's tokens under the full softmax. Finished and
    unfinished prefixes compete for the same `beam` places, so a beam as wide as the catalogue is
    exact. An excluded item takes no place: a prefix that leads to no other is never entered. Items
    of equal score come by number; where items run out, -1 with a score of -inf fills up.

    Args:
      exclude: True for the items that a user is not to be given, such as those seen.

    Raises:
      ValueError: as `Generator.start`, or `exclude` is not of as many prompts and items.
    """
    if exclude is not None and exclude.shape != (wanted := (len(prompts), len(catalog))):
        raise ValueError(f"exclude has shape {exclude.shape}, prompts and items want {wanted}")
    logits, state = generator.start(prompts, memory, prefix, catalog.depth)
    kept = np.ones((1, len(catalog)), bool) if exclude is None else ~exclude[:, catalog.order]
    before = jnp.asarray(np.pad(kept.cumsum(1, dtype=np.int32), ((0, 0), (1, 0))))
    shape = (len(prompts), beam)
    scores = jnp.full(shape, -jnp.inf).at[:, 0].set(0.0)
    none = jnp.zeros(shape, jnp.int32)
    beams = Beams(none, scores, none, none)
    logits, layers, fan = logits[:, None], None, int(catalog.table.degree[0])
    for depth in range(catalog.depth):
        beams, unfinished = _select(catalog.table, before, beams, logits, bucket(fan))
        widest, fan = unfinished.tolist()
        if not widest:
            break
        width = beam
        while width // 2 >= widest:
            width //= 2
        layers = _reorder(state, layers, beams.parents, width, bucket(depth + 1))
        logits, layers = _extend(
            generator.graphdef, generator.params, state, layers, beams.tokens, depth
        )
    return _items(catalog, np.asarray(beams.nodes), np.asarray(beams.scores), kept, beam)


def score(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    catalog: Catalog,
    *,
    memory: Memory | None = None,
    prefix: Memory | None = None,
) -> Float[np.ndarray, "B I"]:
    """The exact log-probability of every item, for catalogues small enough to hold in a beam."""
    how = {"beam": len(catalog), "memory": memory, "prefix": prefix}
    items, scores = beam_search(generator, prompts, catalog, **how)
    return np.take_along_axis(scores, items.argsort(axis=1), axis=1)


@partial(jax.jit, static_argnums=4)
def _select(table, before, beams, logits, fan):
    """One step down the trie, and [the most unfinished of any user, their most children]."""
    logits = logits.astype(jnp.float32)
    nodes, scores = (x[:, : logits.shape[1]] for x in beams[:2])  # those that logits continue
    edges = jnp.arange(fan)
    children = table.child[nodes][..., None] + edges  # [B, A, F]
    rows = jnp.arange(len(before))[:, None, None]  # one for all or one each
    alive = before[rows, table.high[children]] > before[rows, table.low[children]]
    alive &= edges < table.degree[nodes][..., None]
    gains = jnp.take_along_axis(logits, table.token[children], axis=-1)
    gains -= jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    extended = jnp.where(alive, scores[..., None] + gains, -jnp.inf)
    finished = jnp.where(table.degree[beams.nodes] == 0, beams.scores, -jnp.inf)

    def flat(a, b):
        return jnp.concatenate([a.reshape(len(a), -1), b], axis=1)

    parents = jnp.broadcast_to(jnp.arange(nodes.shape[1])[:, None], children.shape)
    scores, best = jax.lax.top_k(flat(extended, finished), beams.nodes.shape[1])
    nodes = jnp.take_along_axis(flat(children, beams.nodes), best, axis=1)
    parents = jnp.take_along_axis(flat(parents, jnp.zeros_like(beams.nodes)), best, axis=1)
    degree = jnp.where(jnp.isfinite(scores), table.degree[nodes], 0)
    order = jnp.argsort(degree == 0, axis=1, stable=True)
    columns = (nodes, scores, parents, table.token[nodes])
    beams = Beams(*(jnp.take_along_axis(x, order, axis=1) for x in columns))
    return beams, jnp.stack([(degree > 0).sum(1).max(), degree.max()])


@partial(jax.jit, static_argnums=(3, 4))
def _reorder(state, layers, parents, width, slots):
    """Each unfinished beam's own keys and values, with room for `slots` tokens."""
    if layers is None:
        b, k, _, h = state.caches[0].keys.shape
        dtype = state.caches[0].keys.dtype
        empty = (
            jnp.zeros((b, k, width, h, slots), dtype),
            jnp.zeros((b, k, width, slots, h), dtype),
        )
        return [empty] * len(state.caches)
    b, k, old, _, few = layers[0][0].shape
    rows = jnp.arange(b * k).reshape(b, k, 1) * old + parents[:, None, :width]

    def move(x, axis):  # by one flat index: XLA:CPU gathers whole rows at the speed of a copy
        x = x.reshape(b * k * old, *x.shape[3:]).at[rows.ravel()].get(mode="promise_in_bounds")
        x = x.reshape(b, k, width, *x.shape[1:])
        return jnp.pad(x, [(0, slots - few if i == axis else 0) for i in range(5)])

    return [(move(keys, 4), move(values, 3)) for keys, values in layers]


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _extend(graphdef, params, state, layers, tokens, depth):
    """Logits after every unfinished beam's last token, and the keys and values with it."""
    decoder = nnx.merge(graphdef, params)
    width, slots = layers[0][0].shape[2], layers[0][0].shape[-1]
    positions = jnp.broadcast_to((state.lengths + depth)[:, None], (len(state.lengths), width))
    at, own = jnp.arange(state.slots), jnp.arange(slots)
    seen = at < state.lengths[:, None]
    mask = jnp.concatenate([seen, jnp.broadcast_to(own <= depth, (len(seen), slots))], axis=1)
    # Where the slots of the prompt and those of each beam stand in the text.
    at = jnp.concatenate([jnp.broadcast_to(at, seen.shape), state.lengths[:, None] + own], axis=1)
    views = decoder.views(positions, mask[:, None], at)
    caches = [BeamCache(p, k, v, depth) for p, (k, v) in zip(state.caches, layers, strict=True)]
    x = decoder.embed(tokens[:, :width])
    x, caches = forward(decoder, x, views, caches, state.crossed)
    return decoder.logits(x), [(cache.keys, cache.values) for cache in caches]


def _items(catalog, nodes, scores, kept, beam):
    """The items at the leaves, best first."""
    low, high = np.asarray(catalog.table.low), np.asarray(catalog.table.high)
    items = np.full((len(nodes), beam), -1, np.int32)
    points = np.full((len(nodes), beam), -np.inf, np.float32)
    for row, (leaves, values) in enumerate(zip(nodes, scores, strict=True)):
        found = []
        for leaf, value in zip(leaves, values, strict=True):
            if np.isfinite(value):
                places = np.arange(int(low[leaf]), int(high[leaf]))
                places = places[kept[row if len(kept) > 1 else 0, places]]
                found += [(-value, item) for item in catalog.order[places]]
        for column, (value, item) in enumerate(sorted(found)[:beam]):
            items[row, column], points[row, column] = item, -value
    return items, points
