"""What predicting the next item can mean: a loss for each query, given the items' vectors.

An objective is a function of a table or head, of queries [N, Q], of their targets [N], of the rows
of the batch that they lie in [N] and of a key, to losses [N]. `summed` applies it to a batch some
queries at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from user_llm.config import ObjectiveConfig
from user_llm.models.attention import capped
from user_llm.sharding import by_shards, platform, scarce

IN_BATCH = 512  # queries whose targets are each other's negatives
LANES = 16  # a multiple of which XLA:CPU multiplies a third faster into
FIRST_KNOWN = 2  # ids below are "missing" and "out of vocabulary"

Objective = Callable[[Array, Array, Array, Array, Array], Array]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def summed(
    objective: Objective,
    size: int,
    apart: bool,
    table: Float[Array, "..."],
    queries: Float[Array, "B T Q"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """The weighted sum of an objective's losses, and by its gradient that of table and queries.

    [B, T, V] never exists: each chunk's gradient is made along with its loss, while its logits are
    there. Chunks are of about `size` queries, cut along time, which no mesh axis splits. A chunk in
    which nothing counts is skipped.

    Where queries are `apart`, for nothing is drawn and none is another's negative, every shard of
    the batch has chunks of its own. They meet but once, and not over the table of each chunk.
    """
    chunks = split(size, targets.shape, queries, targets, weights, key)
    add = partial(chunk_loss, objective, table)
    total, _ = jax.lax.scan(lambda t, x: (t + add(*x), None), jnp.zeros((), jnp.float32), chunks)
    return total


def summed_forward(objective, size, apart, table, queries, targets, weights, key):
    find = partial(gradients, objective, size)
    if apart:
        find = partial(by_shards, find)
    (total, by_table), by_queries = find((table, key), queries, targets, weights)
    return total, (by_table.astype(table.dtype), by_queries)


def gradients(objective, size, table_and_key, queries, targets, weights):
    table, key = table_and_key
    grad = jax.value_and_grad(partial(chunk_loss, objective), argnums=(0, 1))

    def counted(sums, chunk):
        loss, (by_table, by_queries) = grad(table, *chunk)
        return (sums[0] + loss, sums[1] + by_table.astype(jnp.float32)), by_queries

    def skipped(sums, chunk):
        return sums, jnp.zeros_like(chunk[0])

    def add(sums, chunk):
        return jax.lax.cond((chunk[2] > 0).any(), counted, skipped, sums, chunk)

    zeros = jnp.zeros((), jnp.float32), jnp.zeros(table.shape, jnp.float32)
    chunks = split(size, targets.shape, queries, targets, weights, key)
    sums, by_queries = jax.lax.scan(add, zeros, chunks)
    return sums, joined(by_queries, queries.shape)


def summed_backward(objective, size, apart, found, cotangent):
    by_table, by_queries = (x * cotangent.astype(x.dtype) for x in found)
    return by_table, by_queries, None, None, None


summed.defvjp(summed_forward, summed_backward)


def chunk_loss(objective, table, queries, targets, weights, rows, key):
    # What does not count is no negative for others either: see `in_batch`.
    rows = jnp.where(weights > 0, rows, -1)
    losses = objective(table, queries, targets, rows, key)
    return jnp.where(weights > 0, losses * weights, 0).sum()


def split(size: int, shape: tuple[int, ...], *columns: Any) -> tuple:
    """Columns [B, T, ...] and a key in chunks of about that size, beside the batch's row of each.

    From [B, T, ...] to [T / t, B * t, ...]; the end of the last chunk is zero.
    """
    *arrays, key = columns
    batch, length = shape
    steps = max(1, min(length, size // batch))

    def chunks(x):
        x = jnp.pad(x, ((0, 0), (0, -length % steps), *((0, 0),) * (x.ndim - 2)))
        x = jnp.moveaxis(x.reshape(batch, -1, steps, *x.shape[2:]), 1, 0)
        return x.reshape(x.shape[0], batch * steps, *x.shape[3:])

    rows = jnp.broadcast_to(jnp.arange(batch)[:, None], shape)
    cut = [chunks(x) for x in (*arrays, rows)]
    return (*cut, jax.random.split(key, len(cut[0])))


def joined(chunks: Array, shape: tuple[int, ...]) -> Array:
    """What `split` has cut, whole again."""
    x = chunks.reshape(len(chunks), shape[0], -1, *shape[2:])
    return jnp.moveaxis(x, 0, 1).reshape(shape[0], -1, *shape[2:])[:, : shape[1]]


def chunk_size(width: int) -> int:
    """About how many queries have their logits, `width` each, at a time.

    A CPU's cache holds about 16 MB of them, and of fewer the table's gradient, which every chunk
    adds to, would be most of the work; an accelerator is kept busy by 32 times as many. A softmax
    takes three times that, and no chunk is smaller than a step of every row.
    """
    logits = 2**22 if platform() == "cpu" else 2**27
    return max(64, min(logits // width, 8192))


def softmax(head, queries, targets, rows, key, candidates=None):
    """Targets against every column of the head [Q, V], or against those that are candidates."""
    return negative_log_softmax(head, queries, targets, candidates)


def capped_softmax(head, queries, targets, rows, key, softcap):
    """The same over logits that are capped, as those of some decoders are."""
    logits = capped((queries @ head).astype(jnp.float32), softcap)
    chosen = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


@jax.custom_vjp
def negative_log_softmax(
    head: Float[Array, "Q V"],
    queries: Float[Array, "N Q"],
    targets: Int[Array, " N"],
    candidates: Bool[Array, " V"] | None,
) -> Float[Array, " N"]:
    """-log softmax(queries @ head)[target]; its gradient normalises [N, Q] instead of [N, V]."""
    return softmax_forward(head, queries, targets, candidates)[0]


def softmax_forward(head, queries, targets, candidates):
    logits = (queries @ head).astype(jnp.float32)
    if candidates is not None:
        logits = jnp.where(candidates, logits, -jnp.inf)
    highest = logits.max(-1)
    shares = jnp.exp(logits - highest[:, None])
    total = shares.sum(-1)
    chosen = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    return jnp.log(total) + highest - chosen, (head, queries, targets, shares, total)


def softmax_backward(residuals, cotangent):
    head, queries, targets, shares, total = residuals
    error = jax.vmap(lambda row, target, x: row.at[target].add(-x))(shares, targets, total)
    error = error.astype(head.dtype)
    scale = (cotangent / total)[:, None].astype(head.dtype)
    by_queries = error @ jnp.pad(head.T, ((0, 0), (0, -len(head) % LANES)))
    return (queries * scale).T @ error, by_queries[:, : len(head)] * scale, None, None


negative_log_softmax.defvjp(softmax_forward, softmax_backward)


class Items(NamedTuple):
    """Items of which few are looked at, by a function of their ids to their vectors."""

    size: int
    of: Callable[[Array], Array]


def looks_at_few(config: ObjectiveConfig, items: int, targets: Int[Array, "B T"]) -> bool:
    """Whether the devices of a mesh had better leave the table of so many items as it is split.

    That is so where targets and negatives are fewer than the items.
    """
    if config.kind == "softmax" or not (config.shared or config.kind == "in_batch"):
        return False
    return scarce(targets.size + config.negatives, items)


def item_loss(
    config: ObjectiveConfig,
    items: Float[Array, "V Q"] | Items,
    queries: Float[Array, "B T Q"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    key: Key[Array, ""],
    candidates: Bool[Array, " V"] | None = None,
) -> Float[Array, ""]:
    """The weighted sum of the losses by the objective that a config names.

    Only candidates are held against the targets, where there are any; in a batch, its targets.
    Given as `Items`, for objectives that look at few of them, those are looked up once, before the
    batch is cut into chunks.
    """
    if isinstance(items, Items):
        count, of = items
        # Beside each query stands the vector of its target, to be cut into chunks along with it.
        queries, table = jnp.concatenate([queries, of(targets)], axis=-1), jnp.zeros(0)
    else:
        count, of, table = items.shape[0], None, items
    if config.kind == "softmax":
        objective = partial(softmax, candidates=candidates)
        return summed(objective, chunk_size(count), True, table.T, queries, targets, weights, key)
    if config.kind == "in_batch":
        objective = partial(in_batch, config, shares(targets, weights), of is not None)
        return summed(objective, IN_BATCH, False, table, queries, targets, weights, key)
    proposal = proposed(config, count, targets, weights, candidates)
    key, shared_key = jax.random.split(key)
    drawn = proposal.draw((config.negatives,), shared_key) if config.shared else None
    if of is not None and drawn is not None:
        table = of(drawn)
    objective = partial(against_drawn, config, proposal, drawn, of is not None)
    size = chunk_size(config.negatives * (1 if config.shared else table.shape[1]))
    return summed(objective, size, False, table, queries, targets, weights, key)


def frequency(
    size: int, targets: Int[Array, "B T"], weights: Float[Array, "B T"]
) -> Float[Array, " V"]:
    """How often each item is a target of the batch, which follows its popularity."""
    flat = weights.reshape(-1)
    counts = jnp.zeros(size, flat.dtype).at[targets.reshape(-1)].add(flat)
    return counts / jnp.maximum(flat.sum(), 1e-9)


def shares(
    targets: Int[Array, "B T"], weights: Float[Array, "B T"]
) -> Callable[[Int[Array, " N"]], Float[Array, " N"]]:
    """The same as a function of items, which costs nothing for those that are no targets."""
    order = jnp.argsort(targets.reshape(-1))
    ids, each = targets.reshape(-1)[order], weights.reshape(-1)[order]
    before = jnp.pad(jnp.cumsum(each), (1, 0))

    def share(items):
        first, end = (jnp.searchsorted(ids, items, side=side) for side in ("left", "right"))
        return (before[end] - before[first]) / jnp.maximum(before[-1], 1e-9)

    return share


class Proposal(NamedTuple):
    """How negatives are drawn, with replacement, of how many `known` items, each by its share."""

    known: Any
    draw: Callable[[tuple[int, ...], Array], Array]
    share: Callable[[Array], Array]


def proposed(
    config: ObjectiveConfig,
    items: int,
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    candidates: Bool[Array, " V"] | None,
) -> Proposal:
    """The proposal that a config names; no search is needed if all items are alike in it."""
    popular = {"uniform": 0.0, "mixed": 0.5, "popularity": 1.0}[config.proposal]
    if popular == 0 and candidates is None:
        known = items - FIRST_KNOWN

        def alike(shape, key):
            return jax.random.randint(key, shape, FIRST_KNOWN, items, jnp.int32)

        return Proposal(known, alike, lambda ids: jnp.full(ids.shape, 1 / known, jnp.float32))
    if candidates is None:
        candidates = jnp.arange(items) >= FIRST_KNOWN
    known = candidates.sum()
    uniform = candidates.astype(jnp.float32) / known.astype(jnp.float32)
    shares = (1 - popular) * uniform + popular * frequency(items, targets, weights)

    def draw(shape, key):
        cumulative = jnp.cumsum(shares)
        at = jax.random.uniform(key, shape) * cumulative[-1]
        return jnp.searchsorted(cumulative, at, side="right").astype(jnp.int32)

    return Proposal(known, draw, lambda ids: shares[ids])


def against_drawn(config, proposal, drawn, few, table, queries, targets, rows, key):
    """Targets against sampled items, of which those that are the target do not count.

    With `log_q`, each logit is corrected by the log of its expected count in the sample (arXiv
    1412.2007, section 3), so the expected normaliser is that of all known items.
    """
    queries, right = with_targets(few, table, queries, targets)
    if drawn is None:
        drawn = proposal.draw((len(targets), config.negatives), key)
        logits = jnp.einsum("nq,nsq->ns", queries, table[drawn])
    else:
        logits = queries @ (table if few else table[drawn]).T
    logits = logits.astype(jnp.float32)
    chosen = (queries * right).sum(-1).astype(jnp.float32)
    # Rounding gives what is never drawn a sliver of the sum of shares.
    share = proposal.share(drawn)
    hit = (drawn == targets[:, None]) | (share == 0)
    if config.kind == "gbce":
        return gbce(config, proposal.known, chosen, logits, ~hit)
    if config.log_q:
        logits -= jnp.log(config.negatives * share)
    logits = jnp.where(hit, -jnp.inf, logits)
    return jnp.logaddexp(jax.nn.logsumexp(logits, axis=-1), chosen) - chosen


def with_targets(few, table, queries, targets):
    """Queries and their targets' vectors, which come with them where a table is not to be asked."""
    return jnp.split(queries, 2, axis=-1) if few else (queries, table[targets])


def gbce(config, items, chosen, logits, counts):
    """Generalised binary cross-entropy (arXiv 2308.07192, section 5)."""
    others = jnp.maximum(items - 1, 1).astype(jnp.float32)
    sampled = jnp.minimum(1.0, config.negatives / others)
    power = sampled * (config.calibration * (1 - 1 / sampled) + 1 / sampled)
    negatives = jnp.where(counts, jax.nn.softplus(logits), 0).sum(-1)
    return power * jax.nn.softplus(-chosen) + negatives


def in_batch(config, popularity, few, table, queries, targets, rows, key):
    """Targets against those of the other rows of the chunk, corrected for popularity by `log_q`."""
    queries, right = with_targets(few, table, queries, targets)
    logits = (queries @ right.T).astype(jnp.float32)
    if config.log_q:
        logits -= jnp.log(jnp.maximum(popularity(targets), 1e-9))
    chosen = jnp.diagonal(logits)
    others = (rows[:, None] != rows) & (rows >= 0) & (targets[:, None] != targets)
    logits = jnp.where(others, logits, -jnp.inf)
    return jnp.logaddexp(jax.nn.logsumexp(logits, axis=-1), chosen) - chosen
