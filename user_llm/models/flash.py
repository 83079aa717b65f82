"""Causal attention that never holds all scores at once: by accelerators' kernels, or by blocks."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from user_llm.models.layers import ATTENDED
from user_llm.sharding import on_shards, placed, platform

# Tokens. Shorter texts have few scores: on TPU a block would be mostly padding, and on a CPU all
# heads at once take less time than one after the other.
SHORTEST, SHORTEST_ON_CPU = 128, 512
BLOCK = 256  # queries of a head whose scores a CPU's cache holds
HIDDEN = float(np.finfo(np.float32).min)  # the score of a key that is not seen


def flash(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    window: int,
    softcap: float | None = None,
) -> Float[Array, "B N T H"] | None:
    """What queries find that see the last `window` keys up to their own; N heads share K.

    None where there is no kernel for it: for short texts, on devices that no mesh names, on a CPU
    for bfloat16 and elsewhere for float32, and on a GPU for capped scores and for heads that cuDNN
    does not take.
    """
    where, half = platform(), q.dtype == jnp.bfloat16
    if q.shape[2] < (SHORTEST_ON_CPU if where == "cpu" else SHORTEST) or not placed():
        return None
    if where == "cpu" and not half:
        kernel = partial(by_blocks, softcap=softcap)
    elif where == "tpu" and half:
        kernel = partial(splash, softcap=softcap)
    elif where == "gpu" and half and softcap is None and q.shape[3] <= 128 and q.shape[3] % 8 == 0:
        kernel = cudnn
    else:
        return None
    return on_shards(partial(kernel, window=window), ("batch", "heads"), q, k, v)


def splash(q, k, v, *, window, softcap=None, interpret=False):
    """By the Pallas kernel for TPU that skips blocks which no query sees."""
    # Pallas takes its time to import, and only a TPU needs it.
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    length, more = q.shape[2], -q.shape[2] % 128
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) for x in (q, k, v))
    size = length + more  # what is added stands behind the text, where no query of it looks
    mask = kernels.LocalMask((size, size), (window - 1, 0), 0)
    block = math.gcd(size, 512)
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    attend: Any = kernels.make_splash_mha_single_device(
        kernels.MultiHeadMask([mask] * q.shape[1]),
        block_sizes=sizes,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )
    return jax.vmap(attend)(q * q.shape[3] ** -0.5, k, v)[:, :, :length]


def cudnn(q, k, v, *, window):
    """By cuDNN's flash attention."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    near = (window - 1, 0) if window < q.shape[1] else None
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, local_window_size=near, implementation="cudnn"
    ).swapaxes(1, 2)


def by_blocks(q, k, v, *, window, softcap=None):
    """By one head after the other, some queries at a time, there and back.

    On a CPU passes over all scores wait for memory: they are many times as long as the products.
    """
    k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    heads = [x.reshape(-1, *x.shape[2:]) for x in (q * q.shape[3] ** -0.5, k, v)]
    return jax.lax.map(lambda each: _head(*each, window, softcap), heads).reshape(q.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _head(q, k, v, window, softcap):
    return _head_forth(q, k, v, window, softcap)[0]


def _head_forth(q, k, v, window, softcap):
    found, totals = [], []
    for queries, keys in _blocks(len(q), window):
        scores = _scores(q, k, queries, keys, window, softcap)[0]
        highest = scores.max(-1, keepdims=True)
        shares = jnp.exp(scores - highest)
        total = shares.sum(-1, keepdims=True)
        found.append(shares @ v[keys] / total)
        totals.append(highest + jnp.log(total))
    y, total = jnp.concatenate(found), jnp.concatenate(totals)
    return y, (q, k, v, y, total)


def _head_back(window, softcap, kept, dy):
    """The gradients, of shares made anew (FlashAttention, arXiv 2205.14135, appendix B.2)."""
    q, k, v, y, total = kept
    mean = (dy * y).sum(-1, keepdims=True)
    dq, dk, dv = [], jnp.zeros_like(k), jnp.zeros_like(v)
    for queries, keys in _blocks(len(q), window):
        scores, bent = _scores(q, k, queries, keys, window, softcap)
        # Barriers: XLA:CPU would make the shares anew in each product that they are part of.
        shares = jax.lax.optimization_barrier(jnp.exp(scores - total[queries]))
        dv = dv.at[keys].add(shares.T @ dy[queries])
        dshares = jax.lax.optimization_barrier(dy[queries] @ v[keys].T)
        dscores = jax.lax.optimization_barrier(shares * (dshares - mean[queries]) * bent)
        dq.append(dscores @ k[keys])
        dk = dk.at[keys].add(dscores.T @ q[queries])
    return jnp.concatenate(dq), dk, dv


_head.defvjp(_head_forth, _head_back)


def _blocks(length: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Some queries after the other, with the keys that any of them see."""
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        yield slice(start, stop), slice(max(0, start + 1 - window), stop)


def _scores(q, k, queries, keys, window, softcap):
    """Scores of some queries, and by how much a cap bends them at these places."""
    scores, bent = jax.lax.optimization_barrier(q[queries] @ k[keys].T), 1.0
    if softcap is not None:
        share = jnp.tanh(scores / softcap)
        scores, bent = share * softcap, 1 - share**2
    at, keys_at = np.arange(queries.start, queries.stop), np.arange(keys.start, keys.stop)
    behind = at[:, None] - keys_at
    return jnp.where((behind >= 0) & (behind < window), scores, HIDDEN), bent
