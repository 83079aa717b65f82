"""The stages of a run: the encoder learns users, the decoder words, and then one reads the other."""

from functools import partial

import numpy as np

from user_llm.data import pipeline, timelines
from user_llm.evaluation.metrics import Ranking
from user_llm.evaluation.next_item import encoder_ranker
from user_llm.runs import Run
from user_llm.training import losses
from user_llm.training.loop import Params, Stage, fit

VALIDATION_USERS = 2048  # of whom a stage's progress is judged


def pretrain(run: Run) -> Params:
    """Trains the encoder on every training event; the best epoch by validation NDCG@10."""
    experiment, data, split = run.experiment, run.dataset, run.split
    config, window = experiment.pretrain, experiment.encoder.window
    ranges = timelines.windows(data.offsets[:-1], split.train_stop, window)
    source = pipeline.PackedTimelines(data, *timelines.pack(ranges, window))
    targets = sample(split.validation, VALIDATION_USERS)
    ranks = encoder_ranker(run.make_encoder, data, targets, mesh=run.mesh)

    def validate(params: Params) -> dict[str, float]:
        figures = Ranking.from_ranks(ranks(params)).compute()
        return {"validation/ndcg_at_10": figures["ndcg_at_10"]} | {
            f"validation/{name}": value for name, value in figures.items()
        }

    stage = Stage(
        config=config,
        make_model=run.make_encoder,
        loss=losses.next_event,
        batches=partial(batches, run, source, config),
        validate=validate,
    )
    return train(run, stage, "pretrain")


def sample(targets: np.ndarray, size: int) -> np.ndarray:
    """At most `size` of the targets, always the same ones, in their order."""
    chosen = np.random.default_rng(0).permutation(len(targets))[:size]
    return targets[np.sort(chosen)]


def batches(run: Run, source: pipeline.Source, config, start: int):
    return pipeline.batches(
        source,
        batch_size=config.batch_size,
        steps=config.steps,
        seed=run.experiment.seed,
        mesh=run.mesh,
        start=start,
        workers=config.workers,
    )


def train(run: Run, stage: Stage, name: str) -> Params:
    return fit(
        stage,
        folder=run.folder / name,
        mesh=run.mesh,
        seed=run.experiment.seed,
        config=run.config,
        name=name,
    )
