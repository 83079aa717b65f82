"""Token sequences as a trie of flat arrays: dense where nodes have many children, CSR elsewhere."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from user_llm.inference.buckets import bucket

DENSE = 2**24  # entries at most
SPARSE = 8  # where the fullest node has a child for fewer than one token of these, CSR is faster
NAMED = 3  # offenders in an error


class Table(NamedTuple):
    """The nodes, breadth first: a node's children have consecutive numbers; node 0 is the root.

    Below a node are the items `low` to `high` of the lexicographic order.
    """

    token: Int[Array, " N"]  # that leads to the node; -1: to where the items of its parent end
    child: Int[Array, " N"]  # its first
    degree: Int[Array, " N"]  # its number of children; 0 at a leaf
    inner: Int[Array, " N"]  # how many of them have children too
    low: Int[Array, " N"]
    high: Int[Array, " N"]
    dense: Int[Array, "D V1"]  # the first nodes' child by each token, and by -1; 0: none
    items: Int[Array, " I"]  # in lexicographic order, those alike by number


def flatten(
    sequences: Sequence[Sequence[int]] | Int[np.ndarray, "I L"], vocab_size: int
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " I"]]:
    """All tokens one after the other, and the sequences' lengths.

    Raises:
      ValueError: there is no sequence, or some are empty or name tokens outside of the vocabulary;
        the first offenders by their index.
    """
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    tokens = np.fromiter(chain.from_iterable(sequences), np.int64, lengths.sum())
    outside = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    odd = np.unique(np.searchsorted(lengths.cumsum(), outside, side="right"))
    empty = np.flatnonzero(lengths == 0)
    problems = [f"item {i} has no tokens" for i in empty[:NAMED]]
    for i in odd[:NAMED]:
        wrong = [int(x) for x in sequences[i] if not 0 <= x < vocab_size]
        problems.append(f"item {i} has tokens {wrong} outside of the vocabulary")
    if more := len(empty) + len(odd) - len(problems):
        problems.append(f"{more} more are like these")
    if problems or not len(lengths):
        raise ValueError("; ".join(problems) or "the catalogue is empty")
    return tokens.astype(np.int32), lengths


def compile_trie(
    tokens: Int[np.ndarray, " T"], lengths: Int[np.ndarray, " I"], vocab_size: int
) -> tuple[Table, list[int]]:
    """The trie of sequences that lie one after the other, and by level the `fan` for `edges`.

    Sequences are sorted one token at a time, each time within the nodes found before, so that
    nothing is padded to the longest.
    """
    starts, order = lengths.cumsum() - lengths, np.arange(len(lengths))
    places, node = order.copy(), np.zeros_like(order)  # of the items that go on
    columns, fans, ends = [], [], [1]  # of the nodes: where levels end
    while len(places):
        items, depth = order[places], len(fans)
        longer = lengths[items] > depth
        edge = np.full(len(items), -1)  # for items that end here though others go on
        edge[longer] = tokens[starts[items[longer]] + depth]
        edge += 1 + node * (vocab_size + 1)
        by = edge.argsort(kind="stable")
        order[places] = items = items[by]
        edge, first = edge[by], _starts(edge[by])
        parent, token = np.divmod(edge[first], vocab_size + 1)
        low, sizes = places[first], np.diff(first, append=len(edge))
        columns.append([x.astype(np.int32) for x in (token - 1, parent, low, low + sizes)])
        fans.append(bucket(int(np.diff(_starts(parent), append=len(parent)).max())))
        node = np.repeat(ends[-1] + np.arange(len(first)), sizes)
        ends.append(ends[-1] + len(first))
        goes_on = np.repeat(np.maximum.reduceat(lengths[items], first) > depth + 1, sizes)
        places, node = places[goes_on], node[goes_on]
    dense = 0  # nodes
    for level, end in enumerate(ends[:-1]):
        if end * (vocab_size + 1) > DENSE or fans[level] * SPARSE < vocab_size:
            break
        dense, fans[level] = end, 0
    return _table(columns, order, dense, vocab_size), fans


def _starts(values: np.ndarray) -> np.ndarray:
    """Where each run of equal values begins; none is negative."""
    return np.flatnonzero(np.diff(values, prepend=-1))


def _table(columns: list[list[np.ndarray]], order: np.ndarray, dense: int, vocab_size: int):
    """The arrays of all levels, whose `columns` are token, parent, low and high."""
    token, parent, low, high = (
        np.concatenate([[root], *levels], dtype=np.int32)
        for root, *levels in zip((-1, -1, 0, len(order)), *columns, strict=True)
    )
    degree = np.bincount(parent[1:], minlength=len(parent))
    inner = np.bincount(parent[1:][degree[1:] > 0], minlength=len(parent))
    child = degree.cumsum() - degree + 1
    near = slice(1, child[dense])  # the children of dense nodes
    rows = np.zeros((dense, vocab_size + 1), np.int32)
    rows[parent[near], token[near]] = np.arange(1, child[dense])
    arrays = token, child, degree, inner, low, high, rows, order
    return Table(*(jnp.asarray(x, jnp.int32) for x in arrays))


def edges(
    table: Table,
    nodes: Int[Array, "B A"],
    logits: Float[Array, "B A V"],
    fan: int,
    before: Int[Array, "#B I1"] | None = None,
) -> Float[Array, "B A E"]:
    """The log-probability of the token of each edge out of the nodes; -inf where there is none.

    Args:
      fan: room for the children of a node, one of few sizes; 0: the nodes are dense.
      before: how many items lie before each place of the lexicographic order; an edge that leads to
        none is left out.
    """
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    rows = None if before is None else jnp.arange(len(before))[:, None, None]
    if not fan:
        children = table.dense[nodes]
        there = children > 0
        if before is not None:
            there &= before[rows, table.high[children]] > before[rows, table.low[children]]
        gains = jnp.pad(logits - total, ((0, 0), (0, 0), (0, 1)))
        return jnp.where(there, gains, -jnp.inf)
    nth = jnp.arange(fan)
    first, degree = table.child[nodes][..., None], table.degree[nodes][..., None]
    token = table.token[first + nth]
    gains = jnp.take_along_axis(logits, token, axis=-1, mode="clip") - total
    gains = jnp.where(token < 0, 0.0, gains)
    there = nth < degree
    if before is not None:  # where one child's items end, the next one's begin
        nth = jnp.arange(fan + 1)
        ends = jnp.where(nth < degree, table.low[first + nth], table.high[nodes][..., None])
        passed = before[rows, ends]
        there = passed[..., 1:] > passed[..., :-1]
    return jnp.where(there, gains, -jnp.inf)


def follow(
    table: Table, nodes: Int[Array, "B K"], edge: Int[Array, "B K"], fan: int
) -> Int[Array, "B K"]:
    """The child at the end of one of each node's edges, as `edges` numbers them."""
    return table.child[nodes] + edge if fan else table.dense[nodes, edge]


