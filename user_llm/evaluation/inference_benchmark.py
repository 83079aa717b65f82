"""What an answer costs: a user's memory beside the same history as text, and beside transformers.

`user_llm` encodes the user first, `user_llm, memory kept` did so before, and with its keys kept it
has made the decoder's keys and values of the memory too; `text_prompt` spells the same events out,
and with its prefix kept goes on from that one's keys and values; transformers does the same with
the same weights. Each side is a process of its own; of each figure the best round
counts. Tokens, operations and bytes are known by formula.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from user_llm.config import DecoderConfig
from user_llm.evaluation import answer_costs, inference_table, records, sides
from user_llm.evaluation.answer_costs import Shape, Sizes
from user_llm.evaluation.catalog_benchmark import DECODER as LLAMA_100M
from user_llm.evaluation.decode_benchmark import LIMITS, platform, write_random
from user_llm.evaluation.inference_side import starts
from user_llm.evaluation.inference_subject import (
    QUESTION,
    Preparation,
    of_run,
    published,
    told,
)
from user_llm.evaluation.peers.answering import DECODER, TOKENS, Answering, best, write
from user_llm.evaluation.peers.decoding import Decoding
from user_llm.evaluation.peers.work import cores
from user_llm.files import AnyPath, write_atomically
from user_llm.models import zoo
from user_llm.runs import Run

OURS = "user_llm.evaluation.inference_side"
PEER = "user_llm.evaluation.peers.transformers_answers"
SUBJECT = "user_llm.evaluation.inference_subject"
POSITIONS = 8192  # room for 400 events as text
DECODERS = {
    "3m": DecoderConfig(
        vocab_size=4096,
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=8,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=POSITIONS,
    ),
    "100m": LLAMA_100M.model_copy(update={"max_position_embeddings": POSITIONS}),
}
ASKED = ("3m", "100m", "llama3_1b", "llama3_8b")
HISTORIES = (25, 50, 100, 200, 400)  # events
RUN_HISTORIES = (10, 25, 50, 100, 200)
MEASURED = 2e8  # parameters of a decoder that a CPU is asked to answer with, at most
PATIENCE = 5.0  # seconds that reading the prompts of those who ask at once may take
RUN_SYSTEMS = ("user_llm", "user_llm, memory kept", "text_prompt")  # whose first tokens a run times
REPEATS = 5  # of them, at least
ALONE = (  # who is asked by one user at a time, and what one event more costs
    *("user_llm", "user_llm, memory kept", "user_llm, keys kept", "user_llm, new event"),
    *("text_prompt", "text_prompt, prefix kept", "text_prompt, new event"),
    *("transformers", "transformers, prefix kept", "transformers, new event"),
)
COLD = ("user_llm", "text_prompt", "transformers")
WARM = (
    *("user_llm, memory kept", "user_llm, keys kept"),
    *("text_prompt, prefix kept", "transformers, prefix kept", "no_context"),
)
TOGETHER = {16: WARM, 32: COLD + WARM, 64: WARM}  # by how many users ask at once

Row = dict[str, Any]
Key = tuple[str, int, int]  # a system, events, and how many users ask at once


def first_tokens(run: Run, histories: Sequence[int] = RUN_HISTORIES) -> dict[str, Any]:
    """Our side's time to the first token of one user's answer, written to the run's folder."""
    subject, rows = of_run(run, histories), []
    for history, prompt in subject.prompts.items():
        costs = answer_costs.rows(subject.shape, prompt.sizes(history))
        timed = [row for row in costs if row["system"] in RUN_SYSTEMS]
        systems = [row["system"] for row in timed]
        found = best(starts(subject, history, 1, systems, tokens=1), REPEATS)
        rows += [row | {"seconds": found[row["system"]]["first"]} for row in timed]
    result = {**records.provenance(), "rows": rows}
    write_atomically(run.folder / "benchmark.json", json.dumps(result, indent=1))
    return result


def measurable(run: Run) -> bool:
    """Whether a run's system reads a timeline's memory alone, and is asked of timelines."""
    system = run.experiment.system
    alone = system.streams == ("timeline",) and system.remembers and not system.told
    return alone and run.dataset.asked is None


