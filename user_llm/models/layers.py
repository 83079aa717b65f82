"""The parts that every model is made of: norms, linear, dropout, the gated MLP."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from user_llm.config import LoRAConfig, Remat
from user_llm.sharding import axes, platform

NO_LORA = LoRAConfig()
FEW_ROWS = 128  # up to which a product's time is that of reading its kernel, more or less
PARTS = 4  # of a kernel that is multiplied by one row
# Of a layer so wrapped, the way back makes all anew but what dropout drew: that is small and dear.
DRAWN = "drawn"
rematerialized = partial(
    jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(DRAWN)
)
ATTENDED = "attended"  # what an attention kernel gives and needs again on the way back
# By the policy of a decoder's config; products of single weights are those without a batch.
REMAT: dict[Remat, Callable] = {
    "full": jax.checkpoint,
    "dots": partial(
        jax.checkpoint,
        policy=jax.checkpoint_policies.save_from_both_policies(
            jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
            jax.checkpoint_policies.save_only_these_names(ATTENDED),
        ),
    ),
    "none": lambda layer: layer,
}


def known(size: Any) -> bool:
    """Whether a size is a number, and not a symbol for any: of batch and length in an export."""
    return isinstance(size, int)


class Memory(NamedTuple):
    """What a stream knows of each user, as vectors that a decoder can attend to."""

    tokens: Float[Array, "B M D"]
    mask: Bool[Array, "B M"]  # True where there is a token


class RMSNorm(nnx.Module):
    """Scales to unit root mean square in float32, whatever the activations' type.

    And then by `offset` + weight.
    """

    def __init__(self, size: int, eps: float = 1e-5, param_dtype=jnp.float32, offset: float = 0):
        self.weight = nnx.Param(jnp.full(size, 1 - offset, param_dtype))
        self.eps, self.offset = eps, offset

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * (self.offset + self.weight[...].astype(jnp.float32))).astype(x.dtype)


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
        self.lora_scale = lora.scale
        if lora.rank:
            a = init(rngs.params(), (inputs, lora.rank), jnp.float32)
            self.lora_a = nnx.LoRAParam(a, **axes(names[0], None))
            self.lora_b = nnx.LoRAParam(jnp.zeros((lora.rank, outputs)), **axes(None, names[1]))

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        # In two dimensions, because XLA:CPU multiplies a weight's gradient over three by hand.
        flat = x.reshape(-1, x.shape[-1])
        y = self.product(flat)
        if self.bias is not None:
            y += self.bias[...].astype(x.dtype)
        if self.lora_scale:
            low = flat @ self.lora_a[...].astype(x.dtype)
            y += self.lora_scale * (low @ self.lora_b[...].astype(x.dtype))
        return y.reshape(*x.shape[:-1], -1)

    def product(self, x: Float[Array, "N I"]) -> Float[Array, "N O"]:
        return x @ self.kernel[...].astype(x.dtype)


class ServedLinear(Linear):
    """A Linear as generation reads it: the kernel [out, in], and on request in int8.

    int8 weighs each output by a scale of its own, the largest of its weights over 127 (LLM.int8,
    arXiv 2208.07339, section 2, without what it does to activations).
    """

    def __init__(self, linear: Linear, *, int8: bool = False):
        kernel, scale = linear.kernel[...].T, None
        if int8:
            kernel, scale = quantized(kernel)
        self.kernel, self.bias = nnx.Param(kernel), linear.bias
        self.scale = None if scale is None else nnx.Param(scale)
        self.lora_scale = linear.lora_scale
        if self.lora_scale:
            self.lora_a, self.lora_b = linear.lora_a, linear.lora_b

    def product(self, x: Float[Array, "N I"]) -> Float[Array, "N O"]:
        y = times_rows(x, self.kernel[...].astype(x.dtype))
        return y if self.scale is None else y * self.scale[...].astype(x.dtype)


def quantized(kernel: Float[Array, "O I"]) -> tuple[Int[Array, "O I"], Float[Array, " O"]]:
    """A kernel in int8, and what each of its outputs is to be multiplied by."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(kernel).max(axis=1), jnp.finfo(jnp.float32).tiny) / 127
    return jnp.round(kernel / scale[:, None]).astype(jnp.int8), scale


def times_rows(x: Float[Array, "N I"], kernel: Float[Array, "O I"]) -> Float[Array, "N O"]:
    """x @ kernel.T, with the kernel as the left factor: few rows cost XLA:CPU half as much so.

    And a single row costs it less yet where the kernel comes in parts.
    """
    rows = x.shape[0]
    if rows == 1 and platform() == "cpu" and len(kernel) % PARTS == 0:
        parts = kernel.reshape(PARTS, -1, kernel.shape[1])
        x = jnp.broadcast_to(x, (PARTS, *x.shape))
        y = jax.lax.dot_general(parts, x, (((2,), (2,)), ((0,), (0,))))
        return jax.lax.optimization_barrier(y).reshape(1, -1)
    y = jax.lax.dot_general(kernel, x, (((1,), (1,)), ((), ())))
    # It would fold the transpose into the product, which then is the slow one.
    few = not known(rows) or rows <= FEW_ROWS
    return (jax.lax.optimization_barrier(y) if few else y).T


def merged(params: dict[str, Any], lora: LoRAConfig) -> dict[str, Any]:
    """A module's parameters with its adapters in its kernels, as a module without them has them."""
    if "lora_a" in params:
        low = jnp.einsum("...ir,...ro->...io", params["lora_a"], params["lora_b"])
        kernel = params["kernel"].astype(jnp.float32) + lora.scale * low
        rest = {k: v for k, v in params.items() if not k.startswith("lora_")}
        return rest | {"kernel": kernel.astype(params["kernel"].dtype)}
    return {k: merged(v, lora) if isinstance(v, dict) else v for k, v in params.items()}


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


def picked(x: Shaped[Array, "#B T ..."], at: Int[Array, "B S"] | None) -> Shaped[Array, "#B _ ..."]:
    """Some places of each row; all of them, where none are named."""
    if at is None:
        return x
    return jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), axis=1)


class MLP(nnx.Module):
    """down(activation(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        activation: Callable[[Array], Array] = jax.nn.silu,
        lora: LoRAConfig = NO_LORA,
        param_dtype=jnp.float32,
    ):
        def linear(name, inputs, outputs, names):
            own = lora if name in lora.targets else NO_LORA
            return Linear(inputs, outputs, names, rngs=rngs, lora=own, param_dtype=param_dtype)

        self.activation = activation
        self.gate_proj = linear("gate_proj", width, hidden, ("embed", "mlp"))
        self.up_proj = linear("up_proj", width, hidden, ("embed", "mlp"))
        self.down_proj = linear("down_proj", hidden, width, ("mlp", "embed"))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
