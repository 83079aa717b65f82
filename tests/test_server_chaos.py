"""The server when all goes wrong at once: crowds, kills, full disks, stores and readers that go."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
import serving_made

pytestmark = pytest.mark.slow
PROMPT = "The next film:"
GREEDY = {"model": "tiny", "temperature": 0}
WRITERS, EACH = 16, 6
WRITTEN, KILLS = 1000, 3
CLIENTS = 64
SECONDS = float(os.environ.get("USER_LLM_STREAMING_SECONDS", "8"))


def event(name: object) -> dict:
    return {"events": [{"item": f"{name}"}]}


def complete(http: httpx.Client, user: str | None = None, prompt=PROMPT, **how) -> httpx.Response:
    body = GREEDY | {"prompt": prompt, "max_tokens": 8} | how | ({"user": user} if user else {})
    return http.post("/v1/completions", json=body)


def text(found: httpx.Response) -> str:
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]["text"]


def problem(found: httpx.Response, status: int) -> str:
    """What is said in OpenAI's form of an error."""
    assert found.status_code == status, found.text
    return found.json()["error"]["message"]


def figure(http: httpx.Client, name: str) -> float:
    found = re.search(rf"^user_llm_{name} (\S+)$", http.get("/metrics").text, re.MULTILINE)
    return float(found[1])


def await_that(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it does not come to that"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def crowded(exported, tmp_path_factory):
    """A server that answers sixteen at a time, while all others may wait."""
    flags = ("--rows", "16", "--waiting", str(CLIENTS))
    with serving_made.served(exported, tmp_path_factory.mktemp("crowded"), *flags) as server:
        yield server


def test_what_many_write_at_once_is_all_there_and_remembered(crowded):
    def write(writer: int) -> None:
        with crowded.client() as http:
            for nth in range(EACH):
                told = event(f"i{writer * EACH + nth:04d}")
                assert http.post("/v1/users/crowd/events", json=told).status_code == 200

    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(write, range(WRITERS)))
    with crowded.client() as http:
        found = http.get("/v1/users/crowd").json()
        assert found["told"] == found["version"] == found["kept"] == WRITERS * EACH
        items = [one["item"] for one in found["events"]]
        assert sorted(items) == [f"i{n:04d}" for n in range(WRITERS * EACH)]
        for writer in range(WRITERS):  # each one's in the order in which they were sent
            own = [item for item in items if int(item[1:]) // EACH == writer]
            assert own == sorted(own)
        events = [{k: v for k, v in one.items() if k != "title"} for one in found["events"]]
        assert http.put("/v1/users/anew/events", json={"events": events}).status_code == 200
        assert text(complete(http, "crowd")) == text(complete(http, "anew"))
        scores, vectors = [], []
        for user in ("crowd", "anew"):
            best = http.post("/v1/recommendations", json={"user": user}).json()["data"]
            scores.append({one["item"]: one["score"] for one in best})
            one = http.post("/v1/embeddings", json={"model": "tiny", "input": user}).json()
            vectors.append(one["data"][0]["embedding"])
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)
        np.testing.assert_allclose(*vectors, atol=1e-4)


class Writer(threading.Thread):
    """Writes events to a user of its own, each until it is acknowledged, wherever the server is."""

    def __init__(self, number: int, where: list[str], count: int):
        super().__init__(daemon=True)
        self.user, self.where, self.count = f"writer-{number}", where, count
        self.tries, self.acknowledged = Counter(), 0

    def run(self) -> None:
        with httpx.Client(timeout=20.0) as http:
            while self.acknowledged < self.count:
                self.tries[self.acknowledged] += 1
                path = f"{self.where[0]}/v1/users/{self.user}/events"
                try:
                    done = http.post(path, json=event(self.acknowledged))
                except httpx.TransportError:
                    time.sleep(0.05)
                    continue
                assert done.status_code == 200, done.text
                self.acknowledged += 1


