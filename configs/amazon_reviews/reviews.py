"""User-LLM's systems on Amazon reviews, which write reviews too.

USER_LLM_DATA=... user-llm run configs/language_model/films.py
USER_LLM_DATA=... user-llm sweep configs/amazon_reviews/reviews.py --record

Two data sets: Musical Instruments of 2014, whose items have no titles, so that what comes next is
asked of the encoder alone; and a sample of 2023 over 24 categories. The decoder has read reviews of
both, but for those of the tests.
"""

from pathlib import Path
from typing import Any

from user_llm.cli import load_config
from user_llm.config import (
    CrossAttentionConfig,
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    Experiment,
    FinetuneConfig,
    OptimConfig,
    PerceiverConfig,
    PretrainConfig,
    StageConfig,
    Sweep,
    SystemConfig,
    Task,
    WarmupConfig,
    encoder_only,
)

RUNS = "runs/reviews"
LANGUAGE = load_config(str(Path(__file__).parents[1] / "language_model" / "films.py"))
DATA = {
    name: corpus.model_copy(update={"noun": "product"})
    for name, corpus in zip(
        ("instruments", "timelines"), LANGUAGE.language_model.corpora, strict=True
    )
}
TASKS: dict[str, dict[Task, float]] = {
    "instruments": {"rating_prediction": 0.3, "review_generation": 0.7},
    "timelines": {
        "next_item": 0.3,
        "favorite_category": 0.2,
        "rating_prediction": 0.2,
        "review_generation": 0.3,
    },
}
ENCODER = EncoderConfig(window=50, embed=64, layers=1, heads=1, mlp=128, gated=True, dropout=0.4)
CROSS = SystemConfig(
    perceiver=PerceiverConfig(latents=0), cross_attention=CrossAttentionConfig(every=1, heads=8)
)
TOLD = SystemConfig(streams=())
RATE = OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=20)


def encoder(name: str, data: DataConfig) -> Experiment:
    return encoder_only(
        name=f"{name}_encoder",
        data=data,
        encoder=ENCODER,
        pretrain=PretrainConfig(
            steps=400,
            batch_size=32,
            optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
            validate_every=50,
            checkpoint_every=50,
        ),
    )


def system(name: str, data: DataConfig, kind: str, system: SystemConfig) -> Experiment:
    """A system that is fine-tuned from the data set's encoder and the shared decoder."""
    asked = TASKS[name]
    return Experiment(
        name=f"{name}_{kind}",
        data=data,
        encoder=ENCODER,
        encoder_from=f"{RUNS}/{name}_encoder/seed-0",
        language_model=LANGUAGE.language_model.model_copy(
            update={"from_run": f"runs/{LANGUAGE.name}"}
        ),
        system=system,
        warmup=WarmupConfig(steps=0),
        align=StageConfig(steps=100 if "next_item" in asked else 0, batch_size=32, optim=RATE),
        finetune=FinetuneConfig(
            steps=200,
            batch_size=16,
            optim=RATE,
            tasks=asked,
            history=50,
            max_tokens=128,
            checkpoint_every=50,
        ),
        evaluation=EvaluationConfig(users=300, beam=20, baselines=("shuffled_memory",)),
    )


def sweep() -> Sweep:
    systems: dict[str, Any] = {
        "cross_attention": CROSS,
        "no_context": TOLD,
        "text_5": TOLD.model_copy(update={"text_history": 5}),
    }
    return Sweep(
        experiments=(
            *(encoder(name, data) for name, data in DATA.items()),
            *(
                system(name, data, kind, one)
                for name, data in DATA.items()
                for kind, one in systems.items()
            ),
        )
    )
