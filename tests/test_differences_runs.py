"""Runs whose systems read differences: what they read, that they train, and their controls."""

import re

import numpy as np
import pytest
from encoder_made import write_encoder
from runs_made import EXPERIMENT

from user_llm import commands, stages
from user_llm.config import (
    DIFFERENCE,
    TEXT_VECTOR,
    DifferenceConfig,
    PeerConfig,
    PerceiverConfig,
    StageConfig,
    WarmupConfig,
)
from user_llm.data import peers
from user_llm.data.timelines import user_of
from user_llm.evaluation.evaluate import evaluate
from user_llm.runs import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LATENT = DifferenceConfig(events=5, perceiver=PerceiverConfig(latents=2, layers=1, heads=2))
NEWEST = PeerConfig()


@pytest.fixture
def made(tmp_path, mesh):
    """Makes runs of a timeline beside differences; all of them share their data folder."""

    def run(name="run", peers=NEWEST, data=EXPERIMENT.data, task="rating_among_peers", **system):
        parts = {
            "data": data,
            "system": EXPERIMENT.system.model_copy(
                update={
                    "streams": ("timeline", "difference"),
                    "difference": LATENT.model_copy(update={"peers": peers}),
                }
                | system
            ),
            "align": StageConfig(steps=0),
            "warmup": WarmupConfig(steps=0),
            "finetune": EXPERIMENT.finetune.model_copy(update={"tasks": {task: 1.0}}),
            "evaluation": EXPERIMENT.evaluation.model_copy(
                update={"baselines": ("shuffled_memory",)}
            ),
        }
        found = Run(EXPERIMENT.model_copy(update=parts), tmp_path / name, tmp_path / "data")
        found.mesh = mesh()
        return found

    return run


CODES = DifferenceConfig(events=5, compressor="autoencoder", code=6)
DEP_FORM = {"streams": ("difference",), "difference": CODES, "text_history": 3}


@pytest.mark.parametrize(
    "system",
    [
        {"fusion": "cross_attention"},
        {"fusion": "soft_prompt"},
        {"fusion": "interleaved"} | DEP_FORM,
    ],
    ids=["crossed", "prompt", "interleaved"],
)
def test_a_run_compares_trains_and_is_judged(made, system):
    run = made(**system)
    rows = {row["system"]: row["metrics"] for row in evaluate(run)["rows"]}
    assert {"user_llm", "shuffled_memory", "popularity", "past"} <= rows.keys()
    for name in ("user_llm", "past", "popularity"):
        assert 0 < rows[name]["test/rating_among_peers/mae"] < 4
    column = run.widened.features[DIFFERENCE]
    assert column.shape == (len(run.dataset.item), 2 * run.experiment.encoder.embed + 1)
    assert 0.3 < column[:, -1].mean() < 1  # the first to see a film have no peer


def test_differences_are_own_vectors_less_the_mean_of_earlier_others(made):
    run = made()
    column = np.asarray(stages.read_by(run, "user_llm").features[DIFFERENCE])
    data = run.dataset
    vectors = np.load(next((run.data_dir / "event_vectors").glob("*/vectors.npy")))
    user = user_of(np.arange(len(data.item)), data.offsets)
    for event in range(0, len(data.item), 97):
        earlier = (data.item == data.item[event]) & (data.times < data.times[event])
        others = np.flatnonzero(earlier & (user != user[event]))
        newest = others[np.argsort(-data.times[others], kind="stable")][:16]
        assert column[event, -1] == bool(len(newest))
        wanted = vectors[event] - vectors[newest].mean(0) if len(newest) else 0
        np.testing.assert_allclose(column[event, :-1], wanted, atol=1e-5)


