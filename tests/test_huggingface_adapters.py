"""LoRA's adapters against PEFT: read, written and merged."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx
from random_decoders import random_decoder
from their_decoders import TOKENS, their_logits, write_theirs

from user_llm.config import LoRAConfig
from user_llm.huggingface import (
    adapter_config,
    decoder_config,
    load_adapter,
    load_decoder,
    save_adapter,
    save_decoder,
)
from user_llm.models.decoder import Decoder
from user_llm.models.layers import merged

# PEFT's own, about transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a Qwen 2: its projections have biases."""
    folder = tmp_path_factory.mktemp("base")
    write_theirs(folder, "qwen2")
    return folder


def peft_model(base, targets=TARGETS, **options):
    """PEFT's model on it, with random factors."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, **options)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def imported(base, lora):
    config = decoder_config(base)
    decoder = random_decoder(config, lora=lora)
    graphdef, state = nnx.split(decoder)
    return graphdef, load_decoder(base, nnx.to_pure_dict(state))


def logits(graphdef, params):
    return jax.jit(lambda params: nnx.merge(graphdef, params)(jnp.asarray(TOKENS)))(params)


def test_adapters_of_peft_are_read(base, tmp_path):
    theirs = peft_model(base)
    theirs.save_pretrained(tmp_path)
    lora = adapter_config(tmp_path)
    assert lora == LoRAConfig(rank=4, alpha=6, targets=tuple(sorted(TARGETS)))
    graphdef, params = imported(base, lora)
    params = load_adapter(tmp_path, lora, params)
    wanted = their_logits(theirs)
    np.testing.assert_allclose(logits(graphdef, params), wanted, atol=2e-5, rtol=2e-5)


def test_adapters_are_written_for_peft_and_merged_for_everyone(base, tmp_path):
    lora = LoRAConfig(rank=3, alpha=7.0, targets=("self_attn.[qk]_proj", "mlp.*"))
    graphdef, params = imported(base, lora)
    ours = logits(graphdef, params)
    save_adapter(tmp_path / "adapter", lora, params, base=str(base))
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    np.testing.assert_allclose(ours, their_logits(theirs), atol=2e-5, rtol=2e-5)
    assert {x.name for x in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = decoder_config(base)
    plain = merged(params, lora)
    save_decoder(tmp_path / "merged", config, plain)
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(ours, their_logits(whole), atol=2e-5, rtol=2e-5)
    abstract = nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    assert jax.tree.structure(plain) == jax.tree.structure(nnx.to_pure_dict(abstract))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_rslora": True}, "use_rslora=True"),
        ({"use_dora": True}, "use_dora=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"bias": "all"}, "bias='all'"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ".*q_proj"}, "target_modules='.*q_proj'"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_not_supported_is_named(tmp_path, options, named):
    peft.LoraConfig(**{"r": 4, "target_modules": TARGETS} | options).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="describes no supported adapter") as error:
        adapter_config(tmp_path)
    assert named in str(error.value)


def test_all_problems_with_factors_are_named_at_once(base, tmp_path):
    peft_model(base).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    said = json.loads(path.read_text()) | {"r": 5, "target_modules": ["q_proj", "k_proj"]}
    path.write_text(json.dumps(said))
    lora = adapter_config(tmp_path)
    with pytest.raises(ValueError) as error:
        load_adapter(tmp_path, lora, imported(base, lora)[1])
    start = "base_model.model.model.layers.0."
    for part in (
        f"{start}self_attn.q_proj.lora_A.weight has shape (4, 32), the decoder wants (5, 32)",
        f"{start}self_attn.k_proj.lora_B.weight is missing",
        f"{start}mlp.down_proj.lora_A.weight has no place",
    ):
        assert part in str(error.value)


def test_absent_files_are_named(base, tmp_path):
    with pytest.raises(ValueError, match="adapter_config.json"):
        adapter_config(tmp_path)
    lora = LoRAConfig(rank=1)
    with pytest.raises(ValueError, match="adapter_model.safetensors is missing or cut short"):
        load_adapter(tmp_path, lora, imported(base, lora)[1])


def test_adapters_that_are_not_described_are_not_lost(base, tmp_path):
    _, params = imported(base, LoRAConfig(rank=2, targets=("q_proj", "k_proj")))
    for lora in (
        LoRAConfig(rank=2, targets=("q_proj",)),
        LoRAConfig(rank=3, targets=("[qk]_proj",)),
    ):
        with pytest.raises(ValueError, match=r"rank \[2\] on \['self_attn.k_proj', 'self_attn.q"):
            save_adapter(tmp_path, lora, params)


def test_decoder_without_adapters_has_none_to_save(base, tmp_path):
    with pytest.raises(ValueError, match="the decoder has no adapters"):
        save_adapter(tmp_path, LoRAConfig(rank=1), imported(base, LoRAConfig())[1])


def test_target_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"\['qproj'\] match no projection"):
        LoRAConfig(targets=("qproj", "k_proj"))
