"""What naming items of a catalogue costs: its table, and each step of the search, by its size.

A step's costs are timed beside the same choice from the whole vocabulary, and beside the decoder's
step that it follows. The sizes take turns; of each figure the best round counts.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int
from tqdm.auto import tqdm

from user_llm.config import DecoderConfig
from user_llm.evaluation import records, sides
from user_llm.evaluation.charts import line_chart, svg
from user_llm.evaluation.peers.work import memory
from user_llm.files import write_atomically
from user_llm.inference import beams
from user_llm.inference.buckets import bucket
from user_llm.inference.catalog import Beams, Catalog, allowed_before, select
from user_llm.inference.generate import Generator
from user_llm.models.decoder import Decoder
from user_llm.models.zoo import count_decoder

DECODER = DecoderConfig(
    vocab_size=32_000,
    hidden_size=640,
    intermediate_size=1728,
    num_hidden_layers=12,
    num_attention_heads=10,
    num_key_value_heads=10,
    head_dim=64,
    max_position_embeddings=256,
    tie_word_embeddings=False,
)
LENGTH = 5  # tokens of an item
PLOT = "catalog.svg"
PROMPT = 64
SECONDS = 60.0  # to build a table of a million items, at most
MEMORY = 1e9  # bytes, at most
SHARE = 0.05  # of a decoder's step that masking may take


@dataclass(frozen=True)
class Build:
    """A table to be built in a process of its own, which tells what that costs."""

    items: int
    vocab_size: int


Calls = dict[tuple[Any, ...], Callable[[], Any]]


def benchmark(
    folder: Path,
    *,
    items: Sequence[int] = (10_000, 100_000, 1_000_000),
    users: Sequence[int] = (1, 8),
    beam: int = 10,
    rounds: int = 15,
    config: DecoderConfig = DECODER,
) -> dict[str, Any]:
    """The figures for catalogues of these sizes, written to `benchmark.json` and drawn beside it.

    Args:
      users: how many are asked for at once.
      rounds: in which each step is timed.

    Raises:
      ValueError: a table could not be built.
    """
    started = os.getloadavg()
    tables = [
        sides.run(__name__, Build(size, config.vocab_size))
        for size in tqdm(items, desc="tables", leave=False)
    ]
    generator = Generator(jax.jit(lambda: Decoder(config, rngs=nnx.Rngs(0)))())
    catalogs = [Catalog(titles(size, config.vocab_size), config.vocab_size) for size in items]
    seconds: dict[tuple[Any, ...], float] = {}
    for batch in tqdm(users, desc="users", leave=False):
        timed: Calls = {}
        for catalog in catalogs:
            timed |= calls(generator, catalog, batch, beam)
        seconds |= fastest(timed, rounds)
    result = {
        **records.provenance(),
        "decoder": config.model_dump(mode="json"),
        "parameters": count_decoder(config),
        "dataset": f"random items of {LENGTH} tokens",
        "protocol": f"{beam} beams, {count_decoder(config):,} random weights; the best of {rounds} "
        "rounds",
        "beam": beam,
        "rounds": rounds,
        "load_average": [started[0], os.getloadavg()[0]],
        "tables": tables,
        "rows": [
            {
                "users": batch,
                "items": len(catalog),
                "depth": depth,
                "fan": fan,
                **{kind: seconds[batch, len(catalog), depth, kind] for kind in ("chosen", "some")},
                **{kind: seconds[batch, depth, kind] for kind in ("free", "decoder")},
            }
            for batch in users
            for catalog in catalogs
            for depth, fan in enumerate(catalog.fans)
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "benchmark.json", json.dumps(result, indent=1))
    named = {"chosen": "among items", "free": "from all tokens", "decoder": "decoder's steps"}
    series = {
        name: [(size, 1e3 * _whole(result, users[-1], size, kind)) for size in items]
        for kind, name in named.items()
    }
    label = f"ms of an answer to {users[-1]} users"
    if (chart := line_chart(series, "items", label, "log", "log")) is not None:
        write_atomically(folder / PLOT, svg(chart))
    return result


def _whole(result: dict[str, Any], users: int, items: int, kind: str) -> float:
    """Seconds of all steps of an answer."""
    rows = (row for row in result["rows"] if (row["users"], row["items"]) == (users, items))
    return sum(row[kind] for row in rows)


def metrics(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The figures by the names that records give them."""
    found = {}
    for row in result["tables"]:
        for name in ("seconds", "memory", "bytes"):
            found[f"table_{row['items']}/{name}"] = float(row[name])
    for users, items in dict.fromkeys((row["users"], row["items"]) for row in result["rows"]):
        own = {kind: _whole(result, users, items, kind) for kind in ("chosen", "free", "decoder")}
        found |= {f"users_{users}/items_{items}/{kind}_seconds": x for kind, x in own.items()}
        found[f"users_{users}/items_{items}/masking_share"] = masking(own)
    return {"catalog": found}


