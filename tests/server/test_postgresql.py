"""The service over a PostgreSQL that fails: answers in bounded time, and never a wrong one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
from psycopg.conninfo import conninfo_to_dict

from ladon_storage.cli import doctor
from ladon_storage.errors import ConfigurationError, DatabaseError, WatermarkConflictError
from ladon_storage.models import Precondition, WatermarkStatus, WatermarkUpdate
from ladon_storage.server import (
    postgresql,
    postgresql_gathered,
    postgresql_schema,
    postgresql_writes,
)
from ladon_storage.server.access import Token, add_token, digest, revoke_token
from ladon_storage.server.database import migrations as sqlite_migrations
from ladon_storage.server.postgresql_schema import address_of, migrate, migrations, opened
from ladon_storage.server.postgresql_servers import MOST_ABANDONED, Servers
from ladon_storage.server.retention import Retention
from ladon_storage.server.rows import to_microseconds
from ladon_storage.server.store import WatermarkDatabase
from ladon_storage.testing.clock import FakeClock
from tests.cut_proxy import CutProxy
from tests.postgres import PostgresServer, running
from tests.service import calling, embedded_service, path, success

JANUARY, FEBRUARY = "2024-01-01T00:00:00+00:00", "2024-02-01T00:00:00+00:00"
SECONDS = 1.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound each statement by one second, and look at tokens all the time."""
    monkeypatch.setattr(postgresql, "SECONDS", SECONDS)
    monkeypatch.setattr(postgresql, "SCAN_SECONDS", SECONDS)
    monkeypatch.setattr(postgresql, "TOKENS_SECONDS", 0.05)


@pytest.fixture
async def proxy(empty_postgres: str) -> AsyncIterator[CutProxy]:
    """The network between a service and its database."""
    async with CutProxy(empty_postgres) as made:
        yield made


def update(day: int, run_id: str | None = None) -> WatermarkUpdate:
    return WatermarkUpdate(timestamp=datetime(2024, 1, day, tzinfo=UTC), run_id=run_id)


async def until_healthy(store: WatermarkDatabase) -> None:
    """Return when the store reads and writes."""
    async with asyncio.timeout(20):
        while True:
            try:
                await store.check()
            except DatabaseError:
                await asyncio.sleep(0.05)
            else:
                return


def test_schema_versions_are_those_of_sqlite() -> None:
    """A version of the schema means the same in both databases."""
    assert len(migrations()) == len(sqlite_migrations())


async def test_services_that_start_together_migrate_once(postgres: PostgresServer) -> None:
    """One migrates, the others wait, and all of them serve."""
    url = postgres.url(postgres.database())
    applied = await asyncio.gather(*(asyncio.to_thread(migrate, address_of(url)) for _ in range(5)))
    assert sum(applied) == len(migrations())
    assert postgresql_schema.inspected(address_of(url)).version == len(migrations())


@pytest.mark.parametrize("version", range(1, len(migrations())))
async def test_earlier_schema_is_migrated(postgres: PostgresServer, version: int) -> None:
    """A database of each earlier version is brought up to date by the service that opens it."""
    url = postgres.url(postgres.database())
    assert migrate(address_of(url), to=version) == version
    store = await WatermarkDatabase.open(url)
    assert (await store.put("kev", update(1))).created
    await store.close()


def test_database_that_cannot_be_ours_is_refused_without_its_password(
    postgres: PostgresServer,
) -> None:
    """A later schema, another program's schema, and an address that is none are named as such."""
    name = postgres.database()
    url = postgres.url(name)
    migrate(address_of(url))
    postgres.execute("UPDATE ladon_storage.schema_version SET version = 99", name)
    with pytest.raises(ConfigurationError, match=r"schema version 99.*upgrade"):
        migrate(address_of(url))
    other = postgres.database()
    postgres.execute("CREATE SCHEMA ladon_storage CREATE TABLE theirs (a int)", other)
    with pytest.raises(ConfigurationError, match="another program"):
        migrate(address_of(postgres.url(other)))
    for wrong in ("postgresql://u:s3cr%zzet@h/db", "postgresql://u:s3cret@h", "postgresql://"):
        with pytest.raises(ConfigurationError) as caught:
            address_of(wrong)
        assert "s3cr" not in str(caught.value)
        assert caught.value.__context__ is None
    with pytest.raises(ConfigurationError, match="cannot be used") as caught:
        migrate(address_of("postgresql://ladon:s3cret@127.0.0.1:1/db"))
    assert "s3cret" not in str(caught.value)


