"""The figures of the serving benchmark: as records have them, as a table, and as a chart."""

from pathlib import Path
from typing import Any

from user_llm.evaluation import charts
from user_llm.evaluation.inference_table import amount
from user_llm.files import write_atomically

SERVED, ALONE = "user_llm", "user_llm, one row"
# At least: times the tokens a second of one by one; times cheaper than to read 200 events anew;
# times sooner than told as text. At most: from the cheapest update to the dearest.
MANY, CHEAPER, SOONER, FLAT = 3.0, 20.0, 10.0, 1.5
TOGETHER, CHIEF = 16, 200
CHANGES = ("update", "anew", "memory", "append", "posted")


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """What is wanted of a decoder's figures, as far as they are there."""
    speeds = {(one["side"], one["clients"]): one["tokens_per_second"] for one in row["answers"]}
    changes = {one["history"]: one for one in row["updates"]}
    costs = [one["update"]["p50"] for one in row["updates"]]
    found = {"update/dearest_to_cheapest": max(costs) / min(costs)}
    if (SERVED, TOGETHER) in speeds:
        found["times_one_by_one"] = speeds[SERVED, TOGETHER] / speeds[ALONE, 1]
    if chief := changes.get(CHIEF):
        found["update/times_cheaper"] = chief["anew"]["p50"] / chief["update"]["p50"]
        anew, update, memory = (chief[name]["p50"] for name in ("anew", "update", "memory"))
        found["update/times_cheaper_with_memory"] = (anew + memory) / (update + memory)
    for name in ("kept", "fresh"):
        times = row["text"]["text"]["p50"] / row["text"][name]["p50"]
        found[f"{name}/times_sooner_than_text"] = times
    return found


def metrics(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The figures of each decoder by the names that records give them."""
    found = {}
    for row in result["rows"]:
        own = {}
        for one in row["answers"]:
            name = "one_by_one" if one["side"] == ALONE else f"clients_{one['clients']}"
            own[f"{name}/tokens_per_second"] = one["tokens_per_second"]
            own[f"{name}/answers_per_second"] = one["answers_per_second"]
            for what in ("first", "whole"):
                own |= {f"{name}/{what}_seconds_{p}": x for p, x in one[what].items()}
        for one in row["updates"]:
            history = f"history_{one['history']}"
            own |= {f"{history}/{what}_bytes": float(x) for what, x in one["bytes"].items()}
            for what in CHANGES:
                own[f"{history}/{what}_seconds"] = one[what]["p50"]
            own[f"{history}/update_seconds_mean"] = one["update"]["mean"]
        for what in ("kept", "fresh", "event", "text"):
            own[f"{what}/seconds"] = row["text"][what]["p50"]
        found[f"serving/{row['decoder']}"] = own | ratios(row)
    return found


def table(result: dict[str, Any]) -> str:
    """The figures for a terminal, and beside them what is wanted."""
    low, high = (f"{x:.1f}" for x in result["load_average"])
    lines = [f"{result['device']}; {result['threads']} threads, load average {low} to {high}"]
    for row in result["rows"]:
        lines += ["", f"{row['decoder']}: {row['parameters']:,} parameters; {result['protocol']}"]
        lines += [*_answers(row), "", *_updates(row), "", *_text(row)]
    return "\n".join(lines)


def _answers(row: dict[str, Any]) -> list[str]:
    head = f"{'clients':22}{'tokens/s':>10}{'users/s':>9}"
    head += "".join(
        f"{f'{what} {p}':>12}" for what in ("first", "whole") for p in ("p50", "p95", "p99")
    )
    lines = [head + "  ms"]
    for one in row["answers"]:
        name = f"{one['clients']}{', one row' if one['side'] == ALONE else ''}"
        speeds = f"{one['tokens_per_second']:10.0f}{one['answers_per_second']:9.2f}"
        times = (x for what in ("first", "whole") for x in one[what].values())
        lines.append(f"{name:22}{speeds}" + "".join(f"{1e3 * x:12.0f}" for x in times))
    if (times := ratios(row).get("times_one_by_one")) is not None:
        lines.append(f"{TOGETHER} clients: × {times:.1f} of one by one, wanted: ≥ {MANY:g}")
    return lines


def _updates(row: dict[str, Any]) -> list[str]:
    columns = ("update", "mean", "anew", "memory", "append", "over HTTP")
    lines = [
        f"{'events':>8}" + "".join(f"{c:>11}" for c in columns) + "  ms"
        f"{'events':>10}{'state':>10}{'ready':>10}"
    ]
    for one in row["updates"]:
        middle = {name: one[name]["p50"] for name in CHANGES}
        times = (middle.pop("update"), one["update"]["mean"], *middle.values())
        bytes = "".join(f"{amount(x):>10}" for x in one["bytes"].values())
        cells = "".join(f"{1e3 * x:11.2f}" for x in times)
        lines.append(f"{one['history']:8,}{cells}    {bytes}")
    found = ratios(row)
    flat = found["update/dearest_to_cheapest"]
    lines.append(f"dearest update × {flat:.2f} of the cheapest, wanted: ≤ {FLAT:g}")
    if (times := found.get("update/times_cheaper")) is not None:
        both = found["update/times_cheaper_with_memory"]
        lines.append(
            f"{CHIEF} events anew: × {times:.1f} of an update, wanted: ≥ {CHEAPER:g}; with a "
            f"memory made of either × {both:.1f}"
        )
    return lines


def _text(row: dict[str, Any]) -> list[str]:
    text, found = row["text"], ratios(row)
    seconds = {name: 1e3 * text[name]["p50"] for name in ("kept", "fresh", "event", "text")}
    return [
        f"first token: {seconds['kept']:.0f} ms after a question of "
        f"{text['tokens']['question']:.0f} tokens; with an event before it {seconds['fresh']:.0f} "
        f"ms, of which the event {seconds['event']:.0f}",
        f"transformers serve, told in {text['tokens']['text']:.0f} tokens: {seconds['text']:.0f} "
        f"ms, × {found['kept/times_sooner_than_text']:.0f} and with the event "
        f"× {found['fresh/times_sooner_than_text']:.0f}, wanted: ≥ {SOONER:g}",
    ]


def draw(result: dict[str, Any], folder: Path) -> None:
    """What an event costs by a user's history, a chart for each decoder, as SVG and pixels."""
    names = {"update": "update", "anew": "read anew", "posted": "over HTTP"}
    for row in result["rows"]:
        lines = {
            name: [(one["history"], 1e3 * one[what]["p50"]) for one in row["updates"]]
            for what, name in names.items()
        }
        labels = "events of a user before", "ms for one event more"
        chart = charts.line_chart(lines, *labels, "log", "log")
        if chart is None:
            continue
        name = f"updates_{row['decoder']}"
        write_atomically(folder / f"{name}.svg", charts.svg(chart))
        for end, palette in (("", charts.LIGHT), ("_dark", charts.DARK)):
            try:
                pixels = charts.png(chart, palette)
            except ValueError:  # what draws them is not installed
                continue
            write_atomically(folder / f"{name}{end}.png", pixels)
