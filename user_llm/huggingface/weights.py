"""Decoders' weights, read and written under the names of their families."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors.numpy import save_file

from user_llm.config import DecoderConfig
from user_llm.huggingface.configs import NO_TOKENS, decoder_config, described
from user_llm.huggingface.tensors import (
    INDEX,
    SINGLE,
    Plan,
    by_name,
    equal,
    placed,
    places_of,
    plan,
    turned,
)
from user_llm.models.decoder import Decoder

# Our names to theirs, `{}` standing for the layer; a `kernel` is the transpose of torch's weight.
NAMES = {
    "embed_tokens": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.kernel": "lm_head.weight",
    **{
        f"layers.{name}.weight": f"model.layers.{{}}.{name}.weight"
        for name in (
            *("input_layernorm", "post_attention_layernorm"),
            *("self_attn.q_norm", "self_attn.k_norm"),
        )
    },
    **{
        f"layers.{part}_proj.{ours}": f"model.layers.{{}}.{part}_proj.{theirs}"
        for part in (
            *(f"self_attn.{x}" for x in "qkvo"),
            *(f"mlp.{x}" for x in ("gate", "up", "down")),
        )
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
    },
}
# Families that normalise what attention and MLP add call their norms otherwise.
POST_NORMS = NAMES | {
    "layers.post_self_attn_layernorm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layers.post_attention_layernorm.weight": "model.layers.{}.pre_feedforward_layernorm.weight",
    "layers.post_mlp_layernorm.weight": "model.layers.{}.post_feedforward_layernorm.weight",
}
DERIVED = ".rotary_emb.inv_freq"  # a buffer in old files, made from rope_theta
CONFIG, SHARDS = "config.json", "model-?????-of-?????.safetensors"
SHARD_BYTES = 5 * 10**9  # of a file at most, unless one tensor is larger


def import_decoder(folder: str | Path, mesh: Mesh | None = None, **changes: Any) -> Decoder:
    """The decoder of a folder, placed on a mesh if there is one.

    Args:
      changes: further fields of its config, such as `dtype` and `param_dtype`.

    Raises:
      ValueError: as `decoder_config` and `load_decoder`.
    """
    config = DecoderConfig(**decoder_config(folder).model_dump() | changes)
    graphdef, abstract = placed(lambda: Decoder(config, rngs=nnx.Rngs(0)), mesh)
    return nnx.merge(graphdef, load_decoder(folder, abstract))


def check_decoder(folder: str | Path, config: DecoderConfig) -> None:
    """Refuses what `load_decoder` would refuse, without reading more than it needs for that."""
    _plan(Path(folder), _abstract(config))


def load_decoder(folder: str | Path, abstract: dict) -> dict:
    """A decoder's parameters, read from safetensors straight to their devices, shard by shard.

    The host holds one device's part of one stack of layers, or of one table, at a time.

    Args:
      folder: holds one safetensors file, or several with or without an index.
      abstract: the decoder's parameters as nested dicts of anything with shape, dtype and sharding
        (None: the first device). What the family has no name for (`cross`, LoRA's factors) is
        handed back as it is.

    Raises:
      ValueError: files are missing or cut short, or tensors are unknown, missing, of another shape
        or not of floating point; all problems at once.
    """
    return _plan(Path(folder), abstract).load(abstract)


def _plan(folder: Path, abstract: dict) -> Plan:
    named = by_name(abstract)

    def settle(tensors: dict[str, Any]) -> list[str]:
        for key in [key for key in tensors if key.endswith(DERIVED)]:
            del tensors[key]
        if "lm_head.kernel" in named:
            return []
        # A tied matrix is stored under one of its names, or both.
        lm_head = tensors.pop(NAMES["lm_head.kernel"], None)
        if lm_head is None or equal(tensors.setdefault(NAMES["embed_tokens"], lm_head), lm_head):
            return []
        return ["lm_head.weight differs from the embeddings that it should be tied to"]

    return plan(folder, _theirs(named), named, "decoder", settle)


def _theirs(ours: Iterable[str]) -> dict[str, str]:
    """What the family calls those of our parameters that it has."""
    names = POST_NORMS if "layers.post_mlp_layernorm.weight" in ours else NAMES
    return {name: names[name] for name in ours if name in names}


def save_decoder(
    folder: str | Path,
    config: DecoderConfig,
    params: dict,
    *,
    special: Mapping[str, Any] = NO_TOKENS,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes safetensors and `config.json`, which `load_decoder` and transformers read.

    What is larger than `shard_bytes` becomes several files with an index, and the host holds one of
    them at a time. What the family has no name for (`cross`, LoRA's factors) is left out: it is the
    caller's. While files of an earlier decoder are replaced, there is no `config.json`.

    Args:
      special: the ids of special tokens for `config.json`: `bos_token_id`, `eos_token_id`, ...

    Raises:
      ValueError: a parameter of the family is missing, or is one that the config does not have; or
        the family has no words for what the config says.
    """
    ours, wanted = by_name(params), by_name(_abstract(config))
    theirs = _theirs(ours)
    if theirs.keys() != wanted.keys():
        raise ValueError(
            f"{folder} cannot be written: missing {sorted(wanted.keys() - theirs.keys())}, "
            f"not to be expected {sorted(theirs.keys() - wanted.keys())}"
        )
    _refuse_unsaid(folder, config)

    def tensor(name: str, layer: int, size: int) -> np.ndarray:
        x = np.asarray(ours[name][layer] if "{}" in theirs[name] else ours[name])
        return np.ascontiguousarray(x.T if turned(name) else x)

    files = _divided(ours, theirs, shard_bytes)
    folder, count = Path(folder), len(files)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".unfinished-") as place:
        weight_map = {}
        for i, own in enumerate(files, 1):
            file = f"model-{i:05}-of-{count:05}.safetensors" if count > 1 else SINGLE
            weight_map |= dict.fromkeys(own, file)
            save_file({k: tensor(*x) for k, x in own.items()}, Path(place, file), {"format": "pt"})
        if count > 1:
            total = sum(size for own in files for *_, size in own.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            Path(place, INDEX).write_text(json.dumps(index, indent=2))
        said = described(config, str(ours["embed_tokens"].dtype), special)
        Path(place, CONFIG).write_text(json.dumps(said, indent=2))
        _replace(Path(place), folder)


def _divided(
    ours: Mapping[str, Any], theirs: Mapping[str, str], shard_bytes: int
) -> list[dict[str, tuple[str, int, int]]]:
    """What each file holds: by its name there each tensor's parameter, layer and bytes."""
    files = [{}]
    for name, pattern in theirs.items():
        keys = places_of(pattern, ours[name])
        size = ours[name].nbytes // len(keys)
        for layer, key in enumerate(keys):
            held = sum(size for *_, size in files[-1].values())
            if held and held + size > shard_bytes:
                files.append({})
            files[-1][key] = (name, layer, size)
    return files


def _replace(place: Path, folder: Path) -> None:
    """Moves a decoder's files to where those of an earlier one may be; the config goes last."""

    def put(name: str) -> None:
        (place / name).chmod(0o644)  # safetensors writes 0600
        (place / name).replace(folder / name)

    written = {path.name for path in place.iterdir()} - {CONFIG}
    (folder / CONFIG).unlink(missing_ok=True)
    for name in sorted(written):
        put(name)
    for path in (folder / SINGLE, folder / INDEX, *folder.glob(SHARDS)):
        if path.name not in written:
            path.unlink(missing_ok=True)
    put(CONFIG)


def _refuse_unsaid(folder: str | Path, config: DecoderConfig) -> None:
    """Refuses a config of which its family's `config.json` cannot say all."""

    def told(config: DecoderConfig) -> dict[str, Any]:
        free = DecoderConfig.COMPUTING | {"layer_types"}
        return config.model_dump(exclude=free) | {"slides": config.slides}

    with TemporaryDirectory() as place:
        Path(place, CONFIG).write_text(json.dumps(described(config, config.dtype)))
        again, wanted = told(decoder_config(place)), told(config)
    if lost := [f"{name}={x}" for name, x in wanted.items() if again[name] != x]:
        raise ValueError(
            f"{folder} cannot be written: {config.model_type} has no words for {', '.join(lost)}"
        )


def _abstract(config: DecoderConfig) -> dict:
    return placed(lambda: Decoder(config, rngs=nnx.Rngs(0)))[1]
