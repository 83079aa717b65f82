"""Examples to batches on the mesh. What a batch holds is a function of (seed, step) alone.

A `Source` turns the numbers of examples into arrays. `batches` decides their order, cuts the global
batch by process, and prepares ahead of the accelerator. To resume is to start at a later step.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from user_llm.data.dataset import Dataset, gather
from user_llm.data.text import join
from user_llm.data.timelines import spread
from user_llm.sharding import batch_sharding, replicated

RESIDENT_BYTES = 2**30  # of a data set that is kept on the device

Rows = Int[np.ndarray, " B"]
Arrays = dict[str, Any]  # of numpy arrays, or of dicts of them


@runtime_checkable
class Source(Protocol):
    """Numbered examples; a row of a batch depends on its example and its seed alone."""

    def __len__(self) -> int: ...

    def batch(self, rows: Rows, seeds: Rows) -> Arrays: ...


@runtime_checkable
class Compact(Source, Protocol):
    """A source whose batches are made whole on the device, from little that is sent there."""

    def unpack(self, mesh: Mesh) -> Callable[[dict], dict]:
        """A compiled function from the arrays of `batch`, placed on the mesh, to all of them."""
        ...


class PackedTimelines:
    """Rows of packed windows (see `timelines.pack`), for pre-training an encoder.

    Sent are the windows' starts and lengths alone where the whole data set fits on the device.
    """

    def __init__(self, dataset: Dataset, starts: np.ndarray, lengths: np.ndarray, size: int):
        self.dataset, self.starts, self.lengths, self.size = dataset, starts, lengths, size
        self.resident = dataset.columns_size <= RESIDENT_BYTES

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, rows: Rows, seeds: Rows) -> Arrays:
        windows = {"starts": self.starts[rows], "lengths": self.lengths[rows]}
        if self.resident:
            return windows
        events, _ = spread(**windows, size=self.size)
        return windows | {"events": self.dataset.gather(events)}

    def unpack(self, mesh: Mesh) -> Callable[[dict], dict]:
        columns = {}
        if self.resident:
            columns = jax.device_put(self.dataset.columns, replicated(mesh))

        @partial(jax.jit, out_shardings=batch_sharding(mesh))
        def whole(columns, batch):
            index, segments = spread(batch["starts"], batch["lengths"], self.size, jnp)
            events = batch["events"] if "events" in batch else gather(columns, index, jnp)
            return {"events": events, "segments": segments}

        return partial(whole, columns)


class Documents:
    """Texts in random order, one after the other, for a language model."""

    def __init__(self, documents: Sequence[Sequence[int]], length: int):
        self.documents, self.length = documents, length

    def __len__(self) -> int:
        return len(self.documents)

    def batch(self, rows: Rows, seeds: Rows) -> Arrays:
        joined = [join(self.documents, 1, self.length, np.random.default_rng(s)) for s in seeds]
        return {name: np.concatenate([row[name] for row in joined]) for name in joined[0]}


def order(examples: int, batch_size: int, seed: int) -> grain.MapDataset:
    """The examples of every global batch: each once an epoch, in an order of its own."""
    rows = grain.MapDataset.range(examples).seed(seed).shuffle().repeat()
    return rows.batch(batch_size, drop_remainder=True)


def local_batch(
    step: int, *, source: Source, rows: grain.MapDataset, seed: int, own: Int[np.ndarray, " P"]
) -> Arrays:
    """The part of a step's global batch that a process makes: its rows at the places `own`."""
    chosen: Rows = np.asarray(rows[step])
    seeds = np.random.default_rng([seed, step]).integers(2**62, size=len(chosen))
    return source.batch(chosen[own], seeds[own])


def own_places(sharding: NamedSharding, batch_size: int) -> Int[np.ndarray, " P"]:
    """The places in a global batch whose rows lie on this process's devices, in order.

    They need not be neighbours, and processes that share a tensor axis hold the same ones.
    """
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held]))


def batches(
    source: Source,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    mesh: Mesh,
    start: int = 0,
    workers: int = 0,
) -> Iterator[dict]:
    """Batches `start` to `steps` of a source on the mesh, their rows over its batch axes.

    Raises:
      ValueError: no examples, or a batch that the mesh cannot split evenly.
    """
    if not len(source):
        raise ValueError("there are no examples to train on; is the data set too small?")
    sharding = batch_sharding(mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise ValueError(f"batch_size={batch_size} must be a multiple of data x fsdp = {parts}")
    rows, own = order(len(source), batch_size, seed), own_places(sharding, batch_size)
    make = partial(local_batch, source=source, rows=rows, seed=seed, own=own)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    local = grain.MapDataset.range(start, steps).map(make).to_iter_dataset(options)
    if workers:
        flags.FLAGS.mark_as_parsed()  # the workers read grain's, which no absl app has parsed
        local = local.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    whole = source.unpack(mesh) if isinstance(source, Compact) else lambda batch: batch
    for batch in local:
        yield whole(
            jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
        )


def chunks(indices: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of exactly `size`, the last one filled up with its last index; and the real length."""
    for start in range(0, len(indices), size):
        piece = indices[start : start + size]
        yield np.pad(piece, (0, size - len(piece)), mode="edge"), len(piece)
