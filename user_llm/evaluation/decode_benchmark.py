"""What decoding costs, beside transformers with the same weights, and beside what the machine can.

Of each figure the best round counts. Decoding has to read every weight for each step, prefill to
multiply by it for each token: these are the limits that the shares are of.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from flax import nnx

from user_llm.config import DecoderConfig
from user_llm.evaluation import records, sides
from user_llm.evaluation.answer_costs import BYTES
from user_llm.evaluation.charts import line_chart, svg
from user_llm.evaluation.peers.decoding import Decoding
from user_llm.evaluation.peers.work import cores
from user_llm.files import write_atomically
from user_llm.huggingface import save_decoder
from user_llm.models import zoo
from user_llm.models.decoder import Decoder

OURS, PEER = "user_llm.evaluation.decode_side", "user_llm.evaluation.peers.transformers_side"
LIMITS = "user_llm.evaluation.limits"
# On a CPU, where XLA multiplies bfloat16 by hand, and elsewhere: module, dtype, int8.
SIDES = {
    "cpu": {
        "user_llm float32": (OURS, "float32", False),
        "transformers float32": (PEER, "float32", False),
        "transformers bfloat16": (PEER, "bfloat16", False),
        "user_llm int8": (OURS, "float32", True),
    },
    "other": {
        "user_llm bfloat16": (OURS, "bfloat16", False),
        "transformers bfloat16": (PEER, "bfloat16", False),
        "user_llm int8": (OURS, "bfloat16", True),
    },
}
WANTED = {"prefill": 1.0, "1": 2.0, "8": 2.5}  # times the peer's tokens a second, on a CPU
PLOT = "decode.svg"
# A Llama of 134 M parameters, of a shape that many small ones have.
LLAMA_134M = DecoderConfig(
    vocab_size=32_000,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=12,
    head_dim=64,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
)


def benchmark(
    folder: Path,
    *,
    decoder: str | DecoderConfig = LLAMA_134M,
    rounds: int = 3,
    **sizes: Any,
) -> dict[str, Any]:
    """Every side's figures, written to `benchmark.json` and drawn in `decode.svg` in the folder.

    Args:
      decoder: a shape, or the name of one in the zoo; its weights are random.
      rounds: processes of each side.
      sizes: fields of `Decoding` in which it differs from its defaults.

    Raises:
      ValueError: a side could not do its work; or our answers begin otherwise than the peer's,
        which in float32 they must not.
    """
    config = decoder if isinstance(decoder, DecoderConfig) else zoo.decoder(decoder)
    started, device = os.getloadavg(), platform()
    kinds = SIDES.get(device, SIDES["other"])
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in kinds}
    with TemporaryDirectory() as place:
        write_random(Path(place), config, "float32" if device == "cpu" else "bfloat16")
        work = Decoding(place, config.vocab_size, threads=cores(), **sizes)
        works = {
            side: dataclasses.replace(work, dtype=dtype, int8=int8)
            for side, (_, dtype, int8) in kinds.items()
        }
        reached = []
        for side in sides.turns(tuple(kinds), rounds, "benchmark"):
            if side == next(iter(kinds)):
                reached.append(sides.run(LIMITS, works[side]))
            found[side].append(sides.run(kinds[side][0], works[side]))
    rows = [{"side": side, **best(runs), "runs": runs} for side, runs in found.items()]
    ours, theirs = rows[:2]
    if device == "cpu" and ours["first_tokens"] != theirs["first_tokens"]:
        raise ValueError(
            f"answers begin otherwise: {ours['first_tokens']} {theirs['first_tokens']}"
        )
    limit = {name: max(one[name] for one in reached) for name in reached[0]}
    for row in rows:
        row["shares"] = shares(row, config, works[row["side"]], limit)
    result = {
        **records.provenance(),
        "decoder": config.model_dump(),
        "parameters": zoo.count_decoder(config),
        "dataset": "random tokens",
        "protocol": f"greedy, {work.answer} tokens after {work.prompt}, a prompt of "
        f"{work.long_prompt} to prefill; {zoo.count_decoder(config):,} random weights; the best of "
        f"{rounds} rounds",
        "work": dataclasses.asdict(dataclasses.replace(works[rows[0]["side"]], folder="")),
        "rounds": rounds,
        "load_average": [started[0], os.getloadavg()[0]],
        "limits": limit,
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "benchmark.json", json.dumps(result, indent=1))
    speeds = {row["side"]: [(int(b), x) for b, x in row["decode"].items()] for row in rows}
    chart = line_chart(speeds, "prompts at a time", "tokens decoded a second", "log", "log")
    if chart is not None:
        write_atomically(folder / PLOT, svg(chart))
    return result


def platform() -> str:
    """Where JAX would run; asked elsewhere, because to know it is to take hold of a GPU."""
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def write_random(folder: Path, config: DecoderConfig, dtype: str) -> None:
    """A decoder of random weights in Hugging Face's layout."""
    config = config.model_copy(update={"dtype": dtype, "param_dtype": dtype})
    state = nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def random(path, x):
        if x.ndim < 3 and "norm" in jax.tree_util.keystr(path):
            return np.ones(x.shape, x.dtype)
        return (0.02 * rng.standard_normal(x.shape, np.float32)).astype(x.dtype)

    params = jax.tree.map_with_path(random, nnx.to_pure_dict(state))
    save_decoder(folder, config, params)


