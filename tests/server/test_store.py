"""The database: migrated, written to in groups, shared, and refused where it cannot be ours."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.errors import ConfigurationError, DatabaseError, WatermarkConflictError
from ladon_storage.models import Precondition, Watermark, WatermarkStatus, WatermarkUpdate
from ladon_storage.server import database
from ladon_storage.server.database import GroupCommit, migrate, migrations, open_database
from ladon_storage.server.sqlite import SqliteBackend
from ladon_storage.server.store import WatermarkDatabase
from tests.service import calling, embedded_service, path, success


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "watermarks.db"


@pytest.fixture
async def store(file: Path) -> AsyncIterator[WatermarkDatabase]:
    opened = await WatermarkDatabase.open(file)
    yield opened
    await opened.close()


@pytest.fixture
async def any_store(service_database: Path | str) -> AsyncIterator[WatermarkDatabase]:
    """A store over either database."""
    opened = await WatermarkDatabase.open(service_database)
    yield opened
    await opened.close()


def update(day: int, **more: Any) -> WatermarkUpdate:
    return WatermarkUpdate(timestamp=datetime(2024, 1, day, tzinfo=UTC), **more)


def writer_of(store: WatermarkDatabase) -> GroupCommit:
    assert isinstance(store._backend, SqliteBackend)
    return store._backend.writer


def connection_of(store: WatermarkDatabase) -> sqlite3.Connection:
    """Return the connection that writes, to hold it, fill it, or take its tables."""
    return writer_of(store)._connection


def commits(store: WatermarkDatabase) -> list[str]:
    """Return a list that gets each COMMIT of the store from now on."""
    seen: list[str] = []
    connection = connection_of(store)
    connection.set_trace_callback(lambda sql: seen.append(sql) if sql == "COMMIT" else None)
    return seen


async def test_refused_write_leaves_its_group_alone(store: WatermarkDatabase) -> None:
    """Writes that wait together share one commit, and a refused one takes only itself back."""
    await store.put("b", update(9))
    seen = commits(store)
    outcomes = await asyncio.gather(
        store.put("a", update(1)),
        store.put("b", update(1)),
        store.put("c", update(1), Precondition('"77"')),
        store.put("d", update(1)),
        return_exceptions=True,
    )
    assert seen == ["COMMIT"]
    assert [isinstance(outcome, WatermarkConflictError) for outcome in outcomes] == [
        False, True, True, False,
    ]  # fmt: skip
    page = await store.page()
    assert [watermark.source_id for watermark in page.watermarks] == ["a", "b", "d"]
    assert [len((await store.history(name)).changes) for name in "abcd"] == [1, 1, 0, 1]


async def test_log_that_raises_fails_its_own_write_alone(
    any_store: WatermarkDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """As a filter of an application around may: the others are answered, and later ones too."""

    def refuse(line: logging.LogRecord) -> bool:
        if getattr(line, "source_id", None) == "s1":
            raise LookupError("no context")
        return True

    caplog.set_level(logging.INFO)
    names = [f"s{number}" for number in range(4)]
    await asyncio.gather(*(any_store.put(name, update(1)) for name in names))
    logger = logging.getLogger("ladon_storage.server.store")
    logger.addFilter(refuse)
    try:
        outcomes = await asyncio.gather(
            *(any_store.put(name, update(2)) for name in names), return_exceptions=True
        )
    finally:
        logger.removeFilter(refuse)
    assert [type(each) for each in outcomes if isinstance(each, Exception)] == [LookupError]
    assert isinstance(outcomes[1], LookupError)
    for name in names:
        assert len((await any_store.history(name)).changes) == 2
        assert not (await any_store.put(name, update(3))).created


async def test_change_that_fails_halfway_takes_back_what_it_wrote(store: WatermarkDatabase) -> None:
    """A change is whole or nothing, also when it fails after its first statement."""

    def halfway(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM watermarks")
        raise ZeroDivisionError

    await store.put("a", update(1))
    results = await asyncio.gather(
        writer_of(store).apply(halfway), store.put("b", update(1)), return_exceptions=True
    )
    assert isinstance(results[0], ZeroDivisionError)
    assert [watermark.source_id for watermark in (await store.page()).watermarks] == ["a", "b"]


async def test_failed_commit_acknowledges_nothing(
    store: WatermarkDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the commit fails, every write of the group fails, and none is stored."""
    writes = [store.put("a", update(1)), store.put("b", update(1))]
    connection_of(store).execute("PRAGMA query_only = ON")
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DatabaseError, DatabaseError]
    with pytest.raises(DatabaseError):
        await store.check()
    connection_of(store).execute("PRAGMA query_only = OFF")
    await store.check()
    assert (await store.page()).watermarks == []
    assert "attempt to write a readonly database" in caplog.text


