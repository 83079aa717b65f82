"""Programs that answer without this package: the same numbers, in a process with jax and numpy."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exports_made import untrained
from flax import nnx

from user_llm.config import PerceiverConfig
from user_llm.inference.generate import Generator
from user_llm.serving import bundle, export, sealed, stablehlo
from user_llm.serving.leaving import Leaving

pytestmark = pytest.mark.slow
PROMPTS = [[5, 9, 3, 44, 17, 2, 8], [7], [250, 11, 11]]
NEW = 6
SLIDING = {"sliding_window": 3, "layer_types": ("sliding_attention", "full_attention")}
SYSTEMS = {
    "crossed": {"encoder": {"kind": "hstu"}, "perceiver": PerceiverConfig(latents=0)},
    "prompted": {
        "decoder": SLIDING | {"model_type": "gemma2", "param_dtype": "bfloat16"},
        "fusion": "soft_prompt",
    },
    "items": {"item_tokens": True, "fusion": "none", "encoder": {"kind": "bert4rec"}},
}
# Nothing of ours, nor of what we stand on, but jax, numpy and what jax itself imports.
ASK = """
import importlib.util, sys
from pathlib import Path

sys.dont_write_bytecode = True
folder, arrays, out = map(Path, sys.argv[1:4])
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[4].split(","):
            raise ModuleNotFoundError(f"{name} is absent", name=name)
