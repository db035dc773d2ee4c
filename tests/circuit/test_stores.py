"""The stores of circuits: one contract, and what becomes of each way in which they fail."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ladon_storage.circuit import urls as circuits
from ladon_storage.circuit.stores import NO_TAG, CircuitStore, MemoryStore
from ladon_storage.circuit.stores.redis import PREFIX, RedisStore
from ladon_storage.circuit.stores.sqlite import SqliteStore
from ladon_storage.circuit.urls import default_url, service_key, store_at
from ladon_storage.errors import CircuitStoreError, ConfigurationError
from tests.redis_server import PASSWORD, RedisServer

# From Python 3.12 on a process with threads is warned of forks; these children only use a store.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

Make = Callable[[], CircuitStore]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Return a function whose stores are as those of several processes, for each kind."""
    opened: list[CircuitStore] = []

    def made() -> CircuitStore:
        if request.param == "memory":
            opened.append(opened[0] if opened else MemoryStore())
        elif request.param == "sqlite":
            opened.append(SqliteStore(tmp_path / "circuits.db", busy_seconds=5))
        else:
            opened.append(RedisStore(request.getfixturevalue("redis_server").url()))
        return opened[-1]

    yield made
    for store in opened:
        store.close()


def test_store_keeps_what_was_swapped_in_for_others(make: Make) -> None:
    """A text is there for whoever reads next, under its own key only."""
    one, another = make(), make()
    assert one.read("a")[1:] == (NO_TAG, "")
    assert one.compare_and_set("a", NO_TAG, "first ünï")
    found = another.read("a")
    assert found.text == "first ünï"
    assert found.tag != NO_TAG
    assert another.read("b").tag == NO_TAG
    assert another.compare_and_set("a", found.tag, "second")
    assert one.read("a").text == "second"


def test_store_refuses_who_read_an_older_text(make: Make) -> None:
    """Compare-and-set: neither a lost first write nor a lost later one replaces anything."""
    one, another = make(), make()
    assert one.compare_and_set("a", NO_TAG, "first")
    assert not another.compare_and_set("a", NO_TAG, "late")
    tag = another.read("a").tag
    assert one.compare_and_set("a", tag, "first")  # the same text is another change
    assert not another.compare_and_set("a", tag, "late")
    assert not another.compare_and_set("b", tag, "of nothing")
    assert one.read("a").text == "first"


def test_store_lets_one_of_many_win(make: Make) -> None:
    """Of 8 that swap at once, one is told that it did, in each of 20 rounds."""
    stores = [make() for _ in range(8)]
    barrier = threading.Barrier(len(stores))

    def swap(store: CircuitStore, tag: int) -> bool:
        barrier.wait()
        return store.compare_and_set("a", tag, "mine")

    with ThreadPoolExecutor(len(stores)) as threads:
        for _ in range(20):
            tag = stores[0].read("a").tag
            assert sum(threads.map(swap, stores, [tag] * len(stores))) == 1


def test_store_has_a_clock_that_all_share(make: Make) -> None:
    """Answers to different processes are in the same time."""
    times = [store.read("a").now for store in (make(), make(), make())]
    assert times == sorted(times)
    assert times[-1] - times[0] < 10


def test_closed_store_opens_again(make: Make) -> None:
    """`close` gives up what is open, and nothing else."""
    store = make()
    store.compare_and_set("a", NO_TAG, "kept")
    store.close()
    store.close()
    assert store.read("a").text == "kept"


def failing(store: CircuitStore, act: str = "read") -> float:
    """Check that the store fails, and return how many seconds that took."""
    started = time.perf_counter()
    with pytest.raises(CircuitStoreError) as caught:
        store.read("a") if act == "read" else store.compare_and_set("a", NO_TAG, "text")
    took = time.perf_counter() - started
    assert store.place in str(caught.value)
    assert PASSWORD not in f"{caught.value!r} {caught.value.__cause__!r} {store.place}"
    return took


