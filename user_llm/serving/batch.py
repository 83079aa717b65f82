"""A batch that goes on for ever, as it lies on the device: whoever joins takes a row of it.

All shapes are static: so many rows of so many positions. Nothing here waits for the device.
"""

from collections.abc import Collection, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from user_llm.inference import sampling, trie
from user_llm.inference.buckets import row_length
from user_llm.inference.catalog import Catalog
from user_llm.inference.generate import Crossed, Generator, State, padded
from user_llm.inference.sampling import Choice, Sampling, add_tokens, choose, seen_tokens
from user_llm.models.layers import Memory

AT_ONCE = (16, 4, 1)  # requests that are read together


class Request(NamedTuple):
    """What is asked for, by one user or by nobody."""

    prompt: Sequence[int]
    max_new_tokens: int
    memory: Memory | Crossed | None = None  # [1, M, W], for the cross-attentions
    prefix: Memory | None = None  # [1, M, W], before the prompt
    sampling: Sampling = Sampling()
    stop: Collection[int] = ()
    items_only: bool = False  # the answer is to be an item of the catalogue

    @property
    def positions(self) -> int:
        """Those that reading prefix and prompt takes, pads included."""
        before = 0 if self.prefix is None else self.prefix.tokens.shape[1]
        return before + row_length(len(self.prompt))

    @property
    def shape(self) -> Hashable:
        """Requests for which it is the same are read together."""
        before = self.prefix and (self.prefix.tokens.shape, str(self.prefix.tokens.dtype))
        return row_length(len(self.prompt)), before


class Rows(NamedTuple):
    """Where R answers stand, beside the decoder's own state."""

    tokens: Int[Array, " R"]  # the last of each
    counts: Int[Array, " R"]  # of each answer's tokens
    choice: Choice
    nodes: Int[Array, " R"]  # of the catalogue's trie; -1: any token may come
    seen: Bool[Array, "R V"] | None  # of prompt and answer, where a row is punished for them


