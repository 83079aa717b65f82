"""What stands before every request: keys, limits, counts, and one form for all that is refused."""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from user_llm.serving.engine import Busy, Closed
from user_llm.serving.http.forms import Problem, Refused
from user_llm.serving.http.metrics import Metrics
from user_llm.serving.store import Conflict, Full, StoreError, Unavailable

logger = logging.getLogger(__name__)

METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"}
LOCAL = {"127.0.0.1", "localhost", "::1"}
TYPES = {401: "authentication_error", 429: "rate_limit_error", 404: "not_found_error"}
# What every route may answer beside what it is for.
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refused, "description": description}
    for status, description in {
        400: "The request cannot be understood; says which field, and why.",
        401: "There is no valid API key.",
        404: "There is no such model, user or page.",
        408: "The body did not come in time.",
        413: "The body is too large.",
        429: "As many wait as may; ask again later.",
        503: "The users' store does not answer, or the server is being stopped.",
        504: "The answer took too long.",
    }.items()
}
CHANGES = REFUSALS | {
    409: {"model": Refused, "description": "The user is not of the version that was named."},
    507: {"model": Refused, "description": "There is no room to write; all can still be read."},
}
STATUS = {Conflict: 409, Full: 507, Unavailable: 503, Busy: 429, Closed: 503, TimeoutError: 504}


class Limits(NamedTuple):
    """What a request may take."""

    body: int = 2**20  # bytes
    seconds: float = 120.0  # until an answer is whole
    requests: int = 256  # at a time
    idle: float = 30.0  # seconds until a body is there, or a part of an answer has been taken


class NotFound(Exception):
    """What is named is not there."""


class Stalled(Exception):
    """Whoever asked does not read what is answered."""


class Border:
    """An app behind its border, as ASGI knows apps.

    Args:
      keys: of which a request has to bring one; none: whoever reaches the server may ask it.
      hosts: names under which it is reached, where there are no keys: a page from elsewhere that
        a browser shows cannot pass for one of them. None: any.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        limits: Limits,
        keys: Sequence[str] = (),
        hosts: set[str] | None = None,
    ):
        self.app, self.metrics, self.limits = app, metrics, limits
        self.keys = [_digest(key) for key in keys]
        self.hosts, self._open = hosts, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, name, stalled = time.perf_counter(), 500, uuid4().hex, False

        async def sent(message: Message) -> None:
            nonlocal status, stalled
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            try:
                async with asyncio.timeout(self.limits.idle) as patience:
                    await send(message)
            except TimeoutError as error:
                if not (stalled := patience.expired()):
                    raise
                raise Stalled from error

        self._open += 1
        self.metrics.open.set(self._open)
        try:
            headers = {key.decode("latin-1"): value for key, value in scope["headers"]}
            if refused := self._refused(scope["path"], headers):
                await refused(scope, receive, sent)
            else:
                await self.app(scope, self._limited(receive), sent)
        except BaseException:  # Stalled itself may be in a group
            if not stalled:
                raise
            logger.warning("an answer was not read, and is broken off")
        finally:
            self._open -= 1
            self.metrics.open.set(self._open)
            route = getattr(scope.get("route"), "path", "none")  # names of users are in the path
            seconds = time.perf_counter() - began
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.answered(method, route, status, seconds)
            told = {"method": method, "route": route, "status": status}
            told = {"request": name, **told, "seconds": round(seconds, 4)}
            logger.info("answered", extra={"told": told})

    def _refused(self, path: str, headers: Mapping[str, bytes]) -> JSONResponse | None:
        host = _host(headers.get("host", b"").decode("latin-1"))
        if self.hosts is not None and host not in self.hosts:
            return refusal(400, "this server is not reached under that name", param="host")
        if path.startswith(("/v1/", "/metrics")):
            given = headers.get("authorization", b"").decode("latin-1")
            scheme, _, key = given.partition(" ")
            if self.keys and not (scheme.lower() == "bearer" and self._known(key.strip())):
                how = "send `Authorization: Bearer KEY` with a key that this server knows"
                return refusal(401, how, headers={"WWW-Authenticate": "Bearer"})
            if self._open > self.limits.requests:
                how = f"{self.limits.requests} requests are being answered; ask again later"
                return refusal(429, how, headers={"Retry-After": "1"})
        said = headers.get("content-length", b"0")
        if said.isdigit() and int(said) > self.limits.body:
            return refusal(413, self._too_large)
        return None

    def _known(self, key: str) -> bool:
        given = _digest(key)
        return any([hmac.compare_digest(given, known) for known in self.keys])  # all, always

    def _limited(self, receive: Receive) -> Receive:
        room, until, whole = self.limits.body, time.perf_counter() + self.limits.idle, False

        async def limited() -> Message:
            nonlocal room, whole
            if whole:  # what comes now is that whoever asked leaves
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), until - time.perf_counter())
            except TimeoutError as error:
                how = f"the body was not there after {self.limits.idle:g} seconds"
                raise HTTPException(408, how, {"Connection": "close"}) from error
            whole = not message.get("more_body", False)
            room -= len(message.get("body", b""))
            if room < 0:
                raise HTTPException(413, self._too_large)
            return message

        return limited

    @property
    def _too_large(self) -> str:
        return f"the body has more than {self.limits.body} bytes; send less at a time"


def refusal(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """A response in OpenAI's form."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = Refused(error=Problem(message=message, type=kind, param=param, code=code))
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


def told(error: Exception) -> JSONResponse:
    """What is answered where an error comes up."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 400)
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    text = str(error) or "the answer took too long; ask for fewer tokens"
    code = None if status == 400 else type(error).__name__.lower()
    return refusal(status, text, code=code, headers=headers)


def add_handlers(app: FastAPI) -> None:
    """Has an app tell all that goes wrong in one form."""

    async def misread(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        how = first["msg"].removeprefix("Value error, ")
        return refusal(400, f"{where or 'the body'}: {how}", param=where or None)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        path = getattr(request.scope.get("route"), "path", None)
        if error.status_code == 405 and (there := app.openapi()["paths"].get(path)):
            headers["Allow"] = ", ".join(map(str.upper, there))  # not those of one route alone
        return refusal(error.status_code, str(error.detail), headers=headers)

    async def known(_: Request, error: Exception) -> JSONResponse:
        return told(error)

    async def absent(_: Request, error: Exception) -> JSONResponse:
        return refusal(404, str(error))

    async def broken(_: Request, error: Exception) -> JSONResponse:
        return refusal(500, "something broke here; the server's log says what")

    app.add_exception_handler(Exception, broken)
    app.add_exception_handler(RequestValidationError, misread)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(NotFound, absent)
    for kind in (StoreError, Busy, Closed, TimeoutError, ValueError):
        app.add_exception_handler(kind, known)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _host(said: str) -> str | None:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{said}").hostname
    except ValueError:
        return None
