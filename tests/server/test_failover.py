"""The service over a PostgreSQL that fails over to a real standby: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from time import monotonic

import pytest

from ladon_storage.errors import DatabaseError, WatermarkConflictError
from ladon_storage.models import Precondition, Watermark, WatermarkUpdate
from ladon_storage.server import postgresql
from ladon_storage.server.store import WatermarkDatabase
from tests.postgres_pair import Member, Pair, pair
from tests.service import Answer, Caller, calling, embedded_service, path, success

pytestmark = pytest.mark.slow

logger = logging.getLogger(__name__)

START = datetime(2024, 1, 1, tzinfo=UTC)
BOUND = postgresql.SECONDS * 2 + 5
"""The longest time for one request: a read and a write, and a machine that is busy."""


@pytest.fixture
def synchronous() -> Iterator[Pair]:
    """A primary whose commits wait for its standby."""
    with pair(synchronous=True) as made:
        yield made


@pytest.fixture
def asynchronous() -> Iterator[Pair]:
    """A primary whose commits do not wait for its standby."""
    with pair(synchronous=False) as made:
        yield made


class Load:
    """Writers of one source each, and what was answered to them.

    Args:
        call: The service.
        prefix: What the names of its sources begin with.
    """

    def __init__(self, call: Caller, prefix: str) -> None:
        self.acknowledged: dict[str, int] = {}
        """The version of each run whose write was acknowledged."""
        self.statuses: Counter[int] = Counter()
        self.slowest = 0.0
        self.reasons: set[str] = set()
        self._call = call
        self._prefix = prefix

    async def ask(self, method: str, where: str, *given: object, **named: object) -> Answer:
        """Send a request, and note how it went."""
        began = monotonic()
        answer = await self._call(method, where, *given, **named)
        self.slowest = max(self.slowest, monotonic() - began)
        self.statuses[answer.status] += 1
        if answer.status == 503 and answer.json and "error" in answer.json:
            self.reasons.add(answer.json["error"])
        return answer

    async def write(self, writer: int) -> None:
        """Write one run after another, each until it is acknowledged."""
        source, etag = f"{self._prefix}-{writer}", ""
        for number in count():
            run_id = f"{source}/{number}"
            body = success((START + timedelta(seconds=number)).isoformat(), run_id=run_id)
            headers = {"If-Match": etag} if etag else {"If-None-Match": "*"}
            while True:
                answer = await self.ask("PUT", path(source), body, headers=headers)
                if answer.status != 503:
                    break
                await asyncio.sleep(0.1)
            assert answer.status in (200, 201), (run_id, answer.text)
            etag = answer.etag
            self.acknowledged[run_id] = int(etag.strip('"'))

    def __str__(self) -> str:
        reasons = "".join(f"\n  {each}" for each in sorted(self.reasons))
        return f"{dict(self.statuses)}, slowest {self.slowest:.1f} s{reasons}"


@asynccontextmanager
async def loaded(call: Caller, prefix: str = "source", writers: int = 12) -> AsyncIterator[Load]:
    """Write while the block lasts."""
    load = Load(call, prefix)
    writing = [asyncio.create_task(load.write(each)) for each in range(writers)]
    try:
        yield load
    finally:
        for each in writing:
            each.cancel()
        ended = await asyncio.gather(*writing, return_exceptions=True)
    assert not [each for each in ended if not isinstance(each, asyncio.CancelledError)]


def lines(server: Member) -> dict[str, int]:
    """Return the version of each run in a server's history, in which each is once."""
    rows = server.execute("SELECT run_id, version FROM ladon_storage.history")
    found = {str(run_id): int(str(version)) for run_id, version in rows}
    assert len(found) == len(rows)
    return found


async def until_healthy(call: Caller) -> float:
    """Return how long it took until the service was healthy."""
    began = monotonic()
    async with asyncio.timeout(60):
        while (await call("GET", "/health")).status != 200:
            await asyncio.sleep(0.1)
    return monotonic() - began


@pytest.mark.parametrize("death", ["crash", "hang"])
async def test_failover_to_a_synchronous_standby_loses_no_acknowledged_write(
    synchronous: Pair, death: str
) -> None:
    """A primary that dies or hangs under load: 503 in bounded time, then the standby, and no loss.

    The earlier primary, when it comes back as one by mistake, gets no write.
    """
    primary, standby = synchronous.primary, synchronous.standby
    async with embedded_service(synchronous.url()) as address, calling(address) as call:
        async with loaded(call) as load:
            await asyncio.sleep(2)
            assert len(load.acknowledged) > 20
            await asyncio.to_thread(primary.stop if death == "crash" else primary.hang)
            await asyncio.sleep(7)
            assert (await load.ask("GET", "/health")).status == 503
            before = len(load.acknowledged)
            await asyncio.to_thread(standby.promote)
            took = await until_healthy(call)
            await asyncio.sleep(2)
            assert len(load.acknowledged) > before
        logger.info("Healthy %.1f s after the promotion; %s", took, load)
        assert load.statuses[503] > 0
        assert load.slowest < BOUND
        assert load.acknowledged.items() <= lines(standby).items()

        await asyncio.to_thread(primary.stop)
        await asyncio.to_thread(lambda: primary.start(synchronous_standby_names=""))
        earlier = lines(primary)
        end_connections(standby)
        async with loaded(call, "after") as after:
            await asyncio.sleep(3)
        logger.info("With the earlier primary: %s", after)
        assert len(after.acknowledged) > 20
        assert after.acknowledged.items() <= lines(standby).items()
        assert lines(primary) == earlier