class Batch:
    """A generator's batch of its own.

    Args:
      rows: answers that are under way at most.
      length: positions of a row, those of prefix, prompt and answer together.
      memory_tokens: of a user, at most; where the decoder has cross-attention.
      catalog: of items that answers may have to be.

    Raises:
      ValueError: the catalogue is of another vocabulary, or its items do not all end with one token
        that stands nowhere else in them: without it, an answer would not show where it ends.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        rows: int,
        length: int,
        memory_tokens: int = 0,
        catalog: Catalog | None = None,
    ):
        config = generator.config
        self.generator, self.size, self.catalog = generator, rows, catalog
        self.length = min(row_length(length), config.max_position_embeddings)
        self.memory_tokens = memory_tokens
        if catalog is not None and catalog.end is None:
            raise ValueError("not all items end with one token that stands nowhere else in them")
        if catalog is not None and catalog.vocab_size != config.vocab_size:
            raise ValueError(
                f"the catalogue is of {catalog.vocab_size} tokens, the decoder of "
                f"{config.vocab_size}"
            )
        self.fan = max(catalog.fans) if catalog else 0
        self.nobody = None
        if generator.crosses:
            known = jnp.zeros((1, memory_tokens, config.hidden_size), config.dtype)
            self.nobody = generator.crossed(Memory(known, jnp.zeros(known.shape[:2], bool)))
        self.clear()

    def clear(self) -> None:
        """Begins anew, with nobody in it."""
        self.requests: dict[int, Request] = {}  # by row
        _, one = jax.eval_shape(self.generator.prefill, *padded([[0]]), self.nobody)
        heads = (self.size, *one.caches[0].keys.shape[1:2], self.length)

        def empty(x: Any, shape: tuple[int, ...]) -> Array:
            return jnp.zeros(shape, x.dtype)

        self.state = State(
            caches=jax.tree.map(lambda x: empty(x, (*heads, x.shape[3])), one.caches),
            crossed=jax.tree.map(lambda x: empty(x, (self.size, *x.shape[1:])), one.crossed),
            lengths=jnp.zeros(self.size, jnp.int32),
        )
        none = jnp.zeros(self.size, jnp.int32)
        self.rows = Rows(none, none, Choice.of([Sampling()] * self.size), none - 1, None)

    def prepare(self, request: Request) -> None:
        """Compiles what answers to requests like this one take; nobody may be in the batch.

        Raises:
          ValueError: as `check`.
        """
        self.check(request)
        for size in AT_ONCE:
            if size <= self.size:
                self.join(dict.fromkeys(range(size), request))
                self.step()
                for row in range(size):
                    self.leave(row)
        self.clear()

    def crossed(self, memory: Memory) -> Crossed:
        """What the cross-attentions see of a user's memory, in the size that all here have.

        It is filled up in front, where the memory of a lane's that has no size of its own begins.

        Raises:
          ValueError: the decoder has no use for a memory, or the memory is too large.
        """
        if (known := memory.mask.shape[1]) > self.memory_tokens:
            raise ValueError(f"a memory of {known} tokens is read up to {self.memory_tokens}")
        more = ((0, 0), (self.memory_tokens - known, 0))
        return self.generator.crossed(
            Memory(jnp.pad(memory.tokens, (*more, (0, 0))), jnp.pad(memory.mask, more))
        )

    def check(self, request: Request) -> None:
        """Refuses what cannot be answered.

        Raises:
          ValueError: and why.
        """
        if request.max_new_tokens < 1:
            raise ValueError(
                f"max_new_tokens={request.max_new_tokens} asks for nothing; ask for at least 1"
            )
        memory, width = request.memory, self.generator.config.hidden_size
        self.generator.check([request.prompt], memory, request.prefix, request.max_new_tokens)
        before = int(np.asarray(request.prefix.mask).sum()) if request.prefix else 0
        total = before + len(request.prompt) + request.max_new_tokens
        if total > self.length:
            raise ValueError(
                f"prefix, prompt and answer take {total} positions of {self.length}; shorten the "
                "prompt or ask for fewer new tokens"
            )
        for given in (memory, request.prefix):
            if isinstance(given, Memory) and given.tokens.shape[2] != width:
                raise ValueError(f"vectors of {given.tokens.shape[2]} are given for one of {width}")
        known = memory.mask.shape[1] if memory else 0
        if known > self.memory_tokens:
            raise ValueError(f"a memory of {known} tokens is read up to {self.memory_tokens}")
        if isinstance(memory, Crossed) and shapes(memory) != shapes(self.nobody):
            raise ValueError(
                f"keys and values of {known} tokens of a memory are not those of "
                f"{self.memory_tokens}, as the engine's `crossed` makes them"
            )
        sampling.check([request.sampling])
        if request.items_only:
            self._check_items(request)

    def _check_items(self, request: Request) -> None:
        catalog, stop = self.catalog, set(request.stop)
        if catalog is None:
            raise ValueError("there is no catalogue that the answer could be an item of")
        if request.max_new_tokens < (longest := len(catalog.fans)):
            raise ValueError(
                f"max_new_tokens={request.max_new_tokens} would cut items, which take up to "
                f"{longest} with their end; ask for at least {longest}"
            )
        if catalog.end not in stop:
            raise ValueError(f"stop lacks token {catalog.end}, which items end with")
        if cut := sorted(stop & catalog.within):
            raise ValueError(f"stop has tokens {cut}, which stand within items")

    def join(self, requests: dict[int, Request]) -> Int[Array, " N"]:
        """Reads requests of one shape into free rows, by their numbers; the first token of each.

        For each number of requests there is another program: let it be one of `AT_ONCE`.
        """
        self.requests |= requests
        given = [*requests.values()]
        tokens, lengths = padded([request.prompt for request in given])
        memory = prefix = None
        if self.generator.crosses:
            memory = together([self._memory(request) for request in given])
        if given[0].prefix is not None:
            prefix = together([request.prefix for request in given])
        logits, read = self.generator.prefill(tokens, lengths, memory, prefix)
        if self.rows.seen is None and any(map(punished, given)):
            self.rows = self.rows._replace(seen=jnp.zeros((self.size, logits.shape[1]), bool))
        choice = Choice.of([request.sampling for request in given])
        nodes = np.array([0 if request.items_only else -1 for request in given], np.int32)
        places = np.array([*requests], np.int32)
        arriving = (logits, read, tokens, lengths, choice, nodes, places)
        self.state, self.rows, first = _joined(
            self.state, self.rows, arriving, self._table(given), self.fan
        )
        return first

    def step(self) -> Int[Array, " R"]:
        """One more token to each row."""
        logits, self.state = self.generator.step(self.state, self.rows.tokens)
        self.rows = _chosen(logits, self.rows, self._table(self.requests.values()), self.fan)
        return self.rows.tokens

    def leave(self, row: int) -> None:
        """Makes a row free, and what nobody else needs is no longer computed."""
        left = self.requests.pop(row)
        if left.sampling.temperature > 0:
            self.rows = _cooled(self.rows, row)
        if not any(map(punished, self.requests.values())):
            self.rows = self.rows._replace(seen=None)

    def _memory(self, request: Request) -> Crossed | None:
        if isinstance(request.memory, Memory):
            return self.crossed(request.memory)
        return self.nobody if request.memory is None else request.memory

    def _table(self, requests: Collection[Request]) -> trie.Table | None:
        """The catalogue's, if one of the requests is held to it."""
        if self.catalog is None or not any(request.items_only for request in requests):
            return None
        return self.catalog.table