async def test_write_after_a_failed_commit_is_judged_by_what_is_stored(
    store: WatermarkDatabase,
) -> None:
    """A version that was never durable is no version: the one before it is written over."""
    first = (await store.put("a", update(1))).watermark
    connection_of(store).set_authorizer(
        lambda action, what, *_: int(action == sqlite3.SQLITE_TRANSACTION and what == "COMMIT")
    )
    with pytest.raises(DatabaseError):
        await store.put("a", update(2))
    connection_of(store).set_authorizer(None)
    second = await store.put("a", update(3), Precondition(first.etag))
    assert second.watermark.last_successful_timestamp == update(3).timestamp


async def test_write_is_judged_by_what_another_service_stored(file: Path) -> None:
    """Two services on one file write in turn: neither overwrites what it did not see."""
    one, other = await WatermarkDatabase.open(file), await WatermarkDatabase.open(file)
    try:
        first = (await one.put("a", update(1))).watermark
        second = (await other.put("a", update(2), Precondition(first.etag))).watermark
        with pytest.raises(WatermarkConflictError):
            await one.put("a", update(3), Precondition(first.etag))
        await one.put("a", update(3), Precondition(second.etag))
        await other.delete("a")
        assert (await one.put("a", update(4))).created
    finally:
        await one.close()
        await other.close()


async def test_cancelled_writer_does_not_stop_the_others(any_store: WatermarkDatabase) -> None:
    """A request that is given up changes nothing for the requests that wait with it."""
    tasks = [asyncio.create_task(any_store.put(name, update(1))) for name in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert tasks[0].result().created
    assert tasks[2].result().created
    assert (await any_store.put("d", update(1))).created


async def test_close_finishes_what_waits_and_refuses_what_follows(file: Path) -> None:
    """Every write that was accepted is stored when the database is closed, and none after."""
    store = await WatermarkDatabase.open(file)
    writes = [asyncio.create_task(store.put(f"s{n}", update(1))) for n in range(150)]
    await asyncio.sleep(0)
    await store.close()
    assert all([(await write).created for write in writes])
    with pytest.raises(DatabaseError, match="closed"):
        await store.put("late", update(1))
    assert count(file) == 150


async def test_close_gives_up_the_scans_that_wait(file: Path) -> None:
    """A service ends in bounded time, however many pages were asked for."""
    store = await WatermarkDatabase.open(file)
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def endless(connection: Any) -> None:
        loop.call_soon_threadsafe(began.set)
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
        ).fetchall()

    scans = [asyncio.create_task(store._backend.scan(endless)) for _ in range(5)]
    async with asyncio.timeout(30):
        await began.wait()
        await store.close()
        outcomes = await asyncio.gather(*scans, return_exceptions=True)
    assert isinstance(outcomes[0], DatabaseError)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[1:])


def count(file: Path) -> int:
    connection = sqlite3.connect(file)
    try:
        return int(connection.execute("SELECT count(*) FROM watermarks").fetchone()[0])
    finally:
        connection.close()


async def test_watermark_outlives_the_service(service_database: Path | str) -> None:
    """A service that is started again on a file knows the watermarks and their versions."""
    stored = []
    for _ in range(2):
        async with embedded_service(service_database) as address, calling(address) as call:
            put = await call("PUT", path("kev"), success("2024-01-01T00:00:00Z"))
            stored.append(put.etag)
            assert (await call("GET", path("kev"))).etag == put.etag
    assert stored[0] != stored[1]


