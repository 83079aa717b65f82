"""What a built data set holds, for people to read."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from user_llm.data.dataset import Dataset, load
from user_llm.data.features import KNOWN
from user_llm.data.records import counts, fingerprint

BAR = 40  # characters of the longest bar
SHOWN = 8  # events of the example


def describe(folder: Path) -> str:
    """Counts, the timelines' lengths as bars, and one user's last events.

    Raises:
      ValueError: no data set was built there.
    """
    data = load(folder)
    remarks = counts(folder)["remarks"]
    lengths = np.diff(data.offsets)
    vocabulary = [f"  {f.name}: {f.kind} of size {f.size}" for f in data.inputs]
    span, items = f"{lengths.min()} to {lengths.max()}", len(data.items.ids) - KNOWN
    days = [
        datetime.fromtimestamp(int(t), UTC).date() for t in (data.times.min(), data.times.max())
    ]
    return "\n".join(
        [
            f"{folder.name}  (sha256 {fingerprint(folder)[:12]})",
            f"{len(data.users):,} users, {len(data.item):,} events, {items:,} items with events, "
            f"{days[0]} to {days[1]}",
            *(f"note: {remark}" for remark in remarks),
            "",
            "features",
            *vocabulary,
            "",
            f"events of a user: median {np.median(lengths):g}, from {span}",
            *_bars(lengths),
            "",
            *_example(data, int(np.argsort(lengths, kind="stable")[len(lengths) // 2])),
        ]
    )


def _bars(lengths: np.ndarray) -> list[str]:
    """One bar per doubling of the length."""
    doublings = np.floor(np.log2(lengths)).astype(int)
    counts = np.bincount(doublings)
    bars = ["#" * int(np.ceil(BAR * n / counts.max())) for n in counts]
    return [
        f"  {2**k:>6}-{2 ** (k + 1) - 1:<6} {bars[k]:<{BAR}} {counts[k]:,}"
        for k in range(doublings.min(), len(counts))
    ]


def _example(data: Dataset, user: int) -> list[str]:
    start, end = data.offsets[user : user + 2].tolist()
    events = range(max(start, end - SHOWN), end)
    return [
        f"user {data.users[user]}: the last {len(events)} of {end - start} events",
        *(_event(data, event) for event in events),
    ]


def _event(data: Dataset, event: int) -> str:
    item = data.item[event]
    when = datetime.fromtimestamp(int(data.times[event]), UTC)
    name = data.items.titles[item] or f"item {data.items.ids[item]}"
    genres = ", ".join(data.items.genres[item])
    parts = [f"  {when:%Y-%m-%d %H:%M}  {name}", f" [{genres}]" if genres else ""]
    if data.ratings is not None and np.isfinite(data.ratings[event]):
        parts.append(f"  rated {data.ratings[event]:g}")
    if review := " ".join(data.review(event).split()):
        parts.append(f'  "{review[:60]}"')
    return "".join(parts)
