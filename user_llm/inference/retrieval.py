"""Items for queries out of catalogues of any size: the best ones, and how a given one ranks.

Scores are made for a tile of users and a tile of items at a time, so memory is bounded.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from user_llm.data.features import KNOWN

TILE = 16_384  # items


@partial(jax.jit, static_argnames="tile")
def rank(
    queries: Float[Array, "B Q"],
    table: Float[Array, "V Q"],
    seen: Int[Array, "B H"],
    target: Int[Array, " B"],
    tile: int = TILE,
) -> Int[Array, " B"]:
    """How many items that are not seen stand before the target, plus one.

    Equals stand before it, and so does everything where scores are not numbers. What is no item
    (ids below `KNOWN`) does not count; 0 fills `seen` up.
    """
    scores, starts = tiles(queries, table, tile)

    def find(own, start):
        local = target - start
        inside = (local >= 0) & (local < tile)
        found = jnp.take_along_axis(scores(start), jnp.clip(local, 0, tile - 1)[:, None], 1)[:, 0]
        return jnp.where(inside, found, own), None

    # By the same products as its rivals' scores: any others could differ in the last bit.
    own, _ = jax.lax.scan(find, jnp.zeros(len(queries)), starts)

    def count(before, start):
        rivals = allowed(seen, start, tile, len(table))
        rivals &= start + jnp.arange(tile) != target[:, None]
        return before + (rivals & ~(scores(start) < own[:, None])).sum(1), None

    before, _ = jax.lax.scan(count, jnp.zeros(len(queries), jnp.int32), starts)
    return 1 + before


@partial(jax.jit, static_argnames=("count", "tile"))
def best(
    queries: Float[Array, "B Q"],
    table: Float[Array, "V Q"],
    seen: Int[Array, "B H"],
    count: int,
    tile: int = TILE,
) -> tuple[Int[Array, "B K"], Float[Array, "B K"]]:
    """The best items that are not seen, and their scores; -1 and -inf where none is left."""
    scores, starts = tiles(queries, table, tile)

    def merge(kept, start):
        items = jnp.broadcast_to(start + jnp.arange(tile, dtype=jnp.int32), (len(queries), tile))
        fresh = jnp.where(allowed(seen, start, tile, len(table)), scores(start), -jnp.inf)
        both = jnp.concatenate([kept[1], fresh], axis=1)
        points, chosen = jax.lax.top_k(both, count)
        return (jnp.take_along_axis(jnp.concatenate([kept[0], items], 1), chosen, 1), points), None

    none = jnp.full((len(queries), count), -1, jnp.int32)
    (items, points), _ = jax.lax.scan(merge, (none, jnp.full(none.shape, -jnp.inf)), starts)
    return jnp.where(jnp.isfinite(points), items, -1), points


def tiles(queries, table, tile):
    """A function from a tile's first item to the scores [B, tile], and the first items."""
    count = -(-len(table) // tile)
    padded = jnp.pad(table, ((0, count * tile - len(table)), (0, 0)))

    def scores(start):
        return queries @ jax.lax.dynamic_slice_in_dim(padded, start, tile).T

    return scores, jnp.arange(count, dtype=jnp.int32) * tile


def allowed(seen, start, tile, size) -> Bool[Array, "B tile"]:
    """Which items of a tile may be recommended."""
    ids = start + jnp.arange(tile)
    there = (ids >= KNOWN) & (ids < size)
    local = jnp.where(seen >= start, seen - start, tile)  # what lies before must not wrap around
    rows = jnp.arange(len(seen))[:, None]
    hidden = jnp.zeros((len(seen), tile), bool).at[rows, local].set(True, mode="drop")
    return there & ~hidden
