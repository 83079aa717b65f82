"""The verbs of `benchmark`."""

import argparse
from pathlib import Path

from user_llm.grammar.options import RUN, Verbs, add, count, group, local, run

ROUNDS = "processes of each side; of each figure the best one counts"
RECTOOLS = "of an environment in which RecTools is installed"


def benchmark(verbs: Verbs) -> None:
    benchmarks = group(verbs, "benchmark", "time what is here beside its peers")
    for add_to in (
        _inference,
        _rectools,
        _encoder,
        _decode,
        _catalog,
        _difference,
        _training,
        _embedding,
        _serving,
        _int8,
    ):
        add_to(benchmarks)


def _inference(verbs: Verbs) -> None:
    sub = _measured(verbs, "inference", "tell what a memory saves beside text")
    told = "whose system is measured; without it, ones of the published shape"
    sub.add_argument("run", type=run, nargs="?", metavar="RUN", help=told)
    count(sub, "--rounds", 2, ROUNDS)
    told = (
        "3m, 100m, or shapes that `user-llm zoo sizes` lists (default: 3m 100m llama3_1b llama3_8b)"
    )
    sub.add_argument("--decoder", nargs="+", metavar="NAME", help=told)
    told = "events of a user (default: 25 50 100 200 400; of a run 10 25 50 100 200)"
    sub.add_argument("--history", dest="histories", type=int, nargs="+", metavar="N", help=told)
    _recorded(sub)


def _rectools(verbs: Verbs) -> None:
    sub = add(verbs, "benchmark rectools", "train RecTools' encoder beside a run's")
    sub.add_argument("folder", type=run, metavar="RUN", help=RUN)
    sub.add_argument("--python", required=True, metavar="PYTHON", help=RECTOOLS)
    count(sub, "--epochs", 100, "of RecTools' training at most")


def _encoder(verbs: Verbs) -> None:
    sub = _measured(verbs, "encoder", "time an encoder's training")
    count(sub, "--steps", 24, "that each process is timed for; 47 are an epoch")
    count(sub, "--rounds", 3, ROUNDS)
    sub.add_argument("--rectools", metavar="PYTHON", help=f"{RECTOOLS}: evaluates beside it too")


def _decode(verbs: Verbs) -> None:
    sub = _measured(verbs, "decode", "time generation beside transformers")
    count(sub, "--rounds", 3, ROUNDS)
    told = "a shape that `user-llm zoo sizes` lists (default: a Llama of 134 M parameters)"
    sub.add_argument("--decoder", metavar="NAME", help=told)
    _recorded(sub)


def _catalog(verbs: Verbs) -> None:
    sub = _measured(verbs, "catalog", "time decoding that names items alone")
    count(sub, "--rounds", 15, "in which each step is timed; the fastest one counts")
    _recorded(sub)


def _difference(verbs: Verbs) -> None:
    sub = _measured(verbs, "difference", "time training with differences")
    count(sub, "--rounds", 15, "steps of each system; the fastest one counts")
    _recorded(sub)


def _training(verbs: Verbs) -> None:
    sub = _measured(verbs, "training", "time a decoder's training")
    count(sub, "--steps", 8, "that each process is timed for; of them the middle one counts")
    count(sub, "--rounds", 2, ROUNDS)
    told = "3m, 134m, or shapes that `user-llm zoo sizes` lists (default: 3m 134m)"
    sub.add_argument("--decoder", nargs="+", metavar="NAME", help=told)
    _recorded(sub)


def _embedding(verbs: Verbs) -> None:
    sub = _measured(verbs, "embedding", "time and kill `embed` over a crowd")
    count(sub, "--users", 1_000_000, "whose timelines are of 5 to 50 events")
    _recorded(sub)


def _serving(verbs: Verbs) -> None:
    sub = _measured(verbs, "serving", "load `serve`, and tell it what happens")
    count(sub, "--rounds", 2, "whose answers are put together")
    told = "3m or 134m (default: both, of 3 and 134 M)"
    sub.add_argument("--decoder", nargs="+", metavar="NAME", help=told)
    _recorded(sub)


def _int8(verbs: Verbs) -> None:
    sub = _measured(verbs, "int8", "tell what a decoder loses in int8")
    sub.add_argument("decoder", type=local, metavar="FOLDER", help="a decoder with its tokenizer")
    sub.add_argument("--text", type=local, required=True, metavar="FILE", help="to be foretold")


def _measured(verbs: Verbs, name: str, text: str) -> argparse.ArgumentParser:
    """A benchmark with a folder for its figures."""
    sub = add(verbs, f"benchmark {name}", text)
    told = "where the figures are written (default: %(default)s)"
    folder = Path(f"runs/benchmark_{name}")
    sub.add_argument("--run-dir", dest="folder", type=local, default=folder, help=told)
    return sub


def _recorded(sub: argparse.ArgumentParser) -> None:
    told = "adds the figures to the results.json there, such as configs/benchmarks"
    sub.add_argument("--record", type=local, metavar="DIR", help=told)
