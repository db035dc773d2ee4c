"""The tables of SQL sinks: made once, migrated whole, and outlived by no position."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection.interfaces import Position
from ladon_storage.collection.records import Page, Record
from ladon_storage.collection.sinks import SqlSink
from ladon_storage.collection.sinks.sql_database import Compared
from ladon_storage.collection.sinks.sql_postgresql import Postgresql
from ladon_storage.collection.sinks.sql_sqlite import Sqlite
from ladon_storage.errors import SinkError
from tests.collecting import at, record
from tests.postgres import PostgresServer

Execute = Callable[[str], list[Any]]


class Fresh:
    """Be a database in which nothing was made."""

    def __init__(self, url: str, execute: Execute) -> None:
        self.url = url
        self.execute = execute

    def sink(self, table: str = "records", keep: Any = "latest") -> SqlSink:
        return SqlSink(self.url, table, keep)

    def tables(self) -> set[str]:
        return {
            row[0]
            for row in self.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
                if self.url.startswith("sqlite")
                else "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            )
        }


def sqlite_file(path: Path) -> Fresh:
    def execute(statement: str) -> list[Any]:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()

    return Fresh(f"sqlite:///{path}", execute)


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Fresh:
    """Be an empty database of each kind."""
    if request.param == "sqlite":
        return sqlite_file(tmp_path / "records.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    name = server.database()
    return Fresh(server.url(name), lambda statement: server.execute(statement, name))


async def write(target: SqlSink, *records: Record) -> int:
    async with target:
        return (await target.write("feed", Page(list(records)))).written


async def test_tables_are_made_once_by_whoever_is_first(fresh: Fresh) -> None:
    """Runs that start together on nothing all find what they need."""
    written = await asyncio.gather(*(write(fresh.sink(), record(str(n), n)) for n in range(4)))

    assert written == [1] * 4
    assert fresh.tables() >= {"records", "records_quarantine", "ladon_positions", "ladon_meta"}
    assert fresh.execute("SELECT table_name, version FROM ladon_meta") == [("records", 3)]


async def test_tables_of_one_database_are_apart(fresh: Fresh) -> None:
    """Each has its keep, its quarantine and its positions."""
    for name, keep in (("one", "latest"), ("two", "all")):
        async with fresh.sink(name, keep) as target:
            assert await target.position("feed") is None
            page = Page([record("1", 1)])
            assert (
                await target.write("feed", page, position=Position(timestamp=at(1)))
            ).written == 1


async def test_position_goes_with_its_table(fresh: Fresh) -> None:
    """A table that was dropped is collected again from the beginning, another one is not."""
    for name in ("records", "other"):
        async with fresh.sink(name) as target:
            await target.write("feed", Page([record("1", 1)]), position=Position(timestamp=at(1)))
    fresh.execute("DROP TABLE records")

    async with fresh.sink() as target, fresh.sink("other") as other:
        assert await target.position("feed") is None
        assert await other.position("feed") == Position(timestamp=at(1))
        assert (await target.write("feed", Page([record("1", 1)]))).written == 1


async def test_position_says_whose_it_is(fresh: Fresh) -> None:
    """A run that goes on must know its own position from another's."""
    position = Position(timestamp=at(1), run_id="R 1")
    async with fresh.sink() as target:
        await target.write("feed", Page(), position=position)
        assert await target.position("feed") == position


async def test_table_that_is_dropped_under_a_sink_is_an_error(fresh: Fresh) -> None:
    """It is made when the next run begins, not in the middle of one that believes in it."""
    async with fresh.sink() as target:
        fresh.execute("DROP TABLE records")
        with pytest.raises(SinkError, match=r"could not store a page: .*records"):
            await target.write("feed", Page([record("1", 1)]))

    assert await write(fresh.sink(), record("1", 1)) == 1


@pytest.mark.parametrize("missing", ["records_quarantine", "ladon_positions", "ladon_meta"])
async def test_table_beside_the_records_is_made_again(fresh: Fresh, missing: str) -> None:
    """What somebody tidied away costs no records."""
    await write(fresh.sink(), record("1", 1))
    fresh.execute(f"DROP TABLE {missing}")

    assert await write(fresh.sink(), record("1", 1)) == 0
    assert missing in fresh.tables()
    assert fresh.execute("SELECT table_name, version FROM ladon_meta") == [("records", 3)]


async def test_table_of_a_newer_release_is_refused(fresh: Fresh) -> None:
    """What this release does not know it leaves alone."""
    await write(fresh.sink(), record("1", 1))
    fresh.execute("UPDATE ladon_meta SET version = 4")

    with pytest.raises(SinkError, match="is of version 4, and this release knows 3; update ladon"):
        await write(fresh.sink(), record("2", 2))


async def test_table_of_another_keep_or_another_program_is_refused(fresh: Fresh) -> None:
    """The error says what it was made for, or what it has."""
    await write(fresh.sink(), record("1", 1))
    fresh.execute("CREATE TABLE mine (id integer PRIMARY KEY, name text)")
    fresh.execute("CREATE VIEW view AS SELECT * FROM records")

    with pytest.raises(SinkError, match="made with keep='latest', not 'all'"):
        await write(fresh.sink(keep="all"))
    with pytest.raises(SinkError, match=r"'mine'.*has the columns id, name; use another table"):
        await write(fresh.sink("mine"))
    with pytest.raises(SinkError, match=r"'view'.*use another table"):
        await write(fresh.sink("view"))
    assert "mine_quarantine" not in fresh.tables()


