"""Placement by names, on eight simulated devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from user_llm.config import MeshConfig
from user_llm.sharding import (
    MESH_AXES,
    axes,
    batch_sharding,
    by_shards,
    constrain,
    look_up,
    make_mesh,
    on_shards,
    platform,
    replicated,
    shardings,
)

SHAPES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2)]


class Net(nnx.Module):
    """One parameter per case: all dimensions named, a stack, an odd size, none named."""

    def __init__(self):
        self.kernel = nnx.Param(jnp.ones((16, 32)), **axes("embed", "mlp"))
        self.stack = nnx.Param(jnp.ones((8, 16, 32)), **axes("heads", "embed"))
        self.odd = nnx.Param(jnp.ones((17, 16)), **axes("vocab", "embed"))
        self.norm = nnx.Param(jnp.ones(16))


def placed(mesh) -> dict[str, jax.Array]:
    state = nnx.state(Net())
    return nnx.to_pure_dict(jax.device_put(state, shardings(state, mesh)))


@pytest.mark.parametrize(("data", "fsdp", "tensor"), SHAPES)
def test_a_device_holds_the_part_that_the_names_give_it(mesh, data, fsdp, tensor):
    arrays = placed(mesh(data, fsdp, tensor))

    def part(name):
        return arrays[name].addressable_shards[0].data.shape

    assert part("kernel") == (16 // fsdp, 32 // tensor)
    assert part("stack") == (8, 16 // tensor, 32 // fsdp)  # layers stay whole
    assert part("odd") == (17, 16 // (fsdp * tensor))  # 17 divides by nothing
    assert part("norm") == (16,)
    assert all(len(x.sharding.device_set) == 8 for x in arrays.values())


def test_the_parts_of_a_parameter_are_its_slices(mesh):
    whole = np.arange(16 * 32, dtype=np.float32).reshape(16, 32)
    kernel = nnx.Param(jnp.asarray(whole), **axes("embed", "mlp"))
    mesh = mesh(2, 2, 2)
    placed = jax.device_put(kernel, shardings(kernel, mesh))[...]
    parts = {shard.device: np.asarray(shard.data) for shard in placed.addressable_shards}
    for (_, fsdp, tensor), device in np.ndenumerate(mesh.devices):
        rows, columns = slice(8 * fsdp, 8 * fsdp + 8), slice(16 * tensor, 16 * tensor + 16)
        np.testing.assert_array_equal(parts[device], whole[rows, columns])


def test_abstract_parameters_and_plain_arrays_are_placed_alike(mesh):
    mesh = mesh(2, 2, 2)
    abstract = shardings(nnx.state(nnx.eval_shape(Net)), mesh)
    assert nnx.to_pure_dict(abstract) == nnx.to_pure_dict(shardings(nnx.state(Net()), mesh))
    assert shardings({"step": jnp.zeros(())}, mesh)["step"].spec == P()


def test_a_name_that_no_rule_knows_is_an_error(mesh):
    with pytest.raises(KeyError, match="embedding"):
        shardings(nnx.Param(jnp.ones(8), **axes("embedding")), mesh(8))


@pytest.mark.parametrize(("data", "fsdp", "tensor"), SHAPES)
def test_a_batch_is_split_by_rows_over_data_and_fsdp(mesh, data, fsdp, tensor):
    mesh = mesh(data, fsdp, tensor)
    batch = jax.device_put(np.zeros((16, 3)), batch_sharding(mesh))
    assert batch.addressable_shards[0].data.shape == (16 // (data * fsdp), 3)
    assert jax.device_put(np.zeros((16, 3)), replicated(mesh)).is_fully_replicated


def test_constrain_places_an_activation_inside_a_mesh(mesh):
    with jax.set_mesh(mesh(2, 2, 2)):
        x = jax.jit(lambda x: constrain(x, "batch", None, "mlp"))(jnp.zeros((8, 3, 4)))
    assert x.addressable_shards[0].data.shape == (2, 3, 2)


def test_constrain_leaves_whole_what_its_axes_do_not_divide(mesh):
    grid = mesh(data=2, tensor=4)
    with jax.set_mesh(grid):
        x = jax.jit(lambda x: constrain(x, "batch", "vocab"))(jnp.arange(12.0).reshape(2, 6))
    assert x.sharding.shard_shape(x.shape) == (1, 6)
    np.testing.assert_array_equal(x, np.arange(12).reshape(2, 6))


def test_constrain_without_a_mesh_hands_back_its_argument():
    x = jnp.zeros((3, 5))
    assert constrain(x, "batch", "mlp") is x


def test_a_module_computes_the_same_on_every_mesh(mesh):
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(16, 32)), rng.normal(size=(8, 16))
    param = nnx.Param(jnp.asarray(kernel, jnp.float32), **axes("embed", "mlp"))

    @jax.jit
    def apply(w, x):
        return constrain(constrain(x, "batch", None) @ w[...], "batch", "mlp")

    for shape in SHAPES:
        current = mesh(*shape)
        with jax.set_mesh(current):
            w = jax.device_put(param, shardings(param, current))
            y = apply(w, jax.device_put(x.astype(np.float32), batch_sharding(current)))
        np.testing.assert_allclose(y, x @ kernel, rtol=1e-4, atol=1e-5)


def test_minus_one_takes_the_devices_that_are_left():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    assert mesh.axis_names == MESH_AXES
    assert mesh.devices.shape == (2, 2, 2)
    assert make_mesh().devices.shape == (8, 1, 1)
    assert make_mesh(devices=jax.devices()[:3]).devices.shape == (3, 1, 1)


@pytest.mark.parametrize("sizes", [{"fsdp": 3}, {"data": 2, "fsdp": 2}, {"tensor": 16}])
def test_a_mesh_that_does_not_use_every_device_once_is_refused(sizes):
    with pytest.raises(ValueError, match=r"does not fit 8 devices; choose .* product is 8"):
        make_mesh(MeshConfig(**sizes))


def test_data_spans_slices_and_the_other_axes_lie_within_one():
    """Of devices that say which they are in, in whatever order, and of such that do not."""
    told = [Told(i, i % 2) for i in range(8)]
    config = MeshConfig(fsdp=2, tensor=2, slices=2)
    slices = np.vectorize(lambda device: device.slice_index)(make_mesh(config, told).devices)
    np.testing.assert_array_equal(slices, np.arange(2)[:, None, None] * np.ones((2, 2, 2)))
    plain = np.vectorize(lambda device: device.id)(make_mesh(config).devices)
    assert {*plain[0].flat} == {0, 1, 2, 3}
    wide = make_mesh(MeshConfig(fsdp=2, slices=2), told).devices
    assert [{d.slice_index for d in part.flat} for part in wide] == [{0}, {0}, {1}, {1}]


@dataclasses.dataclass(frozen=True)
class Told:
    """A device that knows of its slice."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "told"
    process_index: int = 0


