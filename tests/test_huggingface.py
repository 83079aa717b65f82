"""Decoders in Hugging Face's layout: parity with transformers, round trips, and refusals."""

import json
import shutil
import stat
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from user_llm.config import CrossAttentionConfig, LoRAConfig
from user_llm.huggingface import decoder_config, load_decoder, save_decoder
from user_llm.models.decoder import Decoder
from user_llm.sharding import shardings

TOKENS = np.random.default_rng(0).integers(0, 128, (2, 33))
HEADS = {"MHA": (4, 4), "GQA": (4, 2), "MQA": (4, 1)}


def write_llama(folder: Path, kv_heads=2, tied=True, dtype=torch.float32, **options):
    """A small random model of transformers' own, saved where `folder` says."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=16,
        rope_theta=5_000.0,
        tie_word_embeddings=tied,
        **options,
    )
    model = transformers.LlamaForCausalLM(config).to(dtype).eval()
    model.save_pretrained(folder)
    return model


def abstract_state(make, mesh=None):
    """The graphdef and the shapes of a module's parameters, with placements if there is a mesh."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    if mesh is not None:
        placed = nnx.to_pure_dict(shardings(state, mesh))
        plain = nnx.to_pure_dict(state)
        return graphdef, jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), plain, placed
        )
    return graphdef, nnx.to_pure_dict(state)


def read_decoder(folder, mesh=None, **types):
    config = decoder_config(folder).model_copy(update=types)
    graphdef, abstract = abstract_state(lambda: Decoder(config, rngs=nnx.Rngs(0)), mesh)
    return graphdef, load_decoder(folder, abstract), config


@cache
def forward(graphdef):
    return jax.jit(lambda params, tokens: nnx.merge(graphdef, params)(tokens))


def their_logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("heads", HEADS)
def test_float32_logits_are_those_of_transformers(tmp_path, heads, tied):
    model = write_llama(tmp_path, kv_heads=HEADS[heads][1], tied=tied)
    graphdef, params, _ = read_decoder(tmp_path)
    logits = forward(graphdef)(params, TOKENS)
    np.testing.assert_allclose(logits, their_logits(model), atol=2e-5, rtol=2e-5)


