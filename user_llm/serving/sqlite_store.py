"""Users in one file: SQLite with a write-ahead log, for any threads and processes of a machine."""

import json
import sqlite3
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from user_llm.serving.store import Conflict, Event, Full, Made, Record, Unavailable

LAYOUT = 1  # of the tables
WAITING = 30.0  # seconds for another's write to end
TABLES = """
CREATE TABLE IF NOT EXISTS users (
  user TEXT PRIMARY KEY, version INTEGER NOT NULL, told INTEGER NOT NULL,
  changed REAL NOT NULL, expires REAL, model TEXT, made_version INTEGER, state BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
  user TEXT NOT NULL, number INTEGER NOT NULL, event TEXT NOT NULL, PRIMARY KEY (user, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_change ON users (changed);
CREATE INDEX IF NOT EXISTS by_expiry ON users (expires) WHERE expires IS NOT NULL;
"""
USER = (
    "SELECT version, told, changed, model, made_version, state, expires FROM users WHERE user = ?"
)


class SQLiteStore:
    """A `Store` in a file.

    Args:
      kept: events of a user that are kept at most, the newest.
      ttl: seconds after a user's last change when all of him is erased; None: never.

    Raises:
      ValueError: the file is not such a store's, or a later release's.
    """

    def __init__(self, path: Path, *, kept: int = 1000, ttl: float | None = None):
        self.path, self.kept, self.ttl = path, kept, ttl
        self._idle: deque[sqlite3.Connection] = deque()  # as many as have been in use at a time
        try:
            with self._writing() as database:
                (layout,) = database.execute("PRAGMA user_version").fetchone()
                if layout not in (0, LAYOUT):
                    raise ValueError(
                        f"{path} is of layout {layout}, and this release knows {LAYOUT}; "
                        "serve it with the release that made it, or name another file"
                    )
                for statement in filter(str.strip, TABLES.split(";")):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {LAYOUT}")
        except sqlite3.DatabaseError as error:
            self.close()
            raise ValueError(f"{path} holds no users: {error}; name another file") from error

    def __str__(self) -> str:
        return str(self.path)

    def get(self, user: str) -> Record | None:
        with self._reading() as database:
            found = self._alive(database, user)
            return self._record(database, user, found) if found else None

    def version(self, user: str) -> int:
        return self.last(user)[0]

    def last(self, user: str) -> tuple[int, float]:
        with self._reading() as database:
            found = database.execute(
                "SELECT version, changed FROM users "
                "WHERE user = ? AND (expires IS NULL OR expires > ?)",
                (user, time.time()),
            ).fetchone()
            return found or (0, 0.0)

    def append(
        self, user: str, events: Sequence[Event], *, if_version: int | None = None
    ) -> Record:
        return self._change(user, events, if_version, anew=False)

    def replace(
        self, user: str, events: Sequence[Event], *, if_version: int | None = None
    ) -> Record:
        return self._change(user, events, if_version, anew=True)

    def keep(self, user: str, made: Made) -> bool:
        with self._writing() as database:
            done = database.execute(
                "UPDATE users SET model = ?, made_version = ?, state = ? "
                "WHERE user = ? AND version = ? AND (expires IS NULL OR expires > ?)",
                (made.model, made.version, made.state, user, made.version, time.time()),
            )
            return done.rowcount == 1

    def delete(self, user: str) -> bool:
        with self._writing() as database:
            there = self._alive(database, user) is not None
            self._erase(database, user)
        self._settle()
        return there

    def users(self, count: int) -> list[str]:
        with self._reading() as database:
            found = database.execute(
                "SELECT user FROM users WHERE expires IS NULL OR expires > ? "
                "ORDER BY changed DESC LIMIT ?",
                (time.time(), count),
            )
            return [user for (user,) in found]

    def purge(self) -> int:
        with self._writing() as database:
            over = database.execute("SELECT user FROM users WHERE expires <= ?", (time.time(),))
            users = [user for (user,) in over]
            for user in users:
                self._erase(database, user)
        if users:
            self._settle()
        return len(users)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _change(
        self, user: str, events: Sequence[Event], if_version: int | None, *, anew: bool
    ) -> Record:
        lines, now = [json.dumps(event) for event in events], time.time()
        with self._writing() as database:
            found = self._alive(database, user)
            version, told = found[:2] if found else (0, 0)
            if if_version not in (None, version):
                raise Conflict(
                    f"user {user!r} is of version {version}, not {if_version}; read and try again"
                )
            if anew or not found:  # what is over may still be there
                self._erase(database, user)
                told = 0
            database.execute(
                "INSERT INTO users (user, version, told, changed, expires) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (user) DO UPDATE SET version = excluded.version, "
                "told = excluded.told, changed = excluded.changed, expires = excluded.expires",
                (user, version + 1, told + len(lines), now, self.ttl and now + self.ttl),
            )
            database.executemany(
                "INSERT INTO events VALUES (?, ?, ?)",
                [(user, told + nth, line) for nth, line in enumerate(lines)],
            )
            first = told + len(lines) - self.kept
            database.execute("DELETE FROM events WHERE user = ? AND number < ?", (user, first))
            return self._record(database, user, database.execute(USER, (user,)).fetchone())

    def _alive(self, database: sqlite3.Connection, user: str) -> tuple | None:
        found = database.execute(USER, (user,)).fetchone()
        over = found and found[-1] is not None and found[-1] <= time.time()
        return None if over else found

    def _record(self, database: sqlite3.Connection, user: str, found: tuple) -> Record:
        version, told, changed, model, made_version, state, _ = found
        lines = database.execute("SELECT event FROM events WHERE user = ? ORDER BY number", (user,))
        made = None if state is None else Made(model, made_version, state)
        events = json.loads(f"[{','.join(line for (line,) in lines)}]")  # sooner than one by one
        return Record(user, version, told, events, made, changed)

    def _erase(self, database: sqlite3.Connection, user: str) -> None:
        for table in ("events", "users"):
            database.execute(f"DELETE FROM {table} WHERE user = ?", (user,))

    def _settle(self) -> None:
        """Takes what was erased out of the log, too; where somebody reads, a later one will."""
        with self._reading() as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        database = None
        try:
            database = self._taken()
            yield database
        except sqlite3.OperationalError as error:
            raise _told(error, self.path) from error
        finally:
            if database is not None and not database.in_transaction:
                self._idle.append(database)
            elif database is not None:  # what went wrong could not be taken back
                database.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, from before its first reading on; nothing of it stays if it fails."""
        with self._reading() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def _taken(self) -> sqlite3.Connection:
        """One that nobody else uses meanwhile."""
        with suppress(IndexError):
            return self._idle.pop()
        database = sqlite3.connect(
            self.path, timeout=WAITING, isolation_level=None, check_same_thread=False
        )
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")  # each commit is on the disk
            database.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten
        except BaseException:
            database.close()
            raise
        return database


def _told(error: sqlite3.OperationalError, path: Path) -> Full | Unavailable:
    name = error.sqlite_errorname
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return Full(f"{path} cannot be written: {error}; make room on its disk")
    return Unavailable(f"{path} does not answer: {error}")
