"""Attention: rotary positions, caches of keys and values, grouped heads."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from user_llm.config import LoRAConfig, RopeScaling
from user_llm.models.flash import flash
from user_llm.models.layers import NO_LORA, Linear, RMSNorm, known, picked
from user_llm.sharding import constrain, platform

FEW_QUERIES = 32  # up to which the keys are most of what a product reads
CAUSAL_BLOCKS = 4  # of queries; with ever more of them, half of the products would be saved


class Positions(NamedTuple):
    """Where tokens stand, and by which angles rotary attention turns what stands there.

    A model makes them once for all layers. XLA:CPU would fuse a sine and a cosine into each value
    that they turn, but for a barrier; positions known beforehand make constants.
    """

    at: Int[Array, "#B T"]
    sin: Float[Array, "#B T 1 F"]  # F: half of a head's width
    cos: Float[Array, "#B T 1 F"]

    @staticmethod
    def of(at: Array | np.ndarray, frequencies: np.ndarray) -> "Positions":
        """Those of `at` [#B, T], which is numpy's where it is known."""
        known = isinstance(at, np.ndarray)
        lib: Any = np if known else jnp
        angle = at[..., None, None].astype(np.float32) * frequencies
        sin, cos = jnp.asarray(lib.sin(angle)), jnp.asarray(lib.cos(angle))
        if not known:
            sin, cos = jax.lax.optimization_barrier((sin, cos))
        return Positions(jnp.asarray(at), sin, cos)


@runtime_checkable
class Cache(Protocol):
    """Keys and values of one attention layer: how they grow and how they are attended to."""

    def write(self, keys: Array, values: Array, positions: Array) -> "Cache":
        """The cache with new keys and values [B, T, K, H] at their positions."""
        ...

    def attend(self, q: Array, mask: Array, softcap: float | None = None) -> Array:
        """Attention's output [B, T, NH] for queries [B, T, N, H]; the mask is over slots."""
        ...


class KVCache(NamedTuple):
    """The keys and values of one attention layer; slot s holds position s."""

    keys: Float[Array, "B K S H"]
    values: Float[Array, "B K S H"]

    @staticmethod
    def empty(batch: int, heads: int, slots: int, head_dim: int, dtype=jnp.float32) -> "KVCache":
        shape = (batch, heads, slots, head_dim)
        return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def write(self, keys: Array, values: Array, positions: Int[Array, "B T"]) -> "KVCache":
        if positions.size == 1 and platform() == "cpu":
            # A single write XLA:CPU would make anew for each reader, and copy the cache to do so.
            keys, values, positions = (jnp.repeat(x, 2, axis=1) for x in (keys, values, positions))
        rows = jnp.arange(positions.shape[0])[:, None]
        return KVCache(
            self.keys.at[rows, :, positions].set(keys),
            self.values.at[rows, :, positions].set(values),
        )

    def attend(
        self, q: Float[Array, "B T N H"], mask: Bool[Array, "#B #T S"], softcap: float | None = None
    ) -> Array:
        return attend(q, *self, mask, softcap)


def frequencies(
    head_dim: int, theta: float = 10_000.0, scaling: RopeScaling | None = None
) -> Float[np.ndarray, " F"]:
    """The angles by which each pair of a head's values turns from one position to the next.

    Source: arXiv 2104.09864, section 3.2.2, and what `RopeScaling` names.
    """
    turns = 1 / np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    if scaling is None:
        return turns
    slow = turns / np.float32(scaling.factor)
    if scaling.rope_type == "linear":
        return slow
    low, high, length = (
        cast(float, x)
        for x in (
            scaling.low_freq_factor,
            scaling.high_freq_factor,
            scaling.original_max_position_embeddings,
        )
    )
    share = (length * turns / (2 * np.pi) - low) / (high - low)  # of the angle as it was
    return (slow + np.clip(share, 0, 1) * (turns - slow)).astype(np.float32)


def capped(x: Float[Array, "..."], softcap: float | None) -> Float[Array, "..."]:
    """Values bent towards ±`softcap`, where there is one (Gemma 2, arXiv 2408.00118)."""
    return x if softcap is None else jnp.tanh(x / softcap) * softcap


def rotary(x: Float[Array, "B T N H"], positions: Positions) -> Float[Array, "B T N H"]:
    """Rotates pairs (i, i + H / 2) by position-dependent angles (arXiv 2104.09864)."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    sin, cos = positions.sin, positions.cos
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attention_weights(
    q: Float[Array, "B T N H"], k: Float[Array, "B K S H"], mask: Bool[Array, "#B #T S"]
) -> Float[Array, "B K G T S"]:
    """Softmax over the visible keys, in float32; N = K * G query heads share K key heads.

    A query that sees no key gets weights of zero.
    """
    q = rearrange(q, "b t (k g) h -> b k g t h", k=k.shape[1])
    scores = jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=jnp.float32)
    mask = mask[:, None, None]
    scores = jnp.where(mask, scores * q.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1) * mask.any(-1, keepdims=True).astype(jnp.float32)


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    mask: Bool[Array, "#B #T S"],
    softcap: float | None = None,
) -> Float[Array, "B T NH"]:
    """Attention's output, its heads side by side; zero where a query sees no key.

    The same as `attention_weights` times the values, but the softmax is normalised behind the
    product, where there is less of it.
    """
    q, mask = rearrange(q, "b t (k g) h -> b k g t h", k=k.shape[1]), mask[:, None, None]
    if known(q.shape[3]) and q.shape[3] <= FEW_QUERIES:
        # For whom XLA:CPU would transpose the keys, unless on the left.
        scores = jnp.einsum("bksh,bkgth->bksgt", k, q, preferred_element_type=jnp.float32)
        scores = rearrange(scores, "b k s g t -> b k g t s")
    else:
        scores = jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = capped(scores * q.shape[-1] ** -0.5, softcap)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    highest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    shares = jnp.where(mask, jnp.exp(scores - highest), 0)
    total = jnp.maximum(shares.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    y = jnp.einsum("bkgts,bksh->bkgth", shares.astype(v.dtype), v) / total.astype(v.dtype)
    return rearrange(y, "b k g t h -> b t (k g h)")


def attend_causally(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    mask: Bool[Array, "#B T T"],
    softcap: float | None = None,
    window: int | None = None,
) -> Float[Array, "B T NH"]:
    """The same, where the mask lets no query see later keys: what comes later is left out.

    `window` says that it lets each see that many keys up to its own; kernels know no other masks.
    """
    if window is not None:
        y = flash(rearrange(q, "b t n h -> b n t h"), k, v, window, softcap)
        if y is not None:
            return rearrange(y, "b n t h -> b t (n h)")
    size = -(-q.shape[1] // CAUSAL_BLOCKS)
    if not known(size) or size < 32:
        return attend(q, k, v, mask, softcap)
    blocks = [slice(start, start + size) for start in range(0, q.shape[1], size)]
    return jnp.concatenate(
        [
            attend(q[:, b], k[:, :, : b.stop], v[:, :, : b.stop], mask[:, b, : b.stop], softcap)
            for b in blocks
        ],
        axis=1,
    )


class Attention(nnx.Module):
    """Multi-head attention of x to itself or to a context, with grouped key and value heads."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        rngs: nnx.Rngs,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        context: int | None = None,  # width of what is attended to
        biased: Collection[str] = (),  # the projections that have a bias
        head_norm: Callable[[int], RMSNorm] | None = None,  # of each head's queries and keys
        score_divisor: int | None = None,  # scores are divided by its root; None: head_dim
        softcap: float | None = None,
        lora: LoRAConfig = NO_LORA,
        param_dtype=jnp.float32,
    ):
        kv_heads, head_dim = kv_heads or heads, head_dim or width // heads
        context = context or width

        def linear(name, inputs, outputs, names):
            own = lora if name in lora.targets else NO_LORA
            kinds = {"bias": name in biased, "lora": own, "param_dtype": param_dtype}
            return Linear(inputs, outputs, names, rngs=rngs, **kinds)

        self.heads, self.kv_heads, self.softcap = heads, kv_heads, softcap
        self.query_scale = (head_dim / score_divisor) ** 0.5 if score_divisor else 1.0
        self.q_proj = linear("q_proj", width, heads * head_dim, ("embed", "heads"))
        self.k_proj = linear("k_proj", context, kv_heads * head_dim, ("embed", "heads"))
        self.v_proj = linear("v_proj", context, kv_heads * head_dim, ("embed", "heads"))
        self.o_proj = linear("o_proj", heads * head_dim, width, ("heads", "embed"))
        self.q_norm = head_norm(head_dim) if head_norm else None
        self.k_norm = head_norm(head_dim) if head_norm else None

    def queries(self, x, positions=None):  # [B, T, D] -> [B, T, N, H]
        q = self._split(self.q_proj(x), self.heads, self.q_norm, positions)
        return q if self.query_scale == 1 else q * self.query_scale

    def keys_values(self, context, positions=None):  # [B, S, C] -> 2 x [B, S, K, H]
        keys = self._split(self.k_proj(context), self.kv_heads, self.k_norm, positions)
        return keys, self._split(self.v_proj(context), self.kv_heads)

    def _split(self, x, heads, norm=None, positions=None):
        # Whole heads: where there are fewer of them than devices, each of these has them all.
        x = constrain(rearrange(x, "b t (n h) -> b t n h", n=heads), "batch", None, "heads", None)
        x = x if norm is None else norm(x)
        return x if positions is None else rotary(x, positions)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B #R S"],
        *,
        positions: Positions | None = None,
        context: Float[Array, "B S C"] | None = None,
        cache: Cache | None = None,
        causal: bool = False,
        window: int | None = None,
        at: Int[Array, "B R"] | None = None,
    ) -> tuple[Float[Array, "B R D"], Cache]:
        """The output, and the keys and values that made it.

        With a cache, the new keys and values join it at their positions, and `mask` is over slots.
        `causal` promises of a mask that no query sees later keys, which saves looking at them, and
        `window` that each sees so many up to its own.
        With `at`, the output and the mask are those of some places of x; not beside a cache.
        """
        keys, values = self.keys_values(x if context is None else context, positions)
        x = picked(x, at)
        positions = jax.tree.map(lambda there: picked(there, at), positions)
        if cache is None:
            cache = KVCache(
                rearrange(keys, "b s k h -> b k s h"), rearrange(values, "b s k h -> b k s h")
            )
            if causal and at is None:
                q = self.queries(x, positions)
                y = attend_causally(q, *cache, mask, self.softcap, window)
                return self.o_proj(y), cache
        elif positions is None:
            raise ValueError("a cache is written at positions; give them")
        else:
            cache = cache.write(keys, values, positions.at)
        y = cache.attend(self.queries(x, positions), mask, self.softcap)
        return self.o_proj(y), cache
