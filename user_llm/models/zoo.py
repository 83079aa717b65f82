"""The zoo: named sizes of encoders, and how many parameters they have."""

import math
from typing import Any

import jax
from flax import nnx

from user_llm.config import EncoderConfig, EncoderKind, FeatureConfig
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


def encoder(size: str, kind: EncoderKind = "autoregressive", **changes: Any) -> EncoderConfig:
    """The config of an encoder of that size; `changes` are further fields.

    Raises:
      ValueError: an unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"no size is named {size!r}; choose from {', '.join(SIZES)}")
    return EncoderConfig(kind=kind, **SIZES[size] | changes)


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
        for kind in ("hstu",) if "hstu" in size else ENCODERS:
            config = encoder(size, kind)  # pyright: ignore[reportArgumentType]
            tables, rest = count_parameters(config, items)
            shape = f"{config.embed:6}{config.layers:8}"
            lines.append(f"{size:22}{kind:17}{shape}{rest:13,}{tables:12,}")
    return "\n".join(lines)