def titles(count: int, vocab_size: int) -> Int[np.ndarray, "I L"]:
    """Items of random tokens, of which the n-th most frequent one is so in proportion to 1 / n."""
    drawn = np.random.default_rng(0).random((count, LENGTH))
    return (vocab_size**drawn).astype(np.int32)


def calls(generator: Generator, catalog: Catalog, users: int, beam: int) -> Calls:
    """What is timed of a search: by users, items, depth and kind, or by users, depth and kind.

    `chosen` is a step's choice among the catalogue's tokens, `some` the same with half of the items
    excluded, `free` the choice from the whole vocabulary, and `decoder` the decoder's step.
    """
    rng = np.random.default_rng(0)
    prompts = rng.integers(generator.config.vocab_size, size=(users, PROMPT)).tolist()
    before = allowed_before(rng.random((1, len(catalog))) < 0.5, catalog.table.items)
    logits, state = generator.start(prompts, new_tokens=len(catalog.fans))
    found, logits, layers = Beams.start(users, beam), logits[:, None], None
    timed: Calls = {}

    def choice(*given) -> Callable[[], Any]:
        return lambda: select(catalog.table, *given)

    def free(logits, scores) -> Callable[[], Any]:
        return lambda: beams.continuations(logits, scores, beam)

    def decoder(layers, tokens, depth) -> Callable[[], Any]:
        def step():
            nonlocal layers
            logits, layers = beams.extend(generator, state, layers, tokens, depth)
            return logits

        return step

    for depth, fan in enumerate(catalog.fans):
        given = found, logits, fan
        timed[users, len(catalog), depth, "chosen"] = choice(None, *given)
        timed[users, len(catalog), depth, "some"] = choice(before, *given)
        timed[users, depth, "free"] = free(logits, found.scores[:, : logits.shape[1]])
        found, _ = select(catalog.table, None, *given)
        layers = beams.reorder(state, layers, found.parents, beam, bucket(depth + 1))
        own = jax.tree.map(jnp.copy, layers)  # a step uses up what it is given
        timed[users, depth, "decoder"] = decoder(own, found.tokens, depth)
        logits, layers = beams.extend(generator, state, layers, found.tokens, depth)
    return timed


def fastest(timed: Calls, rounds: int) -> dict[tuple[Any, ...], float]:
    """The least seconds of each call, compiled before; they take turns, forth and back."""
    seconds = dict.fromkeys(timed, float("inf"))
    for nth in tqdm(range(rounds + 1), desc="rounds", leave=False):
        for key in reversed(timed) if nth % 2 else timed:
            started = time.perf_counter()
            jax.block_until_ready(timed[key]())
            if nth:
                seconds[key] = min(seconds[key], time.perf_counter() - started)
    return seconds


def table(result: dict[str, Any]) -> str:
    """The figures for a terminal, beside what is wanted of them."""
    load = " to ".join(f"{x:.1f}" for x in result["load_average"])
    lines = [
        f"a decoder of {result['parameters'] / 1e6:.0f} M parameters, {result['beam']} beams, "
        f"load average {load}",
        f"{'items':>10}{'nodes':>10}{'built, s':>10}{'memory, MB':>12}{'table, MB':>12}",
    ]
    for row in result["tables"]:
        lines.append(
            f"{row['items']:10}{row['nodes']:10}{row['seconds']:10.2f}"
            f"{row['memory'] / 1e6:12.0f}{row['bytes'] / 1e6:12.0f}"
        )
    lines.append(f"wanted of a million: < {SECONDS:.0f} s, < {MEMORY / 1e6:.0f} MB")
    names = "users", "items", "depth", "fan"
    headings = "chosen, ms", "excluding", "free", "decoder", "masking"
    lines.append("".join(f"{x:>10}" for x in names) + "".join(f"{x:>12}" for x in headings))
    for row in result["rows"]:
        lines.append(
            "".join(f"{row[name]:10}" for name in names)
            + "".join(f"{row[name] * 1e3:12.2f}" for name in ("chosen", "some", "free", "decoder"))
            + f"{masking(row):12.1%}"
        )
    lines.append(f"wanted: masking ≤ {SHARE:.0%} of the decoder's step")
    return "\n".join(lines)


def masking(row: dict[str, Any]) -> float:
    """By how much of a decoder's step choosing takes longer than from the whole vocabulary."""
    return (row["chosen"] - row["free"]) / row["decoder"]


def main() -> None:
    asked = Build(**json.loads(sys.argv[1]))
    sequences = titles(asked.items, asked.vocab_size).tolist()
    jax.block_until_ready(jnp.zeros(1))  # starts the backend, which is no part of the table
    baseline, started = memory(), time.perf_counter()
    catalog = Catalog(sequences, asked.vocab_size)
    jax.block_until_ready(catalog.table)
    seconds = time.perf_counter() - started
    figures = {
        "items": asked.items,
        "nodes": len(catalog.table.token),
        "seconds": seconds,
        "memory": memory(peak=True) - baseline,
        "bytes": sum(x.nbytes for x in catalog.table),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
