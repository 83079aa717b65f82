"""A user's own files become a data set by their schema, or it is told why they cannot."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from remarks_told import remarks

from user_llm.data.builders import build
from user_llm.data.dataset import load

SCHEMA = {
    "features": [
        {"kind": "categorical", "name": "item"},
        {"kind": "numeric", "name": "price"},
        {"kind": "bag", "name": "tags"},
        {"kind": "text", "name": "image", "vector": 2},
        {"kind": "categorical", "name": "brand", "of": "item"},
        {"kind": "numeric", "name": "weight", "of": "item"},
        {"kind": "time", "name": "when"},
    ],
    "columns": {"user": "reviewer", "item": "asin", "timestamp": "time"},
}
EVENTS = [
    dict(reviewer="b", asin="007", time=50, price=2.5, tags=["x", "y"], image=[1, 2], rating=4),
    dict(reviewer="a", asin="12", time=70, price=None, tags=[], image=None, rating=None),
    dict(reviewer="a", asin="007", time=60, price=1.0, tags=["y"], image=[3, 4], rating=5),
]
ITEMS = [
    dict(asin="12", title="Drum", brand="acme", weight=3.5),
    dict(asin="007", title="Flöte", brand=None, weight=None),
]


def table(folder: Path, *, events=EVENTS, items=ITEMS, schema=SCHEMA) -> Path:
    folder.mkdir(parents=True)
    (folder / "schema.json").write_text(json.dumps(schema))
    for name, rows in (("events", events), ("items", items)):
        if rows is not None:
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def built_table(folder: Path, tmp_path: Path) -> Path:
    return build("table", source=folder, data_dir=tmp_path / "built")


def test_a_table_of_ones_own_is_read_by_its_schema(tmp_path):
    folder = built_table(table(tmp_path / "mine"), tmp_path)
    data = load(folder)
    assert data.users == ("a", "b")
    assert data.times.tolist() == [60, 70, 50]
    assert [data.items.ids[i] for i in data.item] == ["007", "12", "007"]
    assert data.items.titles[2:] == ("Flöte", "Drum")
    np.testing.assert_array_equal(data.ratings, [5, np.nan, 4])
    assert data.features["tags"].tolist() == [[3, 0], [0, 0], [2, 3]]
    assert data.features["image"].tolist() == [[3, 4, 1], [0, 0, 0], [1, 2, 1]]
    assert data.features["price"][:, 1].tolist() == [1, 0, 1]
    assert data.items.features["brand"].tolist() == [0, 0, 0, 2]
    assert data.items.features["weight"].tolist() == [[0, 0], [0, 0], [0, 0], [0, 1]]
    assert "the events of 1 users are not in time order" in remarks(folder)
    assert data.reviews is None


def test_parquet_and_csv_read_like_json_lines(tmp_path):
    schema = {**SCHEMA, "features": [f for f in SCHEMA["features"] if f["name"] != "image"]}
    events = [{k: v for k, v in row.items() if k != "image"} for row in EVENTS]
    lines = table(tmp_path / "lines", events=events, schema=schema)
    parquet = table(tmp_path / "parquet", events=None, items=None, schema=schema)
    stamped = [{**row, "time": datetime.fromtimestamp(row["time"], UTC)} for row in events]
    pq.write_table(pa.Table.from_pylist(stamped), parquet / "events.parquet")
    pq.write_table(pa.Table.from_pylist(ITEMS), parquet / "items.parquet")
    comma = table(tmp_path / "csv", events=None, items=None, schema=schema)
    (comma / "events.csv").write_text(
        "\ufeffreviewer,asin,time,price,tags,rating\nb,007,1970-01-01T00:00:50,2.5,x|y,4\n"
        "a,12,1970-01-01T00:01:10Z,,,\na,007,60,1.0,y,5\n",
        encoding="utf-8",
    )
    (comma / "items.csv").write_text(
        'asin,title,brand,weight\n12,Drum,acme,3.5\n007,"Flöte",,\n', encoding="utf-8"
    )
    hashes = {load(built_table(f, tmp_path)).hash for f in (lines, parquet, comma)}
    assert len(hashes) == 1


def test_whole_numbers_stay_numbers_and_large_ids_keep_their_digits(tmp_path):
    big = 2**53 + 1
    events = [{"user": 10, "item": big, "timestamp": 5}, {"user": 9, "item": 3, "timestamp": 5}]
    schema = {"features": [{"kind": "categorical", "name": "item"}]}
    data = load(
        built_table(table(tmp_path / "t", events=events, items=None, schema=schema), tmp_path)
    )
    assert data.users == ("9", "10")
    assert data.items.ids[2:] == ("3", str(big))


def test_items_of_a_table_that_occur_undescribed_or_twice_are_told(tmp_path):
    items = [ITEMS[0], {**ITEMS[0], "title": "Other"}]
    folder = built_table(table(tmp_path / "mine", items=items), tmp_path)
    data = load(folder)
    assert data.items.titles[2:] == ("", "Drum")
    assert "1 of 2 items that occur in events are not described, such as '007'" in remarks(folder)
    assert "1 items are described twice; the first one counts" in remarks(folder)


def test_events_that_repeat_in_every_column_count_once(tmp_path):
    folder = built_table(table(tmp_path / "mine", events=[*EVENTS, EVENTS[0]]), tmp_path)
    assert len(load(folder).item) == 3
    assert "1 events repeat an earlier one in every column" in remarks(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"events": []}, "events.jsonl holds no events"),
        ({"events": [*EVENTS, '{"reviewer": "a", "asi']}, "1 lines that cannot be read: line 4"),
        ({"events": ["[1, 2]"]}, "line 1: not an object"),
        (
            {"events": [{**EVENTS[0], "price": "cheap"}]},
            "feature 'price', user 'b', row 1: 'cheap'",
        ),
        (
            {"events": [{**EVENTS[0], "rating": "good"}]},
            "feature 'rating', user 'b', row 1: 'good'",
        ),
        (
            {"events": [{"reviewer": "a", "time": 3}]},
            r"lacks the column\(s\) image, item, price, tags",
        ),
        ({"items": None}, "brand, weight are of items: add an items file"),
        ({"schema": {"features": []}}, "is no schema"),
        ({"events": None}, "must hold events in one file"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(changes, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        built_table(table(tmp_path / "mine", **changes), tmp_path)


def test_ragged_csv_and_torn_parquet_are_refused(tmp_path):
    ragged = table(tmp_path / "csv", events=None)
    (ragged / "events.csv").write_text("reviewer,asin,time\na,1,5\na,2\n")
    with pytest.raises(ValueError, match="3 columns, but 1 rows have not: row 2 has 2"):
        built_table(ragged, tmp_path)
    torn = table(tmp_path / "parquet", events=None)
    (torn / "events.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        built_table(torn, tmp_path)


def test_amazon_reviews_are_a_table(data_folder, tmp_path):
    source = tmp_path / "amazon"
    source.mkdir()
    (source / "events.json").symlink_to(
        data_folder / "amazon-musical-instruments" / "Musical_Instruments.json"
    )
    columns = {
        "user": "reviewerID",
        "item": "asin",
        "timestamp": "unixReviewTime",
        "rating": "overall",
        "review": "reviewText",
    }
    features = [{"kind": "categorical", "name": "item"}, {"kind": "text", "name": "review"}]
    (source / "schema.json").write_text(json.dumps({"features": features, "columns": columns}))
    data = load(built_table(source, tmp_path))
    assert (len(data.item), len(data.users), len(data.items.ids) - 2) == (10_261, 1_429, 900)
    assert set(data.ratings) == {1, 2, 3, 4, 5}
