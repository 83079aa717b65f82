"""Answers to whoever asks: one batch that goes on for ever, which requests join and leave.

Those who wait are read between two steps of the others, several at once, but no more at a time than
keeps these from standing still for long. A step is under way before the tokens of the one before
are told.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int

from user_llm.inference.catalog import Catalog
from user_llm.inference.generate import Crossed, Generator
from user_llm.models.layers import Memory
from user_llm.serving.batch import AT_ONCE, Batch, Request

logger = logging.getLogger(__name__)

Tell = Callable[[int | Exception | None], object]  # takes a token, or the end of an answer
READ = 512  # positions that are read between two steps, or those of one request


class Busy(Exception):
    """As many wait as may; ask again later."""


class Closed(Exception):
    """Nobody is answered any more."""


class Load(NamedTuple):
    """What an engine has to do, and what it has done."""

    running: int
    waiting: int
    tokens: int  # that were told, since the beginning
    steps: int


class Answer:
    """The tokens of an answer as they come; without the stop token that may have ended it.

    Args:
      tell: called from the engine's thread with each token, and in the end with None, or with what
        the engine broke down over. What it raises ends the answer. Without it, tokens wait to be
        iterated over.
    """

    def __init__(self, request: Request, tell: Tell | None = None):
        self.request, self.tokens = request, 0
        self.cancelled = self.ended = False
        self.asked, self.row = 0, -1  # tokens that are told or under way, and where
        self._told: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()
        self._tell = tell or self._told.put

    def __iter__(self) -> Iterator[int]:
        """The next token, when it is there.

        Raises:
          RuntimeError: the engine broke down over the batch that this answer was in.
        """
        while (told := self._told.get()) is not None:
            if isinstance(told, Exception):
                raise RuntimeError("the batch of this answer could not be gone on with") from told
            yield told

    def cancel(self) -> None:
        """Ends it with the step that is under way; its row is free for others."""
        self.cancelled = True

    def tell(self, told: int | Exception | None) -> None:
        """Adds a token; None ends it, an exception ends it badly."""
        self.tokens += isinstance(told, int)
        self.ended = not isinstance(told, int)
        try:
            self._tell(told)
        except Exception:  # whatever it is, the others of the batch have nothing to do with it
            logger.exception("an answer could not be told and is cancelled")
            self._tell = self._told.put
            self.cancel()


class Engine:
    """A generator with a batch of its own, and the thread that goes on with it.

    Args:
      rows: answers that are under way at most.
      length: positions of a row, those of prefix, prompt and answer together.
      memory_tokens: of a user, at most; where the decoder has cross-attention.
      waiting: requests that wait for a row at most.
      catalog: of items that answers may have to be.
      likely: requests like those that will come; what they take is compiled before any does.

    Raises:
      ValueError: the catalogue is of no use here (see `Batch`), or a likely request is.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        rows: int = 16,
        length: int = 512,
        memory_tokens: int = 0,
        waiting: int = 64,
        catalog: Catalog | None = None,
        likely: Iterable[Request] = (),
    ):
        self.batch = Batch(
            generator, rows=rows, length=length, memory_tokens=memory_tokens, catalog=catalog
        )
        for request in likely:
            self.batch.prepare(request)
        self.most_waiting = waiting
        self.running: dict[int, Answer] = {}  # by row
        self.waiting: deque[Answer] = deque()
        self.tokens = self.steps = 0
        # What the device was asked for: tokens, and whose they are by their places.
        self._asked: deque[tuple[Int[Array, " N"], dict[int, Answer]]] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> Load:
        return Load(len(self.running), len(self.waiting), self.tokens, self.steps)

    def crossed(self, memory: Memory) -> Crossed:
        """A request's `memory` [1, M, W] as it is read here, which may be kept for others.

        Raises:
          ValueError: as `Batch.crossed`.
        """
        return self.batch.crossed(memory)

    def submit(self, request: Request, tell: Tell | None = None) -> Answer:
        """The answer to a request, which waits for its turn; see `Answer` for `tell`.

        Raises:
          ValueError: the request cannot be answered, and why.
          Busy: too many wait.
          Closed: the engine is drained.
        """
        self.batch.check(request)
        answer = Answer(request, tell)
        with self._changed:
            if not self._open:
                raise Closed("no more requests are taken")
            if len(self.waiting) >= self.most_waiting:
                raise Busy(f"{len(self.waiting)} requests wait already")
            self.waiting.append(answer)
            self._changed.notify_all()
        return answer

    def drain(self, timeout: float | None = None) -> bool:
        """Takes no more requests and ends those that there are; whether all ended in time."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while self._open and not self.waiting and not self.running:
                    self._changed.wait()
                if not self.waiting and not self.running:
                    return
            try:
                self._cancel()
                self._admit()
                self._step()
            except Exception as error:  # whatever it is, those who wait are to hear of it
                logger.exception("the batch could not be gone on with")
                self._break_down(error)

    def _cancel(self) -> None:
        """Lets those go who want no more, be they running or waiting."""
        with self._changed:
            gone = [answer for answer in self.waiting if answer.cancelled]
            for answer in gone:
                self.waiting.remove(answer)
        for answer in [*gone, *self.running.values()]:
            if answer.cancelled:
                self._end(answer)

    def _admit(self) -> None:
        """Reads who waits into the rows that are free, those of one shape together."""
        free = [row for row in range(self.batch.size) if row not in self.running]
        joining: dict[Hashable, list[Answer]] = {}
        room = READ
        while free and self.waiting:
            room -= self.waiting[0].request.positions
            if joining and room < 0:
                break
            with self._changed:
                answer = self.waiting.popleft()
            answer.row = free.pop(0)
            self.running[answer.row] = answer
            joining.setdefault(answer.request.shape, []).append(answer)
        for alike in joining.values():
            while alike:
                size = next(size for size in AT_ONCE if size <= len(alike))
                now, alike = alike[:size], alike[size:]
                tokens = self.batch.join({answer.row: answer.request for answer in now})
                self._ask(tokens, dict(enumerate(now)))

    def _step(self) -> None:
        """One more token to every answer under way, while those of the step before are told."""
        if self.running:
            self.steps += 1
            self._ask(self.batch.step(), dict(self.running))
        while len(self._asked) > bool(self.running):
            self._hear()

    def _ask(self, tokens: Int[Array, " N"], whose: dict[int, Answer]) -> None:
        """Notes what is under way; an answer that needs no more than this makes room."""
        self._asked.append((tokens, whose))
        for answer in whose.values():
            answer.asked += 1
            if answer.asked == answer.request.max_new_tokens:
                self._leave(answer)

    def _hear(self) -> None:
        """Tells the tokens that have been under way for longest."""
        tokens, whose = self._asked[0]
        found = np.asarray(tokens).tolist()
        for place, answer in whose.items():
            if answer.ended:  # it stopped or was cancelled a step ago
                continue
            stopped = found[place] in answer.request.stop
            if not stopped:
                answer.tell(found[place])
                self.tokens += 1
            if stopped or answer.tokens == answer.request.max_new_tokens:
                self._end(answer)
        self._asked.popleft()

    def _end(self, answer: Answer) -> None:
        self._leave(answer)
        answer.tell(None)

    def _leave(self, answer: Answer) -> None:
        if self.running.get(answer.row) is answer:
            del self.running[answer.row]
            self.batch.leave(answer.row)

    def _break_down(self, error: Exception) -> None:
        """Tells it to all whom it concerns, and begins anew."""
        concerned = [*self.running.values()]
        concerned += [answer for _, whose in self._asked for answer in whose.values()]
        for answer in concerned:
            if not answer.ended:
                answer.tell(error)
        self.running.clear()
        self._asked.clear()
        self.batch.clear()
