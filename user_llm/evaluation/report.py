"""A run's report: one HTML page that needs nothing else, made of what the run left behind."""

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from user_llm.data.lamp import KINDS
from user_llm.evaluation import charts
from user_llm.evaluation.charts import Number
from user_llm.evaluation.rows import BOUNDS, best, columns, is_error
from user_llm.files import AnyPath, entries, write_atomically
from user_llm.training import tracking
from user_llm.training.goodput import told

TEMPLATE = "report.html.jinja"
PAGE = "report.html"
RECENT = 20  # events of a user that are shown unasked
BASELINE = "no_context"  # what gains are measured against
NAMES = {
    "user_llm": "User-LLM",
    "rouge_1": "ROUGE-1",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "ndcg_at_10": "NDCG@10",
    "mae": "MAE",
    "rmse": "RMSE",
    "macro_f1": "macro-F1",
    "expected_rmse": "expected RMSE",
    "gflop": "GFLOP",
    "mfu": "MFU",
    "hbm_gib": "GiB of HBM",
}
MEANINGS = {
    "user_llm": "the LLM reads the user’s memory",
    "no_context": "the same LLM without the memory",
    "text_prompt": "the same LLM with the history as text in its prompt",
    "shuffled_memory": "the same LLM reads another user’s memory",
    "language_model": "the LLM before it met users",
    "encoder": "the pre-trained user encoder alone",
    "popularity": "what is most popular",
    "past": "the category that the user liked most so far, or their usual label",
    "oracle": "knows the user’s true tastes: a bound",
}
STAGES = {
    "pretrain": "Pre-training the user encoder",
    "warmup": "Warming the language model up",
    "align": "Aligning states and names",
}
# The metric that stands for a task, and what the model does that it counts.
CHIEF = {
    "test/next_item": "recall_at_10",
    "test/cold_users": "recall_at_10",
    "test/favorite_category": "accuracy",
    "test/future_favorite_category": "accuracy",
    "test/rating_prediction": "mae",
    "test/rating_among_peers": "mae",
    "test/review_generation": "rouge_l",
    "test/text": "bits_per_byte",
    **{
        f"test/{name}": "mae" if name == "LaMP_3" else "accuracy" if kind.labels else "rouge_l"
        for name, kind in KINDS.items()
    },
}
# Tasks whose answers are free text, neither right nor wrong.
WRITTEN = {"review_generation", *(name for name, kind in KINDS.items() if not kind.labels)}
DEEDS = {
    "test/next_item/recall_at_1": "names the next item first",
    "test/next_item/recall_at_10": "has the next item among its first ten",
    "test/favorite_category/accuracy": "names the favorite category",
}
COSTS = {  # columns of benchmark.json, in units that a person reads
    "seconds": ("time per answer (ms)", 1e3),
    "flops": ("GFLOP per answer", 1e-9),
    "prompt_tokens": ("prompt tokens", 1.0),
}


def write(folder: AnyPath) -> AnyPath:
    """Writes `report.html` into a run's folder and returns its path.

    What the run has not left yet is left out: its stages' metrics, `evaluation.json`,
    `benchmark.json`, `config.json`.

    Raises:
      ValueError: the folder holds none of these, or one of them cannot be read.
    """
    evaluation = _read(folder / "evaluation.json", {})
    benchmark = _read(folder / "benchmark.json", {})
    config = _read(folder / "config.json", {})
    stages = _stages(folder)
    if not (evaluation or benchmark or config or stages):
        raise ValueError(f"{folder} holds nothing to report; name the folder of a run")
    rows = evaluation.get("rows", [])
    page = render(
        kind="run",
        name=evaluation.get("experiment") or config.get("name") or folder.resolve().name,
        facts={key: evaluation.get(key) for key in ("date", "device", "commit", "dataset")},
        headline=headline(rows),
        results=results(rows),
        stages=stages,
        costs=_costs(benchmark),
        users=[_user(user) for user in evaluation.get("users", [])],
        config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
    )
    path = folder / PAGE
    write_atomically(path, page)
    return path


