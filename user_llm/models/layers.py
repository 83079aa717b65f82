"""The parts that every model is made of: norm, linear, rotary positions, attention, one block."""

from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from user_llm.config import LoRAConfig
from user_llm.sharding import axes, constrain

NO_LORA = LoRAConfig()
CAUSAL_BLOCKS = 4  # of queries; with ever more of them, half of the products would be saved
# Of a layer so wrapped, the way back makes all anew but what dropout drew: that is small and dear.
DRAWN = "drawn"
rematerialized = partial(
    jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(DRAWN)
)


class Memory(NamedTuple):
    """What a stream knows of each user, as vectors that a decoder can attend to."""

    tokens: Float[Array, "B M D"]
    mask: Bool[Array, "B M"]  # True where there is a token


class Positions(NamedTuple):
    """Where tokens stand, and by which angles rotary attention turns what stands there.

    A model makes them once for all layers. Inside of a layer, XLA:CPU would fuse a sine and a
    cosine into each value that they turn; positions known beforehand make constants instead.
    """

    at: Int[Array, "#B T"]
    sin: Float[Array, "#B T 1 F"]  # F: half of a head's width
    cos: Float[Array, "#B T 1 F"]

    @staticmethod
    def of(at: Array | np.ndarray, head_dim: int, theta: float = 10_000.0) -> "Positions":
        """Those of `at` [#B, T], which is numpy's where it is known."""
        lib: Any = np if isinstance(at, np.ndarray) else jnp
        frequency = theta ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
        angle = at[..., None, None].astype(np.float32) * frequency
        return Positions(*map(jnp.asarray, (at, lib.sin(angle), lib.cos(angle))))


@runtime_checkable
class Cache(Protocol):
    """Keys and values of one attention layer: how they grow and how they are attended to."""

    def write(self, keys: Array, values: Array, positions: Array) -> "Cache":
        """The cache with new keys and values [B, T, K, H] at their positions."""
        ...

    def attend(self, q: Array, mask: Array) -> Array:
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
        rows = jnp.arange(positions.shape[0])[:, None]
        return KVCache(
            self.keys.at[rows, :, positions].set(keys),
            self.values.at[rows, :, positions].set(values),
        )

    def attend(self, q: Float[Array, "B T N H"], mask: Bool[Array, "#B #T S"]) -> Array:
        return attend(q, *self, mask)


