"""What the verbs of `user-llm benchmark` do."""

import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from user_llm.evaluation import (
    catalog_benchmark,
    decode_benchmark,
    difference_benchmark,
    embedding_benchmark,
    encoder_benchmark,
    inference_benchmark,
    inference_subject,
    inference_table,
    records,
    training_benchmark,
)
from user_llm.evaluation import int8 as int8_loss
from user_llm.evaluation import rectools as rectools_peer
from user_llm.files import AnyPath
from user_llm.runs import Run


def inference(
    run: AnyPath | None,
    folder: Path,
    decoder: list[str] | None,
    histories: list[int] | None,
    rounds: int,
    record: Path | None,
) -> None:
    """Counts and times what a memory costs beside the text prompt and prints the tables.

    Of a run, the figures are written to its folder.

    Raises:
      ValueError: both a run and decoders are given.
    """
    if run and decoder:
        raise ValueError(f"{run} has its own decoder; leave out --decoder, or the run")
    started = time.perf_counter()
    decoders = decoder or inference_benchmark.ASKED
    opened = Run.open(run) if run else None
    result = inference_benchmark.benchmark(
        run or folder, run=opened, decoders=decoders, histories=histories, rounds=rounds
    )
    tell(inference_table, result, record, started)


def encoder(folder: Path, steps: int, rounds: int, rectools: str | None) -> None:
    """Times an encoder's training beside its peers and prints the table."""
    result = encoder_benchmark.benchmark(
        folder, steps=steps, rounds=rounds, rectools_python=rectools
    )
    print(encoder_benchmark.table(result))


def decode(folder: Path, decoder: str | None, rounds: int, record: Path | None) -> None:
    """Times generation beside transformers and prints the table."""
    started = time.perf_counter()
    shape = decoder or decode_benchmark.LLAMA_134M
    result = decode_benchmark.benchmark(folder, decoder=shape, rounds=rounds)
    tell(decode_benchmark, result, record, started)


def catalog(folder: Path, rounds: int, record: Path | None) -> None:
    """Times decoding that can only name items, by their number, and prints the table."""
    started = time.perf_counter()
    result = catalog_benchmark.benchmark(folder, rounds=rounds)
    tell(catalog_benchmark, result, record, started)


def difference(folder: Path, rounds: int, record: Path | None) -> None:
    """Times a step of training with differences beside one without and prints the table."""
    started = time.perf_counter()
    shape = inference_subject.published(inference_benchmark.DECODERS["3m"])
    result = difference_benchmark.benchmark(folder, shape, rounds=rounds)
    tell(difference_benchmark, result, record, started)


def training(
    folder: Path, decoder: list[str] | None, steps: int, rounds: int, record: Path | None
) -> None:
    """Times a decoder's training, with users and without, beside transformers; prints the table."""
    started = time.perf_counter()
    decoders = decoder or tuple(training_benchmark.DECODERS)
    result = training_benchmark.benchmark(folder, decoders=decoders, steps=steps, rounds=rounds)
    tell(training_benchmark, result, record, started)


def embedding(folder: Path, users: int, record: Path | None) -> None:
    """Times and kills `embed` over a crowd of users and prints the figures."""
    started = time.perf_counter()
    result = embedding_benchmark.benchmark(folder, users=users)
    tell(embedding_benchmark, result, record, started)


def serving(folder: Path, decoder: list[str] | None, rounds: int, record: Path | None) -> None:
    """Loads a server, tells it what happens to users, and prints the tables.

    Raises:
      ValueError: what that takes is not installed.
    """
    needed = ("cachetools", "fastapi", "httpx", "openai", "torch", "uvicorn")
    if missing := [name for name in needed if not find_spec(name)]:
        raise ValueError(f"{', '.join(missing)} missing; pip install 'user-llm[test]'")
    from user_llm.evaluation import serving_benchmark

    started = time.perf_counter()
    decoders = decoder or tuple(serving_benchmark.DECODERS)
    result = serving_benchmark.benchmark(folder, decoders=decoders, rounds=rounds)
    tell(serving_benchmark, result, record, started)


def int8(decoder: Path, text: Path, folder: Path) -> None:
    """Judges a decoder in int8 on a text and prints the table."""
    print(int8_loss.table(int8_loss.loss(decoder, text, folder)))


def rectools(folder: AnyPath, python: str, epochs: int) -> None:
    """Trains RecTools' encoder beside a run's and prints the table."""
    print(rectools_peer.table(rectools_peer.compare(Run.open(folder), python, epochs=epochs)))


def tell(measured: Any, result: dict, record: Path | None, started: float) -> None:
    """Prints the table of what a module `measured`, and keeps its figures if asked."""
    print(measured.table(result))
    if record is not None:
        keep(result, measured.metrics(result), record, time.perf_counter() - started)


def keep(result: dict, figures: dict[str, dict[str, float]], folder: Path, seconds: float) -> None:
    """Adds a benchmark's figures, a record for each run, to the `results.json` of a folder."""
    told = ("commit", "date", "device", "dataset", "protocol")
    for run, metrics in figures.items():
        record = records.Record(
            run=run,
            config="",
            command=" ".join(["user-llm", *sys.argv[1:]]),
            seconds=round(seconds, 1),
            seed=0,
            metrics=metrics,
            **{name: result[name] for name in told},
        )
        records.add(record, folder)
