"""Where the wall time of a stage went: how much of it were steps that count."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# In the order of a report. `lost` are steps that were made, but after the last checkpoint before a
# process ended, so that they were made again. What a process did not live to log is in none.
KINDS = ("initialise", "compile", "data", "step", "validate", "checkpoint", "lost")


class Clock:
    """Adds up seconds by what they were spent on.

    A device goes on with its last step while the next batch is fetched or a checkpoint written, so
    of those only the time counts that the loop had to wait.
    """

    def __init__(self, earlier: Mapping[str, float] | None = None, lost: float = 0.0):
        """Goes on from the seconds of earlier processes, of which so many of steps were lost."""
        self.seconds = dict.fromkeys(KINDS, 0.0) | dict(earlier or {})
        lost = min(lost, self.seconds["step"])
        self.seconds["step"] -= lost
        self.seconds["lost"] += lost

    def add(self, kind: str, seconds: float) -> None:
        """Counts so many to that kind, which must be one of `KINDS`."""
        self.seconds[kind] += seconds

    @contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """Counts the time inside."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(kind, time.monotonic() - started)


def share(seconds: Mapping[str, float]) -> float:
    """Goodput: what part of all the time was spent on steps that count; 0 of no time."""
    return seconds["step"] / max(sum(seconds.values()), 1e-9)


def told(seconds: Mapping[str, float]) -> str:
    """A line such as `goodput 91.2% of 125 s: step 114, compile 6.0, data 3.1`."""
    total = sum(seconds.values())
    parts = [f"{kind} {seconds[kind]:.3g}" for kind in KINDS if seconds[kind] >= 0.001 * total]
    return f"goodput {share(seconds):.1%} of {total:.3g} s: {', '.join(parts)}"
