"""A run's encoder beside RecTools' of the same size: what both learn from one training set."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import numpy as np
from flax import nnx
from tqdm.auto import tqdm

from user_llm import trained
from user_llm.config import EncoderConfig, MeshConfig
from user_llm.data import movielens_shape
from user_llm.data.dataset import Dataset
from user_llm.data.features import KNOWN
from user_llm.data.movielens_shape import Shape
from user_llm.data.timelines import user_of
from user_llm.evaluation import records
from user_llm.evaluation.encoder_side import encoder_config
from user_llm.evaluation.peers.work import Work, cores
from user_llm.files import write_atomically
from user_llm.inference.next_item import encoder_ranker
from user_llm.metrics import NDCG_DEPTH, Ranking
from user_llm.models.encoders import AutoregressiveEncoder
from user_llm.runs import Run
from user_llm.sharding import make_mesh

PEER = Path(__file__).with_name("peers") / "rectools_side.py"
NEGATIVES = 128  # for each target, as in the published recipe of HSTU
TIMES = 2  # that our side is timed, of which the best counts; RecTools' is no fewer times
SPENT = ("seconds", "cpu_seconds")
EVERY, PATIENCE = 2, 5  # epochs between validations, and of those how many without a gain
# What RecTools' encoder has from the config of ours.
SAME = {"window", "embed", "layers", "heads", "dropout", "similarity", "temperature", "time_bias"}
Figures = dict[str, Any]

# Of each user, whose mean `Ranking` computes; the error of a difference needs them one by one.
GAINS = {
    "recall_at_10": lambda ranks: (ranks <= 10).astype(float),
    "ndcg_at_10": lambda ranks: np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0),
}


def compare(run: Run, python: str, *, epochs: int = 100) -> Figures:
    """Both encoders' figures on every test user, written to `rectools.json` in the run's folder.

    RecTools' encoder is an HSTU if the run's is one, else a SASRec; it stops by validation as ours
    does. Recommending is the ten best of the whole catalogue, but for what a user has seen.

    Args:
      python: the interpreter of an environment that has RecTools.
      epochs: of RecTools' training, at most.

    Raises:
      ValueError: RecTools cannot be asked the same, or failed.
    """
    data, split, encoder = run.dataset, run.split, run.experiment.encoder
    users = len(data.users)
    if not len(split.validation) == len(split.test) == users:
        raise ValueError(
            f"{run.folder} asks {len(split.test)} of {users} users; RecTools is compared where the "
            "last two events of each are asked for, and no users and no items are held out"
        )
    if epochs < 1:
        raise ValueError(f"--epochs {epochs} trains nothing; give 1 or more")
    if encoder.kind == "hstu" and encoder.time_bias and not encoder.query_time:
        raise ValueError(
            "RecTools' HSTU knows when it is asked; set encoder.query_time, as it does"
        )
    if repeats(data, split.test):
        raise ValueError("RecTools never recommends what a user has seen; some tests ask for it")
    ranker = encoder_ranker(run.make_encoder, data, split.test, mesh=run.mesh)
    params, recommender = trained.encoder(run), trained.recommender(run)
    ranks = ranker(params)
    ours = {
        "system": "user_llm",
        **figures(ranks),
        **spent(lambda: recommender.best(data, np.arange(users), NDCG_DEPTH)),
        "evaluation": spent(lambda: ranker(params)),
    }
    rate, seed = run.experiment.pretrain.optim.learning_rate, run.experiment.seed
    asked = peer_config(encoder, epochs=epochs, learning_rate=rate, seed=seed)
    peer, answers = call(python, asked, data, split.validation, split.test)
    theirs = ranks_of(answers, data.item[split.test])
    rows = [ours, {"system": f"RecTools {asked['kind']}", **figures(theirs), **peer}]
    gains = {name: gain(ranks) - gain(theirs) for name, gain in GAINS.items()}
    result = {
        "experiment": run.experiment.name,
        **records.provenance(),
        "users": users,
        "items": len(data.items.ids) - KNOWN,
        "asked": asked,
        "rows": rows,
        # Of the same users' differences, so their standard error is that of pairs.
        "difference": {
            name: [float(x.mean()), float(x.std() / len(x) ** 0.5)] for name, x in gains.items()
        },
    }
    write_atomically(run.folder / "rectools.json", json.dumps(result, indent=1))
    return result


def evaluation(python: str, work: Work, shape: Shape) -> dict[str, Figures]:
    """What it takes to evaluate encoders of that size, which for RecTools is to recommend.

    Each side is asked for the last event of every made-up timeline. Neither has learned anything to
    speak of, and it takes no less when they have.

    Raises:
      ValueError: RecTools cannot be run, or failed.
    """
    items, offsets = movielens_shape.timelines(shape)
    data, config = movielens_shape.dataset(items, offsets, shape.items), encoder_config(work)
    targets = offsets[1:] - 1

    def make_encoder(rngs):
        return AutoregressiveEncoder(config, data.inputs, rngs=rngs)

    ranker = encoder_ranker(make_encoder, data, targets, mesh=make_mesh(MeshConfig()))
    params = nnx.to_pure_dict(nnx.state(make_encoder(nnx.Rngs(0))))
    asked = peer_config(config, epochs=1, learning_rate=work.learning_rate, seed=0)
    peer, _ = call(python, asked, data, targets - 1, targets)
    return {"user_llm": spent(lambda: ranker(params)), "RecTools": peer}


def peer_config(
    encoder: EncoderConfig, *, epochs: int, learning_rate: float, seed: int
) -> dict[str, Any]:
    """What RecTools is told to train: an encoder of the same size."""
    return {
        "kind": "hstu" if encoder.kind == "hstu" else "sasrec",
        **encoder.model_dump(include=SAME),
        "learning_rate": learning_rate,
        "negatives": NEGATIVES,
        "epochs": epochs,
        "every": min(EVERY, epochs),
        "patience": PATIENCE,
        "seed": seed,
        "threads": cores(),
        "best": NDCG_DEPTH,
    }


def figures(ranks: np.ndarray) -> Figures:
    found = Ranking.from_ranks(ranks).compute()
    return {name: found[name] for name in GAINS}


def repeats(data: Dataset, targets: np.ndarray) -> bool:
    """Whether an item that is asked for has been in its timeline before."""
    starts = data.offsets[user_of(targets, data.offsets)]
    before = zip(starts.tolist(), targets.tolist(), strict=True)
    return any((data.item[a:b] == data.item[b]).any() for a, b in before)


def ranks_of(answers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted item stands in its row of answers, from 1; one more than all if nowhere."""
    hit = answers == wanted[:, None]
    return np.where(hit.any(1), hit.argmax(1), answers.shape[1]) + 1