def test_role_that_may_not_change_the_schema_needs_only_its_use(postgres: PostgresServer) -> None:
    """It is told what it lacks; granted what the documents name, it serves and migrates nothing."""
    name = postgres.database()
    postgres.execute("DROP ROLE IF EXISTS app; CREATE ROLE app LOGIN PASSWORD 'app'")
    app = address_of(f"postgresql://app:app@127.0.0.1:{postgres.port}/{name}")
    with pytest.raises(ConfigurationError, match=r"denies this role.*ladon-storage migrate"):
        migrate(app)
    migrate(address_of(postgres.url(name)))
    with pytest.raises(ConfigurationError, match=r"denies this role.*schema ladon_storage"):
        migrate(app)
    postgres.execute(
        "GRANT USAGE ON SCHEMA ladon_storage TO app; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL "
        "TABLES IN SCHEMA ladon_storage TO app; "
        "GRANT USAGE ON SEQUENCE ladon_storage.history_version TO app",
        name,
    )
    assert migrate(app) == 0


async def test_commits_are_synced_whatever_the_role_says(
    postgres: PostgresServer, empty_postgres: str
) -> None:
    """A role that does not wait for the disk by default waits for it here."""
    name = empty_postgres.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    try:
        store = await WatermarkDatabase.open(empty_postgres)
        backend = store._backend
        assert isinstance(backend, postgresql.PostgresqlBackend)
        assert await backend._fetch("SHOW synchronous_commit") == [("on",)]
        await store.close()
    finally:
        postgres.execute(f"ALTER DATABASE {name} RESET synchronous_commit")


async def test_two_services_share_a_database(empty_postgres: str) -> None:
    """Each sees at once what the other acknowledged, and one version has one winner of both."""
    one, two = embedded_service(empty_postgres), embedded_service(empty_postgres)
    async with one as a, two as b, calling(a) as call_a, calling(b) as call_b:
        etag = (await call_a("PUT", path("kev"), success(JANUARY))).etag
        for _ in range(5):
            assert (await call_b("GET", path("kev"))).etag == etag
            answers = await asyncio.gather(
                *(
                    call("PUT", path("kev"), success(FEBRUARY), headers={"If-Match": etag})
                    for call in (call_a, call_b)
                    for _ in range(4)
                )
            )
            assert sorted(answer.status for answer in answers) == [200] + [412] * 7
            etag = next(answer.etag for answer in answers if answer.status == 200)
        history = await call_a("GET", path("kev", "/history"))
        assert len(history.json["changes"]) == 6


async def test_first_writes_of_one_source_have_one_winner(empty_postgres: str) -> None:
    """Of services that make a source at the same time one does, and the others learn of it."""
    async with AsyncExitStack() as stack:
        stores = [await WatermarkDatabase.open(empty_postgres) for _ in range(3)]
        for each in stores:
            stack.push_async_callback(each.close)
        for number in range(10):
            outcomes = await asyncio.gather(
                *(
                    each.put(f"s{number}", update(1, f"r{turn}"), Precondition(if_none_match=True))
                    for turn, each in enumerate(stores * 2)
                ),
                return_exceptions=True,
            )
            assert sum(not isinstance(each, Exception) for each in outcomes) == 1
            assert len((await stores[0].history(f"s{number}")).changes) == 1


async def test_unconditional_writes_of_many_are_all_in_the_history(empty_postgres: str) -> None:
    """Writers of one source over several services wait for each other, and lose nothing."""
    async with AsyncExitStack() as stack:
        stores = [await WatermarkDatabase.open(empty_postgres) for _ in range(3)]
        for each in stores:
            stack.push_async_callback(each.close)
        await asyncio.gather(
            *(each.put("kev", update(1, f"r{turn}")) for turn, each in enumerate(stores * 10))
        )
        changes = (await stores[0].history("kev")).changes
        assert {each.run_id for each in changes} == {f"r{turn}" for turn in range(30)}
        stored = await stores[1].get("kev")
        assert stored is not None
        assert stored.etag == f'"{changes[0].version}"'


async def test_changes_that_share_a_statement_have_outcomes_of_their_own(
    postgres: PostgresServer, empty_postgres: str
) -> None:
    """Of many at once those that can be stored are, each as it was given, and only those."""
    name = empty_postgres.rpartition("/")[2]
    store = await WatermarkDatabase.open(empty_postgres)
    texts = ["a\0b", "\\u0000 \\N \t\"'%s", "größe\n", "", None]
    first = [await store.put(f"s{each}", update(1)) for each in range(40)]
    updates = [
        WatermarkUpdate(
            timestamp=datetime(2024, 1, 2, 3, 4, 5, each, tzinfo=UTC),
            status=("success", "failed", "running")[each % 3],
            run_id=f"run-{each}",
            error_message=texts[each % 5] if each % 3 == 1 else None,
            records_collected=2**53 - each if each % 4 else None,
            lease_seconds=90.5 if each % 3 == 2 else None,
            ledger={"text": texts[each % 5], "number": 0.1, "null": None} if each % 2 else None,
        )
        for each in range(40)
    ]
    await store.put("s7", update(2))  # another writer is faster
    await asyncio.gather(*(store.put(f"d{each}", update(1)) for each in range(5)))
    postgres.execute(
        "ALTER TABLE ladon_storage.watermarks ADD CONSTRAINT refused "
        "CHECK (source_id <> 's11' OR run_id IS NULL)",
        name,
    )
    deletions = asyncio.gather(*(store.delete(f"d{each}") for each in range(5)))
    try:
        outcomes = await asyncio.gather(
            *(
                store.put(f"s{each}", updates[each], Precondition.unchanged(before.watermark))
                for each, before in enumerate(first)
            ),
            return_exceptions=True,
        )
    finally:
        postgres.execute("ALTER TABLE ladon_storage.watermarks DROP CONSTRAINT refused", name)
    assert all(await deletions)
    assert not (await store.page(prefix="d")).watermarks
    for each, outcome in enumerate(outcomes):
        assert (await store.history(f"s{each}")).changes
        if each == 7:
            assert isinstance(outcome, WatermarkConflictError)
        elif each == 11:
            assert isinstance(outcome, DatabaseError)
            assert "refused" in str(outcome)
        else:
            assert not isinstance(outcome, BaseException), outcome
            assert outcome.watermark == await store.get(f"s{each}")
            [line, _] = (await store.history(f"s{each}")).changes
            assert (line.run_id, line.timestamp) == (f"run-{each}", updates[each].timestamp)
            assert line.ledger == outcome.watermark.ledger
            assert f'"{line.version}"' == outcome.watermark.etag
    await store.close()