def render(kind: str, name: str, **parts: Any) -> str:
    """The page of a run or a sweep; what is not among the parts is left out of it."""
    environment = charts.templates()
    environment.globals |= {"words": words}
    empty = {"facts": {}, "headline": "", "results": None, "figures": [], "stages": []}
    empty |= {"costs": None, "users": [], "config": ""}
    template = environment.get_template(TEMPLATE)
    return template.render(kind=kind, name=name, meanings=MEANINGS, **empty | parts)


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """The result in a sentence or two, as the numbers have it; empty where there is no pair."""
    by_system = {row["system"]: row["metrics"] for row in rows}
    ours, plain = (by_system.get(system, {}) for system in ("user_llm", BASELINE))
    key = next((key for key in DEEDS if key in ours and key in plain), None)
    if key is None:
        return ""
    text = f"Reading the user’s memory, the LLM {DEEDS[key]} "
    if plain[key] > 0:
        ratio = gain(ours[key], plain[key])
        text += f"{ratio} × as often as without it ({ours[key]:.3f} against {plain[key]:.3f})."
    else:
        text += f"in {ours[key]:.1%} of cases, and never without it."
    others = {
        "text_prompt": "the history as text in its prompt",
        "shuffled_memory": "another user’s memory",
    }
    found = [
        f"with {what}, {by_system[s][key]:.3f}"
        for s, what in others.items()
        if key in by_system.get(s, {})
    ]
    if found:
        text += f" {'; '.join(found)}.".replace(" with", " With", 1)
    return text


def gain(value: Number, baseline: Number) -> str:
    """How many times the baseline's the value is, in two digits or so."""
    ratio = value / baseline
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


def words(name: str) -> str:
    """A system's, task's, metric's or unit's name as people write it."""
    return NAMES.get(name) or name.replace("_at_", "@").replace("_", " ")


def duration(seconds: Number) -> str:
    """A time in its two largest units, such as `3 min 20 s`."""
    if seconds < 60:
        return f"{charts.say(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _read(path: AnyPath, default: Any) -> Any:
    """A JSON file's value, or the default where there is no such file."""
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def results(
    rows: Sequence[Mapping[str, Any]], deviations: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, Any] | None:
    """The table's columns and cells, and each task's chief metric for the bars.

    Args:
      deviations: by system and metric, what stands behind a value with a `±`.
    """
    if not any(row["metrics"] for row in rows):
        return None
    groups = columns(rows)
    baseline = next((row["metrics"] for row in rows if row["system"] == BASELINE), {})
    top = {key: best(rows, key) for keys in groups.values() for key in keys}

    def cell(row: Mapping[str, Any], key: str) -> dict[str, Any] | None:
        if (value := row["metrics"].get(key)) is None:
            return None
        compared = row["system"] != BASELINE and baseline.get(key, 0) > 0
        compared &= not is_error(key)
        return {
            "value": value,
            "best": value == top[key] and row["system"] not in BOUNDS,
            "gain": gain(value, baseline[key]) if compared else "",
            "spread": (deviations or {}).get(row["system"], {}).get(key),
        }

    bars = {
        group: {row["system"]: row["metrics"][key] for row in rows if key in row["metrics"]}
        for group in groups
        if (key := f"{group}/{CHIEF.get(group)}") in groups[group]
    }
    return {
        "groups": groups,
        "rows": [(row["system"], {key: cell(row, key) for key in top}) for row in rows],
        "bars": [(group, CHIEF[group], values) for group, values in bars.items()],
        "compared": bool(baseline),
        "bleu": any(key.endswith("/bleu") for key in top),
    }


def _stages(folder: AnyPath) -> list[dict[str, Any]]:
    """Every stage that logged something, in order, with a chart per metric worth one."""
    tuned = {
        path.name.partition("-")[2] for path in entries(folder) if path.name.startswith("finetune-")
    }
    known = [system for system in MEANINGS if system in tuned]
    names = [*STAGES, *(f"finetune-{s}" for s in [*known, *sorted(tuned.difference(known))])]
    stages = []
    for name in names:
        log = tracking.read(folder / name) if (folder / name / tracking.FILE).exists() else []
        if log:
            rates = {key for line in log for key in line if key.endswith("_per_second")}
            spent = tracking.seconds_by_kind(folder / name)
            title = STAGES.get(name) or "Fine-tuning: " + words(name.partition("-")[2])
            stages.append(
                {
                    "title": title,
                    "steps": log[-1]["step"],
                    "time": duration(log[-1]["seconds"]),
                    "rates": {
                        key.rpartition("/")[2].removesuffix("_per_second"): median(
                            line[key] for line in log if key in line
                        )
                        for key in sorted(rates)
                    },
                    "went": told(spent) if spent else "",
                    "charts": _curves(log),
                }
            )
    return stages