async def test_instants_are_stored_exactly(any_store: WatermarkDatabase) -> None:
    """The first and the last microsecond that exist come back as they went in."""
    any_store.now = lambda: datetime.max.replace(tzinfo=UTC)
    for text in ("0001-01-01T00:00:00", "1969-12-31T23:59:59.999999", "9999-12-31T23:59:59.999999"):
        instant = datetime.fromisoformat(text).replace(tzinfo=UTC)
        await any_store.put(text, WatermarkUpdate(timestamp=instant))
        read = await any_store.get(text)
        assert read is not None
        assert read.last_successful_timestamp == instant


@pytest.mark.parametrize("version", range(len(migrations())))
async def test_earlier_schema_is_migrated(file: Path, version: int) -> None:
    """A file of each earlier version, from an empty one on, is brought up to date when opened."""
    connection = sqlite3.connect(file, isolation_level=None)
    migrate(connection, to=version)
    assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    connection.close()
    store = await WatermarkDatabase.open(file)
    assert (await store.put("kev", update(1))).created
    await store.close()


async def test_watermarks_of_an_earlier_schema_are_kept(file: Path) -> None:
    """What was stored before there were leases and ledgers reads as it did, and has none."""
    connection = sqlite3.connect(file, isolation_level=None)
    migrate(connection, to=2)
    connection.execute(
        "INSERT INTO history (version, source_id, at, action, status, timestamp, to_timestamp) "
        "VALUES (7, 'kev', 0, 'put', 'running', 0, 5)"
    )
    connection.execute(
        "INSERT INTO watermarks VALUES ('kev', 7, 5, 9, 'running', NULL, 3, 'run-1')"
    )
    connection.close()
    store = await WatermarkDatabase.open(file)
    read = await store.get("kev")
    assert read is not None
    assert dict(read) == {
        "source_id": "kev", "last_successful_timestamp": "1970-01-01T00:00:00.000005+00:00",
        "last_run_timestamp": "1970-01-01T00:00:00.000009+00:00", "status": "running",
        "error_message": None, "records_collected": 3, "run_id": "run-1",
    }  # fmt: skip
    assert read.etag == '"7"'
    [change] = (await store.history("kev")).changes
    assert (change.version, change.ledger) == (7, None)
    assert len((await store.page(stale=True)).watermarks) == 1
    written = await store.put("kev", update(1, lease_seconds=0.000001, ledger={"pages": 2}))
    assert await store.get("kev") == written.watermark
    await store.close()


