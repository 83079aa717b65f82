"""What an export can be asked about users: answers in words, items they may want, and vectors."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from user_llm.data.features import KNOWN
from user_llm.data.tasks import next_item_prompt
from user_llm.inference.buckets import bucket
from user_llm.inference.catalog import Catalog, beam_search
from user_llm.inference.generate import Generator
from user_llm.inference.recommend import Recommendation, Recommender
from user_llm.serving.batch import Request
from user_llm.serving.engine import Answer, Busy, Engine, Tell
from user_llm.serving.growing import Growing
from user_llm.serving.served import Served
from user_llm.serving.store import Event, Store
from user_llm.serving.users import CACHED, Ready, Users
from user_llm.sharding import make_mesh

BEAM = 16  # prefixes of items' titles that a search goes on with, or as many as items are wanted


class Sizes(NamedTuple):
    """How much is served at a time."""

    rows: int = 16  # answers under way
    length: int = 512  # tokens of a prompt with its answer
    waiting: int = 64  # requests that wait for their turn
    cached: int = CACHED  # bytes of users' memories that are kept ready
    warm: bool = True  # what requests take is compiled before the first comes


class Service:
    """An exported system that follows the users of a store.

    Raises:
      ValueError: the system reads of users what cannot be followed (see `Growing`).
    """

    def __init__(self, served: Served, store: Store, sizes: Sizes = Sizes()):
        self.served, self.sizes, self.tokenizer = served, sizes, served.tokenizer
        self.items, told = served.dataset.items, served.told
        growing = Growing(served.dataset, served.make_model, served.params, window=told.history)
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: served.make_model(rngs=nnx.Rngs(0))))
        model = nnx.merge(graphdef, served.params)
        self.generator = Generator(model.decoder)
        words = self.generator.config.vocab_size
        self.titles = Catalog(self.tokenizer.answers(self.items.titles[KNOWN:]), words)
        nobody, crosses = growing.memory(growing.empty()), self.generator.crosses
        tokens = nobody.tokens.shape[1]
        self.prefix = 0 if crosses else tokens  # positions that a memory takes before a prompt
        self.engine = Engine(
            self.generator,
            rows=sizes.rows,
            length=sizes.length,
            memory_tokens=tokens if crosses else 0,
            waiting=sizes.waiting,
            catalog=self.titles,
            likely=self._likely({} if crosses else {"prefix": nobody}) if sizes.warm else (),
        )
        self.users = Users(
            store,
            growing,
            served.version,
            ready=self.engine.crossed if crosses else lambda memory: memory,
            cached=sizes.cached,
        )
        self._namer, self._catalog = self.generator, self.titles
        if told.system.item_tokens:
            self._namer = Generator(model.speaker())
            self._catalog = Catalog.of_tokens(words + KNOWN, self._namer.config.vocab_size)
        self.question = next_item_prompt(told.noun)
        self.numbers = {str(name): n for n, name in enumerate(self.items.ids) if n >= KNOWN}
        self._recommender = Recommender(
            served.dataset,
            lambda rngs: served.make_model(rngs=rngs).streams["timeline"].encoder,
            served.params["streams"]["timeline"]["encoder"],
            mesh=make_mesh(devices=jax.devices()[:1]),
        )
        self._turn, self._waiting = threading.Lock(), threading.BoundedSemaphore(sizes.waiting)
        if sizes.warm:
            self.users.warm()
            self._best(self.users.nobody, 1, np.zeros(len(self._catalog), bool))

    def answer(self, request: Request, user: str | None, tell: Tell | None = None) -> Answer:
        """The answer to a request, to a user: who is not known is nobody in particular.

        Without a user the language model answers alone.

        Raises:
          ValueError, Busy, Closed: as `Engine.submit`.
          StoreError: the store does not answer.
        """
        if user is not None:
            request = request._replace(**self._context(self.users.memory(user)))
        return self.engine.submit(request, tell=tell)

    def recommend(
        self, user: str, count: int, *, exclude_seen: bool = True
    ) -> list[Recommendation]:
        """The items that the language model most probably names next, best first.

        A score is the log-probability of an item's title, or of its token.

        Args:
          exclude_seen: leaves out the items of the events that are kept.

        Raises:
          ValueError: `count` is below 1.
          Busy: too many wait.
          StoreError: the store does not answer.
        """
        if count < 1:
            raise ValueError(f"count={count} asks for nothing; ask for at least 1")
        exclude = np.zeros(len(self._catalog), bool)
        if exclude_seen and (record := self.users.store.get(user)):
            seen = (self.numbers.get(str(event["item"])) for event in record.events)
            exclude[[number - KNOWN for number in seen if number is not None]] = True
        return self._best(self.users.memory(user), count, exclude)

    def vectors(self, timelines: Sequence[Sequence[Event]]) -> Float[np.ndarray, "N D"]:
        """The encoder's state of each user, from which the next event is predicted.

        Raises:
          ValueError: a timeline is empty.
          Busy: too many wait.
        """
        with self._turns():
            return self._recommender.embed(timelines)

    def room(self, prompts: Sequence[Sequence[int]], most: int, items_only: bool) -> int:
        """New tokens for which there is room behind every prompt, of `most` that are wanted.

        Or all that an item's title may take, if that is more.
        """
        wanted = max(most, len(self.titles.fans)) if items_only else most
        left = self.engine.batch.length - max(map(len, prompts)) - self.prefix
        return max(1, min(wanted, left))

    def title(self, item: Any) -> str:
        """What an item is called; nothing, where it is not known."""
        number = self.numbers.get(str(item))
        return "" if number is None else self.items.titles[number]

    def find(self, query: str, count: int) -> list[tuple[str, str]]:
        """Items, and the titles of theirs that have the query in them."""
        words = query.casefold()
        found = (
            (item, title)
            for item, title in zip(self.items.ids[KNOWN:], self.items.titles[KNOWN:], strict=True)
            if words in title.casefold()
        )
        return list(islice(found, count))

    def close(self) -> None:
        """Ends what is under way, and lets go of the store."""
        self.engine.drain()
        self.users.store.close()

    def _likely(self, context: dict[str, Any]) -> Iterator[Request]:
        """Requests of every length that answers may read."""
        end, longest = self.tokenizer.eos, self.generator.config.max_position_embeddings
        most = min(self.sizes.length, longest) - self.prefix - 1
        for size in sorted({min(bucket(size), most) for size in range(1, most + 1)}):
            yield Request([end] * size, 1, **context)

    def _best(
        self, memory: Ready, count: int, exclude: Bool[np.ndarray, " I"]
    ) -> list[Recommendation]:
        """The best items by a memory, but for those that are excluded."""
        beam, prompts = bucket(count, BEAM), self.tokenizer.prompts([self.question])
        how = {"beam": min(beam, len(self._catalog)), "exclude": exclude, **self._context(memory)}
        with self._turns():
            found, scores = beam_search(self._namer, prompts, self._catalog, **how)
        best = [(KNOWN + n, score) for n, score in zip(found[0], scores[0], strict=True) if n >= 0]
        return [
            Recommendation(self.items.ids[n], self.items.titles[n], float(score))
            for n, score in best[:count]
        ]

    def _context(self, memory: Ready) -> dict[str, Any]:
        """A user's memory, under the name by which it is taken."""
        return {"memory": memory} if self.generator.crosses else {"prefix": memory}

    @contextmanager
    def _turns(self) -> Iterator[None]:
        """One at a time, since each takes the whole machine for a moment."""
        if not self._waiting.acquire(blocking=False):
            raise Busy(f"{self.sizes.waiting} requests wait already")
        try:
            with self._turn:
                yield
        finally:
            self._waiting.release()