def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of each figure, and the tokens, which are the same in every run."""
    return {
        "prefill": max(run["prefill"] for run in runs),
        "decode": {b: max(run["decode"][b] for run in runs) for b in runs[0]["decode"]},
        "first_token_seconds": {
            b: min(run["first_token_seconds"][b] for run in runs) for b in runs[0]["decode"]
        },
        "memory": min(run["memory"] for run in runs),
        "first_tokens": runs[0]["first_tokens"],
    }


def shares(
    row: dict[str, Any], config: DecoderConfig, work: Decoding, limit: dict[str, float]
) -> dict[str, float]:
    """What part of the machine's limits prefill and decoding reach, by batch.

    A step reads all weights but the table that tokens are looked up in, and each answer's keys and
    values; prefill multiplies by the layers for each token and by the head for the last.
    """
    table = config.vocab_size * config.hidden_size
    layers = zoo.count_decoder(config) - table * (1 if config.tie_word_embeddings else 2)
    wide = BYTES[work.dtype]  # bytes; a table that is the head too is never in int8
    narrow = 1 if work.int8 else wide
    weights = layers * narrow + table * (wide if config.tie_word_embeddings else narrow)
    held = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    slots = work.prompt + work.answer / 2  # on average
    found = {}
    for batch, speed in row["decode"].items():
        moved = weights + wide * held * slots * int(batch)
        found[batch] = moved * speed / int(batch) / limit["bytes_per_second"]
    heads = config.num_attention_heads * config.head_dim * config.num_hidden_layers
    length = work.long_prompt
    flops = 2 * (layers * length + table) + 2 * heads * length**2  # half of 4 n^2, being causal
    return {"prefill": flops * row["prefill"] / length / limit["flops_per_second"]} | found


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """How often the peer's tokens a second ours are, where both have the same type."""
    ours, theirs = result["rows"][:2]
    speeds = [{"prefill": row["prefill"], **row["decode"]} for row in (ours, theirs)]
    return {name: x / speeds[1][name] for name, x in speeds[0].items()}


def metrics(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The figures of each side by the names that records give them."""
    found = {}
    for row in result["rows"]:
        own = {"memory_bytes": float(row["memory"]), "prefill/tokens_per_second": row["prefill"]}
        for batch, speed in row["decode"].items():
            own[f"decode_{batch}/tokens_per_second"] = speed
            own[f"decode_{batch}/first_token_seconds"] = row["first_token_seconds"][batch]
        own |= {f"{_stage(name)}/share_of_limit": x for name, x in row["shares"].items()}
        found[f"decode/{row['side']}"] = own
    ours = found[f"decode/{result['rows'][0]['side']}"]
    ours |= {f"{_stage(name)}/times_the_peer": x for name, x in ratios(result).items()}
    return found


def _stage(name: str) -> str:
    return name if name == "prefill" else f"decode_{name}"


def table(result: dict[str, Any]) -> str:
    """The rows for a terminal, with the ratios and what is wanted of them."""
    work, limit = result["work"], result["limits"]
    batches = [str(batch) for batch in work["batches"]]
    load = " to ".join(f"{x:.1f}" for x in result["load_average"])
    lines = [
        f"{result['parameters']:,} parameters on {result['device']}; {work['threads']} threads, "
        f"load average {load}",
        f"prefill: a prompt of {work['long_prompt']} tokens; decoding: {work['answer'] - 1} tokens "
        f"after {work['prompt']}; in brackets the share of what the machine can do:",
        f"{limit['bytes_per_second'] / 1e9:.1f} GB/s read, "
        f"{limit['flops_per_second'] / 1e9:.0f} GFLOP/s multiplied by XLA in {work['dtype']}",
        f"{'':24}{'prefill':>14}"
        + "".join(f"{'decode ' + b:>14}" for b in batches)
        + f"{'first token':>13}{'memory':>10}",
        f"{'tokens/s':24}{'':14}" + "".join(f"{'':14}" for _ in batches) + f"{'ms':>13}{'MB':>10}",
    ]
    for row in result["rows"]:
        speeds, parts = {"prefill": row["prefill"], **row["decode"]}, row["shares"]
        cells = "".join(f"{f'{x:.0f} ({parts[name]:.0%})':>14}" for name, x in speeds.items())
        first = row["first_token_seconds"][batches[0]] * 1e3
        lines.append(f"{row['side']:24}{cells}{first:13.0f}{row['memory'] / 1e6:10.0f}")
    found = ratios(result)
    lines.append(f"{'× transformers':24}" + "".join(f"{x:14.2f}" for x in found.values()))
    if "cpu" in result["device"]:
        wanted = "".join(f"{f'≥ {WANTED[n]}' if n in WANTED else '':>14}" for n in found)
        lines.append(f"{'wanted':24}{wanted}")
    return "\n".join(lines)
