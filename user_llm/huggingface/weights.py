"""Weights in safetensors, read straight to their devices and written back: names to names."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from user_llm.config import DecoderConfig
from user_llm.huggingface.configs import NO_TOKENS, decoder_config, described
from user_llm.models.decoder import Decoder
from user_llm.sharding import shardings

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
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, SHARDS = "config.json", "model-?????-of-?????.safetensors"
SHARD_BYTES = 5 * 10**9  # of a file at most, unless one tensor is larger
PIECE = 2**20  # values that are read from a file at a time


def import_decoder(folder: str | Path, mesh: Mesh | None = None, **changes: Any) -> Decoder:
    """The decoder of a folder, placed on a mesh if there is one.

    Args:
      changes: further fields of its config, such as `dtype` and `param_dtype`.

    Raises:
      ValueError: as `decoder_config` and `load_decoder`.
    """
    config = DecoderConfig(**decoder_config(folder).model_dump() | changes)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    abstract = nnx.to_pure_dict(state)
    if mesh is not None:
        abstract = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            abstract,
            nnx.to_pure_dict(shardings(state, mesh)),
        )
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
    tensors, places = _plan(Path(folder), abstract)

    def load(path, x):
        name = _name(path)
        return _read(x, tensors, places[name], _turned(name)) if name in places else x

    return jax.tree.map_with_path(load, abstract)


def _plan(folder: Path, abstract: dict) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The folder's tensors, not yet read, and which of them make up each parameter."""
    tensors, problems = _open(folder)
    named = _by_name(abstract)
    theirs = _theirs(named)
    if "lm_head.kernel" not in named:  # a tied matrix is stored under one of its names, or both
        lm_head = tensors.pop(NAMES["lm_head.kernel"], None)
        if lm_head is not None and not _equal(
            tensors.setdefault(NAMES["embed_tokens"], lm_head), lm_head
        ):
            problems.append("lm_head.weight differs from the embeddings that it should be tied to")
    places = {name: _places(key, named[name]) for name, key in theirs.items()}
    wanted = {key: name for name, keys in places.items() for key in keys}
    unknown = {key for key in tensors.keys() - wanted.keys() if not key.endswith(DERIVED)}
    problems += [f"{key} has no place in the decoder" for key in sorted(unknown)]
    problems += [f"{key} is missing" for key in sorted(wanted.keys() - tensors.keys())]
    for key in sorted(wanted.keys() & tensors.keys()):
        problems += _mismatch(key, tensors[key], _wanted_shape(wanted[key], named[wanted[key]]))
    if problems:
        raise ValueError(f"{folder} does not fit the decoder: " + "; ".join(problems))
    return tensors, places


def _by_name(params: dict) -> dict[str, Any]:
    return {_name(path): x for path, x in jax.tree.leaves_with_path(params)}


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _theirs(ours: Iterable[str]) -> dict[str, str]:
    """What the family calls those of our parameters that it has."""
    names = POST_NORMS if "layers.post_mlp_layernorm.weight" in ours else NAMES
    return {name: names[name] for name in ours if name in names}


def _turned(name: str) -> bool:
    return name.endswith(".kernel")


def _places(theirs: str, x: Any) -> list[str]:
    """The tensors that make up a parameter, one per layer if it is a stack."""
    return [theirs.format(i) for i in range(x.shape[0])] if "{}" in theirs else [theirs]


def _wanted_shape(name: str, x: Any) -> tuple[int, ...]:
    """The shape of (a layer of) a parameter in the file."""
    shape = tuple(x.shape[1:] if name.startswith("layers.") else x.shape)
    return shape[::-1] if _turned(name) else shape


