"""Checkpoints survive flipped bits, missing files, kill -9 and a change of mesh.

`USER_LLM_FLIPS=5000` flips so many bits instead of a few hundred, and with `pytest -s` tells how
many were detected and how many did no harm.
"""

import errno
import gc
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from user_llm.training import checkpoint
from user_llm.training.checkpoint import Checkpoints

SPECS = {
    "trained": {"kernel": P("fsdp", "tensor"), "moment": P()},
    "frozen": {"kernel": P(None, "tensor", "fsdp")},
    "step": P(),
}
CONFIG = {"name": "tiny", "seed": 3}
FLIPS = int(os.environ.get("USER_LLM_FLIPS", 100))


def make_state(mesh, seed=0):
    """A state with bfloat16, an integer, a random key, and arrays split over two mesh axes."""
    rng = np.random.default_rng(seed)
    arrays = {
        "trained": {
            "kernel": rng.normal(size=(8, 16)).astype(np.float32),
            "moment": rng.normal(size=100).astype(np.float32),
        },
        "frozen": {"kernel": rng.normal(size=(4, 8, 8)).astype(jnp.bfloat16)},
        "step": np.array(seed, np.int32),
    }

    def put(x, spec):
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda i: x[i])

    key = jax.jit(jax.random.key, out_shardings=NamedSharding(mesh, P()))(seed)
    return jax.tree.map(put, arrays, SPECS) | {"key": key}


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def bits(tree):
    """Every leaf's raw bytes, so that equality is bitwise."""
    leaves = jax.tree.leaves(tree)
    keys = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
    raw = [jax.random.key_data(x) if key else x for x, key in zip(leaves, keys, strict=True)]
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in raw]


def step_folder(folder, step):
    return next(folder.glob(f"{step:08d}-*"))


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.fixture
def two_steps(tmp_path, mesh):
    """A folder with steps 1 and 2, and their states."""
    states = {step: make_state(mesh(2, 2, 2), step) for step in (1, 2)}
    checkpoints = Checkpoints(tmp_path)
    for step, state in states.items():
        checkpoints.save(step, state, config=CONFIG, metrics={"loss": 1 / step})
    checkpoints.wait()
    return checkpoints, states


def test_restores_every_bit_with_step_config_and_metrics(two_steps):
    checkpoints, states = two_steps
    restored = checkpoints.restore(abstract(states[2]))
    assert (restored.step, restored.config, restored.metrics) == (2, CONFIG, {"loss": 0.5})
    assert bits(restored.state) == bits(states[2])


def test_an_empty_or_absent_folder_has_no_checkpoint(tmp_path, mesh):
    checkpoints = Checkpoints(tmp_path / "absent")
    assert checkpoints.restore(abstract(make_state(mesh()))) is None
    assert (checkpoints.steps(), checkpoints.best()) == ([], None)
    with pytest.raises(ValueError, match=r"absent holds no checkpoint"):
        checkpoints.restore_params({})


def test_restores_onto_another_mesh_placed_as_asked(two_steps, mesh):
    checkpoints, states = two_steps
    wanted = abstract(make_state(mesh(1, 2, 2)))
    restored = checkpoints.restore(wanted).state
    assert bits(restored) == bits(states[2])
    placements = jax.tree.map(lambda x: x.sharding, restored)
    assert placements == jax.tree.map(lambda x: x.sharding, wanted)
    assert len(restored["trained"]["kernel"].devices()) == 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own
def test_flipped_bits_are_detected_or_harmless(two_steps, caplog):
    checkpoints, states = two_steps
    right = {step: (step, CONFIG, {"loss": 1 / step}, bits(states[step])) for step in states}
    files, rng, found = files_of(step_folder(checkpoints.folder, 2)), random.Random(0), Counter()
    for nth in range(FLIPS):
        path = files[nth % len(files)]
        good = path.read_bytes()
        bad, place, bit = bytearray(good), rng.randrange(len(good)), rng.randrange(8)
        bad[place] ^= 1 << bit
        path.write_bytes(bad)
        caplog.clear()
        restored = checkpoints.restore(abstract(states[2]))
        path.write_bytes(good)
        got = restored.step, restored.config, restored.metrics, bits(restored.state)
        assert got == right[restored.step], f"silently wrong: {path}, byte {place}, bit {bit}"
        fell_back = restored.step == 1
        assert bool(re.search(r"00000002-\w+ is DAMAGED", caplog.text)) == fell_back
        assert ("fell back to the checkpoint of step 1" in caplog.text) == fell_back
        found["detected" if fell_back else "harmless"] += 1
    print(f"\n{FLIPS} flips in {len(files)} files: {dict(found)}")
    assert found["detected"] > FLIPS // 3
    gc.collect()  # the noise of Orbax's abandoned tasks belongs to this test


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "hurt", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])]
)
def test_missing_and_truncated_files_are_detected_or_harmless(two_steps, hurt):
    checkpoints, states = two_steps
    steps = set()
    for path in files_of(step_folder(checkpoints.folder, 2)):
        good = path.read_bytes()
        hurt(path)
        restored = checkpoints.restore(abstract(states[2]))
        assert bits(restored.state) == bits(states[restored.step])
        steps.add(restored.step)
        path.write_bytes(good)
    assert 1 in steps
    gc.collect()


