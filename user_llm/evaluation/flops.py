"""Floating-point operations by formula: what every part of an answer has to multiply.

A multiplication with its addition counts as two. Only products count: norms, softmax, activations
and look-ups are left out, a few percent in all. Where attention is causal, a token meets itself and
those before it, and no program that does more than that is credited for it.
"""

from collections.abc import Sequence

from user_llm.config import (
    CrossAttentionConfig,
    DecoderConfig,
    EncoderConfig,
    FeatureConfig,
    LoRAConfig,
    PerceiverConfig,
)
from user_llm.models.encoders import ENCODERS
from user_llm.models.layers import NO_LORA


def pairs(tokens: int, before: int = 0, window: int | None = None) -> int:
    """How many pairs of query and key there are for new tokens, each seeing a window up to itself.

    Args:
      before: earlier tokens, whose keys are kept.
    """

    def of_first(count: int) -> int:
        near = count if window is None else min(count, window)
        return near * (near + 1) // 2 + (count - near) * near

    return of_first(before + tokens) - of_first(before)


def decoder(config: DecoderConfig, tokens: int, before: int = 0, lora: LoRAConfig = NO_LORA) -> int:
    """All layers for new tokens after others whose keys and values are kept; without the head."""
    width, mlp = config.hidden_size, config.intermediate_size
    inner = config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    shapes = {
        "q_proj": (width, inner),
        "k_proj": (width, shared),
        "v_proj": (width, shared),
        "o_proj": (inner, width),
        "gate_proj": (width, mlp),
        "up_proj": (width, mlp),
        "down_proj": (mlp, width),
    }
    adapted = {*lora.of("self_attn").targets, *lora.of("mlp").targets} if lora.rank else set()
    each = sum(2 * i * o for i, o in shapes.values())
    each += sum(2 * lora.rank * sum(shapes[name]) for name in adapted)
    windows = [config.sliding_window if slides else None for slides in config.slides]
    return sum(each * tokens + 4 * inner * pairs(tokens, before, window) for window in windows)


def head(config: DecoderConfig) -> int:
    """The logits of one token."""
    return 2 * config.hidden_size * config.vocab_size


def cross_keys_values(config: DecoderConfig, cross: CrossAttentionConfig, memory: int) -> int:
    """The keys and values that all cross-attentions make of a memory's tokens, once per user."""
    groups, _, shared = cross_widths(config, cross)
    return groups * memory * 2 * 2 * config.hidden_size * shared


def cross_attention(
    config: DecoderConfig, cross: CrossAttentionConfig, tokens: int, memory: int
) -> int:
    """What all cross-attentions do for tokens of a text, given a memory's keys and values."""
    groups, inner, _ = cross_widths(config, cross)
    return groups * tokens * (2 * 2 * config.hidden_size * inner + 4 * inner * memory)


def cross_widths(config: DecoderConfig, cross: CrossAttentionConfig) -> tuple[int, int, int]:
    """How many cross-attentions there are, and how wide each one's queries and keys are."""
    each = config.hidden_size // cross.heads
    groups = config.num_hidden_layers // cross.every
    return groups, cross.heads * each, (cross.kv_heads or cross.heads) * each


def encoder(
    config: EncoderConfig, features: Sequence[FeatureConfig], events: int, before: int = 0
) -> int:
    """The states of new events after others, of which a causal encoder keeps keys and values.

    Raises:
      ValueError: there are events before, and the encoder reads both ways.
    """
    width, met = config.embed, pairs(events, before)
    if before and not ENCODERS[config.kind].causal:
        raise ValueError(f"a {config.kind} encoder reads both ways: count all events as new")
    if config.kind == "hstu":
        each = 2 * (4 + 1) * width**2
    elif config.kind == "bert4rec":
        each, met = 2 * (4 * width**2 + 2 * width * config.mlp), events**2
    else:
        gates = 2 if config.gated else 0
        each = 2 * ((4 + gates) * width**2 + 3 * width * config.mlp)
    return embedding(config, features, events) + config.layers * (each * events + 4 * width * met)


def embedding(config: EncoderConfig, features: Sequence[FeatureConfig], events: int) -> int:
    """Each event's features together, and of every item of the catalogue what its content says."""

    def together(some: list[FeatureConfig], rows: int) -> int:
        vectors = sum(feature.size for feature in some if feature.kind == "vector")
        return 2 * rows * config.feature_embed * (vectors + len(some) * config.embed)

    item, *others = features
    told = [feature for feature in others if feature.name not in config.content]
    content = [feature for feature in others if feature.name in config.content]
    return together(told, events) + together(content, item.size)


def perceiver(config: PerceiverConfig, width: int, tokens: int) -> int:
    """The latents of a stream of so many tokens; nothing where it is not compressed."""
    latents = config.latents
    if not latents:
        return 0
    seen = tokens + latents
    projections = 2 * width**2 * 2 * (seen + latents)  # keys and values, queries and outputs
    mlp = 2 * 3 * width * 2 * width * latents
    return config.layers * (projections + 4 * width * latents * seen + mlp)


def projector(inputs: int, outputs: int, tokens: int) -> int:
    """A memory's tokens in the decoder's width."""
    return 2 * tokens * (inputs * outputs + outputs**2)
