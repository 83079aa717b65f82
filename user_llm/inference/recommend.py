"""What a trained encoder recommends to users, and the vectors that it makes of them.

The users may be anyone: of the data set that it was trained on, or never seen by it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int

from user_llm.data import unseen
from user_llm.data.dataset import Dataset
from user_llm.data.unseen import Event
from user_llm.inference.buckets import bucket
from user_llm.inference.retrieval import TILE, best
from user_llm.models.encoders import Encoder
from user_llm.sharding import batch_sharding


class Recommendation(NamedTuple):
    """An item, and how well it fits: what the encoder multiplies out, of no fixed range."""

    item: str
    title: str
    score: float


class Recommender:
    """An encoder with its parameters, ready to be asked about any timelines.

    Args:
      dataset: that the encoder was trained on; its vocabularies encode what is asked about.
      make_encoder: called with `rngs=`; its structure alone is used.
      params: the encoder's, on the mesh.
      batch_size: users at a time.
    """

    def __init__(
        self,
        dataset: Dataset,
        make_encoder: Callable[..., Encoder],
        params: dict,
        *,
        mesh: Mesh,
        batch_size: int = 128,
    ):
        self.dataset, self.params, self.mesh = dataset, params, mesh
        model = nnx.eval_shape(lambda: make_encoder(rngs=nnx.Rngs(0)))
        graphdef, self.window = nnx.graphdef(model), model.config.window
        self.width = model.config.embed
        self.parts = mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = max(1, batch_size // self.parts) * self.parts
        self._ask = jax.jit(
            lambda params, events, segments: (
                nnx.merge(graphdef, params).ask(events, segments).astype(jnp.float32)
            )
        )
        self._queries = jax.jit(lambda params, x: nnx.merge(graphdef, params).queries(x))
        with jax.set_mesh(mesh):
            items = jax.jit(lambda params: nnx.merge(graphdef, params).item_vectors())
            self.items = items(params)  # [V, Q]

    def recommend(
        self,
        timelines: Sequence[Sequence[Event]],
        count: int = 10,
        *,
        exclude_seen: bool = True,
        at: Sequence[float | int] | None = None,
    ) -> list[list[Recommendation]]:
        """The items that most likely come next, best first; fewer than `count` if no more exist.

        Args:
          timelines: raw events of each user, dicts of `item`, `timestamp` and what the features
            read (see `unseen.encode`); of a long timeline the last `window` events are read.
          exclude_seen: leaves out what is anywhere in a user's own timeline.
          at: seconds, when each user is asked; by default at the last event.
        """
        if not len(timelines):
            return []
        data = unseen.encode(self.dataset, timelines, at=at)
        users = np.arange(len(timelines))
        return self.best(data, users, count, exclude_seen=exclude_seen)

    def embed(
        self, timelines: Sequence[Sequence[Event]], *, at: Sequence[float | int] | None = None
    ) -> Float[np.ndarray, "N D"]:
        """The state of each user from which the next event is predicted (see `recommend`)."""
        if not len(timelines):
            return np.zeros((0, self.width), np.float32)
        return self.states(unseen.encode(self.dataset, timelines, at=at), np.arange(len(timelines)))

    def best(
        self,
        data: Dataset,
        users: Int[np.ndarray, " N"],
        count: int = 10,
        *,
        exclude_seen: bool = True,
    ) -> list[list[Recommendation]]:
        """As `recommend`, of users of a data set, all of whose events are read.

        Raises:
          ValueError: `count` is below 1.
        """
        if count < 1:
            raise ValueError(f"count={count} asks for nothing; ask for at least 1")
        found: list[list[Recommendation]] = [[] for _ in users]
        with jax.set_mesh(self.mesh):
            for places, states in self._batches(data, users):
                seen = np.zeros((len(states), 1), np.int32)
                if exclude_seen:
                    seen = self._seen(data, users[places], len(states))
                placed = jax.device_put(seen, batch_sharding(self.mesh))
                queries = self._queries(self.params, states)
                tile = min(TILE, len(self.items))
                chosen = best(queries, self.items, placed, count, tile=tile)
                for place, items, scores in zip(places, *map(np.asarray, chosen), strict=False):
                    found[place] = self._named(items, scores)
        return found

    def states(self, data: Dataset, users: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N D"]:
        """As `embed`, of users of a data set, all of whose events are read."""
        found = np.zeros((len(users), self.width), np.float32)
        with jax.set_mesh(self.mesh):
            for places, states in self._batches(data, users):
                found[places] = np.asarray(states)[: len(places)]
        return found

    def _batches(self, data: Dataset, users: np.ndarray) -> Iterator[tuple[np.ndarray, jax.Array]]:
        """The places in `users` of a batch, and its states, behind them those of nobody."""
        sizes = self.window, self.batch_size, self.parts
        for places, sent in batches(data, users, *sizes):
            yield places, self._ask(self.params, *jax.device_put(sent, batch_sharding(self.mesh)))

    def _seen(self, data: Dataset, users: np.ndarray, rows: int) -> Int[np.ndarray, "B H"]:
        starts, stops = data.offsets[:-1][users], data.offsets[1:][users]
        span = np.arange(bucket(int((stops - starts).max()), least=1))
        events = np.minimum(starts[:, None] + span, stops[:, None] - 1)  # the last one repeats
        seen = np.zeros((rows, len(span)), np.int32)
        seen[: len(users)] = data.item[events]
        return seen

    def _named(self, items: np.ndarray, scores: np.ndarray) -> list[Recommendation]:
        names = self.dataset.items
        return [
            Recommendation(names.ids[item], names.titles[item], score)
            for item, score in zip(items.tolist(), scores.tolist(), strict=True)
            if item >= 0
        ]


def batches(
    data: Dataset, users: Int[np.ndarray, " N"], window: int, batch_size: int, parts: int
) -> Iterator[tuple[np.ndarray, tuple[dict[str, np.ndarray], np.ndarray]]]:
    """Users' last events and their segments, a batch at a time, and the users' places.

    Shapes are powers of two, for each is compiled; users of like lengths go together. Behind them
    come rows of nobody, so that a mesh of so many parts divides the batch.
    """
    stops = data.offsets[1:][users]
    starts = np.maximum(data.offsets[:-1][users], stops - window)
    order = np.argsort(stops - starts, kind="stable")
    for first in range(0, len(users), batch_size):
        places = order[first : first + batch_size]
        begin, lengths = starts[places], (stops - starts)[places]
        size = min(window, bucket(int(lengths.max()), least=1))
        rows = parts * bucket(-(-len(places) // parts), least=1)
        events = np.full((min(rows, batch_size), size), -1)
        span = np.arange(size)
        events[: len(places)] = np.where(span < lengths[:, None], begin[:, None] + span, -1)
        yield places, (data.gather(events), (events >= 0).astype(np.int32))
