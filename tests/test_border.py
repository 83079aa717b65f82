"""What stands before every request, without a server."""

import asyncio

import pytest

from user_llm.serving.http.border import LOCAL, Border, Limits
from user_llm.serving.http.metrics import Metrics

ASKED = {"type": "http", "method": "GET", "path": "/v1/models", "headers": []}
LIMITS = Limits(idle=0.05)


def ask(app, receive, send, **how) -> Border:
    """A border through which one request has gone."""
    border = Border(app, metrics=Metrics(), limits=LIMITS, **how)
    asyncio.run(asyncio.wait_for(border(dict(ASKED), receive, send), 5))
    return border


async def never(*_):
    await asyncio.Event().wait()


async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


def test_an_answer_that_is_not_read_is_broken_off(caplog):
    border = ask(answer, never, never)
    assert border.metrics.registry.get_sample_value("user_llm_requests_open") == 0
    assert "not read" in caplog.text

    async def grouped(scope, receive, send):
        async with asyncio.TaskGroup() as group:
            group.create_task(answer(scope, receive, send))

    ask(grouped, never, never)

    async def broken(scope, receive, send):
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        ask(broken, never, never)


def test_a_body_has_its_time_and_whoever_waits_after_it_has_more():
    heard = []

    async def read(scope, receive, send):
        heard.append(await receive())
        heard.append(await receive())

    parts = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def halves():
        return parts.pop() if parts else await never()

    with pytest.raises(Exception, match="the body was not there"):
        ask(read, halves, never)
    assert len(heard) == 1

    async def whole():
        if len(heard) > 1:
            await asyncio.sleep(2 * LIMITS.idle)
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b"{}"}

    ask(read, whole, never)
    assert heard[-1] == {"type": "http.disconnect"}


@pytest.mark.parametrize(
    ("host", "let_in"),
    [
        (b"localhost", True),
        (b"LOCALHOST:8000", True),
        (b"[::1]", True),
        (b"[::1]:8000", True),
        (b"127.0.0.1:", True),
        (b"elsewhere.example", False),
        (b"localhost.elsewhere.example:80", False),
        (b"", False),
    ],
)
def test_only_names_that_are_its_own_let_in(host, let_in):
    statuses = []

    async def send(message):
        statuses.append(message.get("status"))

    scope = ASKED | {"headers": [(b"host", host)]}
    border = Border(answer, metrics=Metrics(), limits=LIMITS, hosts=LOCAL)
    asyncio.run(border(scope, never, send))
    assert statuses[0] == (200 if let_in else 400)
