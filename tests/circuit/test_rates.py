"""Rates that processes share: by a fake clock, and by real processes against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from ladon_storage.circuit.rates import MARGIN, SharedRate
from ladon_storage.circuit.stores import CircuitStore, MemoryStore, VersionedText
from ladon_storage.circuit.stores.guarded import RETRY_SECONDS, GuardedStore
from ladon_storage.circuit.stores.sqlite import SqliteStore
from ladon_storage.errors import CircuitOpenError, CircuitStoreError
from ladon_storage.sources.fields import Rate
from ladon_storage.sources.http import hosts, sharing
from ladon_storage.sources.http.hosts import Admission, host_circuit_of, wait_for_rate_limit
from ladon_storage.testing.clock import FakeClock
from tests.forks import Forks, forking
from tests.redis_server import RedisServer


class Unreliable:
    """A store that fails while it is told to."""

    place = "unreliable"

    def __init__(self, store: CircuitStore) -> None:
        self.store = store
        self.is_away = False
        self.calls = 0

    def read(self, key: str) -> VersionedText:
        self._call()
        return self.store.read(key)

    def compare_and_set(self, key: str, tag: int, text: str) -> bool:
        self._call()
        return self.store.compare_and_set(key, tag, text)

    def close(self) -> None:
        self.store.close()

    def _call(self) -> None:
        self.calls += 1
        if self.is_away:
            raise CircuitStoreError("The circuit store unreliable is away.")


def test_requests_of_all_holders_are_an_interval_apart() -> None:
    """Whoever takes it, the next request is no earlier than the rate allows."""
    clock = FakeClock()
    store = MemoryStore(clock)
    rates = [SharedRate(store, "feed 5/10", 2) for _ in range(3)]
    taken: list[float] = []
    while clock.seconds < 100:
        taken += [clock.seconds for rate in rates if not rate.attempt()]
        clock.advance(0.1)
    gaps = [later - earlier for earlier, later in itertools.pairwise(taken)]
    assert min(gaps) >= 2 * MARGIN
    assert len(taken) >= 45


def test_late_request_delays_the_next_ones() -> None:
    """A holder that comes late takes its request then: none is made up for."""
    clock = FakeClock()
    rate = SharedRate(MemoryStore(clock), "feed 5/10", 2)
    assert rate.attempt() == 0
    clock.advance(60)
    assert rate.attempt() == 0
    assert rate.attempt() == pytest.approx(2 * MARGIN, abs=0.01)


def test_other_hosts_and_rates_are_apart() -> None:
    """Only the same host with the same rate shares."""
    store = MemoryStore(FakeClock())
    assert SharedRate(store, "a 1/60", 60).attempt() == 0
    assert SharedRate(store, "b 1/60", 60).attempt() == 0
    assert SharedRate(store, "a 1/60", 60).attempt() > 0


@pytest.mark.parametrize("seconds", [-1e6, 1e6])
def test_clock_that_restarted_blocks_nobody(seconds: float) -> None:
    """A machine's clock begins again when it starts; the time that is stored is then past."""
    clock = FakeClock()
    clock.advance(2e6)
    rate = SharedRate(MemoryStore(clock), "a 1/60", 60)
    assert rate.attempt() == 0
    clock.advance(seconds)
    assert rate.attempt() == 0


@pytest.mark.parametrize("text", ["{}", "[]", "null", "later", '{"next": "soon"}', '{"next": {}}'])
def test_text_that_is_no_rate_is_an_error_of_the_store(text: str) -> None:
    """Another program's text is not overwritten, and the process keeps its own rate."""
    store = MemoryStore(FakeClock())
    rate = SharedRate(store, "a 1/60", 60)
    assert store.compare_and_set(rate.key, 0, text)
    with pytest.raises(CircuitStoreError, match="no rate"):
        rate.attempt()
    assert store.read(rate.key).text == text


