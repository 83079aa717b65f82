"""The whole path in minutes, offline: the embedded world, a small encoder, a tiny decoder."""

import time
from pathlib import Path

from user_llm import commands
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

NEXT = """
What now?
  user-llm data inspect {data}
      the timelines that were read here
  user-llm run configs/quickstart.py --system.fusion soft_prompt --run-dir runs/soft_prompt
      the same with the memory as a soft prompt (in a checkout)
  user-llm data build table --source YOUR_FOLDER
      your own timelines; the README says what lies in the folder
"""


def config() -> Experiment:
    """The experiment of the quickstart."""
    return Experiment(
        name="quickstart",
        data=DataConfig(name="world", users=2000),
        encoder=EncoderConfig(
            window=100,
            embed=64,
            feature_embed=16,
            layers=2,
            heads=1,
            mlp=128,
            dropout=0.1,
            temperature=0.07,
        ),
        language_model=LanguageModelConfig(
            architecture=DecoderConfig(
                vocab_size=1024,
                hidden_size=96,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=3,
                num_key_value_heads=3,
                head_dim=32,
                max_position_embeddings=512,
            )
        ),
        system=SystemConfig(
            perceiver=PerceiverConfig(latents=8, layers=2, heads=4),
            cross_attention=CrossAttentionConfig(every=1, heads=3, gate=0.5),
        ),
        pretrain=PretrainConfig(
            steps=250,
            batch_size=32,
            optim=OptimConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=20),
            validate_every=100,
        ),
        warmup=WarmupConfig(
            steps=120,
            batch_size=32,
            optim=OptimConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=20),
        ),
        align=StageConfig(
            steps=120,
            batch_size=160,
            optim=OptimConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=20),
        ),
        finetune=FinetuneConfig(
            steps=300,
            batch_size=48,
            optim=OptimConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=20),
            tasks={"next_item": 0.4, "favorite_category": 0.4, "review_generation": 0.2},
            history=50,
            max_tokens=40,
        ),
        evaluation=EvaluationConfig(users=500, text_history=4, text_tokens=80, max_new_tokens=24),
    )


def main(folder: Path) -> None:
    """Builds, trains, judges, times and reports, then says what to do next."""
    started = time.monotonic()
    commands.run(config(), folder, "run")
    print(f"done in {time.monotonic() - started:.0f} s")
    print(NEXT.format(data=commands.Run.open(folder).data_folder))
