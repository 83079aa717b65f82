"""A tiny experiment on a tiny world. As a program: pre-trains it in a folder, a step at a time.

`python runs_made.py RUN_DIR DATA_DIR STEPS [--impatient]`
"""

import sys
import time
from pathlib import Path

import numpy as np
import timelines_made
from jax.sharding import Mesh

from user_llm import processes, stages
from user_llm.config import (
    CrossAttentionConfig,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    EvaluationConfig,
    Experiment,
    FinetuneConfig,
    LanguageModelConfig,
    OptimConfig,
    PerceiverConfig,
    PretrainConfig,
    StageConfig,
    SystemConfig,
    WarmupConfig,
)
from user_llm.data import pipeline
from user_llm.data.dataset import clock_columns
from user_llm.files import to_path
from user_llm.runs import Run

OPTIM = OptimConfig(learning_rate=1e-2)
EXPERIMENT = Experiment(
    name="tiny",
    data=DataConfig(users=60),
    encoder=EncoderConfig(window=16, embed=8, feature_embed=4, layers=1, heads=1, mlp=8),
    language_model=LanguageModelConfig(
        architecture=DecoderConfig(
            vocab_size=300,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=96,
        )
    ),
    system=SystemConfig(
        perceiver=PerceiverConfig(latents=2, layers=1, heads=1),
        cross_attention=CrossAttentionConfig(every=2, heads=1),
    ),
    pretrain=PretrainConfig(
        steps=8, batch_size=8, optim=OPTIM, log_every=1, validate_every=7, checkpoint_every=3
    ),
    warmup=WarmupConfig(steps=2, batch_size=8, optim=OPTIM),
    align=StageConfig(steps=2, batch_size=8, optim=OPTIM),
    finetune=FinetuneConfig(
        steps=2, batch_size=8, optim=OPTIM, validate_every=1, history=8, max_tokens=32
    ),
    evaluation=EvaluationConfig(users=8, batch_size=8, beam=3, max_new_tokens=8, text_history=2),
)
HELD_OUT = DataConfig(name="table", held_out_items=0.25, held_out_users=0.2, seed=3)
PACE = 0.1  # seconds that a step takes at least


def held_out_run(folder: Path, mesh: Mesh) -> Run:
    """A run that holds users and items out, on a data set made by hand; its stages are to train."""
    rng = np.random.default_rng(0)
    timelines = [rng.integers(20, size=n).tolist() for n in rng.integers(3, 30, 40)]
    run = Run(EXPERIMENT.model_copy(update={"data": HELD_OUT}), folder)
    run.dataset, run.mesh = timelines_made.dataset(timelines, items=20), mesh
    run.dataset.times[:] = np.sort(rng.integers(10**6, size=len(run.dataset.times)))
    run.dataset.features.update(clock_columns(run.dataset.times, run.dataset.offsets))
    return run


def slowly(batches):
    """So that there is time to be killed in."""

    def paced(*arguments, **options):
        for batch in batches(*arguments, **options):
            time.sleep(PACE)
            yield batch

    return paced


if __name__ == "__main__":
    folder, data_dir, steps = to_path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    processes.join()
    pipeline.batches = slowly(pipeline.batches)
    patience = {"stuck_after": 20.0} if "--impatient" in sys.argv else {}
    pretrain = EXPERIMENT.pretrain.model_copy(update={"steps": steps} | patience)
    stages.pretrain(Run(EXPERIMENT.model_copy(update={"pretrain": pretrain}), folder, data_dir))
