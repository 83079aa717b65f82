"""Clients of a server, each of whom asks again as soon as he is answered.

What is timed is what they see: parts of text, as they arrive.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import httpx
import numpy as np

PATH = "/v1/completions"
PATIENCE = 600.0  # seconds for an answer
PERCENTILES = (50, 95, 99)

Body = dict[str, Any]  # of a request


class Answer(NamedTuple):
    """When one was asked for, and when each part of it came."""

    asked: float
    parts: list[float]

    @property
    def first(self) -> float:
        """Seconds to the first part."""
        return self.parts[0] - self.asked

    @property
    def whole(self) -> float:
        """Seconds to the last one."""
        return self.parts[-1] - self.asked


def streamed(prompt: str, model: str, tokens: int, **more: Any) -> Body:
    """A request for a greedy answer of so many tokens."""
    own = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    return own | {"stream": True} | more


def load(url: str, clients: Sequence[Body], each: int) -> list[list[Answer]]:
    """The answers that each client of a server gets, who asks so often.

    Raises:
      ValueError: a request was refused, or an answer was not as long as was asked for.
    """

    async def everybody() -> list[list[Answer]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
            return await asyncio.gather(*(_client(client, body, each) for body in clients))

    return asyncio.run(everybody())


async def _client(client: httpx.AsyncClient, body: Body, each: int) -> list[Answer]:
    return [await _answer(client, body) for _ in range(each)]


async def _answer(client: httpx.AsyncClient, body: Body) -> Answer:
    asked, parts, told = time.perf_counter(), [], ""
    async with client.stream("POST", PATH, json=body) as response:
        if response.status_code != httpx.codes.OK:
            said = (await response.aread()).decode()
            raise ValueError(f"a request was refused with {response.status_code}: {said}")
        async for line in response.aiter_lines():
            told = line if line.startswith("data: {") else told
            if line.startswith("data: {") and _text(line):
                parts.append(time.perf_counter())
    if len(parts) != body["max_tokens"]:
        raise ValueError(f"{len(parts)} parts came of {body['max_tokens']} tokens; last: {told}")
    return Answer(asked, parts)


def _text(line: str) -> str:
    choices = json.loads(line.removeprefix("data: ")).get("choices")
    return choices[0].get("text", "") if choices else ""


def speed(answers: Sequence[Sequence[Answer]]) -> float:
    """Tokens a second while all clients were there: until the first of them had his last answer."""
    everything = [answer for own in answers for answer in own]
    begun = min(answer.asked for answer in everything)
    ended = min(own[-1].parts[-1] for own in answers)
    return sum(part <= ended for answer in everything for part in answer.parts) / (ended - begun)


def percentiles(answers: Sequence[Answer], figure: Callable[[Answer], float]) -> dict[str, float]:
    """Of what some answers took, `p50` and others."""
    found = np.percentile([figure(answer) for answer in answers], PERCENTILES)
    return {f"p{p}": float(x) for p, x in zip(PERCENTILES, found, strict=True)}
