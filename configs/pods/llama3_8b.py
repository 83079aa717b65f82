"""Llama 3 8B that reads a user's timeline, trained whole: 1,024 chips of v5p, or 256 of v5e.

user-llm launch check configs/pods/llama3_8b.py --topology v5p:8x8x16

On v5e:16x16 with --mesh.data 1 --mesh.fsdp 256 --finetune.batch-size 256
--language-model.architecture.remat full.

Activations are bfloat16, weights and both moments of Adam float32. Rows have 2,048 tokens and 200
events. To train, name a folder with Llama 3's weights in --language-model.weights, and your own
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
        name="llama3_8b",
        mesh=MeshConfig(data=16, fsdp=64),
        data=DataConfig(name="world"),
        encoder=encoder("base", window=200, dtype="bfloat16"),
        language_model=LanguageModelConfig(
            architecture=decoder("llama3_8b", dtype="bfloat16", remat="dots")
        ),
        system=SystemConfig(
            perceiver=PerceiverConfig(latents=16, layers=2, heads=8),
            cross_attention=CrossAttentionConfig(every=4, heads=32, kv_heads=8),
        ),
        pretrain=PretrainConfig(
            steps=10_000,
            batch_size=8192,
            optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=500),
        ),
        warmup=WarmupConfig(steps=0),
        finetune=FinetuneConfig(
            steps=2_000,
            batch_size=8192,
            optim=OptimConfig(learning_rate=2e-5, schedule="cosine", warmup_steps=100),
            tasks={"review_generation": 1.0},
            history=200,
            max_tokens=2048,
        ),
    )