def spent(work: Callable[[], Any]) -> Figures:
    """The least that it takes of some times, of which the first one compiles."""
    found = []
    for _ in range(1 + TIMES):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return dict(zip(SPENT, map(min, zip(*found[1:], strict=True)), strict=True))


def call(
    python: str, asked: Figures, data: Dataset, validation: np.ndarray, test: np.ndarray
) -> tuple[Figures, np.ndarray]:
    """What RecTools' process says, and what it answers at the test events [N, K].

    It learns from the events before those of validation, and tells of its epochs while it runs.

    Raises:
      ValueError: it failed, or there is no such interpreter.
    """
    with TemporaryDirectory() as place, TemporaryFile("w+") as out:
        events, answers = Path(place, "events.npz"), Path(place, "answers.npz")
        np.savez(
            events,
            item=data.item,
            timestamp=data.times,
            offsets=data.offsets,
            validation=validation,
            test=test,
        )
        told = json.dumps(asked | {"data": str(events), "answers": str(answers)})
        try:
            process = subprocess.Popen(
                [python, str(PEER), told], stdout=out, stderr=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise ValueError(
                f"{python} cannot be run ({error}); give that of an environment with "
                'RecTools (pip install "rectools[torch]==0.19.0")'
            ) from error
        with process:
            said = []
            for line in process.stderr or ():
                said.append(line)
                if line.startswith("epoch "):
                    tqdm.write(f"RecTools {line.rstrip()}")
        if process.returncode:
            raise ValueError(f"{PEER.name} failed:\n{''.join(said[-20:]).strip()}")
        out.seek(0)
        with np.load(answers) as file:
            return json.loads(out.read().splitlines()[-1]), file["answers"]


def table(result: Figures) -> str:
    """The rows for a terminal, the difference with its standard error, and the ratio of speeds."""
    ours, theirs = result["rows"]
    lines = [
        f"{result['users']} users, {result['items']} items; RecTools' best of epoch "
        f"{theirs['epoch']}, {theirs['training_seconds']:.0f} s with validations",
        f"{'':22}{'recall@10':>16}{'ndcg@10':>18}{'users/s':>10}{'/CPU-s':>10}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['system']:22}{row['recall_at_10']:16.4f}{row['ndcg_at_10']:18.4f}"
            + "".join(f"{result['users'] / row[name]:10.0f}" for name in SPENT)
        )
    apart = "".join(f"{mean:+10.4f} ±{error:.4f}" for mean, error in result["difference"].values())
    lines += [
        f"{'difference, ratio':22}{apart:>34}{ratios(theirs, ours)}",
        # A rank for each user is what an evaluation wants; RecTools has it from the ten best.
        f"{'evaluation, ratio':56}{ratios(theirs, ours['evaluation'])}",
    ]
    return "\n".join(lines)


def ratios(theirs: Figures, ours: Figures) -> str:
    return "".join(f"{theirs[name] / ours[name]:9.1f}×" for name in SPENT)