def test_no_acknowledged_write_is_lost_when_the_server_is_killed(exported, tmp_path):
    where = ["http://127.0.0.1:9"]
    writers = [Writer(n, where, WRITTEN // 4) for n in range(4)]
    written = lambda: sum(writer.acknowledged for writer in writers)
    for kill in range(1, KILLS + 2):
        with serving_made.served(exported, tmp_path) as server:
            where[0] = server.url
            if kill == 1:
                for writer in writers:
                    writer.start()
            if kill <= KILLS:
                await_that(lambda most=kill * WRITTEN // (KILLS + 1): written() >= most, 120)
                server.process.send_signal(signal.SIGKILL)
                server.process.wait()
                continue
            for writer in writers:
                writer.join(120)
            assert written() == WRITTEN
            with server.client() as http:
                for writer in writers:
                    found = http.get(f"/v1/users/{writer.user}").json()
                    times = Counter(int(one["item"]) for one in found["events"])
                    assert times.keys() == writer.tries.keys() == {*range(writer.count)}
                    assert all(times[n] <= tried for n, tried in writer.tries.items())
                    assert found["current"] and found["told"] == sum(times.values())
    assert sum(sum(writer.tries.values()) for writer in writers) > WRITTEN, "nothing was cut off"


def test_a_full_disk_takes_nothing_more_until_there_is_room(exported, tmp_path):
    mount = 'mount -t tmpfs -o size=3m small "$0" && head -c 400000 /dev/zero > "$0/ballast"'
    own, disk = ["unshare", "-rm", "sh", "-c"], tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("unshare") or subprocess.run([*own, mount, disk]).returncode:
        pytest.skip("no disk can be mounted in a user namespace here")
    within, stored = [*own, f'{mount} && exec "$@"', str(disk)], 0
    flags = ("--users", str(disk / "users.sqlite"))
    with serving_made.served(exported, tmp_path, *flags, within=within) as server:
        with server.client() as http:
            told = {"events": [{"item": "i0001", "review": "x" * 20_000}]}
            path = "/v1/users/reader/events"
            while (done := http.post(path, json=told)).status_code == 200:
                stored += 1
                assert stored < 1000
            assert "make room on its disk" in problem(done, 507) and stored > 10
            for status in (http.post(path, json=told).status_code for _ in range(5)):
                assert status in (200, 507)
                stored += status == 200
            found = http.get("/v1/users/reader").json()
            assert found["told"] == stored, "what was refused is not there, all else is"
            assert text(complete(http, "reader")) and text(complete(http))
            best = http.post("/v1/recommendations", json={"user": "reader"})
            assert best.status_code == 200 and best.json()["known"]
            Path(f"/proc/{server.process.pid}/root{disk}/ballast").unlink()
            assert http.post(path, json=told).json()["told"] == stored + 1
            assert http.get("/v1/users/reader").json()["current"]
        assert "reader" not in server.log.read_text()


def test_the_store_may_go_and_come_back(exported, tmp_path, redis_server):
    redis = redis_server
    with (
        serving_made.served(exported, tmp_path, "--users", redis.url) as server,
        server.client() as http,
    ):

        def asked() -> list[httpx.Response]:
            return [
                complete(http, "ann"),
                http.get("/v1/users/ann"),
                http.post("/v1/users/ann/events", json=event("i0002")),
                http.post("/v1/recommendations", json={"user": "ann"}),
            ]

        assert http.post("/v1/users/ann/events", json=event("i0001")).status_code == 200
        assert [one.status_code for one in asked()] == [200] * 4
        told = http.get("/v1/users/ann").json()["told"]
        redis.end(signal.SIGKILL)
        for _ in range(3):
            began = time.monotonic()
            for one in asked():
                assert "does not answer" in problem(one, 503) and one.headers["retry-after"]
            assert time.monotonic() - began < 5
        assert text(complete(http))
        assert http.get("/health").status_code == 200
        ready = http.get("/ready")
        assert ready.status_code == 503 and "does not answer" in ready.json()["status"]
        redis.start()
        assert http.get("/ready").status_code == 200
        assert http.get("/v1/users/ann").json()["told"] == told
        assert [one.status_code for one in asked()] == [200] * 4

        redis.process.send_signal(signal.SIGSTOP)  # as one that is reached and says nothing
        with ThreadPoolExecutor(CLIENTS) as threads:
            stuck = [threads.submit(complete, http, "ann") for _ in range(CLIENTS)]
            time.sleep(0.3)
            for ask in (lambda: http.get("/health"), lambda: complete(http)):
                began = time.monotonic()
                assert ask().status_code == 200
                assert time.monotonic() - began < 1.5, "it waited for those who wait for the store"
            assert http.get("/ready").status_code == 503
            assert {one.result().status_code for one in stuck} == {503}
        redis.process.send_signal(signal.SIGCONT)
        await_that(lambda: http.get("/ready").status_code == 200)
        assert [one.status_code for one in asked()] == [200] * 4
        log = server.log.read_text()
        assert "ann" not in re.findall(r"\w+", log) and "Traceback" not in log


class Streams:
    """Clients that are answered by streams, one after another, until it is enough."""

    def __init__(self, url: str, wanted: dict[tuple[str | None, str], str]):
        self.url, self.wanted, self.more = url, wanted, True
        self.seconds, self.first, self.tokens = [], [], 0
        self.answered, self.begun = Counter(), set()

    async def client(self, number: int, http: httpx.AsyncClient) -> None:
        asks = [*self.wanted]
        while self.more:
            user, prompt = asks[(number + self.answered[number]) % len(asks)]
            try:
                await self.ask(number, http, user, prompt)
            except httpx.TransportError:
                if self.more or number in self.begun:  # else the server takes no more
                    raise

    async def ask(self, number: int, http: httpx.AsyncClient, user: str | None, prompt: str):
        body = GREEDY | {"prompt": prompt, "max_tokens": 24, "stream": True}
        body |= {"stream_options": {"include_usage": True}} | ({"user": user} if user else {})
        began, said, ended = time.monotonic(), "", False
        async with http.stream("POST", f"{self.url}/v1/completions", json=body) as found:
            assert found.status_code == 200, await found.aread()
            self.begun.add(number)
            async for line in found.aiter_lines():
                if line and not (ended := line == "data: [DONE]"):
                    part = json.loads(line.removeprefix("data: "))
                    assert "error" not in part, part
                    if part["choices"]:
                        if not said:
                            self.first.append(time.monotonic() - began)
                        said += part["choices"][0]["text"]
                    else:
                        self.tokens += part["usage"]["completion_tokens"]
        self.begun.remove(number)
        assert ended and said == self.wanted[user, prompt]
        self.seconds.append(time.monotonic() - began)
        self.answered[number] += 1


def resident(process: subprocess.Popen) -> float:
    """MiB of a process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) / 1024


async def crowd(streams: Streams, process: subprocess.Popen) -> list[float]:
    """Has all clients ask for the time, and the server stop in the midst; what it took when."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(timeout=120.0, limits=limits) as http, asyncio.TaskGroup() as all_:
        for number in range(CLIENTS):
            all_.create_task(streams.client(number, http))
        sizes = []
        for _ in range(8):
            await asyncio.sleep(SECONDS / 8)
            sizes.append(resident(process))
        streams.more = False
        assert streams.begun, "nobody is in the midst of an answer"
        process.send_signal(signal.SIGTERM)
    return sizes


def test_many_are_answered_alike_and_to_the_end(crowded):
    """The last of this server."""
    users, prompts = [None, "u0", "u1", "u2"], [PROMPT, "The favorite genre:", "What to watch?"]
    with crowded.client() as http:
        for n, user in enumerate(users[1:]):
            events = {"events": [{"item": f"i{9 * n + k:04d}"} for k in range(5)]}
            assert http.put(f"/v1/users/{user}/events", json=events).status_code == 200
        wanted = {
            (user, prompt): text(complete(http, user, prompt, max_tokens=24))
            for user in users
            for prompt in prompts
        }
    streams = Streams(crowded.url, wanted)
    sizes = asyncio.run(crowd(streams, crowded.process))
    assert crowded.process.wait(60) == 0
    counts = [streams.answered[number] for number in range(CLIENTS)]
    middle, of = statistics.median(counts), sorted(streams.seconds)
    facts = {
        "answers": len(of),
        "answers/s": len(of) / SECONDS,
        "tokens/s": streams.tokens / SECONDS,
        "p50": of[len(of) // 2],
        "p95": of[len(of) * 95 // 100],
        "first p50": statistics.median(streams.first),
        "first p95": sorted(streams.first)[len(streams.first) * 95 // 100],
        "MiB": sizes,
        "answers of each": (min(counts), middle, max(counts)),
    }
    print(facts)
    assert max(sizes[2:]) < 1.1 * sizes[1], facts
    assert min(counts) > 0 and max(counts) <= 3 * middle, facts
    assert {line["status"] for line in crowded.logged() if "status" in line} <= {200}
    assert "Traceback" not in crowded.log.read_text()


@pytest.fixture(scope="module")
def hasty(exported, tmp_path_factory):
    """A server with one row, and little patience."""
    folder = tmp_path_factory.mktemp("hasty")
    flags = ("--rows", "1", "--seconds", "0.5", "--requests", "40")
    with serving_made.served(exported, folder, *flags) as server, server.client() as http:
        await_that(lambda: complete(http).status_code == 200)  # once it is compiled
        yield server


def test_answers_that_take_too_long_are_ended(hasty):
    long = {"n": 8, "max_tokens": 80, "prompt": [PROMPT] * 8}
    with hasty.client() as http:
        assert "took too long" in problem(complete(http, **long), 504)
        found = complete(http, stream=True, **long)
        parts = [line.removeprefix("data: ") for line in found.text.split("\n\n") if line]
        assert found.status_code == 200 and parts[-1] == "[DONE]"
        assert "took too long" in json.loads(parts[-2])["error"]["message"]
        await_that(lambda: figure(http, "answers_running") == figure(http, "answers_waiting") == 0)
        await_that(lambda: complete(http).status_code == 200)


def opened(server: serving_made.Server, sent: bytes) -> socket.socket:
    """A connection on which something was sent, and nothing is read."""
    host, port = server.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), timeout=30)
    made.sendall(sent)
    return made


def request(body: bytes) -> bytes:
    head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n".encode() + body


def test_who_neither_sends_nor_reads_keeps_nobody_else(hasty):
    whole = request(json.dumps(GREEDY | {"prompt": PROMPT, "stream": True}).encode())
    with hasty.client() as http, ExitStack() as open_ones:
        for _ in range(10):  # who never read
            open_ones.enter_context(opened(hasty, whole))
        halves = [open_ones.enter_context(opened(hasty, whole[:-20])) for _ in range(20)]
        await_that(lambda: complete(http).status_code == 200)
        await_that(lambda: figure(http, "requests_open") == 1)  # this one
        assert figure(http, "answers_running") == figure(http, "answers_waiting") == 0
        for one in halves:
            assert b" 408 " in one.recv(9999) and not one.recv(9999)


def test_who_leaves_makes_room(hasty):
    long = GREEDY | {"prompt": [PROMPT] * 8, "n": 4, "max_tokens": 80, "stream": True}
    with hasty.client() as http:
        before = figure(http, "completion_tokens_total")
        for sent in (request(json.dumps(long).encode()), request(json.dumps(long).encode())[:-9]):
            with opened(hasty, sent) as leaving:
                if sent.endswith(b"}"):
                    assert b"200 OK" in leaving.recv(9999)
        await_that(lambda: figure(http, "answers_running") == figure(http, "answers_waiting") == 0)
        await_that(lambda: complete(http).status_code == 200)
        written = figure(http, "completion_tokens_total") - before
        assert written < len(long["prompt"]) * long["n"] * long["max_tokens"] / 2
    assert "Traceback" not in hasty.log.read_text()