def test_infinite_time_is_past() -> None:
    """What JSON allows beyond numbers blocks nobody."""
    store = MemoryStore(FakeClock())
    rate = SharedRate(store, "a 1/60", 60)
    assert store.compare_and_set(rate.key, 0, '{"next": Infinity}')
    assert rate.attempt() == 0


def test_guarded_store_is_left_alone_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """One warning, no access for a while, and one line when it answers again."""
    clock, store = FakeClock(), Unreliable(MemoryStore())
    guarded = GuardedStore(store, "the rates", clock)
    store.is_away = True
    for _ in range(5):
        with pytest.raises(CircuitStoreError, match="is away"):
            guarded.read("a")
    assert store.calls == 1
    clock.advance(RETRY_SECONDS + 1)
    with pytest.raises(CircuitStoreError):
        guarded.compare_and_set("a", 0, "b")
    store.is_away = False
    clock.advance(RETRY_SECONDS + 1)
    with caplog.at_level(logging.INFO):
        assert guarded.compare_and_set("a", 0, "b")
    assert caplog.text.count("Meanwhile the rates are each process's own") == 1
    assert caplog.text.count("answers again") == 1


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Share the hosts of this test in a file, as a run does."""
    url = f"sqlite:///{tmp_path}/circuits.db"
    monkeypatch.setenv("STORAGE_CIRCUIT_URL", url)
    monkeypatch.setattr(hosts, "_limiters", {})
    return url


async def test_store_that_fails_leaves_each_process_its_own_rate(
    shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No request fails or goes unlimited, and the fallback is said once."""
    (tmp_path / "circuits.db").write_text("this is no database, and of another program")
    taken: list[str] = []

    class Limiter:
        def __init__(self, requests: float, seconds: float) -> None:
            assert (requests, seconds) == (1, 2)

        async def acquire(self) -> None:
            taken.append("own")

    monkeypatch.setattr(hosts, "AsyncLimiter", Limiter)
    for number in range(3):
        await wait_for_rate_limit(
            URL(f"http://feed.example/{number}"), Rate(requests=5, seconds=10)
        )
    assert taken == ["own"] * 3
    assert caplog.text.count("Meanwhile the rates of sources' hosts are each process's own") == 1


async def test_run_without_a_store_has_its_own_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written anywhere by a program that uses the library, unless it says where."""
    monkeypatch.delenv("STORAGE_CIRCUIT_URL", raising=False)
    assert sharing.host_store() is None
    assert not hasattr(host_circuit_of(URL("http://alone.example/")), "store")


async def test_store_of_a_run_is_that_run_s_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one process may have stores of their own, and leave none behind."""
    monkeypatch.delenv("STORAGE_CIRCUIT_URL", raising=False)

    async def run(name: str) -> str:
        sharing.share_hosts(f"sqlite:///{tmp_path}/{name}.db")
        await asyncio.sleep(0)
        store = sharing.host_store()
        assert store
        return Path(store.rates.place).name

    assert list(await asyncio.gather(run("a"), run("b"))) == ["a.db", "b.db"]
    assert sharing.host_store() is None


async def test_host_that_is_down_is_down_for_all_processes(shared: str, tmp_path: Path) -> None:
    """Failures of several processes add up; a path's circuit stays each process's own."""
    url = URL("http://down.example/feed")
    for _ in range(hosts.CIRCUIT_FAILURES):
        hosts._circuits.clear()  # as another process
        (await Admission.to(url)).unreachable()
    hosts._circuits.clear()
    with pytest.raises(CircuitOpenError):
        await Admission.to(URL("http://down.example/other"))
    (await Admission.to(URL("http://up.example/"))).succeeded()
    stored = SqliteStore(tmp_path / "circuits.db").read("host down.example:80").text
    assert json.loads(stored)["state"] == "open"


async def test_many_answers_of_a_slow_host_are_awaited_at_once(shared: str) -> None:
    """A host of which nothing is known is not asked by a few requests at a time."""
    admitted = [await Admission.to(URL("http://slow.example/")) for _ in range(20)]
    for each in admitted:
        each.succeeded()
    assert host_circuit_of(URL("http://slow.example/")).state == "closed"