async def test_changes_that_are_long_together_share_no_statement(
    empty_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the ledgers are, each change is stored, and no statement has all of them."""
    monkeypatch.setattr(postgresql_writes, "_MOST_BYTES", 5_000)
    statements: list[int] = []
    answered = postgresql_writes._answered

    async def counted(*given: Any) -> Any:
        statements.append(len(str(given[2])))
        return await answered(*given)

    store = await WatermarkDatabase.open(empty_postgres)
    await asyncio.gather(*(store.put(f"s{each}", update(1)) for each in range(30)))
    monkeypatch.setattr(postgresql_writes, "_answered", counted)
    long = [update(2).model_copy(update={"ledger": {"a": "x" * 70 * each}}) for each in range(30)]
    stored = await asyncio.gather(*(store.put(f"s{n}", each) for n, each in enumerate(long)))
    assert [each.watermark.ledger for each in stored] == [each.ledger for each in long]
    assert [await store.get(f"s{n}") for n in range(30)] == [each.watermark for each in stored]
    assert 10 < len(statements) < 30
    assert max(statements) < 10_000
    await store.close()


async def test_services_that_write_the_same_sources_do_not_block_each_other(
    empty_postgres: str,
) -> None:
    """Statements that share rows in any order wait for each other, and never in a circle."""
    async with AsyncExitStack() as stack:
        stores = [await WatermarkDatabase.open(empty_postgres) for _ in range(3)]
        for each in stores:
            stack.push_async_callback(each.close)
        names = [f"s{each}" for each in range(25)]
        for name in names:
            await stores[0].put(name, update(1))
        for turn in range(3):
            await asyncio.gather(
                *(
                    store.put(name, update(1, f"{turn}/{number}"))
                    for number, store in enumerate(stores)
                    for name in (names if number % 2 else reversed(names))
                )
            )
        for name in names:
            runs = [each.run_id for each in (await stores[0].history(name)).changes]
            assert len(runs) == len(set(runs)) == 10


@pytest.mark.parametrize("left", [0, 1, 40, 10_000])
async def test_write_whose_answer_is_lost_is_503_and_recognised_when_repeated(
    proxy: CutProxy, left: int
) -> None:
    """A network that fails in the middle of a commit: stored once, and never reported as refused.

    Whatever part of the database's answer arrives, the service does not take it for the whole.
    """
    async with embedded_service(proxy.url) as address, calling(address) as call:
        etag = (await call("PUT", path("kev"), success(JANUARY))).etag
        headers = {"If-Match": etag}
        proxy.left, proxy.cut_at = left, b"run-1"
        body = success(FEBRUARY, run_id="run-1")
        lost = await call("PUT", path("kev"), body, headers=headers)
        assert lost.status == (200 if left == 10_000 else 503), lost.text
        if lost.status == 503:
            assert "may be stored" in lost.json["error"]
        again = await call("PUT", path("kev"), body, headers=headers)
        assert (again.status, again.json["last_successful_timestamp"]) == (200, FEBRUARY)
        other = await call("PUT", path("kev"), success(FEBRUARY, run_id="run-2"), headers=headers)
        assert other.status == 412
        history = await call("GET", path("kev", "/history"))
        assert [each["run_id"] for each in history.json["changes"]] == ["run-1", None]


async def test_connections_that_were_lost_cost_no_request(proxy: CutProxy) -> None:
    """After a restart of the database, or of what is before it, the next requests are answered."""
    async with embedded_service(proxy.url) as address, calling(address) as call:
        etag = (await call("PUT", path("kev"), success(JANUARY))).etag
        for _ in range(3):
            proxy.cut()
            assert (await call("GET", path("kev"))).status == 200
            proxy.cut()
            put = await call("PUT", path("kev"), success(FEBRUARY), headers={"If-Match": etag})
            assert put.status == 200
            etag = put.etag
            proxy.cut()
            assert (await call("GET", "/api/v1/watermarks")).status == 200


@pytest.mark.slow
async def test_database_that_hangs_is_503_in_bounded_time(proxy: CutProxy) -> None:
    """Where nothing answers, each request ends with 503 and health is unhealthy, until it heals."""
    async with embedded_service(proxy.url) as address, calling(address) as call:
        etag = (await call("PUT", path("kev"), success(JANUARY))).etag
        assert (await call("GET", "/api/v1/watermarks")).status == 200
        proxy.hold()
        async with asyncio.timeout(10 * SECONDS):
            answers = await asyncio.gather(
                call("GET", path("kev")),
                call("PUT", path("kev"), success(FEBRUARY), headers={"If-Match": etag}),
                call("PUT", path("kev"), success(FEBRUARY), headers={"If-Match": etag}),
                call("GET", "/health"),
                call("GET", "/api/v1/watermarks"),
                call("GET", "/metrics"),
            )
        assert [each.status for each in answers] == [503] * 6
        assert answers[3].json == {"status": "unhealthy"}
        proxy.release()
        async with asyncio.timeout(20):
            while (await call("GET", "/health")).status != 200:
                await asyncio.sleep(0.05)
        put = await call("PUT", path("kev"), success(FEBRUARY), headers={"If-Match": etag})
        assert put.status == 200


async def test_database_that_is_stopped_and_killed_loses_no_acknowledged_write(
    postgres: PostgresServer, empty_postgres: str
) -> None:
    """Its backends are ended in the middle of writes; what was acknowledged is there."""
    store = await WatermarkDatabase.open(empty_postgres)
    acknowledged: list[int] = []
    unknown = 0

    async def write(source: int) -> None:
        nonlocal unknown
        for number in range(30):
            try:
                stored = await store.put(f"s{source}", update(1, f"{source}/{number}"))
            except DatabaseError:
                unknown += 1
            else:
                acknowledged.append(int((stored.watermark.etag or "").strip('"')))

    async def end() -> None:
        for _ in range(6):
            await asyncio.sleep(0.02)
            await asyncio.to_thread(
                postgres.execute,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE datname = '{empty_postgres.rpartition('/')[2]}'",
            )

    await asyncio.gather(end(), *(write(each) for each in range(8)))
    rows = postgres.execute(
        "SELECT version, run_id FROM ladon_storage.history", empty_postgres.rpartition("/")[2]
    )
    await store.close()
    assert set(acknowledged) <= {row[0] for row in rows}
    assert len(acknowledged) + unknown == 240
    assert len(rows) <= 240
    assert len({row[1] for row in rows}) == len(rows)


async def test_read_only_database_is_unhealthy_and_reads(
    postgres: PostgresServer, empty_postgres: str
) -> None:
    """On a standby, or a disk that is full, writes are 503, reads go on, and it passes."""
    name = empty_postgres.rpartition("/")[2]
    async with embedded_service(empty_postgres) as address, calling(address) as call:
        etag = (await call("PUT", path("kev"), success(JANUARY))).etag
        postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        try:
            _end_backends(postgres, name)
            put = await call("PUT", path("kev"), success(FEBRUARY), headers={"If-Match": etag})
            assert put.status == 503
            assert "read-only" in put.json["error"]
            assert (await call("GET", "/health")).status == 503
            assert (await call("GET", path("kev"))).status == 200
            assert (await call("GET", "/metrics")).status == 200
            assert (await call("GET", "/api/v1/watermarks")).status == 200
        finally:
            postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        _end_backends(postgres, name)
        put = await call("PUT", path("kev"), success(FEBRUARY), headers={"If-Match": etag})
        assert put.status == 200
        assert (await call("GET", "/health")).status == 200


def _end_backends(postgres: PostgresServer, name: str) -> None:
    postgres.execute(
        f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
    )


def servers_of(store: WatermarkDatabase) -> Servers:
    """Return what a store knows of the servers of its address."""
    assert isinstance(store._backend, postgresql.PostgresqlBackend)
    return store._backend._servers


def several(*urls: str, query: str = "") -> str:
    """Return one address of several servers."""
    origin = urlsplit(urls[0])
    hosts = ",".join(urlsplit(each).netloc.rpartition("@")[2] for each in urls)
    return f"postgresql://{origin.netloc.rpartition('@')[0]}@{hosts}{origin.path}{query}"


async def test_address_of_several_servers_leads_to_the_one_that_writes(
    empty_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one that accepts writes serves, unless the address says that another one may."""
    gone = "postgresql://u@127.0.0.1:1/x"
    url = several(empty_postgres, gone)
    found = conninfo_to_dict(address_of(url).conninfo)
    assert found["target_session_attrs"] == "read-write"
    rotated = address_of(url).rotated()
    assert "port=1," in rotated.conninfo
    assert conninfo_to_dict(rotated.rotated().conninfo) == found
    chosen = conninfo_to_dict(address_of(f"{url}?target_session_attrs=any").conninfo)
    assert chosen["target_session_attrs"] == "any"
    assert "target_session_attrs" not in conninfo_to_dict(address_of(empty_postgres).conninfo)
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "primary")
    assert "target_session_attrs" not in conninfo_to_dict(address_of(url).conninfo)
    monkeypatch.delenv("PGTARGETSESSIONATTRS")
    for_last = empty_postgres.replace("@127.0.0.1", "@127.0.0.1:1,127.0.0.1")
    async with embedded_service(for_last) as address, calling(address) as call:
        assert (await call("PUT", path("kev"), success(JANUARY))).status == 201
        assert (await call("GET", "/api/v1/watermarks")).json["watermarks"]


