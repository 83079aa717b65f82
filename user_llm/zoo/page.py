"""The zoo's index as a page of Markdown, and in a terminal; the same from the same records."""

import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import groupby

from user_llm.evaluation.report import MEANINGS, duration, words
from user_llm.evaluation.rows import MISSING
from user_llm.zoo.index import System, Value
from user_llm.zoo.snippets import commands, per_seed, python

PAGE = "README.md"
TITLE = "# The zoo"
HEADER = """\
Written by `user-llm zoo table` from [`zoo.py`](zoo.py), the configs and the results recorded beside
them, never by hand.

Every system is a config: `user-llm run FILE` trains and judges it, or of a table of experiments
`user-llm sweep FILE --only NAME`; every field can be changed on the command line, and with
`--record` the figures join the `results.json` beside the file. A result is the mean over the
recorded seeds, with their standard deviation; the time is that of one seed, without what it begins
with. Parameters are all that the model holds, frozen ones included. `user-llm zoo show NAME` shows
a system in a terminal. What `user-llm benchmark` has timed stands in [`benchmarks/`](benchmarks),
and [beside the code](../user_llm/evaluation/README.md#benchmarks) what it tells.
"""
COLUMNS = ("system", "what it is", "data", "result", "seeds", "parameters", "trained in", "on")
DIGITS = 3  # that count
COMMIT = r"(?<=^[0-9a-f]{7})[0-9a-f]+"  # what its short form leaves out


def page(systems: Sequence[System]) -> str:
    """The whole index."""
    parts = [f"{TITLE}\n", HEADER, overview(systems)]
    for _, some in groupby(systems, lambda one: one.family.title):
        family = list(some)
        kin = family[0].family
        papers = "".join(f" [{one.title}]({one.url})." for one in kin.papers)
        parts.append(f"## {kin.title}\n\n{kin.about}{papers}\n")
        parts += [section(one) for one in family]
    return "\n".join(parts)


def overview(systems: Sequence[System]) -> str:
    """A line for each system, under the name of its family."""
    lines = []
    for title, some in groupby(systems, lambda one: one.family.title):
        lines.append([f"**[{title}](#{anchor(title)})**", *[""] * (len(COLUMNS) - 1)])
        for one in some:
            name, *rest = cells(one)
            lines.append([f"[`{name}`](#{anchor(name)})", *rest])
    return table(COLUMNS, lines)


def section(system: System) -> str:
    """All of one system, the long parts folded."""
    folded = "<details><summary>The commands, and how it is loaded</summary>\n"
    parts = [f"### `{system.name}`\n", *told(system), folded, *how(system), "</details>\n"]
    return "\n".join(parts)


def shown(system: System) -> str:
    """All of one system, in a terminal."""
    return "\n".join([f"{system.name}\n", *told(system), *how(system)]).rstrip()


def listed(systems: Sequence[System]) -> str:
    """The overview in a terminal."""
    left_out = {"what it is", "seeds"}
    lines = [
        [c for c, name in zip(line, COLUMNS, strict=True) if name not in left_out]
        for line in (COLUMNS, *map(cells, systems))
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def cells(system: System) -> list[str]:
    """What the columns ask of one system."""
    key, own = system.metrics[0], system.values.get(system.row, {})
    on = several(short(one.device) for one in system.records)
    return [
        system.name,
        system.entry.what,
        several(one.dataset for one in system.records),
        f"{label(key)} {said(own[key])}" if key in own else MISSING,
        str(len(system.records)) if system.trained else MISSING,
        rounded(system.parameters),
        MISSING if system.seconds is None else duration(system.seconds),
        on if system.trained or not system.records else f"{on}, compiled only",
    ]


def told(system: System) -> Iterator[str]:
    """What it is, where it was measured, and what it came to beside what stands in its table."""
    entry, some = system.entry, system.records
    yield " ".join(filter(None, (f"{entry.what[0].upper()}{entry.what[1:]}.", entry.remark))) + "\n"
    config = f"[`{entry.config}`]({entry.config})" + (f", `{entry.row}`" if entry.row else "")
    if system.readme:
        config += f"; more in [`{system.readme}`]({system.readme})"
    facts = {
        "config": config,
        "papers": ", ".join(f"[{one.title}]({one.url})" for one in system.papers),
        "data": several(f"`{one.dataset}`, `{one.protocol}`" for one in some),
        "parameters": "" if system.parameters is None else f"{system.parameters:,}",
        "trained in": "" if system.seconds is None else per_seed(some),
        "on": several(one.device for one in some),
        "recorded": several(one.date for one in some),
        "commit": several(f"`{re.sub(COMMIT, '', one.commit)}`" for one in some),
    }
    known = {name: fact for name, fact in facts.items() if fact not in ("", MISSING)}
    yield "\n".join(f"* **{name}**: {fact}" for name, fact in known.items()) + "\n"
    if system.values:
        yield results(system)


def results(system: System) -> str:
    """A line for each row of the recorded table that has any of the system's metrics."""
    found = {key: None for own in system.values.values() for key in own}
    keys = [key for key in system.metrics if key in found]
    lines = []
    for row, own in system.values.items():
        name = MEANINGS.get(row, row)
        if row == system.row:
            name = f"**{system.entry.recorded or 'this system'}**"
        lines.append([name, *(said(own[key]) if key in own else "" for key in keys)])
    seeds = f"{len(system.records)} seeds" if len(system.records) > 1 else "one seed"
    return table([seeds if system.trained else "", *map(label, keys)], lines)


def how(system: System) -> Iterator[str]:
    """The commands that made it, and the program that loads it."""
    if system.records:
        yield f"```bash\n{commands(system)}\n```\n"
    yield f"```python\n{python(system)}```\n"


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    rule = ["---"] * len(columns)
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, rule, *lines))


def anchor(heading: str) -> str:
    """What a code host calls a heading in links."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def several(found: Iterable[str]) -> str:
    """What was found, each once; a dash for nothing."""
    return ", ".join(dict.fromkeys(found)) or MISSING


def label(key: str) -> str:
    """A metric's name as people write it, such as `next item, recall@10`."""
    *task, name = key.removeprefix("test/").removeprefix("cost/").split("/")
    return ", ".join(map(words, (*task, name)))


def short(device: str) -> str:
    """A device in a few words: of a CPU its cores alone."""
    return re.sub(r"^1 x cpu \(.*, (\d+) cores\)$", r"\1 CPU cores", device)


def said(value: Value) -> str:
    """A mean in three digits, or in one more where its deviation is smaller, and the deviation."""
    places = after_point(value.mean, DIGITS)  # digits behind the point, before it if negative
    if value.deviation:
        places = max(places, min(places + 1, after_point(value.deviation, 1)))
    text = fixed(value.mean, places)
    if value.deviation is None:
        return text
    return f"{text} ±{fixed(value.deviation, places if value.deviation else 0)}"


def after_point(x: float, digits: int) -> int:
    """How far behind the point the last of so many digits that count stands; of 0, at it."""
    return digits - 1 - Decimal(x).adjusted() if x else 0


def fixed(x: float, places: int) -> str:
    return f"{round(x, places):,.{max(0, places)}f}"


def rounded(count: int | None) -> str:
    """A number of parameters in three digits."""
    if count is None:
        return MISSING
    size, unit = next((s, u) for s, u in ((10**9, " B"), (10**6, " M"), (1, "")) if count >= s)
    return f"{f'{count / size:#.3g}'.rstrip('.')}{unit}" if unit else f"{count:,}"
