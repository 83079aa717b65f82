"""Text from a decoder, token by token: prefill, decode, sampling."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from user_llm.inference.buckets import bucket
from user_llm.models.attention import Cache, KVCache
from user_llm.models.decoder import Decoder, Views
from user_llm.models.layers import Memory


class Crossed(NamedTuple):
    """A memory as the cross-attentions see it, the same at every step."""

    layers: list[KVCache]
    mask: Bool[Array, "B M"]


class State(NamedTuple):
    """Where a batch of answers stands: slot s of a cache holds position s."""

    caches: list[KVCache]  # one per layer
    crossed: Crossed | None
    lengths: Int[Array, " B"]  # of prompt and answer so far, so the next token's position

    @property
    def slots(self) -> int:
        return self.caches[0].keys.shape[2]


class Sampling(NamedTuple):
    """How an answer's tokens are chosen; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Generator:
    """A decoder ready to answer: compiled once per bucket of batch and length.

    Prompts are padded on the right. A pad's slot is overwritten by the answer before any position
    could see it, so an answer does not depend on the other prompts of its batch.
    """

    def __init__(self, decoder: Decoder):
        self.config = decoder.config
        self.crosses = decoder.cross is not None
        self.graphdef, state = nnx.split(jax.jit(Decoder.unstacked)(decoder))
        self.params = nnx.to_pure_dict(state)

    def prefill(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, " B"],
        memory: Memory | None = None,
        prefix: Memory | None = None,
    ) -> tuple[Float[Array, "B V"], State]:
        """Logits of the first new token, and the state after the prompt.

        The cross-attentions read `memory`; the tokens of `prefix` stand before the prompt.
        """
        return _prefill(self.graphdef, self.params, tokens, lengths, memory, prefix)

    def step(self, state: State, tokens: Int[Array, " B"]) -> tuple[Float[Array, "B V"], State]:
        """Logits of the token after `tokens`, and the state with them; `state` is used up.

        Every length must be below `state.slots`; `grow` makes room.
        """
        return _step(self.graphdef, self.params, state, tokens)

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        memory: Memory | None = None,
        prefix: Memory | None = None,
        new_tokens: int = 1,
    ) -> tuple[Float[Array, "B V"], State]:
        """`prefill` of prompts as lists.

        Raises:
          ValueError: a prompt is empty, too long for `new_tokens` more, or names a token outside of
            the vocabulary; the memory is of another batch size or the decoder has no use for it.
        """
        self._check(prompts, memory, prefix, new_tokens)
        lengths = [len(prompt) for prompt in prompts]
        tokens = np.zeros((len(prompts), bucket(max(lengths))), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        return self.prefill(jnp.asarray(tokens), jnp.array(lengths, jnp.int32), memory, prefix)

    def _check(self, prompts, memory, prefix, new_tokens) -> None:
        problems = []
        before = prefix.tokens.shape[1] if prefix else 0
        limit = self.config.max_position_embeddings
        for i, prompt in enumerate(prompts):
            if not before and not len(prompt):
                problems.append(f"prompt {i} is empty")
            if (total := before + len(prompt) + new_tokens) > limit:
                problems.append(
                    f"prompt {i} with prefix and answer takes {total} positions of {limit}; "
                    "shorten it or ask for fewer new tokens"
                )
            if odd := [x for x in prompt if not 0 <= x < self.config.vocab_size]:
                problems.append(f"prompt {i} has tokens {odd} outside of the vocabulary")
        for name, given in (("memory", memory), ("prefix", prefix)):
            if given and len(given.tokens) != len(prompts):
                problems.append(
                    f"{name} is of {len(given.tokens)} users for {len(prompts)} prompts"
                )
        if memory and not self.crosses:
            problems.append("the decoder has no cross-attention for a memory; give it as prefix")
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
        memory: Memory | None = None,
        prefix: Memory | None = None,
        sampling: Sampling | Sequence[Sampling] = Sampling(),
    ) -> list[list[int]]:
        """Each prompt's answer, without the stop token that may have ended it.

        Raises:
          ValueError: as `start`, or there is not one `sampling` for all or for each prompt.
        """
        how = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        if len(how) != len(prompts):
            raise ValueError(f"{len(how)} samplings for {len(prompts)} prompts")
        logits, state = self.start(prompts, memory, prefix, max_new_tokens)
        temperature = jnp.array([x.temperature for x in how], jnp.float32)
        top_p = jnp.array([x.top_p for x in how], jnp.float32)
        keys = jax.vmap(jax.random.key)(jnp.array([x.seed for x in how], jnp.uint32))
        longest = int(state.lengths.max())
        answers, unfinished = [[] for _ in prompts], set(range(len(prompts)))
        for count in range(max_new_tokens):
            tokens = sample(logits, temperature, top_p, fold_in(keys, count))
            for i, token in enumerate(tokens.tolist()):
                if token in stop:
                    unfinished.discard(i)
                elif i in unfinished:
                    answers[i].append(token)
            if not unfinished or count + 1 == max_new_tokens:
                break
            if longest + count == state.slots:
                state = grow(state, bucket(state.slots + 1))
            logits, state = self.step(state, tokens)
        return answers


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


