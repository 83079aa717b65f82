"""Gemma 3 1B that reads a user's timeline, trained whole on 16 chips of v5e.

user-llm launch check configs/pods/gemma3_1b.py --topology v5e:4x4

Activations are bfloat16, weights and both moments of Adam float32. Rows have 2,048 tokens and 200
events. To train, name a folder with Gemma's weights in --language-model.weights, and your own
timelines in --data.name; the embedded world stands in for them, whose shapes do not matter here.
"""

from user_llm.config import (
    CrossAttentionConfig,
    DataConfig,
    Experiment,
    FinetuneConfig,
    LanguageModelConfig,
    MeshConfig,
    OptimConfig,
    PerceiverConfig,
    PretrainConfig,
    SystemConfig,
    WarmupConfig,
)
from user_llm.models.zoo import decoder, encoder


def config() -> Experiment:
    return Experiment(
        name="gemma3_1b",
        mesh=MeshConfig(data=4, fsdp=4),
        data=DataConfig(name="world"),
        encoder=encoder("base", window=200, dtype="bfloat16"),
        language_model=LanguageModelConfig(
            architecture=decoder("gemma3_1b", dtype="bfloat16", remat="full")
        ),
        system=SystemConfig(
            perceiver=PerceiverConfig(latents=16, layers=2, heads=8),
            cross_attention=CrossAttentionConfig(every=2, heads=4, kv_heads=1),
        ),
        pretrain=PretrainConfig(
            steps=10_000,
            batch_size=512,
            optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=500),
        ),
        warmup=WarmupConfig(steps=0),
        finetune=FinetuneConfig(
            steps=2_000,
            batch_size=64,
            optim=OptimConfig(learning_rate=2e-5, schedule="cosine", warmup_steps=100),
            tasks={"review_generation": 1.0},
            history=200,
            max_tokens=2048,
        ),
    )
