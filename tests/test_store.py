"""A store of users: what it has acknowledged is there, whatever happens to the process or disk."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.serving.sqlite_store import SQLiteStore
from user_llm.serving.store import Conflict, Made, Unavailable

WRITERS, WRITES = 16, 25
WRITE = """
import sys
from pathlib import Path
from user_llm.serving.sqlite_store import SQLiteStore

store = SQLiteStore(Path(sys.argv[1]), kept=10**6)
for number in range(int(sys.argv[2])):
    store.append("u", [{"item": f"{sys.argv[3]}-{number}"}])
    print(number, flush=True)
"""


def events(*items) -> list[dict]:
    return [{"item": item} for item in items]


def writer(path: Path, writes: int, name: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITE, str(path), str(writes), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "users.db"


@pytest.fixture
def store(path):
    made = SQLiteStore(path, kept=4)
    yield made
    made.close()


def test_the_newest_events_are_kept_and_all_are_counted(store):
    assert store.get("u") is None
    assert store.append("u", events(1, 2, 3)) == ("u", 1, 3, events(1, 2, 3), None)
    assert store.append("u", events(4, 5)) == ("u", 2, 5, events(2, 3, 4, 5), None)
    assert store.replace("u", events(9)) == ("u", 3, 1, events(9), None)
    assert store.get("u") == ("u", 3, 1, events(9), None)


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
    assert store.keep("u", Made("model", 2, b"new"))
    assert store.get("u").made == Made("model", 2, b"new")
    assert store.replace("u", events(3)).made is None


def test_nothing_of_an_erased_user_is_left_in_the_files(store, path):
    store.append("u", events("a secret"))
    store.keep("u", Made("model", 1, b"a secret state"))
    store.append("other", events(1))
    assert store.delete("u") and not store.delete("u")
    assert (store.get("u"), store.users(9)) == (None, ["other"])
    files = [p.read_bytes() for p in path.parent.iterdir()]
    assert not any(b"secret" in content for content in files)


def test_users_whose_time_is_over_are_gone_and_begin_anew(path, monkeypatch):
    store, now = SQLiteStore(path, ttl=60.0), [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    store.append("u", events(1))
    now[0] += 50
    store.append("u", events(2))
    store.append("v", events(3))
    now[0] += 59
    assert store.users(9) and store.get("u").version == 2
    now[0] += 2
    assert (store.get("u"), store.users(9), store.delete("v")) == (None, [], False)
    assert store.append("u", events(4), if_version=0) == ("u", 1, 1, events(4), None)
    assert store.purge() == 0
    now[0] += 61
    assert store.purge() == 1
    assert store.append("v", events(5)).events == events(5)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["append", "replace", "delete", "keep", "reopen"]),
            st.sampled_from("ab"),
            st.integers(0, 6),
        )
    )
)
def test_it_does_what_a_dictionary_does(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("store") / "users.db"
    store, known, versions = SQLiteStore(path, kept=4), {}, {}
    for number, (verb, user, count) in enumerate(steps):
        new = events(*range(number, number + count))
        if verb == "append":
            store.append(user, new)
            known[user] = known.get(user, []) + new
        elif verb == "replace":
            store.replace(user, new)
            known[user] = new
        elif verb == "delete":
            assert store.delete(user) == (known.pop(user, None) is not None)
            versions[user] = 0
        elif verb == "keep":
            fits = count == versions.get(user, 0) and user in known
            assert store.keep(user, Made("model", count, b"state")) == fits
        else:
            store.close()
            store = SQLiteStore(path, kept=4)
        versions[user] = versions.get(user, 0) + (verb in ("append", "replace"))
        for name in "ab":
            record = store.get(name)
            assert (record is None) == (name not in known)
            if record:
                wanted = known[name]
                assert (record.version, record.told) == (versions[name], len(wanted))
                assert record.events == wanted[max(0, len(wanted) - 4) :]
    store.close()


def test_sixteen_writers_of_one_user_lose_nothing(path):
    store, lost = SQLiteStore(path, kept=10**6), []

    def write(name: str) -> None:
        """Half of them know no version, and half go on from the one that they have read."""
        for number in range(WRITES):
            while True:
                record = store.get("u") if name < "8" else None
                try:
                    store.append(
                        "u",
                        events(f"{name}-{number}"),
                        if_version=record.version if record else None,
                    )
                    break
                except Conflict:
                    lost.append(name)

    threads = [threading.Thread(target=write, args=(f"{n:x}",)) for n in range(WRITERS)]
    others = [writer(path, WRITES, f"process {n}") for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in others:
        process.communicate()
        assert process.returncode == 0
    record, names = store.get("u"), [f"{n:x}" for n in range(WRITERS)] + ["process 0", "process 1"]
    told = [event["item"] for event in record.events]
    assert sorted(told) == sorted(f"{name}-{n}" for name in names for n in range(WRITES))
    for name in names:  # each one's own are in their order
        assert [x for x in told if x.startswith(f"{name}-")] == [
            f"{name}-{n}" for n in range(WRITES)
        ]
    assert record.version == record.told == len(names) * WRITES


def test_what_was_acknowledged_outlives_a_kill(path):
    """Killed at no chosen moment, twenty times in the course of a thousand writes."""
    store, told = SQLiteStore(path, kept=10**6), 0
    for nth in range(20):
        with writer(path, 1000, str(nth)) as process:
            said = [process.stdout.readline() for _ in range(50)]
            process.send_signal(signal.SIGKILL)
            said += process.stdout.readlines()
        last = max(int(line) for line in said if line.endswith("\n"))
        record = store.get("u")
        # One more may be stored, which it had no time to say.
        assert record.told - told in (last + 1, last + 2)
        told, own = record.told, [event["item"] for event in record.events]
        assert own[-1] in (f"{nth}-{last}", f"{nth}-{last + 1}")
    assert len(record.events) == record.version == told >= 1000
    store.close()


FILL = """
import sys
from pathlib import Path
from user_llm.serving.sqlite_store import SQLiteStore
from user_llm.serving.store import Full

