"""Weights in Hugging Face's layout: parity with transformers, round trips, and refusals."""

import json
import os
import shutil
import stat
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from their_decoders import THEIRS, TOKENS, edit_config, their_logits, write_theirs

from user_llm.config import CrossAttentionConfig, DecoderConfig, LoRAConfig
from user_llm.huggingface import (
    decoder_config,
    import_decoder,
    load_decoder,
    save_decoder,
)
from user_llm.models.decoder import Decoder
from user_llm.sharding import shardings

HEADS = {"MHA": 4, "GQA": 2, "MQA": 1}


def read_decoder(folder, mesh=None, **types):
    decoder = import_decoder(folder, mesh, **types)
    graphdef, state = nnx.split(decoder)
    return graphdef, nnx.to_pure_dict(state), decoder.config


@cache
def forward(graphdef):
    return jax.jit(lambda params, tokens: nnx.merge(graphdef, params)(tokens))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("family", THEIRS)
def test_float32_logits_are_those_of_transformers(tmp_path, family, heads, tied):
    options = {"num_key_value_heads": HEADS[heads], "tie_word_embeddings": tied}
    model = write_theirs(tmp_path, family, **options)
    graphdef, params, _ = read_decoder(tmp_path)
    logits = forward(graphdef)(params, TOKENS)
    np.testing.assert_allclose(logits, their_logits(model), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", THEIRS)
def test_bfloat16_logits_are_those_of_transformers(tmp_path, family):
    # Small enough that rounding, by which both err alike, keeps within the tolerance.
    model = write_theirs(tmp_path, family, dtype=torch.bfloat16, initializer_range=0.05)
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


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_stacks_of_every_kind_are_read_onto_a_mesh(tmp_path, mesh, family):
    model = write_theirs(tmp_path, family)
    on = mesh(data=2, fsdp=2, tensor=2)
    decoder = import_decoder(tmp_path, on, max_position_embeddings=64)
    assert decoder.config.max_position_embeddings == 64
    spread = {len(x.sharding.device_set) for x in jax.tree.leaves(nnx.state(decoder))}
    assert spread == {8}
    with jax.set_mesh(on):
        logits = jax.jit(lambda decoder, tokens: decoder(tokens))(decoder, TOKENS)
    np.testing.assert_allclose(logits, their_logits(model), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("index", [True, False], ids=["index", "no-index"])
def test_several_files_are_read_onto_a_mesh(tmp_path, mesh, index):
    model = write_theirs(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    if not index:
        (tmp_path / "model.safetensors.index.json").unlink()
    on = mesh(data=2, fsdp=2, tensor=2)
    graphdef, params, config = read_decoder(tmp_path, on)
    abstract = nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    placed = nnx.to_pure_dict(shardings(abstract, on))
    assert jax.tree.map(lambda x: x.sharding, params) == placed
    with jax.set_mesh(on):
        logits = forward(graphdef)(params, TOKENS)
    np.testing.assert_allclose(logits, their_logits(model), atol=2e-5, rtol=2e-5)


# Of all that is read, a stack of layers and a table come last, when the devices hold the rest.
LARGE = DecoderConfig(
    vocab_size=16_384,
    hidden_size=1024,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    tie_word_embeddings=False,
)
LOADING = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from pathlib import Path
import numpy as np
from flax import nnx
from user_llm.config import MeshConfig
from user_llm.huggingface import import_decoder
from user_llm.sharding import make_mesh

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

mesh = make_mesh(MeshConfig(data=1, fsdp=8))
jax.block_until_ready([jax.device_put(np.ones(1), device) for device in jax.devices()])
before = anonymous()
decoder = import_decoder(sys.argv[1], mesh, param_dtype=sys.argv[2])
shards = [s.data.nbytes for x in jax.tree.leaves(nnx.state(decoder)) for s in x.addressable_shards]
print(json.dumps({"before": before, "held": sum(shards), "shard": max(shards)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_host_holds_one_shard_beside_what_the_devices_hold(tmp_path, stored, wanted):
    rng = np.random.default_rng(0)
    abstract = nnx.eval_shape(lambda: Decoder(LARGE, rngs=nnx.Rngs(0)))
    drawn = jax.tree.map(
        lambda x: rng.random(x.shape, np.float32).astype(jnp.dtype(stored)),
        nnx.to_pure_dict(nnx.state(abstract)),
    )
    save_decoder(tmp_path, LARGE, drawn, shard_bytes=10**8)
    command = [sys.executable, "-c", LOADING, str(tmp_path), wanted]
    # What is freed goes back at once, so that the process has no more than what it holds.
    own = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}
    loading = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True)
    peak = 0
    while loading.poll() is None:  # pages of the files themselves are not anonymous
        for line in Path(f"/proc/{loading.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, int(line.split()[1]) * 1024)
    shutil.rmtree(tmp_path)  # pytest would keep its hundreds of MB
    found = json.loads(loading.communicate()[0])
    beside = peak - found["before"] - found["held"]
    assert found["shard"] == LARGE.vocab_size * LARGE.hidden_size // 8 * jnp.dtype(wanted).itemsize
    assert beside < found["shard"] + 8 * 2**20  # a whole stack or table is eight shards


def test_what_the_family_has_no_name_for_is_handed_back(tmp_path):
    write_theirs(tmp_path)
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
@pytest.mark.parametrize("family", THEIRS)
def test_saved_decoder_is_what_transformers_saved(tmp_path, family, tied, dtype):
    theirs = write_theirs(tmp_path / "theirs", family, tie_word_embeddings=tied)
    _, params, config = read_decoder(tmp_path / "theirs", param_dtype=dtype)
    save_decoder(tmp_path / "ours", config, {**params, "cross": {"gate": jnp.zeros(1)}})
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.dtype == getattr(torch, dtype)
    assert type(model) is type(theirs)
    wanted = theirs.to(model.dtype).state_dict()
    assert all(torch.equal(x, wanted[name]) for name, x in model.state_dict().items())
    _, again, config_again = read_decoder(tmp_path / "ours", param_dtype=dtype)
    assert config_again == config
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_large_decoder_is_saved_in_several_files(tmp_path):
    theirs = write_theirs(tmp_path / "theirs", "gemma3_text")
    _, params, config = read_decoder(tmp_path / "theirs")
    folder = tmp_path / "ours"
    save_decoder(folder, config, params)
    save_decoder(folder, config, params, shard_bytes=20_000)
    files = sorted(folder.glob("*.safetensors"))
    assert [x.name for x in files] == [
        f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert len(files) > 2
    assert all(x.stat().st_size < 22_000 for x in files)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(x, model.state_dict()[k]) for k, x in theirs.state_dict().items())
    jax.tree.map(np.testing.assert_array_equal, read_decoder(folder)[1], params)
    save_decoder(folder, config, params)  # and back: nothing is left of the several
    assert {x.name for x in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_saving_leaves_what_is_not_its_own(tmp_path):
    write_theirs(tmp_path)
    _, params, config = read_decoder(tmp_path)
    mine = {"model-ema.safetensors", "model.safetensors.bak", "tokenizer.json"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    save_decoder(tmp_path, config, params, shard_bytes=20_000)
    assert mine < {x.name for x in tmp_path.iterdir()}
    assert not (tmp_path / "model.safetensors").exists()


def test_special_tokens_are_written_or_none_are(tmp_path):
    write_theirs(tmp_path / "theirs")
    _, params, config = read_decoder(tmp_path / "theirs")
    save_decoder(tmp_path / "ours", config, params)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "ours").eos_token_id is None
    save_decoder(tmp_path / "ours", config, params, special={"eos_token_id": [5, 7]})
    assert transformers.AutoConfig.from_pretrained(tmp_path / "ours").eos_token_id == [5, 7]


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("llama", {"sliding_window": 4}, "sliding_window=4"),
        ("qwen3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping=5.0"),
        ("gemma3_text", {"rope_local_base_freq": None}, "rope_local_base_freq=None"),
    ],
)
def test_what_a_family_has_no_words_for_is_not_written(tmp_path, family, change, named):
    write_theirs(tmp_path / "theirs", family)
    _, params, config = read_decoder(tmp_path / "theirs")
    with pytest.raises(ValueError, match=f"{family} has no words for {named}"):
        save_decoder(tmp_path / "ours", config.model_copy(update=change), params)
    assert not (tmp_path / "ours").exists()


def test_missing_file_of_several_is_named(tmp_path):
    write_theirs(tmp_path)
    _, params, config = read_decoder(tmp_path)
    save_decoder(tmp_path, config, params, shard_bytes=20_000)
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ValueError, match=f"{gone.name} is missing or cut short"):
        read_decoder(tmp_path)


def test_weights_of_another_family_are_refused(tmp_path):
    write_theirs(tmp_path, "qwen3")
    edit_config(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"])
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"):
        config.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="layers.0.self_attn.k_norm.weight has no place"):
        read_decoder(tmp_path)


def test_saved_files_are_readable_by_all_and_leave_nothing_beside_them(tmp_path):
    write_theirs(tmp_path / "theirs")
    _, params, config = read_decoder(tmp_path / "theirs")
    save_decoder(tmp_path / "ours", config, params)
    files = {x.name: stat.S_IMODE(x.stat().st_mode) for x in (tmp_path / "ours").iterdir()}
    assert files == {"config.json": 0o644, "model.safetensors": 0o644}


def test_saving_refuses_a_decoder_with_a_missing_parameter(tmp_path):
    write_theirs(tmp_path / "theirs")
    _, params, config = read_decoder(tmp_path / "theirs")
    del params["norm"]
    with pytest.raises(ValueError, match=r"missing \['norm.weight'\]"):
        save_decoder(tmp_path / "ours", config, params)
    assert not (tmp_path / "ours").exists()


def test_all_problems_with_weights_are_named_at_once(tmp_path):
    model = write_theirs(tmp_path, attention_bias=True)
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
    write_theirs(tmp_path, tie_word_embeddings=False)
    edit_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head.weight differs"):
        read_decoder(tmp_path)


def test_quantised_weights_are_refused(tmp_path):
    model = write_theirs(tmp_path)
    tensors = {
        key: x.to(torch.int8) for key, x in model.state_dict().items() if key != "lm_head.weight"
    }
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.norm.weight has type I8"):
        read_decoder(tmp_path)


def test_file_that_was_cut_short_is_named(tmp_path):
    write_theirs(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is missing or cut short"):
        read_decoder(tmp_path)


def test_folder_without_weights_is_named(tmp_path):
    write_theirs(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no safetensors file"):
        read_decoder(tmp_path)
