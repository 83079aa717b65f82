"""Users on a Redis server, for any processes of any machines. Wants the extra `redis`.

Of each user there are a hash (version, told, and what a model made) and a list of events, below one
hash tag; of all, one index of when users changed and one of when they are over. A change is one
script: all of it is done, or nothing. A Redis Cluster could hold the users, each in one slot, but
does not run these scripts: the indices are in no user's slot.
"""

import json
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from user_llm.serving.redis_scripts import CHANGE, ERASE, KEEP, PURGE, READ
from user_llm.serving.store import Conflict, Event, Full, Made, Record, Unavailable

CONNECTIONS = 64  # at most, of a store; further threads wait for one
PAGE = 1000  # users that are looked at in one go
# The layout's number is in the names: another layout would be other keys.
CHANGED, EXPIRES = "user_llm:1:changed", "user_llm:1:expires"
logger = logging.getLogger(__name__)


class RedisStore:
    """A `Store` on a Redis server (6.2 or newer), which is first asked at the first call.

    What it acknowledges is as durable as the server makes it: with `appendonly yes` and
    `appendfsync always` it is on the disk, with `everysec` all but the last second, and without a
    log none; a warning is logged, once, of a server that may lose users. With `always`, one whose
    disk is full ends of itself, and is unavailable; any other is full.

    A user whose time is over is gone by the server's own expiry, but for his name, which `purge`
    erases. What is erased stays in the server's append-only file until that is rewritten.

    Args:
      url: `redis://`, `rediss://` or `unix://`, as redis-py reads it.
      kept: events of a user that are kept at most, the newest.
      ttl: seconds after a user's last change when all of him is erased; None: never.
      timeout: seconds after which the server is said not to answer.

    Raises:
      ValueError: the URL is none.
    """

    def __init__(
        self, url: str, *, kept: int = 1000, ttl: float | None = None, timeout: float = 2.0
    ):
        self.kept, self.ttl = kept, ttl
        parts = urlsplit(url)  # without its password, for messages
        self.server = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        # Nothing is sent twice: whether the first was done is not known.
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )
        # redis-py types what it answers as of both its clients.
        self._client: Any = redis.Redis.from_pool(pool)
        self._scripts = {
            text: self._client.register_script(text) for text in (READ, CHANGE, KEEP, ERASE, PURGE)
        }
        self._looked, self._lock = False, threading.Lock()

    def __str__(self) -> str:
        return self.server

    def get(self, user: str) -> Record | None:
        found = self._run(READ, user)
        return _record(user, found) if found else None

    def version(self, user: str) -> int:
        return self.last(user)[0]

    def last(self, user: str) -> tuple[int, float]:
        with self._asking():
            version, changed = self._client.hmget(_keys(user)[0], "version", "changed")
            return int(version or 0), float(changed or 0)

    def append(
        self, user: str, events: Sequence[Event], *, if_version: int | None = None
    ) -> Record:
        return self._change(user, events, if_version, anew=False)

    def replace(
        self, user: str, events: Sequence[Event], *, if_version: int | None = None
    ) -> Record:
        return self._change(user, events, if_version, anew=True)

    def keep(self, user: str, made: Made) -> bool:
        return bool(self._run(KEEP, user, made.version, made.model, made.state))

    def delete(self, user: str) -> bool:
        return bool(self._run(ERASE, user))

    def users(self, count: int) -> list[str]:
        found: dict[str, None] = {}  # one that changes meanwhile moves the others' places
        start = 0
        with self._asking():
            while len(found) < count:
                names = self._client.zrange(CHANGED, start, start + PAGE - 1, desc=True)
                if not names:
                    break
                start += len(names)
                users = [name.decode() for name in names]
                with self._client.pipeline(transaction=False) as asked:
                    for user in users:
                        asked.exists(_keys(user)[0])
                    alive = asked.execute()
                there = [user for user, is_there in zip(users, alive, strict=True) if is_there]
                found |= dict.fromkeys(there)
        return list(found)[:count]

    def purge(self) -> int:
        over = 0
        with self._asking():
            seconds, micros = self._client.time()
            now = seconds * 1000 + micros // 1000
            while names := self._client.zrangebyscore(EXPIRES, "-inf", f"({now}", 0, PAGE):
                keys = [key for name in names for key in _keys(name.decode())]
                over += self._scripts[PURGE]([CHANGED, EXPIRES, *keys], [now, *names])
        return over

    def close(self) -> None:
        self._client.close()

    def _change(
        self, user: str, events: Sequence[Event], if_version: int | None, *, anew: bool
    ) -> Record:
        lines = [json.dumps(event) for event in events[max(0, len(events) - self.kept) :]]
        ttl = "" if self.ttl is None else max(1, round(self.ttl * 1000))
        wanted = "" if if_version is None else if_version
        told = self._run(CHANGE, user, wanted, int(anew), len(events), self.kept, ttl, *lines)
        if isinstance(told, int):
            raise Conflict(
                f"user {user!r} is of version {told}, not {if_version}; read and try again"
            )
        return _record(user, told)

    def _run(self, script: str, user: str, *values: str | bytes | int) -> Any:
        with self._asking():
            return self._scripts[script]([*_keys(user), CHANGED, EXPIRES], [user, *values])

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            if not self._looked:
                self._look()
            yield
        except redis.RedisError as error:
            raise _told(error, self.server) from error

    def _look(self) -> None:
        """Warns, once, of a server that may lose what it has acknowledged."""
        asked: dict[str, Any] = {}
        with suppress(redis.ResponseError):  # some servers forbid the one or the other
            asked |= self._client.info()
            asked |= self._client.config_get("appendfsync")
        with self._lock:
            if self._looked:
                return
            self._looked = True
        if asked.get("aof_enabled") == 0:
            logger.warning(
                "%s loses users when it dies: set its appendonly yes, appendfsync always",
                self.server,
            )
        elif asked.get("appendfsync", "always") != "always":
            logger.warning(
                "%s may lose what it acknowledged last when it dies: its appendfsync is %s, not "
                "always",
                self.server,
                asked["appendfsync"],
            )
        policy = asked.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            logger.warning(
                "%s forgets users when its memory is full: its maxmemory-policy is %s, not "
                "noeviction",
                self.server,
                policy,
            )


def _keys(user: str) -> tuple[str, str]:
    """A user's hash and list; quoted, since a hash tag ends at its first brace."""
    tagged = f"user_llm:1:{{user:{quote(user, safe='')}}}"
    return tagged, f"{tagged}:events"


def _record(user: str, found: list) -> Record:
    (version, told, changed, model, made_version, state), lines = found
    made = None if state is None else Made(model.decode(), int(made_version), state)
    events = [json.loads(line) for line in lines]
    return Record(user, int(version), int(told), events, made, float(changed))


def _told(error: redis.RedisError, server: str) -> Full | Unavailable:
    # Before Redis 7, a script's error holds the error's name only in the middle of its text.
    full = isinstance(error, redis.OutOfMemoryError) or re.search(r"\b(OOM|MISCONF)\b", str(error))
    if full:
        return Full(f"{server} takes nothing more: {error}; give it memory, or room on its disk")
    return Unavailable(f"{server} does not answer: {error}")
