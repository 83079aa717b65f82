"""Raw events of any user are encoded bit by bit as the data set encodes the same user's."""

import json
from dataclasses import replace

import numpy as np
import pytest

from user_llm.data import unseen
from user_llm.data.builders import build
from user_llm.data.dataset import load
from user_llm.data.features import KNOWN, MISSING, UNKNOWN, Time, Vocabulary
from user_llm.data.schema import TimelineSchema

FEATURES = [
    {"kind": "categorical", "name": "item"},
    {"kind": "categorical", "name": "stars", "column": "rating"},
    {"kind": "bag", "name": "tags"},
    {"kind": "numeric", "name": "price"},
    {"kind": "text", "name": "note"},
    {"kind": "text", "name": "look", "vector": 2},
    {"kind": "time", "name": "when"},
]
SCHEMA = {"features": FEATURES, "columns": {"item": "asin"}}
USERS = ["cleo", "ann", "bob"]


def raw_events(seed=0):
    """Events in random order, with times that repeat and values that are missing."""
    rng = np.random.default_rng(seed)
    events = []
    for user in USERS:
        for n in range(int(rng.integers(4, 9))):
            event = {
                "user": user,
                "asin": f"{rng.integers(5):03d}",
                "timestamp": 1_700_000_000 + int(rng.integers(6)) * 5000 + n % 2,
                "rating": float(rng.integers(1, 11)) / 2,
                "tags": "|".join(rng.permutation(["a", "b", "c"])[: rng.integers(4)]),
                "price": float(rng.normal()),
                "note": " ".join(rng.permutation(["Old", "new", "red"])[: rng.integers(3)]),
                "look": rng.normal(size=2).tolist(),
            }
            lost = rng.choice(["rating", "price", "look", "tags", "note"])
            events.append({k: v for k, v in event.items() if k != lost or n % 3})
    return [events[i] for i in rng.permutation(len(events))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, raw_events())))
    (folder / "schema.json").write_text(TimelineSchema.model_validate(SCHEMA).model_dump_json())
    return load(build("table", source=folder, data_dir=folder / "built"), clock=True)


def same(found, wanted):
    assert found.offsets.tolist() == wanted.offsets.tolist()
    np.testing.assert_array_equal(found.item, wanted.item)
    np.testing.assert_array_equal(found.times, wanted.times)
    np.testing.assert_array_equal(found.ratings, wanted.ratings)
    assert found.features.keys() == wanted.features.keys()
    for name, column in wanted.features.items():
        assert found.features[name].dtype == column.dtype, name
        np.testing.assert_array_equal(found.features[name], column, err_msg=name)


def test_the_raw_events_of_a_data_set_give_its_own_arrays(data):
    timelines = [[e for e in raw_events() if e["user"] == user] for user in data.users]
    found = unseen.encode(data, timelines)
    same(found, data)
    assert found.items is data.items and found.inputs == data.inputs


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_a_file_gives_the_same_whatever_its_format(data, suffix, tmp_path):
    path = tmp_path / f"new{suffix}"
    rows = raw_events()
    if suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:  # a vector has no form in CSV: it is missing, and so it is in the events compared with
        names = ["user", "asin", "timestamp", "rating", "tags", "price", "note"]
        lines = [",".join(str(row.get(name, "")) for name in names) for row in rows]
        path.write_text("\n".join([",".join(names), *lines]))
        look = np.zeros_like(data.features["look"])
        data = replace(data, features={**data.features, "look": look})
    found = unseen.read(data, path)
    assert found.users == data.users
    same(found, data)


def test_strange_values_are_out_of_the_vocabulary_and_none_is_missing(data):
    event = {"item": "999", "timestamp": 1_700_000_000, "rating": 17, "tags": ["a", "z"]}
    found = unseen.encode(data, [[event], [{"item": 2, "timestamp": 1_600_000_000.0}]])
    assert found.item[0] == UNKNOWN
    assert found.features["stars"].tolist() == [UNKNOWN, MISSING]
    assert found.features["tags"].tolist() == [[KNOWN, UNKNOWN, 0], [0, 0, 0]]
    assert not found.features["price"].any() and not found.features["look"].any()


def test_gaps_and_clock_follow_the_times_and_the_query(data):
    first, start = int(data.times.min()), 1_700_000_100
    events = [{"item": "001", "timestamp": start + t} for t in (50, 0, 1000)]
    found = unseen.encode(data, [events, events[:1]], at=[start + 5000, start + 50])
    assert (found.features["event_time"] + first - start).tolist() == [0, 50, 1000, 50]
    assert (found.features["query_time"] + first - start).tolist() == [50, 1000, 5000, 50]
    own = Time(name="when").encode(np.array([0, 50, 1000]) + start, Vocabulary())
    np.testing.assert_array_equal(found.features["when"][:3], own)


@pytest.mark.parametrize(
    ("timelines", "at", "told"),
    [
        ([[{"item": "1", "timestamp": 3}], []], None, r"no events in the timeline\(s\) 1"),
        ([["001"]], None, "'001' is no event"),
        ([[{"item": "1"}]], None, r"lacks the column\(s\) timestamp"),
        ([[{"timestamp": 3}]], None, r"lacks the column\(s\) item"),
        ([[{"item": "1", "timestamp": 3}, {"item": "1"}]], None, "user '0', row 2: is missing"),
        ([[{"item": "1", "timestamp": 3, "price": "dear"}]], None, "'price', user '0', row 1"),
        ([[{"item": "1", "timestamp": 3}]], [2.0], "user '0' is asked before the last event"),
        ([[{"item": "1", "timestamp": 3}]], [4.0, 5.0], "at has 2 times for 1 timelines"),
        ([[{"item": "1", "timestamp": 9e10}]], None, "more than 68 years"),
    ],
)
def test_what_cannot_be_read_is_refused(data, timelines, at, told):
    with pytest.raises(ValueError, match=told):
        unseen.encode(data, timelines, at=at)