@partial(jax.jit, static_argnums=0)
def _prefill(graphdef, params, tokens, lengths, memory, prefix):
    decoder = nnx.merge(graphdef, params)
    x, real = decoder.embed(tokens), jnp.arange(tokens.shape[1]) < lengths[:, None]
    if prefix is not None:
        x = jnp.concatenate([prefix.tokens.astype(x.dtype), x], axis=1)
        real = jnp.concatenate([prefix.mask, real], axis=1)
        order = jnp.argsort(~real, axis=1, stable=True)  # positions have no holes
        x, lengths = jnp.take_along_axis(x, order[..., None], axis=1), real.sum(1)
    crossed = None
    if memory is not None:
        memory = Memory(memory.tokens.astype(x.dtype), memory.mask)
        crossed = Crossed([cross.keys_values(memory) for cross in decoder.cross], memory.mask)
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    causal = jnp.tril(jnp.ones((1, x.shape[1], x.shape[1]), bool))
    views = decoder.views(positions, causal)
    x, caches = forward(decoder, x, views, [None] * len(decoder.layers), crossed)
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return decoder.logits(last), State(caches, crossed, lengths)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _step(graphdef, params, state, tokens):
    decoder = nnx.merge(graphdef, params)
    positions = state.lengths[:, None]
    mask = jnp.arange(state.slots) <= positions[..., None]
    x = decoder.embed(tokens[:, None])
    x, caches = forward(decoder, x, decoder.views(positions, mask), state.caches, state.crossed)
    return decoder.logits(x[:, 0]), State(caches, state.crossed, state.lengths + 1)


@partial(jax.jit, static_argnums=1)
def grow(state: State, slots: int) -> State:
    """The same state with room for that many positions."""
    more = ((0, 0), (0, 0), (0, slots - state.slots), (0, 0))
    return state._replace(caches=jax.tree.map(lambda x: jnp.pad(x, more), state.caches))


@jax.jit
def fold_in(keys: Key[Array, " B"], count: Int[Array, ""] | int) -> Key[Array, " B"]:
    """A key per request and step, so that a request's answer depends on its own seed alone."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, count)


@jax.jit
def sample(
    logits: Float[Array, "B V"],
    temperature: Float[Array, " B"],
    top_p: Float[Array, " B"],
    keys: Key[Array, " B"],
) -> Int[Array, " B"]:
    """A token per row out of the fewest that hold `top_p` of it (arXiv 1904.09751, section 3.1)."""
    logits = logits.astype(jnp.float32)
    best = logits.argmax(-1).astype(jnp.int32)

    def nucleus(_):
        order = jnp.argsort(-logits, axis=-1)
        warm = jnp.where(temperature > 0, temperature, 1)[:, None]
        ranked = jnp.take_along_axis(logits, order, axis=-1) / warm
        share = jax.nn.softmax(ranked, axis=-1)
        ranked = jnp.where(share.cumsum(-1) - share < top_p[:, None], ranked, -jnp.inf)
        rank = jax.vmap(jax.random.categorical)(keys, ranked)
        chosen = jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0]
        return jnp.where(temperature > 0, chosen.astype(jnp.int32), best)

    return jax.lax.cond((temperature > 0).any(), nucleus, lambda _: best, None)
