"""Decoding that can only name items of a catalogue: a beam over the trie of their tokens."""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from user_llm.inference import trie
from user_llm.inference.beams import extend, reorder, top_k
from user_llm.inference.buckets import bucket
from user_llm.inference.generate import Generator
from user_llm.models.layers import Memory


class Catalog:
    """Items as sequences of tokens, compiled to a table on the device.

    Items of the same tokens share a leaf. A title may begin with all of another one; to end there
    costs the shorter one nothing, which favours it, unless all sequences end with one same token.
    """

    def __init__(
        self, sequences: Sequence[Sequence[int]] | Int[np.ndarray, "I L"], vocab_size: int
    ):
        """Compiles the sequences.

        Raises:
          ValueError: there is no sequence, or some are empty or name tokens outside of the
            vocabulary; the first offenders by their index.
        """
        tokens, lengths = trie.flatten(sequences, vocab_size)
        self.table, self.fans = trie.compile_trie(tokens, lengths, vocab_size)
        self.order = np.asarray(self.table.items)
        self.vocab_size = vocab_size

    @cached_property
    def end(self) -> int | None:
        """The token that all items end with; None where they end with others or go on behind it."""
        last = np.asarray(self.table.token)[np.asarray(self.table.degree) == 0]
        same = last[0] >= 0 and (last == last[0]).all() and last[0] not in self.within
        return int(last[0]) if same else None

    @cached_property
    def within(self) -> frozenset[int]:
        """The tokens that an item goes on behind."""
        inner = np.asarray(self.table.token)[np.asarray(self.table.degree) > 0]
        return frozenset(np.unique(inner).tolist()) - {-1}

    @classmethod
    def of_tokens(cls, first: int, size: int) -> "Catalog":
        """Items that are a token each: those from `first` to the end of the vocabulary."""
        return cls(np.arange(first, size)[:, None], size)

    def __len__(self) -> int:
        return len(self.order)


class Beams(NamedTuple):
    """The best prefixes found for each user, unfinished ones first."""

    nodes: Int[Array, "B W"]
    scores: Float[Array, "B W"]  # log-probability of the tokens so far; -inf: no prefix
    parents: Int[Array, "B W"]  # the column that an unfinished one continues
    tokens: Int[Array, "B W"]  # the last of each

    @staticmethod
    def start(batch: int, beam: int) -> "Beams":
        """One prefix each, the root."""
        none = jnp.zeros((batch, beam), jnp.int32)
        return Beams(none, jnp.full((batch, beam), -jnp.inf).at[:, 0].set(0.0), none, none)


def beam_search(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    catalog: Catalog,
    *,
    beam: int,
    memory: Memory | None = None,
    prefix: Memory | None = None,
    exclude: Bool[np.ndarray, "*rows I"] | None = None,
) -> tuple[Int[np.ndarray, "B W"], Float[np.ndarray, "B W"]]:
    """The items that the decoder most probably names after each prompt, best first.

    A score is the log-probability of an item's tokens under the full softmax. Finished and
    unfinished prefixes compete for the same `beam` places, so a beam as wide as the catalogue is
    exact. An excluded item takes no place: a prefix that leads to no other is never entered. Items
    of equal score come by number; where items run out, -1 with a score of -inf fills up.

    Args:
      exclude: True for the items that a user is not to be given, such as those seen: a row for each
        prompt, or one for all.

    Raises:
      ValueError: as `Generator.start`, or `exclude` is not of as many prompts and items.
    """
    before = None
    if exclude is not None:
        if np.atleast_2d(exclude).shape not in {(n, len(catalog)) for n in (1, len(prompts))}:
            wanted = f"{(len(prompts), len(catalog))} or {(len(catalog),)}"
            raise ValueError(f"exclude has shape {exclude.shape}, prompts and items want {wanted}")
        exclude = np.atleast_2d(exclude)
        before = allowed_before(exclude, catalog.table.items)
    logits, state = generator.start(prompts, memory, prefix, len(catalog.fans))
    beams, logits, layers = Beams.start(len(prompts), beam), logits[:, None], None
    following = catalog.table.inner[0]
    for depth, fan in enumerate(catalog.fans):
        most, (beams, following) = following, select(catalog.table, before, beams, logits, fan)
        # What the step before has told is there to read while this one is under way.
        if not (most := int(most)):
            break
        width = narrowed(beam, most)
        layers = reorder(state, layers, beams.parents, width, bucket(depth + 1))
        logits, layers = extend(generator, state, layers, beams.tokens, depth)
    return _items(catalog, beams, exclude)


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


@jax.jit
def allowed_before(exclude, items):
    """How many items that are not excluded lie before each place of the lexicographic order."""
    kept = ~exclude[:, items]
    return jnp.pad(kept.cumsum(1, dtype=jnp.int32), ((0, 0), (1, 0)))


@partial(jax.jit, static_argnums=4)
def select(table, before, beams, logits, fan):
    """One step down the trie, and how many prefixes a user can have left unfinished by the next."""
    nodes, scores = (x[:, : logits.shape[1]] for x in beams[:2])  # those that logits continue
    gains = trie.edges(table, nodes, logits.astype(jnp.float32), fan, before)
    every = (scores[..., None] + gains).reshape(len(nodes), -1)
    extended, places = top_k(every, min(beams.nodes.shape[1], every.shape[1]))
    parents, edge = jnp.divmod(places, gains.shape[-1])
    children = trie.follow(table, jnp.take_along_axis(nodes, parents, axis=1), edge, fan)
    finished = jnp.where(table.degree[beams.nodes] == 0, beams.scores, -jnp.inf)

    def both(extended, finished):
        return jnp.concatenate([extended, finished], axis=1)

    scores, best = top_k(both(extended, finished), beams.nodes.shape[1])
    nodes = jnp.take_along_axis(both(children, beams.nodes), best, axis=1)
    parents = jnp.take_along_axis(both(parents, jnp.zeros_like(beams.nodes)), best, axis=1)
    unfinished = jnp.isfinite(scores) & (table.degree[nodes] > 0)
    order = jnp.argsort(~unfinished, axis=1, stable=True)
    columns = (nodes, scores, parents, table.token[nodes])
    beams = Beams(*(jnp.take_along_axis(x, order, axis=1) for x in columns))
    return beams, jnp.where(unfinished, table.inner[nodes], 0).sum(1).max()


def narrowed(beam: int, most: int) -> int:
    """A half, a quarter ... of the beam that still has room for `most`: few widths to compile."""
    while beam // 2 >= most:
        beam //= 2
    return beam


def _items(catalog, beams, exclude):
    """The items at the leaves, best first."""
    table, (batch, beam) = catalog.table, beams.nodes.shape
    high = jnp.where(jnp.isfinite(beams.scores), table.high[beams.nodes], 0)
    found = (table.low[beams.nodes], high, beams.scores)
    items = np.full((batch, beam), -1, np.int32)
    scores = np.full((batch, beam), -np.inf, np.float32)
    for row, leaves in enumerate(zip(*map(np.asarray, found), strict=True)):
        ranked = []
        for first, last, value in zip(*leaves, strict=True):
            alike = catalog.order[first:last]
            if exclude is not None:
                alike = alike[~exclude[row % len(exclude), alike]]
            ranked += [(-value, item) for item in alike[:beam]]
        for column, (value, item) in enumerate(sorted(ranked)[:beam]):
            items[row, column], scores[row, column] = item, -value
    return items, scores
