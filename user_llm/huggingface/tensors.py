"""A folder's safetensors as a model's parameters: names to names, straight to their devices."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding
from safetensors import SafetensorError, safe_open

from user_llm.sharding import shardings

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PIECE = 2**20  # values that are read from a file at a time


class Plan(NamedTuple):
    """A folder's tensors, not yet read, and which of them make up each parameter."""

    tensors: dict[str, Any]
    places: dict[str, list[str]]

    def load(self, abstract: dict) -> dict:
        """The parameters, each read to its devices; what has no name there as it was given.

        The host holds one device's part of one stack of layers, or of one table, at a time.
        """

        def read(path, x):
            name = name_of(path)
            return _read(x, self, name) if name in self.places else x

        return jax.tree.map_with_path(read, abstract)


def plan(
    folder: Path,
    theirs: Mapping[str, str],
    named: Mapping[str, Any],
    what: str,
    settle: Callable[[dict[str, Any]], list[str]] = lambda tensors: [],
) -> Plan:
    """How parameters are to be read from a folder.

    Args:
      theirs: what the folder calls each parameter, `{}` standing for the layer.
      named: by our names anything with the parameters' shapes.
      what: the model that is read, for errors.
      settle: drops and renames tensors beforehand; says what speaks against them.

    Raises:
      ValueError: files are missing or cut short, or tensors are unknown, missing, of another shape
        or not of floating point; all problems at once.
    """
    tensors = open_tensors(folder)
    problems = settle(tensors)
    places = {name: places_of(key, named[name]) for name, key in theirs.items()}
    wanted = {key: name for name, keys in places.items() for key in keys}
    unknown = tensors.keys() - wanted.keys()
    problems += [f"{key} has no place in the {what}" for key in sorted(unknown)]
    problems += [f"{key} is missing" for key in sorted(wanted.keys() - tensors.keys())]
    for key in sorted(wanted.keys() & tensors.keys()):
        name = wanted[key]
        problems += _mismatch(key, tensors[key], _wanted_shape(name, named[name]), what)
    if problems:
        raise ValueError(f"{folder} does not fit the {what}: " + "; ".join(problems))
    return Plan(tensors, places)


def placed(
    make: Callable[[], nnx.Module], mesh: Mesh | None = None
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """A model that is not made, and its parameters as shapes, on a mesh if there is one."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    abstract = nnx.to_pure_dict(state)
    if mesh is None:
        return graphdef, abstract
    return graphdef, jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        abstract,
        nnx.to_pure_dict(shardings(state, mesh)),
    )


def by_name(params: dict) -> dict[str, Any]:
    """Parameters by their dotted names."""
    return {name_of(path): x for path, x in jax.tree.leaves_with_path(params)}


def name_of(path: Any) -> str:
    """The dotted name of a place in nested dicts."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def turned(name: str) -> bool:
    """Whether a file holds the transpose, as torch's linear layers do."""
    return name.endswith(".kernel")


def places_of(theirs: str, x: Any) -> list[str]:
    """The tensors that make up a parameter, one per layer if it is a stack."""
    return [theirs.format(i) for i in range(x.shape[0])] if "{}" in theirs else [theirs]


def _wanted_shape(name: str, x: Any) -> tuple[int, ...]:
    """The shape of (a layer of) a parameter in the file."""
    shape = tuple(x.shape[1:] if name.startswith("layers.") else x.shape)
    return shape[::-1] if turned(name) else shape


def open_tensors(folder: Path) -> dict[str, Any]:
    """Every tensor of a folder as a slice not yet read.

    Raises:
      ValueError: there is no safetensors file, or some are missing or cut short.
    """
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
        tensors |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 -- no iterator
    if problems:  # what is in the others would only bury this
        raise ValueError(f"{folder} cannot be read: " + "; ".join(problems))
    return tensors


def _mismatch(key: str, tensor: Any, shape: tuple[int, ...], what: str) -> list[str]:
    """What speaks against a tensor."""
    problems = []
    if tuple(tensor.get_shape()) != shape:
        problems.append(f"{key} has shape {tuple(tensor.get_shape())}, the {what} wants {shape}")
    if tensor.get_dtype() not in ("F64", "F32", "F16", "BF16"):
        problems.append(f"{key} has type {tensor.get_dtype()}, which is not floating point")
    return problems


def _read(x: Any, plan: Plan, name: str) -> jax.Array:
    tensors, keys = plan.tensors, plan.places[name]
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
            place, theirs = (place.T, rest[::-1]) if turned(name) else (place, rest)
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


def equal(a: Any, b: Any) -> bool:
    """Whether two tensors hold the same."""
    pairs = zip(_pieces(a), _pieces(b), strict=False)
    same = a.get_shape() == b.get_shape()
    return same and all(np.array_equal(x, y) for (_, x), (_, y) in pairs)
