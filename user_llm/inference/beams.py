"""Beams: several answers to one prompt, which share its keys and values."""

import heapq
from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from user_llm.inference.buckets import bucket
from user_llm.inference.generate import Generator, State, forward
from user_llm.models.attention import KVCache, capped
from user_llm.models.layers import Memory

BLOCK = 128  # of values among which the greatest is looked for first

Layers = list[tuple[Array, Array]]  # of each beam's own tokens, as in BeamCache


class Answer(NamedTuple):
    """An answer's tokens, and their mean log-probability where `length_penalty` is 1."""

    tokens: list[int]
    score: float


def beam_search(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    max_new_tokens: int,
    stop: Collection[int] = (),
    length_penalty: float = 1.0,
    memory: Memory | None = None,
    prefix: Memory | None = None,
) -> list[list[Answer]]:
    """For each prompt the best `beams` answers that the search meets, best first.

    A score is the log-probability of an answer, its stop token included, divided by its length to
    the power of `length_penalty`. An answer ends the search where no unfinished one is better at
    its present length, as transformers' with `early_stopping=False`.

    Raises:
      ValueError: as `Generator.start`, or there are no beams.
    """
    most = generator.config.vocab_size - len(stop)
    if not 0 < beams <= most:
        raise ValueError(f"beams={beams} must be between 1 and {most}, the tokens to go on with")
    logits, state = generator.start(prompts, memory, prefix, max_new_tokens)
    searches = [Search(beams, stop, length_penalty) for _ in prompts]
    scores, logits, layers = jnp.zeros((len(prompts), 1)), logits[:, None], None
    # Each beam may end by any stop token; as many continuations must be left to go on with.
    wide, size = beams * (1 + len(stop)), generator.config.vocab_size
    for count in range(max_new_tokens):
        best = [
            np.asarray(x) for x in continuations(logits, scores, min(wide, logits.shape[1] * size))
        ]
        last = count + 1 == max_new_tokens
        chosen = [one.go_on(*(x[row] for x in best), last=last) for row, one in enumerate(searches)]
        if last or all(search.ended for search in searches):
            break
        parents, tokens, scores = (jnp.stack(x) for x in zip(*chosen, strict=True))
        layers = reorder(state, layers, parents, beams, bucket(count + 1))
        logits, layers = extend(generator, state, layers, tokens, count)
    return [search.finished for search in searches]


class Search:
    """What the search for one prompt's answers has found."""

    def __init__(self, beams: int, stop: Collection[int], length_penalty: float):
        self.beams, self.stop, self.length_penalty = beams, stop, length_penalty
        self.running: list[list[int]] = [[]]
        self.finished: list[Answer] = []
        self.ended = False

    def go_on(self, scores: np.ndarray, parents: np.ndarray, tokens: np.ndarray, *, last: bool):
        """Takes the best continuations; says which to go on with: parents, tokens, scores.

        A continuation ends its answer only if it is among the first `beams` of all. Those of the
        last step all do.
        """
        running, kept = [], []
        best = zip(scores.tolist(), parents.tolist(), tokens.tolist(), strict=True)
        for place, (score, parent, token) in enumerate(best):
            text = [*self.running[parent], token]
            if not last and token not in self.stop:
                if len(running) < self.beams:
                    running.append(text)
                    kept.append(place)
            elif place < self.beams and not self.ended:
                own = text[:-1] if token in self.stop else text
                self.finished.append(Answer(own, self._mean(score, len(text))))
        self.finished = heapq.nlargest(self.beams, self.finished, key=lambda x: x.score)
        self.running = running
        if running and len(self.finished) == self.beams:
            self.ended |= (
                self._mean(float(scores[kept[0]]), len(running[0])) <= self.finished[-1].score
            )
        return parents[kept], tokens[kept], scores[kept]

    def _mean(self, score: float, length: int) -> float:
        return score / length**self.length_penalty


@partial(jax.jit, static_argnums=2)
def continuations(
    logits: Float[Array, "B W V"], scores: Float[Array, "B W"], count: int
) -> tuple[Float[Array, "B C"], Int[Array, "B C"], Int[Array, "B C"]]:
    """The best ways to go on with a prompt's beams, best first: their scores, beams and tokens."""
    gains = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    every = (scores[..., None] + gains).reshape(len(scores), -1)
    best, places = top_k(every, count)
    return best, *jnp.divmod(places, logits.shape[-1])


def top_k(x: Float[Array, "B N"], count: int) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """The greatest values of each row and their places, as `jax.lax.top_k`, which sorts long rows.

    The greatest lie in those of a row's blocks whose own greatest are the greatest.
    """
    if x.shape[1] < 2 * count * BLOCK:
        values, places = jax.lax.top_k(x, count)
        return values, places
    blocks = -(-x.shape[1] // BLOCK)
    more = ((0, 0), (0, blocks * BLOCK - x.shape[1]))
    x = jnp.pad(x, more, constant_values=-jnp.inf).reshape(len(x), blocks, BLOCK)
    chosen = jnp.sort(jax.lax.top_k(x.max(2), count)[1], axis=1)  # of equals the first ones win
    few = jnp.take_along_axis(x, chosen[..., None], axis=1).reshape(len(x), -1)
    values, places = jax.lax.top_k(few, count)
    at = jnp.take_along_axis(chosen, places // BLOCK, axis=1)
    return values, at * BLOCK + places % BLOCK


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


@partial(jax.jit, static_argnums=(3, 4))
def reorder(state, layers, parents, width, slots):
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


def extend(
    generator: Generator,
    state: State,
    layers: Layers,
    tokens: Int[Array, "B _"],
    depth: int,
) -> tuple[Float[Array, "B W V"], Layers]:
    """Logits after the last tokens of the first beams, as many as `layers` have, and their layers.

    The tokens are the ones at `depth` of the answers; the layers that are given are used up.
    """
    return _extend(generator.graph, generator.params, state, layers, tokens, depth)


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _extend(graph, params, state, layers, tokens, depth):
    """Logits after every unfinished beam's last token, and the keys and values with it."""
    decoder = graph.merge(params)
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