@pytest.mark.parametrize(
    ("config", "slices", "message"),
    [
        (MeshConfig(fsdp=4, slices=4), 4, "mesh.slices=4 does not divide data=2"),
        (MeshConfig(), 2, "mesh.slices=1, but there are 4 \\+ 4 devices in 2 slices; set it"),
        (MeshConfig(slices=2), 3, "mesh.slices=2, but there are 3 \\+ 3 \\+ 2 devices in 3 slices"),
    ],
)
def test_slices_that_are_not_the_devices_own_are_refused(config, slices, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(config, [Told(i, i % slices) for i in range(8)])


@pytest.mark.parametrize("ids", [(16, 3), (5,)], ids=str)
@pytest.mark.parametrize("table", [(64, 8), (64,), (67, 8)], ids=str)
def test_few_rows_of_a_split_table_are_those_of_the_whole(mesh, table, ids):
    """And so are their gradients, with rows that are looked up twice."""
    rng = np.random.default_rng(0)
    whole = rng.normal(size=table).astype(np.float32)
    at = rng.integers(0, 9, ids).astype(np.int32)
    weights = rng.normal(size=(*ids, *table[1:])).astype(np.float32)
    wanted = np.zeros_like(whole)
    np.add.at(wanted, at, weights)

    def found(table, at, weights):
        rows = look_up(table[...], at)
        return (rows * weights).sum(), rows

    param = nnx.Param(jnp.asarray(whole), **axes(*("vocab", "embed")[: whole.ndim]))
    for shape in SHAPES:
        grid = mesh(*shape)
        with jax.set_mesh(grid):
            placed = jax.device_put(param, shardings(param, grid))
            slope, rows = jax.jit(jax.grad(found, has_aux=True))(placed, at, weights)
        np.testing.assert_array_equal(rows, whole[at])
        np.testing.assert_allclose(slope[...], wanted, rtol=1e-5, atol=1e-6)


def products(table, rows):
    """The sum of a loop over rows, and what is each row's own."""

    def add(total, x):
        return total + x.T @ x @ table, x @ table

    total, own = jax.lax.scan(add, jnp.zeros_like(table), rows.reshape(2, -1, *rows.shape[1:]))
    return total, own.reshape(rows.shape)


@pytest.mark.parametrize(("data", "fsdp", "tensor"), SHAPES)
def test_sums_over_shards_are_those_of_the_whole_batch(mesh, data, fsdp, tensor):
    mesh, table = mesh(data, fsdp, tensor), jnp.eye(3)
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)))
    placed = jax.device_put(rows, batch_sharding(mesh))

    def communicates(program):
        """Whether the loop does; its body is the part with the product."""
        bodies = [part for part in program.as_text().split("\n\n") if " dot(" in part]
        return any("all-reduce(" in part or "all-gather(" in part for part in bodies)

    with jax.set_mesh(mesh):
        program = jax.jit(lambda *x: by_shards(products, *x)).lower(table, placed).compile()
        plain = jax.jit(products).lower(table, placed).compile()
        total, own = program(table, placed)
    np.testing.assert_allclose(total, rows.T @ rows, rtol=1e-5)
    np.testing.assert_allclose(own, rows, rtol=1e-6)
    assert not communicates(program)
    assert communicates(plain) == (data * fsdp > 1)


