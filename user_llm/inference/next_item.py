"""How well an encoder's own head, or popularity, ranks the next item over the whole catalogue."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from user_llm.data.dataset import Dataset
from user_llm.data.features import KNOWN
from user_llm.data.pipeline import PackedTimelines, chunks
from user_llm.data.timelines import histories, pack, user_of
from user_llm.inference.buckets import bucket
from user_llm.inference.retrieval import TILE, rank
from user_llm.models.encoders import Encoder
from user_llm.processes import host
from user_llm.sharding import batch_sharding

USERS = 512  # that are ranked at a time


def seen_items(dataset: Dataset, targets: Int[np.ndarray, " B"]) -> Bool[np.ndarray, "B V"]:
    """Which items may not be recommended: those before the target, unless they are the target."""
    seen = np.zeros((len(targets), len(dataset.items.ids)), bool)
    seen[:, :KNOWN] = True
    starts = dataset.offsets[user_of(targets, dataset.offsets)]
    for row, start, target in zip(seen, starts, targets, strict=True):
        row[dataset.item[start:target]] = True
        row[dataset.item[target]] = False
    return seen


def seen_lists(dataset: Dataset, targets: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B H"]:
    """The same as lists of items, filled up with 0."""
    starts = dataset.offsets[user_of(targets, dataset.offsets)]
    size = bucket(int(np.max(targets - starts, initial=1)), least=1)
    events = histories(targets, dataset.offsets, size)
    return np.where(events >= 0, dataset.item[events], 0)


def encoder_ranker(
    make_encoder: Callable[..., Encoder],
    dataset: Dataset,
    targets: Int[np.ndarray, " N"],
    *,
    mesh: Mesh,
    batch_size: int = 64,
) -> Callable[[dict], Int[np.ndarray, " N"]]:
    """A function of an encoder's parameters: the rank of each target event's item.

    Among those that the user has not had; where users ask something, and items are the labels that
    they give, among all.
    """
    ask = asker(make_encoder, dataset, targets, mesh=mesh, batch_size=batch_size)

    def call(params: dict) -> np.ndarray:
        if not len(targets):
            return np.zeros(0, np.int64)
        queries, table = ask(params)
        found = []
        with jax.set_mesh(mesh):
            # By length of history, so that few rows of `seen` are mostly padding.
            order = np.argsort(targets - dataset.offsets[user_of(targets, dataset.offsets)])
            for piece, length in chunks(order, USERS):
                chosen = targets[piece]
                seen = seen_lists(dataset, chosen)
                if dataset.asked is not None:
                    seen = np.zeros_like(seen[:, :1])
                inputs = (queries[piece], seen, dataset.item[chosen])
                placed = jax.device_put(inputs, batch_sharding(mesh))
                ranks = rank(placed[0], table, *placed[1:], tile=min(TILE, len(table)))
                found.append(host(ranks)[:length])
        ranks = np.empty(len(targets), np.int64)
        ranks[order] = np.concatenate(found)
        return ranks

    return call


def asker(
    make_encoder: Callable[..., Encoder],
    dataset: Dataset,
    targets: Int[np.ndarray, " N"],
    *,
    mesh: Mesh,
    batch_size: int = 64,
) -> Callable[[dict], tuple[Float[np.ndarray, "N Q"], Float[Array, "V Q"]]]:
    """A function of an encoder's parameters: what the users want at these events, and the items.

    Where the encoder is causal, histories are packed into rows, several in each.
    """
    model = nnx.eval_shape(lambda: make_encoder(rngs=nnx.Rngs(0)))
    graphdef, window = nnx.graphdef(model), model.config.window
    starts = np.maximum(dataset.offsets[user_of(targets, dataset.offsets)], targets - window)
    (known,) = np.nonzero(starts < targets)  # of the others nothing is: they ask for nothing
    ranges = np.stack([starts, targets], axis=1)[known]
    rows = pack(ranges, window) if model.causal else (ranges[:, :1], np.diff(ranges))
    source = PackedTimelines(dataset, *rows, window)
    owner = owners(ranges, *rows)

    @jax.jit
    def queries(params, batch, ends):
        encoder = nnx.merge(graphdef, params)
        if not encoder.causal:
            return encoder.queries(encoder.ask(**batch))[:, None]
        return encoder.queries(encoder.at(**batch, places=ends))  # [B, S, Q]

    items = jax.jit(lambda params: nnx.merge(graphdef, params).item_vectors())

    def call(params: dict):
        with jax.set_mesh(mesh):
            sharding, unpack, table = batch_sharding(mesh), source.unpack(mesh), items(params)
            found = np.zeros((len(targets), table.shape[1]), np.float32)
            for piece, length in chunks(np.arange(len(source)), batch_size):
                ends = np.maximum(np.cumsum(rows[1][piece], axis=1) - 1, 0)
                sent = jax.device_put((source.batch(piece, piece), ends), sharding)
                told = host(queries(params, unpack(sent[0]), sent[1]))[:length]
                mine = owner[piece[:length]]
                found[known[mine[mine >= 0]]] = told[mine >= 0]
        return found, table

    return call


def owners(ranges: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The index of the range that each packed window is, -1 where there is none.

    Equal ranges are told apart by taking turns.
    """
    found = np.full(starts.shape, -1)
    there = lengths > 0
    key = np.stack([starts[there], (starts + lengths)[there]])
    packed, given = np.lexsort(key), np.lexsort(ranges.T)
    flat = np.empty(len(packed), np.int64)
    flat[packed] = given
    found[there] = flat
    return found


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
