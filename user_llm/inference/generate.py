"""Tokens from a decoder, one after the other: prefill and decode as two programs."""

from collections import abc
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from user_llm.inference.buckets import bucket, row_length
from user_llm.inference.sampling import Choice, Sampling, add_tokens, choose, seen_tokens
from user_llm.models.attention import Cache, KVCache
from user_llm.models.decoder import Decoder, Views, placed
from user_llm.models.layers import Memory

NO_USE = "the decoder has no cross-attention for a memory; give it as prefix"


class Graph:
    """A decoder but for its parameters, as compiled programs are told apart by it.

    Its hash is known: to make nnx's own takes milliseconds, at every step.
    """

    def __init__(self, graphdef: nnx.GraphDef):
        self._graphdef, self._hash = graphdef, hash(graphdef)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Graph) and self._graphdef == other._graphdef)

    def merge(self, params: Any) -> Any:
        return nnx.merge(self._graphdef, params)


class Crossed(NamedTuple):
    """A memory as the cross-attentions see it, the same at every step."""

    layers: list[Any]  # a KVCache [B, K, M, H] each, or one for each stream
    mask: Bool[Array, "B M"]

    @property
    def nbytes(self) -> int:
        """The bytes of all its arrays."""
        return sum(x.nbytes for x in jax.tree.leaves(self))


class State(NamedTuple):
    """Where a batch of answers stands: slot s of a cache holds position s."""

    caches: list[KVCache]  # one per layer
    crossed: Crossed | None
    lengths: Int[Array, " B"]  # of prompt and answer so far, so the next token's position

    @property
    def slots(self) -> int:
        return self.caches[0].keys.shape[2]


