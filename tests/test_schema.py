"""Features encode raw values, and a schema says what is wrong with a table."""

import string
import zlib
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from user_llm.data.features import Bag, Categorical, Numeric, Text, Time, Vocabulary
from user_llm.data.schema import TimelineSchema

SCHEMA = TimelineSchema(
    features=(
        Categorical(name="item"),
        Categorical(name="stars", column="rating"),
        Bag(name="genres", of="item", slots=3),
        Numeric(name="price"),
        Time(name="time", gaps=20),
        Text(name="note", words=4, buckets=64),
        Text(name="image", vector=2),
    ),
    predicted=("item", "stars"),
    columns={"user": "reviewer"},
)
TABLE = {
    "user": ["ann", "ann", "bob"],
    "item": ["a", "b", "a"],
    "timestamp": [1, 2, 3],
    "rating": [5, 4, None],
    "price": [1.5, None, 2],
    "note": ["Fine.", "", None],
    "image": [[0.1, 0.2], None, [0.0, 1.0]],
}


@given(st.lists(st.none() | st.text(string.printable, max_size=3)))
def test_categorical_ids_lead_back_to_the_values(values):
    feature = Categorical(name="x")
    vocabulary = feature.fit(values)
    back = [("", "?", *vocabulary.values)[i] for i in feature.encode(values, vocabulary)]
    assert back == [v or "" for v in values]
    assert list(vocabulary.values) == sorted(set(values) - {None, ""})


@given(st.lists(st.integers(-(2**60), 2**60), min_size=1))
def test_categorical_integers_lead_back_to_the_values(values):
    feature = Categorical(name="x")
    vocabulary = feature.fit(np.array(values))
    assert [vocabulary.values[i - 2] for i in feature.encode(values, vocabulary)] == values


def test_categorical_keeps_the_frequent_values_and_calls_the_rest_unknown():
    values = ["a", "b", "b", "c", "c", "c", None]
    often = Categorical(name="x", min_count=2)
    assert often.encode(values, often.fit(values)).tolist() == [1, 2, 2, 3, 3, 3, 0]
    most = Categorical(name="x", max_size=1)
    assert most.encode([*values, "new"], most.fit(values)).tolist() == [1, 1, 1, 2, 2, 2, 0, 1]


def test_categorical_reads_numbers_from_text_and_floats_at_either_precision():
    feature = Categorical(name="x")
    movies = feature.fit(np.array([1193, 661]))
    assert feature.encode(["1193", "661", "x"], movies).tolist() == [3, 2, 1]
    ratings = feature.fit(np.array([3.7, 0.5, np.nan], np.float32))
    assert ratings.values == (0.5, 3.7)
    assert feature.encode([3.7, 0.5, None], ratings).tolist() == [3, 2, 0]


def test_vocabularies_survive_json_with_their_types():
    for values in ((1, 2), (0.5, 1.0), ("1", "2"), ()):
        vocabulary = Vocabulary(values=values)
        back = Vocabulary.model_validate_json(vocabulary.model_dump_json())
        assert back == vocabulary
        assert [type(v) for v in back.values] == [type(v) for v in values]


def test_bags_are_read_from_lists_and_from_text_and_cut_to_their_slots():
    feature = Bag(name="genres")
    vocabulary = feature.fit([["b", "a"], ["c"], []])
    ids = feature.encode(["a|b", ["c", "new", "a"], "", None, []], vocabulary)
    assert ids.tolist() == [[2, 3], [4, 1], [0, 0], [0, 0], [0, 0]]
    assert ids.dtype == np.int32


