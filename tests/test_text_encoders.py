"""Text encoders: parity with transformers' BERT and with sentence-transformers, and refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from user_llm.huggingface import import_text_encoder, text_encoder_config

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
KINDS = {
    "base": {},
    "one type": {"type_vocab_size": 1},
    "tanh": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    "relu": {"hidden_act": "relu", "num_attention_heads": 1},
}
TOKENS = np.random.default_rng(0).integers(1, 99, (3, 17)).astype(np.int32)
MASK = np.arange(17) < np.array([[17], [5], [1]])


def write_theirs(folder, model=transformers.BertModel, **options):
    torch.manual_seed(0)
    made = model(transformers.BertConfig(**SIZES | options)).eval()
    made.save_pretrained(folder)
    return made


def edit(folder, **said):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


def vectors(encoder, tokens=TOKENS, mask=MASK):
    return jax.jit(lambda e, t, m: e(t, m))(encoder, jnp.asarray(tokens), jnp.asarray(mask))


def pooled(model, pooling, normalize=True):
    """By the formulas of sentence-transformers."""
    mask = torch.from_numpy(MASK)
    with torch.inference_mode():
        states = model(torch.from_numpy(TOKENS).long(), mask.long()).last_hidden_state
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    x = states[:, 0] if pooling == "cls" else mean
    return (torch.nn.functional.normalize(x) if normalize else x).numpy()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_transformers(tmp_path, kind, pooling):
    model = write_theirs(tmp_path, **KINDS[kind])
    found = vectors(import_text_encoder(tmp_path, pooling=pooling))
    np.testing.assert_allclose(found, pooled(model, pooling), atol=1e-5)
    loose = vectors(import_text_encoder(tmp_path, pooling=pooling, normalize=False))
    np.testing.assert_allclose(loose, pooled(model, pooling, normalize=False), atol=1e-5)


def test_padding_is_not_seen(tmp_path):
    write_theirs(tmp_path)
    encoder = import_text_encoder(tmp_path)
    other = np.where(MASK, TOKENS, 7)
    np.testing.assert_array_equal(vectors(encoder, other), vectors(encoder))
    alone = vectors(encoder, TOKENS[1:2, :5], MASK[1:2, :5])
    np.testing.assert_allclose(alone, vectors(encoder)[1:2], atol=1e-5)
    assert np.isfinite(vectors(encoder, TOKENS, np.zeros_like(MASK))).all()


def test_bfloat16_vectors_are_near(tmp_path):
    write_theirs(tmp_path, initializer_range=0.05)
    near = vectors(import_text_encoder(tmp_path, dtype="bfloat16"))
    np.testing.assert_allclose(near, vectors(import_text_encoder(tmp_path)), atol=3e-2)


def test_a_mesh_changes_nothing(tmp_path, mesh):
    write_theirs(tmp_path)
    wanted, on = vectors(import_text_encoder(tmp_path)), mesh(2, 2, 2)
    encoder = import_text_encoder(tmp_path, on)
    kernel = encoder.layers.up_proj.kernel[...]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    with jax.set_mesh(on):
        np.testing.assert_allclose(vectors(encoder), wanted, atol=1e-5)


def test_other_uses_of_a_bert_and_old_names_are_read(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = write_theirs(tmp_path, transformers.BertForMaskedLM)
    wanted = pooled(model.bert, "mean")
    np.testing.assert_allclose(vectors(import_text_encoder(tmp_path)), wanted, atol=1e-5)
    path = tmp_path / "model.safetensors"
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in load_file(path).items()
    }
    save_file(old | {"bert.embeddings.position_ids": np.arange(40)[None]}, path)
    np.testing.assert_allclose(vectors(import_text_encoder(tmp_path)), wanted, atol=1e-5)


def test_gradients_reach_every_parameter(tmp_path):
    write_theirs(tmp_path)
    graphdef, state = nnx.split(import_text_encoder(tmp_path, dropout=0.1))

    def total(state):
        made = nnx.merge(graphdef, state)(
            jnp.asarray(TOKENS), jnp.asarray(MASK), key=jax.random.key(0)
        )
        return jnp.sin(3 * made).sum()

    gradients = nnx.to_pure_dict(jax.jit(jax.grad(total))(state))
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradients))


def test_what_sentence_transformers_say_of_vectors_is_read(tmp_path):
    write_theirs(tmp_path)
    assert text_encoder_config(tmp_path).pooling == "mean"
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "word_embedding_dimension": 32}))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    config = text_encoder_config(tmp_path)
    assert (config.pooling, config.normalize, config.max_tokens) == ("cls", False, 20)
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    (tmp_path / "modules.json").write_text(
        json.dumps([*modules, {"type": "sentence_transformers.models.Dense", "path": "2"}])
    )
    with pytest.raises(
        ValueError, match=r"Dense is unknown; pooling by \['pooling_mode_max_tokens'\]"
    ):
        text_encoder_config(tmp_path)


def test_what_the_encoder_cannot_do_is_refused_at_once(tmp_path):
    write_theirs(tmp_path)
    edit(tmp_path, position_embedding_type="relative_key", model_type="roberta", rotary=True)
    with pytest.raises(ValueError) as told:
        text_encoder_config(tmp_path)
    for part in ("model_type='roberta'", "position_embedding_type='relative_key'", "rotary=True"):
        assert part in str(told.value)


def test_tensors_that_do_not_fit_are_named_at_once(tmp_path):
    write_theirs(tmp_path)
    edit(tmp_path, vocab_size=98, num_hidden_layers=2)
    with pytest.raises(ValueError) as told:
        import_text_encoder(tmp_path)
    assert (
        "embeddings.word_embeddings.weight has shape (99, 32), the text encoder wants (98, 32)"
        in str(told.value)
    )
    assert "encoder.layer.2.attention.self.key.bias has no place" in str(told.value)


def test_heads_must_share_the_width(tmp_path):
    write_theirs(tmp_path)
    edit(tmp_path, num_attention_heads=5)
    with pytest.raises(ValueError, match="hidden_size=32 must be a multiple of"):
        text_encoder_config(tmp_path)