def test_runs_that_seed_random_have_their_own_tags_and_their_own_numbers(tmp_path: Path) -> None:
    """A tag that two runs give would let one overwrite what the other has changed meanwhile."""
    tags, numbers = [], []
    for name in ("a", "b"):
        random.seed(42)
        store = SqliteStore(tmp_path / "circuits.db")
        store.compare_and_set(name, NO_TAG, "kept")
        tags.append(store.read(name).tag)
        numbers.append(random.random())
    assert tags[0] != tags[1]
    assert numbers[0] == numbers[1] == random.Random(42).random()


def test_locked_file_costs_a_bounded_time(tmp_path: Path) -> None:
    """Another process that holds the file is not waited for longer than 10 ms."""
    store = SqliteStore(tmp_path / "circuits.db")
    store.compare_and_set("a", NO_TAG, "kept")
    other = sqlite3.connect(tmp_path / "circuits.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert store.read("a").text == "kept"  # a write of another process holds no reader up
    assert min(failing(store, "swap") for _ in range(3)) < 0.1
    other.execute("ROLLBACK")
    store.close()
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("UPDATE circuits SET tag = tag")
    assert min(failing(store, act) for act in ("read", "swap", "read")) < 0.1
    other.close()
    assert store.read("a").text == "kept"


def test_file_appears_whole(tmp_path: Path) -> None:
    """Of many that make it at once one does, and nothing is left of the others."""
    file = tmp_path / "circuits.db"
    stores = [SqliteStore(file) for _ in range(8)]
    with ThreadPoolExecutor(len(stores)) as threads:
        assert list(threads.map(lambda each: each.read("a").tag, stores)) == [NO_TAG] * 8
    for each in stores:
        each.close()
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def test_file_is_the_owners_alone(tmp_path: Path) -> None:
    """No other user of the host reads or changes a circuit, its log or its index."""
    store = SqliteStore(tmp_path / "circuits.db")
    assert store.compare_and_set("a", NO_TAG, "closed")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    store.close()
    assert modes == dict.fromkeys(("circuits.db", "circuits.db-wal", "circuits.db-shm"), 0o600)


def test_damaged_file_is_an_error_and_left_as_it_is(tmp_path: Path) -> None:
    """What is no database is never replaced: it may be somebody's file."""
    file = tmp_path / "circuits.db"
    file.write_bytes(b"no database" * 100)
    failing(SqliteStore(file))
    failing(SqliteStore(file), "swap")
    assert file.read_bytes() == b"no database" * 100


def test_file_without_a_folder_is_an_error(tmp_path: Path) -> None:
    """One missing folder is made, as Prefect's home on a new machine; two are a misspelt path."""
    assert SqliteStore(tmp_path / "home" / "circuits.db").read("a").tag == NO_TAG
    failing(SqliteStore(tmp_path / "a" / "b" / "circuits.db"))
    failing(SqliteStore(tmp_path))


def test_read_only_file_is_read_and_not_written(tmp_path: Path) -> None:
    """Who may not write is told so at the first write."""
    file = tmp_path / "circuits.db"
    SqliteStore(file).compare_and_set("a", NO_TAG, "kept")
    os.chmod(tmp_path, 0o555)
    os.chmod(file, 0o444)
    try:
        process = os.fork()
        if not process:  # root may write everywhere
            try:
                if os.geteuid() == 0:
                    os.chmod(tmp_path.parent, 0o755)
                    os.setuid(65534)
                failing(SqliteStore(file), "swap")
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    finally:
        os.chmod(tmp_path, 0o755)


def test_file_is_not_shared_through_a_fork(tmp_path: Path) -> None:
    """A child opens the file for itself, and both go on."""
    store = SqliteStore(tmp_path / "circuits.db")
    store.compare_and_set("a", NO_TAG, "parent's")
    parents = store._opened
    process = os.fork()
    if not process:
        try:
            swapped = store.compare_and_set("a", store.read("a").tag, "child's")
            os._exit(0 if swapped and store._opened != parents else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert store.read("a").text == "child's"
    assert store._opened == parents


def test_redis_that_is_not_there_costs_a_bounded_time() -> None:
    """A refused connection is an error at once."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    store = RedisStore(f"redis://:{PASSWORD}@127.0.0.1:{port}")
    assert min(failing(store) for _ in range(3)) < 0.1


def test_redis_that_does_not_answer_costs_a_bounded_time() -> None:
    """A server that accepts and is silent is not waited for longer than 20 ms."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        store = RedisStore(f"redis://:{PASSWORD}@127.0.0.1:{listening.getsockname()[1]}")
        assert min(failing(store) for _ in range(3)) < 0.1


def test_redis_that_hangs_and_wakes_is_used_again(redis_server: RedisServer) -> None:
    """While it is stopped calls fail soon; a late answer is no answer to a later question."""
    store = RedisStore(redis_server.url(wait_seconds=5))
    store.compare_and_set("a", NO_TAG, "kept")
    store._seconds = 0.01
    redis_server.pause()
    try:
        assert min(failing(store) for _ in range(3)) < 0.1
        failing(store, "swap")
        assert store._asked.empty()  # one question waits, and no others behind it
    finally:
        redis_server.resume()
    store._seconds = 5
    assert store._last
    store._last.exception(5)
    assert store.read("a").text == "kept"


def test_redis_that_was_restarted_is_empty_and_used_again(redis_server: RedisServer) -> None:
    """What a lost store held is gone; a new connection is made."""
    store = RedisStore(redis_server.url())
    store.compare_and_set("a", NO_TAG, "lost")
    redis_server.stop()
    redis_server.start()
    store = store if redis_server.url() == store._url else RedisStore(redis_server.url())
    with contextlib.suppress(CircuitStoreError):  # of the connection that was cut
        store.read("a")
    assert store.read("a").tag == NO_TAG


def test_redis_refuses_without_telling_the_password(redis_server: RedisServer) -> None:
    """A wrong password, a read-only server and another type are errors like any other."""
    failing(RedisStore(redis_server.url().replace(PASSWORD, f"{PASSWORD}-wrong")))
    store = RedisStore(redis_server.url())
    redis_server.command("SET", f"{PREFIX}a", "of somebody else")
    failing(store)
    redis_server.command("DEL", f"{PREFIX}a")
    redis_server.command("REPLICAOF", "127.0.0.1", "1")
    try:
        failing(store, "swap")
    finally:
        redis_server.command("REPLICAOF", "NO", "ONE")


def test_redis_forgets_what_nobody_asks_for(redis_server: RedisServer) -> None:
    """A circuit of a service that is gone does not stay for ever."""
    RedisStore(redis_server.url()).compare_and_set("a", NO_TAG, "text")
    assert int(redis_server.command("TTL", f"{PREFIX}a").strip(":\r\n")) > 24 * 3600


def test_redis_is_spoken_to_by_each_process_for_itself(redis_server: RedisServer) -> None:
    """A child of a fork has no thread of its parent's, and starts its own."""
    store = RedisStore(redis_server.url())
    store.compare_and_set("a", NO_TAG, "parent's")
    process = os.fork()
    if not process:
        try:
            os._exit(0 if store.compare_and_set("a", store.read("a").tag, "child's") else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert store.read("a").text == "child's"


def test_redis_thread_ends_with_its_store(redis_server: RedisServer) -> None:
    """A store that nobody has any more leaves no thread and no connection."""
    others = set(threading.enumerate())
    store = RedisStore(redis_server.url())
    store.read("a")
    [thread] = set(threading.enumerate()) - others
    del store
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "circuits.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///c.db?timeout=soon",
        "sqlite:///c.db?timeout=nan",
        "sqlite:///c.db?timeout=inf",
        "sqlite:///c.db?timeout=-1",
        "sqlite:///c.db?timeout=",
        "sqlite:///c%00.db",
        "mysql://h/x",
        f"redis://:{PASSWORD}@h:port/0",
        f"redis://:{PASSWORD}@h/0?socket_timeout=soon",
        f"redis://:{PASSWORD}@h/0?socket_timeout=nan",
        f"redis://:{PASSWORD}@h/0?nonsense[=1&socket_timeout=1&db=x",
        f"redis://:6379?{PASSWORD}=x@h/0",
        f"rediss://:{PASSWORD}@h/0?ssl_cert_reqs=x",
        f"memory://{PASSWORD}",
    ],
)
def test_store_that_does_not_exist_is_refused_without_a_quotation(url: str) -> None:
    """The sentence says what an address looks like, and not what was given."""
    with pytest.raises(ConfigurationError, match="should look like") as caught:
        store_at(url)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("sqlite:///c.db?socket_timeout=1", "socket_timeout"),
        ("sqlite:///c.db?timeout=1&mode", "mode"),
        (f"redis://:{PASSWORD}@h/0?timeout=1", "timeout"),
        (f"redis://:{PASSWORD}@h/0?ssl_ca_certs=/x", "ssl_ca_certs"),
        (f"rediss://:{PASSWORD}@h/0?ssl_ca_cert=/x", "ssl_ca_cert"),
        (f"unix://:{PASSWORD}@/run/redis?timeout=1", "timeout"),
    ],
)
def test_unknown_option_of_an_address_is_refused_at_once(url: str, option: str) -> None:
    """Each call would fail by it, and each process keep a circuit of its own."""
    with pytest.raises(
        ConfigurationError, match=f"unknown option '{option}'; leave it out"
    ) as told:
        store_at(url)
    assert PASSWORD not in str(told.value)