def test_names_the_leaf_whose_bits_are_not_those_saved(two_steps, caplog, monkeypatch):
    """Bits flipped where no codec looks: in memory, between the file and the state."""
    checkpoints, states = two_steps
    load = checkpoint.ocp.load

    def flip(path, wanted):
        leaves = load(path, wanted)
        if "00000002-" in str(path):
            leaves["trained.moment"] = leaves["trained.moment"].at[7].multiply(-1.0)
        return leaves

    monkeypatch.setattr(checkpoint.ocp, "load", flip)
    assert checkpoints.restore(abstract(states[2])).step == 1
    assert "SHA-256 differs in trained.moment" in caplog.text


def test_refuses_when_every_checkpoint_is_damaged(two_steps):
    checkpoints, states = two_steps
    for step in states:
        (step_folder(checkpoints.folder, step) / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"every .* damaged: 00000002.*00000001.*manifest.json"):
        checkpoints.restore(abstract(states[2]))


def test_names_every_parameter_that_does_not_fit(two_steps):
    checkpoints, states = two_steps
    wanted = abstract(states[2])
    wanted["trained"]["kernel"] = wanted["trained"]["kernel"].update(shape=(8, 32))
    wanted["frozen"]["kernel"] = wanted["frozen"]["kernel"].update(dtype=jnp.float32)
    wanted["trained"]["bias"] = wanted["trained"].pop("moment")
    wanted["step"] = jax.ShapeDtypeStruct((), jnp.int32)
    with pytest.raises(ValueError) as error:
        checkpoints.restore(wanted)
    assert str(error.value).splitlines()[1:] == [
        "  trained.moment: unexpected",
        "  frozen.kernel: bfloat16[4, 8, 8], wanted float32[4, 8, 8]",
        "  step: wanted without a sharding",
        "  trained.bias: missing",
        "  trained.kernel: float32[8, 16], wanted float32[8, 32]",
    ]


def test_restores_some_parameters_trained_or_frozen(tmp_path, mesh):
    state = make_state(mesh(2, 2, 2), 4)
    state = {
        "trained": {"encoder": {"a": state["trained"]["kernel"]}, "head": state["step"]},
        "frozen": {"encoder": {"b": state["frozen"]["kernel"]}},
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, state, config=CONFIG)
    wanted = {"a": state["trained"]["encoder"]["a"], "b": state["frozen"]["encoder"]["b"]}
    restored = checkpoints.restore_params(abstract(wanted), prefix="encoder.")
    assert restored.config == CONFIG
    assert bits(restored.state) == bits(wanted)
    with pytest.raises(ValueError) as error:
        checkpoints.restore_params({"c": abstract(wanted["a"])}, prefix="encoder.")
    assert str(error.value).splitlines()[1:] == [
        "  trained.encoder.a: unexpected",  # frozen ones may be left behind, trained ones not
        "  trained.encoder.c: missing",
    ]


def test_restores_the_running_mean_of_parameters_where_there_is_one(tmp_path, mesh):
    kernel = make_state(mesh(2, 2, 2), 4)["trained"]["kernel"]
    state = {"trained": {"a": kernel}, "average": {"a": kernel + 1}, "frozen": {"b": kernel}}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, state, config=CONFIG)
    wanted = {"a": kernel + 1, "b": kernel}
    assert bits(checkpoints.restore_params(abstract(wanted)).state) == bits(wanted)


def test_keeps_the_latest_and_the_best(tmp_path, mesh):
    checkpoints = Checkpoints(tmp_path, keep=2)
    states = {step: make_state(mesh(), step) for step in range(1, 7)}
    for step, state in states.items():
        metrics = {"score": float(step)}
        checkpoints.save(step, state, config=CONFIG, metrics=metrics, best=step in (1, 3))
    assert (checkpoints.steps(), checkpoints.best()) == ([3, 5, 6], (3, {"score": 3.0}))
    assert checkpoints.best(until=2) is None
    assert checkpoints.restore(abstract(states[1])).step == 6
    assert bits(checkpoints.restore(abstract(states[1]), best=True).state) == bits(states[3])


def test_keeps_one_of_every_so_many_steps_for_good(tmp_path, mesh):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_every=3)
    state = make_state(mesh())
    for step in range(1, 8):
        checkpoints.save(step, state, config=CONFIG)
    assert checkpoints.steps() == [3, 6, 7]


