"""Decoding that can only name items of a catalogue: a trie as a flat table, and a beam over it."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from user_llm.inference.beams import extend, reorder
from user_llm.inference.buckets import bucket
from user_llm.inference.generate import Generator
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
        layers = reorder(state, layers, beams.parents, width, bucket(depth + 1))
        logits, layers = extend(generator, state, layers, beams.tokens, depth)
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
