"""Stores of users, all of one behaviour: in a file, and on a real Redis server."""

import signal
import threading
import time
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores_made import events, opened, rest, said, writer

from user_llm.serving.store import Conflict, Made

WRITERS, WRITES = 16, 25
NAMES = [
    "",
    "u",
    "{u}",
    "}{",
    "a:events",
    "a\0b",
    "日本 – ü",
    "%7Bu%7D",
    "'; return 1 --",
    "x" * 999,
]
numbers = count()


@pytest.fixture(params=["sqlite", "redis"])
def where(request, tmp_path) -> str:
    if request.param == "redis":
        return request.getfixturevalue("redis_server").url
    return str(tmp_path / "users.db")


@pytest.fixture
def store(where):
    made = opened(where, kept=4)
    yield made
    made.close()


def test_the_newest_events_are_kept_and_all_are_counted(store):
    assert (store.get("u"), store.version("u")) == (None, 0)
    assert store.append("u", events(1, 2, 3))[:5] == ("u", 1, 3, events(1, 2, 3), None)
    assert store.append("u", events(4, 5))[:5] == ("u", 2, 5, events(2, 3, 4, 5), None)
    assert store.replace("u", events(9))[:5] == ("u", 3, 1, events(9), None)
    assert store.get("u")[:5] == ("u", 3, 1, events(9), None)
    assert store.version("u") == 3
    assert store.append("u", [])[:5] == ("u", 4, 1, events(9), None)
    assert store.replace("u", [])[:5] == ("u", 5, 0, [], None)
    assert store.append("u", events(*range(9000)))[:5] == (
        "u",
        6,
        9000,
        events(*range(8996, 9000)),
        None,
    )


def test_a_change_is_refused_of_a_version_that_is_no_more(store):
    store.append("u", events(1), if_version=0)
    for version in (0, 2):
        with pytest.raises(Conflict, match=f"is of version 1, not {version}"):
            store.append("u", events(2), if_version=version)
        with pytest.raises(Conflict):
            store.replace("u", events(2), if_version=version)
    assert store.append("u", events(2), if_version=1).version == 2
    assert store.get("u").events == events(1, 2)


def test_what_was_made_of_old_events_is_not_kept_as_of_new_ones(store):
    store.append("u", events(1))
    assert store.keep("u", Made("model", 1, b"state"))
    store.append("u", events(2))
    assert store.get("u").made == Made("model", 1, b"state")  # to go on from
    assert not store.keep("u", Made("model", 1, b"late"))
    assert not store.keep("nobody", Made("model", 0, b"state"))
    whole = bytes(range(256)) * 9
    assert store.keep("u", Made("model", 2, whole))
    assert store.get("u").made == Made("model", 2, whole)
    assert store.append("u", events(3)).made == Made("model", 2, whole)
    assert store.replace("u", events(3)).made is None
    assert store.version("nobody") == 0


def test_any_text_is_a_name_and_none_is_another(store):
    odd = {"item": "\0 {日本} '; return 1 --", "list": [1.5, None, {"a": True}]}
    for number, name in enumerate(NAMES):
        assert store.append(name, [odd, {"item": number}], if_version=0).user == name
    for number, name in enumerate(NAMES):
        assert store.get(name)[:5] == (name, 1, 2, [odd, {"item": number}], None)
    assert store.users(99) == NAMES[::-1]
    assert store.users(3) == NAMES[:-4:-1]
    store.append("u", events(1))
    assert store.users(1) == ["u"]
    for left, name in enumerate(NAMES[1:], 1):
        assert store.delete(name) and not store.delete(name)
        assert len(store.users(99)) == len(NAMES) - left
    with pytest.raises(UnicodeEncodeError):
        store.append("\ud800", events(1))


def test_users_whose_time_is_over_are_gone_and_begin_anew(where):
    store, ttl = opened(where, ttl=2.0), 2.0
    store.append("u", events(1))
    time.sleep(0.6 * ttl)
    store.append("u", events(2))
    store.keep("u", Made("model", 2, b"state"))
    store.append("v", events(3))
    store.append("w", events(3))
    time.sleep(0.6 * ttl)
    assert store.users(9) == ["w", "v", "u"]
    assert store.get("u").made and store.version("u") == 2
    lasting = opened(where, ttl=None)
    lasting.append("w", events(4))
    assert store.purge() == 0
    time.sleep(0.6 * ttl)
    assert (store.get("u"), store.users(9), store.delete("v")) == (None, ["w"], False)
    assert (store.version("u"), store.keep("u", Made("model", 2, b"late"))) == (0, False)
    assert store.append("v", events(4), if_version=0)[:5] == ("v", 1, 1, events(4), None)
    assert store.purge() == 1
    assert store.purge() == 0
    assert store.append("u", events(5)).events == events(5)
    assert store.get("w").events == events(3, 4)
    store.close()
    lasting.close()


