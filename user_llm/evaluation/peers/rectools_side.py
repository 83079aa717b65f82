"""RecTools' encoders: trained on a run's training events, then asked for every user's best items.

Run by file, with the Python of RecTools' own environment (`pip install "rectools[torch]==0.19.0"`):
nothing of this project is imported. What it is asked is a JSON object, the fields of `Asked`.
"""

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel


@dataclass(frozen=True)
class Asked:
    """Which model, of which size, and how long it learns."""

    data: str  # an .npz: `item` and `timestamp` [N], `offsets`, `validation` and `test` [U]
    answers: str  # where the best items [U, K] of the test go, an .npz like it
    kind: str  # "sasrec" or "hstu"
    window: int
    embed: int
    layers: int
    heads: int
    dropout: float
    similarity: str  # "cosine" or "dot"
    temperature: float
    time_bias: bool
    learning_rate: float
    negatives: int  # for each target
    epochs: int  # at most
    every: int  # epochs between validations
    patience: int  # validations without a gain that end it
    seed: int
    threads: int
    best: int  # items a user


def interactions(arrays: Any, stops: np.ndarray) -> pd.DataFrame:
    """Every user's events before those stops, in their order."""
    owner = np.repeat(np.arange(len(stops)), np.diff(arrays["offsets"]))
    shown = np.arange(len(owner)) < stops[owner]
    # Nanoseconds keep the order of events of one second, and change no difference between seconds.
    moments = pd.to_datetime(arrays["timestamp"], unit="s") + pd.to_timedelta(
        np.arange(len(owner)) - arrays["offsets"][owner], unit="ns"
    )
    columns = {Columns.User: owner, Columns.Item: arrays["item"], Columns.Datetime: moments}
    return pd.DataFrame(columns | {Columns.Weight: 1.0})[shown]


def make_model(asked: Asked) -> HSTUModel | SASRecModel:
    """The model of that size, with the published loss."""

    def trainer() -> Trainer:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        epochs = {"max_epochs": asked.every, "min_epochs": asked.every}
        return Trainer(accelerator="cpu", enable_model_summary=False, **epochs, **quiet)

    sizes = {
        "n_blocks": asked.layers,
        "n_heads": asked.heads,
        "n_factors": asked.embed,
        "session_max_len": asked.window,
        "dropout_rate": asked.dropout,
        "lr": asked.learning_rate,
        "loss": "sampled_softmax",
        "n_negatives": asked.negatives,
        "similarity_module_kwargs": {"distance": asked.similarity},
        "lightning_module_kwargs": {"logits_t": asked.temperature},
        "get_trainer_func": trainer,
    }
    if asked.kind == "sasrec":
        return SASRecModel(**sizes)
    return HSTUModel(relative_time_attention=asked.time_bias, **sizes)


def best_items(
    model: HSTUModel | SASRecModel, asked: Asked, arrays: Any, targets: np.ndarray
) -> tuple[np.ndarray, tuple[float, float]]:
    """The items [U, K] that a model recommends each user for its target, and seconds and CPU time.

    Behind the last item of a user is -1. Timed is `recommend` alone, with the data set in memory.
    """
    users = np.arange(len(targets))
    context = None
    if model.require_recommend_context:
        moments = pd.to_datetime(arrays["timestamp"][targets], unit="s")
        context = pd.DataFrame({Columns.User: users, Columns.Datetime: moments})
    dataset = Dataset.construct(interactions(arrays, targets))
    wall, cpu = time.perf_counter(), time.process_time()
    table = model.recommend(users, dataset, asked.best, filter_viewed=True, context=context)
    spent = time.perf_counter() - wall, time.process_time() - cpu
    found = np.full((len(users), asked.best), -1)
    found[table[Columns.User], table[Columns.Rank] - 1] = table[Columns.Item]
    return found, spent


def ndcg(found: np.ndarray, wanted: np.ndarray) -> float:
    """Of one wanted item a user."""
    hit = found == wanted[:, None]
    return float((hit / np.log2(np.arange(found.shape[1]) + 2)).sum(1).mean())


def main() -> None:
    asked = Asked(**json.loads(sys.argv[1]))
    torch.set_num_threads(asked.threads)
    seed_everything(asked.seed)
    with np.load(asked.data) as file:
        arrays = dict(file)
    model, item, test = make_model(asked), arrays["item"], arrays["test"]
    training = Dataset.construct(interactions(arrays, arrays["validation"]))
    best, spent, figures, started = -1.0, [], {}, time.perf_counter()
    for epoch in range(asked.every, asked.epochs + 1, asked.every):
        model.fit_partial(training, min_epochs=asked.every, max_epochs=asked.every)
        found, took = best_items(model, asked, arrays, arrays["validation"])
        spent.append(took)
        score, seconds = ndcg(found, item[arrays["validation"]]), time.perf_counter() - started
        print(f"epoch {epoch}: NDCG {score:.4f}, {seconds:.0f} s", file=sys.stderr, flush=True)
        if score > best:
            best = score
            answers, took = best_items(model, asked, arrays, test)
            spent.append(took)
            np.savez(asked.answers, answers=answers)
            figures = {"epoch": epoch}
        elif epoch - figures["epoch"] >= asked.patience * asked.every:
            break
    seconds, cpu_seconds = map(min, zip(*spent, strict=True))
    figures |= {"seconds": seconds, "cpu_seconds": cpu_seconds}
    print(json.dumps(figures | {"training_seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
