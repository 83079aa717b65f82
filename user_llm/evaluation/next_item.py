"""How well an encoder's own head, or popularity, ranks the next item over the whole catalogue."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from user_llm.data.dataset import Dataset
from user_llm.data.features import KNOWN
from user_llm.data.timelines import histories, user_of
from user_llm.models.encoders.autoregressive import AutoregressiveEncoder
from user_llm.sharding import batch_sharding


def chunks(indices: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of exactly `size`, the last one filled up with its last index; and the real length."""
    for start in range(0, len(indices), size):
        piece = indices[start : start + size]
        yield np.pad(piece, (0, size - len(piece)), mode="edge"), len(piece)


def seen_items(dataset: Dataset, targets: Int[np.ndarray, " B"]) -> Bool[np.ndarray, "B V"]:
    """Which items may not be recommended: those before the target, unless they are the target."""
    seen = np.zeros((len(targets), len(dataset.items.ids)), bool)
    seen[:, :KNOWN] = True
    starts = dataset.offsets[user_of(targets, dataset.offsets)]
    for row, start, target in zip(seen, starts, targets, strict=True):
        row[dataset.item[start:target]] = True
        row[dataset.item[target]] = False
    return seen


def rank(
    scores: Float[Array, "B V"], seen: Bool[Array, "B V"], target: Int[Array, " B"]
) -> Int[Array, " B"]:
    """How many unseen items stand before the target, plus one; equals stand before it."""
    scores = jnp.where(seen, -jnp.inf, scores)
    own = jnp.take_along_axis(scores, target[:, None], axis=1)
    return (scores >= own).sum(1)


def encoder_ranker(
    make_encoder: Callable[..., AutoregressiveEncoder],
    dataset: Dataset,
    targets: Int[np.ndarray, " N"],
    *,
    mesh: Mesh,
    batch_size: int = 256,
) -> Callable[[dict], Int[np.ndarray, " N"]]:
    """A function of an encoder's parameters: the rank of each target event's item."""
    model = nnx.eval_shape(lambda: make_encoder(rngs=nnx.Rngs(0)))
    graphdef, window = nnx.graphdef(model), model.config.window

    @jax.jit
    def ranks(params, events, segments, seen, target):
        encoder = nnx.merge(graphdef, params)
        last = jnp.maximum((segments > 0).sum(1) - 1, 0)
        states = encoder(events, segments)
        state = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
        return rank(encoder.item_logits(state), seen, target)

    def call(params: dict) -> np.ndarray:
        found = []
        with jax.set_mesh(mesh):
            for piece, length in chunks(targets, batch_size):
                events = histories(piece, dataset.offsets, window)
                segments = (events >= 0).astype(np.int32)
                inputs = (dataset.gather(events), segments, seen_items(dataset, piece))
                inputs = jax.device_put((*inputs, dataset.item[piece]), batch_sharding(mesh))
                found.append(np.asarray(ranks(params, *inputs))[:length])
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    return call


def popularity_ranks(
    dataset: Dataset, training: Int[np.ndarray, " E"], targets: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
    """The rank of each target by how often its item occurs among the training events."""
    counts = np.bincount(dataset.item[training], minlength=len(dataset.items.ids))
    found = []
    for piece, length in chunks(targets, 256):
        scores = np.where(seen_items(dataset, piece), -1.0, counts)
        own = scores[np.arange(len(piece)), dataset.item[piece]]
        found.append(((scores >= own[:, None]).sum(1))[:length])
    return np.concatenate(found) if found else np.zeros(0, np.int64)