def test_numbers_are_standardised_and_missing_ones_are_zero():
    feature = Numeric(name="x")
    values = [1.0, None, 3.0, float("nan"), 5.0]
    encoded = feature.encode(values, feature.fit(values))
    there = np.array([0, 2, 4])
    np.testing.assert_allclose(encoded[there, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(encoded[there, 0].std(), 1, rtol=1e-6)
    assert encoded[there, 1].tolist() == [1, 1, 1]
    assert not encoded[[1, 3]].any()
    constant = feature.fit([2.0, 2.0])
    assert feature.encode([2.0], constant).tolist() == [[0, 1]]


@given(st.lists(st.integers(-(10**10), 10**10), min_size=1, max_size=20))
def test_time_agrees_with_the_calendar_and_orders_gaps(seconds):
    feature = Time(name="time")
    ids = feature.encode(np.sort(np.array(seconds)), Vocabulary())
    for row, when in zip(ids, sorted(seconds), strict=True):
        date = datetime.fromtimestamp(when, UTC)
        assert row[1] - (3 + feature.gaps) == date.hour
        assert row[2] - (3 + feature.gaps + 24) == date.weekday()
    assert ids[0, 0] == 2
    assert ((ids[1:, 0] > 2) & (ids[1:, 0] < 3 + feature.gaps)).all()
    assert ids.max() < feature.config(Vocabulary()).size


def test_time_buckets_double_and_going_back_is_unknown():
    seconds = np.cumsum([100, 0, 1, 1, 2, 3, 4, 7, 8, 2**40, -1])
    gaps = Time(name="time").encode(seconds, Vocabulary())[:, 0] - 3
    assert gaps.tolist() == [-1, 0, 1, 1, 2, 2, 3, 3, 4, 31, -2]


def test_time_begins_anew_with_every_timeline():
    first = np.array([True, False, True])
    ids = Time(name="time").encode(np.array([10, 20, 5]), Vocabulary(), first)
    assert ids[:, 0].tolist() == [2, 7, 2]


def test_words_are_hashed_the_same_on_every_machine_without_case_and_punctuation():
    feature = Text(name="note", words=3, buckets=1000)
    ids = feature.encode(["Don't STOP, now!", "stop", "!?", "", "a b c d"], Vocabulary())
    expected = [2 + zlib.crc32(word) % 1000 for word in (b"don't", b"stop", b"now")]
    assert ids[0].tolist() == expected
    assert ids[1].tolist() == [expected[1], 0, 0]
    assert ids[2].tolist() == [1, 0, 0]
    assert ids[3].tolist() == [0, 0, 0]
    assert (ids[4] > 1).all()


def test_vectors_carry_whether_there_is_one():
    encoded = Text(name="image", vector=2).encode([[0.5, 1.0], None], Vocabulary())
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [[0.5, 1.0, 1.0], [0, 0, 0]]


def test_every_feature_tells_an_encoder_its_kind_and_a_size_that_fits():
    values = {**TABLE, "genres": [["x", "y"], [], ["z"]], "timestamp": np.array([1, 2, 3])}
    kinds = {}
    for feature in SCHEMA.features:
        vocabulary = feature.fit(values[feature.column])
        encoded = feature.encode(values[feature.column], vocabulary)
        config = feature.config(vocabulary, feature.name in SCHEMA.predicted)
        kinds[feature.name] = (config.kind, encoded.dtype.name, config.predicted)
        if config.kind == "vector":
            assert encoded.shape == (3, config.size)
        else:
            assert encoded.max() < config.size
    assert kinds == {
        "item": ("categorical", "int32", True),
        "stars": ("categorical", "int32", True),
        "genres": ("bag", "int32", False),
        "price": ("vector", "float32", False),
        "time": ("bag", "int32", False),
        "note": ("bag", "int32", False),
        "image": ("vector", "float32", False),
    }


def test_schemas_survive_json():
    assert TimelineSchema.model_validate_json(SCHEMA.model_dump_json()) == SCHEMA


def test_a_schema_can_be_written_by_hand():
    text = '{"features": [{"kind": "categorical", "name": "item"}, {"kind": "time", "name": "t"}]}'
    schema = TimelineSchema.model_validate_json(text)
    assert schema["item"] == Categorical(name="item")
    assert schema["t"].column == "timestamp"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"item": "film"}, "item='film' must name a categorical feature"),
        ({"item": "stars"}, 'column="item"'),
        ({"predicted": ("price",)}, "predicted 'price' is not a categorical feature"),
        ({"features": (*SCHEMA.features, Numeric(name="price"))}, "two features are named 'price'"),
        ({"features": (Categorical(name="item", min_count=2),), "predicted": ()}, "whole vocab"),
        ({"features": (*SCHEMA.features, Text(name="g", column="genres", of="item"))}, "as a bag"),
        ({"colour": 1}, "colour"),
    ],
)
def test_inconsistent_schemas_are_refused(change, told):
    with pytest.raises(ValidationError, match=told):
        TimelineSchema(**{**dict(SCHEMA), **change})


def test_selecting_features_keeps_the_item_and_refuses_strange_names():
    chosen = SCHEMA.select(("price",))
    assert [f.name for f in chosen.features] == ["item", "price"]
    assert chosen.predicted == ("item",)
    assert SCHEMA.select(()) == SCHEMA
    with pytest.raises(ValueError, match=r"no feature is named colour; there are item, stars"):
        SCHEMA.select(("price", "colour"))


def test_a_sound_table_passes():
    SCHEMA.check(TABLE)


def test_all_problems_of_a_table_are_told_with_feature_user_and_row():
    table = {
        **TABLE,
        "item": ["a", None, "a"],
        "timestamp": [1, 1700000000000, "soon"],
        "price": [1.5, "cheap", float("inf")],
        "image": [[0.1], "x", [0.1, None]],
    }
    with pytest.raises(ValueError) as error:
        SCHEMA.check(table)
    for told in (
        "feature 'item', user 'ann', row 2: is missing",
        "feature 'time', user 'ann', row 2: 1700000000000 is not in seconds; divide milliseconds",
        "feature 'time', user 'bob', row 3: 'soon' is not a time in seconds",
        "feature 'price', user 'ann', row 2: 'cheap' is not a finite number",
        "feature 'price', user 'bob', row 3: inf is not a finite number",
        "feature 'image', user 'ann', row 1: needs a vector of 2 numbers",
        "feature 'image', user 'ann', row 2: needs a vector of 2 numbers",
        "feature 'image', user 'bob', row 3: its vector holds more than finite numbers",
    ):
        assert told in str(error.value)


def test_missing_columns_are_told_at_once():
    table = {name: TABLE[name] for name in ("user", "item", "timestamp")}
    with pytest.raises(ValueError, match=r"lacks the column\(s\) image, note, price, rating"):
        SCHEMA.check(table)


def test_of_many_problems_the_first_are_told():
    table = {**{name: [value[0]] * 50 for name, value in TABLE.items()}, "price": ["x"] * 50}
    with pytest.raises(ValueError, match="and more") as error:
        SCHEMA.check(table)
    assert str(error.value).count("row ") == 20


def test_the_rating_stays_a_number_whatever_feature_reads_it():
    readers = SCHEMA.readers("event", TABLE)
    assert isinstance(readers["rating"], Numeric)
    with pytest.raises(ValueError, match="feature 'rating', user 'ann', row 1: 'good'"):
        SCHEMA.check({**TABLE, "rating": ["good", 1, 2]})
