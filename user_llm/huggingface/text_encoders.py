"""Text encoders of BERT's family, read from Hugging Face's folders and sentence-transformers'."""

import json
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh
from pydantic import ValidationError

from user_llm.config import TextEncoderConfig
from user_llm.huggingface.tensors import by_name, placed, plan
from user_llm.models.encoders.text import TextEncoder

LAYER = "encoder.layer.{}."
NAMES = {
    "words": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings.weight",
    "norm.weight": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
    **{
        f"layers.{ours}.{part}": f"{LAYER}{theirs}.{kind}"
        for ours, theirs in {
            "self_attn.q_proj": "attention.self.query",
            "self_attn.k_proj": "attention.self.key",
            "self_attn.v_proj": "attention.self.value",
            "self_attn.o_proj": "attention.output.dense",
            "up_proj": "intermediate.dense",
            "down_proj": "output.dense",
        }.items()
        for part, kind in (("kernel", "weight"), ("bias", "bias"))
    },
    **{
        f"layers.{ours}.{part}": f"{LAYER}{theirs}.LayerNorm.{part}"
        for ours, theirs in {"attn_norm": "attention.output", "mlp_norm": "output"}.items()
        for part in ("weight", "bias")
    },
}
OLD = {"gamma": "weight", "beta": "bias"}  # what norms' parameters were called once
BESIDE = ("pooler.", "cls.", "embeddings.position_ids")  # which no vector of a text is made of
FIELDS = TextEncoderConfig.model_fields.keys() - {"pooling", "normalize", "max_tokens", "dtype"}
ONLY: dict[str, Any] = {  # attributes of which one value is supported
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
WITHOUT_EFFECT = {  # on the vectors of texts
    *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "model_type"),
    *("architectures", "initializer_range", "attention_probs_dropout_prob", "hidden_dropout_prob"),
    *("classifier_dropout", "gradient_checkpointing", "pad_token_id", "bos_token_id"),
    *("eos_token_id", "cross_attention_hidden_size", "id2label", "label2id"),
    *("tie_word_embeddings", "chunk_size_feed_forward", "directionality"),
    *("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
    *("pooler_size_per_head", "pooler_type"),
}


def import_text_encoder(
    folder: str | Path, mesh: Mesh | None = None, *, dropout: float = 0.0, **changes: Any
) -> TextEncoder:
    """The text encoder of a folder, placed on a mesh if there is one.

    Args:
      dropout: of its layers, where it is trained.
      changes: further fields of its config, such as `pooling` and `dtype`.

    Raises:
      ValueError: as `text_encoder_config`; or files or tensors are missing, unknown or of another
        shape, all of which are named at once.
    """
    config = TextEncoderConfig(**text_encoder_config(folder).model_dump() | changes)

    def make() -> TextEncoder:
        return TextEncoder(config, dropout=dropout, rngs=nnx.Rngs(0))

    graphdef, abstract = placed(make, mesh)
    read = plan(Path(folder), NAMES, by_name(abstract), "text encoder", _settle)
    return nnx.merge(graphdef, read.load(abstract))


def _settle(tensors: dict[str, Any]) -> list[str]:
    """Gives tensors their present names; drops what belongs to other uses of a BERT."""
    for key in list(tensors):
        tensor, name = tensors.pop(key), key.removeprefix("bert.")
        if not name.startswith(BESIDE):
            head, _, last = name.rpartition(".")
            tensors[f"{head}.{OLD.get(last, last)}"] = tensor
    return []


def text_encoder_config(folder: str | Path) -> TextEncoderConfig:
    """What a folder says of its encoder, and, if it is of sentence-transformers, of its vectors.

    Of another folder the vectors are the mean of the states, at unit length.

    Raises:
      ValueError: there is no readable config.json, or it asks for what the encoder cannot do; all
        such attributes are named at once.
    """
    path = Path(folder) / "config.json"
    given = _json(path)
    problems = []
    if given.get("model_type") != "bert":
        problems.append(f"model_type={given.get('model_type')!r}, where only 'bert' is supported")
    problems += [
        f"{name}={given[name]!r}, where only {value!r} is supported"
        for name, value in ONLY.items()
        if given.get(name, value) != value
    ]
    unknown = given.keys() - {*FIELDS, *ONLY, *WITHOUT_EFFECT}
    problems += [f"{name}={given[name]!r} is unknown" for name in sorted(unknown)]
    vectors, wrong = _vectors(Path(folder))
    if problems := problems + wrong:
        raise ValueError(f"{path} describes no supported text encoder: " + "; ".join(problems))
    said = {name: given[name] for name in FIELDS & given.keys()}
    longest = said.get("max_position_embeddings", 512)
    vectors["max_tokens"] = min(vectors.get("max_tokens") or longest, longest)
    try:
        # What BertConfig assumes is BERT-base's; the file says what is not.
        return TextEncoderConfig(**BERT_BASE | said | vectors)
    except ValidationError as error:
        raise ValueError(f"{path} contradicts itself: {error}") from error


BERT_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


def _vectors(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What sentence-transformers' files say of pooling, and what of it is not supported."""
    if not (folder / "modules.json").is_file():
        return {}, []
    modules = {
        one["type"].rpartition(".")[2]: one["path"] for one in _json(folder / "modules.json")
    }
    problems = [
        f"modules.json: {kind} is unknown"
        for kind in modules.keys() - {"Transformer", "Pooling", "Normalize"}
    ]
    found: dict[str, Any] = {"normalize": "Normalize" in modules}
    if "Pooling" in modules:
        said = _json(folder / modules["Pooling"] / "config.json")
        kinds = [
            name for name, on in said.items() if name.startswith("pooling_mode_") and on is True
        ]
        known = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
        if len(kinds) == 1 and kinds[0] in known:
            found["pooling"] = known[kinds[0]]
        else:
            problems.append(f"pooling by {kinds}, where one of {sorted(known)} is supported")
    lengths = folder / "sentence_bert_config.json"
    if lengths.is_file():
        found["max_tokens"] = _json(lengths).get("max_seq_length")
    return found, problems


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable: {error}") from error