def benchmark(
    folder: AnyPath,
    *,
    run: Run | None = None,
    decoders: Sequence[str] = ASKED,
    histories: Sequence[int] | None = None,
    rounds: int = 2,
    repeats: int = 2,
) -> dict[str, Any]:
    """Everybody's figures, written to `benchmark.json` in the folder and drawn beside it.

    Args:
      run: whose system and prompts are measured; without it, User-LLMs of the published shape.
      decoders: named here or in the zoo; those too large for a CPU are left to the formulas on one.
      rounds: processes of each side.
      repeats: of each answer in a process.

    Raises:
      ValueError: a decoder is not known; the run's system reads no memory, or words besides; a side
        could not do its work; or our answers begin otherwise than the peer's, which in float32 they
        must not.
    """
    if run and not measurable(run):
        raise ValueError(
            f"the system of {run.folder} does not read a memory alone, and of a timeline, to be "
            'measured beside text; take a run of timelines with system.streams=("timeline",), a '
            "system.fusion and without text"
        )
    started, device = os.getloadavg(), platform()
    dtype = "float32" if device == "cpu" else "bfloat16"
    configs = {} if run else {name: DECODERS.get(name) or zoo.decoder(name) for name in decoders}
    limit = sides.run(LIMITS, Decoding("", 1, dtype=dtype))
    bench = Bench(limit, rounds, repeats)
    rows, models = [], []
    if run is not None:
        config, found = bench.of_run(run, histories or RUN_HISTORIES)
        rows, models = found, [_model(run.experiment.name, config, True)]
    for name, config in configs.items():
        measured = device != "cpu" or zoo.count_decoder(config) <= MEASURED
        config = config.model_copy(update={"dtype": dtype if measured else "bfloat16"})
        rows += bench.of_decoder(name, config, histories or HISTORIES, measured)
        models.append(_model(name, config, measured))
    result = {
        **records.provenance(),
        "dataset": "random tokens" if run is None else run.experiment.data.name,
        "protocol": f"greedy, the best of {rounds} rounds of {repeats}",
        "threads": cores(),
        "load_average": [started[0], os.getloadavg()[0]],
        "limits": limit,
        "decoders": models,
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "benchmark.json", json.dumps(result, indent=1))
    inference_table.draw(result, folder)
    return result


def _model(name: str, config: DecoderConfig, measured: bool) -> Row:
    return {
        "decoder": name,
        "parameters": zoo.count_decoder(config),
        "dtype": config.dtype,
        "measured": measured,
    }


@dataclasses.dataclass(frozen=True)
class Bench:
    """How thoroughly is measured, and what the machine can do."""

    limit: dict[str, float]
    rounds: int
    repeats: int

    def of_run(self, run: Run, histories: Sequence[int]) -> tuple[DecoderConfig, list[Row]]:
        """The decoder of a run, and what its answers cost."""
        where = str(run.folder), str(run.data_dir)
        with TemporaryDirectory() as place:
            found = sides.run(SUBJECT, Preparation(*where, place, tuple(histories)))
            shape, sizes = Shape.of(found["shape"]), [Sizes(**one) for one in found["sizes"]]
            work = Answering(place, (), *where, dtype=shape.decoder.dtype)
            return shape.decoder, self.rows(run.experiment.name, shape, sizes, work)

    def of_decoder(
        self, name: str, config: DecoderConfig, histories: Sequence[int], measured: bool
    ) -> list[Row]:
        """What the answers of a User-LLM of the published shape cost."""
        shape, prompts = published(config), {h: told(config.vocab_size, h) for h in histories}
        sizes = [
            Sizes(history, QUESTION, len(prompt.tokens), prompt.kept, prompt.event)
            for history, prompt in prompts.items()
        ]
        if not measured:
            return self.rows(name, shape, sizes, None)
        with TemporaryDirectory() as place:
            (Path(place) / DECODER).mkdir()
            write_random(Path(place) / DECODER, config, config.dtype)
            write(Path(place), prompts)
            work = Answering(place, (), shape=shape.described(), dtype=config.dtype)
            return self.rows(name, shape, sizes, work)

    def rows(
        self, name: str, shape: Shape, sizes: list[Sizes], work: Answering | None
    ) -> list[Row]:
        """Each system's costs at each history: by formula, and measured if there is work."""
        asked, left_out = plan(shape, sizes, self.limit)
        found = self.measure(work, asked) if work else {}
        rows = []
        for size in sizes:
            costs = answer_costs.rows(shape, size)
            costs += [
                row | {"system": row["system"].replace("text_prompt", "transformers")}
                for row in costs
                if work and row["system"].startswith("text_prompt")
            ]
            if size == chief(sizes):
                costs.append(answer_costs.plain(shape, size))
            for row in costs:
                own = row["system"], size.history
                row = {"decoder": name, **row, "asked": {}, "left_out": {}}
                for batch in (1, *TOGETHER):
                    if reason := work and left_out.get((*own, batch)):
                        row["left_out"][str(batch)] = reason
                    if figures := found.get((*own, batch)):
                        row["asked"][str(batch)] = figures
                if "1" in row["asked"]:
                    row["seconds"] = row["asked"]["1"]["first"]
                event = f"{row['system'].partition(',')[0]}, new event", size.history, 1
                if "event_flops" in row and event in found:
                    row["event_seconds"] = found[event]["first"]
                rows.append(row)
        return rows

    def measure(
        self, work: Answering, asked: list[tuple[int, int, list[str]]]
    ) -> dict[Key, dict[str, float]]:
        """The least seconds to the first tokens, and to each further one."""
        works = {}
        for side in (OURS, PEER):
            own = [(h, b, [s for s in all if side == _side(s)]) for h, b, all in asked]
            works[side] = dataclasses.replace(
                work,
                asked=[group for group in own if group[2]],
                repeats=self.repeats,
                threads=cores(),
            )
        found: dict[Key, list[Row]] = {}
        for side in sides.turns(tuple(works), self.rounds, "benchmark"):
            for row in sides.run(side, works[side]):
                key = row["system"], row["history"], row["batch"]
                found.setdefault(key, []).append(row)
        if work.dtype == "float32":
            refuse_differences(found)
        return {
            key: {name: min(row[name] for row in rows) for name in ("first", "further")}
            for key, rows in found.items()
        }


