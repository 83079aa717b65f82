"""`user-llm serve`: an export behind HTTP, until it is told to stop."""

import json
import logging
import math
import os
import signal
import sys
import time
from pathlib import Path

import uvicorn

from user_llm.serving.http.app import make_app
from user_llm.serving.http.border import LOCAL, Limits
from user_llm.serving.served import Served
from user_llm.serving.service import Service, Sizes
from user_llm.serving.sqlite_store import SQLiteStore
from user_llm.serving.store import Store

logger = logging.getLogger(__name__)
DAY = 86_400.0  # seconds
KEYS = "USER_LLM_API_KEYS"
# Seconds that an idle connection stays; clients and proxies are to end it, which wait up to 60:
# what they send while the server ends it is lost.
KEPT_OPEN = 75


class Lines(logging.Formatter):
    """Each record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "of": record.name,
            "said": record.getMessage(),
            **getattr(record, "told", {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


def main(
    export: Path,
    host: str,
    port: int,
    name: str,
    users: str,
    kept: int,
    ttl: float | None,
    api_keys: Path | None,
    unlocked: bool,
    rows: int,
    length: int,
    waiting: int,
    cached: int,
    body: int,
    seconds: float,
    requests: int,
    cold: bool,
) -> None:
    """Serves an export until SIGTERM or Ctrl-C, and then ends what is under way.

    Raises:
      ValueError: the export, the store or the keys cannot be used; or others could reach the server
        without a key, and nobody said that they may.
    """
    keys = read_keys(api_keys)
    if host not in LOCAL and not keys and not unlocked:
        raise ValueError(
            f"--host {host} lets others reach the server, and there are no keys; name a file of "
            f"them with --api-keys, or set {KEYS}, or say --unlocked"
        )
    sizes = Sizes(rows, length, waiting, cached * 2**20, not cold)
    limits = Limits(body * 2**10, seconds, requests, min(seconds, Limits().idle))
    log_as_json()
    name = name or export.resolve().name
    served = Served.load(export)
    if kept <= (read := served.told.history):
        raise ValueError(
            f"--kept {kept} is too few: {read} events of a user are read, and to read him anew "
            f"takes one more; keep at least {read + 1}"
        )
    service = Service(served, open_store(users, export, kept, ttl and ttl * DAY), sizes)
    app = make_app(
        service,
        name,
        keys=keys,
        hosts=None if keys or unlocked else {*LOCAL, host},
        limits=limits,
    )
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEPT_OPEN,
        timeout_graceful_shutdown=math.ceil(limits.seconds),
    )
    socket = config.bind_socket()
    socket.listen()  # whoever reads below where it is may call at once
    where = f"http://{f'[{host}]' if ':' in host else host}:{socket.getsockname()[1]}"
    logger.info("serving %s at %s; users in %s", name, where, service.users.store)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn's own, which drains, passes it on
    uvicorn.Server(config).run([socket])


def open_store(users: str, export: Path, kept: int, ttl: float | None) -> Store:
    """The store that is meant: a file of SQLite's, or a Redis by its URL.

    Raises:
      ValueError: it cannot be used.
    """
    if users.startswith(("redis://", "rediss://", "unix://")):
        from user_llm.serving.redis_store import RedisStore

        return RedisStore(users, kept=kept, ttl=ttl)
    path = Path(users) if users else export.with_name(f"{export.resolve().name}-users.sqlite")
    path.parent.mkdir(parents=True, exist_ok=True)
    return SQLiteStore(path, kept=kept, ttl=ttl)


def read_keys(path: Path | None) -> list[str]:
    """The API keys of a file, one a line, and of the environment, between commas.

    Raises:
      ValueError: the file cannot be read, or holds none.
    """
    keys = [key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip()]
    if path is not None:
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise ValueError(f"--api-keys {path} cannot be read: {error.strerror}") from error
        own = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not own:
            raise ValueError(f"--api-keys {path} holds no key; write one a line")
        keys += own
    return keys


def log_as_json() -> None:
    """Has all that is logged be lines of JSON, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("user_llm").setLevel(logging.INFO)
