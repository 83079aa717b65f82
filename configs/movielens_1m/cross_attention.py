"""A decoder of 3 M parameters reads MovieLens 1M users by cross-attention and names the next film.

USER_LLM_DATA=... user-llm run configs/movielens_1m/encoder.py --seeds 3
USER_LLM_DATA=... user-llm run configs/movielens_1m/cross_attention.py --record

1 CPU core, 39 minutes beside the encoder's. Test, 2,000 users: recall_at_10 0.167 (one seed),
popularity 0.035, with another user's memory 0.019. The encoder was then a smaller one, with a test
recall_at_10 of 0.289; see the commit in `results.json`.
"""

from pathlib import Path

from user_llm.cli import load_config
from user_llm.config import (
    CrossAttentionConfig,
    EvaluationConfig,
    Experiment,
    FinetuneConfig,
    LanguageModelConfig,
    OptimConfig,
    PerceiverConfig,
    StageConfig,
    SystemConfig,
    WarmupConfig,
)


def config() -> Experiment:
    encoder = load_config(str(Path(__file__).with_name("encoder.py")))
    return encoder.model_copy(
        update={
            "name": "movielens_1m_cross_attention",
            "encoder_from": f"runs/{encoder.name}/seed-0",
            "language_model": LanguageModelConfig(weights="models/stories3M"),
            "system": SystemConfig(
                perceiver=PerceiverConfig(latents=0),  # one memory token per event
                cross_attention=CrossAttentionConfig(every=1, heads=6, gate=0.5),
            ),
            "warmup": WarmupConfig(
                steps=350,
                batch_size=64,
                optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=20),
            ),
            "align": StageConfig(
                steps=1000,
                batch_size=64,
                optim=OptimConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=20),
                checkpoint_every=100,
            ),
            "finetune": FinetuneConfig(
                steps=400,
                batch_size=64,
                optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=20),
                tasks={"next_item": 1.0},
                history=50,
                max_tokens=28,  # 9 of 10 titles fit whole; the warm-up has taught their ends
                checkpoint_every=100,
            ),
            "evaluation": EvaluationConfig(users=2000, beam=20, baselines=("shuffled_memory",)),
        }
    )
