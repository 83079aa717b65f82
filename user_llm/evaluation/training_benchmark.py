"""What training a decoder costs, beside transformers with the same weights and batches.

Our side trains it alone, then reading users whose memories are given, then encoding them too. Each
side is a process of its own; of the rounds, the one with the fastest middle step counts.
"""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from user_llm.config import DecoderConfig
from user_llm.evaluation import flops, inference_benchmark, records, sides
from user_llm.evaluation.decode_benchmark import LLAMA_134M, write_random
from user_llm.evaluation.inference_subject import published
from user_llm.evaluation.peers.training import Training
from user_llm.evaluation.peers.work import cores
from user_llm.files import write_atomically
from user_llm.models import zoo

OURS = "user_llm.evaluation.training_side"
PEER = "user_llm.evaluation.peers.transformers_training"
ALONE, GIVEN, ENCODED, THEIRS = SIDES = (
    "user_llm, no user",
    "user_llm, memory given",
    "user_llm, user encoded",
    "transformers",
)
READS = {ALONE: "", GIVEN: "given", ENCODED: "encoded", THEIRS: ""}
DECODERS = {"3m": inference_benchmark.DECODERS["3m"], "134m": LLAMA_134M}
BATCHES = {"3m": (16, 128)}  # rows and their tokens
BATCH = (4, 128)  # of larger ones
SAME = 1e-4  # what the losses of the same weights may differ by
CHECKED = 3  # steps in which they must be the same
PASSES = 3  # products of a step, times the forward pass: by inputs and by weights come two more
WANTED = 1.0  # times the peer's tokens a second, at least
POINTS = 0.03  # by which cross-attention's share of a step may exceed its share of operations

Row = dict[str, Any]


def benchmark(
    folder: Path,
    *,
    decoders: Sequence[str] = tuple(DECODERS),
    rounds: int = 2,
    **sizes: Any,
) -> dict[str, Any]:
    """Every side's figures with each decoder, written to `benchmark.json` in the folder.

    Args:
      decoders: named here or in the zoo; their weights are random, in float32.
      rounds: processes of each side.
      sizes: fields of `Training` in which it differs from its defaults.

    Raises:
      ValueError: a decoder is not known; a side could not do its work; or our first losses are not
        the peer's.
    """
    configs = {name: DECODERS.get(name) or zoo.decoder(name) for name in decoders}
    started, rows, work = os.getloadavg(), [], Training("", 1, threads=cores(), **sizes)
    for name, config in configs.items():
        batch, length = BATCHES.get(name, BATCH)
        own = {"batch": batch, "length": length} | sizes
        rows += compare(name, config, replace(work, vocab_size=config.vocab_size, **own), rounds)
    result = {
        **records.provenance(),
        "dataset": "random tokens and events",
        "protocol": f"{work.steps} steps of AdamW in float32 that move every weight, random at "
        f"first; the middle one of the best of {rounds} rounds",
        "work": asdict(work),
        "rounds": rounds,
        "load_average": [started[0], os.getloadavg()[0]],
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "benchmark.json", json.dumps(result, indent=1))
    return result


def compare(name: str, config: DecoderConfig, work: Training, rounds: int) -> list[Row]:
    """A row for each side with one decoder.

    Raises:
      ValueError: the peer's first losses differ from ours.
    """
    found: dict[str, list[Row]] = {side: [] for side in SIDES}
    with TemporaryDirectory() as place:
        write_random(Path(place), config, "float32")
        for side in sides.turns(SIDES, rounds, name):
            own = replace(work, folder=place, reads=READS[side])
            found[side].append(sides.run(PEER if side == THEIRS else OURS, own))
    ours, theirs = found[ALONE][0], found[THEIRS][0]
    if difference(ours, theirs) > SAME:
        raise ValueError(
            f"the sides do not train alike: our losses are {ours['losses'][:CHECKED]}, those of "
            f"transformers {theirs['losses'][:CHECKED]}"
        )
    counted, told = operations(config, work), {"decoder": name, "tokens": work.batch * work.length}
    told |= {"batch": work.batch, "length": work.length, "events": work.events}
    return [
        told | {"side": side, "flops": counted[side], **best(runs), "runs": runs}
        for side, runs in found.items()
    ]


def difference(ours: Row, theirs: Row) -> float:
    """By how much the losses of the first steps differ at most."""
    pairs = zip(ours["losses"][:CHECKED], theirs["losses"][:CHECKED], strict=True)
    return max(abs(a - b) for a, b in pairs)


def best(runs: list[Row]) -> Row:
    """The middle step of the fastest round, the least memory, and what is the same in every run."""
    return {
        "seconds": min(statistics.median(run["seconds"]) for run in runs),
        "memory": min(run["memory"] for run in runs),
        "losses": runs[0]["losses"],
        "parameters": runs[0]["parameters"],
    }


