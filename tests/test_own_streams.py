"""Streams of one's own: found by where they are, read like any other, refused by name."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import models_made
import numpy as np
import pytest
import systems_made
import timelines_made
from flax import nnx
from pydantic import ValidationError
from systems_made import APART, Rated

from user_llm import cli
from user_llm.config import SystemConfig
from user_llm.models.layers import Memory
from user_llm.models.streams import Given, make_stream, maker, own_columns
from user_llm.models.user_llm import UserLLM
from user_llm.runs import Run
from user_llm.serving.leaving import Leaving

OWN = "systems_made:Rated"
BOTH = SystemConfig(
    streams=(OWN, "timeline"), cross_attention=models_made.CROSS, perceiver=models_made.PERCEIVER
)
GIVEN = Given(BOTH, models_made.DECODER, models_made.ENCODER, models_made.FEATURES)
BATCH = models_made.random_batch(0, (6, 2, 0))


class Following(Rated):
    """Of as many tokens as events."""

    count = None


class Wide(Rated):
    def __call__(self, batch):
        return Memory(jnp.zeros((3, 1, self.width + 1)), jnp.ones((3, 1), bool))


class Maskless(Rated):
    def __call__(self, batch):
        return jnp.zeros((3, 1, self.width))


class Nosy(Rated):
    def __call__(self, batch):
        return batch["tokens"]


class Demanding(Rated):
    def own_loss(self, batch):
        return jnp.float32(6), jnp.float32(3)


class Unmade(nnx.Module):
    def __init__(self, rngs):
        raise AssertionError


class Widthless(nnx.Module):
    def __init__(self, given, *, rngs):
        pass

    def __call__(self, batch):
        raise AssertionError


def plain(given, *, rngs):
    return given


def columns(**made):
    """A class whose streams make these columns."""
    return type("Made", (Rated,), {"columns": staticmethod(lambda data: made)})


def make(system):
    return partial(UserLLM, system, models_made.DECODER, models_made.ENCODER, models_made.FEATURES)


def here(name):
    return f"{__name__}:{name}"


def changed(**update):
    return BOTH.model_copy(update=update)


@pytest.mark.parametrize("streams", [("timelines",), ("my stream:Class",), ("module:",), (":C",)])
def test_a_config_says_what_may_be_a_stream(streams):
    with pytest.raises(ValidationError, match="is none of timeline, persona, difference"):
        SystemConfig(streams=streams)


def test_two_streams_of_one_name_are_refused():
    for streams in (("a:Same", "b.c:Same"), ("timeline", "timeline"), ("timeline", "a:timeline")):
        with pytest.raises(ValidationError, match="has two of one name"):
            SystemConfig(streams=streams)


def test_built_in_memories_come_first_and_own_ones_as_they_are_named():
    streams = ("b:B", "difference", "a.c:A", "timeline")
    assert [*SystemConfig(streams=streams).by_name] == ["timeline", "difference", "B", "A"]


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ("nowhere:Stream", "no module nowhere, neither in .* put that on PYTHONPATH"),
        ("systems_made.further:Stream", "no module systems_made.further"),
        ("systems_made:Nothing", r"systems_made\.py has no class Nothing"),
        ("systems_made:TOKENS", "has no class TOKENS"),
        (here("Unmade"), r"Unmade is to be made by \(given, rngs=\): multiple values for argument"),
        (here("plain"), "is no module of flax.nnx"),
        (here("Widthless"), "lacks a width or a __call__ of a batch"),
    ],
)
def test_what_is_no_stream_is_refused_by_name(stream, message):
    with pytest.raises(ValueError, match=message):
        make_stream(stream, GIVEN, rngs=nnx.Rngs(0))


def test_what_a_module_itself_misses_is_not_taken_for_the_module(tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import not_installed_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        maker("needy:Stream")


def test_an_own_memory_joins_a_timelines_behind_a_projector():
    model = models_made.random_model(make(BOTH))
    assert model.counts == (models_made.PERCEIVER.latents + 1, 1)
    found, memory = jax.jit(lambda m, b: (m.memories(b), m.fuse(m.memories(b))))(model, BATCH)
    params = models_made.parameters(model.streams["Rated"])
    ratings = zip(BATCH["events"]["rating"], BATCH["segments"] > 0, strict=True)
    counts = [np.bincount(values[there], minlength=7) for values, there in ratings]
    wanted = np.array(counts) @ params["proj"]["kernel"]
    np.testing.assert_allclose(found["Rated"].tokens[:, 0], wanted, rtol=1e-5, atol=1e-5)
    own = model.projectors["Rated"](found["Rated"].tokens) + model.kinds[...][1]
    np.testing.assert_allclose(memory.tokens[:, -1:], own, rtol=1e-5, atol=1e-5)
    shares = jax.jit(lambda model, batch: model.attention(batch))(model, BATCH)
    np.testing.assert_allclose(shares[:, :2].sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ("Wide", r"Wide made tokens \(3, 1, 9\) .* its width and count make that \(3, 1, 8\)"),
        ("Maskless", "Maskless made .* of a batch, no Memory"),
    ],
)
def test_a_memory_is_what_its_stream_tells(stream, message):
    def remember():
        return make(changed(streams=(here(stream),)))(rngs=nnx.Rngs(0)).memories(BATCH)

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(remember)


def test_no_stream_is_shown_the_answer():
    with pytest.raises(KeyError, match="tokens"):
        make(changed(streams=(here("Nosy"),)))(rngs=nnx.Rngs(0)).memories(BATCH)


def test_where_the_tokens_must_be_counted_a_stream_without_a_count_is_refused():
    for update in ({"fusion": "soft_prompt"}, {"cross_attention": APART}):
        system = changed(streams=("timeline", here("Following")), **update)
        with pytest.raises(ValueError, match="give Following a `count`"):
            nnx.eval_shape(lambda system=system: make(system)(rngs=nnx.Rngs(0)))
    soft = changed(fusion="soft_prompt")
    model = nnx.eval_shape(lambda: make(soft)(rngs=nnx.Rngs(0)))
    assert model.prefix == models_made.PERCEIVER.latents + 2


def test_an_own_loss_is_asked_for():
    model = make(changed(streams=("timeline", here("Demanding"))))(rngs=nnx.Rngs(0))
    assert model.own_losses(BATCH) == {"Demanding_stream": (6, 3)}


def test_own_columns_go_with_their_events(monkeypatch):
    data = timelines_made.dataset([[0, 1, 2], [3, 4]])
    day = np.arange(5, dtype=np.float32)
    monkeypatch.setattr(systems_made, "Made", columns(day=day), raising=False)
    assert own_columns(("timeline", "systems_made:Made"), data)["day"] is day
    for wrong in (day.astype(np.float64), day[:-1]):
        monkeypatch.setattr(systems_made, "Made", columns(day=wrong), raising=False)
        with pytest.raises(ValueError, match=f"column day of {wrong.dtype} and {len(wrong)} rows"):
            own_columns(("systems_made:Made",), data)


STREAM = '''
import jax.numpy as jnp
import numpy as np
from flax import nnx

from user_llm.models.layers import Memory


class Hours(nnx.Module):
    """The mean hour of a user's events."""

    def __init__(self, given, *, rngs):
        self.width, self.count = 1, 1

    @staticmethod
    def columns(data):
        return {"hour": (data.times // 3600 % 24).astype(np.float32)}

    def __call__(self, batch):
        hours, there = batch["events"]["hour"], batch["segments"] > 0
        mean = (hours * there).sum(1) / jnp.maximum(there.sum(1), 1)
        return Memory(mean[:, None, None], jnp.ones((len(mean), 1), bool))
'''
CONFIG = """
from runs_made import EXPERIMENT

def config():
    system = EXPERIMENT.system.model_copy(update={"streams": ("timeline", "my_hours:Hours")})
    return EXPERIMENT.model_copy(update={"system": system})
"""


def called(*arguments, cwd):
    """What the program says and exits with, in a process of its own."""
    home = {"PYTHONPATH": f"{Path(cli.__file__).parents[1]}:{Path(__file__).parent}"}
    command = [sys.executable, "-c", "import sys; from user_llm.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=cwd, env=os.environ | home, capture_output=True
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.slow
def test_a_run_with_an_own_stream_is_trained_judged_and_opened_again(tmp_path):
    """Its module stands beside the config, which is the working directory when it is reopened."""
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    own.mkdir()
    elsewhere.mkdir()
    (own / "my_hours.py").write_text(STREAM)
    (own / "my_config.py").write_text(CONFIG)
    run = elsewhere / "run"
    few = ("--warmup.steps", 0, "--align.steps", 0, "--evaluation.baselines", "shuffled_memory")
    code, _, said = called("run", own / "my_config.py", "--run-dir", run, *few, cwd=elsewhere)
    assert code == 0, said[-2000:]
    assert json.loads((run / "config.json").read_text())["system"]["streams"][1] == "my_hours:Hours"
    first = json.loads((run / "evaluation.json").read_text())
    assert first["users"][0]["attention"]
    code, _, said = called("evaluate", run, cwd=own)
    assert code == 0, said[-2000:]
    again = json.loads((run / "evaluation.json").read_text())
    assert [row["metrics"] for row in again["rows"]] == [row["metrics"] for row in first["rows"]]
    code, _, said = called("evaluate", run, cwd=elsewhere)
    assert code == 2
    assert f"of my_hours:Hours there is no module my_hours, neither in {elsewhere}" in said
    with pytest.raises(ValueError, match="user_llm reads timeline, my_hours:Hours; a system whose"):
        _ = Leaving(Run.open(run)).system
