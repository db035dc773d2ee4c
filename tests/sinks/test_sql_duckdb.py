"""A file of DuckDB, which one process has at a time."""

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ladon_storage.collection.protocols import Position
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.errors import SinkError
from ladon_storage.sinks import SqlSink
from ladon_storage.sinks.sql import duckdb as duckdb_sink
from ladon_storage.sinks.sql import duckdb_file
from ladon_storage.testing.doubles import at, record

_HOLD = """
import sys, duckdb
with duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "reader") as connection:
    print("open", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.duckdb"


def sink(path: Path, keep: Any = "latest") -> SqlSink:
    return SqlSink(f"duckdb:///{path}", keep=keep)


async def write(target: SqlSink, *records: Record) -> int:
    async with target:
        return (await target.write("feed", Page(list(records)))).written


def ask(path: Path, statement: str) -> list[Any]:
    with duckdb.connect(str(path)) as connection:
        return connection.execute(statement).fetchall()


@contextmanager
def held(path: Path, how: str = "writer") -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the file, until a line is written to it."""
    command = [sys.executable, "-c", _HOLD, str(path), how]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        yield other
        other.communicate("\n" if other.poll() is None else None)


def opened_elsewhere(path: Path) -> bool:
    """Return whether another process can open the file."""
    command = [sys.executable, "-c", "import duckdb, sys; duckdb.connect(sys.argv[1])", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_table_has_the_columns_that_were_promised(path: Path, keep: str) -> None:
    """What the documentation names is there, of types that queries can use."""
    await write(sink(path, keep), record("1", 1))

    columns = dict(
        ask(path, "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name='records'")
    )
    instants = ["record_timestamp", "collected_at", "removed_at"]
    instants += ["replaced_at"] if keep == "all" else []
    texts = ["source_id", "record_id", "version", "payload"]
    assert columns == dict.fromkeys(texts, "VARCHAR") | dict.fromkeys(
        instants, "TIMESTAMP WITH TIME ZONE"
    )
    assert ask(path, "SELECT payload ->> '$.value' FROM records") == [("a",)]


async def test_first_and_last_instants_are_stored(path: Path) -> None:
    """A time of the year 1 or 9999 is what it was, whatever the zone of the machine."""
    ends = [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)]
    async with sink(path) as target:
        page = Page([Record.of(str(n), each, {}) for n, each in enumerate(ends)])
        await target.write("feed", page, position=Position(timestamp=ends[0]))
        assert await target.position("feed") == Position(timestamp=ends[0])
        assert await target.lacking("feed", {"0": ends[0], "1": ends[1]}) == set()


async def test_times_without_a_zone_are_in_utc_wherever_the_machine_is(path: Path) -> None:
    """The owner may have made another type of a column; the zone of the process does not count."""
    await write(sink(path), record("1", 1))
    columns = "* REPLACE (record_timestamp AT TIME ZONE 'UTC' AS record_timestamp)"
    ask(path, f"CREATE TABLE made AS SELECT {columns} FROM records")
    ask(path, "DROP TABLE records")
    ask(path, "ALTER TABLE made ADD PRIMARY KEY (source_id, record_id)")
    for name in ("version", "record_timestamp", "payload", "collected_at"):
        ask(path, f"ALTER TABLE made ALTER {name} SET NOT NULL")
    ask(path, "ALTER TABLE made RENAME TO records")
    with duckdb.connect(str(path)) as connection:
        connection.execute("SET GLOBAL TimeZone = 'America/New_York'")
        assert await write(sink(path), record("2", 2)) == 1
        async with sink(path) as target:
            assert await target.lacking("feed", {"1": at(1), "2": at(2)}) == set()
            assert await target.lacking("feed", {"1": at(2), "2": at(3)}) == {"1", "2"}
    times = [each.replace(tzinfo=None) for each in (at(1), at(2))]
    assert ask(path, "SELECT record_timestamp FROM records ORDER BY 1") == [(t,) for t in times]