def operations(config: DecoderConfig, work: Training) -> dict[str, int]:
    """What a step of each side multiplies, by formula; what is computed anew does not count."""
    shape, tokens = published(config), work.length
    memory, width = shape.memory_tokens(work.events), 2 * shape.encoder.embed
    cross = shape.system.cross_attention
    alone = flops.decoder(config, tokens) + (tokens - 1) * flops.head(config)
    reads = flops.cross_attention(config, cross, tokens, memory) + flops.cross_keys_values(
        config, cross, memory
    )
    given = alone + reads + flops.projector(width, config.hidden_size, memory)
    encoded = alone + reads + shape.memory(work.events)
    each = {ALONE: alone, GIVEN: given, ENCODED: encoded, THEIRS: alone}
    return {side: PASSES * work.batch * of_user for side, of_user in each.items()}


def judged(rows: list[Row]) -> dict[str, float]:
    """Of one decoder: our speed beside the peer's, and what the user's part has of a step."""
    by_side = {row["side"]: row for row in rows}
    alone, given, encoded, theirs = (by_side[side] for side in SIDES)

    def share(of: str, part: Row, rest: Row) -> float:
        return 1 - rest[of] / part[of]

    return {
        "times_the_peer": theirs["seconds"] / alone["seconds"],
        "crossed_times_the_peer": theirs["seconds"] / given["seconds"],
        "cross_attention/share_of_operations": share("flops", given, alone),
        "cross_attention/share_of_time": share("seconds", given, alone),
        "encoder/share_of_operations": share("flops", encoded, given),
        "encoder/share_of_time": share("seconds", encoded, given),
        "loss/difference": difference(alone, theirs),
    }


def by_decoder(result: dict[str, Any]) -> dict[str, list[Row]]:
    """The rows of each decoder."""
    found: dict[str, list[Row]] = {}
    for row in result["rows"]:
        found.setdefault(row["decoder"], []).append(row)
    return found


def metrics(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The figures of each side by the names that records give them."""
    found = {}
    for name, rows in by_decoder(result).items():
        for row in rows:
            found[f"training/{name}/{row['side']}"] = {
                "tokens_per_second": row["tokens"] / row["seconds"],
                "step/seconds": row["seconds"],
                "step/flops": float(row["flops"]),
                "memory_bytes": float(row["memory"]),
            }
        found[f"training/{name}/{GIVEN}"] |= judged(rows)
    return found


def table(result: dict[str, Any]) -> str:
    """The rows for a terminal, with what is wanted of them."""
    load = " to ".join(f"{x:.1f}" for x in result["load_average"])
    lines = [
        f"{result['device']}; {result['work']['threads']} threads, load average {load}; float32, "
        "every weight moves"
    ]
    for name, rows in by_decoder(result).items():
        lines += ["", *_part(name, rows)]
    return "\n".join(lines)


def _part(name: str, rows: list[Row]) -> list[str]:
    row, found = rows[0], judged(rows)
    peer = next(row for row in rows if row["side"] == THEIRS)
    lines = [
        f"{name}: {row['parameters']:,} parameters, {row['batch']} rows of {row['length']} tokens, "
        f"users of {row['events']} events",
        f"{'':26}{'tokens/s':>10}{'× peer':>8}{'step, ms':>10}{'memory, MB':>12}"
        f"{'GFLOP':>9}{'GFLOP/s':>9}",
    ]
    for row in rows:
        speed, times = row["tokens"] / row["seconds"], peer["seconds"] / row["seconds"]
        lines.append(
            f"{row['side']:26}{speed:10.0f}{times:8.2f}{row['seconds'] * 1e3:10.0f}"
            f"{row['memory'] / 1e6:12.0f}{row['flops'] / 1e9:9.1f}"
            f"{row['flops'] / row['seconds'] / 1e9:9.0f}"
        )
    parts = {
        part: [found[f"{part}/share_of_{of}"] for of in ("operations", "time")]
        for part in ("cross_attention", "encoder")
    }
    counted, timed = parts["cross_attention"]
    lines += [
        f"first {CHECKED} losses: {found['loss/difference']:.1e} from the peer's at most, "
        f"wanted: ≤ {SAME:.0e}",
        f"× peer, with and without a memory: wanted ≥ {WANTED}, "
        + _met(found["crossed_times_the_peer"] >= WANTED and found["times_the_peer"] >= WANTED),
        f"cross-attention: {counted:.1%} of a step's operations, {timed:.1%} of its time, wanted: "
        f"≤ {counted + POINTS:.1%}, {_met(timed <= counted + POINTS)}",
        "encoder and Perceiver: {:.1%} of operations, {:.1%} of the time".format(*parts["encoder"]),
    ]
    return lines


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"
