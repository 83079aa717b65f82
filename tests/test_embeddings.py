"""Vectors and memories of all users on disk: every user once, however often it is interrupted."""

import json
import random
import signal
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import models_made
import numpy as np
import pytest
import runs_made
from flax import nnx
from test_recommend import made

from user_llm import stages
from user_llm.config import SystemConfig
from user_llm.data.builders import build
from user_llm.data.unseen import Stored
from user_llm.inference import embeddings
from user_llm.inference.memories import Memories
from user_llm.inference.recommend import Recommender
from user_llm.models.user_llm import UserLLM
from user_llm.runs import Run
from user_llm.trained import recommender

TOLD = {"model": "a", "data": "b"}
SYSTEM = SystemConfig(perceiver=models_made.PERCEIVER, cross_attention=models_made.CROSS)


def write(recommender, data, folder, shard=3, **options):
    count = len(data.users)
    options = {"told": TOLD} | options
    return embeddings.write(recommender.states, count, data.some, folder, shard=shard, **options)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupted_writing_goes_on_with_what_is_not_there(tmp_path, mesh):
    data, make, params = made("autoregressive")
    recommender = Recommender(data, make, params, mesh=mesh())
    assert write(recommender, data, tmp_path) == 3
    shards = list(embeddings.read(tmp_path))
    assert [len(users) for users, _ in shards] == [3, 3, 1]
    assert [user for users, _ in shards for user in users] == list(data.users)
    vectors = np.concatenate([vectors for _, vectors in shards])
    wanted = recommender.states(data, np.arange(len(data.users)))
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)

    whole = content(tmp_path)
    (tmp_path / "users-000001.parquet").rename(tmp_path / ".users-000001.parquet.0123abcd.tmp")
    with pytest.raises(ValueError, match="lacks 1 of 3 shards, such as users-000001"):
        list(embeddings.read(tmp_path))
    assert write(recommender, data, tmp_path) == 1
    assert content(tmp_path) == whole


def test_several_processes_write_what_one_does(tmp_path, mesh):
    data, make, params = made("autoregressive")
    recommender = Recommender(data, make, params, mesh=mesh())
    write(recommender, data, tmp_path / "one", shard=2)
    parts = [
        write(recommender, data, tmp_path / "three", shard=2, part=(own, 3)) for own in (2, 0, 1)
    ]
    assert parts == [1, 2, 1]
    assert content(tmp_path / "three") == content(tmp_path / "one")


def test_what_another_model_made_is_not_mixed_in(tmp_path, mesh):
    data, make, params = made("autoregressive")
    recommender = Recommender(data, make, params, mesh=mesh())
    write(recommender, data, tmp_path / "first")
    with pytest.raises(ValueError, match=r"holds other vectors \(model differ\)"):
        write(recommender, data, tmp_path / "first", told=TOLD | {"model": "c"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="is not an empty folder"):
        write(recommender, data, tmp_path / "mine")


@pytest.mark.parametrize("latents", [3, 0])
def test_memories_are_the_tokens_that_the_decoder_reads(latents, tmp_path, mesh):
    data, _, _ = made("autoregressive")
    perceiver = models_made.PERCEIVER.model_copy(update={"latents": latents})
    system = SYSTEM.model_copy(update={"perceiver": perceiver})
    parts = system, models_made.DECODER, models_made.ENCODER, data.inputs
    model = models_made.random_model(partial(UserLLM, *parts))
    params = nnx.to_pure_dict(nnx.state(model))
    asked = Memories(partial(UserLLM, *parts), params, history=4, mesh=mesh(2), batch_size=4)
    count = len(data.users)
    embeddings.write(asked.tokens, count, data.some, tmp_path, told=TOLD, shard=4)
    found = [tokens for _, known in embeddings.read(tmp_path) for tokens in known]
    assert len(found) == count
    for user, tokens in enumerate(found):
        first, last = data.offsets[user : user + 2]
        events = np.arange(max(first, last - 4), last)[None]
        batch = {"events": data.gather(events), "segments": np.ones_like(events, np.int32)}
        batch = jax.tree.map(jnp.asarray, batch)
        memory = model.fuse(model.memories(batch))
        assert memory.mask.all()
        np.testing.assert_allclose(tokens, memory.tokens[0], atol=1e-4)


def test_a_memory_that_is_not_of_timelines_alone_is_refused(mesh):
    data, _, _ = made("autoregressive")
    system = SYSTEM.model_copy(update={"streams": ("timeline", "difference")})
    system = system.model_copy(
        update={"difference": system.difference.model_copy(update={"vectors": "encoder"})}
    )
    make = partial(UserLLM, system, models_made.DECODER, models_made.ENCODER, data.inputs)
    with pytest.raises(ValueError, match=r"streams=\('timeline', 'difference'\).* no memory of"):
        Memories(make, {}, history=4, mesh=mesh())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose encoder has learned a little, and a built data set of other users."""
    root = tmp_path_factory.mktemp("trained")
    own = runs_made.EXPERIMENT.pretrain.model_copy(update={"steps": 2, "validate_every": 0})
    run = Run(
        runs_made.EXPERIMENT.model_copy(update={"pretrain": own}), root / "run", root / "datasets"
    )
    stages.pretrain(run)
    other = build("world", source=None, data_dir=root / "datasets", users=70, seed=5)
    return run, other


def test_users_of_another_data_set_are_read_from_the_disk_as_from_memory(trained):
    run, other = trained
    stored = Stored(run.dataset, other)
    assert len(stored) == 70
    whole = stored.some(0, 70)
    assert whole.users == Stored(run.dataset, other).some(0, 70).users
    parts = [stored.some(first, min(first + 32, 70)) for first in range(0, 70, 32)]
    assert sum((part.users for part in parts), ()) == whole.users
    np.testing.assert_array_equal(np.concatenate([part.item for part in parts]), whole.item)
    asked = recommender(run)
    alone = [asked.states(part, np.arange(len(part.users))) for part in parts]
    together = asked.states(whole, np.arange(70))
    np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-5)


def test_a_data_set_without_what_the_features_read_is_refused(trained, tmp_path):
    run, _ = trained
    with pytest.raises(ValueError, match="holds no built data set"):
        Stored(run.dataset, tmp_path)


@pytest.mark.slow
def test_the_verb_killed_again_and_again_writes_every_user_once(trained, tmp_path, monkeypatch):
    run, other = trained
    monkeypatch.chdir(run.data_dir.parent)
    program = (
        "import sys; from user_llm import cli; from user_llm.inference import embeddings; "
        "embeddings.write.__kwdefaults__['shard'] = 8; sys.exit(cli.main(sys.argv[1:]))"
    )
    verb = [sys.executable, "-c", program, "embed", str(run.folder), str(other), "--out"]
    assert subprocess.run([*verb, str(tmp_path / "whole")]).returncode == 0
    killed, rng = tmp_path / "killed", random.Random(0)
    for _ in range(3):
        started = subprocess.Popen([*verb, str(killed)])
        while started.poll() is None and not (killed / "index.json").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        started.send_signal(signal.SIGKILL)
        started.wait()
    assert subprocess.run([*verb, str(killed)]).returncode == 0
    assert content(killed) == content(tmp_path / "whole")
    users = [user for some, _ in embeddings.read(killed) for user in some]
    assert len(users) == len(set(users)) == 70
    assert json.loads((killed / "index.json").read_text())["users"] == 70
