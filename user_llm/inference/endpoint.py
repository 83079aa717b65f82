"""A language model behind an OpenAI-compatible endpoint, whose every answer is paid for once.

An answer is kept as a file of its own, by the SHA-256 of what was asked: the model, the messages
and how it samples, not where it answers. What was interrupted goes on, and what is asked again
costs nothing.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from tqdm.auto import tqdm

from user_llm.config.base import Config
from user_llm.inference.replies import Completion, Form, Kept, mend, told

T = TypeVar("T")
Message = dict[str, str]


class ChatConfig(Config):
    """Which model answers, where, and how it is asked."""

    url: str = Field(pattern=r"^https?://.")  # up to what stands before /chat/completions
    model: str  # as the endpoint calls it
    temperature: NonNegativeFloat = 0.8
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: PositiveInt = 2048  # of an answer
    seed: int = 42
    concurrency: PositiveInt = 8  # requests at a time
    timeout: PositiveFloat = 600.0  # seconds for which an answer is waited for
    retries: NonNegativeInt = 4  # of a request that fails or is not answered in time
    corrections: NonNegativeInt = 2  # times that a malformed answer is asked for again


@dataclass
class Counts:
    """What was asked: paid for now, or known from before; and what became of it."""

    calls: int = 0  # that were answered
    prompt_tokens: int = 0  # of the calls
    completion_tokens: int = 0
    cached: int = 0  # answers that were there
    cached_prompt_tokens: int = 0
    cached_completion_tokens: int = 0
    repaired: int = 0  # malformed answers that could be mended
    retried: int = 0  # malformed answers that were asked for again
    given_up: int = 0  # answers that never were as asked

    def __str__(self) -> str:
        return (
            f"{self.calls} calls ({self.prompt_tokens} + {self.completion_tokens} tokens), "
            f"{self.cached} answers from before ({self.cached_prompt_tokens} + "
            f"{self.cached_completion_tokens}); malformed: {self.repaired} repaired, "
            f"{self.retried} asked for again, {self.given_up} given up"
        )


class Failed(Exception):
    """An endpoint's last word on something that it did not answer."""


class GivenUp(Failed):
    """An answer that was malformed as often as it was asked for."""


class Chat:
    """A model to be asked, within an `async with`; its answers are kept in a folder.

    Raises:
      ValueError: the package `openai` is not installed, or the URL is none.
    """

    def __init__(self, config: ChatConfig, cache: Path):
        try:
            import httpx
            import openai
        except ImportError as error:
            raise ValueError("an endpoint wants openai; install the extra `dpl`") from error
        self.config, self.cache, self.counts = config, cache, Counts()
        try:
            self._client = openai.AsyncOpenAI(
                base_url=config.url,
                api_key=os.environ.get("OPENAI_API_KEY") or "none",
                timeout=config.timeout,
                max_retries=config.retries,
            )
        except httpx.InvalidURL as error:
            raise ValueError(f"the endpoint's URL {config.url!r} is none: {error}") from error
        self._response, self._error = httpx.Response, openai.OpenAIError
        self._free = asyncio.Semaphore(config.concurrency)
        self._pending: dict[str, asyncio.Task[Kept]] = {}

    async def __aenter__(self) -> "Chat":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def say(self, prompt: str, tag: str = "") -> str:
        """The text of the answer, from behind a tag on if that occurs.

        Raises:
          Failed: there is no answer.
          GivenUp: there never was a text in it.
        """

        def read(answer: str) -> str:
            _, found, behind = answer.partition(tag) if tag else ("", "", "")
            if text := (behind if found else answer).strip():
                return text
            raise ValueError("There is no text in it")

        return await self._correct(prompt, read, None)

    async def fill(self, prompt: str, form: type[Form]) -> Form:
        """The answer as a form that the endpoint is asked to fill in, as JSON.

        Raises:
          Failed: there is no answer.
          GivenUp: none of them could be read.
        """

        def read(answer: str) -> Form:
            try:
                return form.model_validate_json(answer)
            except ValidationError:
                found = mend(answer, form)
                self.counts.repaired += 1
                return found

        return await self._correct(prompt, read, form)

    async def _correct(
        self, prompt: str, read: Callable[[str], T], form: type[BaseModel] | None
    ) -> T:
        """What is read of the answer; one that cannot be read is asked for again, being told why.

        All that was said before stands in the new request, or it could not have another answer.
        """
        messages, problem = [{"role": "user", "content": prompt}], ""
        for correction in range(self.config.corrections + 1):
            self.counts.retried += correction > 0
            answer = await self._answer(messages, form)
            try:
                return read(answer)
            except ValueError as error:
                problem = told(error)
            again = f"That answer cannot be used: {problem}. Please answer again, as asked above."
            messages = [
                *messages,
                {"role": "assistant", "content": answer or "(nothing)"},
                {"role": "user", "content": again},
            ]
        self.counts.given_up += 1
        raise GivenUp(f"no answer of {self.config.corrections + 1} can be used: {problem}")

    async def _answer(self, messages: Sequence[Message], form: type[BaseModel] | None) -> str:
        """The answer that is kept, or is asked for and then kept."""
        request = {
            "model": self.config.model,
            "messages": list(messages),
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
            "max_tokens": self.config.max_tokens,
            "seed": self.config.seed,
        }
        if form is not None:
            schema = {"name": form.__name__, "strict": True, "schema": form.model_json_schema()}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        path = self.cache / key[:2] / f"{key}.json"
        counts, kept = self.counts, Kept.read(path)
        if asked_here := kept is None and key not in self._pending:
            self._pending[key] = asyncio.create_task(self._pay(request, path))
        try:
            kept = kept or await self._pending[key]
        finally:
            if asked_here:
                del self._pending[key]
        if asked_here:
            counts.calls += 1
            counts.prompt_tokens += kept.prompt_tokens
            counts.completion_tokens += kept.completion_tokens
        else:
            counts.cached += 1
            counts.cached_prompt_tokens += kept.prompt_tokens
            counts.cached_completion_tokens += kept.completion_tokens
        return kept.answer

    async def _pay(self, request: dict[str, Any], path: Path) -> Kept:
        async with self._free:
            try:
                response = await self._client.post(
                    "/chat/completions", cast_to=self._response, body=request
                )
            except self._error as error:
                raise Failed(told(error)) from error
        try:
            kept = Completion.model_validate_json(response.content).kept(request)
        except ValidationError as error:
            raise Failed(f"the reply is no chat completion: {told(error)}") from error
        kept.write(path)
        return kept


async def every(
    jobs: Sequence[Callable[[], Awaitable[T]]], at_once: int, what: str
) -> list[T | Failed]:
    """What each of the jobs gives, in their order, or why it failed; so many are done at a time."""
    free, failures = asyncio.Semaphore(at_once), 0

    async def do(job: Callable[[], Awaitable[T]]) -> T | Failed:
        nonlocal failures
        async with free:
            try:
                return await job()
            except Failed as error:
                failures += 1
                bar.set_postfix(failed=failures)
                return error
            finally:
                bar.update()

    with tqdm(total=len(jobs), desc=what) as bar:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(do(job)) for job in jobs]
    return [task.result() for task in tasks]
