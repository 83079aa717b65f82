"""The zoo: named sizes of encoders and decoders, and how many parameters they have."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
from flax import nnx

from user_llm.config import (
    DecoderConfig,
    EncoderConfig,
    EncoderKind,
    FeatureConfig,
    LayerType,
    ModelType,
    RopeScaling,
)
from user_llm.models.decoder import Decoder
from user_llm.models.encoders import ENCODERS

# Widths and depths as published for MovieLens and larger catalogues, and two steps beyond.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed": 64, "heads": 1, "layers": 2, "mlp": 256, "feature_embed": 16},
    "small": {"embed": 128, "heads": 2, "layers": 4, "mlp": 512, "feature_embed": 32},
    "base": {"embed": 256, "heads": 8, "layers": 8, "mlp": 1024, "feature_embed": 64},
    "large": {"embed": 512, "heads": 8, "layers": 16, "mlp": 2048, "feature_embed": 64},
    "hstu_published": {"embed": 50, "heads": 1, "layers": 2, "feature_embed": 50},
    "hstu_large_published": {"embed": 50, "heads": 2, "layers": 8, "feature_embed": 50},
}


def _decoder(
    model_type: ModelType,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    **others: Any,
) -> DecoderConfig:
    return DecoderConfig(
        model_type=model_type,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        **others,
    )


def _slides(layers: int, every: int) -> tuple[LayerType, ...]:
    """Of so many layers, each `every`th sees all."""
    kinds: tuple[LayerType, LayerType] = ("sliding_attention", "full_attention")
    return tuple(kinds[(i + 1) % every == 0] for i in range(layers))


def _llama3(*sizes: int, factor: float = 32.0, tied: bool = True) -> DecoderConfig:
    scaling = RopeScaling(
        rope_type="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    return _decoder(
        "llama",
        128_256,
        *sizes,
        max_position_embeddings=131_072,
        rope_theta=500_000.0,
        rope_scaling=scaling,
        tie_word_embeddings=tied,
    )


def _qwen(
    model_type: ModelType, *sizes: int, positions: int = 32_768, tied: bool = True
) -> DecoderConfig:
    return _decoder(
        model_type,
        *sizes,
        max_position_embeddings=positions,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
    )


def _gemma2(*sizes: int, divisor: int = 256) -> DecoderConfig:
    return _decoder(
        "gemma2",
        256_000,
        *sizes,
        max_position_embeddings=8192,
        sliding_window=4096,
        layer_types=_slides(sizes[2], 2),
        query_pre_attn_scalar=divisor,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        rms_norm_eps=1e-6,
    )


def _gemma3(*sizes: int, window: int, positions: int = 32_768, **others: Any) -> DecoderConfig:
    return _decoder(
        "gemma3_text",
        *sizes,
        max_position_embeddings=positions,
        rope_theta=1e6,
        rope_local_base_freq=10_000.0,
        sliding_window=window,
        layer_types=_slides(sizes[3], 6),
        rms_norm_eps=1e-6,
        **{"query_pre_attn_scalar": 256} | others,
    )


def _gemma3_of_images(*sizes: int, **others: Any) -> DecoderConfig:
    """The text model of one that also sees."""
    scaling = RopeScaling(rope_type="linear", factor=8.0)
    return _gemma3(262_208, *sizes, window=1024, positions=131_072, rope_scaling=scaling, **others)


# As published by their makers. The sizes are vocabulary (where a family's are not all alike),
# width, MLP, layers, heads, key-value heads and a head's width.
DECODERS: dict[str, DecoderConfig] = {
    "smollm2_135m": _decoder(
        "llama", 49_152, 576, 1536, 30, 9, 3, 64, max_position_embeddings=8192, rope_theta=1e5
    ),
    "smollm2_360m": _decoder(
        "llama", 49_152, 960, 2560, 32, 15, 5, 64, max_position_embeddings=8192, rope_theta=1e5
    ),
    "smollm2_1p7b": _decoder(
        "llama", 49_152, 2048, 8192, 24, 32, 32, 64, max_position_embeddings=8192, rope_theta=1.3e5
    ),
    "tinyllama_1b": _decoder(
        *("llama", 32_000, 2048, 5632, 22, 32, 4, 64),
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    ),
    "llama2_7b": _decoder(
        *("llama", 32_000, 4096, 11_008, 32, 32, 32, 128),
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    ),
    "llama3_1b": _llama3(2048, 8192, 16, 32, 8, 64),
    "llama3_3b": _llama3(3072, 8192, 28, 24, 8, 128),
    "llama3_8b": _llama3(4096, 14_336, 32, 32, 8, 128, factor=8.0, tied=False),
    "llama3_70b": _llama3(8192, 28_672, 80, 64, 8, 128, factor=8.0, tied=False),
    "mistral_7b": _decoder(
        *("mistral", 32_000, 4096, 14_336, 32, 32, 8, 128),
        max_position_embeddings=32_768,
        sliding_window=4096,
        tie_word_embeddings=False,
    ),
    "qwen2_0p5b": _qwen("qwen2", 151_936, 896, 4864, 24, 14, 2, 64),
    "qwen2_1p5b": _qwen("qwen2", 151_936, 1536, 8960, 28, 12, 2, 128, positions=131_072),
    "qwen2_7b": _qwen(
        "qwen2", 152_064, 3584, 18_944, 28, 28, 4, 128, positions=131_072, tied=False
    ),
    "qwen3_0p6b": _qwen("qwen3", 151_936, 1024, 3072, 28, 16, 8, 128, positions=40_960),
    "qwen3_1p7b": _qwen("qwen3", 151_936, 2048, 6144, 28, 16, 8, 128, positions=40_960),
    "qwen3_4b": _qwen("qwen3", 151_936, 2560, 9728, 36, 32, 8, 128, positions=40_960),
    "qwen3_8b": _qwen("qwen3", 151_936, 4096, 12_288, 36, 32, 8, 128, positions=40_960, tied=False),
    "gemma2_2b": _gemma2(2304, 9216, 26, 8, 4, 256),
    "gemma2_9b": _gemma2(3584, 14_336, 42, 16, 8, 256),
    "gemma2_27b": _gemma2(4608, 36_864, 46, 32, 16, 128, divisor=144),
    "gemma3_270m": _gemma3(262_144, 640, 2048, 18, 4, 1, 256, window=512),
    "gemma3_1b": _gemma3(262_144, 1152, 6912, 26, 4, 1, 256, window=512),
    "gemma3_4b_text": _gemma3_of_images(2560, 10_240, 34, 8, 4, 256),
    "gemma3_12b_text": _gemma3_of_images(3840, 15_360, 48, 16, 8, 256),
    "gemma3_27b_text": _gemma3_of_images(5376, 21_504, 62, 32, 16, 128, query_pre_attn_scalar=168),
}


def encoder(size: str, kind: EncoderKind = "autoregressive", **changes: Any) -> EncoderConfig:
    """The config of an encoder of that size; `changes` are further fields.

    Raises:
      ValueError: an unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"no size is named {size!r}; choose from {', '.join(SIZES)}")
    return EncoderConfig(kind=kind, **SIZES[size] | changes)


