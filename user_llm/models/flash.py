"""Causal attention by the kernels of accelerators, which never hold all scores at once."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from user_llm.sharding import on_shards, placed, platform

SHORTEST = 128  # tokens; shorter texts have few scores, and on TPU a block would be mostly padding


def flash(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    window: int,
    softcap: float | None = None,
) -> Float[Array, "B N T H"] | None:
    """What queries find that see the last `window` keys up to their own; N heads share K.

    None where there is no kernel for it: on a CPU, for short texts, for float32, on devices that no
    mesh names, and on a GPU for capped scores and for heads that cuDNN does not take.
    """
    if q.dtype != jnp.bfloat16 or q.shape[2] < SHORTEST or not placed():
        return None
    if platform() == "tpu":
        kernel = partial(splash, softcap=softcap)
    elif platform() == "gpu" and softcap is None and q.shape[3] <= 128 and q.shape[3] % 8 == 0:
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
