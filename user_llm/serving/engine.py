"""Answers to whoever asks: one batch that goes on for ever, which requests join and leave.

All shapes are static: so many rows of so many positions. Whoever waits is read, alone and in a
length of few, between two steps of the others; of several who wait one at a time, so that nobody's
answer stands still for long.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from user_llm.inference.buckets import row_length
from user_llm.inference.generate import Generator, State, padded
from user_llm.inference.sampling import Choice, Sampling, add_tokens, choose, seen_tokens
from user_llm.models.layers import Memory

logger = logging.getLogger(__name__)


class Busy(Exception):
    """As many wait as may; ask again later."""


class Closed(Exception):
    """Nobody is answered any more."""


class Request(NamedTuple):
    """What is asked for, by one user or by nobody."""

    prompt: Sequence[int]
    max_new_tokens: int
    memory: Memory | None = None  # [1, M, W], for the cross-attentions
    prefix: Memory | None = None  # [1, M, W], before the prompt
    sampling: Sampling = Sampling()
    stop: Collection[int] = ()


class Answer:
    """The tokens of an answer as they come; without the stop token that may have ended it."""

    def __init__(self, request: Request):
        self.request, self.tokens = request, 0
        self.cancelled = False
        self._told: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()

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
        self._told.put(told)
        self.tokens += isinstance(told, int)


class Engine:
    """A generator with a batch of its own, and the thread that goes on with it.

    Args:
      rows: answers that are under way at most.
      length: positions of a row, those of prefix, prompt and answer together.
      memory_tokens: of a user, at most; where the decoder has cross-attention.
      waiting: requests that wait for a row at most.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        rows: int = 16,
        length: int = 512,
        memory_tokens: int = 0,
        waiting: int = 64,
    ):
        self.generator, self.rows = generator, rows
        self.length = min(row_length(length), generator.config.max_position_embeddings)
        self.memory_tokens, self.most_waiting = memory_tokens, waiting
        self.running: dict[int, Answer] = {}
        self.waiting: deque[Answer] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._begin()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Answer:
        """The answer to a request, which waits for its turn.

        Raises:
          ValueError: the request cannot be answered, and why.
          Busy: too many wait.
          Closed: the engine is drained.
        """
        self._check(request)
        answer = Answer(request)
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

    def _check(self, request: Request) -> None:
        if request.max_new_tokens < 1:
            raise ValueError(
                f"max_new_tokens={request.max_new_tokens} asks for nothing; ask for at least 1"
            )
        how = request.memory, request.prefix, request.max_new_tokens
        self.generator.check([request.prompt], *how)
        before = int(np.asarray(request.prefix.mask).sum()) if request.prefix else 0
        total = before + len(request.prompt) + request.max_new_tokens
        if total > self.length:
            raise ValueError(
                f"prefix, prompt and answer take {total} positions of {self.length}; shorten the "
                "prompt or ask for fewer new tokens"
            )
        known = request.memory.tokens.shape[1] if request.memory else 0
        if known > self.memory_tokens:
            raise ValueError(f"a memory of {known} tokens is read up to {self.memory_tokens}")
        Choice.of([request.sampling])

    def _begin(self) -> None:
        """An empty batch, of the shapes that every later one has."""
        _, one = self._read(Request([0], 1))
        self.state: State = jax.tree.map(
            lambda x: jnp.zeros((self.rows, *x.shape[1:]), x.dtype), one
        )
        room = (self.rows, *one.caches[0].keys.shape[1:2], self.length)
        self.state = self.state._replace(
            caches=jax.tree.map(
                lambda x: jnp.zeros((*room, x.shape[3]), x.dtype), self.state.caches
            )
        )
        self.tokens, self.counts = jnp.zeros(self.rows, jnp.int32), np.zeros(self.rows, np.int32)
        self.samplings = [Sampling()] * self.rows
        self.choice, self.seen = Choice.of(self.samplings), None

    def _read(self, request: Request) -> tuple[jax.Array, State]:
        """The logits behind a prompt, and the state with it."""
        memory, width = request.memory, self.generator.config.hidden_size
        if self.generator.crosses:
            none = jnp.zeros((1, 0, width)), jnp.zeros((1, 0), bool)
            tokens, mask = none if memory is None else memory
            more = ((0, 0), (0, self.memory_tokens - tokens.shape[1]))
            memory = Memory(jnp.pad(tokens, (*more, (0, 0))), jnp.pad(mask, more))
        return self.generator.prefill(*padded([request.prompt]), memory, request.prefix)

    def _serve(self) -> None:
        while True:
            with self._changed:
                while self._open and not self.waiting and not self.running:
                    self._changed.wait()
                if not self.waiting and not self.running:
                    return
            try:
                self._admit()
                self._step()
            except Exception as error:  # whatever it is, those who wait are to hear of it
                logger.exception("the batch could not be gone on with")
                for answer in self.running.values():
                    answer.tell(error)
                self.running.clear()
                self._begin()

    def _admit(self) -> None:
        """Reads who waits into the rows that are free: one request, or many where nobody runs."""
        while self.waiting and len(self.running) < self.rows:
            alone = not self.running
            with self._changed:
                answer = self.waiting.popleft()
            if answer.cancelled:
                answer.tell(None)
                continue
            self._join(answer)
            if not alone:
                return

    def _join(self, answer: Answer) -> None:
        request = answer.request
        row = next(row for row in range(self.rows) if row not in self.running)
        self.running[row] = answer
        logits, one = self._read(request)
        self.state = _placed(self.state, one, row)
        self.samplings[row], self.counts[row] = request.sampling, 0
        self.choice = Choice.of(self.samplings)
        own, seen = Choice.of([request.sampling]), None
        if request.sampling.repetition_penalty != 1:
            seen = seen_tokens(logits, *padded([request.prompt]))
        token = choose(logits, own, 0, seen)
        if seen is not None:
            if self.seen is None:
                self.seen = jnp.zeros((self.rows, logits.shape[1]), bool)
            self.seen = self.seen.at[row].set(add_tokens(seen, token)[0])
        self.tokens = self.tokens.at[row].set(token[0])
        self._tell(row, int(token[0]))

    def _step(self) -> None:
        """One more token to every answer under way."""
        for row in [row for row, answer in self.running.items() if answer.cancelled]:
            self._leave(row)
        if not self.running:
            return
        logits, self.state = self.generator.step(self.state, self.tokens)
        self.tokens = choose(logits, self.choice, jnp.asarray(self.counts), self.seen)
        if self.seen is not None:
            self.seen = add_tokens(self.seen, self.tokens)
        found = self.tokens.tolist()
        for row in list(self.running):
            self._tell(row, found[row])

    def _tell(self, row: int, token: int) -> None:
        """Hands a row its token, which may end the answer."""
        answer = self.running[row]
        if token in answer.request.stop:
            self._leave(row)
            return
        answer.tell(token)
        self.counts[row] += 1
        if answer.tokens == answer.request.max_new_tokens:
            self._leave(row)

    def _leave(self, row: int) -> None:
        self.running.pop(row).tell(None)
        if self.samplings[row] != Sampling():
            self.samplings[row] = Sampling()
            self.choice = Choice.of(self.samplings)
        if all(one.repetition_penalty == 1 for one in self.samplings):
            self.seen = None


@partial(jax.jit, donate_argnums=0)
def _placed(state, one, row):
    """The batch with a single row's state in one of its rows."""

    def put(whole, own):
        own = own[:, :, : whole.shape[2]] if own.ndim == 4 else own
        return jax.lax.dynamic_update_slice(whole, own, (row, *(0,) * (whole.ndim - 1)))

    return jax.tree.map(put, state, one)