def test_known_options_of_redis_are_taken() -> None:
    """Those of redis-py for a connection of this kind."""
    store_at("redis://h/0?socket_timeout=0.3&protocol=3&client_name=x&health_check_interval=5")
    store_at("rediss://h/0?ssl_ca_certs=/x&ssl_cert_reqs=required&ssl_check_hostname=no")
    store_at("unix:///run/redis?db=1")


def test_redis_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named."""
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"ladon-storage\[redis\]"):
        store_at("redis://h/0")


def test_address_names_the_file_and_how_long_it_is_waited_for(tmp_path: Path) -> None:
    """Three slashes are relative and four absolute, as in addresses of databases."""
    relative, absolute = store_at("sqlite:///a/b.db"), store_at(f"sqlite:///{tmp_path}/a%20b.db")
    assert isinstance(absolute, SqliteStore)
    assert (relative.place, absolute.place) == ("a/b.db", f"{tmp_path}/a b.db")
    patient = store_at("sqlite:///c.db?timeout=2")
    assert isinstance(patient, SqliteStore)
    assert (absolute._busy_seconds, patient._busy_seconds) == (0.01, 2)
    assert store_at("memory://") is store_at("memory://") is circuits._memory


def test_flow_runs_share_a_file_in_the_home_of_prefect_unless_set() -> None:
    """The variable goes first, then Prefect's own, then its default."""
    assert default_url({"STORAGE_CIRCUIT_URL": "redis://h", "PREFECT_HOME": "/p"}) == "redis://h"
    assert default_url({"PREFECT_HOME": "/p q"}) == "sqlite:////p%20q/ladon-storage-circuits.db"
    assert default_url({}).endswith("/.prefect/ladon-storage-circuits.db")
    assert store_at(default_url({"PREFECT_HOME": "/p q"})).place.startswith("/p q/")


def test_service_is_told_by_its_address_alone() -> None:
    """One service has one circuit however its address is written; two have two."""
    same = ["http://h", "http://h:80/", "http://user:pw@H:80", " http://h/ "]
    assert {service_key(address) for address in same} == {"http://h:80"}
    others = ["http://h:81", "https://h", "http://i", "http://h/path"]
    assert len({service_key(address) for address in others}) == 4
