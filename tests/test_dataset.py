"""A built data set in memory: events, items and encodings fit; SASRec's core is exact."""

import json
from dataclasses import replace
from itertools import pairwise

import movielens_files
import numpy as np
import pytest

from user_llm.data.builders import build
from user_llm.data.dataset import load
from user_llm.data.records import fingerprint
from user_llm.data.world import World


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("world")
    return build("world", source=None, data_dir=path, users=12)


@pytest.fixture(scope="module")
def data(folder):
    return load(folder)


def movielens(tmp_path, ratings):
    source = movielens_files.write(tmp_path / "raw", "1m", ratings=ratings)
    return build("movielens", source=source, data_dir=tmp_path, version="1m")


def test_offsets_divide_the_events_among_the_users(data):
    lengths = [len(made["item"]) for made in World(users=12).timelines()]
    assert np.diff(data.offsets).tolist() == lengths
    assert data.offsets[0] == 0
    assert data.offsets[-1] == len(data.item) == len(data.times) == len(data.reviews)
    assert all(len(column) == len(data.item) for column in data.features.values())


def test_inputs_name_the_item_first_and_then_the_schema_in_order(data):
    assert [f.name for f in data.inputs] == ["item", "rating", "genres", "time", "review"]
    assert [f.predicted for f in data.inputs] == [True, True, False, False, False]
    assert data.inputs[0].size == len(data.items.ids)


def test_rows_of_no_item_are_blank(data):
    for rows in (data.items.ids, data.items.titles, data.items.texts):
        assert rows[:2] == ("", "")
    assert not data.items.features["genres"][:2].any()
    assert all(data.items.ids[2:])


def test_genres_of_an_item_lead_back_to_its_names(data):
    names = ("", "?", *data.vocabularies["genres"].values)
    for ids, genres in zip(data.items.features["genres"], data.items.genres, strict=True):
        assert tuple(names[i] for i in ids if i) == genres


def test_gather_agrees_with_every_feature_and_pads_with_zeros(data):
    events = np.array([[3, -1, 0], [-1, len(data.item) - 1, 7]])
    rows = data.gather(events)
    assert list(rows) == ["item", "rating", "time", "review", "genres"]
    for config in data.inputs:
        row = rows[config.name]
        assert row.shape[:2] == events.shape
        assert row.dtype == np.int32
        for place in np.ndindex(events.shape):
            event = events[place]
            if event < 0:
                assert not row[place].any()
            elif config.name == "item":
                assert row[place] == data.item[event]
            elif config.name == "genres":
                np.testing.assert_array_equal(
                    row[place], data.items.features["genres"][data.item[event]]
                )
            else:
                np.testing.assert_array_equal(row[place], data.features[config.name][event])


def test_gather_takes_events_of_any_shape_and_changes_nothing(data):
    before = data.item.copy(), data.features["time"].copy()
    assert data.gather(np.array(5))["time"].shape == (3,)
    assert data.gather(np.array(-1))["time"].tolist() == [0, 0, 0]
    assert data.gather(np.zeros((0, 4), np.int64))["item"].shape == (0, 4)
    np.testing.assert_array_equal(before[0], data.item)
    np.testing.assert_array_equal(before[1], data.features["time"])


def test_the_first_event_of_every_user_has_its_own_gap(data):
    opens = data.features["time"][:, 0] == 2
    np.testing.assert_array_equal(np.flatnonzero(opens), data.offsets[:-1])


def test_only_the_features_asked_for_are_read(folder):
    few = load(folder, features=("genres",))
    assert [f.name for f in few.inputs] == ["item", "genres"]
    assert few.features == {}
    assert few.ratings is not None
    with pytest.raises(ValueError, match="no feature is named plot; there are item, rating"):
        load(folder, features=("plot",))


def test_the_core_counts_users_and_items_once_in_the_whole_table(tmp_path):
    ratings = [(1, 10, 5, 1), (1, 20, 5, 2), (1, 30, 5, 3), (2, 10, 5, 1), (2, 20, 5, 2)]
    ratings += [(3, 20, 5, 1), (4, 10, 5, 1), (4, 10, 5, 2)]
    data = load(movielens(tmp_path, ratings), min_count=2)
    kept = [
        (user, data.items.ids[i])
        for u, user in enumerate(data.users)
        for i in data.item[slice(*data.offsets[u : u + 2])]
    ]
    assert kept == [(u, m) for u, m in (("1", "10"), ("1", "20"), ("2", "10"), ("2", "20"))] + [
        ("4", "10"),
        ("4", "10"),
    ]
    assert len(data.items.ids) == 2 + 2
    with pytest.raises(ValueError, match="min_count=9 leaves no event"):
        load(tmp_path / next(tmp_path.glob("movielens-*")).name, min_count=9)