def _curves(log: Sequence[Mapping[str, Number]]) -> list[charts.Chart]:
    """The losses in one chart, and a chart for every other validation metric."""
    keys = list(dict.fromkeys(key for line in log for key in line))
    panels: dict[str, dict[str, charts.Points]] = {}
    for key in keys:
        split, _, metric = key.rpartition("/")
        points = [(line["step"], line[key]) for line in log if key in line]
        if metric == "loss":
            panels.setdefault("loss (nats)", {})[split or "train"] = points
        elif split.startswith("validation"):
            panels[f"{words(split.replace('/', ', '))} {words(metric)}"] = {metric: points}
    found = [charts.line_chart(series, "step", label) for label, series in panels.items()]
    return [chart for chart in found if chart]


def _costs(benchmark: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an answer costs each system as the history grows: charts, rows, and a comparison."""
    rows = benchmark.get("rows", [])
    if not rows:
        return None
    shown = []
    for column, (label, unit) in COSTS.items():
        series: dict[str, list[tuple[Number, Number]]] = {}
        for row in sorted(rows, key=lambda row: row["history"]):
            if row.get(column) is not None:
                point = (row["history"], row[column] * unit)
                series.setdefault(row["system"], []).append(point)
        chart = charts.line_chart(series, "events in the history", label, "log", "log")
        shown += [chart] if chart else []

    def cells(row: Mapping[str, Any]) -> list[Number | None]:
        return [None if row.get(c) is None else row[c] * unit for c, (_, unit) in COSTS.items()]

    return {
        "device": benchmark.get("device", ""),
        "charts": shown,
        "columns": [label for label, _ in COSTS.values()],
        "rows": [(row["system"], row["history"], *cells(row)) for row in rows],
        "comparison": _comparison(rows),
    }


def _comparison(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the text prompt costs beside the memory, at the longest history that both were given."""
    by = {(row["system"], row["history"]): row for row in rows}
    common = [h for system, h in by if system == "user_llm" and ("text_prompt", h) in by]
    if not common:
        return ""
    text, ours = by["text_prompt", max(common)], by["user_llm", max(common)]
    parts = [
        f"{gain(text[column], ours[column])} × the {what}"
        for column, what in {"seconds": "time", "flops": "arithmetic"}.items()
        if text.get(column) and ours.get(column)
    ]
    if not parts:
        return ""
    return (
        f"With {max(common):,} events of history, writing them into the prompt takes "
        f"{' and '.join(parts)} of reading them as a memory."
    )


def _user(user: Mapping[str, Any]) -> dict[str, Any]:
    """A user's events, each with its share of every layer's attention, and the answers."""
    history, layers = user.get("history", []), user.get("attention") or []
    for i, layer in enumerate(layers):
        if len(layer) != len(history):
            raise ValueError(
                f"user {user.get('user')}: cross-attention layer {i + 1} has {len(layer)} weights "
                f"for {len(history)} events; evaluation.json needs one weight per event"
            )
    tops = [max(layer, default=0.0) or 1.0 for layer in layers]
    events = [
        event | {"weights": [(w[i], w[i] / top) for w, top in zip(layers, tops, strict=True)]}
        for i, event in enumerate(history)
    ]
    earlier = max(0, len(events) - RECENT)
    return {
        "name": user.get("user", ""),
        "layers": len(layers),
        "earlier": events[:earlier],
        "recent": events[earlier:],
        "earlier_weights": [sum(layer[:earlier]) for layer in layers],
        "answers": [_answer(answer) for answer in user.get("answers", [])],
    }


def _answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    """One question with what each system said, and whether that was right where it can be."""
    wanted = str(answer.get("target", ""))
    choice = answer["task"] not in WRITTEN

    def right(said: str) -> bool:
        return choice and said.strip().casefold() == wanted.strip().casefold()

    return {
        "task": answer["task"],
        "prompt": answer.get("prompt", ""),
        "target": wanted,
        "said": [(s, said, right(said)) for s, said in answer.get("answers", {}).items()],
        "top": [(title, score, right(title)) for title, score in answer.get("top") or []],
        "choice": choice,
    }