def test_deps_own_setting_reads_what_its_formulas_make_of_texts(made, tmp_path):
    words = {word for text in made().dataset.reviews for word in re.findall("[a-z]+", text)}
    reader = write_encoder(tmp_path / "reader", sorted(words)[:90])
    run = made(
        "dep",
        data=EXPERIMENT.data.model_copy(update={"text_encoder": str(reader)}),
        task="review_generation",
        streams=("difference",),
        fusion="interleaved",
        text_history=3,
        difference=DifferenceConfig.dep(events=3, code=6),
    )
    column = np.asarray(stages.read_by(run, "user_llm").features[DIFFERENCE])
    data, texts = run.dataset, np.asarray(run.dataset.features[TEXT_VECTOR])[:, :-1]
    user = user_of(np.arange(len(data.item)), data.offsets)
    means = [texts[data.offsets[u] : e + 1].mean(0) for e, u in enumerate(user)]
    for event in range(0, len(data.item), 53):
        earlier = (data.item == data.item[event]) & (data.times < data.times[event])
        others = np.flatnonzero(earlier & (user != user[event]))
        if not len(others):
            assert not column[event].any()
            continue
        apart = np.array([np.linalg.norm(means[event] - means[other]) for other in others])
        weights = np.exp(apart / apart.sum())
        weights /= weights.sum()
        wanted = (weights[:, None] * (texts[event] - texts[others])).sum(0)
        np.testing.assert_allclose(column[event], [*wanted, 1], atol=1e-5)
    rows = {row["system"]: row["metrics"] for row in evaluate(run)["rows"]}
    assert 0 <= rows["user_llm"]["test/review_generation/rouge_l"] <= 1


def test_controls_have_the_same_events_to_compare(made):
    columns = {
        chosen: np.asarray(
            stages.read_by(made(chosen, PeerConfig(chosen=chosen)), "user_llm").features[DIFFERENCE]
        )
        for chosen in ("newest", "shuffled", "none", "random", "least_similar")
    }
    there = columns["newest"][:, -1]
    for chosen, column in columns.items():
        if chosen == "shuffled":  # one of whose few strangers may be the user
            assert (column[:, -1] != there).mean() < 0.02
        else:
            np.testing.assert_array_equal(column[:, -1], there)
        assert (column[:, :-1].any(1) == (column[:, -1] > 0)).all() == (chosen != "none")
    assert not columns["none"][:, :-1].any()
    some = there > 0
    length = {
        name: np.linalg.norm(column[some, :-1], axis=1).mean() for name, column in columns.items()
    }
    assert length["shuffled"] > length["newest"]  # others on the same item are nearer


def test_differences_of_texts_need_their_encoder():
    parts = {"streams": ("difference",), "difference": DifferenceConfig.dep()}
    with pytest.raises(ValueError, match="compares vectors of reviews; name their encoder"):
        type(EXPERIMENT).model_validate(
            EXPERIMENT.model_dump() | {"system": EXPERIMENT.system.model_dump() | parts}
        )


def test_states_that_have_read_held_out_items_are_refused():
    changes = {
        "system": EXPERIMENT.system.model_dump() | {"streams": ("difference",)},
        "data": EXPERIMENT.data.model_dump() | {"held_out_items": 0.1},
    }
    with pytest.raises(ValueError, match="held-out items among them; set data.held_out_items to 0"):
        type(EXPERIMENT).model_validate(EXPERIMENT.model_dump() | changes)


def test_a_system_that_cannot_be_built_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def ask(**system):
        changes = {"system": EXPERIMENT.system.model_copy(update=system)}
        commands.run(EXPERIMENT.model_copy(update=changes), tmp_path / "run", "run")

    with pytest.raises(ValueError, match="needs perceiver.latents > 0"):
        ask(fusion="soft_prompt", perceiver=PerceiverConfig(latents=0))
    clusters = LATENT.model_copy(update={"peers": PeerConfig(chosen="representatives")})
    monkeypatch.setattr(peers, "_scikit_learn", missing)
    with pytest.raises(ValueError, match="install the extra `peers`"):
        ask(streams=("timeline", "difference"), difference=clusters)
    assert not (tmp_path / "run" / "pretrain").exists()


def missing():
    raise ValueError("clusters want scikit-learn; install the extra `peers`")
