"""What a sweep's experiments come to, side by side: one table, and the figures that it asks for."""

import csv
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from user_llm.config import FigureConfig, Sweep
from user_llm.evaluation import charts, report
from user_llm.files import write_atomically

RESULTS, SWEEP = "results.csv", "sweep.json"  # in a sweep's folder
OWN = "user_llm"  # the system that an experiment is about
COLORS = len(charts.LIGHT.lines)

logger = logging.getLogger(__name__)

Row = dict[str, str]  # of the tidy file: an experiment's metric for a system, and its fields


def write(folder: Path, *, pixels: bool = False) -> Path:
    """Writes `report.html` into a sweep's folder, and each figure as an SVG into `figures`.

    With `pixels` as PNGs too, on white and, with `_dark` in their names, on black.

    Raises:
      ValueError: no experiment of the sweep is finished; or as `charts.png`, before any is written.
    """
    with (folder / RESULTS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"no experiment of the sweep in {folder} is finished; run it further")
    asked = Sweep.model_validate_json((folder / SWEEP).read_text()).figures
    means, deviations = table(rows)
    figures = [drawn for figure in asked if (drawn := draw(figure, rows))]
    if len(figures) < len(asked):
        drawn = {figure["title"] for figure in figures}
        missing = ", ".join(repr(one.title) for one in asked if one.title not in drawn)
        logger.warning("nothing to draw yet in %s: no finished experiment of them", missing)
    files: dict[str, str | bytes] = {}
    for nth, figure in enumerate(figures, 1):
        files[f"{nth}.svg"] = charts.svg(figure["chart"])
        if pixels:
            files[f"{nth}.png"] = charts.png(figure["chart"])
            files[f"{nth}_dark.png"] = charts.png(figure["chart"], charts.DARK)
    (folder / "figures").mkdir(exist_ok=True)
    for name, content in files.items():
        write_atomically(folder / "figures" / name, content)
    facts = {
        name: ", ".join(dict.fromkeys(row[name] for row in rows if name in row))
        for name in ("date", "device", "commit", "dataset")
    }
    page = report.render(
        kind="sweep",
        name=folder.resolve().name,
        facts=facts,
        results=report.results(means, deviations),
        figures=figures,
    )
    path = folder / report.PAGE
    write_atomically(path, page)
    return path


def table(rows: Iterable[Row]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """Each experiment's metrics, means over its seeds, and their standard deviations by system.

    An experiment's own system stands under its name, another one with that name before its own;
    what comes to the same in several, such as popularity, stands once.
    """
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        own = values.setdefault((row["system"], row["experiment"]), {})
        own.setdefault(row["metric"], []).append(float(row["value"]))
    means = {key: {metric: mean(x) for metric, x in own.items()} for key, own in values.items()}
    found, deviations = {}, {}
    names: dict[str, list[str]] = defaultdict(list)  # by system
    for (system, experiment), own in means.items():
        others = [other for key, other in means.items() if key[0] == system and other != own]
        name = f"{experiment}, {system}" if others else system
        if system == OWN:
            name = experiment
        elif own in (found[one] for one in names[system]):
            continue
        names[system].append(name)
        found[name] = own
        seeds = values[system, experiment]
        deviations[name] = {metric: stdev(x) for metric, x in seeds.items() if len(x) > 1}
    return [{"system": name, "metrics": own} for name, own in found.items()], deviations


def draw(figure: FigureConfig, rows: Iterable[Row]) -> dict[str, Any] | None:
    """A figure's title and chart, and a class for each line; None without a point to draw."""
    found = [row for row in rows if row["system"] == OWN]
    lines = {name: points(figure, patterns, found) for name, patterns in figure.lines.items()}
    lines = {name: line for name, line in lines.items() if line}
    label = figure.label or figure.against.rpartition(".")[2].replace("_", " ")
    task, _, metric = figure.metric.removeprefix("test/").rpartition("/")
    said = f"{report.words(task)}, {report.words(metric)}"
    chart = charts.line_chart(lines, label, said, figure.scale, from_zero=True)
    if chart is None:
        return None
    classes = {name: f"nth-{i % COLORS}" for i, name in enumerate(lines)}
    tone: Callable[[str], str] = classes.__getitem__
    return {"title": figure.title, "chart": chart, "tone": tone}


def points(figure: FigureConfig, patterns: str, rows: Iterable[Row]) -> list[tuple[float, float]]:
    """Where the experiments of a line stand, from left to right.

    Means over the seeds that all of them have, so that no point differs by its seeds alone; over
    each one's own, if they have none in common.
    """
    chosen = [
        row for row in rows if any(fnmatchcase(row["experiment"], p) for p in patterns.split())
    ]
    seeds: dict[str, set[Any]] = defaultdict(set)
    for row in chosen:
        if row["metric"] == figure.metric:
            seeds[row["experiment"]].add(row["seed"])
    shared = set.intersection(*seeds.values()) if seeds else set()
    across: dict[str, list[float]] = {}
    up: dict[str, list[float]] = {}
    for row in chosen:
        name = row["experiment"]
        if shared and row["seed"] not in shared:
            continue
        if row["metric"] == figure.metric:
            up.setdefault(name, []).append(float(row["value"]))
        if row["metric"] == figure.against:
            across.setdefault(name, []).append(float(row["value"]))
        elif row.get(figure.against):
            across.setdefault(name, []).append(float(row[figure.against]))
    return sorted((mean(across[name]), mean(up[name])) for name in up if name in across)