class RMSNorm(nnx.Module):
    """Scales to unit root mean square in float32, whatever the activations' type."""

    def __init__(self, size: int, eps: float = 1e-5, param_dtype=jnp.float32):
        self.weight, self.eps = nnx.Param(jnp.ones(size, param_dtype)), eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.weight[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Scales to zero mean and unit variance in float32, whatever the activations' type."""

    def __init__(self, size: int, eps: float = 1e-6, affine: bool = True):
        self.eps = eps
        self.weight = nnx.Param(jnp.ones(size)) if affine else None
        self.bias = nnx.Param(jnp.zeros(size)) if affine else None

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = x.astype(jnp.float32)
        y -= y.mean(-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        if self.weight is not None and self.bias is not None:
            y = y * self.weight[...] + self.bias[...]
        return y.astype(x.dtype)


class Linear(nnx.Module):
    """x @ kernel, plus a low-rank term if asked. The kernel is [in, out], torch's transposed.

    With `lora`, adds alpha / rank * x @ lora_a @ lora_b (arXiv 2106.09685, section 4.1).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        names: tuple[str | None, str | None],
        *,
        rngs: nnx.Rngs,
        bias: bool = False,
        lora: LoRAConfig = NO_LORA,
        param_dtype=jnp.float32,
    ):
        init = nnx.initializers.lecun_normal()
        kernel = init(rngs.params(), (inputs, outputs), param_dtype)
        self.kernel = nnx.Param(kernel, **axes(*names))
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype), **axes(names[1])) if bias else None
        self.lora_scale = lora.alpha / lora.rank if lora.rank else 0.0
        if lora.rank:
            a = init(rngs.params(), (inputs, lora.rank), jnp.float32)
            self.lora_a = nnx.LoRAParam(a, **axes(names[0], None))
            self.lora_b = nnx.LoRAParam(jnp.zeros((lora.rank, outputs)), **axes(None, names[1]))

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        # In two dimensions, because XLA:CPU multiplies a weight's gradient over three by hand.
        flat = x.reshape(-1, x.shape[-1])
        y = flat @ self.kernel[...].astype(x.dtype)
        if self.bias is not None:
            y += self.bias[...].astype(x.dtype)
        if self.lora_scale:
            low = flat @ self.lora_a[...].astype(x.dtype)
            y += self.lora_scale * (low @ self.lora_b[...].astype(x.dtype))
        return y.reshape(*x.shape[:-1], -1)


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "..."]:
    """Zeroes a share of the values and scales the rest; without a key, x itself.

    The share is `rate`, to the nearest of 1/256 to 255/256. Keys are arguments, because a module's
    own stream of them stands still inside `jax.lax.scan`.
    """
    if key is None or rate == 0:
        return x
    share = min(max(round(rate * 256), 1), 255)
    # A random word is enough for four values, and most of the cost.
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 4)), jnp.uint32)
    words = checkpoint_name(words, DRAWN)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*x.shape[:-1], -1)
    keep = octets[..., : x.shape[-1]] >= share
    return jnp.where(keep, x * (256 / (256 - share)), jnp.zeros((), x.dtype))


def rotary(x: Float[Array, "B T N H"], positions: Positions) -> Float[Array, "B T N H"]:
    """Rotates pairs (i, i + H / 2) by position-dependent angles (arXiv 2104.09864)."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    sin, cos = positions.sin, positions.cos
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def picked(x: Shaped[Array, "#B T ..."], at: Int[Array, "B S"] | None) -> Shaped[Array, "#B _ ..."]:
    """Some places of each row; all of them, where none are named."""
    if at is None:
        return x
    return jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), axis=1)


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
) -> Float[Array, "B T NH"]:
    """Attention's output, its heads side by side; zero where a query sees no key.

    The same as `attention_weights` times the values, but the softmax is normalised behind the
    product, where there is less of it.
    """
    q, mask = rearrange(q, "b t (k g) h -> b k g t h", k=k.shape[1]), mask[:, None, None]
    scores = jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores * q.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
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
) -> Float[Array, "B T NH"]:
    """The same, where the mask lets no query see later keys: what comes later is left out."""
    size = -(-q.shape[1] // CAUSAL_BLOCKS)
    if size < 32:
        return attend(q, k, v, mask)
    blocks = [slice(start, start + size) for start in range(0, q.shape[1], size)]
    return jnp.concatenate(
        [
            attend(q[:, b], k[:, :, : b.stop], v[:, :, : b.stop], mask[:, b, : b.stop])
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
        bias: bool = False,
        lora: LoRAConfig = NO_LORA,
        param_dtype=jnp.float32,
    ):
        kv_heads, head_dim = kv_heads or heads, head_dim or width // heads
        context = context or width

        def linear(name, inputs, outputs, names):
            own = lora if name in lora.targets else NO_LORA
            kinds = {"bias": bias, "lora": own, "param_dtype": param_dtype}
            return Linear(inputs, outputs, names, rngs=rngs, **kinds)

        self.heads, self.kv_heads = heads, kv_heads
        self.q_proj = linear("q_proj", width, heads * head_dim, ("embed", "heads"))
        self.k_proj = linear("k_proj", context, kv_heads * head_dim, ("embed", "heads"))
        self.v_proj = linear("v_proj", context, kv_heads * head_dim, ("embed", "heads"))
        self.o_proj = linear("o_proj", heads * head_dim, width, ("heads", "embed"))

    def queries(self, x, positions=None):  # [B, T, D] -> [B, T, N, H]
        return self._split(self.q_proj(x), self.heads, positions)

    def keys_values(self, context, positions=None):  # [B, S, C] -> 2 x [B, S, K, H]
        keys = self._split(self.k_proj(context), self.kv_heads, positions)
        return keys, self._split(self.v_proj(context), self.kv_heads, None)

    def _split(self, x, heads, positions):
        x = rearrange(x, "b t (n h) -> b t n h", n=heads)
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
        at: Int[Array, "B R"] | None = None,
    ) -> tuple[Float[Array, "B R D"], Cache]:
        """The output, and the keys and values that made it.

        With a cache, the new keys and values join it at their positions, and `mask` is over slots.
        `causal` promises of a mask that no query sees later keys, which saves looking at them.
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
                y = attend_causally(self.queries(x, positions), *cache, mask)
                return self.o_proj(y), cache
        elif positions is None:
            raise ValueError("a cache is written at positions; give them")
        else:
            cache = cache.write(keys, values, positions.at)
        return self.o_proj(cache.attend(self.queries(x, positions), mask)), cache


class MLP(nnx.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        lora: LoRAConfig = NO_LORA,
        param_dtype=jnp.float32,
    ):
        def linear(name, inputs, outputs, names):
            own = lora if name in lora.targets else NO_LORA
            return Linear(inputs, outputs, names, rngs=rngs, lora=own, param_dtype=param_dtype)

        self.gate_proj = linear("gate_proj", width, hidden, ("embed", "mlp"))
        self.up_proj = linear("up_proj", width, hidden, ("embed", "mlp"))
        self.down_proj = linear("down_proj", hidden, width, ("mlp", "embed"))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """A pre-norm causal Transformer block, in encoders and decoders alike.

    Gated, each residual is weighed by a sigmoid of the block's input (LiGR, arXiv 2502.03417).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp: int,
        *,
        rngs: nnx.Rngs,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        eps: float = 1e-5,
        dropout: float = 0.0,
        gated: bool = False,
        lora: LoRAConfig = NO_LORA,
        param_dtype=jnp.float32,
    ):
        kinds = {"rngs": rngs, "lora": lora, "param_dtype": param_dtype}
        self.dropout = dropout
        self.input_layernorm = RMSNorm(width, eps, param_dtype)
        self.self_attn = Attention(width, heads, kv_heads=kv_heads, head_dim=head_dim, **kinds)
        self.post_attention_layernorm = RMSNorm(width, eps, param_dtype)
        self.mlp = MLP(width, mlp, **kinds)

        def gate():
            return Linear(width, width, ("embed", None), rngs=rngs, bias=True) if gated else None

        self.attn_gate, self.mlp_gate = gate(), gate()

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B #R S"],
        positions: Positions,
        *,
        cache: Cache | None = None,
        key: Key[Array, ""] | None = None,
        at: Int[Array, "B R"] | None = None,
    ) -> tuple[Float[Array, "B R D"], Cache]:
        """The block's output, `at` some places alone if asked, and its attention's cache."""
        keys = (None, None) if key is None else jax.random.split(key)

        def weighed(gate, h):
            return h if gate is None else h * jax.nn.sigmoid(gate(x))

        h, cache = self.self_attn(
            self.input_layernorm(x), mask, positions=positions, cache=cache, causal=True, at=at
        )
        x = picked(x, at)
        x += weighed(self.attn_gate, dropout(h, self.dropout, keys[0]))
        h = self.mlp(self.post_attention_layernorm(x))
        x += weighed(self.mlp_gate, dropout(h, self.dropout, keys[1]))
        return constrain(x, "batch", None, None), cache
