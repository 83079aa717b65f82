"""What befalls a store on a Redis server: it dies, hangs, comes back, is full, has no disk."""

import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import redis_made
from redis.crc import key_slot
from stores_made import events, opened, rest, said, writer

from user_llm.serving.redis_store import RedisStore
from user_llm.serving.store import Full, Made, Unavailable


@pytest.fixture
def store(redis_server):
    made = RedisStore(redis_server.url, kept=4)
    yield made
    made.close()


def timed(call, *told) -> float:
    """How long it took the store to say that it is not to be had."""
    start = time.monotonic()
    with pytest.raises(Unavailable, match="does not answer"):
        call(*told)
    return time.monotonic() - start


def test_what_was_acknowledged_outlives_kills_of_the_server(redis_server):
    where, store = redis_server.url, opened(redis_server.url, kept=10**6)
    acknowledged = []
    for nth in range(10):
        with writer(where, f"{nth} a", 10**6) as one, writer(where, f"{nth} b", 10**6) as other:
            numbers = {f"{nth} a": said(one, 50), f"{nth} b": said(other, 50)}
            redis_server.end(signal.SIGKILL)
            numbers[f"{nth} a"] += rest(one)
            numbers[f"{nth} b"] += rest(other)
        redis_server.start()
        acknowledged += [f"{name}-{n}" for name in numbers for n in numbers[name]]
        record = store.get("u")
        told = [event["item"] for event in record.events]
        assert set(acknowledged) <= set(told)
        assert len(told) == len(set(told)) == record.told == record.version
        # One more of each may be stored, which the server had no time to say.
        assert len(told) - len(acknowledged) <= 2 * (nth + 1)
    assert len(acknowledged) >= 1000
    store.close()


def test_a_server_that_is_gone_is_said_to_be_and_is_found_when_it_is_back(redis_server, store):
    ready = threading.Barrier(4)

    def read() -> None:
        ready.wait()
        assert store.append("v", events(1)).user == "v"

    threads = [threading.Thread(target=read) for _ in range(4)]  # as many connections
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.append("u", events(1))
    redis_server.end(signal.SIGKILL)
    calls = [(store.get, "u"), (store.version, ""), (store.append, "u", events(2))]
    calls += [(store.replace, "u", []), (store.delete, "u"), (store.users, 1), (store.purge,)]
    for call in [*calls, (store.keep, "u", Made("model", 1, b"state"))]:
        assert timed(*call) < 3
    redis_server.start()
    assert store.get("u").events == events(1)
    assert store.append("u", events(2)).version == 2  # the new server knows no scripts


def test_a_server_that_hangs_is_left_soon_and_what_it_was_sent_may_be_done(redis_server, store):
    store.append("u", events(1))
    redis_server.process.send_signal(signal.SIGSTOP)
    assert (
        timed(
            store.append,
            "u",
            events(2),
        )
        < 3
    )
    other = RedisStore(redis_server.url)
    assert timed(other.version, "") < 3
    redis_server.process.send_signal(signal.SIGCONT)
    assert other.version("") == 0
    assert store.get("u")[:5] == ("u", 2, 2, events(1, 2), None)  # and no other's answer
    other.close()


def test_there_is_no_server_yet(redis_command, tmp_path):
    server = redis_made.Server(redis_command, tmp_path / "later")
    store = RedisStore(server.url.replace("//", "//name:a-secret@"))
    assert timed(store.version, "") < 3
    with pytest.raises(Unavailable) as told:
        store.version("")
    assert str(server.port) in str(told.value) and "secret" not in str(told.value)
    store.close()
    store = RedisStore(server.url)
    assert timed(store.version, "") < 3
    with server:
        assert store.append("u", events(1)).version == 1
    store.close()
    with pytest.raises(ValueError, match="scheme"):
        RedisStore("postgres://host")


def test_a_full_server_takes_nothing_more_and_still_reads(redis_server, store):
    used = int(redis_server.call("INFO", "memory")["used_memory"])
    redis_server.call("CONFIG", "SET", "maxmemory", str(used + 2**21))
    stored = 0
    with pytest.raises(Full, match="takes nothing more"):
        for stored in range(1000):
            store.append(str(stored), events("x" * 50_000))
    assert stored > 20
    redis_server.call("CONFIG", "SET", "maxmemory", str(used + 2**20))  # nor anything small
    assert len(store.users(99)) == stored
    assert store.get(str(stored - 1))[:5] == (str(stored - 1), 1, 1, events("x" * 50_000), None)
    for call in (store.append, store.replace):
        with pytest.raises(Full):
            call("0", events("x"))
    with pytest.raises(Full):
        store.keep("0", Made("model", 1, b"state"))
    assert store.get("0")[:5] == ("0", 1, 1, events("x" * 50_000), None)  # nothing is half done
    assert store.version("0") == 1
    assert all(store.delete(str(user)) for user in range(stored))
    assert store.append("0", events("there is room again")).version == 1