STEP = st.tuples(
    st.sampled_from(["append", "replace", "delete", "keep", "reopen"]),
    st.sampled_from("ab"),
    st.integers(0, 6),
    st.one_of(st.none(), st.integers(0, 3)),
)


# The folder and the server are those of other examples, the users are not.
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, max_size=30))
def test_it_does_what_a_dictionary_does(where, steps):
    store, example = opened(where, kept=4), next(numbers)
    known, versions, order = {}, {}, []
    for number, (verb, name, size, if_version) in enumerate(steps):
        user, new = f"{example}-{name}", events(*range(number, number + size))
        version = versions.get(user, 0)
        if verb in ("append", "replace"):
            change = getattr(store, verb)
            if if_version not in (None, version):
                with pytest.raises(Conflict):
                    change(user, new, if_version=if_version)
                continue
            change(user, new, if_version=if_version)
            known[user] = new if verb == "replace" else known.get(user, []) + new
            versions[user] = version + 1
            order = [user, *(other for other in order if other != user)]
        elif verb == "delete":
            assert store.delete(user) == (user in order)
            known.pop(user, None)
            versions[user] = 0
            order = [other for other in order if other != user]
        elif verb == "keep":
            fits = size == version and user in known
            assert store.keep(user, Made("model", size, b"state")) == fits
        else:
            store.close()
            store = opened(where, kept=4)
        assert [user for user in store.users(99) if user.startswith(f"{example}-")] == order
        for user in (f"{example}-a", f"{example}-b"):
            record, wanted = store.get(user), known.get(user)
            assert store.version(user) == versions.get(user, 0)
            assert (record is None) == (wanted is None)
            if record:
                assert (record.version, record.told) == (versions[user], len(wanted))
                assert record.events == wanted[max(0, len(wanted) - 4) :]
    store.close()


def test_sixteen_writers_of_one_user_lose_nothing(where):
    """Threads over two stores, and two processes."""
    stores, lost = [opened(where, kept=10**6) for _ in range(2)], []

    def write(store, name: str) -> None:
        """Half of them know no version, and half go on from the one that they have read."""
        for number in range(WRITES):
            while True:
                version = store.version("u") if name < "8" else None
                try:
                    store.append("u", events(f"{name}-{number}"), if_version=version)
                    break
                except Conflict:
                    lost.append(name)

    threads = [
        threading.Thread(target=write, args=(stores[n % 2], f"{n:x}")) for n in range(WRITERS)
    ]
    others = [writer(where, f"process {n}", WRITES) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in others:
        process.communicate()
        assert process.returncode == 0
    record, names = stores[0].get("u"), [f"{n:x}" for n in range(WRITERS)]
    names += ["process 0", "process 1"]
    told = [event["item"] for event in record.events]
    assert sorted(told) == sorted(f"{name}-{n}" for name in names for n in range(WRITES))
    for name in names:  # each one's own are in their order
        assert [x for x in told if x.startswith(f"{name}-")] == [
            f"{name}-{n}" for n in range(WRITES)
        ]
    assert record.version == record.told == len(names) * WRITES
    for store in stores:
        store.close()


def test_what_was_acknowledged_outlives_a_kill_of_the_writer(where):
    """Killed at no chosen moment, twenty times in the course of a thousand writes."""
    store, told = opened(where, kept=10**6), 0
    for nth in range(20):
        with writer(where, str(nth), 1000) as process:
            acknowledged = said(process, 50)
            process.send_signal(signal.SIGKILL)
            acknowledged += rest(process)
        last = max(acknowledged)
        store.version("u")  # a server has read all by now that was sent before
        record = store.get("u")
        # One more may be stored, which it had no time to say.
        assert record.told - told in (last + 1, last + 2)
        told, own = record.told, [event["item"] for event in record.events]
        assert own[-1] in (f"{nth}-{last}", f"{nth}-{last + 1}")
    assert len(record.events) == record.version == told >= 1000
    store.close()