def allowed(table: Table, nodes: Int[Array, " B"], fan: int, size: int) -> Bool[Array, "B V"]:
    """Which tokens of a vocabulary of `size` go on from the nodes; all of them from node -1.

    Args:
      fan: room for the children of any node that is not dense; 0: all are.
    """
    dense, rows = len(table.dense), jnp.arange(len(nodes))[:, None]
    found = jnp.broadcast_to(nodes[:, None] < 0, (len(nodes), size))
    if dense:
        near = (nodes >= 0) & (nodes < dense)
        there = table.dense[jnp.where(near, nodes, 0), :size] > 0
        found |= near[:, None] & there
    if fan:
        token, there = _children(table, nodes, fan)
        found |= jnp.zeros((len(nodes), size), bool).at[rows, token].max(there)
    return found


def stepped(
    table: Table, nodes: Int[Array, " B"], tokens: Int[Array, " B"], fan: int
) -> Int[Array, " B"]:
    """The nodes that the tokens lead to; -1 behind an item's last token, and from -1."""
    dense, to = len(table.dense), jnp.zeros_like(nodes)
    if dense:
        near = (nodes >= 0) & (nodes < dense)
        to = jnp.where(near, table.dense[jnp.where(near, nodes, 0), tokens], to)
    if fan:
        token, there = _children(table, nodes, fan)
        there &= token == tokens[:, None]
        nth = table.child[jnp.maximum(nodes, 0)] + there.argmax(1).astype(jnp.int32)
        to = jnp.where(there.any(1), nth, to)
    return jnp.where((to > 0) & (table.degree[to] > 0), to, -1)


def _children(
    table: Table, nodes: Int[Array, " B"], fan: int
) -> tuple[Int[Array, "B F"], Bool[Array, "B F"]]:
    """The tokens of the children of nodes that are not dense, and whether there are so many."""
    at, nth = jnp.maximum(nodes, 0), jnp.arange(fan)
    far = nodes >= len(table.dense)
    there = far[:, None] & (nth < table.degree[at][:, None])
    token = table.token[jnp.where(there, table.child[at][:, None] + nth, 0)]
    return jnp.where(there, token, 0), there
