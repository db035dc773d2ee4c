"""A file as the storage: what the contract of the client, which it keeps too, does not say."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ladon_storage import ConfigurationError, WatermarkConflictError, embedded
from ladon_storage.client.mock import MockStorageClient
from ladon_storage.collection.run import run
from ladon_storage.connect import check_health, new_client, settings_by_hand, shared_client
from ladon_storage.embedded import EmbeddedStorage
from ladon_storage.errors import DatabaseError, StorageResponseError, StorageUnhealthyError
from ladon_storage.server import retention
from ladon_storage.server.retention import Retention
from ladon_storage.server.store import WatermarkDatabase
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.clock import FakeClock
from ladon_storage.testing.doubles import MemorySink, ScriptedSource, at, record
from tests.service import embedded_service

JANUARY = datetime(2024, 1, 1, 12, tzinfo=UTC)

COUNT = """
import asyncio, sys
from datetime import UTC, datetime, timedelta
from ladon_storage.embedded import EmbeddedStorage
from ladon_storage.errors import WatermarkConflictError

async def main():
    async with EmbeddedStorage(sys.argv[1]) as storage:
        done = 0
        while done < 25:
            read = await storage.get_watermark("kev")
            count = read.records_collected if read else 0
            fence = {"if_match": read.etag} if read else {"if_none_match": True}
            try:
                await storage.update_watermark(
                    "kev", datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=count),
                    records_collected=count + 1, **fence)
            except WatermarkConflictError:
                continue
            done += 1

