"""What is said without a language model, against brute force over a data set made by hand."""

from collections import Counter

import numpy as np
import pytest
from runs_made import held_out_run

from user_llm import stages
from user_llm.config import Experiment, FinetuneConfig
from user_llm.data.features import KNOWN
from user_llm.data.tasks import FavoriteCategory, FutureFavorite, NextItem, RatingPrediction
from user_llm.data.timelines import user_of
from user_llm.evaluation import baselines
from user_llm.evaluation.evaluate import asked_of, judge
from user_llm.evaluation.system import Answers

TASKS = {"next_item": 1.0, "future_favorite_category": 1.0, "rating_prediction": 1.0}


@pytest.fixture
def run(tmp_path, mesh):
    run = held_out_run(tmp_path, mesh(1))
    tuned = run.experiment.finetune.model_copy(update={"tasks": TASKS, "history": 5})
    judged = run.experiment.evaluation.model_copy(update={"users": 0})
    run.experiment = run.experiment.model_copy(update={"finetune": tuned, "evaluation": judged})
    return run


def test_each_task_asks_of_what_it_can_and_of_many_events_only_unseen_users(run):
    data, groups = run.dataset, asked_of(run, run.split.test)
    assert list(groups) == ["next_item", "cold_users", *list(TASKS)[1:]]
    for name in ("next_item", "rating_prediction"):
        np.testing.assert_array_equal(groups[name][1], run.split.test)
    np.testing.assert_array_equal(groups["cold_users"][1], run.split.cold)
    assert isinstance(groups["cold_users"][0], NextItem)
    future = groups["future_favorite_category"][1]
    owners = user_of(run.split.cold, data.offsets)
    long = np.diff(data.offsets)[owners] > 10
    np.testing.assert_array_equal(user_of(future, data.offsets), owners[long])
    np.testing.assert_array_equal(future + 10, data.offsets[1:][owners[long]])
    assert (run.split.train_stop == data.offsets[:-1])[owners].all()


def test_futures_without_unseen_users_are_refused():
    with pytest.raises(ValueError, match="set data.held_out_users"):
        Experiment(name="", finetune=FinetuneConfig(tasks={"future_favorite_category": 1}))


def test_training_asks_of_no_future_behind_its_own_events(run):
    data, _, stops = run.training_of(run.dataset)
    asked = stages.training_examples(run, "user_llm")
    (future,) = (task for task in asked.tasks if isinstance(task, FutureFavorite))
    fits = asked.targets + 10 <= stops[user_of(asked.targets, data.offsets)]
    np.testing.assert_array_equal(future.fits(asked.targets), fits)
    assert fits.any() and not fits.all()
    alone = stages.training_examples(run, "user_llm", FutureFavorite)
    np.testing.assert_array_equal(alone.targets, asked.targets[fits])


def test_popularity_says_the_commonest_category_and_an_items_mean_stars(run):
    data, targets = run.dataset, run.split.test
    groups = {"favorite_category": (FavoriteCategory(data), targets)}
    groups["rating_prediction"] = RatingPrediction(data), targets
    told = baselines.answered(run, groups)["popularity"]
    events = run.training_events
    genres = Counter(g for e in events.tolist() for g in data.items.genres[data.item[e]])
    most = max(genres.values())
    assert told["favorite_category"] == [min(g for g in genres if genres[g] == most)] * len(targets)
    for target, said in zip(targets.tolist(), told["rating_prediction"], strict=True):
        of_item = data.ratings[[e for e in events if data.item[e] == data.item[target]]]
        mean = (of_item if len(of_item) else data.ratings[events]).astype(float).mean()
        assert abs(float(said) - mean) == pytest.approx(min(abs(mean - x) for x in range(1, 6)))


def test_past_and_encoder_foretell_the_favorite_to_come(run, monkeypatch):
    data = run.dataset
    task, targets = asked_of(run, run.split.test)["future_favorite_category"]
    rng = np.random.default_rng(1)
    queries, table = rng.normal(size=(len(targets), 4)), rng.normal(size=(20 + KNOWN, 4))
    queries, table = queries.astype(np.float32), table.astype(np.float32)
    monkeypatch.setattr(baselines, "asker", lambda *args, **kwargs: lambda params: (queries, table))
    monkeypatch.setattr(stages, "encoder", lambda run: {})
    told = baselines.answered(run, {"future": (task, targets)})
    starts = data.offsets[user_of(targets, data.offsets)]
    for i, (start, target) in enumerate(zip(starts.tolist(), targets.tolist(), strict=True)):
        shown = np.arange(max(start, target - 5), target)
        assert told["past"]["future"][i] == FavoriteCategory(data).favorite(shown)
        seen = {*data.item[start:target].tolist(), 0, 1}
        order = [x for x in np.argsort(-(table @ queries[i])).tolist() if x not in seen][:10]
        counts = Counter(g for x in order for g in data.items.genres[x])
        ties = {g for g in counts if counts[g] == max(counts.values())}
        first = next(
            set(data.items.genres[x]) & ties for x in order if set(data.items.genres[x]) & ties
        )
        assert told["encoder"]["future"][i] in first
    labels = [task.ask(np.arange(0), t).answer for t in targets.tolist()]
    figures = judge(run, "future", task, targets, Answers([*labels[:-1], "Other"]))
    assert figures == {"test/future/accuracy": 1 - 1 / len(targets)}
