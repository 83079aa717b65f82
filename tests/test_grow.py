"""Encoders whose vocabularies grow keep, bit by bit, what they learnt of every value."""

import dataclasses
from functools import partial

import jax
import models_made
import numpy as np
import pytest
from flax import nnx, traverse_util
from runs_made import EXPERIMENT
from timelines_made import dataset

from user_llm import stages
from user_llm.config import Experiment
from user_llm.data.features import KNOWN, Bag, Categorical, Numeric, Text, Vocabulary
from user_llm.evaluation import baselines
from user_llm.models.encoders import ENCODERS
from user_llm.runs import Run
from user_llm.training.grow import Known, grow, sources, wanted

FEATURES = (
    Categorical(name="item"),
    Categorical(name="stars"),
    Bag(name="tags"),
    Numeric(name="price"),
    Text(name="note", buckets=5, words=3),
)
OLD = {
    "item": ("d", "b", "f", "c"),
    "stars": (1, 5),
    "tags": ("x", "y"),
    "price": {"mean": 3.0, "scale": 2.0},
    "note": {},
}
NEW = {
    "item": ("a", "b", "c", "d", "e", "f", "g"),
    "stars": ("1", "4", "5", "good"),
    "tags": ("w", "y", "x"),
    "price": {"mean": 5.0, "scale": 0.5},
    "note": {},
}


def known(values, features=FEATURES, predicted=("item", "stars")) -> Known:
    vocabularies = {
        name: Vocabulary(values=v, slots=2) if isinstance(v, tuple) else Vocabulary(**v)
        for name, v in values.items()
    }
    return Known(features=features, predicted=predicted, vocabularies=vocabularies)


def encoder(kind, of, seed):
    features = tuple(f.config(of.vocabularies[f.name], f.name in of.predicted) for f in FEATURES)
    config = models_made.ENCODER.model_copy(update={"kind": kind, "content": ("tags",)})
    size = features[0].size
    items = {"trained": np.ones(size, bool), "tags": np.ones((size, 2), np.int32)}
    return models_made.random_model(partial(ENCODERS[kind], config, features, items), seed)


def flat(model):
    return traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)), sep=".")


def by_value(values):
    """Ids by value as text, the two that are no values included."""
    return {"missing": 0, "unknown": 1} | {str(v): KNOWN + i for i, v in enumerate(values)}


@pytest.mark.parametrize("kind", ENCODERS)
def test_rows_follow_their_values_bit_by_bit_and_new_ones_stay_fresh(kind):
    old, new = known(OLD), known(NEW)
    before, fresh = encoder(kind, old, 0), encoder(kind, new, 1)
    a, b = flat(before), flat(fresh)
    grown = grow(*(nnx.to_pure_dict(nnx.state(x)) for x in (fresh, before)), old, new)
    found = traverse_util.flatten_dict(grown, sep=".")
    content = {name for name in b if name.startswith(("embedding.content.", "embedding.trained"))}
    assert found.keys() == b.keys() - content
    axes = {f"embedding.tables.{name}": (name, 0) for name in ("item", "stars", "tags")}
    axes |= {"heads.stars.kernel": ("stars", 1), "heads.stars.bias": ("stars", 0)}
    axes |= {"item_bias": ("item", 0)} if kind == "bert4rec" else {}
    for path, value in found.items():
        if path == "embedding.vectors.price.kernel":
            continue
        if path not in axes:
            assert value.tobytes() == a[path].tobytes(), path
            continue
        name, axis = axes.pop(path)
        there, now = by_value(OLD[name]), by_value(NEW[name])
        rows, old_rows, fresh_rows = (np.moveaxis(x, axis, 0) for x in (value, a[path], b[path]))
        assert len(rows) == len(now)
        for of, row in now.items():
            kept = old_rows[there[of]] if of in there else fresh_rows[row]
            assert rows[row].tobytes() == kept.tobytes(), (path, of)
    assert not axes


def test_a_raw_number_says_what_it_said_before():
    old, new = known(OLD), known(NEW)
    before, fresh = encoder("autoregressive", old, 0), encoder("autoregressive", new, 1)
    grown = grow(*(nnx.to_pure_dict(nnx.state(x)) for x in (fresh, before)), old, new)
    raw = np.array([1.5, 7.0, np.nan], np.float32)
    price = FEATURES[3]
    was, now = (price.encode(raw, k.vocabularies["price"]) for k in (old, new))
    kernels = [flat(before)["embedding.vectors.price.kernel"]]
    kernels += [grown["embedding"]["vectors"]["price"]["kernel"]]
    np.testing.assert_allclose(now @ kernels[1], was @ kernels[0], rtol=1e-5, atol=1e-6)


