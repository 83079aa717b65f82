"""The whole of what is reached over HTTP: OpenAI's endpoints, those of users, and a page to try."""

import asyncio
import base64
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi import FastAPI, Response, Security
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool

from user_llm.serving.http.border import REFUSALS, Border, Limits, add_handlers
from user_llm.serving.http.forms import Health
from user_llm.serving.http.here import Here, Serving
from user_llm.serving.http.metrics import Metrics
from user_llm.serving.http.people import people
from user_llm.serving.http.words import words
from user_llm.serving.service import Service
from user_llm.serving.store import StoreError

logger = logging.getLogger(__name__)


class Figures(PlainTextResponse):
    """Prometheus' own format."""

    media_type = "text/plain; version=0.0.4"


PAGE = Path(__file__).with_name("page.html")
PURGED = 60.0  # seconds from one look for users whose time is over to the next


def make_app(
    service: Service,
    name: str,
    *,
    keys: Sequence[str] = (),
    hosts: set[str] | None = None,
    limits: Limits = Limits(),
) -> Border:
    """The server of a service, as ASGI's servers run it; it drains the service when it ends.

    Args:
      name: what the model is called.
      keys, hosts: see `Border`.
    """
    metrics = Metrics()
    metrics.watch(service)
    serving = Serving(service, name, int(time.time()), limits, metrics)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        purging = asyncio.create_task(_purge(service))
        yield
        purging.cancel()
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="user-llm",
        version=version("user-llm"),
        description="A language model that knows the user whom it answers.",
        lifespan=life,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.serving = serving
    key = [Security(HTTPBearer(auto_error=False))] if keys else []
    app.include_router(words, dependencies=key)
    app.include_router(people, dependencies=key)
    add_handlers(app)
    _add_facts(app, key)
    _describe(app)
    return Border(app, metrics=metrics, limits=limits, keys=keys, hosts=hosts)


def _describe(app: FastAPI) -> None:
    """Takes out FastAPI's 422: what is misread is answered by 400."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = described()
            for path in found["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                found["components"]["schemas"].pop(name, None)
        return described()

    app.openapi = openapi


def _add_facts(app: FastAPI, key: Sequence[Any]) -> None:
    """The routes that tell of the server itself."""
    text = PAGE.read_text()
    headers = _page_headers(text)
    refused: dict[int | str, Any] = {status: REFUSALS[status] for status in (400, 413)}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)

    @app.get("/health", responses=refused, tags=["server"])
    async def health() -> Health:
        """Whether the server is there."""
        return Health(status="ok")

    @app.get("/ready", responses={**refused, 503: {"model": Health}}, tags=["server"])
    async def ready(here: Here, response: Response) -> Health:
        """Whether it answers everybody: the users' store is there."""
        try:
            await to_thread.run_sync(here.service.users.store.version, "", limiter=here.ready)
        except StoreError as error:
            response.status_code = 503
            return Health(status=f"no store: {error}")
        return Health(status="ready")

    @app.get(
        "/metrics",
        responses=refused | {status: REFUSALS[status] for status in (401, 429)},
        response_class=Figures,
        dependencies=key,
        tags=["server"],
    )
    async def metrics(here: Here) -> Response:
        """Figures for Prometheus."""
        return Figures(here.metrics.text())


def _page_headers(text: str) -> dict[str, str]:
    """Has a browser run and show what is in the page, and nothing else that may come into it."""

    def only(tag: str) -> str:
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()) for one in inside]
        return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)

    policy = {
        "default-src": "'none'",
        "script-src": only("script"),
        "style-src": only("style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{of} {what}" for of, what in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


async def _purge(service: Service) -> None:
    while True:
        await asyncio.sleep(PURGED)
        with suppress(StoreError):  # it is asked again
            if purged := await run_in_threadpool(service.users.store.purge):
                logger.info("%d users whose time was over are erased", purged)
