"""Users who are followed: whatever came when, their memory is that of what is kept of them."""

import threading

import jax
import numpy as np
import pytest
from growing_made import CASES, WINDOW, drawn, follower

from user_llm.serving.sqlite_store import SQLiteStore
from user_llm.serving.store import Full
from user_llm.serving.users import Users, by_time

KEPT = 3 * WINDOW


@pytest.fixture
def store(tmp_path):
    made = SQLiteStore(tmp_path / "users.sqlite", kept=KEPT)
    yield made
    made.close()


@pytest.fixture(scope="module", params=CASES)
def growing(request):
    return follower(request.param)[2]


def followed(store, growing, model="first", **how):
    return Users(store, growing, model, ready=lambda memory: memory, **how)


def whole(store, growing, user):
    """The memory of all that is kept of a user, read at once."""
    record = store.get(user)
    return growing.memory(growing.anew(by_time(record.events), record.told))


def assert_same(found, wanted):
    np.testing.assert_array_equal(found.mask, wanted.mask)
    there = np.asarray(found.mask)
    tokens = (np.asarray(x.tokens)[there] for x in (found, wanted))
    np.testing.assert_allclose(*tokens, atol=1e-5)


def test_a_memory_is_that_of_all_that_came_whenever_and_however(store, growing):
    rng, users = np.random.default_rng(0), followed(store, growing)
    waiting = {name: drawn(rng, 40) for name in ("early", "late")}
    for step in range(24):
        name = ("early", "late")[step % 2]
        count = int(rng.integers(1, 4))
        news, waiting[name] = waiting[name][:count], waiting[name][count:]
        if name == "late" and step % 4 == 1:  # what happened before comes after what follows
            news = news[::-1]
        users.append(name, news)
        if step % 7 == 6:
            users = followed(store, growing)  # as after a new start
        assert_same(users.memory(name), whole(store, growing, name))
    users.replace("late", waiting["late"][:2])
    assert_same(users.memory("late"), whole(store, growing, "late"))


def test_what_is_known_is_gone_on_with_and_another_model_reads_anew(store, growing, monkeypatch):
    anew, read = growing.anew, []
    monkeypatch.setattr(growing, "anew", lambda *given: read.append(given) or anew(*given))
    users, events = followed(store, growing), drawn(np.random.default_rng(1), 6)
    for event in events[:5]:
        users.append("u", [event])
    assert len(read) == 1
    newer, wanted = followed(store, growing, model="second"), users.memory("u")
    assert_same(newer.memory("u"), wanted)
    assert len(read) == 2 and store.get("u").made.model == "second"
    newer.append("u", events[5:])
    newer.memory("u")
    assert len(read) == 2


def test_who_is_not_known_is_nobody_in_particular(store, growing):
    users = followed(store, growing)
    assert_same(users.memory("u"), growing.memory(growing.empty()))
    users.append("u", [])
    assert_same(users.memory("u"), growing.memory(growing.empty()))
    users.append("u", drawn(np.random.default_rng(2), 2))
    assert users.delete("u") and not users.delete("u")
    assert_same(users.memory("u"), growing.memory(growing.empty()))


def test_many_writers_of_one_user_lose_nothing(store, growing):
    users, rng = followed(store, growing), np.random.default_rng(3)
    events = [{**event, "timestamp": 7} for event in drawn(rng, KEPT)]

    def write(own):
        for event in own:
            users.append("u", [event])

    threads = [threading.Thread(target=write, args=(events[n::16],)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = store.get("u")
    assert record.told == record.version == len(events)
    assert sorted(e["item"] for e in record.events) == sorted(e["item"] for e in events)
    assert_same(users.memory("u"), whole(store, growing, "u"))


def test_events_are_refused_whole_and_nothing_is_kept_of_them(store, growing):
    users, event = followed(store, growing), {"item": "1", "timestamp": 5}
    for wrong, named in (
        ({"timestamp": "soon"}, "soon"),
        ({"rating": "high"}, "high"),
        ({"weather": "fine"}, "weather"),
    ):
        with pytest.raises(ValueError, match=named):
            users.append("u", [event, event | wrong])
    assert store.get("u") is None
    users.append("u", [{"item": "1"}, event | {"timestamp": "1970-01-01T00:01:00"}])
    assert store.get("u").events[0]["timestamp"] > 10**9 and store.get("u").told == 2
    assert store.get("u").events[1]["timestamp"] == 60


def test_as_many_memories_are_ready_as_there_is_room_for(store, growing):
    size = sum(x.nbytes for x in jax.tree.leaves(growing.memory(growing.empty())))
    users, rng = followed(store, growing, cached=2 * size), np.random.default_rng(4)
    for name in ("a", "b", "c"):
        users.append(name, drawn(rng, 3))
        users.memory(name)
    assert users.cached == 2
    misses = users.misses
    users.memory("c"), users.memory("b")
    assert users.misses == misses
    users.memory("a")
    assert users.misses == misses + 1 and users.cached == 2


def test_events_that_are_there_are_acknowledged_though_their_memory_has_no_room(
    store, growing, monkeypatch
):
    users = followed(store, growing)
    news = drawn(np.random.default_rng(0), 4)
    users.append("u", news[:2])

    def full(user, made):
        raise Full("no room")

    with monkeypatch.context() as patched:
        patched.setattr(store, "keep", full)
        assert users.append("u", news[2:]).told == 4
        assert_same(users.memory("u"), whole(store, growing, "u"))
    assert_same(followed(store, growing).memory("u"), whole(store, growing, "u"))


def test_who_begins_anew_under_a_name_is_not_taken_for_who_had_it(store, growing):
    here, elsewhere = followed(store, growing), followed(store, growing)
    before, after = (drawn(np.random.default_rng(seed), 2) for seed in (0, 1))
    here.append("u", before)
    assert_same(elsewhere.memory("u"), whole(store, growing, "u"))
    here.delete("u")
    here.append("u", after)
    assert store.version("u") == 1
    assert_same(elsewhere.memory("u"), whole(store, growing, "u"))
