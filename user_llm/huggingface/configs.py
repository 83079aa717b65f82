"""`config.json` to a DecoderConfig and back, in the old spellings and the new."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from user_llm.config import DecoderConfig, ModelType, RopeScaling

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


class Words(NamedTuple):
    """What a family's `config.json` may say of the architecture, beside the sizes.

    Fields of DecoderConfig have the same names there.
    """

    model: str  # transformers' class
    defaults: dict[str, Any]  # Hugging Face's, where the file is silent
    only: dict[str, Any]  # attributes of which one value is supported, Hugging Face's default


COMMON: dict[str, Any] = {
    "num_key_value_heads": None,  # as many as there are heads
    "head_dim": None,  # the heads share the width
    "max_position_embeddings": 2048,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
QWEN = COMMON | {
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
GEMMA2 = COMMON | {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
    "sliding_window_pattern": 2,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
SILU = {"hidden_act": "silu", "attention_bias": False}
GELU = {
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": "gelu_pytorch_tanh",
    "attention_bias": False,
    "use_bidirectional_attention": False,
}
WORDS: dict[ModelType, Words] = {
    "llama": Words(
        "LlamaForCausalLM",
        COMMON,
        SILU | {"mlp_bias": False, "pretraining_tp": 1, "rope_interleaved": False},
    ),
    "mistral": Words(
        "MistralForCausalLM",
        COMMON
        | {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096},
        SILU,
    ),
    "qwen2": Words("Qwen2ForCausalLM", QWEN, {"hidden_act": "silu", "use_mrope": False}),
    "qwen3": Words("Qwen3ForCausalLM", QWEN | {"head_dim": 128}, SILU),
    "gemma2": Words("Gemma2ForCausalLM", GEMMA2, GELU),
    "gemma3_text": Words(
        "Gemma3ForCausalLM",
        GEMMA2
        | {
            "max_position_embeddings": 131_072,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "sliding_window_pattern": 6,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        GELU | {"attn_logit_softcapping": None},  # transformers takes no notice of it
    ),
}
WITHOUT_EFFECT = {  # on the logits of a given input
    *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"),
    *("initializer_range", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("cache_implementation", "rope_scaling", "rope_parameters", "architectures", "model_type"),
    *("is_llama_config", "transformers.js_config"),
}
NO_TOKENS: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
FULL, SLIDING = "full_attention", "sliding_attention"


def decoder_config(folder: str | Path) -> DecoderConfig:
    """The architecture that a folder's `config.json` describes; types are left to the caller.

    Raises:
      ValueError: there is no readable config.json, or it asks for what the decoder cannot do; all
        such attributes are named at once.
    """
    path = Path(folder) / "config.json"
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable config.json: {error}") from error
    family = given.get("model_type")
    words = WORDS.get(family)
    if words is None or given.get("architectures") not in (None, [words.model]):
        supported = ", ".join(f"{name} ({own.model})" for name, own in WORDS.items())
        raise ValueError(
            f"{path} describes no supported decoder: model_type={family!r}, "
            f"architectures={given.get('architectures')!r}; supported are {supported}"
        )
    if "_sliding_window_pattern" in given:  # as transformers writes it
        given["sliding_window_pattern"] = given.pop("_sliding_window_pattern")
    if family == "gemma2" and given.get("sliding_window_size") == given.get("sliding_window"):
        given.pop("sliding_window_size", None)  # the same again, in old files
    problems = [
        f"{name}={given[name]!r}, where only {value!r} is supported"
        for name, value in words.only.items()
        if given.get(name, value) != value and (given[name] is not None or value)
    ]
    known = {*SIZES, *words.defaults, *words.only, *WITHOUT_EFFECT}
    problems += [f"{name}={given[name]!r} is unknown" for name in sorted(given.keys() - known)]
    problems += [f"{name} is missing" for name in SIZES if given.get(name) is None]
    rope, wrong = _rope(given, words.defaults)
    if problems := problems + wrong:
        raise ValueError(f"{path} describes no supported decoder: " + "; ".join(problems))
    heads = given["num_attention_heads"]
    said = words.defaults | {k: v for k, v in given.items() if k not in WITHOUT_EFFECT}
    said["num_key_value_heads"] = said["num_key_value_heads"] or heads
    said["head_dim"] = said["head_dim"] or said["hidden_size"] // heads
    fields = {name: said[name] for name in said.keys() & DecoderConfig.model_fields.keys()}
    try:
        return DecoderConfig.model_validate(fields | {"model_type": family} | rope | _windows(said))
    except ValidationError as error:
        raise ValueError(f"{path} contradicts itself: {error}") from error


def _windows(said: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers slide; a family whose layers all do says so by the window alone."""
    if "layer_types" not in said:
        return {}
    window, layers = said["sliding_window"], range(said["num_hidden_layers"])
    kinds = said["layer_types"]
    if "use_sliding_window" in said:
        window = window if said["use_sliding_window"] else None
        first = said["max_window_layers"]
        kinds = kinds or [SLIDING if window and i >= first else FULL for i in layers]
    else:
        every = said["sliding_window_pattern"]
        kinds = kinds or [SLIDING if (i + 1) % every else FULL for i in layers]
    if SLIDING not in kinds:
        window, kinds = None, ()
    return {"sliding_window": window, "layer_types": tuple(kinds)}