def test_migration_that_fails_leaves_the_version_before(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration is one transaction: half of one is never left behind."""
    open_database(file).close()
    scripts = [*migrations(), "CREATE TABLE half (a);\nCREATE TABLE half (a);\n"]
    monkeypatch.setattr(database, "migrations", lambda: scripts)
    with pytest.raises(ConfigurationError, match="half"):
        open_database(file)
    monkeypatch.undo()
    connection = open_database(file)
    assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'half'").fetchall() == []
    connection.close()


async def test_new_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    """Services that start together on a file which does not exist all start."""
    for turn in range(10):
        file = tmp_path / f"{turn}.db"
        opening = (asyncio.to_thread(open_database, file) for _ in range(6))
        for connection in await asyncio.gather(*opening):
            assert connection.execute("PRAGMA user_version").fetchone() == (len(migrations()),)
            connection.close()


async def test_two_services_share_a_file(file: Path) -> None:
    """Each sees at once what the other acknowledged, and one version has one winner of both."""
    one, two = embedded_service(file), embedded_service(file)
    async with one as a, two as b, calling(a) as call_a, calling(b) as call_b:
        etag = (await call_a("PUT", path("kev"), success("2024-01-01T00:00:00Z"))).etag
        for _ in range(5):
            assert (await call_b("GET", path("kev"))).etag == etag
            answers = await asyncio.gather(
                *(
                    call("PUT", path("kev"), success("2024-01-02T00:00:00Z"),
                         headers={"If-Match": etag})
                    for call in (call_a, call_b)
                    for _ in range(4)
                )
            )  # fmt: skip
            assert sorted(answer.status for answer in answers) == [200] + [412] * 7
            etag = next(answer.etag for answer in answers if answer.status == 200)


async def test_locked_database_is_503_and_unhealthy(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program's lock refuses writes and health, never reads, and passes with the lock."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0.05)
    async with embedded_service(file) as address, calling(address) as call:
        await call("PUT", path("kev"), success("2024-01-01T00:00:00Z"))
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        put = await call("PUT", path("kev"), success("2024-01-02T00:00:00Z"))
        health = await call("GET", "/health")
        read = await call("GET", path("kev"))
        other.execute("ROLLBACK")
        other.close()
        assert (put.status, put.json["field"]) == (503, None)
        assert "locked" in put.json["error"]
        assert (health.status, health.text) == (503, '{"status":"unhealthy"}')
        assert read.json["last_successful_timestamp"] == "2024-01-01T00:00:00+00:00"
        assert (await call("GET", "/health")).status == 200


async def test_short_lock_is_waited_for(file: Path, store: WatermarkDatabase) -> None:
    """Another program's lock delays a write and stops nothing else; then the write is stored."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    write = asyncio.create_task(store.put("kev", update(1)))
    for _ in range(50):
        await asyncio.sleep(0)  # The loop is free: reads are answered meanwhile.
        assert await store.get("kev") is None
    assert not write.done()
    other.execute("ROLLBACK")
    other.close()
    assert (await asyncio.wait_for(write, 5)).created


async def test_full_disk_is_503_and_passes(file: Path) -> None:
    """Where nothing more fits, writes fail and reads go on, until there is room again."""
    store = await WatermarkDatabase.open(file)
    connection = connection_of(store)
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    big = update(1, status=WatermarkStatus.FAILED, error_message="x" * 16_000)
    with pytest.raises(DatabaseError, match="full"):
        await store.put("kev", big)
    assert await store.get("kev") is None
    connection.execute("PRAGMA max_page_count = 100000")
    assert (await store.put("kev", big)).created
    await store.close()


async def test_fault_of_the_database_has_one_traceback_until_it_is_over(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk is not filled by a traceback for each of the writes that it refuses."""
    store = await WatermarkDatabase.open(file)
    connection = connection_of(store)
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    big = update(1, status=WatermarkStatus.FAILED, error_message="x" * 16_000)
    for name in ("kev", "nvd"):
        connection.execute(f"PRAGMA max_page_count = {pages}")
        for _ in range(3):
            with pytest.raises(DatabaseError, match="full"):
                await store.put(name, big)
        connection.execute("PRAGMA max_page_count = 100000")
        await store.put(name, big)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    await store.close()
    assert len([each for each in caplog.records if each.exc_info]) == 2


async def test_file_replaced_under_the_service_is_unhealthy(file: Path) -> None:
    """What would be written to a file that is no longer there is refused, not acknowledged."""
    async with embedded_service(file) as address, calling(address) as call:
        os.rename(file, f"{file}.moved")
        put = await call("PUT", path("kev"), success("2024-01-01T00:00:00Z"))
        assert put.status == 503
        assert "moved or replaced" in put.json["error"]
        assert (await call("GET", "/health")).status == 503
        os.rename(f"{file}.moved", file)
        assert (await call("GET", "/health")).status == 200


@pytest.mark.parametrize("ending", ["-wal", "-shm"])
async def test_deleted_log_is_unhealthy_and_loses_nothing(file: Path, ending: str) -> None:
    """Without its log or index the service takes no write; what it acknowledged is in the file."""
    async with embedded_service(file) as address, calling(address) as call:
        assert (await call("PUT", path("kev"), success("2024-01-01T00:00:00Z"))).status == 201
        os.remove(f"{file}{ending}")
        put = await call("PUT", path("kev"), success("2024-01-02T00:00:00Z"))
        assert put.status == 503
        assert f"{ending} was deleted" in put.json["error"]
        assert (await call("GET", "/health")).status == 503
    if ending == "-wal":
        async with embedded_service(file) as address, calling(address) as call:
            kept = await call("GET", path("kev"))
            assert kept.json["last_successful_timestamp"] == "2024-01-01T00:00:00+00:00"


@pytest.mark.parametrize("starts_the_log_again", [False, True])
async def test_backup_copied_over_the_file_is_unhealthy(
    file: Path, tmp_path: Path, starts_the_log_again: bool
) -> None:
    """A backup that is copied over the running service's file is seen before the next write."""
    async with embedded_service(file) as address, calling(address) as call:
        assert (await call("PUT", path("kev"), success("2024-01-01T00:00:00Z"))).status == 201
    backup = tmp_path / "backup.db"
    shutil.copyfile(file, backup)
    async with embedded_service(file) as address, calling(address) as call:
        if starts_the_log_again:
            assert (await call("GET", "/health")).status == 200
            external = sqlite3.connect(file)
            external.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            external.close()
        assert (await call("PUT", path("kev"), success("2024-01-02T00:00:00Z"))).status == 200
        shutil.copyfile(backup, file)
        put = await call("PUT", path("kev"), success("2024-01-03T00:00:00Z"))
        assert put.status == 503
        assert "written over" in put.json["error"]
        assert (await call("GET", "/health")).status == 503


@pytest.mark.slow
async def test_checkpoints_of_two_services_are_no_fault(file: Path) -> None:
    """Two services over one file write past several checkpoints, and take each other for none."""
    async with (
        embedded_service(file) as first,
        embedded_service(file) as second,
        calling(first) as one,
        calling(second) as two,
    ):
        ledger = {"text": "x" * 15_000}
        for number in range(400):
            for call, source_id in ((one, "a"), (two, "b")):
                body = success(f"2024-01-01T00:{number // 60:02}:{number % 60:02}Z", ledger=ledger)
                assert (await call("PUT", path(source_id), body)).status in (200, 201)
        external = sqlite3.connect(file)
        external.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        external.close()
        for call, source_id in ((one, "a"), (two, "b")):
            assert (
                await call("PUT", path(source_id), success("2025-01-01T00:00:00Z"))
            ).status == 200


async def test_damaged_database_is_503(store: WatermarkDatabase) -> None:
    """A table that cannot be read is an outage: never a missing watermark."""
    connection_of(store).execute("DROP TABLE watermarks")
    with pytest.raises(DatabaseError, match="could not be read"):
        await store.get("kev")
    with pytest.raises(DatabaseError, match="could not be read"):
        await store.page()
    with pytest.raises(DatabaseError):
        await store.check()


async def test_commits_are_synced(store: WatermarkDatabase) -> None:
    """The log is synced at each commit, as an acknowledged write must outlive the power."""
    connection = connection_of(store)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def foreign(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE theirs (a)")
    connection.close()


def newer(file: Path) -> None:
    connection = open_database(file)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: file.write_bytes(b"no database" * 100), "file is not a database"),
        (lambda file: file.mkdir(), "unable to open database file"),
        (foreign, "another program"),
        (newer, "schema version 99"),
    ],
)
def test_file_that_cannot_be_ours_is_refused(
    file: Path, make: Callable[[Path], object], says: str
) -> None:
    """The file is named in one sentence, and what is in it stays as it was."""
    make(file)
    before = file.read_bytes() if file.is_file() else b""
    with pytest.raises(ConfigurationError) as caught:
        open_database(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (file.read_bytes() if file.is_file() else b"") == before


def test_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """A misspelt directory is not created."""
    with pytest.raises(ConfigurationError, match="directory"):
        open_database(tmp_path / "missing" / "watermarks.db")
    assert list(tmp_path.iterdir()) == []


def test_read_only_file_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be written to is refused at the start, not at the first write."""
    open_database(file).close()
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def read_only(path: Path, **options: Any) -> sqlite3.Connection:
        return connect(f"file:{path}?mode=ro", uri=True, **options)

    # Permissions would not stop a test that runs as root.
    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(ConfigurationError, match="readonly"):
        open_database(file)


async def test_store_answers_with_the_models_of_the_contract(any_store: WatermarkDatabase) -> None:
    """A read watermark is the written one, tag and all."""
    stored = await any_store.put("kev", update(1, run_id="r", records_collected=2), actor="x")
    read = await any_store.get("kev")
    assert isinstance(read, Watermark)
    assert read == stored.watermark
    assert read.etag == stored.watermark.etag == '"1"'


async def test_writer_that_died_is_an_outage(store: WatermarkDatabase) -> None:
    """Where nothing applies changes any more, they fail at once, and so does the health check."""
    writer_of(store)._task.cancel()
    await asyncio.wait([writer_of(store)._task])
    for write in (store.put("kev", update(1)), store.check()):
        with pytest.raises(DatabaseError, match="closed"):
            await asyncio.wait_for(write, 5)
    writer_of(store)._task = asyncio.create_task(writer_of(store)._work())
