"""Exports: read by transformers, made whole again without the run, and refused where damaged."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from serving_made import made_run, raw_events

from user_llm import grammar, trained
from user_llm.config import LoRAConfig
from user_llm.serving import export, sealed
from user_llm.serving.served import Served

PROMPT = [0, 5, 9, 3, 44, 17]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # PEFT's
]


@pytest.fixture(scope="module")
def run(made_export):
    return made_export[0]


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def model_of(make_model, params):
    return nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))), params)


def test_what_is_served_answers_as_the_run(run, exported):
    served = Served.load(exported)
    memories, history = trained.memories(run), run.experiment.finetune.history
    model = model_of(run.make_model(run.systems["user_llm"]), trained.system(run))
    for user in range(3):
        found = served.answered(raw_events(run, user), PROMPT)
        wanted = memories.tokens(run.dataset, np.array([user]))[0]
        np.testing.assert_allclose(found["memory"][0], wanted, atol=1e-5)
        first, last = run.dataset.offsets[user : user + 2]
        events = np.arange(max(first, last - history), last)[None]
        batch = {
            "events": run.dataset.gather(events),
            "segments": np.ones_like(events, np.int32),
            "tokens": np.array([PROMPT], np.int32),
        }
        logits = jax.jit(lambda batch: model(batch))(jax.tree.map(jnp.asarray, batch))
        np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
    assert [served.tokenizer.decode(PROMPT)] == [run.tokenizer.decode(PROMPT)]


def torch_logits(folder, adapter=None):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits.numpy()


def plain_logits(served):
    """Of the decoder alone, which reads no user."""
    model = model_of(served.make_model, served.params)
    return jax.jit(lambda tokens: model.decoder(tokens))(jnp.array([PROMPT]))


def test_transformers_reads_the_decoder(exported):
    from transformers import AutoTokenizer

    np.testing.assert_allclose(
        torch_logits(exported / "decoder"), plain_logits(Served.load(exported)), atol=1e-5
    )
    assert len(AutoTokenizer.from_pretrained(exported / "decoder")) <= 300
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: user-llm\n") and "recall 1.0" in card


def test_adapters_are_merged_or_lie_beside_the_decoder(tmp_path):
    run = made_run(tmp_path / "run", strategy="lora", lora=LoRAConfig(rank=2))
    adapted = trained.system(run)["decoder"]["layers"]["self_attn"]["q_proj"]["lora_b"]
    assert np.abs(adapted).max() > 0
    export.export(run, tmp_path / "merged")
    export.export(run, tmp_path / "beside", adapter=True)
    merged, beside = (Served.load(tmp_path / name) for name in ("merged", "beside"))
    assert merged.told.system.lora.rank == 0 and beside.told.system.lora.rank == 2
    events = raw_events(run, 0)
    for name, x in beside.answered(events, PROMPT).items():
        np.testing.assert_allclose(merged.answered(events, PROMPT)[name], x, atol=1e-5)
    wanted = plain_logits(merged)
    np.testing.assert_allclose(torch_logits(tmp_path / "merged/decoder"), wanted, atol=1e-5)
    theirs = torch_logits(tmp_path / "beside/decoder", tmp_path / "beside/adapter")
    np.testing.assert_allclose(theirs, wanted, atol=1e-5)


def test_damaged_mixed_and_strange_exports_are_refused_by_name(copy, exported, run, tmp_path):
    (copy / "user.safetensors").write_bytes(b"\0" + (copy / "user.safetensors").read_bytes()[1:])
    (copy / "data" / "schema.json").unlink()
    (copy / "notes.txt").write_text("mine")
    said = "schema.json is missing; notes.txt does not belong to it; user.safetensors is damaged"
    with pytest.raises(ValueError, match=said):
        Served.load(copy)
    with pytest.raises(ValueError, match="holds no export"):
        Served.load(tmp_path)
    index = json.loads((exported / sealed.INDEX).read_text())
    for name, told in {"format": "stablehlo", "layout": 99}.items():
        (copy / sealed.INDEX).write_text(json.dumps(index | {name: told}))
        with pytest.raises(ValueError, match=f"{told}.*export the run again with this release"):
            Served.load(copy)
    (copy / sealed.INDEX).write_text("{")
    with pytest.raises(ValueError, match="export.json is damaged"):
        Served.load(copy)
    with pytest.raises(ValueError, match="is there already"):
        export.export(run, exported)


def test_a_system_that_answers_otherwise_is_refused(copy):
    found = load_file(copy / "selftest.safetensors")
    save_file(found | {"logits": found["logits"] * 1.01}, copy / "selftest.safetensors")
    index = json.loads((copy / sealed.INDEX).read_text())
    (copy / sealed.INDEX).write_text(json.dumps(index | {"files": sealed.hashes(copy)}))
    with pytest.raises(ValueError, match="the logits of its self-test differ by"):
        Served.load(copy)


def test_what_cannot_be_exported_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="the run has no system nobody; it has user_llm"):
        export.export(run, tmp_path / "out", name="nobody")
    with pytest.raises(ValueError, match="has no adapter"):
        export.export(run, tmp_path / "out", adapter=True)
    assert not (tmp_path / "out").exists()


def test_the_command_line_knows_every_format():
    command = ["export", "runs/tiny", "--out", "exports/tiny", "--format"]
    for form in sealed.LAYOUTS:
        assert grammar.parser().parse_args([*command, form]).form == form
    with pytest.raises(SystemExit):
        grammar.parser().parse_args([*command, "onnx"])