sys.meta_path.insert(0, Absent())
spec = importlib.util.spec_from_file_location("run", folder / "run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
import numpy as np

asked = dict(np.load(arrays))
bundle = run.Bundle.load(folder)
memory = bundle.encode(run.events_of(asked), asked["segments"])
logits, state = bundle.prefill(asked["tokens"], asked["lengths"], memory, 40)
prompts = [row[:n].tolist() for row, n in zip(asked["tokens"], asked["lengths"])]
answers = bundle.answer(prompts, memory, int(asked["new"]))
width = max(map(len, answers))
rows = np.array([a + [-1] * (width - len(a)) for a in answers])
np.savez(out, memory=memory["tokens"], logits=logits, answers=rows)
print(*{name.partition(".")[0] for name in sys.modules})
"""
ABSENT = "user_llm,flax,safetensors,transformers,torch,orbax,pyarrow,pydantic,einops,optax"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Each of the systems, its run and its folder, once it is asked for."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                run = untrained(folder / "run", patch, **SYSTEMS[name])
                export.export(run, folder / "out", "stablehlo")
                made[name] = Leaving(run).served, run, folder / "out"
        return made[name]

    return of


def asked(run, history=8):
    """Three users of other lengths than those of the self-test, and their prompts."""
    data = run.dataset
    counts = [history, 1, 3]
    events = np.full((3, history), -1)
    for row, user, count in zip(events, (4, 0, 2), counts, strict=True):
        row[:count] = data.offsets[user + 1] - count + np.arange(count)
    tokens = np.zeros((3, max(map(len, PROMPTS))), np.int32)
    for row, prompt in zip(tokens, PROMPTS, strict=True):
        row[: len(prompt)] = prompt
    return {
        **{f"events.{name}": x for name, x in data.gather(events).items()},
        "segments": (events >= 0).astype(np.int32),
        "tokens": tokens,
        "lengths": np.array([*map(len, PROMPTS)], np.int32),
        "new": np.array(NEW),
    }


def of_system(served, test):
    """What the system itself remembers of users, and the first logits and answers."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: served.make_model(rngs=nnx.Rngs(0))))
    model = nnx.merge(graphdef, served.params)
    batch = {"events": bundle.events_of(test), "segments": test["segments"]}
    memory = jax.jit(lambda batch: model.fuse(model.memories(batch)))(
        jax.tree.map(jnp.asarray, batch)
    )
    generator = Generator(model.speaker())
    place = "memory" if model.system.crossed else "prefix"
    known = {} if memory is None else {place: memory}
    logits, _ = generator.start(PROMPTS, new_tokens=NEW, **known)
    stop = (served.tokenizer.eos,)
    answers = generator.generate(PROMPTS, max_new_tokens=NEW, stop=stop, **known)
    return memory, logits, answers


@pytest.mark.parametrize("name", SYSTEMS)
def test_programs_answer_as_the_system(exported, name):
    served, run, folder = exported(name)
    made, test = stablehlo.load(folder), asked(run)
    assert made.differing and not any(made.differing.values())
    memory, logits, answers = of_system(served, test)
    found = made.encode(bundle.events_of(test), test["segments"])
    if memory is None:
        assert found == {}
    else:
        np.testing.assert_allclose(found["tokens"], memory.tokens, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found["mask"], memory.mask)
    first, _ = made.prefill(test["tokens"], test["lengths"], found, slots=40)
    np.testing.assert_allclose(first, logits, rtol=1e-5, atol=1e-5)
    assert made.answer(PROMPTS, found, NEW) == answers
    # And one alone as with others, with as few slots as hold the answer.
    one = {k: x[:1, :] for k, x in found.items()}
    assert made.answer(PROMPTS[:1], one, NEW) == answers[:1]


def python_without_us(tmp_path, fresh: bool) -> str:
    """An interpreter; a fresh one has jax and numpy, and what these ask for, alone."""
    if not fresh:
        return sys.executable
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv/bin/python")
    pinned = str(Path(__file__).parents[1] / "constraints.txt")
    command = [python, "-m", "pip", "install", "--quiet", "-c", pinned, "jax", "numpy"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install jax here: {done.stderr.strip()[-300:]}")
    return python


@pytest.mark.parametrize("fresh", [False, True], ids=["blocked", "venv"])
def test_jax_and_numpy_are_enough(exported, fresh, tmp_path):
    _, run, folder = exported("prompted")
    python, test = python_without_us(tmp_path, fresh), asked(run)
    np.savez(tmp_path / "asked.npz", **test)
    (tmp_path / "ask.py").write_text(ASK)
    # With as many devices as this process, numbers are the same to the last bit.
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environ["JAX_NUM_CPU_DEVICES"] = "8"
    command = [python, tmp_path / "ask.py", folder, tmp_path / "asked.npz", tmp_path / "out.npz"]
    done = subprocess.run(
        [*command, ABSENT], capture_output=True, text=True, env=environ, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert not {*ABSENT.split(",")} & {*done.stdout.split()}
    with np.load(tmp_path / "out.npz") as file:
        theirs = dict(file)
    made = stablehlo.load(folder)
    memory = made.encode(bundle.events_of(test), test["segments"])
    logits, _ = made.prefill(test["tokens"], test["lengths"], memory, 40)
    assert np.abs(theirs["memory"] - memory["tokens"]).max() == 0.0
    assert np.abs(theirs["logits"] - logits).max() == 0.0
    answers = made.answer(PROMPTS, memory, NEW)
    assert [[x for x in row if x >= 0] for row in theirs["answers"].tolist()] == answers
    if fresh:
        command = [python, folder / "run.py"]
        told = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path)
        assert "logits: differs by 0.0 at most" in told.stdout and " -> [" in told.stdout
    sealed.opened(folder, "stablehlo")  # nothing was left there


@pytest.mark.parametrize("name", SYSTEMS)
def test_programs_are_lowered_for_every_platform_alike(exported, name):
    from jax import export as programs

    folder = exported(name)[2]
    for path in folder.glob("*.bin"):
        program = programs.deserialize(bytearray(path.read_bytes()))
        assert program.platforms == ("cpu", "cuda", "tpu")
        # Kernels of one platform would be custom calls; this one checks sizes, and is gone then.
        called = re.findall(r"custom_call @(\w+)", program.mlir_module())
        assert {*called} <= {"shape_assertion"}


def test_bfloat16_survives(exported):
    served, _, folder = exported("prompted")
    made, wanted = stablehlo.load(folder), stablehlo.programs(served).params
    kinds = {name: x.dtype for name, x in made.params["decode"].items()}
    assert kinds["embed_tokens"] == jnp.bfloat16
    for part, own in wanted.items():
        assert made.params[part].keys() == own.keys()
        for name, x in own.items():
            assert made.params[part][name].dtype == x.dtype
            np.testing.assert_array_equal(made.params[part][name], x)


def test_damaged_and_mixed_exports_are_refused_by_name(exported, tmp_path):
    _, _, folder = exported("prompted")
    other = exported("crossed")[2]
    for load in (stablehlo.load, bundle.Bundle.load):
        copy = tmp_path / load.__qualname__
        shutil.copytree(folder, copy)
        shutil.copy(other / "prefill.bin", copy)
        (copy / "step.bin").unlink()
        with pytest.raises(ValueError) as error:
            load(copy)
        assert "step.bin is missing" in str(error.value)
        assert "prefill.bin is damaged, or of another export" in str(error.value)
        assert "params.npz" not in str(error.value)
    shutil.copy(folder / "step.bin", copy)
    shutil.copy(folder / "prefill.bin", copy)
    with np.load(copy / "selftest.npz") as file:
        test = dict(file)
    np.savez(copy / "selftest.npz", **test | {"found.next_logits": test["found.next_logits"] + 1})
    index = json.loads((copy / sealed.INDEX).read_text())
    (copy / sealed.INDEX).write_text(json.dumps(index | {"files": sealed.hashes(copy)}))
    with pytest.raises(ValueError, match="the next_logits of its self-test differ by 1"):
        stablehlo.load(copy)


def test_too_few_slots_and_too_many_events_are_refused(exported):
    _, run, folder = exported("prompted")
    made, test = stablehlo.load(folder), asked(run)
    memory = made.encode(bundle.events_of(test), test["segments"])
    with pytest.raises(ValueError, match="8 slots are too few: prompts and memory take 10"):
        made.prefill(test["tokens"], test["lengths"], memory, slots=8)
    long = {k: np.tile(x, (1, 2, *[1] * (x.ndim - 2))) for k, x in test.items() if x.ndim > 1}
    with pytest.raises(ValueError, match="of 16 events the newest 8 are to be given"):
        made.encode(bundle.events_of(long), long["segments"])


def test_what_has_no_place_in_a_format_is_refused(exported, tmp_path, monkeypatch):
    _, run, _ = exported("crossed")
    with pytest.raises(ValueError, match="no format onnx; there are huggingface, stablehlo,"):
        export.export(run, tmp_path / "out", "onnx")
    with pytest.raises(ValueError, match="stablehlo has no place for --adapter"):
        export.export(run, tmp_path / "out", "stablehlo", adapter=True)
    with pytest.raises(ValueError, match="stablehlo holds no users"):
        export.export(run, tmp_path / "out", "stablehlo", events=tmp_path / "events.csv")
    monkeypatch.setattr(stablehlo, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="install the extra `serve`"):
        export.export(run, tmp_path / "out", "stablehlo")
    assert not (tmp_path / "out").exists()
