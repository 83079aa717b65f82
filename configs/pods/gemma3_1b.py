"""Gemma 3 1B that reads a user's timeline, trained whole on 16 chips of v5e.

user-llm launch check configs/pods/gemma3_1b.py --topology v5e:4x4

Activations are bfloat16, weights and both moments of Adam float32. Rows have 2,048 tokens and 200
events. To train, name a folder with Gemma's weights in --language-model.weights, and your own
timelines in --data.name; the embedded world stands in for them, whose shapes do not matter here.
"""

from pathlib import Path

from user_llm.cli import load_config
from user_llm.config import CrossAttentionConfig, Experiment, LanguageModelConfig, MeshConfig
from user_llm.models.zoo import decoder


def config() -> Experiment:
    pod = load_config(str(Path(__file__).with_name("llama3_8b.py")))
    crossed = CrossAttentionConfig(every=2, heads=4, kv_heads=1)
    own = {
        "name": "gemma3_1b",
        "mesh": MeshConfig(data=4, fsdp=4),
        "language_model": LanguageModelConfig(
            architecture=decoder("gemma3_1b", dtype="bfloat16", remat="full")
        ),
        "system": pod.system.model_copy(update={"cross_attention": crossed}),
        "pretrain": pod.pretrain.model_copy(update={"batch_size": 512}),
        "finetune": pod.finetune.model_copy(update={"batch_size": 64}),
    }
    return pod.model_copy(update=own)
