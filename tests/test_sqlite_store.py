"""What befalls a store in a file: a full disk, traces of the erased, files that are no stores."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading

import pytest
from stores_made import events

from user_llm.serving.sqlite_store import SQLiteStore
from user_llm.serving.store import Made, Unavailable


@pytest.fixture
def path(tmp_path):
    return tmp_path / "users.db"


@pytest.fixture
def store(path):
    made = SQLiteStore(path, kept=4)
    yield made
    made.close()


def test_nothing_of_an_erased_user_is_left_in_the_files(store, path):
    store.append("u", events("a secret"))
    store.keep("u", Made("model", 1, b"a secret state"))
    store.append("other", events(1))
    assert store.delete("u") and not store.delete("u")
    assert (store.get("u"), store.users(9)) == (None, ["other"])
    files = [p.read_bytes() for p in path.parent.iterdir()]
    assert not any(b"secret" in content for content in files)


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


def test_threads_that_come_and_go_leave_no_connections(store):
    def ask() -> None:
        store.append("u", events(1))
        store.get("u")

    def all_open() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = all_open()
    for _ in range(20):
        asking = threading.Thread(target=ask)
        asking.start()
        asking.join()
    assert all_open() <= before and store.version("u") == 20
