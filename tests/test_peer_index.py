"""The index of peers against brute force: strictly earlier, of others, one a user."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers_made import arrays, everybody, index, listed, worlds

from user_llm.data import peer_building, peer_index
from user_llm.data.peer_building import build
from user_llm.data.timelines import user_of

tiny = pytest.mark.parametrize("memory", [0, 3 * peer_building.EVENT, peer_building.MEMORY])


def by_force(users, most) -> list[list[int]]:
    """Event by event, the definition: each other's newest before it, the newest of those first."""
    flat = [(u, *event) for u, own in enumerate(users) for event in own]
    found = []
    for user, time, item in flat:
        newest = {}
        for number, (other, when, what) in enumerate(flat):
            if other != user and what == item and when < time:
                newest[other] = max(newest.get(other, (-1, -1)), (when, number))
        found.append([number for _, number in sorted(newest.values(), reverse=True)][:most])
    return found


@given(worlds, st.integers(1, 5))
def test_peers_are_those_of_the_definition(users, most):
    with index(users) as made:
        peers = made.same_item(everybody(users), most)
    assert peers.shape == (len(peers), most) and peers.dtype == np.int64
    assert listed(peers) == by_force(users, most)


@given(worlds, st.integers(1, 5))
def test_no_peer_is_later_or_at_the_same_time_nor_the_users_own_nor_there_twice(users, most):
    offsets, times, item = arrays(users)
    with index(users) as made:
        found = listed(made.same_item(everybody(users), most))
    for event, own in enumerate(found):
        who = user_of(np.array([*own, event]), offsets).tolist()
        assert len(set(who)) == len(who)
        assert (times[own] < times[event]).all() and (item[own] == item[event]).all()
        assert (np.diff(times[own]) <= 0).all()


@given(worlds, st.integers(1, 5), st.data())
def test_any_events_may_be_asked_about_in_any_order(users, most, data):
    count = sum(map(len, users))
    asked = np.array(data.draw(st.lists(st.integers(0, count - 1)) if count else st.just([])), int)
    with index(users) as made:
        np.testing.assert_array_equal(
            made.same_item(asked, most), made.same_item(everybody(users), most)[asked]
        )


def test_a_user_who_repeats_an_item_hides_nobody_however_often(tmp_path, monkeypatch):
    often = [[(0, 0)], [(t, 0) for t in range(1, 300)], [(t, 0) for t in range(1, 300)]]
    users = [*often, [(300, 0)]]
    monkeypatch.setattr(peer_index, "PIECE", 64)
    made = build(tmp_path, *arrays(users))
    assert made.same_item(np.array([599]), 4).tolist() == [[598, 299, 0, -1]]
    with pytest.raises(ValueError, match="0 peers at most"):
        made.same_item(np.array([599]), 0)


@given(worlds, st.randoms(use_true_random=False))
def test_who_shares_a_time_with_whom_shuffled_changes_no_set_of_peers(users, random):
    order = list(range(len(users)))
    random.shuffle(order)
    offsets, most = arrays(users).offsets, len(users) + 1
    numbers = np.concatenate([[-1], *(np.arange(*offsets[u : u + 2]) for u in order)]).astype(int)
    with index(users) as made, index([users[u] for u in order]) as shuffled:
        found = numbers[shuffled.same_item(everybody(users), most) + 1]
        wanted = made.same_item(numbers[1:], most)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(wanted, axis=1))


@tiny
@settings(max_examples=30)
@given(worlds)
def test_blocks_of_any_size_make_the_same_index(memory, users):
    with index(users) as whole, index(users, memory=memory) as made:
        same(made, whole)
        assert made.events.dtype == np.int32
        keys = [(item, time, e) for e, (_, time, item) in enumerate(zip(*rows(users), strict=True))]
        assert made.events.tolist() == [e for *_, e in sorted(keys)]


def rows(users):
    offsets, times, item = arrays(users)
    return user_of(everybody(users), offsets).tolist(), times.tolist(), item.tolist()


def same(made, other):
    np.testing.assert_array_equal(made.events, other.events)
    np.testing.assert_array_equal(made.starts, other.starts)


def test_an_index_is_opened_again_where_its_data_set_is_the_same(tmp_path, monkeypatch):
    users = [[(0, 0), (1, 2)], [(3, 2)]]
    made = build(tmp_path, *arrays(users))
    other = build(tmp_path, *arrays([*users, [(3, 2)]]))
    assert len(list(tmp_path.iterdir())) == 2 and len(other.events) == 4
    monkeypatch.setattr(peer_building, "_write", None)
    again = build(tmp_path, *arrays(users))
    same(again, made)
    assert isinstance(again.events, np.memmap)
    with pytest.raises(ValueError, match="3 times and 3 items are not the 4 events of offsets"):
        build(tmp_path, np.array([0, 4]), *arrays(users)[1:])


def test_damaged_and_foreign_indexes_are_refused(tmp_path):
    world = arrays([[(0, 0), (1, 2)], [(3, 2)]])
    build(tmp_path, *world)
    (path,) = tmp_path.iterdir()
    for name in ("events.npy", "starts.npy", "index.json"):
        sound = (path / name).read_bytes()
        for damaged in (bytes([*sound[:-8], sound[-8] ^ 1, *sound[-7:]]), sound[:-9], b""):
            (path / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{path.name} is .*; remove it and build again"):
                build(tmp_path, *world)
        (path / name).unlink()
        with pytest.raises(ValueError, match="is no index of peers; remove it and build again"):
            build(tmp_path, *world)
        (path / name).write_bytes(sound)
    index = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(index | {"data": "0" * 64}))
    with pytest.raises(ValueError, match="is the index of another data set; remove it and build"):
        build(tmp_path, *world)


def test_nothing_is_left_of_a_build_that_fails(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(peer_building, "_sorted", full)
    with pytest.raises(OSError, match="no space left"):
        build(tmp_path, *arrays([[(0, 0)]]))
    assert not list(tmp_path.iterdir())


def test_the_peers_of_movielens_1m_are_exact_and_earlier(data_folder, tmp_path):
    text = (data_folder / "ml-1m" / "ratings.dat").read_text().replace("::", " ")
    user, item, _, times = np.fromstring(text, np.int64, sep=" ").reshape(-1, 4).T
    order = np.lexsort((times, user))
    user, item, times = user[order], item[order], times[order]
    offsets = np.searchsorted(user, np.arange(1, user[-1] + 2))
    made = build(tmp_path, offsets, times, item)
    events = np.sort(np.random.default_rng(0).choice(len(item), 100_000, replace=False))
    peers = made.same_item(events, 8)
    there = peers >= 0
    assert (times[peers] < times[events][:, None])[there].all()
    assert (item[peers] == item[events][:, None])[there].all()
    assert (user[peers] != user[events][:, None])[there].all()
    for row in range(0, 100_000, 2_500):
        event = events[row]
        earlier = (item == item[event]) & (times < times[event])
        some = np.flatnonzero(earlier)  # here users rate an item once
        wanted = some[np.lexsort((some, times[some]))][::-1][:8]
        assert peers[row][there[row]].tolist() == wanted.tolist()