asyncio.run(main())
"""


async def test_processes_of_one_host_lose_no_update(tmp_path: Path) -> None:
    """Compare-and-set holds between processes that open the same new file at once."""
    file = tmp_path / "ladon.db"
    counting = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", COUNT, str(file))
        for _ in range(3)
    ]
    async with asyncio.timeout(60):
        assert [await each.wait() for each in counting] == [0, 0, 0]
    async with EmbeddedStorage(file) as storage:
        stored = await storage.get_watermark("kev")
        history = await storage.watermark_history("kev", limit=100)
    assert stored
    assert stored.records_collected == 75
    assert history
    assert len(history.changes) == 75


async def test_file_is_served_later(tmp_path: Path) -> None:
    """The service has what a run stored, with its history and its version; and the other way."""
    file = tmp_path / "ladon.db"
    async with EmbeddedStorage(file) as storage:
        written = await storage.update_watermark("kev", JANUARY, run_id="one", ledger={"pages": 2})
    async with (
        embedded_service(file) as address,
        new_client(StorageSettings(url=address)) as client,
    ):
        read = await client.get_watermark("kev")
        assert read == written
        assert read.etag == written.etag
        moved = await client.update_watermark(
            "kev", JANUARY + timedelta(days=1), if_match=read.etag
        )
        async with EmbeddedStorage(file) as beside:
            assert await beside.get_watermark("kev") == moved
            history = await beside.watermark_history("kev")
    assert history
    assert [change.run_id for change in history.changes] == [None, "one"]
    assert history.changes[1].ledger == {"pages": 2}


async def test_run_collects_with_a_file(tmp_path: Path) -> None:
    """The engine takes a file for its storage: leases, watermark, ledger."""
    source = ScriptedSource([[record("1", 1)]], [[record("2", 2)]])
    sink = MemorySink()
    async with EmbeddedStorage(tmp_path / "ladon.db") as storage:
        await run(source, sink, storage, run_id="one")
        report = await run(source, sink, storage, run_id="two")
        stored = await storage.get_watermark("feed")
    assert (report.watermark_before, report.watermark_after) == (at(1), at(2))
    assert stored
    assert (stored.status, stored.run_id) == ("success", "two")
    assert stored.ledger
    assert stored.ledger["records_new"] == 1


async def test_event_loops_and_threads_share_one_client(tmp_path: Path) -> None:
    """Prefect runs tasks on loops of their own, which end: the client and its file go on."""
    client = shared_client(StorageSettings(url=f"sqlite:///{tmp_path}/ladon.db"))
    assert isinstance(client, EmbeddedStorage)

    def write(number: int) -> None:
        asyncio.run(client.update_watermark(f"source-{number}", JANUARY))

    with ThreadPoolExecutor(4) as threads:
        await asyncio.gather(
            *(asyncio.wrap_future(threads.submit(write, number)) for number in range(16))
        )
    for number in range(16):
        assert await client.get_watermark(f"source-{number}")
    await client.close()


async def test_close_leaves_one_whole_file(tmp_path: Path) -> None:
    """The last client that closes leaves the file alone, without a log beside it or a thread."""
    file = tmp_path / "ladon.db"
    one, another = EmbeddedStorage(file), EmbeddedStorage(file)
    await one.update_watermark("kev", JANUARY)
    await another.update_watermark("nvd", JANUARY)
    await one.close()
    await one.close()
    assert await another.get_watermark("kev")
    await another.close()
    assert os.listdir(tmp_path) == ["ladon.db"]
    assert file not in {path for _, path, _ in embedded._stores}


@pytest.mark.usefixtures("small_heap")
async def test_forgotten_client_lets_its_file_go(tmp_path: Path) -> None:
    """A client that is dropped without a close keeps no file open."""
    client = EmbeddedStorage(tmp_path / "ladon.db")
    await client.update_watermark("kev", JANUARY)
    del client
    gc.collect()
    assert tmp_path / "ladon.db" not in {path for _, path, _ in embedded._stores}


def test_end_of_the_process_closes_the_file(tmp_path: Path) -> None:
    """A program that closes nothing leaves one whole file, and ends without a complaint."""
    code = (
        "import asyncio, datetime\n"
        "from ladon_storage.connect import shared_client\n"
        "from ladon_storage.settings import StorageSettings\n"
        "client = shared_client(StorageSettings(url='sqlite:///ladon.db'))\n"
        "asyncio.run(client.update_watermark('kev', datetime.datetime(2024, 1, 1)))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.stderr == ""
    assert [each.name for each in tmp_path.iterdir()] == ["ladon.db"]


def test_fork_opens_the_file_itself(tmp_path: Path) -> None:
    """A child of a process with an open file works on, and so does its parent."""
    code = (
        "import asyncio, datetime, os, sys, warnings\n"
        "from ladon_storage.embedded import EmbeddedStorage\n"
        "storage = EmbeddedStorage('ladon.db')\n"
        "at = datetime.datetime(2024, 1, 1)\n"
        "asyncio.run(storage.update_watermark('parent', at))\n"
        "warnings.simplefilter('ignore')\n"
        "child = os.fork()\n"
        "asyncio.run(storage.update_watermark('child' if not child else 'parent', at))\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    assert asyncio.run(storage.get_watermark('child'))\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


async def test_change_is_logged_outside_of_the_run_that_opened_the_file(tmp_path: Path) -> None:
    """A line of a later run does not go to the run in whose context the file was opened."""
    current: ContextVar[str] = ContextVar("current", default="none")
    seen: list[str] = []

    class Noting(logging.Handler):
        """Note in which context a record is logged."""

        def emit(self, record: logging.LogRecord) -> None:
            seen.append(current.get())

    handler = Noting()
    package = logging.getLogger("ladon_storage.server.store")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        async with EmbeddedStorage(tmp_path / "ladon.db") as storage:
            current.set("first")
            await storage.update_watermark("kev", JANUARY)
    finally:
        package.removeHandler(handler)
        package.setLevel(logging.NOTSET)
    assert seen == ["none"]


async def test_cancelled_caller_does_not_take_the_file_from_others(tmp_path: Path) -> None:
    """The file opens for all who wait for it, whichever of them gives up."""
    async with EmbeddedStorage(tmp_path / "ladon.db") as storage:
        first = asyncio.create_task(storage.get_watermark("kev"))
        second = asyncio.create_task(storage.get_watermark("kev"))
        await asyncio.sleep(0)
        first.cancel()
        assert await second is None
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_close_waits_for_the_calls_that_have_begun(tmp_path: Path) -> None:
    """A client that is closed while others of its calls run loses none of them, nor hangs."""
    storage = EmbeddedStorage(tmp_path / "ladon.db")
    for turn in range(5):
        writes = [
            asyncio.create_task(storage.update_watermark(f"source-{number}", JANUARY))
            for number in range(8)
        ]
        await asyncio.sleep(0)  # they have begun
        await storage.close()
        assert len(await asyncio.gather(*writes)) == 8, turn
        assert await storage.get_watermark("source-7")
    await storage.close()
    assert os.listdir(tmp_path) == ["ladon.db"]


async def test_file_that_cannot_be_is_a_setting_that_is_wrong(tmp_path: Path) -> None:
    """A missing folder and another program's file are one sentence each, and may be mended."""
    missing = EmbeddedStorage(tmp_path / "no" / "ladon.db")
    with pytest.raises(ConfigurationError, match=r"directory of database .* does not exist"):
        await missing.get_watermark("kev")
    (tmp_path / "no").mkdir()
    assert await missing.get_watermark("kev") is None
    await missing.close()
    (tmp_path / "text.db").write_text("this is no database" * 100)
    async with EmbeddedStorage(tmp_path / "text.db") as other:
        with pytest.raises(ConfigurationError, match="cannot be used"):
            await other.health_check()