def _side(system: str) -> str:
    return PEER if system.startswith("transformers") else OURS


def refuse_differences(found: dict[Key, list[Row]]) -> None:
    """Raises a ValueError if text prompts are not answered by the same first token everywhere."""
    first: dict[int, set[int]] = {}
    for (system, history, _), rows in found.items():
        if system.startswith(("text_prompt", "transformers")) and "event" not in system:
            first.setdefault(history, set()).update(x for row in rows for x in row["tokens"])
    if odd := {history: tokens for history, tokens in first.items() if len(tokens) > 1}:
        raise ValueError(f"answers to the same text begin otherwise, by events: {odd}")


def chief(sizes: Sequence[Sizes]) -> Sizes:
    """The history at which many ask at once: 200 events, or the longest with room for its text."""
    told = [size for size in sizes if size.told] or sizes
    return next((size for size in told if size.history == 200), told[-1])


def plan(
    shape: Shape, sizes: Sequence[Sizes], limit: dict[str, float]
) -> tuple[list[tuple[int, int, list[str]]], dict[Key, str]]:
    """Who is asked at which history by how many at once, and who is left out for which reason."""
    most = chief(sizes)
    groups = [(size, 1, (*ALONE, "no_context")[: None if size == most else -1]) for size in sizes]
    groups += [(most, batch, systems) for batch, systems in TOGETHER.items()]
    asked, left_out = [], {}
    for size, batch, systems in groups:
        fit = []
        for system in systems:
            textual = system.startswith(("text_prompt", "transformers"))
            if textual and size.told is None:
                continue
            if reason := textual and unfit(shape, size, system in COLD, batch, limit):
                left_out[system, size.history, batch] = reason
            else:
                fit.append(system)
        asked.append((size.history, batch, fit))
    return asked, left_out


def unfit(shape: Shape, size: Sizes, cold: bool, batch: int, limit: dict[str, float]) -> str:
    """Why a text prompt cannot be measured here; empty if it can.

    A third of what is free may be taken: a cache that grows is there twice, and others are at work.
    One user at a time is waited for, however long.
    """
    length = (size.told or 0) + TOKENS
    needed = batch * shape.cache_bytes(length)
    if cold:  # scores, of which our side holds a quarter of a layer's
        needed += batch * shape.decoder.num_attention_heads * length**2
    if needed > limit["free_bytes"] / 3:
        free = inference_table.amount(limit["free_bytes"])
        return f"needs {inference_table.amount(needed)}, with {free} free"
    seconds = batch * shape.text(length) / limit["flops_per_second"]
    if cold and batch > 1 and seconds > PATIENCE:
        return f"would take {seconds:.0f} s at the least"
    return ""