class Generator:
    """A decoder ready to answer: compiled once per bucket of batch and length.

    Prompts are padded on the right. A pad's slot is overwritten by the answer before any position
    could see it, so an answer does not depend on the other prompts of its batch.

    Args:
      int8: holds the kernels of all projections in int8, with one scale for each of their outputs:
        a quarter or half of the memory, for a little of the quality.
    """

    def __init__(self, decoder: Decoder, *, int8: bool = False):
        self.config = decoder.config
        self.crosses = decoder.cross is not None
        unstacked = jax.jit(Decoder.unstacked, static_argnames="int8")
        graphdef, state = nnx.split(unstacked(decoder, int8=int8))
        self.graph = Graph(graphdef)
        self.params = nnx.to_pure_dict(state)

    def crossed(self, memory: Memory) -> Crossed:
        """What the cross-attentions see of a memory, to be kept for as long as the memory is.

        Raises:
          ValueError: the decoder has no use for a memory.
        """
        if not self.crosses:
            raise ValueError(NO_USE)
        return _crossed(self.graph, self.params, memory)

    def prefill(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, " B"],
        memory: Memory | Crossed | None = None,
        prefix: Memory | None = None,
    ) -> tuple[Float[Array, "B V"], State]:
        """Logits of the first new token, and the state after the prompt.

        The cross-attentions read `memory`, or what `crossed` made of it; the tokens of `prefix`
        stand before the prompt, but for those that its mask leaves out: a prompt may place them
        itself (see `decoder.placed`).
        """
        return _prefill(self.graph, self.params, tokens, lengths, memory, prefix)

    def step(self, state: State, tokens: Int[Array, " B"]) -> tuple[Float[Array, "B V"], State]:
        """Logits of the token after `tokens`, and the state with them; `state` is used up.

        Every length must be below `state.slots`; `grow` makes room.
        """
        return _step(self.graph, self.params, state, tokens)

    def extend(
        self, state: State, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], State]:
        """Logits after more of the prompts, and the state with them; `state` is used up.

        So what prompts begin with is kept and not computed anew: the state that comes back, with
        the lengths of before, is the one that was given. No length may exceed `state.slots`.
        """
        return _extend(self.graph, self.params, state, tokens, lengths)

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        memory: Memory | Crossed | None = None,
        prefix: Memory | None = None,
        new_tokens: int = 1,
    ) -> tuple[Float[Array, "B V"], State]:
        """`prefill` of prompts as lists.

        Raises:
          ValueError: a prompt is empty, too long for `new_tokens` more, or names a token outside of
            the vocabulary; the memory is of another batch size or the decoder has no use for it.
        """
        self.check(prompts, memory, prefix, new_tokens)
        return self.prefill(*padded(prompts), memory, prefix)

    def check(
        self,
        prompts: Sequence[Sequence[int]],
        memory: Memory | Crossed | None,
        prefix: Memory | None,
        new_tokens: int,
    ) -> None:
        """Refuses what cannot be answered.

        Raises:
          ValueError: as `start`.
        """
        problems = []
        known = prefix.tokens.shape[1] if prefix else 0
        standing = np.asarray(prefix.mask).sum(1).tolist() if prefix else []
        limit = self.config.max_position_embeddings
        for i, prompt in enumerate(prompts):
            before = standing[i] if i < len(standing) else 0
            if not before and not len(prompt):
                problems.append(f"prompt {i} is empty")
            if (total := before + len(prompt) + new_tokens) > limit:
                problems.append(
                    f"prompt {i} with prefix and answer takes {total} positions of {limit}; "
                    "shorten it or ask for fewer new tokens"
                )
            if odd := [x for x in prompt if not -known <= x < self.config.vocab_size]:
                problems.append(f"prompt {i} has tokens {odd} outside of the vocabulary")
        for name, given in (("memory", memory), ("prefix", prefix)):
            if given and len(given.mask) != len(prompts):
                problems.append(f"{name} is of {len(given.mask)} users for {len(prompts)} prompts")
        if memory and not self.crosses:
            problems.append(NO_USE)
        if not prompts:
            problems.append("there is no prompt")
        if problems:
            raise ValueError("; ".join(problems))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Collection[int] = (),
        memory: Memory | Crossed | None = None,
        prefix: Memory | None = None,
        sampling: Sampling | Sequence[Sampling] = Sampling(),
    ) -> list[list[int]]:
        """Each prompt's answer, without the stop token that may have ended it.

        Raises:
          ValueError: as `stream`.
        """
        answers = [[] for _ in prompts]
        for tokens in self.stream(
            prompts,
            max_new_tokens=max_new_tokens,
            stop=stop,
            memory=memory,
            prefix=prefix,
            sampling=sampling,
        ):
            for row, token in tokens.items():
                answers[row].append(token)
        return answers

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Collection[int] = (),
        memory: Memory | Crossed | None = None,
        prefix: Memory | None = None,
        sampling: Sampling | Sequence[Sampling] = Sampling(),
    ) -> abc.Generator[dict[int, int], Collection[int] | None, None]:
        """The next token of each prompt whose answer goes on, by its row; step after step.

        Rows that are sent to it end there. The next step is under way before a step's tokens are
        handed out, so that the host's work with them costs nothing.

        Raises:
          ValueError: as `start`, or there is not one `sampling` for all or for each prompt.
        """
        how = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        if len(how) != len(prompts):
            raise ValueError(f"{len(how)} samplings for {len(prompts)} prompts")
        self.check(prompts, memory, prefix, max_new_tokens)
        choice = Choice.of(how)
        logits, state = self.start(prompts, memory, prefix, max_new_tokens)
        seen, longest = None, int(state.lengths.max())
        if any(one.repetition_penalty != 1 for one in how):
            seen = seen_tokens(logits, *padded(prompts))
        unfinished = set(range(len(prompts)))
        for count in range(max_new_tokens):
            tokens = choose(logits, choice, count, seen)
            if count + 1 < max_new_tokens:
                if longest + count == state.slots:
                    state = grow(state, bucket(state.slots + 1))
                logits, state = self.step(state, tokens)
                if seen is not None:
                    seen = add_tokens(seen, tokens)
            found = {row: token for row, token in enumerate(tokens.tolist()) if row in unfinished}
            unfinished -= {row for row, token in found.items() if token in stop}
            ended = yield {row: token for row, token in found.items() if row in unfinished}
            unfinished -= set(ended or ())
            if not unfinished:
                return