async def test_payload_that_duckdb_would_refuse_as_json_is_stored(path: Path) -> None:
    """What is delivered is stored: a lone surrogate, a NUL, a number of any size."""
    payload = r'{"a":"\ud800","b":"\u0000","c":1e999,"d":123456789012345678901234567890}'
    assert await write(sink(path), Record("1", at(1), payload, "v")) == 1

    assert ask(path, "SELECT payload FROM records") == [(payload,)]


async def test_page_is_stored_whole_or_not_at_all(path: Path, monkeypatch: Any) -> None:
    """Records, rejects and position are one transaction, and the sink goes on after it failed."""
    page = Page([record("1", 1), record("2", 2)], [Reject.of("no id", 1)])
    position = Position(timestamp=at(2))
    for table in ('"records_quarantine"', "ladon_positions"):
        async with sink(path) as target:
            with monkeypatch.context() as patch:
                _fail_at(patch, f"INSERT INTO {table}")
                with pytest.raises(SinkError, match="could not store a page"):
                    await target.write("feed", page, run_id="R", position=position)
            assert await target.position("feed") is None
            assert ask(path, "FROM records UNION ALL BY NAME FROM records_quarantine") == []
    async with sink(path) as target:
        assert (await target.write("feed", page, run_id="R", position=position)).written == 2


def _fail_at(patch: Any, statement: str) -> None:
    execute, executemany = duckdb_file.DuckdbCursor.execute, duckdb_file.DuckdbCursor.executemany

    def failing(usual: Callable[..., None]) -> Callable[..., None]:
        def work(self: Any, text: str, *rest: Any) -> None:
            if text.lstrip().startswith(statement):
                raise duckdb.IOException("IO Error: no space left on the device")
            usual(self, text, *rest)

        return work

    patch.setattr(duckdb_file.DuckdbCursor, "execute", failing(execute))
    patch.setattr(duckdb_file.DuckdbCursor, "executemany", failing(executemany))


