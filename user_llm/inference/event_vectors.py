"""The vector of every event of a data set: how its encoder reads it, after what came before alone.

They are kept in a folder, as `vectors.npy` [N, D] in float32, and beside it an `index.json` that
says by which encoder and of which data.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from user_llm.config import EVENT_TIME, QUERY_TIME
from user_llm.data.dataset import Dataset
from user_llm.data.timelines import pack, spread
from user_llm.files import write_whole
from user_llm.inference.vectors import begin, fingerprint
from user_llm.models.encoders import Encoder
from user_llm.sharding import batch_sharding

ROWS = 64  # that are encoded at a time


class EventVectors(NamedTuple):
    """One of every event, and a hash of all that made them."""

    vectors: Float[np.ndarray, "N D"]
    source: str


def of(
    data: Dataset, make_encoder: Callable[..., Encoder], params: dict, mesh: Mesh, folder: Path
) -> EventVectors:
    """The vectors of all events, made now unless a folder within `folder` holds them.

    An event's is its encoded state and its embedding, as `TimelineStream` has it. Later events
    change nothing of it.

    Raises:
      ValueError: the encoder reads both ways.
    """
    encoder = nnx.eval_shape(lambda: make_encoder(rngs=nnx.Rngs(0)))
    if not encoder.causal:
        raise ValueError(
            f"encoder.kind={encoder.config.kind} reads later events too, so that its vectors of "
            "earlier ones would know them; take a causal encoder"
        )
    index = {
        "encoder": fingerprint(params),
        "config": encoder.config.model_dump(mode="json"),  # the same parameters may read otherwise
        "data": data.hash,
        "width": 2 * encoder.config.embed,
    }
    source = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
    own = folder / source[:16]
    begin(own, index)
    path = own / "vectors.npy"
    if not path.is_file():
        write_whole(path, partial(_write, data=data, encoder=encoder, params=params, mesh=mesh))
    return EventVectors(np.load(path, mmap_mode="r"), source)


def windows(offsets: Int[np.ndarray, " offsets"], half: int) -> Int[np.ndarray, "W 2"]:
    """Windows of at most twice `half` events, start and stop; each tells of its last `half` ones.

    A timeline is cut from its beginning, so that later events move no window, and all but the first
    events come after `half` earlier ones.
    """
    lengths = np.diff(offsets)
    counts = -(-lengths // half)
    owner = np.repeat(np.arange(len(lengths)), counts)
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    told = offsets[owner] + nth * half
    starts = np.maximum(told - half, offsets[owner])
    return np.stack([starts, np.minimum(told + half, offsets[owner + 1])], axis=1)


def _write(path: Path, *, data: Dataset, encoder: Encoder, params: dict, mesh: Mesh) -> None:
    graphdef, half = nnx.graphdef(encoder), encoder.config.window // 2
    starts, lengths = pack(windows(data.offsets, half), 2 * half)
    shape = (len(data.item), 2 * encoder.config.embed)
    found = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    place, rows = batch_sharding(mesh), ROWS * mesh.shape["data"] * mesh.shape["fsdp"]

    @jax.jit
    def read(params, events, segments):
        model = nnx.merge(graphdef, params)
        tokens = [model(events, segments), model.embed(events)]
        return jnp.concatenate(tokens, axis=-1).astype(jnp.float32)

    with jax.set_mesh(mesh), tqdm(total=len(data.item), desc="events", unit="event") as bar:
        for first in range(0, len(starts), rows):
            begins, size = (
                np.resize(x[first : first + rows], (rows, x.shape[1])) for x in (starts, lengths)
            )
            events, segments = spread(begins, size, 2 * half)
            shown = data.gather(events)
            if EVENT_TIME in shown:  # when the next event comes is not known yet
                shown[QUERY_TIME] = shown[EVENT_TIME]
            vectors = np.asarray(read(params, *jax.device_put((shown, segments), place)))
            nth = np.maximum(segments - 1, 0)
            start, length = (np.take_along_axis(x, nth, axis=1) for x in (begins, size))
            told = (segments > 0) & ((length <= half) | (events - start >= half))
            found[events[told]] = vectors[told]
            bar.update(np.unique(events[told]).size)
    found.flush()
