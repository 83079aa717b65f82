"""What following a user costs the model, without a server around it: seconds and bytes.

The same events are told one at a time, as `Users.append` does, and read anew all together.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from user_llm.evaluation.serving_subject import events_of
from user_llm.serving.growing import Grown
from user_llm.serving.served import Served
from user_llm.serving.service import Service, Sizes
from user_llm.serving.sqlite_store import SQLiteStore

AT_ONCE = 1000  # events that are told together where nothing is timed


@dataclass(frozen=True)
class Following:
    """Users with histories of these lengths, to each of whom more happens."""

    export: str
    histories: tuple[int, ...]
    updates: int = 200  # one event each; with half a window of them it slides once
    appends: int = 40  # the same with all that a store takes
    repeats: int = 5  # of reading anew


class Follower:
    """An export that follows users in a store of its own."""

    def __init__(self, work: Following, folder: Path):
        self.work = work
        store = SQLiteStore(folder / "users.sqlite")
        sizes = Sizes(rows=1, length=64, warm=False)
        self.service = Service(Served.load(Path(work.export)), store, sizes)
        self.users, self.kept = self.service.users, store.kept

    def row(self, history: int) -> dict[str, Any]:
        """What a user with so many events costs."""
        work, growing, name = self.work, self.users.growing, f"user{history}"
        events = events_of(self.service.served.dataset, history, history + work.updates)
        self.users.delete(name)
        for first in range(0, history, AT_ONCE):
            self.users.append(name, events[first : min(first + AT_ONCE, history)])
        bytes = self.bytes(name)
        appends = []
        for event in events[history : history + work.appends]:
            started = time.perf_counter()
            self.users.append(name, [event])
            appends.append(time.perf_counter() - started)

        def known(count: int) -> list[dict[str, Any]]:
            return events[max(0, count - self.kept) : count]

        reads = [
            self.timed(lambda: growing.anew(known(history), history)) for _ in range(work.repeats)
        ]
        grown, updates = growing.anew(known(history), history), []
        for count in range(history + 1, history + work.updates + 1):
            newer = partial(growing.extended, grown, known(count), count, 1)
            grown, *seconds = self.timed(newer)
            updates.append(seconds)
        anew = [seconds for _, *seconds in reads]
        found = {"history": history, "bytes": bytes, "appends": appends}
        return found | {"updates": updates, "anew": anew}

    def timed(self, grow: Callable[[], Grown]) -> tuple[Grown, float, float]:
        """A user as known, the seconds until he is, and those until his memory is there."""
        started = time.perf_counter()
        grown = jax.block_until_ready(grow())
        grew = time.perf_counter()
        jax.block_until_ready(self.users.growing.memory(grown))
        return grown, grew - started, time.perf_counter() - started

    def bytes(self, name: str) -> dict[str, int]:
        """What is stored of a user, and what is kept ready."""
        record = self.users.store.get(name)
        assert record and record.made
        return {
            "events": sum(len(json.dumps(event)) for event in record.events),
            "state": len(record.made.state),
            "ready": sum(x.nbytes for x in jax.tree.leaves(self.users.memory(name))),
        }


def main() -> None:
    work = Following(**json.loads(sys.argv[1]))
    with TemporaryDirectory() as folder:
        follower = Follower(work, Path(folder))
        for _ in range(2):  # the first time, all is compiled
            rows = [follower.row(history) for history in work.histories]
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