@pytest.mark.slow
async def test_servers_that_all_refuse_writes_are_named_as_the_reason(
    postgres: PostgresServer, empty_postgres: str
) -> None:
    """A service that is left with standbys answers 503 in bounded time, and says that they are."""
    name = empty_postgres.rpartition("/")[2]
    url = several(empty_postgres, empty_postgres)
    async with embedded_service(url) as address, calling(address) as call:
        postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        try:
            _end_backends(postgres, name)
            put = await call("PUT", path("kev"), success(JANUARY))
            assert put.status == 503
            assert "gave no connection in 1 s (session is read-only)" in put.json["error"]
            assert (await call("GET", "/health")).status == 503
        finally:
            postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        async with asyncio.timeout(20):
            while (await call("PUT", path("kev"), success(JANUARY))).status == 503:
                pass


@pytest.mark.slow
async def test_server_that_hangs_costs_no_request_for_each_connection(
    proxy: CutProxy, empty_postgres: str
) -> None:
    """After the first request without an answer, no other connection of its server is lent."""
    url = several(proxy.url, empty_postgres)
    async with embedded_service(url) as address, calling(address) as call:
        puts = (call("PUT", path(f"s{each}"), success(JANUARY)) for each in range(30))
        assert {each.status for each in await asyncio.gather(*puts)} == {201}
        proxy.hold()
        failed = 0
        while (await call("GET", path("s1"))).status == 503:
            failed += 1
        assert 1 <= failed <= 5
        gets = (call("GET", path(f"s{each}")) for each in range(30))
        assert {each.status for each in await asyncio.gather(*gets)} == {200}


