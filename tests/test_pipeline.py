"""Batches are a function of (seed, step), whoever makes them and from wherever."""

import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import timelines_made
from jax.sharding import Mesh

from user_llm.data import pipeline
from user_llm.data.examples import Examples, Hinted
from user_llm.data.pipeline import (
    Documents,
    PackedTimelines,
    batches,
    local_batch,
    order,
    own_places,
)
from user_llm.data.tasks import FavoriteCategory, NextItem
from user_llm.data.text import Tokenizer
from user_llm.data.timelines import pack, spread, windows
from user_llm.sharding import batch_sharding

DATA = timelines_made.dataset(timelines_made.lengths_to_items([9, 1, 5, 7, 2]))
OFFSETS = DATA.offsets.tolist()
TARGETS = np.array([e for e in range(len(DATA.item)) if e not in OFFSETS])  # 19 of them


class Numbers:
    """Examples that are their own numbers, with what their seed decides."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, rows, seeds):
        return {"row": rows, "noise": {"drawn": np.array([s % 1000 for s in seeds])}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = [*DATA.items.titles, *DATA.reviews, "The next film: Review of stars (Drama, Action)"]
    return Tokenizer.train(words * 3, 400, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def examples(tokenizer):
    def make(**options):
        shares = {NextItem(DATA): 1.0, FavoriteCategory(DATA): 1.0}
        return Examples(DATA, TARGETS, shares, tokenizer, max_tokens=64, **options)

    return make


def gathered(source, mesh, **options):
    options = {"batch_size": 8, "steps": 6, "seed": 3} | options
    return [jax.device_get(batch) for batch in batches(source, mesh=mesh, **options)]


def assert_same(some, others):
    assert len(some) == len(others)
    for batch, other in zip(some, others, strict=True):
        assert jax.tree.structure(batch) == jax.tree.structure(other)
        for x, y in zip(jax.tree.leaves(batch), jax.tree.leaves(other), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def test_resuming_at_a_step_gives_the_batches_that_were_to_come(examples, mesh):
    source = examples(history=4, text_history=2)
    whole = gathered(source, mesh(2))
    assert len(whole) == 6
    for start in (1, 4, 6):
        assert_same(gathered(source, mesh(2), start=start), whole[start:])
    assert_same(gathered(source, mesh(2), steps=9)[:6], whole)  # whatever the end


def test_a_batch_is_the_same_on_any_mesh_and_another_for_another_seed(examples, mesh):
    source = examples(history=4)
    whole = gathered(source, mesh(1))
    assert_same(gathered(source, mesh(2, 2, 2)), whole)
    assert_same(gathered(source, mesh(1, 8)), whole)
    rows, others = (gathered(Numbers(19), mesh(), seed=seed) for seed in (3, 4))
    assert rows[0]["row"].tolist() != others[0]["row"].tolist()
    assert rows[0]["noise"]["drawn"].tolist() != others[0]["noise"]["drawn"].tolist()


def test_batches_lie_on_the_batch_axes_of_the_mesh(mesh):
    grid = mesh(2, 2, 2)
    (batch,) = batches(Numbers(9), batch_size=8, steps=1, seed=0, mesh=grid)
    assert batch["row"].sharding == batch_sharding(grid)
    assert batch["noise"]["drawn"].sharding == batch_sharding(grid)


def test_every_example_comes_once_an_epoch_in_a_new_order(mesh):
    rows = np.concatenate([b["row"] for b in gathered(Numbers(20), mesh(), steps=10)])
    epochs = rows.reshape(4, 20).tolist()
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_may_be_larger_than_an_epoch(mesh):
    (batch,) = gathered(Numbers(3), mesh(), steps=1)
    assert np.bincount(batch["row"]).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_parts_of_several_processes_are_the_global_batch(examples, processes):
    source = examples(history=4)
    for step in range(3):
        make = partial(local_batch, step, source=source, rows=order(len(source), 8, 3), seed=3)
        whole = make(own=np.arange(8))
        places = np.random.default_rng(step).permutation(8).reshape(processes, -1)
        for own in places:
            assert_same([make(own=own)], [jax.tree.map(lambda x, own=own: x[own], whole)])


def test_one_process_holds_every_place_in_order(mesh):
    for shape in ((8,), (1, 1, 8), (2, 2, 2)):
        np.testing.assert_array_equal(own_places(batch_sharding(mesh(*shape)), 8), np.arange(8))
    devices = np.array(jax.devices()[::-1]).reshape(8, 1, 1)
    turned = batch_sharding(Mesh(devices, ("data", "fsdp", "tensor")))
    np.testing.assert_array_equal(own_places(turned, 16), np.arange(16))


PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import numpy as np
from jax.sharding import Mesh
from test_pipeline import Numbers, batches, local_batch, order

source, grid, rows = Numbers(19), np.array(jax.devices()), order(19, 8, 3)
for shape, places in (
    ((4, 1, 1), [0, 1, 2, 3]),
    ((2, 2, 1), [0, 2, 1, 3]),
    ((2, 1, 2), [0, 1, 2, 3]),
    ((2, 1, 2), [0, 2, 1, 3]),
    ((1, 1, 4), [0, 1, 2, 3]),
):
    mesh = Mesh(grid[places].reshape(shape), ("data", "fsdp", "tensor"))
    made = batches(source, batch_size=8, steps=5, seed=3, mesh=mesh, start=2)
    for step, batch in enumerate(made, start=2):
        whole = local_batch(step, source=source, rows=rows, seed=3, own=np.arange(8))
        for x, y in zip(jax.tree.leaves(batch), jax.tree.leaves(whole), strict=True):
            assert x.shape == y.shape, (shape, x.shape)
            for shard in x.addressable_shards:
                np.testing.assert_array_equal(shard.data, y[shard.index])
    assert step == 4
print("same")
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_two_processes_hold_the_batches_of_one_on_any_mesh():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(index)],
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in started:
        out, error = process.communicate(timeout=300)
        assert out.strip() == "same", error


@pytest.mark.slow
def test_worker_processes_make_the_same_batches(examples, mesh):
    source = examples(history=4, text_history=2)
    whole = gathered(source, mesh(2))
    assert_same(gathered(source, mesh(2), workers=2, start=1), whole[1:])


def test_nothing_to_train_on_and_uneven_batches_are_refused(mesh):
    with pytest.raises(ValueError, match="there are no examples to train on"):
        next(batches(Numbers(0), batch_size=8, steps=1, seed=0, mesh=mesh()))
    with pytest.raises(ValueError, match="batch_size=6 must be a multiple of data x fsdp = 4"):
        next(batches(Numbers(9), batch_size=6, steps=1, seed=0, mesh=mesh(2, 2, 2)))


@pytest.mark.parametrize("resident", [0, 2**30], ids=["sent", "resident"])
def test_packed_timelines_are_the_events_of_their_windows(resident, mesh, monkeypatch):
    starts, lengths = pack(windows(DATA.offsets[:-1], DATA.offsets[1:], 4), 4)
    events, segments = spread(starts, lengths, 4)
    monkeypatch.setattr(pipeline, "RESIDENT_BYTES", resident)
    source, rows = PackedTimelines(DATA, starts, lengths, 4), np.array([2, 0])
    assert len(source) == len(events)
    sent = source.batch(rows, rows)
    assert ("events" in sent) == (resident == 0)
    batch = source.unpack(mesh(2))(jax.device_put(sent, batch_sharding(mesh(2))))
    assert batch["segments"].sharding == batch_sharding(mesh(2))
    np.testing.assert_array_equal(batch["segments"], segments[rows])
    assert batch["events"].keys() == DATA.gather(events).keys()
    for name, values in DATA.gather(events[rows]).items():
        assert batch["events"][name].dtype == values.dtype
        np.testing.assert_array_equal(batch["events"][name], values)


def test_a_row_of_documents_depends_on_its_seed_alone():
    source = Documents([[1, 2, 3], [4, 5]], length=9)
    seeds = np.array([5, 6, 5])
    tokens = source.batch(np.arange(3), seeds)["tokens"]
    assert tokens.shape == (3, 9)
    assert tokens[0].tolist() == tokens[2].tolist()
    np.testing.assert_array_equal(source.batch(np.arange(1), seeds[:1])["tokens"], tokens[:1])


def test_hints_name_the_item_that_is_asked_for_by_shares_of_all_sizes(examples):
    plain = examples(history=4)
    hinted, rows = Hinted(plain), np.arange(len(TARGETS))
    assert len(hinted) == len(plain)
    seeds = np.arange(100, 100 + len(TARGETS))
    batch = hinted.batch(rows, seeds)
    hint = batch.pop("hint")
    assert_same([batch], [plain.batch(rows, seeds)])
    np.testing.assert_array_equal(hint["item"], DATA.item[TARGETS])
    assert 0 <= hint["share"].min() < 0.2
    assert 0.8 < hint["share"].max() < 1
    alone = hinted.batch(rows[3:5], seeds[3:5])["hint"]
    assert_same([alone], [{name: values[3:5] for name, values in hint.items()}])