def end_connections(server: Member) -> None:
    """End the connections of services to a server."""
    server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        "AND application_name = 'ladon-storage'"
    )


async def test_standby_that_is_gone_stops_writes_and_not_reads(synchronous: Pair) -> None:
    """Commits that wait for a standby leave connections for reads, and are recognised after."""
    primary, standby = synchronous.primary, synchronous.standby
    async with embedded_service(synchronous.url()) as address, calling(address) as call:
        async with loaded(call) as load:
            await asyncio.sleep(1)
            await asyncio.to_thread(standby.stop)
            end = monotonic() + 30
            while monotonic() < end:
                await asyncio.sleep(1)
                read = await load.ask("GET", path("source-1"))
                assert read.status == 200, read.text
            health = await call("GET", "/health")
            assert health.status == 503
            [(waiting,)] = primary.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            )
            await asyncio.to_thread(standby.start)
            took = await until_healthy(call)
            before = len(load.acknowledged)
            await asyncio.sleep(3)
            assert len(load.acknowledged) > before
        logger.info("%s waited; healthy %.1f s after the return; %s", waiting, took, load)
        assert load.slowest < BOUND
        assert int(str(waiting)) < 40
        assert load.acknowledged.items() <= lines(primary).items()


async def test_standby_alone_reads_nothing_and_says_why(synchronous: Pair) -> None:
    """A service whose servers are all read-only answers 503 with the reason."""
    async with embedded_service(synchronous.url()) as address, calling(address) as call:
        assert (await call("PUT", path("kev"), success(START.isoformat()))).status == 201
        await asyncio.to_thread(synchronous.primary.stop)
        await asyncio.sleep(1)
        answers = await asyncio.gather(
            call("PUT", path("kev"), success(START.isoformat())), call("GET", path("kev"))
        )
        assert [each.status for each in answers] == [503, 503]
        assert all("read-only" in each.json["error"] for each in answers), answers
    alone = synchronous.standby.url()
    async with embedded_service(alone) as address, calling(address) as call:
        assert (await call("GET", path("kev"))).status == 200
        put = await call("PUT", path("kev"), success(START.isoformat()))
        assert put.status == 503
        assert "read-only" in put.json["error"]
        assert (await call("GET", "/health")).status == 503


async def test_failover_to_an_asynchronous_standby_says_what_is_lost(
    asynchronous: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """Changes that the standby did not have are logged, and no version is given out twice."""
    primary, standby = asynchronous.primary, asynchronous.standby
    store = await WatermarkDatabase.open(asynchronous.url())
    kept = await store.put("kev", update(1))
    asynchronous.await_replication()
    await asyncio.to_thread(standby.stop)
    lost = [await store.put("kev", update(day)) for day in range(2, 200)]
    await asyncio.to_thread(primary.stop)
    await asyncio.to_thread(standby.start)
    await asyncio.to_thread(standby.promote)
    async with asyncio.timeout(30):
        while (found := await tried(store)) is None:
            await asyncio.sleep(0.2)
    assert found.etag == kept.watermark.etag
    with pytest.raises(WatermarkConflictError):
        await store.put("kev", update(300), Precondition(if_match=lost[-1].watermark.etag))
    stored = await store.put("kev", update(300))
    await store.close()
    given = [int((each.watermark.etag or "").strip('"')) for each in (kept, *lost, stored)]
    assert len(set(given)) == len(given)
    assert given[-1] > max(given[:-1])
    [record] = [each for each in caplog.records if "lacks" in each.message]
    assert record.levelno == logging.ERROR
    assert "acknowledged changes" in record.message


def update(day: int) -> WatermarkUpdate:
    """Return a success of a day."""
    return WatermarkUpdate(timestamp=START + timedelta(days=day), run_id=f"run-{day}")


async def tried(store: WatermarkDatabase) -> Watermark | None:
    """Return the watermark, or ``None`` while the database cannot be read."""
    try:
        return await store.get("kev")
    except DatabaseError:
        return None