def _rope(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[dict, list[str]]:
    """The fields about rotary positions in either spelling, and what else was asked of them."""
    new = given.get("rope_parameters") or {}
    nested = {FULL, SLIDING} & new.keys()
    full, local = (new.get(FULL) or {}, new.get(SLIDING) or {}) if nested else (new, {})
    problems = [f"rope_parameters[{k!r}] is unknown" for k in new.keys() - nested if nested]
    old = given.get("rope_scaling") or {}
    old = {"rope_type" if k == "type" else k: v for k, v in old.items()}
    scaling = {"rope_type": "default", **old, **full}
    problems += [
        f"rope_scaling and rope_parameters differ in {k}"
        for k in old.keys() & full
        if old[k] != full[k]
    ]
    found = {}
    for name, theirs, default in (
        ("rope_theta", scaling.pop("rope_theta", None), defaults["rope_theta"]),
        ("rope_local_base_freq", local.get("rope_theta"), defaults.get("rope_local_base_freq")),
    ):
        values = {theirs, given.get(name)} - {None}
        if len(values) > 1:
            problems.append(f"{name} has two values, {sorted(values)}")
        found[name] = next(iter(values), default)
    beside = {k: v for k, v in local.items() if k != "rope_theta" and v != "default"}
    problems += [f"rope_parameters of sliding layers: {k}={v!r}" for k, v in beside.items()]
    if local and "rope_local_base_freq" not in defaults:
        problems.append("rope_parameters differ between layers, which the family's do not")
    if scaling == {"rope_type": "default"}:
        return found, problems
    try:
        found["rope_scaling"] = RopeScaling.model_validate(scaling)
    except ValidationError as error:
        why = ", ".join(" ".join(map(str, (*e["loc"], e["msg"]))) for e in error.errors())
        problems.append(f"rope scaling {scaling} is not supported ({why})")
    return found, problems


def described(
    config: DecoderConfig, dtype: str, special: Mapping[str, Any] = NO_TOKENS
) -> dict[str, Any]:
    """What `config.json` says of a decoder whose weights are of that type.

    Args:
      special: the ids of special tokens, of which Hugging Face would assume Llama 2's.
    """
    model, defaults, _ = WORDS[config.model_type]
    fields = config.model_dump(mode="json")
    said = {name: fields[name] for name in (*SIZES, *defaults) if name in fields}
    said |= {"architectures": [model], "model_type": config.model_type, "dtype": dtype}
    said |= NO_TOKENS | dict(special)
    if defaults["head_dim"] is None and config.shares_width:
        del said["head_dim"]  # some have no such attribute
    if "layer_types" in said:
        said["layer_types"] = [SLIDING if slides else FULL for slides in config.slides]
    if "use_sliding_window" in defaults:
        said["use_sliding_window"] = any(config.slides)
        said["max_window_layers"] = (*config.slides, True).index(True)
    scaling = config.rope_scaling
    stretched = scaling.model_dump(exclude_none=True) if scaling else {"rope_type": "default"}
    rope = {"rope_theta": said.pop("rope_theta"), **stretched}
    if (local := said.pop("rope_local_base_freq", None)) is not None:
        rope = {FULL: rope, SLIDING: {"rope_theta": local, "rope_type": "default"}}
    return said | {"rope_parameters": rope}