def _open(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Every tensor as a slice not yet read, and which files could not be opened."""
    index, single = folder / INDEX, folder / SINGLE
    if single.exists():  # before an index, as transformers prefers it
        paths = {single}
    elif index.exists():
        paths = {folder / x for x in json.loads(index.read_text())["weight_map"].values()}
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


def _mismatch(key: str, tensor: Any, shape: tuple[int, ...]) -> list[str]:
    """What speaks against a tensor."""
    problems = []
    if tuple(tensor.get_shape()) != shape:
        problems.append(f"{key} has shape {tuple(tensor.get_shape())}, the decoder wants {shape}")
    if tensor.get_dtype() not in ("F64", "F32", "F16", "BF16"):
        problems.append(f"{key} has type {tensor.get_dtype()}, which is not floating point")
    return problems


def _read(x: Any, tensors: dict[str, Any], keys: list[str], turned: bool) -> jax.Array:
    stacked = len(x.shape) > len(tensors[keys[0]].get_shape())
    sharding = x.sharding or SingleDeviceSharding(jax.devices()[0])
    replicas = {}  # of each shard: the devices that hold it
    for device, index in sharding.addressable_devices_indices_map(x.shape).items():
        replicas.setdefault(str(index), (index, []))[1].append(device)
    arrays = []
    for index, devices in replicas.values():
        shape = [len(range(n)[part]) for part, n in zip(index, x.shape, strict=True)]
        shard = np.empty(shape, x.dtype)
        ours, rest = (keys[index[0]], index[1:]) if stacked else (keys, index)
        for key, place in zip(ours, shard if stacked else [shard], strict=True):
            place, theirs = (place.T, rest[::-1]) if turned else (place, rest)
            for rows, piece in _pieces(tensors[key], theirs):
                place[rows] = piece
        # Waiting for it, so that the host never holds two.
        arrays += [jax.block_until_ready(jax.device_put(shard, device)) for device in devices]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, arrays)


def _pieces(
    tensor: Any, index: tuple[slice, ...] = (slice(None),)
) -> Iterator[tuple[slice, np.ndarray]]:
    """A tensor's part, some rows at a time: a whole table would be held beside its copy."""
    start, stop, _ = index[0].indices(tensor.get_shape()[0])
    step = max(1, PIECE // math.prod(tensor.get_shape()[1:]))
    for row in range(start, stop, step):
        piece = tensor[slice(row, min(row + step, stop)), *index[1:]]
        yield slice(row - start, row - start + len(piece)), piece


def _equal(a: Any, b: Any) -> bool:
    """Whether two tensors hold the same."""
    pairs = zip(_pieces(a), _pieces(b), strict=False)
    same = a.get_shape() == b.get_shape()
    return same and all(np.array_equal(x, y) for (_, x), (_, y) in pairs)


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
    ours, wanted = _by_name(params), _by_name(_abstract(config))
    theirs = _theirs(ours)
    if theirs.keys() != wanted.keys():
        raise ValueError(
            f"{folder} cannot be written: missing {sorted(wanted.keys() - theirs.keys())}, "
            f"not to be expected {sorted(theirs.keys() - wanted.keys())}"
        )
    _refuse_unsaid(folder, config)
    files = [{}]
    for name, pattern in theirs.items():
        x, keys = ours[name], _places(pattern, ours[name])
        for layer, key in enumerate(keys):
            held = sum(size for *_, size in files[-1].values())
            if held and held + x.nbytes // len(keys) > shard_bytes:
                files.append({})
            files[-1][key] = (name, layer, x.nbytes // len(keys))

    def tensor(name: str, layer: int, size: int) -> np.ndarray:
        x = np.asarray(ours[name][layer] if "{}" in theirs[name] else ours[name])
        return np.ascontiguousarray(x.T if _turned(name) else x)

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
        written = {path.name for path in Path(place).iterdir()} - {CONFIG}

        def put(name: str) -> None:
            Path(place, name).chmod(0o644)  # safetensors writes 0600
            Path(place, name).replace(folder / name)

        (folder / CONFIG).unlink(missing_ok=True)
        for name in sorted(written):
            put(name)
        for path in (folder / SINGLE, folder / INDEX, *folder.glob(SHARDS)):
            if path.name not in written:  # of a decoder that was there before
                path.unlink(missing_ok=True)
        put(CONFIG)


def _refuse_unsaid(folder: str | Path, config: DecoderConfig) -> None:
    """Refuses a config of which its family's `config.json` cannot say all."""

    def told(config: DecoderConfig) -> dict[str, Any]:
        free = {"dtype", "param_dtype", "layer_types"}
        return config.model_dump(exclude=free) | {"slides": config.slides}

    with TemporaryDirectory() as place:
        Path(place, CONFIG).write_text(json.dumps(described(config, config.dtype)))
        again, wanted = told(decoder_config(place)), told(config)
    if lost := [f"{name}={x}" for name, x in wanted.items() if again[name] != x]:
        raise ValueError(
            f"{folder} cannot be written: {config.model_type} has no words for {', '.join(lost)}"
        )


def _abstract(config: DecoderConfig) -> dict:
    state = nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    return nnx.to_pure_dict(state)