@pytest.mark.slow
async def test_earlier_primary_is_refused(postgres: PostgresServer, empty_postgres: str) -> None:
    """A server that accepts writes, but that another one has replaced, gets none of them."""
    store = await WatermarkDatabase.open(empty_postgres)
    await store.put("kev", update(1))
    servers = servers_of(store)
    assert servers._timeline > 0
    servers._timeline += 1  # of the server that was promoted, and is not there
    _end_backends(postgres, empty_postgres.rpartition("/")[2])
    for call in (store.get("kev"), store.put("kev", update(2)), store.check()):
        with pytest.raises(DatabaseError, match=r"was replaced by another one: its timeline is 1"):
            await call
    servers._timeline -= 1
    await until_healthy(store)
    await store.close()


@pytest.fixture
def other_system(empty_postgres: str) -> Iterator[tuple[PostgresServer, str]]:
    """Another PostgreSQL with a database of the same name, and the address of that."""
    with running() as other:
        name = empty_postgres.rpartition("/")[2]
        other.execute(f"CREATE DATABASE {name}")
        yield other, other.url(name)


@pytest.mark.slow
async def test_server_of_another_system_is_refused(
    proxy: CutProxy, other_system: tuple[PostgresServer, str]
) -> None:
    """The service waits for a server that it knows, and writes nothing to another in between."""
    other, second = other_system
    name = second.rpartition("/")[2]
    migrate(address_of(second))
    url = several(proxy.url, second)
    with pytest.raises(ConfigurationError, match=r"no copies of each other: 127.* and 127.*Name"):
        await WatermarkDatabase.open(url)
    with pytest.raises(ConfigurationError, match="no copies of each other"):
        await asyncio.to_thread(doctor._postgresql, url)
    other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")  # as one that is not there
    store = await WatermarkDatabase.open(url)
    other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    kept = (await store.put("kev", update(1))).watermark
    proxy.refuses = True
    proxy.cut()
    for call in (store.check, partial(store.put, "kev", update(2)), store.page, store.check):
        with pytest.raises(DatabaseError, match=r"is no copy of the database that this serv"):
            await call()
    proxy.refuses = False
    await until_healthy(store)
    assert await store.get("kev") == kept
    await store.close()
    assert other.execute("SELECT count(*) FROM ladon_storage.history", name) == [(0,)]