def padded(prompts: Sequence[Sequence[int]]) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """Prompts as one array, in a length of few, and how long each is."""
    lengths = [len(prompt) for prompt in prompts]
    tokens = np.zeros((len(prompts), row_length(max(lengths))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.asarray(tokens), jnp.array(lengths, jnp.int32)


def forward(
    decoder: Any,  # a Decoder, unstacked
    x: Float[Array, "B T D"],
    views: Views,
    caches: Sequence[Cache | None],
    crossed: Crossed | None,
) -> tuple[Float[Array, "B T D"], list[Any]]:
    """The last hidden states of an unstacked decoder, and each layer's cache with them."""
    every, written = len(decoder.layers) // decoder.groups, []
    for i, (block, cache) in enumerate(zip(decoder.layers, caches, strict=True)):
        x, cache = block(x, *views.of(decoder.config.slides[i]), cache=cache)
        written.append(cache)
        if crossed and (i + 1) % every == 0:
            x = decoder.cross[i // every](x, crossed.layers[i // every], crossed.mask)
    return decoder.norm(x), written


def _of_memory(decoder: Any, memory: Memory) -> Crossed:
    memory = Memory(memory.tokens.astype(decoder.config.dtype), memory.mask)
    return Crossed([cross.keys_values(memory) for cross in decoder.cross], memory.mask)


@partial(jax.jit, static_argnums=0)
def _crossed(graph, params, memory):
    return _of_memory(graph.merge(params), memory)


@partial(jax.jit, static_argnums=0)
def _prefill(graph, params, tokens, lengths, memory, prefix):
    decoder = graph.merge(params)
    x, real = decoder.embed(tokens), jnp.arange(tokens.shape[1]) < lengths[:, None]
    if prefix is not None:
        x = placed(x, tokens, prefix)
        x = jnp.concatenate([prefix.tokens.astype(x.dtype), x], axis=1)
        real = jnp.concatenate([prefix.mask, real], axis=1)
        order = jnp.argsort(~real, axis=1, stable=True)  # positions have no holes
        x, lengths = jnp.take_along_axis(x, order[..., None], axis=1), real.sum(1)
    crossed = _of_memory(decoder, memory) if isinstance(memory, Memory) else memory
    views = decoder.views(np.arange(x.shape[1])[None])
    x, caches = forward(decoder, x, views, [None] * len(decoder.layers), crossed)
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return decoder.logits(last), State(caches, crossed, lengths)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _step(graph, params, state, tokens):
    decoder = graph.merge(params)
    x, caches = _further(decoder, state, tokens[:, None])
    return decoder.logits(x[:, 0]), State(caches, state.crossed, state.lengths + 1)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _extend(graph, params, state, tokens, lengths):
    decoder = graph.merge(params)
    x, caches = _further(decoder, state, tokens)
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return decoder.logits(last), State(caches, state.crossed, state.lengths + lengths)


def _further(decoder, state, tokens):
    """The last hidden states of tokens [B, T] that follow a state, and the caches with them."""
    positions = state.lengths[:, None] + jnp.arange(tokens.shape[1])
    mask = jnp.arange(state.slots) <= positions[..., None]
    views = decoder.views(positions, mask)
    return forward(decoder, decoder.embed(tokens), views, state.caches, state.crossed)


@partial(jax.jit, static_argnums=1)
def grow(state: State, slots: int) -> State:
    """The same state with room for that many positions."""
    more = ((0, 0), (0, 0), (0, slots - state.slots), (0, 0))
    return state._replace(caches=jax.tree.map(lambda x: jnp.pad(x, more), state.caches))