folder = Path(sys.argv[1])
store, stored = SQLiteStore(folder / "users.db", kept=10**6), 0
try:
    while True:
        store.append("u", [{"item": "x" * 5000}])
        stored += 1
except Full as error:
    print(error)
assert stored > 20 and store.get("u").told == stored, "what was stored can be read"
try:
    store.append("u", [{"item": "x" * 5000}])
except Full:
    pass
(folder / "ballast").unlink()
store.append("u", [{"item": "there is room again"}])
assert store.get("u").told == stored + 1
assert len(store.get("u").events) == stored + 1
"""


def test_a_full_disk_takes_nothing_more_and_still_reads(tmp_path):
    """A real one, mounted for a process alone."""
    mount = 'mount -t tmpfs -o size=2m small "$1" && head -c 300000 /dev/zero > "$1/ballast"'
    own = ["unshare", "-rm", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*own, mount, "sh", tmp_path]).returncode:
        pytest.skip("no disk can be mounted in a user namespace here")
    command = [*own, f'{mount} && exec "$2" -c "$3" "$1"', "sh", tmp_path, sys.executable, FILL]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "make room on its disk" in done.stdout


def test_what_is_no_store_is_refused(path, tmp_path):
    path.write_text("these are no users, but a text of some length\n" * 100)
    with pytest.raises(ValueError, match="holds no users"):
        SQLiteStore(path)
    later = tmp_path / "later.db"
    SQLiteStore(later).close()
    with sqlite3.connect(later) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ValueError, match="is of layout 99"):
        SQLiteStore(later)


def test_a_file_that_another_holds_does_not_answer_and_answers_later(path, monkeypatch):
    monkeypatch.setattr("user_llm.serving.sqlite_store.WAITING", 0.05)
    mine = SQLiteStore(path, kept=4)
    mine.append("u", events(1))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="does not answer"):
        mine.append("u", events(2))
    assert mine.get("u").events == events(1)
    other.execute("ROLLBACK")
    other.close()
    assert mine.append("u", events(2)).version == 2
    mine.close()
