"""Recommendations and vectors for raw events, against the evaluation's own queries and a sort."""

import json
from functools import partial

import jax.numpy as jnp
import models_made
import numpy as np
import pytest
import timelines_made
from flax import nnx

from user_llm import commands
from user_llm.data.dataset import clock_columns
from user_llm.data.features import KNOWN
from user_llm.inference.next_item import asker
from user_llm.inference.recommend import Recommender
from user_llm.models.encoders import ENCODERS

rng = np.random.default_rng(0)
TIMELINES = [rng.integers(12, size=n).tolist() for n in (5, 1, 7, 2, 3, 6, 4)]
KINDS = {
    "autoregressive": {},
    "hstu": {"query_time": True},
    "bert4rec": {"similarity": "dot"},
    "dual": {"content": ("genres", "price")},
}


def made(kind):
    """A data set, an encoder's constructor, and random parameters."""
    data = timelines_made.dataset(TIMELINES, items=14)
    data.times[:] = np.sort(rng.integers(10**6, size=len(data.times)))
    data.features.update(clock_columns(data.times, data.offsets))
    changes = {"kind": kind, "window": 4, **KINDS[kind]}
    config = models_made.ENCODER.model_copy(update=changes)
    content = {"trained": rng.random(len(data.items.ids)) < 0.8, **data.items.features}
    make = partial(ENCODERS[kind], config, data.inputs, content)
    return data, make, nnx.to_pure_dict(nnx.state(models_made.random_model(make)))


def raw(data, start, stop):
    """The events as a user of the library would give them, out of order."""
    events = [
        {
            "item": data.items.ids[data.item[e]],
            "timestamp": int(data.times[e]),
            "rating": float(data.ratings[e]),
        }
        for e in range(start, stop)
    ]
    return [events[i] for i in np.argsort([-e["timestamp"] for e in events], kind="stable")]


@pytest.mark.parametrize(("kind", "batch_size"), list(zip(KINDS, (6, 64, 64, 2), strict=True)))
def test_raw_events_are_answered_as_the_evaluation_asks(kind, batch_size, mesh):
    data, make, params = made(kind)
    # Every event but each user's first is asked for, given the events before it.
    targets = np.array([e for e in range(len(data.item)) if e not in data.offsets])
    starts = data.offsets[np.searchsorted(data.offsets, targets, side="right") - 1]
    timelines = [raw(data, *span) for span in zip(starts, targets, strict=True)]
    at = data.times[targets].tolist()
    queries, table = asker(make, data, targets, mesh=mesh(2))(params)
    scores = queries @ np.asarray(table).T
    recommender = Recommender(data, make, params, mesh=mesh(2), batch_size=batch_size)
    for exclude in (True, False):
        answers = recommender.recommend(timelines, 5, exclude_seen=exclude, at=at)
        for row, (start, target, answer) in enumerate(zip(starts, targets, answers, strict=True)):
            seen = set(data.item[start:target].tolist()) if exclude else set()
            fresh = [i for i in range(KNOWN, len(data.items.ids)) if i not in seen]
            wanted = sorted(fresh, key=lambda i: -scores[row, i])[:5]
            assert [one.item for one in answer] == [data.items.ids[i] for i in wanted]
            assert [one.title for one in answer] == [data.items.titles[i] for i in wanted]
            found = [one.score for one in answer]
            np.testing.assert_allclose(found, scores[row, wanted], rtol=1e-4, atol=1e-4)
    encoder = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))), params)
    vectors = recommender.embed(timelines, at=at)
    assert vectors.shape == (len(targets), 8)
    np.testing.assert_allclose(encoder.queries(jnp.asarray(vectors)), queries, rtol=1e-4, atol=1e-4)


def test_users_are_answered_alike_alone_and_beside_others(mesh):
    data, make, params = made("autoregressive")
    recommender = Recommender(data, make, params, mesh=mesh())
    spans = list(zip(data.offsets[:-1], data.offsets[1:], strict=True))
    timelines = [raw(data, *span) for span in spans]
    together = recommender.embed(timelines)
    for timeline, vector in zip(timelines, together, strict=True):
        np.testing.assert_allclose(recommender.embed([timeline])[0], vector, atol=1e-5)
    np.testing.assert_array_equal(together, recommender.states(data, np.arange(len(data.users))))


def test_no_more_is_recommended_than_there_is(mesh):
    data, make, params = made("autoregressive")
    recommender = Recommender(data, make, params, mesh=mesh())
    event = {"item": "0", "timestamp": 0}
    (answer,) = recommender.recommend([[event]], count=99)
    assert sorted(int(one.item) for one in answer) == list(range(1, 14))
    assert recommender.recommend([]) == []
    assert recommender.embed([]).shape == (0, 8)
    with pytest.raises(ValueError, match="count=0 asks for nothing"):
        recommender.recommend([[event]], count=0)


def test_the_verb_predicts_for_the_users_of_a_file(tmp_path, mesh, monkeypatch, capsys):
    data, make, params = made("autoregressive")
    recommender = Recommender(data, make, params, mesh=mesh())
    monkeypatch.setattr(commands.Run, "open", lambda folder: folder)
    monkeypatch.setattr(commands.trained, "recommender", lambda run: recommender)
    monkeypatch.setattr(commands, "PREDICTED", 2)
    timelines = {"zoe": ["3", "4"], "ann": ["5"], "new": ["of a strange item"]}
    rows = [
        {"user": user, "item": item, "timestamp": n}
        for user, items in timelines.items()
        for n, item in enumerate(items)
    ]
    (tmp_path / "new.json").write_text(json.dumps(rows))
    commands.predict(tmp_path, tmp_path / "new.json", 3, tmp_path / "made" / "out.jsonl")
    text = (tmp_path / "made" / "out.jsonl").read_text()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["out.jsonl"]
    told = {row.pop("user"): row for row in map(json.loads, text.splitlines())}
    for user, items in timelines.items():
        events = [{"item": item, "timestamp": n} for n, item in enumerate(items)]
        (wanted,) = recommender.recommend([events], 3)
        assert told[user]["items"] == [one.item for one in wanted]
        assert told[user]["titles"] == [one.title for one in wanted]
        np.testing.assert_allclose(told[user]["scores"], [o.score for o in wanted], atol=1e-4)
    commands.predict(tmp_path, tmp_path / "new.json", 3, None)
    assert capsys.readouterr().out == text