def test_a_server_that_cannot_save_takes_nothing_more_and_still_reads(redis_server, store):
    store.append("u", events(1))
    (redis_server.folder / "dump.rdb").mkdir()  # where its snapshot would be
    redis_server.call("CONFIG", "SET", "save", "3600 1000000")
    redis_server.call("BGSAVE")
    while redis_server.call("INFO", "persistence")["rdb_last_bgsave_status"] == "ok":
        time.sleep(0.05)
    with pytest.raises(Full, match="room on its disk"):
        store.append("u", events(2))
    assert store.get("u").events == events(1)


MOUNT = 'mount -t tmpfs -o size=2m small "$0" && head -c 300000 /dev/zero > "$0/ballast"'


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_server_whose_disk_is_full(redis_command, tmp_path, fsync):
    """A real one, mounted for the server alone; one that syncs always ends of itself."""
    own = ["unshare", "-rm", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*own, MOUNT, tmp_path]).returncode:
        pytest.skip("no disk can be mounted in a user namespace here")
    folder = tmp_path / "small"
    command = [*own, f'{MOUNT} && cd "$0" && exec "$@"', str(folder), *redis_command]
    options = ("--appendonly", "yes", "--appendfsync", fsync)
    with redis_made.Server(command, folder, *options) as server:
        store, stored = RedisStore(server.url, kept=10**6), 0
        with pytest.raises(Unavailable if fsync == "always" else Full):
            for _ in range(1000):
                store.append("u", events("x" * 5000))
                stored += 1
        assert stored > 20
        if fsync == "always":
            assert server.process.wait(30) == 1
        else:
            assert store.get("u").told == store.version("u") == stored
            Path(f"/proc/{server.process.pid}/root{folder}/ballast").unlink()
            until_it_takes(store, events("there is room again"))
            assert len(store.get("u").events) == stored + 1
        store.close()


def until_it_takes(store: RedisStore, new: list[dict]) -> None:
    for _ in range(100):
        with suppress(Full):
            store.append("u", new)
            return
        time.sleep(0.1)  # the server tries its log ten times a second
    raise AssertionError("the server takes nothing")


def test_a_replica_does_not_write(redis_server, store):
    store.append("u", events(1))
    redis_server.call("REPLICAOF", "127.0.0.1", "1")
    assert timed(store.append, "u", events(2)) < 3
    assert store.get("u").events == events(1)
    redis_server.call("REPLICAOF", "NO", "ONE")
    assert store.append("u", events(2)).version == 2


def test_all_that_is_kept_of_a_user_is_in_one_slot_of_a_cluster(redis_server, store):
    slots = []
    for name in ["", "}", "{", "{u}", "}{", "u}:events", "日本", "a\0b"]:
        store.append(name, events(1))
        keys = [key for key in redis_server.call("KEYS", "*") if "{user:" in key]
        assert len(keys) == 2
        slots.append({key_slot(key.encode()) for key in keys})
        store.delete(name)
    assert all(len(slot) == 1 for slot in slots)
    assert len(set().union(*slots)) == len(slots)


def test_nothing_of_an_erased_user_is_left(redis_server, store):
    store.append("u", events("a secret"))
    store.keep("u", Made("model", 1, b"a secret state"))
    store.append("v", events(1))
    keys = {key for key in redis_server.call("KEYS", "*") if "u}" in key}
    assert len(keys) == 2 and all("{user:u}" in key for key in keys)
    store.delete("u")
    assert not any("user:u}" in key for key in redis_server.call("KEYS", "*"))
    store.delete("v")
    assert redis_server.call("KEYS", "*") == []


def test_nothing_of_users_is_left_whose_time_is_over(redis_server):
    store = RedisStore(redis_server.url, ttl=0.3)
    for user in range(1500):  # more than are looked at in one go
        store.append(str(user), events(1))
    store.keep("1499", Made("model", 1, b"state"))
    time.sleep(0.4)
    assert (store.users(9), store.get("1499")) == ([], None)
    while any("{user:" in key for key in redis_server.call("KEYS", "*")):
        time.sleep(0.1)  # the server's own pace
    assert store.purge() == 1500
    assert redis_server.call("KEYS", "*") == []
    store.close()


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (("--appendonly", "no"), ["loses users when it dies"]),
        (("--appendonly", "yes"), ["its appendfsync is everysec"]),
        (
            (*redis_made.DURABLE, "--maxmemory-policy", "allkeys-lru"),
            ["maxmemory-policy is allkeys-lru"],
        ),
        (redis_made.DURABLE, []),
    ],
)
def test_a_server_that_may_lose_users_is_warned_of_once(
    redis_command, tmp_path, caplog, options, warned
):
    with redis_made.Server(redis_command, tmp_path / "lossy", *options) as server:
        store = RedisStore(server.url)
        store.append("u", events(1))
        store.append("u", events(1))
        store.close()
    assert len(caplog.messages) == len(warned)
    assert all(text in message for text, message in zip(warned, caplog.messages, strict=True))


def test_a_socket_will_do(redis_command, tmp_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "s"
    options = (*redis_made.DURABLE, "--unixsocket", str(path))
    with redis_made.Server(redis_command, tmp_path / "redis", *options):
        store = RedisStore(f"unix://{path}")
        assert store.append("u", events(1)).version == 1
        store.close()
