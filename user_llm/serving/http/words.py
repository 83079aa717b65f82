"""OpenAI's endpoints for words: chat, completions, and the model that there is."""

import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from anyio import to_thread
from fastapi import APIRouter
from fastapi import Request as Asked
from fastapi.responses import StreamingResponse

from user_llm.serving.batch import Request
from user_llm.serving.http.answers import Answers, Part, unless_gone
from user_llm.serving.http.border import REFUSALS, NotFound, told
from user_llm.serving.http.forms import (
    Asking,
    ChatChoice,
    ChatCompletion,
    ChatRequest,
    Choice,
    Completion,
    CompletionRequest,
    Model,
    Models,
    Said,
)
from user_llm.serving.http.here import Here, Serving

logger = logging.getLogger(__name__)
WRITTEN = 64  # tokens of an answer, where nobody says how many
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/event-stream": {
                "itemSchema": {
                    "type": "object",
                    "properties": {"data": {"type": "string"}},
                    "required": ["data"],
                    "description": "A chunk in OpenAI's form, an error, or [DONE].",
                }
            }
        }
    }
}
words = APIRouter(responses=REFUSALS, tags=["words"])


@words.get("/v1/models")
async def models(here: Here) -> Models:
    """The one model that is served."""
    return Models(data=[_model(here)])


@words.get("/v1/models/{model}")
async def model(model: str, here: Here) -> Model:
    """What there is under that name."""
    check_model(model, here)
    return _model(here)


@words.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM)
async def chat(form: ChatRequest, asked: Asked, here: Here) -> Any:
    """What the model says next in a conversation, with the memory of `user`."""
    messages = [{"role": one.role, "content": one.text} for one in form.messages]

    def prompts() -> list[list[int]]:
        return [here.service.tokenizer.conversation(messages)]

    answers = await begun(form, prompts, form.max_completion_tokens, here)
    name = f"chatcmpl-{uuid4().hex}"
    if form.stream:
        begins = set(range(form.n))

        def choice(part: Part) -> dict[str, Any]:
            delta = {"content": part.text} if part.text else {}
            if part.index in begins:
                begins.remove(part.index)
                delta = {"role": "assistant", "content": part.text}
            return {"index": part.index, "delta": delta, "finish_reason": part.finish}

        return streamed(form, answers, name, "chat.completion.chunk", choice)
    choices = [
        ChatChoice(index=n, message=Said(content=text), finish_reason=finish)
        for n, (text, finish) in enumerate(await unless_gone(asked, answers.whole()))
    ]
    head = {"id": name, "created": int(time.time()), "model": form.model}
    return ChatCompletion(choices=choices, usage=answers.usage, **head)


@words.post("/v1/completions", response_model=Completion, responses=STREAM)
async def complete(form: CompletionRequest, asked: Asked, here: Here) -> Any:
    """How the model goes on with each text, with the memory of `user`."""
    prompts = partial(here.service.tokenizer.prompts, form.prompt)
    answers = await begun(form, prompts, None, here)
    name = f"cmpl-{uuid4().hex}"
    if form.stream:

        def choice(part: Part) -> dict[str, Any]:
            return {"index": part.index, "text": part.text, "finish_reason": part.finish}

        return streamed(form, answers, name, "text_completion", choice)
    choices = [
        Choice(index=n, text=text, finish_reason=finish)
        for n, (text, finish) in enumerate(await unless_gone(asked, answers.whole()))
    ]
    head = {"id": name, "created": int(time.time()), "model": form.model}
    return Completion(choices=choices, usage=answers.usage, **head)


def _model(here: Serving) -> Model:
    return Model(id=here.name, created=here.began, question=here.service.question)


def check_model(name: str, here: Serving) -> None:
    """Refuses any other model.

    Raises:
      NotFound: it is one.
    """
    if name != here.name:
        raise NotFound(f"there is no model {name!r}; this server has {here.name!r}")


async def begun(
    form: Asking, read: Callable[[], Sequence[Sequence[int]]], most: int | None, here: Serving
) -> Answers:
    """The answers to prompts, under way: as many to each as are asked for."""
    check_model(form.model, here)
    prompts = await to_thread.run_sync(read, limiter=here.alone)  # long ones take seconds
    tokens = most or form.max_tokens or here.service.room(prompts, WRITTEN, form.items_only)
    requests = [
        Request(prompt, tokens, sampling=form.sampling(nth), items_only=form.items_only)
        for prompt in prompts
        for nth in range(form.n)
    ]
    answers = Answers(
        here.service,
        requests,
        user=form.user,
        stop=form.stop or (),
        seconds=here.limits.seconds,
        metrics=here.metrics,
        threads=here.alone if form.user is None else None,
    )
    await answers.begin()
    return answers


def streamed(
    form: Asking,
    answers: Answers,
    name: str,
    kind: str,
    choice: Callable[[Part], dict[str, Any]],
) -> StreamingResponse:
    """The parts of answers as server-sent events, in OpenAI's form."""
    head = {"id": name, "object": kind, "created": int(time.time()), "model": form.model}
    usage = form.stream_options and form.stream_options.include_usage

    async def events() -> AsyncIterator[str]:
        try:
            async for part in answers.parts():
                yield _event(head | {"choices": [choice(part)]})
            if usage:
                yield _event(head | {"choices": [], "usage": answers.usage.model_dump()})
        except (TimeoutError, RuntimeError) as error:
            logger.warning("a stream was ended: %r", error)
            yield f"data: {bytes(told(error).body).decode()}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def _event(told: dict[str, Any]) -> str:
    return f"data: {json.dumps(told, ensure_ascii=False)}\n\n"
