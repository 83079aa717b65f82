"""Transformer blocks: the causal one of encoders and decoders, and BERT's."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from user_llm.config import PROJECTIONS, LoRAConfig
from user_llm.models.attention import Attention, Cache, Positions
from user_llm.models.families import LLAMA, Family
from user_llm.models.layers import MLP, NO_LORA, LayerNorm, Linear, RMSNorm, dropout, picked
from user_llm.sharding import constrain

gelu = partial(jax.nn.gelu, approximate=False)


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
        family: Family = LLAMA,
        score_divisor: int | None = None,
        softcap: float | None = None,
        lora: LoRAConfig = NO_LORA,
        param_dtype=jnp.float32,
    ):
        norm = partial(RMSNorm, eps=eps, param_dtype=param_dtype, offset=family.norm_offset)
        kinds = {"rngs": rngs, "param_dtype": param_dtype}
        self.dropout = dropout
        self.input_layernorm = norm(width)
        self.self_attn = Attention(
            width,
            heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            biased=("q_proj", "k_proj", "v_proj") if family.qkv_bias else (),
            head_norm=norm if family.qk_norm else None,
            score_divisor=score_divisor,
            softcap=softcap,
            lora=lora.of("self_attn"),
            **kinds,
        )
        self.post_self_attn_layernorm = norm(width) if family.post_norms else None
        self.post_attention_layernorm = norm(width)  # before the MLP
        self.mlp = MLP(width, mlp, activation=family.activation, lora=lora.of("mlp"), **kinds)
        self.post_mlp_layernorm = norm(width) if family.post_norms else None

        def gate():
            return Linear(width, width, ("embed", "mlp"), rngs=rngs, bias=True) if gated else None

        self.attn_gate, self.mlp_gate = gate(), gate()

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B #R S"],
        positions: Positions,
        window: int | None = None,
        *,
        cache: Cache | None = None,
        key: Key[Array, ""] | None = None,
        at: Int[Array, "B R"] | None = None,
    ) -> tuple[Float[Array, "B R D"], Cache]:
        """The block's output, `at` some places alone if asked, and its attention's cache.

        `window` promises of the mask that each token sees so many up to itself, and no others.
        """
        keys = (None, None) if key is None else jax.random.split(key)

        def added(h, norm, gate, key):
            h = dropout(h if norm is None else norm(h), self.dropout, key)
            return h if gate is None else h * jax.nn.sigmoid(gate(x))

        h, cache = self.self_attn(
            self.input_layernorm(x),
            mask,
            positions=positions,
            cache=cache,
            causal=True,
            window=window,
            at=at,
        )
        x = picked(x, at)
        x += added(h, self.post_self_attn_layernorm, self.attn_gate, keys[0])
        h = self.mlp(self.post_attention_layernorm(x))
        x += added(h, self.post_mlp_layernorm, self.mlp_gate, keys[1])
        return constrain(x, "batch", None, None), cache


class BertBlock(nnx.Module):
    """A post-norm Transformer block with biases (arXiv 1810.04805, section 3)."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp: int,
        *,
        rngs: nnx.Rngs,
        eps: float = 1e-12,
        dropout: float = 0.0,
        activation: Callable[[Array], Array] = gelu,
    ):
        self.dropout, self.activation = dropout, activation
        self.self_attn = Attention(width, heads, biased=PROJECTIONS["self_attn"], rngs=rngs)
        self.attn_norm, self.mlp_norm = LayerNorm(width, eps), LayerNorm(width, eps)
        self.up_proj = Linear(width, mlp, ("embed", "mlp"), bias=True, rngs=rngs)
        self.down_proj = Linear(mlp, width, ("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B #T S"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        keys = (None, None) if key is None else jax.random.split(key)
        x = self.attn_norm(x + dropout(self.self_attn(x, mask)[0], self.dropout, keys[0]))
        h = self.down_proj(self.activation(self.up_proj(x)))
        x = self.mlp_norm(x + dropout(h, self.dropout, keys[1]))
        return constrain(x, "batch", None, None)
