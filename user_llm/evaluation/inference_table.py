"""The inference benchmark's figures as tables, charts and records, beside what is wanted."""

from collections.abc import Iterator, Sequence
from typing import Any

from user_llm.evaluation.charts import line_chart, svg
from user_llm.evaluation.peers.answering import TOKENS
from user_llm.files import AnyPath, write_atomically

SHORT = {
    "user_llm": "memory",
    "user_llm, memory kept": "memory kept",
    "user_llm, keys kept": "keys kept",
    "text_prompt": "text",
    "text_prompt, prefix kept": "text kept",
    "transformers": "torch",
    "transformers, prefix kept": "torch kept",
}
KEPT = ("user_llm, memory kept", "user_llm, keys kept")
WANTED_FLOPS = dict.fromkeys(KEPT, 78.1) | {"user_llm": 40.0}  # × fewer, of 1 B parameters
WANTED_TIME = 0.85  # of the ratio of tokens, of 100 M parameters
WANTED_STEP = 0.05  # of a plain decoder's step, beside what the cross-attentions multiply
WANTED_BYTES = 500.0  # × fewer

Row = dict[str, Any]
Rows = dict[str, Row]  # by system


def amount(number: float | int) -> str:
    """Bytes in the unit that suits them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.{0 if number >= 10 * size else 1}f} {unit}"
    return f"{number:.0f} B"


def first_table(result: Row) -> str:
    """The rows for a terminal, and how often the text prompt's time the memory's is."""
    rows = {(row["system"], row["history"]): row for row in result["rows"]}
    lines = [f"{'':24}{'events':>8}{'prompt tokens':>15}{'first token, ms':>17}{'× text':>9}"]
    for (system, history), row in rows.items():
        text = rows.get(("text_prompt", history))
        ratio = f"{text['seconds'] / row['seconds']:.2f}" if text else "–"
        lines.append(
            f"{system:24}{history:8}{row['prompt_tokens']:15}{row['seconds'] * 1e3:17.2f}{ratio:>9}"
        )
    return "\n".join(lines)


def table(result: Row) -> str:
    """All rows for a terminal, with the ratios and what is wanted of them."""
    load = " to ".join(f"{x:.1f}" for x in result["load_average"])
    lines = [
        f"{result['device']}; {result['threads']} threads, load average {load}; "
        f"{result['limits']['flops_per_second'] / 1e9:.0f} GFLOP/s multiplied at most",
    ]
    for model in result["decoders"]:
        how = "" if model["measured"] else ", by formula only"
        lines += [
            "",
            f"{model['decoder']}: {model['parameters']:,} parameters, {model['dtype']}{how}",
        ]
        rows = [row for row in result["rows"] if row["decoder"] == model["decoder"]]
        lines += _costs(rows)
        at = max(_histories(rows), key=lambda history: (history == 200, history))
        chief = {row["system"]: row for row in rows if row["history"] == at}
        lines += [*_together(chief), *_ratios(chief), *_targets(chief, model["parameters"])]
    return "\n".join(lines)


def _histories(rows: Sequence[Row]) -> list[int]:
    """Those at which a text prompt stands beside the memory, if there are any."""
    told = [row["history"] for row in rows if row["system"] == "text_prompt"]
    return told or [row["history"] for row in rows]


def _costs(rows: Sequence[Row]) -> list[str]:
    """What each system costs one user at each history."""
    names = ("first,", f"{TOKENS} tokens,", "a token,", "kept of", "new event,", "new event,")
    units = ("ms", "ms", "ms", "a user", "GFLOP", "ms")
    lines = [
        f"{'':48}" + "".join(f"{name:>11}" for name in names),
        f"{'':26}{'events':>7}{'tokens':>7}{'GFLOP':>8}" + "".join(f"{x:>11}" for x in units),
    ]
    for row in rows:
        alone = row["asked"].get("1")
        cells = (
            _ms(row.get("seconds")),
            _ms(alone and _whole(alone)),
            _ms(alone and alone["further"]),
            amount(row["bytes"]) if row["bytes"] else "–",
            _giga(row.get("event_flops")),
            _ms(row.get("event_seconds")),
        )
        lines.append(
            f"{row['system']:26}{row['history']:7}{row['prompt_tokens']:7}{_giga(row['flops']):>8}"
            + "".join(f"{x:>11}" for x in cells)
        )
    return lines


def _whole(figures: Row) -> float:
    """Seconds of a whole answer."""
    return figures["first"] + (TOKENS - 1) * figures["further"]


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.1f}"


def _giga(flops: float | int | None) -> str:
    return "–" if flops is None else f"{flops / 1e9:.2f}" if flops < 1e12 else f"{flops / 1e9:.0f}"


def _together(chief: Rows) -> list[str]:
    """What many users who ask at once wait for, and why some were not asked."""
    batches = sorted({int(b) for row in chief.values() for b in row["asked"]})
    waited = [b for b in batches if b > 1 and str(b) in chief["user_llm"]["asked"]]
    if not waited:
        return []
    lines = [
        f"{'users who ask at once':26}"
        + "".join(f"{f'{b}: first, ms':>16}{f'{TOKENS} tokens, ms':>16}" for b in waited)
        + "".join(f"{f'{b}: tokens/s':>14}" for b in batches)
    ]
    for system, row in chief.items():
        given = {b: row["asked"].get(str(b)) for b in batches}
        cells = [(_ms(x and x["first"]), _ms(x and _whole(x))) for x in map(given.get, waited)]
        speeds = [f"{b / x['further']:.0f}" if x else "–" for b, x in given.items()]
        lines.append(
            f"{system:26}"
            + "".join(f"{x:>16}" for pair in cells for x in pair)
            + "".join(f"{x:>14}" for x in speeds)
        )
    for system, row in chief.items():
        lines += [f"{system}, {b} at once: {why}" for b, why in row["left_out"].items()]
    return lines


def _ratios(chief: Rows) -> list[str]:
    """The memory beside the text, always all of it together."""
    ours, (kept, keys) = chief["user_llm"], (chief[name] for name in KEPT)
    text, prefix = chief.get("text_prompt"), chief.get("text_prompt, prefix kept")
    if text is None or prefix is None:
        return []
    best = prefix["event_flops"] / kept["event_flops_at_best"]
    full = prefix["event_flops_full"] / kept["event_flops"]
    lines = [
        f"at {ours['history']} events, how often what the memory costs the text prompt does:",
        f"  tokens {_times(text, ours, 'prompt_tokens')}",
        f"  operations, all counted: encoded anew {_times(text, ours, 'flops')}, "
        f"memory kept {_times(text, kept, 'flops')}, keys kept {_times(text, keys, 'flops')}",
        f"  bytes of a user: memory kept {_times(prefix, kept, 'bytes')}, "
        f"keys kept {_times(prefix, keys, 'bytes')}",
        f"  operations of a new event {_times(prefix, kept, 'event_flops')}, encoding all events "
        "anew as the program does;",
        f"    {best:.2f} with the encoder's cache; {full:.2f} once the oldest events go and all "
        "text moves",
    ]
    for name in ("text_prompt", "transformers"):
        cold, warm = chief.get(name, {}), chief.get(f"{name}, prefix kept", {})
        if "seconds" in cold and "seconds" in warm:
            lines.append(
                f"  time, of {name}: cold first token {_times(cold, ours, 'seconds')}, warm "
                f"{_times(warm, kept, 'seconds')} and {_times(warm, keys, 'seconds')}, "
                f"each token {_step(warm) / _step(kept):.2f}, "
                f"new event {_times(warm, kept, 'event_seconds')}"
            )
    return lines


def _times(row: Row, other: Row, name: str) -> str:
    return f"{row[name] / other[name]:.2f}"


def _step(row: Row, batch: str = "1") -> float:
    return row["asked"][batch]["further"]


def _targets(chief: Rows, parameters: int) -> list[str]:
    """What is wanted, and by how much it is met or missed."""
    lines = []
    for what, found, wanted, least in targets(chief, parameters):
        part = found / wanted - 1 if least else 1 - found / wanted
        verdict = "met" if part >= 0 else f"missed by {-part:.1%}"
        sign = "≥" if least else "≤"
        lines.append(f"wanted {sign} {wanted:<7.2f}{what:58}{found:8.2f}, {verdict}")
    return lines


def targets(chief: Rows, parameters: int) -> Iterator[tuple[str, float, float, bool]]:
    """What is wanted at a history: in words, what was found, how much, and if that is the least."""
    ours, kept = chief["user_llm"], chief["user_llm, memory kept"]
    text, prefix = chief.get("text_prompt"), chief.get("text_prompt, prefix kept")
    if text is None or prefix is None:
        return
    if parameters > 1e9:
        for system, wanted in WANTED_FLOPS.items():
            found = text["flops"] / chief[system]["flops"]
            yield f"text's operations, × of {system}", found, wanted, True
    for system in KEPT:
        found = prefix["bytes"] / chief[system]["bytes"]
        yield f"text's bytes of a user, × of {system}", found, WANTED_BYTES, True
    if "seconds" not in text:
        return
    tokens = text["prompt_tokens"] / ours["prompt_tokens"]
    for name in ("text_prompt", "transformers"):
        if parameters > 9e7:
            found = chief[name]["seconds"] / ours["seconds"]
            yield f"{name}, cold first token, × of user_llm's", found, WANTED_TIME * tokens, True
        for system in KEPT:
            warm = chief[f"{name}, prefix kept"]["seconds"] / chief[system]["seconds"]
            yield f"{name}, warm first token, × of {system}", warm, 1.0, True
    plain = chief["no_context"]
    share = kept["step_flops"] / plain["step_flops"] - 1
    for batch in plain["asked"]:
        found = _step(kept, batch) / _step(plain, batch)
        yield (
            f"a further token, × of a plain decoder's, {batch} at once",
            found,
            1 + WANTED_STEP + share,
            False,
        )


def draw(result: Row, folder: AnyPath) -> None:
    """Writes for each decoder the time to the first token, and what is kept, by the history."""
    for model in result["decoders"]:
        rows = [row for row in result["rows"] if row["decoder"] == model["decoder"]]
        for name, column, unit, label in (
            ("first_token", "seconds", 1e3, "ms to the first token"),
            ("kept", "bytes", 1.0, "bytes kept of a user"),
        ):
            series = {
                short: [
                    (row["history"], row[column] * unit)
                    for row in rows
                    if row["system"] == system and row.get(column)
                ]
                for system, short in SHORT.items()
            }
            chart = line_chart(series, "events", label, "log", "log")
            if chart is not None:
                write_atomically(folder / f"{name}_{model['decoder']}.svg", svg(chart))


def metrics(result: Row) -> dict[str, dict[str, float]]:
    """The figures of each decoder's systems by the names that records give them."""
    found: dict[str, dict[str, float]] = {}
    for row in result["rows"]:
        own = {
            name: float(row[name])
            for name in ("prompt_tokens", "flops", "step_flops", "bytes", "event_flops")
            if name in row
        }
        if "event_seconds" in row:
            own["event_seconds"] = row["event_seconds"]
        for batch, figures in row["asked"].items():
            own[f"users_{batch}/first_seconds"] = figures["first"]
            own[f"users_{batch}/token_seconds"] = figures["further"]
        run = found.setdefault(f"inference/{row['decoder']}/{row['system']}", {})
        run |= {f"events_{row['history']}/{name}": x for name, x in own.items()}
    return found