def test_without_a_best_the_newest_is_the_best(two_steps):
    checkpoints, states = two_steps
    assert checkpoints.best() is None
    assert checkpoints.restore(abstract(states[2]), best=True).step == 2


def test_a_damaged_best_is_the_newest_instead(two_steps, caplog):
    checkpoints, states = two_steps
    checkpoints.save(1, states[1], config=CONFIG, best=True)
    checkpoints.save(2, states[2], config=CONFIG)
    checkpoints.wait()
    (step_folder(checkpoints.folder, 1) / "manifest.json").write_text("{}")
    assert checkpoints.best() is None
    assert checkpoints.restore(abstract(states[2]), best=True).step == 2
    assert re.search(r"00000001-\w+-best is DAMAGED", caplog.text)


def test_a_step_may_be_saved_again(two_steps, mesh):
    checkpoints, states = two_steps
    checkpoints.save(2, states[2], config=CONFIG, metrics={"loss": 0.5})  # the very same
    assert bits(checkpoints.restore(abstract(states[2])).state) == bits(states[2])
    other = make_state(mesh(2, 2, 2), 5)
    checkpoints.save(2, other, config=CONFIG, best=True)
    assert bits(checkpoints.restore(abstract(other)).state) == bits(other)
    assert (checkpoints.steps(), checkpoints.best()) == ([1, 2], (2, {}))
    assert len(list(checkpoints.folder.iterdir())) == 2


def test_a_run_that_fell_back_outlives_the_damaged_future(two_steps, mesh):
    checkpoints, states = two_steps
    checkpoints.save(7, states[2], config=CONFIG)
    checkpoints.wait()
    (step_folder(checkpoints.folder, 7) / "manifest.json").write_text("{}")
    checkpoints.save(3, states[1], config=CONFIG)
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.restore(abstract(states[1])).step == 3


def test_a_full_disk_costs_a_checkpoint_and_nothing_that_is_stored(two_steps, caplog, monkeypatch):
    checkpoints, states = two_steps
    save = checkpoint.ocp.save_async

    def fills(path, leaves):
        Path(path).mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp, "save_async", fills)
    checkpoints.save(3, states[2], config=CONFIG)
    with pytest.raises(OSError, match=r"could not be written to .*No space left on device"):
        checkpoints.wait()
    assert len(list(checkpoints.folder.iterdir())) == 2  # nothing is left of it
    checkpoints.save(4, states[2], config=CONFIG)
    monkeypatch.setattr(checkpoint.ocp, "save_async", save)
    checkpoints.save(5, states[2], config=CONFIG)  # as a training would go on
    assert "No space left on device; free space there" in caplog.text
    assert checkpoints.steps() == [2, 5]


SAVER = """
import itertools, sys, jax, jax.numpy as jnp
from user_llm.training.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=1)
start = max(checkpoints.steps(), default=0)
for step in itertools.count(start + 1):
    checkpoints.save(step, {"step": jnp.int32(step), "x": jnp.full(50_000, float(step))}, config={})
    checkpoints.wait()
    print(step, flush=True)
"""


@pytest.mark.slow
def test_kill_9_never_leaves_an_unreadable_folder(tmp_path):
    rng = random.Random(0)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding),
        "x": jax.ShapeDtypeStruct((50_000,), jnp.float32, sharding=sharding),
    }
    for _ in range(5):
        saver = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        reported = int(saver.stdout.readline())
        time.sleep(rng.uniform(0.0, 0.3))  # a save takes about 0.05 s
        saver.send_signal(signal.SIGKILL)
        reported = max([reported, *map(int, saver.communicate()[0].split())])
        restored = Checkpoints(tmp_path).restore(wanted)
        assert restored.step in (reported, reported + 1)
        assert int(restored.state["step"]) == restored.step
        assert np.all(np.asarray(restored.state["x"]) == restored.step)


PROCESS = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
sys.path.insert(0, sys.argv[3])
from test_checkpoint import abstract, make_state
from user_llm.config import MeshConfig
from user_llm.sharding import make_mesh
from user_llm.training.checkpoint import Checkpoints

state = make_state(make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)), 1)
assert not state["trained"]["kernel"].is_fully_addressable
checkpoints = Checkpoints(sys.argv[4])
for step in (1, 2):
    checkpoints.save(step, state, config={})
assert checkpoints.restore(abstract(state)).step == 2
"""


@pytest.mark.slow
def test_two_processes_save_what_one_restores(tmp_path, mesh):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(i), str(Path(__file__).parent), tmp_path],
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    state = make_state(mesh(2, 2, 2), 1)
    restored = Checkpoints(tmp_path).restore(abstract(state))
    assert restored.step == 2
    assert bits(restored.state) == bits(state)