def test_bfloat16_logits_are_those_of_transformers(tmp_path):
    model = write_llama(tmp_path, dtype=torch.bfloat16)
    graphdef, params, _ = read_decoder(tmp_path, dtype="bfloat16", param_dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    logits = forward(graphdef)(params, TOKENS).astype(jnp.float32)
    np.testing.assert_allclose(logits, their_logits(model), atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("name", ["stories260K", "stories3M", "tinystories-656k"])
def test_real_weights_give_the_logits_of_transformers(data_folder, name):
    folder = data_folder / "models" / name
    graphdef, params, _ = read_decoder(folder)
    model = transformers.LlamaForCausalLM.from_pretrained(folder).float().eval()
    logits = forward(graphdef)(params, TOKENS)
    np.testing.assert_allclose(logits, their_logits(model), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("index", [True, False], ids=["index", "no-index"])
def test_several_files_are_read_onto_a_mesh(tmp_path, mesh, index):
    model = write_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    if not index:
        (tmp_path / "model.safetensors.index.json").unlink()
    on = mesh(data=2, fsdp=2, tensor=2)
    graphdef, params, config = read_decoder(tmp_path, on)
    _, abstract = abstract_state(lambda: Decoder(config, rngs=nnx.Rngs(0)), on)
    assert jax.tree.map(lambda x: x.sharding, params) == jax.tree.map(
        lambda x: x.sharding, abstract
    )
    with jax.set_mesh(on):
        logits = forward(graphdef)(params, TOKENS)
    np.testing.assert_allclose(logits, their_logits(model), atol=2e-5, rtol=2e-5)


def test_what_the_family_has_no_name_for_is_handed_back(tmp_path):
    write_llama(tmp_path)
    config, cross = decoder_config(tmp_path), CrossAttentionConfig(every=1)
    decoder = Decoder(config, rngs=nnx.Rngs(0), cross_attention=cross, lora=LoRAConfig(rank=2))
    ours = nnx.to_pure_dict(nnx.state(decoder))
    params = load_decoder(tmp_path, ours)
    assert params["cross"] == ours["cross"]
    q_proj = params["layers"]["self_attn"]["q_proj"]
    assert q_proj["lora_a"] is ours["layers"]["self_attn"]["q_proj"]["lora_a"]
    assert not np.array_equal(q_proj["kernel"], ours["layers"]["self_attn"]["q_proj"]["kernel"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_saved_decoder_is_loaded_by_transformers(tmp_path, tied, dtype):
    write_llama(tmp_path / "theirs", tied=tied)
    _, params, config = read_decoder(tmp_path / "theirs", param_dtype=dtype)
    save_decoder(tmp_path / "ours", config, {**params, "cross": {"gate": jnp.zeros(1)}})
    model, info = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.dtype == getattr(torch, dtype)
    _, again, config_again = read_decoder(tmp_path / "ours", param_dtype=dtype)
    assert config_again == config
    jax.tree.map(np.testing.assert_array_equal, again, params)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    full = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    logits = forward(graphdef)(full, TOKENS)
    np.testing.assert_allclose(logits, their_logits(model.float()), atol=2e-5, rtol=2e-5)


def test_saved_files_are_readable_by_all_and_leave_nothing_beside_them(tmp_path):
    write_llama(tmp_path / "theirs")
    _, params, config = read_decoder(tmp_path / "theirs")
    save_decoder(tmp_path / "ours", config, params)
    files = {x.name: stat.S_IMODE(x.stat().st_mode) for x in (tmp_path / "ours").iterdir()}
    assert files == {"config.json": 0o644, "model.safetensors": 0o644}


def test_saving_refuses_a_decoder_with_a_missing_parameter(tmp_path):
    write_llama(tmp_path / "theirs")
    _, params, config = read_decoder(tmp_path / "theirs")
    del params["norm"]
    with pytest.raises(ValueError, match=r"missing \['norm.weight'\]"):
        save_decoder(tmp_path / "ours", config, params)
    assert not (tmp_path / "ours").exists()


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_config_names_all_that_is_not_supported(tmp_path):
    write_llama(tmp_path)
    edit_config(
        tmp_path,
        attention_bias=True,
        rope_parameters={"rope_type": "llama3", "rope_theta": 1.0, "factor": 8.0},
        logit_softcap=30.0,
        hidden_size=None,
    )
    with pytest.raises(ValueError) as error:
        decoder_config(tmp_path)
    for part in ("attention_bias=True", "llama3", "'factor'", "logit_softcap", "hidden_size is"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["GPT2LMHeadModel"]},
        {"model_type": "gpt2"},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"hidden_act": "gelu"},
        {"rope_theta": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_config_refuses(tmp_path, change):
    write_llama(tmp_path)
    edit_config(tmp_path, **change)
    with pytest.raises(ValueError, match=next(iter(change))):
        decoder_config(tmp_path)


def test_config_is_read_in_the_old_spelling(tmp_path):
    write_llama(tmp_path)
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


def test_all_problems_with_weights_are_named_at_once(tmp_path):
    model = write_llama(tmp_path, attention_bias=True)
    edit_config(tmp_path, attention_bias=False, intermediate_size=64, num_hidden_layers=4)
    model.save_pretrained(tmp_path / "weights")
    shutil.copy(tmp_path / "config.json", tmp_path / "weights" / "config.json")
    with pytest.raises(ValueError) as error:
        read_decoder(tmp_path / "weights")
    for part in (
        "model.layers.2.self_attn.q_proj.bias has no place",
        "model.layers.3.mlp.up_proj.weight is missing",
        "model.layers.0.mlp.up_proj.weight has shape (48, 32), the decoder wants (64, 32)",
        "model.layers.0.mlp.down_proj.weight has shape (32, 48), the decoder wants (32, 64)",
    ):
        assert part in str(error.value)


def test_untied_head_where_a_tied_one_is_expected_is_refused(tmp_path):
    write_llama(tmp_path, tied=False)
    edit_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head.weight differs"):
        read_decoder(tmp_path)


def test_quantised_weights_are_refused(tmp_path):
    model = write_llama(tmp_path)
    tensors = {
        key: x.to(torch.int8) for key, x in model.state_dict().items() if key != "lm_head.weight"
    }
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.norm.weight has type I8"):
        read_decoder(tmp_path)


def test_file_that_was_cut_short_is_named(tmp_path):
    write_llama(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is missing or cut short"):
        read_decoder(tmp_path)


def test_folder_without_weights_is_named(tmp_path):
    write_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no safetensors file"):
        read_decoder(tmp_path)
