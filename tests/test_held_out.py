"""What is held out is in no training batch, as input or target, and is asked for on its own."""

import numpy as np
import pytest
from runs_made import EXPERIMENT, held_out_run
from timelines_made import dataset

from user_llm import stages
from user_llm.config import QUERY_TIME
from user_llm.data import timelines
from user_llm.evaluation import baselines
from user_llm.metrics import Ranking
from user_llm.runs import Run


@pytest.fixture
def run(tmp_path, mesh) -> Run:
    return held_out_run(tmp_path, mesh(2))


def out(run):
    return np.unique(run.dataset.item[run.split.held_out])


def test_no_batch_of_any_training_holds_a_held_out_item(run):
    held = out(run)
    assert len(held) == 5 and len(run.split.new_items) and len(run.split.cold)
    source = stages.training_windows(run)
    pretrain = run.experiment.pretrain.model_copy(update={"steps": 20})  # in which all are seen
    batches = stages.batches(run, source, pretrain)(0)
    seen = np.concatenate([np.unique(batch["events"]["item"]) for batch in batches])
    assert not np.isin(seen, held).any()
    assert set(np.unique(run.dataset.item)) - set(held) == set(seen.tolist()) - {0}
    examples = stages.training_examples(run, "user_llm")
    rows = np.arange(len(examples))
    assert not np.isin(examples.timelines(rows)["events"]["item"], held).any()
    assert not np.isin(examples.dataset.item[examples.targets], held).any()
    assert not np.isin(run.dataset.item[run.training_events], held).any()
    assert not run.item_content["trained"][held].any()


def test_training_reads_every_other_training_event_and_whole_rows_of_it(run):
    data, _, stops = run.training_of(run.dataset)
    kept = [np.arange(*r) for r in zip(data.offsets[:-1], stops, strict=True)]
    kept = np.concatenate(kept)
    events = run.training_events
    np.testing.assert_array_equal(data.item[kept], run.dataset.item[events])
    np.testing.assert_array_equal(data.times[kept], run.dataset.times[events])
    wanted = [run.dataset.review(e) for e in events.tolist()]
    assert [data.review(e) for e in kept.tolist()] == wanted
    for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        own = data.times[a:b] - run.dataset.times[0]
        np.testing.assert_array_equal(data.features[QUERY_TIME][a:b], [*own[1:], *own[-1:]])


def test_a_run_that_holds_nothing_out_trains_on_its_data_set_itself(tmp_path):
    run = Run(EXPERIMENT, tmp_path)
    run.dataset = dataset([[0, 1, 2, 3], [3, 2, 1]])
    assert run.training_of(run.dataset).data is run.dataset


def test_new_items_and_cold_users_are_ranked_beside_the_test(run, monkeypatch):
    ranks = {}

    def ranker(make_encoder, data, targets, *, mesh):
        ranks.update(zip(targets.tolist(), (targets % 13 + 1).tolist(), strict=True))
        return lambda params: targets % 13 + 1

    monkeypatch.setattr(baselines, "encoder_ranker", ranker)
    monkeypatch.setattr(stages, "encoder", lambda run: {})
    rows = baselines.ranked(run, run.split.test[:5])
    groups = {"next_item": run.split.test[:5], "new_items": run.split.new_items}
    groups["cold_users"] = run.split.cold
    wanted = {}
    for name, targets in groups.items():
        asked = timelines.sample(targets, run.experiment.evaluation.users)
        figures = Ranking.from_ranks(np.array([ranks[e] for e in asked.tolist()])).compute()
        wanted |= {f"test/{name}/{metric}": value for metric, value in figures.items()}
    assert rows["encoder"] == wanted
    assert rows["popularity"].keys() == wanted.keys()
