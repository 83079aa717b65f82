"""From the engine's thread to a client: the parts of one request's answers, as they come."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request as Asked

from user_llm.inference.writer import Spelling
from user_llm.serving.batch import Request
from user_llm.serving.http.forms import Finish, Usage
from user_llm.serving.http.metrics import Metrics
from user_llm.serving.service import Service

T = TypeVar("T")


class Part(NamedTuple):
    """What is new of one of the answers."""

    index: int
    text: str
    finish: Finish | None  # why it ended, if it did


class Gone(Exception):
    """Whoever asked has left."""


class Answers:
    """The answers to one request, which is withdrawn when nobody waits for them any more.

    Args:
      user: whose memory they read, if anybody's.
      stop: texts before which an answer ends.
      seconds: until all are whole.
      threads: in which the store is asked about the user; None: those that all share.
    """

    def __init__(
        self,
        service: Service,
        requests: Sequence[Request],
        *,
        user: str | None,
        stop: Sequence[str],
        seconds: float,
        metrics: Metrics,
        threads: CapacityLimiter | None = None,
    ):
        self.threads = threads
        self.service, self.user, self.seconds, self.metrics = service, user, seconds, metrics
        special = map(service.tokenizer.special, stop)
        stops = {service.tokenizer.eos}.union(*special)
        self.requests = [request._replace(stop=stops) for request in requests]
        self.spelled = [Spelling(service.tokenizer, stop) for _ in requests]
        self._began = time.perf_counter()

    async def begin(self) -> None:
        """Hands the request in.

        Raises:
          ValueError, Busy, Closed, StoreError: as `Service.answer`; nothing is under way then.
        """
        loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[tuple[int, int | Exception | None]] = asyncio.Queue()

        def tell(index: int):
            return lambda told: loop.call_soon_threadsafe(self._told.put_nowait, (index, told))

        self._answers = []
        try:
            for index, request in enumerate(self.requests):
                ask = partial(self.service.answer, request, self.user, tell(index))
                self._answers.append(await to_thread.run_sync(ask, limiter=self.threads))
        except BaseException:
            self.withdraw()
            raise

    async def parts(self) -> AsyncIterator[Part]:
        """What is new of them, until all have ended.

        Raises:
          TimeoutError: they took too long.
          RuntimeError: the engine broke down over them.
        """
        open_ones, until = set(range(len(self.requests))), self._began + self.seconds
        try:
            while open_ones:
                left = until - time.perf_counter()
                index, told = await asyncio.wait_for(self._told.get(), max(0.0, left))
                if index not in open_ones:
                    continue
                if isinstance(told, Exception):
                    raise RuntimeError("the answer could not be gone on with") from told
                part = self._part(index, told)
                if part.finish:
                    open_ones.remove(index)
                if part.text or part.finish:
                    yield part
        finally:
            self.withdraw()
            self.metrics.read.inc(self.usage.prompt_tokens)
            self.metrics.written.inc(self.usage.completion_tokens)

    def _part(self, index: int, told: int | None) -> Part:
        spelled, most = self.spelled[index], self.requests[index].max_new_tokens
        if told is None:
            full = len(spelled.tokens) == most
            return Part(index, spelled.rest(), "length" if full else "stop")
        if not spelled.tokens and index == 0:
            self.metrics.first_token.observe(time.perf_counter() - self._began)
        text = spelled.add(told)
        if spelled.ended:
            self._answers[index].cancel()
        return Part(index, text, "stop" if spelled.ended else None)

    async def whole(self) -> list[tuple[str, Finish]]:
        """The text of each, and why it ended.

        Raises:
          TimeoutError, RuntimeError: as `parts`.
        """
        texts = [""] * len(self.requests)
        ends: list[Finish] = ["stop"] * len(self.requests)
        async for index, text, finish in self.parts():
            texts[index] += text
            ends[index] = finish or ends[index]
        return list(zip(texts, ends, strict=True))

    def withdraw(self) -> None:
        """Ends what is still under way."""
        for answer in self._answers:
            answer.cancel()

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        read = sum(len(prompt) for prompt in {tuple(one.prompt) for one in self.requests})
        written = sum(len(one.tokens) for one in self.spelled)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


async def unless_gone(asked: Asked, work: Awaitable[T]) -> T:
    """What work comes to, unless whoever asked leaves before.

    Raises:
      Gone: they did; the work is cancelled.
    """
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(asked))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _left(asked: Asked) -> None:
    while (await asked.receive())["type"] != "http.disconnect":
        pass
