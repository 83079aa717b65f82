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

from user_llm.evaluation.serving_subject import Event, events_of
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
    memories: int = 20  # made of a user


class Follower:
    """An export that follows users in a store of its own."""

    def __init__(self, work: Following, folder: Path):
        self.work = work
        store = SQLiteStore(folder / "users.sqlite")
        sizes = Sizes(rows=1, length=64, warm=False)
        self.service = Service(Served.load(Path(work.export)), store, sizes)
        self.users, self.kept = self.service.users, store.kept

    def rows(self) -> list[dict[str, Any]]:
        """What users cost, by how many events they had; they take turns, event by event."""
        work, growing, data = self.work, self.users.growing, self.service.served.dataset
        events = {h: events_of(data, h, h + work.updates) for h in work.histories}
        found: dict[int, dict[str, Any]] = {
            h: {"history": h, "bytes": self.told(h, events[h])}
            | {name: [] for name in ("appends", "anew", "updates", "memories")}
            for h in work.histories
        }
        grown = {h: growing.anew(self.known(events[h], h), h) for h in work.histories}
        for nth in range(work.updates):
            for history, own in found.items():
                before, count = events[history], history + nth + 1
                if nth < work.appends:
                    own["appends"].append(self.appended(history, before[count - 1]))
                if nth < work.repeats:
                    known = self.known(before, history)
                    own["anew"].append(timed(partial(growing.anew, known, history))[1])
                newer = (grown[history], self.known(before, count), count, 1)
                grown[history], seconds = timed(partial(growing.extended, *newer))
                own["updates"].append(seconds)
        # Apart, as it is made: when it is asked for, and not at each event.
        for _ in range(work.memories):
            for history, own in found.items():
                own["memories"].append(timed(partial(growing.memory, grown[history]))[1])
        return list(found.values())

    def known(self, events: list[Event], count: int) -> list[Event]:
        """What a store keeps of the first so many events."""
        return events[max(0, count - self.kept) : count]

    def told(self, history: int, events: list[Event]) -> dict[str, int]:
        """Tells the store of a user anew; what then is stored of him, and what is kept ready."""
        name = f"user{history}"
        self.users.delete(name)
        for first in range(0, history, AT_ONCE):
            self.users.append(name, events[first : min(first + AT_ONCE, history)])
        record = self.users.store.get(name)
        assert record and record.made
        return {
            "events": sum(len(json.dumps(event)) for event in record.events),
            "state": len(record.made.state),
            "ready": sum(x.nbytes for x in jax.tree.leaves(self.users.memory(name))),
        }

    def appended(self, history: int, event: Event) -> float:
        """Seconds until store and model know of an event."""
        started = time.perf_counter()
        self.users.append(f"user{history}", [event])
        return time.perf_counter() - started


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """What it makes, and the seconds until it is there."""
    started = time.perf_counter()
    made = jax.block_until_ready(make())
    return made, time.perf_counter() - started


def main() -> None:
    work = Following(**json.loads(sys.argv[1]))
    with TemporaryDirectory() as folder:
        follower = Follower(work, Path(folder))
        for _ in range(2):  # the first time, all is compiled
            rows = follower.rows()
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