def test_values_are_found_again_whatever_their_order_and_type():
    assert sources(Vocabulary(values=(3, 1)), Vocabulary(values=("1", "2", "3"))).tolist() == [
        *(0, 1),
        *(3, -1, 2),
    ]
    assert sources(Vocabulary(values=(1, 2)), Vocabulary(values=(1.0, 1.5))).tolist()[2:] == [2, -1]
    assert sources(Vocabulary(), Vocabulary(values=("a",))).tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"features": (*FEATURES[:2], *FEATURES[:1:-1])},
            "features item, stars, tags, price, note",
        ),
        ({"features": (*FEATURES[:4], Text(name="note", buckets=6, words=3))}, "feature 'note'"),
        ({"predicted": ("item",)}, "predicted item, stars there, item now"),
        ({"values": {**NEW, "item": ("k", "l")}}, "no item occurs both there and now"),
    ],
)
def test_other_features_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        wanted({}, known(OLD), known(**{"values": NEW} | changes), None)


def of(steps=1, **changes) -> Experiment:
    pretrain = EXPERIMENT.pretrain.model_copy(update={"steps": steps, "validate_every": 0})
    parts = {"pretrain": pretrain} | changes
    return EXPERIMENT.model_copy(update=parts)


def run_of(experiment, folder, data, mesh) -> Run:
    run = Run(experiment, folder)
    run.dataset, run.mesh = data, mesh
    return run


def test_a_run_starts_from_the_encoder_of_an_earlier_one(tmp_path, mesh):
    days = [list(range(4)) * 2, list(range(7)), [6, 5, 4, 3]]
    first = run_of(of(), tmp_path / "first", dataset(days), mesh(2))
    trained = stages.pretrain(first)
    more = dataset([*days, [8, 7, 9, 1, 2]])
    # Without a step, training ends where it starts.
    second = of(steps=0, grow_from=str(tmp_path / "first"), seed=1)
    found = stages.pretrain(run_of(second, tmp_path / "second", more, mesh(2)))
    alone = of(steps=0, seed=1)
    random = stages.pretrain(run_of(alone, tmp_path / "alone", more, mesh(2)))
    tables = [p["embedding"]["tables"]["item"] for p in (trained, found, random)]
    size = len(first.dataset.items.ids)
    np.testing.assert_array_equal(tables[1][:size], tables[0])
    np.testing.assert_array_equal(tables[1][size:], tables[2][size:])
    assert len(tables[1]) == size + 3
    same = [(p["layers"], p["norm"]) for p in (trained, found)]
    for a, b in zip(*map(jax.tree.leaves, same), strict=True):
        np.testing.assert_array_equal(a, b)

    wide = EXPERIMENT.encoder.model_copy(update={"mlp": 12, "dropout": 0.5})
    other = of(encoder=wide, grow_from=str(tmp_path / "first"))
    with pytest.raises(ValueError, match=r"no encoder can grow from .*encoder.mlp: 8 there, 12 no"):
        stages.pretrain(run_of(other, tmp_path / "other", more, mesh(2)))


def test_users_whom_the_earlier_run_knew_are_judged_apart(tmp_path, mesh, monkeypatch):
    days = dataset([list(range(5)), [3, 2, 1, 0]])
    more = dataset([list(range(5)), [6, 5, 4], [3, 2, 1, 0], [1, 2]])
    renamed = ("user 0", "another", "user 1", "user 3")
    first = run_of(of(), tmp_path / "first", days, mesh(2))
    second = of(grow_from=str(tmp_path / "first"))
    more = dataclasses.replace(more, users=renamed)
    grown = run_of(second, tmp_path / "second", more, mesh(2))
    monkeypatch.setattr(Run, "open", lambda folder, data_dir: first)
    assert baselines.old_users(grown).tolist() == [4, 11]
    assert not len(baselines.old_users(first))


def test_a_run_cannot_both_train_an_encoder_and_borrow_one():
    with pytest.raises(ValueError, match="grow_from=a starts an encoder's training, and encoder_f"):
        Experiment(name="x", grow_from="a", encoder_from="b")
