"""Where every array lives: one mesh, one table from names to mesh axes, one placement function.

Modules name the dimensions of their parameters with `axes` and of their activations with
`constrain`; neither needs a mesh to be built or run. `shardings` turns the names into placements.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from user_llm.config import MeshConfig

# Every mesh has these axes, and a size of 1 is free: layouts differ in the mesh's shape alone.
MESH_AXES = ("data", "fsdp", "tensor")
RULES = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of that shape over the devices, all of them unless given.

    Raises:
      ValueError: the shape does not use each device exactly once, or its slices are not theirs.
    """
    devices = jax.devices() if devices is None else devices
    data, *rest = config.shape(len(devices))
    auto = (AxisType.Auto,) * 3  # jax.make_mesh's own default is Explicit
    shape = (data // config.slices, *rest)
    slices = [
        jax.make_mesh(shape, MESH_AXES, auto, devices=part).devices
        for part in by_slice(devices, config.slices)
    ]
    return Mesh(np.concatenate(slices), MESH_AXES, axis_types=auto)


def by_slice(devices: Sequence[Any], slices: int) -> list[list[Any]]:
    """The devices of each slice; where they do not know of slices, so many runs of them.

    Raises:
      ValueError: the devices are in fewer or more slices, or not alike many in each.
    """
    known: set[Any] = {getattr(device, "slice_index", None) for device in devices}
    if known == {None}:  # in the order of their processes
        size = len(devices) // slices
        return [list(devices[i * size :][:size]) for i in range(slices)]
    parts = [[d for d in devices if d.slice_index == index] for index in sorted(known)]
    if len(parts) != slices or len({len(part) for part in parts}) > 1:
        sizes = " + ".join(str(len(part)) for part in parts)
        raise ValueError(
            f"mesh.slices={slices}, but there are {sizes} devices in {len(parts)} slices; set it "
            "to their number, and use as many devices of each"
        )
    return parts


def axes(*names: str | None) -> dict[str, Any]:
    """Keyword arguments of an `nnx.Param` that name its dimensions; only metadata."""
    return {"out_sharding": names, "eager_sharding": False}


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Places an activation by the same rules; does nothing outside a mesh.

    A dimension that its mesh axes do not divide stays whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    sized = zip(names, x.shape, strict=True)
    return jax.lax.with_sharding_constraint(x, P(*(dividing(mesh, n, size) for n, size in sized)))


def dividing(mesh: Any, name: str | None, *sizes: int) -> str | tuple[str, ...] | None:
    """The mesh axes of a dimension of that name; None where they do not divide its sizes."""
    if name is None:
        return None
    axes = RULES[name]
    shards = math.prod(mesh.shape[axis] for axis in ([axes] if isinstance(axes, str) else axes))
    return None if any(size % shards for size in sizes) else axes


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The placement of every variable, by the names of its axes (see `split`).

    Leading dimensions without a name (a stack of layers) stay whole.
    """

    def place(x):
        named = isinstance(x, nnx.Variable)
        names = x.get_metadata().get("out_sharding", ()) if named else ()
        names = [None] * (len(x.shape) - len(names)) + list(names)
        sharding = NamedSharding(mesh, P(*split(mesh, names, x.shape)))
        return x.replace(sharding) if named else sharding

    return jax.tree.map(place, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def split(mesh: Any, names: Sequence[str | None], shape: Sequence[int]) -> list[Any]:
    """The mesh axes of a parameter's dimensions; what they do not divide stays whole.

    But few numbers of items are divided by anything: such a table is split over its columns alone.
    """
    found = [dividing(mesh, name, size) for name, size in zip(names, shape, strict=True)]
    if {"vocab", "embed"} <= {*names} and found[names.index("vocab")] is None:
        columns, both = names.index("embed"), (RULES["embed"], RULES["vocab"])
        if shape[columns] % math.prod(mesh.shape[axis] for axis in both) == 0:
            found[columns] = both
    return found


def scarce(looked_up: Any, rows: int) -> bool:
    """Whether devices look up so few of a table's rows that it is better left split than whole."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and looked_up < rows


def look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """`table[ids]`, of a table [vocab] or [vocab, embed] whose dimensions are named so."""
    if scarce(ids.size, len(table)):
        return take_rows(table, ids)
    return constrain(table, "vocab", *(None,) * (table.ndim - 1))[ids]


@jax.custom_vjp
def take_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """The same where a mesh splits the table, of which nothing travels but the rows.

    Every device looks up its part of each. On the way back the rows' gradients meet before they
    are added up for its part of the table, and not after.
    """
    data, inner, axes = split_rows(table, ids)
    ids = jax.lax.with_sharding_constraint(ids, P(data, *inner))
    rows = jax.lax.with_sharding_constraint(table[ids], P(data, *inner, *axes[1:]))
    return constrain(rows, "batch", *inner, *(None for _ in axes[1:]))


def take_rows_forward(table, ids):
    return take_rows(table, ids), (table, ids)


def take_rows_backward(found, rows):
    table, ids = found
    data, inner, axes = split_rows(table, ids)
    for first in (data, None):  # in one step XLA would have every device hold all of them
        rows = jax.lax.with_sharding_constraint(rows, P(first, *inner, *axes[1:]))
    ids = jax.lax.with_sharding_constraint(ids, P())
    zeros = jax.lax.with_sharding_constraint(jnp.zeros_like(table), P(*axes))
    return jax.lax.with_sharding_constraint(zeros.at[ids].add(rows), P(*axes)), None


take_rows.defvjp(take_rows_forward, take_rows_backward)


def split_rows(table: jax.Array, ids: jax.Array) -> tuple[str | None, tuple, list]:
    """The mesh axes that split ids: their first dimension, the others; and those of the table."""
    mesh, names = jax.sharding.get_abstract_mesh(), ("vocab", "embed")[: table.ndim]
    data = "data" if len(ids) % mesh.shape["data"] == 0 else None
    return data, (None,) * (ids.ndim - 1), split(mesh, names, table.shape)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The placement of a batch: its first dimension over `data` and `fsdp`."""
    return NamedSharding(mesh, P(RULES["batch"]))


def by_shards(f: Callable, whole: Any, *rows: jax.Array) -> tuple[Any, Any]:
    """`f(whole, *rows)` on each shard of a batch: its sums are added up, its rows put together.

    A loop in f communicates nothing, where one over the whole batch does with every sum in it.
    Where there is no mesh, or it does not divide the rows, the batch is one shard.
    """
    mesh, axes = jax.sharding.get_abstract_mesh(), RULES["batch"]
    shards = math.prod(mesh.shape.get(axis, 1) for axis in axes)
    if shards == 1 or len(rows[0]) % shards:
        return f(whole, *rows)

    def shard(whole, *rows):
        sums, own = f(whole, *rows)
        return jax.lax.psum(sums, axes), own

    split = jax.shard_map(
        shard,
        in_specs=(P(), *(P(axes) for _ in rows)),
        out_specs=(P(), P(axes)),
        axis_names=set(axes),
        check_vma=False,
    )
    return split(whole, *rows)


def on_shards(f: Callable[..., jax.Array], names: Sequence[str], *arrays: jax.Array) -> jax.Array:
    """`f(*arrays)` on each device's part of arrays whose first dimensions have these names.

    For kernels, which XLA cannot split. A dimension that its mesh axes do not divide stays whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return f(*arrays)

    sizes = [[x.shape[i] for x in arrays] for i in range(len(names))]
    spec = P(*(dividing(mesh, n, *own) for n, own in zip(names, sizes, strict=True)))
    specs = {"in_specs": (spec,) * len(arrays), "out_specs": spec}
    return jax.shard_map(f, **specs, check_vma=False)(*arrays)


def placed() -> bool:
    """Whether it is known where arrays lie: a mesh says it, or there is but one device."""
    return not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1


def platform() -> str:
    """Where what is being traced will run: `cpu`, `gpu` or `tpu`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def replicated(mesh: Mesh) -> NamedSharding:
    """The placement of what every device holds whole."""
    return NamedSharding(mesh, P())