def punished(request: Request) -> bool:
    """Whether an answer depends on which tokens were there before."""
    return request.sampling.repetition_penalty != 1


def shapes(x: Any) -> Any:
    """The shapes and types of a tree's arrays, and how it is built."""
    leaves, built = jax.tree.flatten(x)
    return [(leaf.shape, leaf.dtype) for leaf in leaves], built


def together(parts: Sequence[Any]) -> Any:
    """Trees of arrays for one user each as one for all."""
    return parts[0] if len(parts) == 1 else _together(parts)


@jax.jit
def _together(parts):
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


@partial(jax.jit, static_argnums=3)
def _chosen(logits, rows, table, fan):
    """The rows with one more token."""
    if table is not None:
        free = trie.allowed(table, rows.nodes, fan, logits.shape[1])
        logits = jnp.where(free, logits, -jnp.inf)
    tokens = choose(logits, rows.choice, rows.counts, rows.seen)
    nodes = rows.nodes if table is None else trie.stepped(table, rows.nodes, tokens, fan)
    seen = None if rows.seen is None else add_tokens(rows.seen, tokens)
    return Rows(tokens, rows.counts + 1, rows.choice, nodes, seen)


@partial(jax.jit, static_argnums=4, donate_argnums=0)
def _joined(state, rows, arriving, table, fan):
    """State and rows with those who arrive at their places, and the first token of each."""
    logits, read, tokens, lengths, choice, nodes, places = arriving
    seen = None if rows.seen is None else seen_tokens(logits, tokens, lengths)
    none = jnp.zeros_like(lengths)
    fresh = _chosen(logits, Rows(none, none, choice, nodes, seen), table, fan)

    def keep(whole, own):
        own = own[:, :, : state.slots]
        return whole.at[places, :, : own.shape[2]].set(own)

    def put(whole, own):
        return whole.at[places].set(own)

    caches = jax.tree.map(keep, state.caches, read.caches)
    rest = jax.tree.map(put, state[1:], read[1:])
    return State(caches, *rest), jax.tree.map(put, rows, fresh), fresh.tokens


@jax.jit
def _cooled(rows, row):
    """The rows, of which one draws no longer."""
    cold = rows.choice.temperature.at[row].set(0)
    return rows._replace(choice=rows.choice._replace(temperature=cold))
