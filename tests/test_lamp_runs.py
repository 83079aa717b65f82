"""Runs on folders in LaMP's official layout: they train, are judged, and submit."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from runs_made import EXPERIMENT
from test_lamp import INPUTS, OUTPUTS
from test_lamp_builder import questions

from user_llm import stages
from user_llm.config import DataConfig, PersonaConfig
from user_llm.data import lamp
from user_llm.data.lamp import KINDS
from user_llm.evaluation.evaluate import evaluate
from user_llm.runs import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PERSONA = {"streams": ("persona",), "fusion": "soft_prompt", "strategy": "encoder"}


def experiment(task, source, reader, system, **parts):
    """The tiny experiment on that data."""
    data = DataConfig(
        name="lamp", version=task, source=str(source), protocol="by_file", text_encoder=str(reader)
    )
    changes = {
        "system": {"persona": PersonaConfig(query_tokens=12)} | system,
        "finetune": {"tasks": {task: 1.0}, "drop_history": 0.5, "max_tokens": 64},
        "evaluation": {"baselines": ("shuffled_memory",), "max_new_tokens": 4, "users": 0},
        "align": {"steps": 0},
    }
    changed = {
        name: getattr(EXPERIMENT, name).model_copy(update=update)
        for name, update in changes.items()
    }
    return EXPERIMENT.model_copy(update=changed | {"data": data} | parts)


@pytest.fixture
def made(tmp_path, mesh, text_encoder):
    """Makes runs on official folders: two questions train, two are `dev`, two tests, or silent."""

    def run(task, system, answered=False, **parts):
        source = tmp_path / task
        asked = questions(task, [[0, 1, 2], [2]], output=answered)
        splits = {"train": [[0, 1, 2, 3], [1]], "dev": [[0, 1], [3, 2, 1]]}
        known = {split: questions(task, ages) for split, ages in splits.items()}
        lamp.write(source, task, known | {"test": asked})
        of = experiment(task, source, text_encoder, system, **parts)
        run = Run(of, tmp_path / "run", tmp_path / "data")
        run.mesh = mesh()
        return run

    return run


def flat(tree):
    return {jax.tree_util.keystr(k): np.asarray(x) for k, x in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize("task", INPUTS)
def test_a_folder_trains_is_judged_and_submits(made, task):
    parts = {"pretrain": EXPERIMENT.pretrain.model_copy(update={"steps": 0})}
    run = made(task, PERSONA, **parts)
    rows = {row["system"]: row["metrics"] for row in evaluate(run)["rows"]}
    wanted = {"user_llm", "shuffled_memory"}
    wanted |= {"popularity"} if KINDS[task].labels else set()
    wanted |= {"past"} if KINDS[task].label else set()
    assert rows.keys() == wanted
    names = {"LaMP_3": {"mae", "rmse"}}.get(
        task, {"accuracy", "macro_f1"} if KINDS[task].labels else {"rouge_1", "rouge_l"}
    )
    for figures in rows.values():
        own = {metric.rpartition("/")[2] for metric in figures if task in metric}
        assert own == names
        assert all(math.isfinite(value) for value in figures.values())
    submitted = json.loads((run.folder / "test_outputs.json").read_text())
    assert submitted["task"] == task
    assert [gold["id"] for gold in submitted["golds"]] == ["0", "1"]
    if labels := KINDS[task].labels:
        assert {gold["output"] for gold in submitted["golds"]} <= set(labels)


def test_the_frozen_decoder_stays_bit_for_bit_and_the_rest_moves(made):
    parts = {"pretrain": EXPERIMENT.pretrain.model_copy(update={"steps": 0})}
    run = made("LaMP_3", PERSONA, **parts)
    before = flat(stages.pretrained(run, run.experiment.system))
    after = flat(stages.finetune(run))
    for name, value in before.items():
        assert (value.tobytes() == after[name].tobytes()) == name.startswith("['decoder']"), name
    assert {name.split("'")[1] for name in after} == {"decoder", "streams"}


@pytest.mark.parametrize(
    "system",
    [
        PERSONA | {"fusion": "cross_attention"},
        PERSONA | {"streams": ("timeline", "persona")},
        PERSONA | {"persona": PersonaConfig(weights="mean", tokens=2, instruction=False)},
        {"streams": (), "text_history": 2, "retrieval": "bm25"},
        {"streams": ("timeline",), "fusion": "cross_attention"},
    ],
    ids=["crossed", "beside a timeline", "mean", "bm25", "timeline"],
)
def test_what_a_persona_is_compared_with_runs_too(made, system):
    run = made("LaMP_2", system, answered=True)
    rows = {row["system"]: row["metrics"] for row in evaluate(run)["rows"]}
    source = Path(run.experiment.data.source)
    given, right = (
        {gold["id"]: gold["output"] for gold in json.loads(file.read_text())["golds"]}
        for file in (run.folder / "test_outputs.json", source / "test_outputs.json")
    )
    hits = [given[name] == output for name, output in right.items()]
    assert rows["user_llm"]["test/LaMP_2/accuracy"] == sum(hits) / len(hits)
    assert ("shuffled_memory" in rows) == bool(run.experiment.system.streams)


def test_a_persona_knows_what_is_asked(made):
    run = made("LaMP_3", PERSONA)
    targets = run.dataset.offsets[1:3] - 1
    source = stages.examples(run, "user_llm", targets)
    batch = source.batch(np.arange(2), np.arange(2))
    (task,) = stages.tasks(run)
    lengths = batch["present"]["mask"].sum(1)
    wanted = run.passages(run.experiment.system)([task.present(t) for t in targets.tolist()])
    assert lengths.tolist() == [len(ids) for ids in wanted]
    assert [INPUTS["LaMP_3"], OUTPUTS["LaMP_3"]] == [*task.ask(targets[:0], int(targets[0]))]
    assert batch["events"]["text_vector"].shape == (2, EXPERIMENT.finetune.history, 33)
    told = stages.training_examples(run, "user_llm", drop=0.5)
    assert sorted(told.targets.tolist()) == targets.tolist()
    shown = [told.batch(np.array([0]), np.array([s]))["segments"].sum() for s in range(40)]
    assert {2, 3, 4} >= set(map(int, shown)) and len(set(shown)) > 1  # parts of four are left out
