"""Stores for tests: made by where they are, also in processes of their own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from user_llm.serving.store import Store

WRITE = """
import sys
import stores_made
from user_llm.serving.store import Unavailable

where, name, writes = sys.argv[1:]
store = stores_made.opened(where, kept=10**6)
try:
    for number in range(int(writes)):
        store.append("u", [{"item": f"{name}-{number}"}])
        print(number, flush=True)
except Unavailable:
    pass
store.close()
"""


def opened(where: str, **told: Any) -> Store:
    """A store in a file, or on a server that a URL names."""
    if "://" in where:
        from user_llm.serving.redis_store import RedisStore

        return RedisStore(where, **told)
    from user_llm.serving.sqlite_store import SQLiteStore

    return SQLiteStore(Path(where), **told)


def events(*items: Any) -> list[dict]:
    return [{"item": item} for item in items]


def writer(where: str, name: str, writes: int) -> subprocess.Popen:
    """Writes a user "u" and says the number of each event that was acknowledged."""
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    command = [sys.executable, "-c", here + WRITE, where, name, str(writes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen, count: int) -> list[int]:
    """The first numbers that a writer says."""
    return [int(process.stdout.readline()) for _ in range(count)]


def rest(process: subprocess.Popen) -> list[int]:
    """What it said before it ended."""
    return [int(line) for line in process.stdout.readlines() if line.endswith("\n")]
