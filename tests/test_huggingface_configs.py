"""`config.json` in every family's words, old and new, and what it may not ask for."""

import json
from typing import get_args

import pytest
import transformers
from their_decoders import LLAMA3_ROPE, THEIRS, edit_config, their_config, write_theirs

from user_llm.config import DecoderConfig, ModelType, RopeScaling
from user_llm.huggingface.configs import WORDS, decoder_config, described
from user_llm.models.families import FAMILIES

PLACES = {"transformers_version", "_name_or_path", "dtype", "initializer_range"}
PLACES |= {"bos_token_id", "eos_token_id", "pad_token_id"}


@pytest.mark.parametrize("family", THEIRS)
def test_config_is_theirs_again_after_a_round_trip(tmp_path, family):
    theirs = their_config(family)
    theirs.architectures = [WORDS[theirs.model_type].model]
    theirs.save_pretrained(tmp_path / "theirs")
    ours = decoder_config(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text(json.dumps(described(ours, "float32")))
    assert decoder_config(tmp_path / "ours") == ours
    again = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert type(again) is type(theirs)
    one, two = ({k: v for k, v in x.to_dict().items() if k not in PLACES} for x in (theirs, again))
    if not one.get("use_sliding_window", True):  # then it says nothing
        one["max_window_layers"] = two["max_window_layers"]
    assert two == one


def test_every_family_is_known_everywhere():
    tried = {their_config(family).model_type for family in THEIRS}
    for table in (WORDS, FAMILIES, tried):
        assert set(table) == set(get_args(ModelType))


# As published on the hub, in the spelling of their time.
PUBLISHED = {
    "meta-llama/Llama-3.2-1B": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256,
    },
    "google/gemma-3-1b-it": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 5000,  # 10,000 in truth, which is also the default
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262144,
    },
    "HuggingFaceTB/SmolLM2-135M": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
    "google/gemma-2-9b": {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "num_attention_heads": 16,
        "num_hidden_layers": 42,
        "num_key_value_heads": 8,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "sliding_window_size": 4096,
        "vocab_size": 256000,
    },
    "Qwen/Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "mistralai/Mistral-7B-v0.1": {
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "Qwen/Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_file_is_read_as_transformers_reads_it(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    ours = decoder_config(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    said = {"dtype", "layer_types", "sliding_window"}
    for field in set(DecoderConfig.model_fields) & theirs.to_dict().keys() - said:
        assert getattr(ours, field) == getattr(theirs, field), field
    # A family without a list slides everywhere or nowhere.
    every = "sliding_attention" if getattr(theirs, "sliding_window", None) else "full_attention"
    kinds = getattr(theirs, "layer_types", [every] * theirs.num_hidden_layers)
    assert ours.slides == tuple(kind == "sliding_attention" for kind in kinds)
    if any(ours.slides):
        assert ours.sliding_window == theirs.sliding_window
    rope = theirs.rope_parameters
    own = dict(rope.get("full_attention", rope))
    assert ours.rope_theta == own.pop("rope_theta")
    scaling = ours.rope_scaling
    assert own == (scaling.model_dump(exclude_none=True) if scaling else {"rope_type": "default"})
    assert ours.rope_local_base_freq == rope.get("sliding_attention", {}).get("rope_theta")


def test_little_is_enough(tmp_path):
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    said = dict.fromkeys(sizes, 8) | {"vocab_size": 100, "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(said))
    ours = decoder_config(tmp_path)
    theirs = transformers.LlamaConfig(**said)
    assert (ours.num_key_value_heads, ours.head_dim) == (8, 1)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


def test_angles_of_llama_3_1_are_read_in_both_spellings(tmp_path):
    write_theirs(tmp_path, "llama3.1")
    new = decoder_config(tmp_path)
    scaling = {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_theta"}
    assert new.rope_scaling == RopeScaling(**scaling)
    old = json.loads((tmp_path / "config.json").read_text())
    del old["rope_parameters"]
    old |= {"rope_theta": LLAMA3_ROPE["rope_theta"], "rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert decoder_config(tmp_path) == new


def test_config_names_all_that_is_not_supported(tmp_path):
    write_theirs(tmp_path)
    edit_config(
        tmp_path,
        attention_bias=True,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1.0, "factor": 8.0},
        logit_softcap=30.0,
        hidden_size=None,
    )
    with pytest.raises(ValueError) as error:
        decoder_config(tmp_path)
    for part in ("attention_bias=True", "yarn", "'factor'", "logit_softcap", "hidden_size is"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["GPT2LMHeadModel"]},
        {"architectures": ["Qwen2ForCausalLM"]},
        {"model_type": "gpt2"},
        {"quantization_config": {"quant_method": "gptq"}},
        {"rope_scaling": {"type": "linear"}},
        {"hidden_act": "gelu"},
        {"rope_theta": 1.0},
    ],
    ids=str,
)
def test_config_refuses(tmp_path, change):
    write_theirs(tmp_path)
    edit_config(tmp_path, **change)
    with pytest.raises(ValueError, match=next(iter(change)).replace("_", ".")):
        decoder_config(tmp_path)


def test_config_is_read_in_the_old_spelling(tmp_path):
    write_theirs(tmp_path)
    new = decoder_config(tmp_path)
    old = json.loads((tmp_path / "config.json").read_text())
    old |= {"rope_theta": old.pop("rope_parameters")["rope_theta"], "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert decoder_config(tmp_path) == new
    assert new.rope_theta == 5_000.0


def test_config_that_is_absent_or_no_json_is_named(tmp_path):
    with pytest.raises(ValueError, match="config.json"):
        decoder_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json"):
        decoder_config(tmp_path)
