"""What an answer costs: a user's memory beside the same history written into the prompt."""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from user_llm import stages
from user_llm.data.pipeline import Examples
from user_llm.data.tasks import NextItem
from user_llm.data.timelines import user_of
from user_llm.evaluation import records
from user_llm.evaluation.system import System
from user_llm.runs import Run

HISTORIES = (10, 25, 50, 100, 200)  # events
REPEATS = 15


def inference(run: Run) -> dict[str, Any]:
    """Prompt tokens and time to the first token of one user's answer, written to the run's folder.

    `user_llm` encodes the user first, `user_llm, memory kept` did so before, and `text_prompt`
    spells the same events out. The decoder is the same. A time is the least of interleaved
    repetitions, compiled before.
    """
    with_memory = System(run, "user_llm", stages.finetune(run))
    name = "text_prompt" if "text_prompt" in run.systems else "user_llm"
    with_text = System(run, name, stages.finetune(run, name))
    timed: dict[tuple[str, int], tuple[int, Callable[[], Any]]] = {}
    for history in HISTORIES:
        calls = answers(run, with_memory, with_text, history)
        timed |= {(system, history): call for system, call in calls.items()}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in timed}
    for _ in tqdm(range(REPEATS + 1), desc="benchmark", leave=False):
        for key, (_, call) in timed.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            seconds[key].append(time.perf_counter() - started)
    rows = [
        {
            "system": system,
            "history": history,
            "prompt_tokens": tokens,
            "seconds": min(seconds[system, history][1:]),
            "seconds_median": float(np.median(seconds[system, history][1:])),
        }
        for (system, history), (tokens, _) in timed.items()
    ]
    result = {**records.provenance(), "rows": rows}
    records.write_atomically(run.folder / "benchmark.json", json.dumps(result, indent=1))
    return result


def answers(
    run: Run, with_memory: System, with_text: System, history: int
) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Per system the length of the prompt, and a call that makes the first token's logits."""
    offsets, task = run.dataset.offsets, NextItem(run.dataset)
    enough = run.split.test[run.split.test - offsets[user_of(run.split.test, offsets)] >= history]
    if history > run.experiment.encoder.window or not len(enough):
        return {}
    target = enough[:1]
    shown: dict[str, Any] = {"history": history, "max_tokens": 1}
    plain = Examples(run.dataset, target, {task: 1.0}, run.tokenizer, **shown)
    told = Examples(run.dataset, target, {task: 1.0}, run.tokenizer, text_history=history, **shown)
    prompt, text = (
        run.tokenizer.prompts([examples.question(task, target[0]).prompt])
        for examples in (plain, told)
    )
    row = np.arange(1)
    kept = with_memory.memory(plain, row)
    calls: dict[str, tuple[int, Callable[[], Any]]] = {
        "user_llm": (
            len(prompt[0]),
            lambda: with_memory.generator.start(prompt, **with_memory.memory(plain, row))[0],
        ),
        "user_llm, memory kept": (
            len(prompt[0]),
            lambda: with_memory.generator.start(prompt, **kept)[0],
        ),
    }
    if len(text[0]) < run.decoder_config.max_position_embeddings:
        calls["text_prompt"] = (len(text[0]), lambda: with_text.generator.start(text)[0])
    return calls


def table(result: dict[str, Any]) -> str:
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
