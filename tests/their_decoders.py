"""Small random decoders of transformers' own, saved as it saves them."""

import copy
import json
from pathlib import Path

import numpy as np
import torch
import transformers

# What makes each family itself. The window is far shorter than the texts of the tests.
SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,  # not hidden_size / num_attention_heads
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
    "rope_parameters": {"rope_theta": 5_000.0, "rope_type": "default"},
}
LLAMA3_ROPE = {
    "rope_theta": 500.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_theta": 20_000.0, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 50.0, "rope_type": "default"},
}
THEIRS = {
    "llama": ("LlamaConfig", {}),
    "llama3.1": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE}),
    "mistral": ("MistralConfig", {"sliding_window": 9}),
    "mistral_all": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {"head_dim": None}),
    "qwen2_slides": (
        "Qwen2Config",
        {
            "head_dim": None,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("Qwen3Config", {}),
    "gemma2": (
        "Gemma2Config",
        {"sliding_window": 9, "query_pre_attn_scalar": 24, "final_logit_softcapping": 5.0},
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        {
            "sliding_window": 9,
            "query_pre_attn_scalar": 24,
            "rope_parameters": GEMMA3_ROPE,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
}
TOKENS = np.random.default_rng(0).integers(0, 128, (2, 33))


def their_config(family: str, **options) -> transformers.PreTrainedConfig:
    name, own = THEIRS[family]
    # Copied, because transformers completes the dicts that it is given.
    said = copy.deepcopy({k: v for k, v in (SIZES | own | options).items() if v is not None})
    said |= {k: None for k, v in own.items() if v is None and k != "head_dim"}
    return getattr(transformers, name)(**said, attn_implementation="eager")


def write_theirs(folder: Path, family: str = "llama", dtype=torch.float32, **options):
    """A model with every parameter random, norms and biases too, saved where `folder` says."""
    torch.manual_seed(0)
    config = their_config(family, **options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter += 0.2 * torch.randn(parameter.shape)
    model = model.to(dtype).eval()
    model.save_pretrained(folder)
    return model


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@torch.no_grad()
def their_logits(model, tokens=TOKENS) -> np.ndarray:
    return model(torch.tensor(tokens)).logits.float().numpy()
