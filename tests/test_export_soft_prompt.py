"""Users as prompt embeddings: transformers, given them, answers as the system does."""

import base64
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exports_made import untrained
from flax import nnx
from safetensors.numpy import load_file, save_file

from user_llm.serving import export, sealed, soft_prompt
from user_llm.serving.leaving import Leaving
from user_llm.serving.soft_prompt import SoftPrompts, payload

pytestmark = pytest.mark.slow
PROMPT = [5, 9, 3, 44, 17, 250]
SLIDING = {"sliding_window": 3, "layer_types": ("sliding_attention", "full_attention")}
FAMILIES = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": {},
    "gemma2": SLIDING
    | {
        "query_pre_attn_scalar": 4,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": SLIDING | {"rope_local_base_freq": 100.0, "query_pre_attn_scalar": 4},
}


def exported(tmp_path, monkeypatch, family, **asked):
    decoder = {"model_type": family} | FAMILIES[family]
    run = untrained(tmp_path / "run", monkeypatch, decoder=decoder, fusion="soft_prompt")
    export.export(run, tmp_path / "out", "soft-prompt", **asked)
    return run, tmp_path / "out"


def wanted_logits(run, user):
    """What the system itself says behind a prompt, of a user of its data set."""
    served = Leaving(run).served
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: served.make_model(rngs=nnx.Rngs(0))))
    model = nnx.merge(graphdef, served.params)
    first, last = run.dataset.offsets[user : user + 2]
    events = np.arange(max(first, last - served.told.history), last)[None]
    batch = {
        "events": run.dataset.gather(events),
        "segments": np.ones_like(events, np.int32),
        "tokens": np.array([PROMPT], np.int32),
    }
    return np.asarray(jax.jit(lambda batch: model(batch))(jax.tree.map(jnp.asarray, batch))[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_answers_behind_them_as_the_system(tmp_path, monkeypatch, family):
    import torch
    from transformers import AutoModelForCausalLM

    run, folder = exported(tmp_path, monkeypatch, family)
    made, user = SoftPrompts.load(folder), run.dataset.users[3]
    wanted, memory = wanted_logits(run, 3), made.memory(user)
    assert memory.shape == (3, 8) and memory.dtype == np.float32
    np.testing.assert_allclose(made.logits(memory, PROMPT), wanted, atol=2e-5)
    model = AutoModelForCausalLM.from_pretrained(folder / "decoder", dtype=torch.float32)
    sent = torch.load(
        io.BytesIO(base64.b64decode(made.prompt_embeds(user, PROMPT))), weights_only=True
    )
    assert sent.dtype == torch.float32 and sent.shape == (len(memory) + len(PROMPT), 8)
    # What vLLM would multiply by itself has to come that much smaller.
    sent = sent * (8**0.5 if family == "gemma2" else 1.0)
    with torch.no_grad():
        logits = model(inputs_embeds=sent[None]).logits[0, len(memory) :].numpy()
        plain = model(torch.tensor([PROMPT])).logits[0].numpy()
    np.testing.assert_allclose(logits, wanted, atol=2e-5)
    assert np.abs(plain - wanted).max() > 1e-2  # the user is in them
    with torch.no_grad():
        theirs = model.get_input_embeddings()(torch.tensor(PROMPT)).numpy()
    np.testing.assert_allclose(made.embedded(PROMPT), theirs, rtol=1e-6)


def test_users_of_a_file_leave_with_it_and_damage_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(soft_prompt, "SHARD", 2)
    rows = [
        {"user": user, "item": item, "timestamp": 1_700_000_000 + n}
        for user in ("ann", "bob/../x", "cy")
        for n, item in enumerate(("1", "2", "3"))
    ]
    events = tmp_path / "events.jsonl"
    events.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, folder = exported(tmp_path, monkeypatch, "llama", events=events)
    made = SoftPrompts.load(folder)
    assert sorted(made.files) == ["ann", "bob/../x", "cy"]
    assert [path.name for path in sorted((folder / "users").iterdir())] == [
        "users-000000.safetensors",
        "users-000001.safetensors",
    ]
    np.testing.assert_allclose(made.memory("ann"), made.memory("cy"), rtol=1e-6)
    with pytest.raises(ValueError, match="'dan' is none of the 3 users that were exported"):
        made.memory("dan")

    copy = shutil.copytree(folder, tmp_path / "copy")
    found = load_file(copy / "selftest.safetensors")
    save_file(found | {"logits": found["logits"] * 1.01}, copy / "selftest.safetensors")
    index = json.loads((copy / sealed.INDEX).read_text())
    (copy / sealed.INDEX).write_text(json.dumps(index | {"files": sealed.hashes(copy)}))
    with pytest.raises(ValueError, match="the logits of its self-test differ by"):
        SoftPrompts.load(copy)

    (folder / "users" / "users-000001.safetensors").unlink()
    weights = folder / "decoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    said = "users-000001.safetensors is missing; decoder/model.safetensors is damaged"
    with pytest.raises(ValueError, match=said):
        SoftPrompts.load(folder)


def test_what_is_read_otherwise_is_refused(tmp_path, monkeypatch):
    run = untrained(tmp_path / "crossed", monkeypatch)
    with pytest.raises(ValueError, match="user_llm has fusion='cross_attention' .*soft_prompt"):
        export.export(run, tmp_path / "out", "soft-prompt")
    run = untrained(tmp_path / "items", monkeypatch, fusion="soft_prompt", item_tokens=True)
    with pytest.raises(ValueError, match="user_llm has item_tokens .*no tokens but words"):
        export.export(run, tmp_path / "out", "soft-prompt")
    monkeypatch.setattr(soft_prompt, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="install the extra `test`"):
        payload(np.zeros((1, 2)), np.zeros((3, 2)))
    assert not (tmp_path / "out").exists()
