"""Rows of figures by system: their best, their mean over seeds, and the table of a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MISSING = "–"
# Of which less is better.
ERRORS = {
    "mae",
    "rmse",
    "expected_mae",
    "expected_rmse",
    "perplexity",
    "bits_per_byte",
    "gflop",
    "prompt_tokens",
}
BOUNDS = {"oracle"}  # knows what no system can: shown, but no contender


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The metric keys of all rows in order of appearance, grouped by task (`test/next_item`)."""
    groups: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for row in rows for key in row["metrics"]):
        groups.setdefault(key.rpartition("/")[0], []).append(key)
    return groups


def best(rows: Sequence[Mapping[str, Any]], key: str) -> int | float | None:
    """The best value that any contender reaches; None where none has one."""
    found = [r["metrics"][key] for r in rows if key in r["metrics"] and r["system"] not in BOUNDS]
    return (min if is_error(key) else max)(found, default=None)


def is_error(key: str) -> bool:
    """Whether less of that metric is better."""
    return key.rpartition("/")[2] in ERRORS


def spread(runs: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[list[dict], list[dict]]:
    """The rows of runs that differ in their seed as one: the means, and the standard deviations.

    The deviation is that of a sample (n - 1).
    """
    means, deviations = [], []
    for rows in zip(*runs, strict=True):
        values = {k: [row["metrics"][k] for row in rows] for k in rows[0]["metrics"]}
        system = rows[0]["system"]
        means.append(
            {"system": system, "metrics": {k: float(np.mean(v)) for k, v in values.items()}}
        )
        told = {k: float(np.std(v, ddof=1)) for k, v in values.items()}
        deviations.append({"system": system, "metrics": told})
    return means, deviations


def table(
    rows: Sequence[Mapping[str, Any]], deviations: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """The systems' results as plain text, a line per system, the best of each column marked `*`.

    Args:
      rows: `{"system": name, "metrics": {"test/next_item/recall_at_10": 0.29, ...}}` each.
      deviations: the same, of what is to stand behind each value with a `±`.
    """
    groups = columns(rows)
    names = ["system", *(row["system"] for row in rows)]
    blocks = [["", *(name.ljust(max(map(len, names))) for name in names)]]
    for group, keys in groups.items():
        cells = [[_column(rows, key, deviations)[i] for key in keys] for i in range(len(rows) + 1)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
        width = max(len(group), len(lines[0]))
        blocks.append([group.center(width), *(line.rjust(width) for line in lines)])
    blocks[0][0] = " " * len(blocks[0][1])
    lines = [" │ ".join(parts).rstrip() for parts in zip(*blocks, strict=True)]
    rule = "─┼─".join("─" * len(block[0]) for block in blocks)
    return "\n".join([*lines[:2], rule, *lines[2:]])


def _column(
    rows: Sequence[Mapping[str, Any]], key: str, deviations: Sequence[Mapping[str, Any]] | None
) -> list[str]:
    """A metric's heading and its value for every row, as text."""
    top = best(rows, key)
    heading = key.rpartition("/")[2].replace("_at_", "@") + " "

    def cell(row: Mapping[str, Any], apart: Mapping[str, Any] | None) -> str:
        if (value := row["metrics"].get(key)) is None:
            return MISSING + " "
        told = f"{value:.3f}" + (f" ±{apart['metrics'][key]:.3f}" if apart else "")
        return told + ("*" if value == top and row["system"] not in BOUNDS else " ")

    return [heading, *map(cell, rows, deviations or [None] * len(rows))]