@contextlib.asynccontextmanager
async def counting() -> AsyncIterator[tuple[str, list[float]]]:
    """Serve pages of a feed under each path, and note when each request arrives."""
    arrived: list[float] = []

    async def answer(request: web.Request) -> web.Response:
        arrived.append(time.monotonic())
        page = int(request.query.get("page", 1))
        items = [{"id": f"{page}", "at": "2024-01-01T00:00:00Z"}] if page < PAGES else []
        return web.json_response({"items": items})

    application = web.Application()
    application.router.add_get("/{name}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", arrived
    finally:
        await runner.cleanup()


PROCESSES, PAGES, REQUESTS, SECONDS = 3, 3, 5, 2.0
COMMAND = "import sys\nfrom ladon_storage.cli import main\nsys.exit(main(sys.argv[1:]))\n"


@pytest.fixture(scope="module")
def commands() -> Iterator[Forks]:
    """Import the command once for the processes that run it."""
    with forking("ladon_storage.cli.collect") as made:
        yield made


async def collect(
    commands: Forks, folder: Path, feed: str, **environment: str
) -> list[tuple[int | None, str]]:
    """Collect a source of one host in each of several processes, and return how they ended."""

    async def one(number: int) -> tuple[int | None, str]:
        own = folder / str(number)
        own.mkdir()
        source: dict[str, Any] = {
            "kind": "rest", "source_id": f"s{number}", "url": f"{feed}/{number}",
            "records": "items", "id": "id", "timestamps": ["at"],
            "paging": {"kind": "page", "stable": True},
            "rate": {"requests": REQUESTS, "seconds": SECONDS},
        }  # fmt: skip
        async with commands.run(
            COMMAND, "collect", json.dumps(source), "--no-prefect",
            "--sink", f"sqlite:///{own}/records.db",
            folder=own, **{"STORAGE_SERVICE_URL": f"sqlite:///{own}/ladon.db", **environment},
        ) as life:  # fmt: skip
            _, errors = await asyncio.wait_for(life.communicate(), 60)
        return life.returncode, errors

    return await asyncio.gather(*(one(number) for number in range(PROCESSES)))


def most_in_a_window(arrived: list[float], seconds: float) -> int:
    """Return the most requests of any window of that length."""
    window: deque[float] = deque()
    most = 0
    for instant in arrived:
        window.append(instant)
        while window[0] <= instant - seconds:
            window.popleft()
        most = max(most, len(window))
    return most


@pytest.mark.slow
@pytest.mark.parametrize("store", ["file", "redis"])
async def test_processes_keep_a_rate_together(
    commands: Forks, tmp_path: Path, redis_server: RedisServer, store: str
) -> None:
    """Five requests in a time mean five in any window, however many processes collect."""
    # A home without any setting, as a worker has: its file is the store of one host.
    environment = {"PREFECT_HOME": str(tmp_path / "home")}
    if store == "redis":
        environment["STORAGE_CIRCUIT_URL"] = redis_server.url()
    async with counting() as (feed, arrived):
        ends = await collect(commands, tmp_path, feed, **environment)
    assert [code for code, _ in ends] == [0] * PROCESSES, ends
    assert not any("circuit store" in errors for _, errors in ends), ends
    assert len(arrived) >= PROCESSES * PAGES
    # The machine that counts may be late by a little.
    assert most_in_a_window(arrived, SECONDS * 0.98) <= REQUESTS


@pytest.mark.slow
async def test_processes_without_their_store_go_on_and_say_so(
    commands: Forks, tmp_path: Path
) -> None:
    """Each keeps the rate by itself, and warns once."""
    async with counting() as (feed, arrived):
        ends = await collect(commands, tmp_path, feed, STORAGE_CIRCUIT_URL="redis://127.0.0.1:1/0")
    assert [code for code, _ in ends] == [0] * PROCESSES, ends
    assert len(arrived) >= PROCESSES * PAGES
    for _, errors in ends:
        assert errors.count("the rates of sources' hosts are each process's own") == 1
