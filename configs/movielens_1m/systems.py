"""User-LLM's systems on MovieLens 1M, beside the same decoder with the history in its prompt.

USER_LLM_DATA=... user-llm run configs/language_model/films.py
USER_LLM_DATA=... user-llm sweep configs/movielens_1m/systems.py --record

Every system begins with the same encoder and the same decoder and learns from as many examples.
"""

from pathlib import Path

from user_llm.cli import load_config
from user_llm.config import (
    CrossAttentionConfig,
    EncoderConfig,
    EvaluationConfig,
    Experiment,
    FigureConfig,
    FinetuneConfig,
    OptimConfig,
    PerceiverConfig,
    PretrainConfig,
    StageConfig,
    Sweep,
    SystemConfig,
    WarmupConfig,
    encoder_only,
)

RUNS = "runs/systems"
LANGUAGE = load_config(str(Path(__file__).parents[1] / "language_model" / "films.py"))
ENCODER = EncoderConfig(window=200, embed=64, layers=2, heads=1, mlp=256, gated=True, dropout=0.2)
CROSS = SystemConfig(
    perceiver=PerceiverConfig(latents=0),  # one memory token per event
    cross_attention=CrossAttentionConfig(every=1, heads=8, gate=0.5),
)
TOLD = SystemConfig(streams=())  # the history in words, if at all
RATE = OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=20)


def encoder() -> Experiment:
    return encoder_only(
        name="encoder",
        data=LANGUAGE.data,
        encoder=ENCODER,
        pretrain=PretrainConfig(
            steps=1600,
            batch_size=32,
            optim=OptimConfig(learning_rate=1.5e-3, schedule="cosine", warmup_steps=50),
            validate_every=400,
            checkpoint_every=200,
        ),
    )


def system(name: str, system: SystemConfig, *, align: int = 0) -> Experiment:
    """A system that is fine-tuned from the shared encoder and decoder.

    In `align` steps before, the decoder learns to name what a state points at.
    """
    return Experiment(
        name=name,
        data=LANGUAGE.data,
        encoder=ENCODER,
        encoder_from=f"{RUNS}/encoder/seed-0",
        language_model=LANGUAGE.language_model.model_copy(
            update={"from_run": f"runs/{LANGUAGE.name}"}
        ),
        system=system,
        warmup=WarmupConfig(steps=0),
        align=StageConfig(steps=align, batch_size=64, optim=RATE, checkpoint_every=100),
        finetune=FinetuneConfig(
            steps=600,
            batch_size=32,
            optim=RATE,
            tasks={"next_item": 0.7, "future_favorite_category": 0.3},
            history=50,
            max_tokens=32,
            checkpoint_every=100,
        ),
        evaluation=EvaluationConfig(
            users=1000, beam=20, baselines=("shuffled_memory",), text_tokens=4000
        ),
    )


def told(name: str, events: int) -> Experiment:
    """A system without a memory, whose prompt spells the last events out."""
    return system(name, TOLD.model_copy(update={"text_history": events}))


def sweep() -> Sweep:
    return Sweep(
        experiments=(
            encoder(),
            system("cross_attention", CROSS, align=600),
            system("no_context", TOLD),
            told("text_10", 10),
            told("text_50", 50),
        ),
        figures=(
            FigureConfig(
                title="History in words",
                against="system.text_history",
                lines={"text": "text_*", "memory": "cross_attention"},
                label="events in the prompt",
            ),
        ),
    )