def test_rows_that_shards_do_not_divide_are_one_shard(mesh):
    rows = jnp.arange(5.0)
    with jax.set_mesh(mesh(8, 1, 1)):
        total, own = by_shards(lambda scale, x: ((scale * x).sum(), x), jnp.float32(2), rows)
    assert total == 20
    np.testing.assert_array_equal(own, rows)


@pytest.mark.parametrize(
    ("heads", "rows", "part"), [(4, 8, (2, 2)), (3, 8, (2, 3)), (4, 6, (6, 2))], ids=str
)
def test_each_device_does_its_part_of_what_the_mesh_divides(mesh, heads, rows, part):
    shapes = []

    def add(x, y):
        shapes.append((x.shape, y.shape))
        return x + y

    x = jnp.arange(rows * heads * 5.0).reshape(rows, heads, 5)
    run = jax.jit(lambda x, y: on_shards(add, ("batch", "heads"), x, y))
    np.testing.assert_array_equal(run(x, x), 2 * x)
    with jax.set_mesh(mesh(2, 2, 2)):
        np.testing.assert_array_equal(run(x, x), 2 * x)
    assert shapes == [((rows, heads, 5),) * 2, ((*part, 5),) * 2]


def test_the_mesh_says_where_a_program_runs(mesh):
    assert platform() == "cpu"
    with jax.set_mesh(mesh(2, 2, 2)):
        assert platform() == "cpu"