def decoder(name: str, **changes: Any) -> DecoderConfig:
    """The config of the decoder of that name; `changes` are further fields, such as its types.

    Raises:
      ValueError: an unknown name.
    """
    if name not in DECODERS:
        raise ValueError(f"no decoder is named {name!r}; choose from {', '.join(DECODERS)}")
    return DecoderConfig(**DECODERS[name].model_dump() | changes)


def count_decoder(config: DecoderConfig) -> int:
    """The parameters of a decoder; a tied table counts once."""
    return count_model(partial(Decoder, config))


def count_model(make_model: Callable[..., nnx.Module]) -> int:
    """The parameters of a model, which is made by shapes alone."""
    model = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def decoder_table() -> str:
    """Every decoder with its parameters, and what one token of a text takes in its cache."""
    lines = [f"{'decoder':18}{'family':13}{'width':>6}{'layers':>8}{'parameters':>16}{'cache':>12}"]
    for name, config in DECODERS.items():
        cache = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        shape = f"{config.hidden_size:6}{config.num_hidden_layers:8}{count_decoder(config):16,}"
        lines.append(f"{name:18}{config.model_type:13}{shape}{cache / 1024:7,.0f} KiB")
    return "\n".join([*lines, "cache: keys and values of one token in bfloat16, in all layers"])


def count_parameters(config: EncoderConfig, items: int) -> tuple[int, int]:
    """The parameters of an encoder of item ids: in its tables of `items` items, and in the rest."""
    feature = FeatureConfig(name="item", kind="categorical", size=items, predicted=True)
    model = nnx.eval_shape(lambda: ENCODERS[config.kind](config, (feature,), rngs=nnx.Rngs(0)))
    shapes = [x.shape for x in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))]
    tables = sum(math.prod(shape) for shape in shapes if shape[:1] == (items,))
    return tables, sum(map(math.prod, shapes)) - tables


def table(items: int = 3_706) -> str:
    """Every size as every kind of encoder, with its parameters; the default is MovieLens 1M's."""
    lines = [f"{'size':22}{'kind':17}{'width':>6}{'layers':>8}{'layers hold':>13}{'items':>12}"]
    for size in SIZES:
        kinds: Iterable[EncoderKind] = ("hstu",) if "hstu" in size else ENCODERS
        for kind in kinds:
            config = encoder(size, kind)
            tables, rest = count_parameters(config, items)
            shape = f"{config.embed:6}{config.layers:8}"
            lines.append(f"{size:22}{kind:17}{shape}{rest:13,}{tables:12,}")
    return "\n".join(lines)