def test_the_first_users_alone_are_read_with_their_items(folder, data):
    few = load(folder, first_users=2)
    assert few.users == data.users[:2]
    events = slice(0, data.offsets[2])
    assert [few.items.ids[i] for i in few.item] == [data.items.ids[i] for i in data.item[events]]
    np.testing.assert_array_equal(few.times, data.times[events])


def test_the_clock_tells_each_event_and_the_one_after_it(folder, data):
    clocked = load(folder, clock=True)
    times = data.times - data.times.min()
    np.testing.assert_array_equal(clocked.features["event_time"], times)
    for start, stop in pairwise(data.offsets.tolist()):
        asked = clocked.features["query_time"][start:stop].tolist()
        assert asked == [*times[start + 1 : stop].tolist(), times[stop - 1]]
    batch = clocked.gather(np.array([[0, 1, -1]]))
    assert batch["event_time"].dtype == np.int32
    assert batch["query_time"][0].tolist() == [times[1], times[2], 0]


def test_the_hash_tells_any_change_of_content(data, folder):
    assert load(folder).hash == data.hash
    assert load(folder, features=("time",)).hash != data.hash
    ratings = data.ratings.copy()
    ratings[7] = 0
    for change in ({"ratings": ratings}, {"users": data.users[::-1]}, {"reviews": None}):
        assert replace(data, **change).hash != data.hash
    assert len(data.hash) == 64


def test_folders_that_hold_no_data_set_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no built data set"):
        load(tmp_path)


def test_flipped_bytes_and_lost_records_are_refused(tmp_path):
    folder = movielens(tmp_path, movielens_files.RATINGS)
    before = fingerprint(folder)
    counts = folder / "counts.json"
    whole = counts.read_text()
    counts.write_text(whole.replace('"users": 2', '"users": 3'))
    with pytest.raises(ValueError, match="has 2 timelines, not 3; rebuild it"):
        load(folder)
    counts.write_text(whole.replace('"events": 6', '"events": 7'))
    with pytest.raises(ValueError, match="has 6 events, not 7; rebuild it"):
        load(folder)
    counts.write_text(whole)
    (records,) = folder.glob("*/timelines/*/*.array_record-*")
    sound = records.read_bytes()
    flipped = bytearray(sound)
    flipped[sound.index(b"timestamp") + 20] ^= 0xFF
    for damaged in (bytes(flipped), sound[: len(sound) // 2], b""):
        records.write_bytes(damaged)
        assert fingerprint(folder) != before
        with pytest.raises(ValueError, match="damaged; rebuild"):
            load(folder)


def test_up_to_a_share_of_damaged_records_is_left_out_and_told_of(tmp_path, caplog):
    folder = build("world", source=None, data_dir=tmp_path, users=40)
    (records,) = folder.glob("*/timelines/*/*.array_record-*")
    sound, whole = records.read_bytes(), load(folder)
    flipped = bytearray(sound)
    flipped[150] ^= 4  # in the first record; what is before names the format
    records.write_bytes(flipped)
    left = load(folder, damaged=0.05)
    lost = set(whole.users) - set(left.users)
    assert 1 <= len(lost) <= 2
    assert f"{len(lost)} of 40 of the timelines of {folder} are DAMAGED and left out" in caplog.text
    there = [whole.users.index(user) for user in left.users]
    for mine, its in enumerate(there):
        own = slice(*left.offsets[mine : mine + 2]), slice(*whole.offsets[its : its + 2])
        np.testing.assert_array_equal(left.times[own[0]], whole.times[own[1]])
    with pytest.raises(ValueError, match="the timelines of .* are damaged; rebuild it"):
        load(folder)


def test_the_5_core_of_movielens_1m_is_the_one_that_sasrec_ships(data_folder, tmp_path):
    source = data_folder / "ml-1m"
    shipped = np.loadtxt(source / "sasrec_sequences.txt", dtype=np.int64)
    items = dict(np.loadtxt(source / "sas_to_original_items.txt", dtype=np.int64).tolist())
    users = dict(np.loadtxt(source / "sas_to_original_users.txt", dtype=np.int64).tolist())
    theirs: dict[str, list[str]] = {}
    for user, item in shipped.tolist():
        theirs.setdefault(str(users[user]), []).append(str(items[item]))

    folder = build("movielens", source=source, data_dir=tmp_path, version="1m")
    counts = json.loads((folder / "counts.json").read_text())
    assert (counts["users"], counts["events"], counts["items"]) == (6_040, 1_000_209, 3_883)
    assert counts["remarks"] == []
    data = load(folder, min_count=5)
    assert (len(data.item), len(data.users), len(data.items.ids) - 2) == (999_611, 6_040, 3_416)
    assert list(data.users) == sorted(theirs, key=int)
    for u, user in enumerate(data.users):
        ours = data.item[slice(*data.offsets[u : u + 2])]
        assert [data.items.ids[i] for i in ours] == theirs[user]