@pytest.mark.parametrize("keep", ["latest", "all"])
@pytest.mark.parametrize("place", [0, 4, 8, 9])
async def test_known_row_in_any_statement_of_a_page_is_known(
    path: Path, keep: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB takes nothing more in a transaction that has met it, so the page is compared."""
    monkeypatch.setattr(duckdb_sink, "_ROWS", 3)
    known = record("known", 1)
    page = [record(str(number), 1) for number in range(9)]
    page.insert(place, known)
    target = sink(path, keep)
    async with target:
        assert (await target.write("feed", Page([known]))).written == 1
        assert (await target.write("feed", Page(page))).written == 9
        assert (await target.write("other", Page(page))).written == 10
        assert (await target.write("feed", Page(page))).written == 0
    assert ask(path, "SELECT count(*) FROM records") == [(20,)]


async def test_commit_that_fails_stores_nothing_and_the_sink_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full in the middle leaves no half of a page, and no transaction open."""
    end = duckdb_file.DuckdbFile.end

    def fail(self: Any, statement: str) -> None:
        end(self, statement if statement == "ROLLBACK" else "SELECT error('full')")

    async with sink(path) as target:
        await target.write("feed", Page([record("1", 1)]))
        with monkeypatch.context() as patch:
            patch.setattr(duckdb_file.DuckdbFile, "end", fail)
            with pytest.raises(SinkError, match="could not store a page"):
                await target.write("feed", Page([record("2", 2)]))
        assert (await target.write("feed", Page([record("1", 1), record("2", 2)]))).written == 1


@pytest.mark.parametrize(
    ("said", "step"),
    [
        ("No space left on device", "Free some disk space, and run again"),
        ("File too large", "Raise the limit of a file's size"),
    ],
)
async def test_disk_that_is_full_at_a_commit_is_the_next_step(
    path: Path, monkeypatch: pytest.MonkeyPatch, said: str, step: str
) -> None:
    """DuckDB reports it as a failed transaction, and no other program was in the way."""
    end = duckdb_file.DuckdbFile.end

    def fail(self: Any, statement: str) -> None:
        end(self, "ROLLBACK")
        if statement == "COMMIT":
            raise duckdb.TransactionException(
                "TransactionContext Error: Failed to commit: Could not write file "
                f'"records.duckdb.wal": {said}'
            )

    monkeypatch.setattr(duckdb_file.DuckdbFile, "end", fail)
    with pytest.raises(SinkError, match=step):
        await write(sink(path), record("1", 1))


@pytest.mark.parametrize("how", ["writer", "reader"])
async def test_file_that_another_process_holds_for_too_long_is_a_clear_error(
    path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the file, the process, the limit, and what to do; nothing is lost by it."""
    await write(sink(path), record("1", 1))
    monkeypatch.setattr(duckdb_file, "WAIT_SECONDS", 0.1)
    with held(path, how) as other:
        message = rf"{path} .* open in process {other.pid}, .* within 0.1 seconds.*Close it there"
        with pytest.raises(SinkError, match=message):
            await write(sink(path), record("2", 2))

    assert await write(sink(path), record("1", 1), record("2", 2)) == 1


async def test_file_that_another_process_holds_is_waited_for(path: Path) -> None:
    """A run goes on once the other process closes the file, and its event loop never stops."""
    await write(sink(path), record("1", 1))
    with held(path) as other:
        writing = asyncio.create_task(write(sink(path), record("2", 2)))
        while not any(each.name.startswith("ladon-sink") for each in threading.enumerate()):
            await asyncio.sleep(0)
        assert not writing.done()
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
        assert await writing == 1


async def test_idle_sink_leaves_its_file_to_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a run waits for its source, another process may write, and the run goes on after it."""
    monkeypatch.setattr(duckdb_file, "IDLE_SECONDS", 0.01)
    async with sink(path) as target:
        await target.write("feed", Page([record("1", 1)]))
        for _ in range(50):
            if opened_elsewhere(path):
                break
        else:
            pytest.fail("the file was never closed")
        assert (await target.write("feed", Page([record("1", 1), record("2", 2)]))).written == 1


async def test_busy_sink_leaves_its_file_to_others_after_its_turn(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of hours, which is never idle, does not shut others out; nothing is lost between."""
    monkeypatch.setattr(duckdb_file, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(duckdb_file, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(duckdb_file, "IDLE_SECONDS", 1000.0)
    async with sink(path) as target:
        for number in range(3):
            assert (await target.write("feed", Page([record(str(number), number)]))).written == 1
            assert opened_elsewhere(path)
    assert len(ask(path, "FROM records")) == 3


TAKEN_AWAY: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: path.unlink(),
    "moved": lambda path: path.rename(path.with_name("other.db")),
    "replaced": lambda path: shutil.move(shutil.copy(path, path.with_name("other.db")), path),
}


LEFT: dict[str, list[str]] = {
    "removed": [],
    "moved": ["other.db"],
    "replaced": ["records.duckdb"],
}


def files(path: Path) -> list[Path]:
    """Return the databases of a folder, in their order."""
    return sorted(each for each in path.parent.iterdir() if each.suffix != ".wal")


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("how", TAKEN_AWAY)
async def test_file_that_is_taken_away_during_a_run_fails_it(
    path: Path, how: str, is_closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be written to a file that nobody finds again is not durable; none is made anew."""
    monkeypatch.setattr(duckdb_file, "TURN_SECONDS", 0.0 if is_closed else 1000.0)
    monkeypatch.setattr(duckdb_file, "PAUSE_SECONDS", 0.0)
    async with sink(path) as target:
        await target.write("feed", Page([record("1", 1), record("2", 2)]))
        TAKEN_AWAY[how](path)
        with pytest.raises(SinkError, match="moved, removed or replaced while a run"):
            await target.write("feed", Page([record("3", 3)]))
    assert [each.name for each in files(path)] == LEFT[how]


async def test_database_of_sqlite_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where DuckDB cannot load its extension for such files, the next step is said."""

    def connect(_: str) -> None:
        raise duckdb.IOException('IO Error: Failed to download extension "sqlite_scanner"')

    monkeypatch.setattr(duckdb, "connect", connect)
    with pytest.raises(SinkError, match=r"is a database of SQLite\. Write its address as sqlite"):
        await write(sink(path), record("1", 1))


async def test_database_that_an_extension_reads_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where DuckDB has loaded the extension, nothing is made in the file."""
    monkeypatch.setattr(duckdb_file, "_KIND", "SELECT 'sqlite'")
    with pytest.raises(SinkError, match="is a database of SQLite"):
        await write(sink(path), record("1", 1))
    assert ask(path, "SELECT * FROM duckdb_tables()") == []


async def test_file_that_is_no_database_is_refused(path: Path) -> None:
    """A file that happens to be there is not overwritten."""
    text = "this is a text, and long enough to be looked at as a header" * 200
    await asyncio.to_thread(path.write_text, text)

    with pytest.raises(
        SinkError, match=r"could not be opened: .*not a valid DuckDB.*Check the file"
    ):
        await write(sink(path), record("1", 1))
    assert await asyncio.to_thread(path.read_text) == text


async def test_missing_folder_is_named(tmp_path: Path) -> None:
    """The sink makes a file, and no folder that may be a mistake in the address."""
    with pytest.raises(SinkError, match=rf"folder {tmp_path}/nowhere does not exist\. Create it"):
        await write(sink(tmp_path / "nowhere" / "records.duckdb"), record("1", 1))


async def test_address_by_another_name_is_the_same_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link and the file are one database; two of them in one process would destroy it."""
    monkeypatch.setattr(duckdb_file, "IDLE_SECONDS", 1000.0)
    link = path.with_name("link.duckdb")
    link.symlink_to(path)
    async with sink(path) as one, sink(link) as other:
        await one.write("feed", Page([record("1", 1)]))
        assert (await other.write("feed", Page([record("1", 1), record("2", 2)]))).written == 1
        assert not opened_elsewhere(path)
    assert opened_elsewhere(path)


async def test_closed_sink_leaves_no_thread_and_no_lock(path: Path) -> None:
    """The file is whole and free when the last sink of the process is left."""
    threads = set(threading.enumerate())
    await write(sink(path), record("1", 1))

    for thread in set(threading.enumerate()) - threads:
        thread.join(5)
        assert not thread.is_alive()
    assert opened_elsewhere(path)
    assert not path.with_name(f"{path.name}.wal").exists()


async def test_process_that_was_forked_under_an_open_sink_is_refused(path: Path) -> None:
    """It would share the other's memory of the file, and not its lock."""
    async with sink(path) as target:
        await target.write("feed", Page([record("1", 1)]))
        [opened] = duckdb_file._files.values()
        opened._process = -1  # as a child sees it, without forking threads in a test
        with pytest.raises(SinkError, match=r"open when this process was forked\. Start"):
            await target.write("feed", Page([record("2", 2)]))
        opened._process = multiprocessing.current_process().pid or 0
        assert (await target.write("feed", Page([record("2", 2)]))).written == 1


async def test_deletion_is_noted_though_its_process_is_killed(path: Path) -> None:
    """The triggers are in the log as the rows are."""
    await write(sink(path), record("1", 1), record("2", 2))
    delete = (
        "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]);"
        "c.execute(\"DELETE FROM records WHERE record_id = '1'\"); os.kill(os.getpid(), 9)"
    )
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", delete, str(path))
    assert await killed.wait() == -9

    assert await write(sink(path), record("1", 1), record("2", 2)) == 0
    assert await write(sink(path), record("1", 3, "b")) == 1


async def test_trigger_that_forgets_is_made_again(path: Path) -> None:
    """A record that was removed, and then deleted, is stored when it is listed again."""
    await write(sink(path), record("1", 1), record("2", 2))
    ask(path, "DELETE FROM records WHERE record_id = '1'")
    ask(path, "DROP TRIGGER ladon_forget_records ON records")
    async with sink(path) as target:
        assert (await target.write("feed", Page([record("1", 2, "b")]))).written == 1
        assert await target.mark_removed("feed", {"2"}, 1) == 1
    ask(path, "DELETE FROM records WHERE record_id = '1'")

    assert await write(sink(path), record("1", 1)) == 1


async def test_other_connection_of_the_process_is_no_hindrance(path: Path) -> None:
    """A flow may read its records by DuckDB while it collects."""
    async with sink(path) as target:
        await target.write("feed", Page([record("1", 1)]))
        with duckdb.connect(str(path)) as connection:
            assert connection.execute("SELECT count(*) FROM records").fetchone() == (1,)
            assert (await target.write("feed", Page([record("2", 2)]))).written == 1
            assert connection.execute("SELECT count(*) FROM records").fetchone() == (2,)


async def test_row_that_another_connection_changes_at_once_is_an_error_with_a_next_step(
    path: Path,
) -> None:
    """Neither change is lost unnoticed: the run that follows stores it."""
    await write(sink(path), record("1", 1))
    with duckdb.connect(str(path)) as connection:
        async with sink(path) as target:
            connection.execute("BEGIN")
            connection.execute("UPDATE records SET payload = '{}' WHERE record_id = '1'")
            with pytest.raises(SinkError, match="Run again, as another program was in the way"):
                await target.write("feed", Page([record("1", 2, "b")]))
            connection.execute("COMMIT")
            assert (await target.write("feed", Page([record("1", 2, "b")]))).written == 1


async def test_rejects_and_replacements_of_a_page_are_a_statement_each(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement for each row would take a millisecond for each."""
    statements: list[str] = []
    execute = duckdb_file.DuckdbCursor.execute

    def noted(self: Any, statement: str, *rest: Any) -> None:
        statements.append(statement.split()[0])
        execute(self, statement, *rest)

    ids = [str(n) for n in range(50)]
    async with sink(path, "all") as target:
        await target.write("feed", Page([record(each, 1) for each in ids]))
        monkeypatch.setattr(duckdb_file.DuckdbCursor, "execute", noted)
        rejects = [Reject.of("no id", n // 2) for n in range(50)]
        page = Page([record(each, 2, "b") for each in ids], rejects)
        assert (await target.write("feed", page, run_id="R")).written == 50
    assert (statements.count("INSERT"), statements.count("UPDATE")) == (2, 1)
    assert ask(path, "SELECT count(*) FROM records WHERE replaced_at IS NULL") == [(50,)]
    assert ask(path, "SELECT count(*) FROM records_quarantine") == [(25,)]


async def test_file_of_an_older_format_is_refused(path: Path) -> None:
    """A file that DuckDB 1 made can have no triggers: the error says so, and nothing is added."""
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{path}' AS made (STORAGE_VERSION 'v1.2.0')")
        connection.execute("CREATE TABLE made.other (a INTEGER)")
    with pytest.raises(SinkError, match=r"format v1\.2\.0\+ of DuckDB.* COPY FROM DATABASE"):
        await write(sink(path), record("1", 1))

    assert ask(path, "SELECT table_name FROM duckdb_tables()") == [("other",)]


async def test_first_page_is_seen_by_the_triggers_of_the_owner(path: Path) -> None:
    """Appended rows are inserted rows: triggers, defaults and constraints hold for them."""
    async with sink(path):
        pass
    ask(path, "CREATE TABLE seen (id VARCHAR)")
    ask(path, "ALTER TABLE records ADD COLUMN team VARCHAR DEFAULT 'blue'")
    ask(
        path,
        "CREATE TRIGGER note AFTER INSERT ON records REFERENCING NEW TABLE AS fresh "
        "FOR EACH STATEMENT INSERT INTO seen SELECT record_id FROM fresh",
    )
    assert await write(sink(path), record("1", 1), record("2", 2)) == 2

    assert ask(path, "FROM seen ORDER BY id") == [("1",), ("2",)]
    assert ask(path, "SELECT DISTINCT team FROM records") == [("blue",)]
