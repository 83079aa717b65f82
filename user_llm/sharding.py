"""Where every array lives: one mesh, one table from names to mesh axes, one placement function.

Modules name the dimensions of their parameters with `axes` and of their activations with
`constrain`; neither needs a mesh to be built or run. `shardings` turns the names into placements.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
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
      ValueError: the shape does not use each device exactly once.
    """
    devices = jax.devices() if devices is None else devices
    auto = (AxisType.Auto,) * 3  # jax.make_mesh's own default is Explicit
    return jax.make_mesh(config.shape(len(devices)), MESH_AXES, auto, devices=devices)


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
    """The placement of every variable, by the names of its axes.

    Leading dimensions without a name (a stack of layers) stay whole, and so does a dimension that
    its mesh axis does not divide.
    """

    def place(x):
        named = isinstance(x, nnx.Variable)
        names = x.get_metadata().get("out_sharding", ()) if named else ()
        named_dims = zip([None] * (len(x.shape) - len(names)) + list(names), x.shape, strict=True)
        sharding = NamedSharding(mesh, P(*(dividing(mesh, n, size) for n, size in named_dims)))
        return x.replace(sharding) if named else sharding

    return jax.tree.map(place, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


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