async def test_database_older_than_its_acknowledged_changes_is_logged(
    postgres: PostgresServer, empty_postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What a failover lost is said, once, and no version is given out for another change."""
    name = empty_postgres.rpartition("/")[2]
    store = await WatermarkDatabase.open(empty_postgres)
    lost = [(await store.put("kev", update(day))).watermark.etag for day in range(1, 10)]
    postgres.execute("DELETE FROM ladon_storage.history WHERE version > 2", name)
    postgres.execute("DELETE FROM ladon_storage.watermarks", name)
    postgres.execute("ALTER SEQUENCE ladon_storage.history_version RESTART WITH 3", name)
    _end_backends(postgres, name)
    stored = await store.put("kev", update(1))
    assert stored.created
    assert stored.watermark.etag not in lost
    _end_backends(postgres, name)
    await store.put("kev", update(2))
    assert store.lost_changes == 7
    await store.close()
    [said] = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "lacks 7 of the last 9 acknowledged changes, such as version 3" in said.getMessage()


@pytest.mark.parametrize(
    "kept", [Retention(), Retention(changes=1), Retention(age=timedelta(hours=1))], ids=str
)
async def test_history_that_the_retention_deleted_is_not_lost(
    postgres: PostgresServer, empty_postgres: str, kept: Retention
) -> None:
    """Lines of renewals go after an hour, and others by the bounds; any service deletes them."""
    clock = FakeClock()
    store = await WatermarkDatabase.open(empty_postgres, clock.now)
    for number, status in enumerate(["success", *["running"] * 3, "success"]):
        timestamp = clock.now() + timedelta(seconds=number)
        written = WatermarkUpdate(timestamp=timestamp, status=WatermarkStatus(status), run_id="r")
        await store.put("kev", written)
    clock.advance(7200)
    other = await WatermarkDatabase.open(empty_postgres, clock.now)
    assert await other.prune(kept) == (2 if kept == Retention() else 4)
    await other.close()
    _end_backends(postgres, empty_postgres.rpartition("/")[2])
    await until_healthy(store)
    await store.close()
    assert store.lost_changes == 0


async def test_lost_change_is_seen_behind_a_later_one_of_its_source(
    postgres: PostgresServer, empty_postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another service may write first to the server that lacks it; that hides nothing."""
    name = empty_postgres.rpartition("/")[2]
    store = await WatermarkDatabase.open(empty_postgres)
    for day in range(1, 6):
        await store.put("kev", update(day))
    postgres.execute("DELETE FROM ladon_storage.history WHERE version > 2", name)
    postgres.execute("UPDATE ladon_storage.watermarks SET version = 2", name)
    other = await WatermarkDatabase.open(empty_postgres)
    await other.put("kev", update(9))
    await other.close()
    _end_backends(postgres, name)
    await until_healthy(store)
    await store.close()
    assert store.lost_changes == 3
    assert "lacks 3 of the last 5 acknowledged changes, such as version 3" in caplog.text


def _expect_standby(postgres: PostgresServer, name: str) -> None:
    """Set the standby that commits wait for, and return when they do."""
    postgres.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
    postgres.execute("SELECT pg_reload_conf()")
    while postgres.execute("SHOW synchronous_standby_names") != [(name,)]:
        pass
    postgres.execute("CHECKPOINT")  # the process that makes it tells the others of the setting


@pytest.fixture
def standby_is_missing(postgres: PostgresServer) -> Iterator[None]:
    """Let commits wait for a standby that is not there."""
    _expect_standby(postgres, "missing")
    yield
    _expect_standby(postgres, "")


WAITING = "SELECT {what} FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = '{name}'"


@pytest.mark.slow
async def test_change_that_is_at_no_standby_is_not_acknowledged(
    postgres: PostgresServer, empty_postgres: str, request: pytest.FixtureRequest
) -> None:
    """A wait for a standby that is cancelled is no answer, nor is a repetition before the standby.

    PostgreSQL answers a cancelled wait with success and a warning, and shows the change.
    """
    name = empty_postgres.rpartition("/")[2]
    store = await WatermarkDatabase.open(empty_postgres)
    before = await store.put("kev", update(1))
    request.getfixturevalue("standby_is_missing")
    unchanged = Precondition(if_match=before.watermark.etag)
    put = asyncio.create_task(store.put("kev", update(2, "run-2"), unchanged))
    async with asyncio.timeout(10):
        while not put.done():
            await asyncio.to_thread(
                postgres.execute, WAITING.format(what="pg_cancel_backend(pid)", name=name)
            )
    with pytest.raises(DatabaseError, match=r"canceling wait.*may be stored"):
        await put
    assert (await store.get("kev")) != before.watermark
    with pytest.raises(DatabaseError):
        await store.put("kev", update(2, "run-2"), unchanged)
    _expect_standby(postgres, "")
    again = await store.put("kev", update(2, "run-2"), unchanged)
    assert again.watermark == await store.get("kev")
    assert [each.run_id for each in (await store.history("kev")).changes] == ["run-2", None]
    await store.close()


@pytest.mark.slow
async def test_commits_that_wait_for_a_standby_leave_connections(
    postgres: PostgresServer, empty_postgres: str, request: pytest.FixtureRequest
) -> None:
    """They keep their backends, so few are left behind; further changes are refused at once."""
    name = empty_postgres.rpartition("/")[2]
    store = await WatermarkDatabase.open(empty_postgres)
    await store.put("kev", update(1))
    request.getfixturevalue("standby_is_missing")
    reasons = set()
    for turn in range(4):
        puts = (store.put(f"{turn}/{each}", update(1)) for each in range(30))
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        assert all(isinstance(each, DatabaseError) for each in outcomes)
        reasons |= {str(each) for each in outcomes}
        assert await store.get("kev")
    assert any("wait for a standby" in each for each in reasons), reasons
    [(waiting,)] = postgres.execute(WAITING.format(what="count(*)", name=name))
    assert int(str(waiting)) <= postgresql.MOST_CONNECTIONS + MOST_ABANDONED
    _expect_standby(postgres, "")
    await until_healthy(store)
    assert (await store.put("later", update(1))).created
    await store.close()


@pytest.mark.slow
async def test_server_without_free_connections_is_503_in_bounded_time(
    postgres: PostgresServer, empty_postgres: str
) -> None:
    """A service that gets no connection says so within its bound, and serves when it gets one."""
    name = empty_postgres.rpartition("/")[2]
    store = await WatermarkDatabase.open(empty_postgres)
    await store.put("kev", update(1))
    postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    try:
        _end_backends(postgres, name)
        async with asyncio.timeout(5 * SECONDS):
            for call in (store.get("kev"), store.put("kev", update(2)), store.check()):
                with pytest.raises(DatabaseError):
                    await call
    finally:
        postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await until_healthy(store)
    assert not (await store.put("kev", update(2))).created
    await store.close()


async def test_token_holds_from_the_next_look_on(empty_postgres: str) -> None:
    """A token is asked for, and refused, soon after it was stored, and deleted, by any program."""
    now = datetime.now(UTC)
    store = await WatermarkDatabase.open(empty_postgres)
    assert not store.has_tokens()
    with opened(empty_postgres) as connection:
        token = add_token(connection, "team", now, read_only=True, prefix="a/")
        with pytest.raises(ConfigurationError, match="already"):
            add_token(connection, "team", now, read_only=True, prefix="a/")
        async with asyncio.timeout(10):
            while not store.has_tokens():
                await asyncio.sleep(0.01)
        assert store.find_token(digest(token.encode())) == Token("team", True, "a/")
        assert revoke_token(connection, "team")
    async with asyncio.timeout(10):
        while store.has_tokens():
            await asyncio.sleep(0.01)
    await store.close()


async def test_tokens_that_cannot_be_read_any_more_admit_no_request(
    proxy: CutProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that lost its database does not go on with the tokens of before."""
    monkeypatch.setattr(postgresql, "TOKENS_AGE_SECONDS", 1.0)
    async with (
        embedded_service(proxy.url, token="operator-token") as address,
        calling(address, "operator-token") as call,
    ):
        assert (await call("GET", path("kev"))).status == 404
        proxy.refuses = True
        proxy.cut()
        async with asyncio.timeout(10):
            while (answer := await call("GET", path("kev"))).status != 503:
                await asyncio.sleep(0.05)
        assert "operator" not in answer.text


async def test_write_of_the_version_that_was_written_last_needs_no_read(
    empty_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service judges by what it wrote itself, and by what is stored where that is another one."""
    one, two = [await WatermarkDatabase.open(empty_postgres) for _ in range(2)]
    reads: list[str] = []
    read = postgresql.PostgresqlBackend.read

    async def counted(self: postgresql.PostgresqlBackend, source_id: str) -> Any:
        reads.append(source_id)
        return await read(self, source_id)

    first = (await one.put("kev", update(1))).watermark
    monkeypatch.setattr(postgresql.PostgresqlBackend, "read", counted)
    second = (await one.put("kev", update(2), Precondition.unchanged(first))).watermark
    third = (await one.put("kev", update(3), Precondition.unchanged(second))).watermark
    assert not reads
    assert await one.get("kev") == third
    assert (await one.history("kev")).changes[0].from_timestamp == update(2).timestamp
    reads.clear()
    with pytest.raises(WatermarkConflictError, match="an operator can move it back"):
        await one.put("kev", update(1), Precondition.unchanged(third))
    with pytest.raises(WatermarkConflictError, match="not at version"):
        await one.put("kev", update(4), Precondition.unchanged(second))
    fourth = (await two.put("kev", update(4, "r4"), Precondition.unchanged(third))).watermark
    assert (await one.get("kev")) == fourth
    with pytest.raises(WatermarkConflictError, match="run 'r4' was faster"):
        await one.put("kev", update(5), Precondition.unchanged(third))
    fifth = (await one.put("kev", update(5), Precondition.unchanged(fourth))).watermark
    await two.delete("kev")
    with pytest.raises(WatermarkConflictError, match="not stored"):
        await one.put("kev", update(6), Precondition.unchanged(fifth))
    assert len(reads) == 8
    # Nor does a refusal whose error somebody holds make later ones read.
    with pytest.raises(WatermarkConflictError) as held:
        await one.put("kev", update(6), Precondition('"0"'))
    assert (await one.put("kev", update(6))).created
    reads.clear()
    await one.put("kev", update(7))
    assert not reads
    assert held.value.status == 412
    await two.delete("kev")
    assert (await one.put("kev", update(7))).created
    await one.put("kev", update(8))
    assert await one.delete("kev")
    assert (await one.put("kev", update(6))).created
    await two.put("kev", update(9))
    await one.put("kev", update(10))
    actions = [each.action.value for each in (await one.history("kev")).changes]
    assert actions == [
        *("put", "put", "put", "delete", "put", "put", "delete", "put", "put", "delete"),
        *["put"] * 5,
    ]
    await one.close()
    await two.close()


@pytest.mark.parametrize("others", [0, 3])
async def test_version_that_a_failover_gave_to_another_change_is_judged_again(
    postgres: PostgresServer, empty_postgres: str, others: int
) -> None:
    """Nobody's later watermark goes back by what a service wrote to the server before."""
    store = await WatermarkDatabase.open(empty_postgres)
    names = ["kev", *(f"s{each}" for each in range(others))]
    seen = [(await store.put(name, update(5))).watermark for name in names]
    postgres.execute(
        "UPDATE ladon_storage.watermarks SET last_successful_timestamp = "
        f"{to_microseconds(update(9).timestamp)} WHERE source_id = 'kev'",
        empty_postgres.rpartition("/")[2],
    )
    outcomes = await asyncio.gather(
        *(
            store.put(name, update(7), Precondition.unchanged(each))
            for name, each in zip(names, seen, strict=True)
        ),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], WatermarkConflictError)
    assert "later than" in str(outcomes[0])
    assert not any(isinstance(each, BaseException) for each in outcomes[1:])
    await store.close()


@pytest.mark.parametrize("text", ["a\0b", "\0"])
async def test_text_that_postgresql_cannot_keep_is_stored_with_a_mark(
    empty_postgres: str, text: str
) -> None:
    """The outcome of a run does not go unrecorded because of U+0000 in its error."""
    async with embedded_service(empty_postgres) as address, calling(address) as call:
        failed = {"timestamp": JANUARY, "status": "failed", "error_message": text}
        put = await call("PUT", path("kev"), failed | {"ledger": {"text": text}})
        assert put.status == 201
        read = await call("GET", path("kev"))
        assert read.json == put.json
        assert read.json["error_message"] == text.replace("\0", "\ufffd")
        assert read.json["ledger"] == {"text": text}
        assert (await call("GET", "/api/v1/watermarks?prefix=%00")).json["watermarks"] == []
        assert (await call("GET", "/?search=%00")).status == 200


async def test_cancelled_caller_cancels_no_write(empty_postgres: str) -> None:
    """A client that gives up leaves the whole change with its history, or nothing."""
    store = await WatermarkDatabase.open(empty_postgres)
    for number in range(20):
        put = asyncio.create_task(store.put(f"s{number}", update(1)))
        for _ in range(number):
            await asyncio.sleep(0)
        put.cancel()
        await asyncio.wait([put])
    failed = WatermarkUpdate(timestamp=update(1).timestamp, status="failed", error_message="late")
    stored = (await store.put("kev", update(1))).watermark
    for number in range(20):
        put = asyncio.create_task(store.put("kev", failed, Precondition.unchanged(stored)))
        for _ in range(number):
            await asyncio.sleep(0)
        put.cancel()
        await asyncio.wait([put])
        stored = (await store.put("kev", update(2 + number))).watermark
    await store.close()
    again = await WatermarkDatabase.open(empty_postgres)
    kept = {each.source_id for each in (await again.page()).watermarks}
    for number in range(20):
        name = f"s{number}"
        assert len((await again.history(name)).changes) == (name in kept)
    lines = [each.status for each in (await again.history("kev")).changes]
    assert lines.count(WatermarkStatus.SUCCESS) == 21
    assert lines.count(WatermarkStatus.FAILED) > 1  # nobody waited for them
    await again.close()


async def test_closed_database_takes_no_write(
    empty_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write that was accepted is stored when the database is closed, and none after."""
    store = await WatermarkDatabase.open(empty_postgres)
    writes = [asyncio.create_task(store.put(f"s{n}", update(1))) for n in range(40)]
    await asyncio.sleep(0)
    await store.close()
    assert all([(await write).created for write in writes])
    store = await WatermarkDatabase.open(empty_postgres)
    monkeypatch.setattr(postgresql_gathered, "MOST_WRITTEN", 4)
    for turn in (2, 3):  # the second time, each is judged by what was written before
        writes = [asyncio.create_task(store.put(f"s{n}", update(turn))) for n in range(40)]
        if turn == 2:
            await asyncio.gather(*writes)
    await asyncio.sleep(0)
    await store.close()
    for write in writes:
        assert (await write).watermark.last_successful_timestamp == update(3).timestamp
    with pytest.raises(DatabaseError, match="closed"):
        await store.put("late", update(1))