async def test_column_of_somebody_elses_is_left_alone(fresh: Fresh) -> None:
    """Who adds a column to look at records can go on collecting."""
    await write(fresh.sink(), record("1", 1))
    fresh.execute("ALTER TABLE records ADD COLUMN note text")

    assert await write(fresh.sink(), record("1", 1), record("2", 2)) == 1


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_another_run_that_was_faster_is_respected(
    fresh: Fresh, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was unknown may be there when it is written: nothing is twice, or goes back."""
    await write(fresh.sink(keep=keep), record("1", 2, "new"))
    for database in (Sqlite, Postgresql):
        monkeypatch.setattr(database, "compare", Stale(database.compare))

    async with fresh.sink(keep=keep) as target:
        result = await target.write("feed", Page([record("1", 2, "new")]))
    assert (result.written, len(result.superseded)) == (0, 0)
    older = record("1", 1, "old")
    async with fresh.sink(keep=keep) as target:
        result = await target.write("feed", Page([older]))
    expected = 0 if keep == "latest" else 1
    assert (list(result.new), result.changed, list(result.superseded)) == ([], expected, [older])
    assert fresh.execute("SELECT count(*) FROM records") == [(1 + expected,)]


class Stale:
    """Be a look at a table of which every other one is from before another run committed."""

    def __init__(self, compare: Callable[..., Compared]) -> None:
        self._compare = compare
        self._looks = itertools.count()

    def __get__(self, database: Any, _: Any) -> Callable[..., Compared]:
        return lambda *args, **kwargs: self._look(database, *args, **kwargs)

    def _look(self, database: Any, *args: Any, **kwargs: Any) -> Compared:
        if next(self._looks) % 2 == 0:
            return Compared(new=list(args[2]))
        return self._compare(database, *args, **kwargs)


async def test_runs_that_write_the_same_records_wait_and_do_not_deadlock(fresh: Fresh) -> None:
    """Pages in opposite order, each of which changes every row."""

    async def fill(step: int) -> None:
        async with fresh.sink() as target:
            for n in range(10):
                page = [record(str(k), n, f"{step} {n}") for k in range(100)]
                await target.write("feed", Page(page[::step]))

    await asyncio.gather(fill(1), fill(-1))
    assert fresh.execute("SELECT count(*) FROM records") == [(100,)]


# As 0.1.0 made it.
_FIRST = """
CREATE TABLE records (
    source_id TEXT NOT NULL, record_id TEXT NOT NULL, version TEXT NOT NULL,
    record_timestamp TEXT NOT NULL, payload TEXT NOT NULL, collected_at TEXT NOT NULL,
    PRIMARY KEY ({key}))
"""


def first_version(path: Path, keep: str, *records: Record) -> Fresh:
    """Return a database with a table of the first version."""
    old = sqlite_file(path)
    key = "source_id, record_id" + (", version" if keep == "all" else "")
    old.execute(_FIRST.format(key=key))
    for each in records:
        timestamp = each.timestamp.isoformat(timespec="microseconds")
        row = ("feed", each.record_id, each.version, timestamp, each.payload, timestamp)
        old.execute(f"INSERT INTO records VALUES {row}")
    return old


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_table_of_the_first_version_is_migrated(tmp_path: Path, keep: str) -> None:
    """Its rows stay as they are, are known, and can be marked."""
    one, two = record("1", 1), record("2", 2)
    old = first_version(tmp_path / "records.db", keep, one, two)
    before = old.execute("SELECT * FROM records")

    assert await write(old.sink(keep=keep), one, two) == 0
    added = (None,) if keep == "latest" else (None, None)
    assert old.execute("SELECT * FROM records") == [(*row, *added) for row in before]
    async with old.sink(keep=keep) as target:
        assert await target.mark_removed("feed", {"1"}, 0.5) == 1
        assert (await target.write("feed", Page([two, record("1", 3, "b")]))).written == 1
    assert old.execute("SELECT count(*) FROM records WHERE removed_at IS NOT NULL") == [(0,)]


async def test_processes_that_migrate_at_once_do_it_once(tmp_path: Path) -> None:
    """Runs that start together on an old table wait for the one that migrates it."""
    old = first_version(tmp_path / "records.db", "latest", record("1", 1))

    written = await asyncio.gather(*(write(old.sink(), record("1", 1)) for _ in range(4)))
    assert written == [0] * 4


async def test_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    """Half a migration would be a table that no release knows."""
    old = first_version(tmp_path / "records.db", "latest", record("1", 1))
    old.execute("CREATE TABLE records_removed (x)")  # where its index should be
    before = old.execute("SELECT sql FROM sqlite_master ORDER BY name")

    with pytest.raises(SinkError, match="could not be opened: there is already a table named"):
        await write(old.sink(), record("2", 2))
    assert old.execute("SELECT sql FROM sqlite_master ORDER BY name") == before
    old.execute("DROP TABLE records_removed")
    assert await write(old.sink(), record("2", 2)) == 1


async def test_backup_of_the_first_version_is_migrated_again(tmp_path: Path) -> None:
    """What counts is the table that is there, not what was noted about the one before."""
    old = first_version(tmp_path / "records.db", "latest", record("1", 1))
    await write(old.sink(), record("2", 2))
    old.execute("DROP TABLE records")
    old = first_version(tmp_path / "records.db", "latest", record("1", 1))

    assert await write(old.sink(), record("1", 1), record("2", 2)) == 1
