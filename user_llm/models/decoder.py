"""One decoder for every family: groups of layers, each perhaps with a gated cross-attention."""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from user_llm.config import CrossAttentionConfig, DecoderConfig, LoRAConfig
from user_llm.models.attention import (
    Attention,
    KVCache,
    Positions,
    attend,
    attention_weights,
    capped,
    frequencies,
)
from user_llm.models.blocks import Block
from user_llm.models.families import FAMILIES
from user_llm.models.layers import (
    NO_LORA,
    REMAT,
    Linear,
    Memory,
    RMSNorm,
    ServedLinear,
    times_rows,
)
from user_llm.sharding import axes, constrain, platform


class CrossAttention(nnx.Module):
    """x + tanh(gate) * attention(norm(x), memory) (Flamingo, arXiv 2204.14198, section 2.2).

    Every strategy trains it, so its weights are in float32 whatever the decoder's own are.
    """

    def __init__(self, config: CrossAttentionConfig, width: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(width)
        self.attn = Attention(width, config.heads, kv_heads=config.kv_heads, rngs=rngs)
        self.gate = nnx.Param(jnp.arctanh(jnp.full((), config.gate, jnp.float32)))

    def keys_values(self, memory: Memory) -> KVCache:
        """What of the memory this layer attends to; the same for every token of an answer."""
        keys, values = self.attn.keys_values(memory.tokens)
        return KVCache(keys.swapaxes(1, 2), values.swapaxes(1, 2))

    def __call__(
        self, x: Float[Array, "B T D"], memory: KVCache, mask: Bool[Array, "B M"]
    ) -> Float[Array, "B T D"]:
        q = self.attn.queries(self.norm(x))
        y = self.attn.o_proj(attend(q, *memory, mask[:, None]))
        return x + jnp.tanh(self.gate[...]).astype(x.dtype) * y

    def weights(
        self, x: Float[Array, "B T D"], memory: KVCache, mask: Bool[Array, "B M"]
    ) -> Float[Array, "B T M"]:
        """How each token's look at the memory is shared out, the mean over the heads."""
        q = self.attn.queries(self.norm(x))
        return attention_weights(q, memory.keys, mask[:, None]).mean((1, 2))


class CrossLanes(nnx.Module):
    """A gated cross-attention for each stream of a memory, one after the other.

    Args:
      widths: the tokens of each stream's memory, but that the first has all the others leave.
    """

    def __init__(
        self, config: CrossAttentionConfig, width: int, widths: tuple[int, ...], *, rngs: nnx.Rngs
    ):
        self.later = widths[1:]
        self.lanes = nnx.List([CrossAttention(config, width, rngs=rngs) for _ in widths])

    def keys_values(self, memory: Memory) -> list[KVCache]:
        parts = zip(*map(self._parts, memory), strict=True)
        return [
            lane.keys_values(Memory(*part)) for lane, part in zip(self.lanes, parts, strict=True)
        ]

    def __call__(
        self, x: Float[Array, "B T D"], memory: list[KVCache], mask: Bool[Array, "B M"]
    ) -> Float[Array, "B T D"]:
        for lane, own, part in zip(self.lanes, memory, self._parts(mask), strict=True):
            x = lane(x, own, part)
        return x

    def _parts(self, x: Shaped[Array, "B M ..."]) -> list[Array]:
        """What of each token of a memory belongs to each lane."""
        return jnp.split(x, x.shape[1] - np.cumsum(self.later[::-1])[::-1], axis=1)


def placed(
    x: Float[Array, "B T D"], tokens: Int[Array, "B T"], memory: Memory
) -> Float[Array, "B T D"]:
    """The embeddings with the memory's tokens where a prompt places them: token -1 - m is its m."""
    at = jnp.maximum(-1 - tokens, 0)[..., None]
    given = jnp.take_along_axis(memory.tokens.astype(x.dtype), at, axis=1)
    return jnp.where(tokens[..., None] < 0, given, x)


class View(NamedTuple):
    """What the tokens see of each other, and where they stand."""

    mask: Bool[Array, "#B #T S"]
    positions: Positions
    window: int | None = None  # where the mask is but this: so many up to the token itself


class Views(NamedTuple):
    """The views of layers that see all, and of those that slide: what only some differ in."""

    full: View
    sliding: View

    def of(self, slides: bool | Bool[Array, ""]) -> View:
        """That of one layer, of which it may be known only inside of a scan whether it slides."""
        if isinstance(slides, bool):
            return self.sliding if slides else self.full
        return jax.tree.map(
            lambda full, sliding: full if full is sliding else jnp.where(slides, sliding, full),
            *(view._replace(window=None) for view in self),
        )


class Decoder(nnx.Module):
    """A causal language model that may attend to a user's memory.

    Parameters are stacked by layer and scanned; `unstacked` is the form that generation unrolls.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs,
        cross_attention: CrossAttentionConfig | None = None,
        lanes: tuple[int, ...] = (),
        lora: LoRAConfig = NO_LORA,
    ):
        """Draws it.

        Args:
          lanes: the tokens of each stream that has a cross-attention of its own (see `CrossLanes`).

        Raises:
          ValueError: `cross_attention.every` does not divide the layers.
        """
        self.config, self.cross_attention = config, cross_attention
        every = cross_attention.every if cross_attention else config.num_hidden_layers
        if config.num_hidden_layers % every:
            raise ValueError(
                f"cross_attention.every={every} must divide the decoder's "
                f"{config.num_hidden_layers} layers"
            )
        self.groups = config.num_hidden_layers // every
        family, dtype = FAMILIES[config.model_type], jnp.dtype(config.param_dtype)

        def block(rngs):
            return Block(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                kv_heads=config.num_key_value_heads,
                head_dim=config.head_dim,
                eps=config.rms_norm_eps,
                family=family,
                score_divisor=config.query_pre_attn_scalar,
                softcap=config.attn_logit_softcapping,
                lora=lora,
                param_dtype=dtype,
                rngs=rngs,
            )

        init = nnx.initializers.normal(0.02)
        table = init(rngs.params(), (config.vocab_size, config.hidden_size), dtype)
        self.embed_tokens = nnx.Param(table, **axes("vocab", "embed"))
        self.layers = jax.vmap(block)(rngs.split(config.num_hidden_layers))  # [L, ...]
        width = config.hidden_size

        def cross(config: CrossAttentionConfig, rngs: nnx.Rngs) -> nnx.Module:
            if lanes:
                return CrossLanes(config, width, lanes, rngs=rngs)
            return CrossAttention(config, width, rngs=rngs)

        self.cross: Any = (
            jax.vmap(partial(cross, cross_attention))(rngs.split(self.groups))  # [G, ...]
            if cross_attention
            else None
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, family.norm_offset)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(
                config.hidden_size,
                config.vocab_size,
                ("embed", "vocab"),
                rngs=rngs,
                param_dtype=dtype,
            )
        )

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The tokens' embeddings, in the type of the activations.

        A negative token has that of token 0, for something else is to be `placed` there.
        """
        # Looking up in a table split over its features would make XLA gather the activations.
        table = constrain(self.embed_tokens[...].astype(self.config.dtype), "vocab", None)
        x = constrain(table[jnp.maximum(tokens, 0)], "batch", None, None)
        return x * jnp.asarray(self._embedding_scale, x.dtype)

    def embedding_length(self) -> Float[Array, ""]:
        """The mean length of what `embed` gives of the vocabulary's tokens."""
        table = self.embed_tokens[...].astype(jnp.float32)
        return self._embedding_scale * jnp.sqrt(jnp.square(table).sum(-1)).mean()

    @property
    def _embedding_scale(self) -> float:
        scaled = FAMILIES[self.config.model_type].scaled_embeddings
        return self.config.hidden_size**0.5 if scaled else 1.0

    def views(
        self,
        at: Int[Array | np.ndarray, "#B T"],
        mask: Bool[Array, "#B #T S"] | None = None,
        slots_at: Int[Array, "#B S"] | None = None,
    ) -> Views:
        """What the layers know of tokens at some positions, of which the mask says what they see.

        Args:
          mask: without it, they see each other, but for what comes later.
          slots_at: where the keys of the slots stand; slot s holds position s unless given.
        """
        config, length, window = self.config, at.shape[1], None
        if mask is None:
            mask, window = jnp.tril(jnp.ones((1, length, length), bool)), length
        turns = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        full = View(mask, Positions.of(at, turns), window)
        if not any(config.slides):
            return Views(full, full)
        keys_at = np.arange(mask.shape[-1])[None] if slots_at is None else slots_at
        near = keys_at[:, None] > at[:, :, None] - cast(int, config.sliding_window)
        local = full.positions
        if config.rope_local_base_freq is not None:
            local = Positions.of(at, frequencies(config.head_dim, config.rope_local_base_freq))
        return Views(full, View(mask & near, local, window and config.sliding_window))

    def logits(self, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Of each next token, from last hidden states."""
        flat = x.reshape(-1, x.shape[-1])
        if self.lm_head is None:
            y = times_rows(flat, constrain(self.embed_tokens[...].astype(x.dtype), "vocab", None))
        else:
            y = self.lm_head(flat)
        y = y.reshape(*x.shape[:-1], -1)
        return capped(y, self.config.final_logit_softcapping)

    def head(self) -> Float[Array, "D V"]:
        """The matrix from the last hidden states to logits."""
        kernel = self.lm_head.kernel[...] if self.lm_head else self.embed_tokens[...].T
        return constrain(kernel.astype(self.config.dtype), None, "vocab")

    def hidden(
        self, x: Float[Array, "B T D"], memory: Memory | None = None
    ) -> Float[Array, "B T D"]:
        """The normalised last hidden states for embeddings that start at position 0."""
        return self.norm(self._scan(x, memory)[0])

    def looks(self, x: Float[Array, "B T D"], memory: Memory) -> Float[Array, "G B T M"]:
        """What share of its look at the memory each cross-attention gives to each of its tokens."""
        return self._scan(x, memory, look=True)[1]

    def _scan(self, x: Array, memory: Memory | None, look: bool = False) -> tuple[Array, Any]:
        views, slides = self.views(np.arange(x.shape[1])[None]), self.config.slides
        alike = slides[0] if len(set(slides)) == 1 else None

        @REMAT[self.config.remat]
        def layer(x, block_and_slides):
            block, slides = block_and_slides
            if alike is None and platform() != "cpu":  # whose kernels must know their window
                each = [lambda x, view=view: block(x, *view)[0] for view in views]
                return jax.lax.cond(slides, each[1], each[0], x), None
            return block(x, *views.of(slides if alike is None else alike))[0], None

        @REMAT[self.config.remat]
        def crossed(x, cross, memory):
            keys_values = cross.keys_values(memory)
            weights = cross.weights(x, keys_values, memory.mask) if look else None
            return cross(x, keys_values, memory.mask), weights

        def group(x, blocks_and_cross):
            blocks, slides, cross = blocks_and_cross
            x, _ = jax.lax.scan(layer, x, (blocks, slides))
            return (x, None) if cross is None or memory is None else crossed(x, cross, memory)

        cross = None if memory is None else self.cross
        slides = jnp.array(slides).reshape(self.groups, -1)
        # Round a loop of groups, XLA:CPU would copy all that is kept of their layers once more.
        return jax.lax.scan(group, x, (self.grouped(), slides, cross), unroll=platform() == "cpu")

    def grouped(self) -> Block:
        """The stacked blocks as [groups, layers of a group, ...]."""
        return jax.tree.map(lambda p: p.reshape(self.groups, -1, *p.shape[1:]), self.layers)

    def extended(self, rows: Float[Array, "I D"]) -> "Decoder":
        """A copy whose vocabulary goes on with these rows, as embeddings and in the head."""
        copy = nnx.clone(self)
        copy.config = self.config.model_copy(
            update={"vocab_size": self.config.vocab_size + len(rows)}
        )
        table = self.embed_tokens[...]
        # Split alike before they are joined: XLA would make a whole of what differs.
        parts = [constrain(x, "vocab", None) for x in (table, rows.astype(table.dtype))]
        copy.embed_tokens = nnx.Param(jnp.concatenate(parts))
        if copy.lm_head is not None:
            kernel = copy.lm_head.kernel[...]
            parts = [constrain(x, None, "vocab") for x in (kernel, rows.T.astype(kernel.dtype))]
            copy.lm_head.kernel = nnx.Param(jnp.concatenate(parts, axis=1))
        return copy

    def unstacked(self, *, int8: bool = False) -> "Decoder":
        """A copy that generation unrolls, with every kernel as it reads it, perhaps in int8.

        Its `layers` and `cross` are lists of single modules, each with its own buffers: a scan
        copies every layer's weights out of the stack, at each token. Embeddings, and a head that
        is tied to them, stay as they are.
        """

        def each(stack):
            count = jax.tree.leaves(stack)[0].shape[0]
            return nnx.List([jax.tree.map(lambda p, i=i: p[i], stack) for i in range(count)])

        copy = nnx.clone(self)
        copy.layers, copy.cross = each(self.layers), self.cross and each(self.cross)
        for _, module in list(nnx.iter_modules(copy)):
            for name, child in list(nnx.iter_children(module)):
                if isinstance(child, Linear):
                    setattr(module, str(name), ServedLinear(child, int8=int8))
        return copy

    def __call__(
        self, tokens: Int[Array, "B T"], memory: Memory | None = None
    ) -> Float[Array, "B T V"]:
        """Logits of each next token."""
        logits = self.logits(self.hidden(self.embed(tokens), memory))
        return constrain(logits, "batch", None, "vocab")
