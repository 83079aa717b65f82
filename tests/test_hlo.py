"""The reader of compiled programs, on programs whose collectives and loops are known."""

from functools import partial
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import P

from user_llm.launch import hlo
from user_llm.launch.hlo import Program, Shape

SIZE = 64 * 4  # bytes of x on each device
TURNS = 5


def compiled(f, mesh, *shapes):
    specs = {"in_specs": P("data"), "out_specs": P("data"), "check_vma": False}
    made = jax.jit(jax.shard_map(f, mesh=mesh, **specs))
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return Program(made.lower(*args).compile().as_text())


def told(program, devices=8):
    return [(x.kind, len(x.group), x.sent, x.times) for x in program.collectives(devices)]


def gather(x):
    return jax.lax.all_gather(x, "data", tiled=True).reshape(8, -1).sum(0)


def scatter(x):
    return jax.lax.psum_scatter(jnp.tile(x, 8), "data", tiled=True)


def around(x):
    return jax.lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)])


def exchange(x):
    return jax.lax.all_to_all(x, "data", 0, 0, tiled=True)


KNOWN = {
    "all-reduce": (lambda x: jax.lax.psum(x, "data"), 2 * SIZE * 7 // 8),
    "all-gather": (gather, SIZE * 7),
    "reduce-scatter": (scatter, SIZE * 7),
    "collective-permute": (around, SIZE),
    "all-to-all": (exchange, SIZE * 7 // 8),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_a_collective_is_told_with_what_a_device_sends(kind, mesh):
    f, sent = KNOWN[kind]
    members = 2 if kind == "collective-permute" else 8
    assert told(compiled(f, mesh(8), (8 * 64,))) == [(kind, members, sent, 1)]


@pytest.mark.parametrize("kind", KNOWN)
def test_in_a_loop_it_counts_as_often_as_the_loop_turns(kind, mesh):
    f, sent = KNOWN[kind]

    def twice_over(x):
        def inner(x, _):
            return jnp.sin(f(x)), None

        def outer(x, _):
            return jax.lax.scan(inner, x, length=3)[0], None

        return jax.lax.scan(outer, x, length=TURNS)[0]

    members = 2 if kind == "collective-permute" else 8
    found = told(compiled(twice_over, mesh(8), (8 * 64,)))
    assert found == [(kind, members, sent, 3 * TURNS)]


def test_groups_are_those_of_the_axis(mesh):
    def along(axis, x):
        return jax.lax.psum(x, axis)

    for axis, wanted in (("data", (0, 4)), ("fsdp", (0, 2)), ("tensor", (0, 1))):
        program = compiled(partial(along, axis), mesh(2, 2, 2), (2 * 64,))
        (one,) = program.collectives(8)
        assert one.group == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("replica_groups={{0,2},{1,3}}, x", (0, 2)),
        ("replica_groups=[4,2]<=[8]", (0, 1)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", (0, 1)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
        ("source_target_pairs={{3,4},{4,3}}", (3, 4)),
        ("replica_groups={}", tuple(range(8))),
    ],
)
def test_groups_in_all_the_ways_in_which_they_are_written(text, wanted):
    assert hlo.group(text, 8) == wanted


def test_shapes_are_as_large_as_their_types():
    sizes = {"pred": 1, "bf16": 2, "f32": 4, "s8": 1, "u64": 8, "c64": 8, "f8e4m3fn": 1, "s4": 0.5}
    for dtype, size in sizes.items():
        assert Shape(dtype, (6, 4)).bytes == 24 * size, dtype
    assert Shape("f32", ()).bytes == 4 and prod(()) == 1


# As the compiler for TPUs writes: a fusion begins a collective, another runs beside it, and each
# repeats it. Metadata may have line breaks. Loops count to what their condition knows.
TPU = (Path(__file__).parent / "golden" / "program_for_a_tpu.txt").read_text()


def test_a_program_for_a_tpu():
    program = Program(TPU)
    assert program.entry == "main"
    turns = 2 * 4  # two loops from 3 to 7
    assert program.cycles() == turns * 110 + 5000
    found = {(x.kind, x.sent, x.hidden, x.times) for x in program.collectives(4)}
    gathered = ("all-gather", 8 * 64 * 2 * 3 // 4, True, 4)
    assert found == {gathered, ("all-reduce", 2 * 9 * 4 * 3 // 4, False, 1)}
    assert len(program.collectives(4)) == 3  # once for each loop
    assert program.kept() == 3 * 8 * 4  # what the first loop writes and the second one reads
    assert [len(program.within("body", 4, hidden)) for hidden in (True, False)] == [1, 0]
    kernel = next(x for x in program.computations["body"] if x.target == hlo.KERNEL)
    assert kernel.shapes == (Shape("bf16", (4, 256, 64)),)


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no text of a compiled program"):
        Program("HloModule nothing")