async def test_file_that_was_replaced_fails_as_a_service_would(tmp_path: Path) -> None:
    """What would be lost is not acknowledged: a transient error, and an unhealthy storage."""
    file = tmp_path / "ladon.db"
    async with EmbeddedStorage(file) as storage:
        await storage.update_watermark("kev", JANUARY)
        file.rename(tmp_path / "moved.db")
        with pytest.raises(StorageResponseError, match="moved or replaced") as caught:
            await storage.update_watermark("kev", JANUARY)
        assert (caught.value.status, caught.value.transient) == (503, True)
        with pytest.raises(StorageUnhealthyError, match="unhealthy"):
            await storage.health_check()
    async with EmbeddedStorage(tmp_path / "moved.db", environment="staging") as moved:
        assert await moved.health_check() is True


@pytest.mark.parametrize(
    "url", ["sqlite:///ladon.db", "SQLITE:///ladon.db", " sqlite:///./ladon.db ", "absolute"]
)
async def test_address_of_a_file_is_a_storage(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings, blocks and the environment may name a file, relative or absolute."""
    monkeypatch.chdir(tmp_path)
    address = f"sqlite:///{tmp_path}/ladon.db" if url == "absolute" else url
    settings = StorageSettings.from_environment({"STORAGE_SERVICE_URL": address})
    assert settings.is_file
    assert settings.with_shared_circuit() is settings
    assert await check_health(settings) is True
    client = shared_client(settings)
    assert isinstance(client, EmbeddedStorage)
    assert client.path == tmp_path / "ladon.db"
    await client.close()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://", "sqlite:///", "sqlite:///.", "sqlite:///..", "sqlite:///:memory:",
        "sqlite:///a.db?mode=memory", "sqlite:///x/", "sqlite://host/a.db", "sqlite:a.db",
        "sqlite:///u:secret@h/a.db", "sqlite:///a\0.db", "file:///a.db", "ladon.db",
    ],
)  # fmt: skip
def test_address_that_names_no_file_is_refused(url: str) -> None:
    """What would be no file, or a file by mistake, is refused with the form of an address."""
    with pytest.raises(ConfigurationError, match=r"or like sqlite:///ladon\.db") as caught:
        StorageSettings.from_environment({"STORAGE_SERVICE_URL": url})
    assert "secret" not in str(caught.value)


def test_nothing_configured_is_a_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By hand, the working directory has the watermarks, and the log says so once."""
    monkeypatch.chdir(tmp_path)
    first, second = settings_by_hand({}), settings_by_hand({"ENVIRONMENT": ""})
    assert first == second == StorageSettings(url=f"sqlite:///{tmp_path}/ladon.db")
    [line] = caplog.messages
    assert str(tmp_path / "ladon.db") in line
    assert "STORAGE_SERVICE_URL" in line
    assert not (tmp_path / "ladon.db").exists()


@pytest.mark.parametrize(
    ("environ", "is_deployed"),
    [({"ENVIRONMENT": "production"}, False), ({"ENVIRONMENT": "staging"}, False), ({}, True)],
)
def test_missing_storage_fails_where_a_file_would_be_lost(
    environ: dict[str, str], is_deployed: bool
) -> None:
    """A stated environment and a deployment's run need a storage that outlives their folder."""
    with pytest.raises(ConfigurationError, match="set STORAGE_SERVICE_URL"):
        settings_by_hand(environ, is_deployed=is_deployed)


def test_development_without_a_service_stays_in_memory() -> None:
    """What asks for it by name keeps nothing, as before."""
    settings = settings_by_hand({"ENVIRONMENT": "development"})
    assert isinstance(new_client(settings), MockStorageClient)


async def test_fence_holds_between_clients_of_a_process(tmp_path: Path) -> None:
    """Two clients of one file are two writers."""
    file = tmp_path / "ladon.db"
    async with EmbeddedStorage(file) as one, EmbeddedStorage(file) as another:
        first = await one.update_watermark("kev", JANUARY, if_none_match=True)
        await another.update_watermark("kev", JANUARY, if_match=first.etag)
        with pytest.raises(WatermarkConflictError) as caught:
            await one.update_watermark("kev", JANUARY, if_match=first.etag)
    assert caught.value.status == 412


async def test_history_is_bounded_as_that_of_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of each so many changes deletes old lines; watermarks, and their lines, stay."""
    monkeypatch.setattr(embedded, "PRUNED_EVERY", 10)
    clock = FakeClock(JANUARY)
    async with EmbeddedStorage(tmp_path / "ladon.db", clock=clock.now) as storage:
        for number in range(19):
            await storage.update_watermark("kev" if number else "gone", JANUARY)
        clock.advance(timedelta(days=500).total_seconds())
        await storage.update_watermark("kev", JANUARY)
    async with EmbeddedStorage(tmp_path / "ladon.db", clock=clock.now) as storage:
        history = await storage.watermark_history("kev", limit=100)
        assert history
        assert len(history.changes) == 1
        assert await storage.get_watermark("gone")


async def test_source_keeps_as_many_lines_as_with_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that is collected often keeps its latest thousand lines, and another keeps its own.

    They are deleted by the writer of the change that is due, whichever source it is of.
    """
    monkeypatch.setattr(embedded, "PRUNED_EVERY", 1200)
    file, kept = tmp_path / "ladon.db", Retention().changes
    async with EmbeddedStorage(file) as storage:
        await storage.update_watermark("calm", JANUARY)
        # At once, which makes them a few commits.
        busy = [storage.update_watermark("busy", JANUARY) for _ in range(1198)]
        await asyncio.gather(*busy)
        await storage.update_watermark("calm", JANUARY)
    async with EmbeddedStorage(file) as storage:
        history = await storage.watermark_history("busy", limit=1000)
        assert history
        assert len(history.changes) == kept
        older = await storage.watermark_history("busy", before=history.changes[-1].version)
        assert older
        assert not older.changes
        calm = await storage.watermark_history("calm")
        assert calm
        assert len(calm.changes) == 2


async def test_run_deletes_some_lines_of_a_neglected_file_and_a_later_one_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run waits until years of history are gone."""
    monkeypatch.setattr(embedded, "PRUNED_EVERY", 20)
    monkeypatch.setattr(embedded, "PRUNED_BATCHES", 2)
    monkeypatch.setattr(retention, "BATCH", 5)
    clock = FakeClock(JANUARY)
    file = tmp_path / "ladon.db"

    async def write(changes: int) -> int:
        async with EmbeddedStorage(file, clock=clock.now) as storage:
            for _ in range(changes):
                await storage.update_watermark("kev", JANUARY)
        async with EmbeddedStorage(file, clock=clock.now) as storage:
            history = await storage.watermark_history("kev", limit=100)
            assert history
            return len(history.changes)

    assert await write(19) == 19
    clock.advance(timedelta(days=500).total_seconds())
    assert await write(1) == 20 - 10
    assert await write(20) == 10 + 20 - 9


async def test_history_that_cannot_be_shortened_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A write that is stored is acknowledged, whatever becomes of the old lines."""

    async def failing(*_: object, **__: object) -> int:
        raise DatabaseError("The database could not be read (disk I/O error); try again later.")

    monkeypatch.setattr(embedded, "PRUNED_EVERY", 1)
    monkeypatch.setattr(WatermarkDatabase, "prune", failing)
    async with EmbeddedStorage(tmp_path / "ladon.db") as storage:
        assert await storage.update_watermark("kev", JANUARY)
    assert "disk I/O error" in caplog.text
