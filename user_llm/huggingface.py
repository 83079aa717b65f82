"""Hugging Face's folders of decoders, read and written: names to names, one table per family."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from user_llm.config import DecoderConfig

# Our names to theirs, `{}` standing for the layer; a `kernel` is the transpose of torch's weight.
LLAMA = {
    "embed_tokens": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.kernel": "lm_head.weight",
    **{
        f"layers.{name}.weight": f"model.layers.{{}}.{name}.weight"
        for name in ("input_layernorm", "post_attention_layernorm")
    },
    **{
        f"layers.{part}_proj.kernel": f"model.layers.{{}}.{part}_proj.weight"
        for part in (
            *(f"self_attn.{x}" for x in "qkvo"),
            *(f"mlp.{x}" for x in ("gate", "up", "down")),
        )
    },
}
DERIVED = ".rotary_emb.inv_freq"  # a buffer in old files, made from rope_theta

# What config.json may say. Fields of DecoderConfig have the same names there; their defaults are
# Hugging Face's, and those without one must be given.
DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
ONLY = {  # attributes of which one value is supported
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "pretraining_tp": 1,
}
WITHOUT_EFFECT = {  # on the logits of a given input
    *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"),
    *("initializer_range", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id"),
}


def decoder_config(folder: str | Path) -> DecoderConfig:
    """The architecture that a folder's `config.json` describes; types are left to the caller.

    Raises:
      ValueError: there is no readable config.json, or it asks for what the decoder cannot do; all
        such attributes are named at once.
    """
    path = Path(folder) / "config.json"
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable config.json: {error}") from error
    theta, problems = _rope_theta(given)
    for name, value in ONLY.items():
        if given.get(name, value) != value:
            problems.append(f"{name}={given[name]!r}, where only {value!r} is supported")
    known = {*DEFAULTS, *SIZES, *ONLY, *WITHOUT_EFFECT, "num_key_value_heads", "head_dim"}
    known |= {"rope_theta", "rope_parameters"}
    problems += [f"{name}={given[name]!r} is unknown" for name in sorted(given.keys() - known)]
    problems += [f"{name} is missing" for name in SIZES if given.get(name) is None]
    if problems:
        raise ValueError(f"{path} describes no supported decoder: " + "; ".join(problems))
    heads = given["num_attention_heads"]
    return DecoderConfig(
        num_key_value_heads=given.get("num_key_value_heads") or heads,
        head_dim=given.get("head_dim") or given["hidden_size"] // heads,
        rope_theta=theta,
        **{name: given[name] for name in SIZES},
        **{name: given.get(name, default) for name, default in DEFAULTS.items()},
    )


def _rope_theta(given: dict[str, Any]) -> tuple[float, list[str]]:
    """The base of the rotary angles in either spelling, and what else was asked of them."""
    rope = given.get("rope_parameters") or {}
    unsupported = {k: v for k, v in rope.items() if (k, v) != ("rope_type", "default")}
    thetas = {unsupported.pop("rope_theta", None), given.get("rope_theta")} - {None}
    problems = [f"rope_parameters[{k!r}]={v!r} is not supported" for k, v in unsupported.items()]
    if len(thetas) > 1:
        problems.append(f"rope_theta has two values, {sorted(thetas)}")
    return next(iter(thetas), 10_000.0), problems


def load_decoder(folder: str | Path, abstract: dict) -> dict:
    """A decoder's parameters, read from safetensors straight to their devices, shard by shard.

    Args:
      folder: holds one safetensors file, or several with or without an index.
      abstract: the decoder's parameters as nested dicts of anything with shape, dtype and sharding
        (None: the first device). What the family has no name for (`cross`, LoRA's factors) is
        handed back as it is.

    Raises:
      ValueError: files are missing or cut short, or tensors are unknown, missing, of another shape
        or not of floating point; all problems at once.
    """
    tensors, problems = _open(Path(folder))
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
    named = {_name(path): x for path, x in leaves if _name(path) in LLAMA}
    if "lm_head.kernel" not in named:  # a tied matrix is stored under one of its names, or both
        lm_head = tensors.pop(LLAMA["lm_head.kernel"], None)
        if lm_head is not None and not np.array_equal(
            tensors.setdefault(LLAMA["embed_tokens"], lm_head)[:], lm_head[:]
        ):
            problems.append("lm_head.weight differs from the embeddings that it should be tied to")
    places = {name: _places(name, x) for name, x in named.items()}
    wanted = {theirs: name for name, keys in places.items() for theirs in keys}
    unknown = {key for key in tensors.keys() - wanted.keys() if not key.endswith(DERIVED)}
    problems += [f"{key} has no place in the decoder" for key in sorted(unknown)]
    problems += [f"{key} is missing" for key in sorted(wanted.keys() - tensors.keys())]
    for key in sorted(wanted.keys() & tensors.keys()):
        problems += _mismatch(key, tensors[key], wanted[key], named[wanted[key]])
    if problems:
        raise ValueError(f"{folder} does not fit the decoder: " + "; ".join(problems))

    def load(path, x):
        name = _name(path)
        return _read(x, tensors, places[name], _turned(name)) if name in named else x

    return jax.tree.unflatten(tree, [load(path, x) for path, x in leaves])


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _turned(name: str) -> bool:
    return name.endswith(".kernel")


def _places(name: str, x: Any) -> list[str]:
    """The tensors that make up a parameter, one per layer if it is a stack."""
    stacked = "{}" in LLAMA[name]
    return [LLAMA[name].format(i) for i in range(x.shape[0])] if stacked else [LLAMA[name]]


def _open(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Every tensor as a slice not yet read, and which files could not be opened."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        paths = {folder / x for x in json.loads(index.read_text())["weight_map"].values()}
    elif single.exists():
        paths = {single}
    else:
        paths = set(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{folder} holds no safetensors file")
    tensors, problems = {}, []
    for path in sorted(paths):
        try:
            file = safe_open(path, "numpy")
        except (SafetensorError, OSError) as error:
            problems.append(f"{path.name} is missing or cut short, fetch it again ({error})")
            continue
        tensors |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    if problems:  # what is in the others would only bury this
        raise ValueError(f"{folder} cannot be read: " + "; ".join(problems))
    return tensors, problems


def _mismatch(key: str, tensor: Any, name: str, x: Any) -> list[str]:
    """What speaks against a tensor as (a layer of) a parameter."""
    shape = tuple(x.shape[1:] if "{}" in LLAMA[name] else x.shape)
    shape = shape[::-1] if _turned(name) else shape
    problems = []
    if tuple(tensor.get_shape()) != shape:
        problems.append(f"{key} has shape {tuple(tensor.get_shape())}, the decoder wants {shape}")
    if tensor.get_dtype() not in ("F64", "F32", "F16", "BF16"):
        problems.append(f"{key} has type {tensor.get_dtype()}, which is not floating point")
    return problems


def _read(x: Any, tensors: dict[str, Any], keys: list[str], turned: bool) -> jax.Array:
    stacked = len(x.shape) > len(tensors[keys[0]].get_shape())
    shards = {}  # JAX asks once for each device, replicas included

    def read(index):
        if str(index) not in shards:
            ours, rest = (keys[index[0]], index[1:]) if stacked else (keys, index)
            parts = [tensors[key][rest[::-1] if turned else rest] for key in ours]
            parts = [part.T if turned else part for part in parts]
            shards[str(index)] = (np.stack(parts) if stacked else parts[0]).astype(x.dtype)
        return shards[str(index)]

    sharding = x.sharding or SingleDeviceSharding(jax.devices()[0])
    return jax.make_array_from_callback(x.shape, sharding, read)


def save_decoder(folder: str | Path, config: DecoderConfig, params: dict) -> None:
    """Writes `model.safetensors` and `config.json`, which `load_decoder` and transformers read.

    What the family has no name for (`cross`, LoRA's factors) is left out: it is the caller's.

    Raises:
      ValueError: a parameter of the family is missing.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    ours = {_name(path): np.asarray(x) for path, x in leaves if _name(path) in LLAMA}
    wanted = LLAMA.keys() - ({"lm_head.kernel"} if config.tie_word_embeddings else set())
    if ours.keys() != wanted:
        raise ValueError(
            f"{folder} cannot be written: missing {sorted(wanted - ours.keys())}, "
            f"not to be expected {sorted(ours.keys() - wanted)}"
        )
    tensors = {}
    for name, x in ours.items():
        for key, part in zip(_places(name, x), x if "{}" in LLAMA[name] else [x], strict=True):
            tensors[key] = np.ascontiguousarray(part.T if _turned(name) else part)
    described = config.model_dump(exclude={"dtype", "param_dtype", "rope_theta"}) | {
        **{name: value for name, value in ONLY.items() if value is not None},
        "dtype": str(ours["embed_tokens"].dtype),
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "model.safetensors", lambda path: save_file(tensors, path, {"format": "pt"}))
    _replace(folder / "config.json", lambda path: path.write_text(json.dumps(described, indent=2)))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file under another name first, so that under its own it is always whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(unfinished)
        unfinished.chmod(0o644)  # safetensors writes 0600
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
