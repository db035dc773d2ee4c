"""The tables of SQL sinks: made once, migrated whole, and outlived by no position."""

from __future__ import annotations

import asyncio
import itertools
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ladon_storage.collection.protocols import Position
from ladon_storage.collection.records import Page, Record
from ladon_storage.collection.run import run
from ladon_storage.errors import SinkError
from ladon_storage.sinks import SqlSink
from ladon_storage.sinks.sql.dialect import Compared
from ladon_storage.sinks.sql.duckdb import Duckdb
from ladon_storage.sinks.sql.postgresql import Postgresql
from ladon_storage.sinks.sql.sqlite import Sqlite
from ladon_storage.testing.doubles import ScriptedSource, ScriptedStorage, at, record
from ladon_storage.values import instant_text
from tests.postgres import PostgresServer

Execute = Callable[[str], list[Any]]

GUIDE = (Path(__file__).parents[2] / "docs/how-to/operate.md").read_text(encoding="utf-8")


class Fresh:
    """Be a database in which nothing was made."""

    def __init__(self, url: str, execute: Execute) -> None:
        self.url = url
        self.execute = execute

    def sink(self, table: str = "records", keep: Any = "latest") -> SqlSink:
        return SqlSink(self.url, table, keep)

    def rename(self, table: str, name: str) -> None:
        if self.url.startswith("duckdb"):  # it renames no table that has triggers
            for trigger in ("gone", "forget"):
                self.execute(f"DROP TRIGGER ladon_{trigger}_{table} ON {table}")
        self.execute(f"ALTER TABLE {table} RENAME TO {name}")

    def tables(self) -> set[str]:
        return {
            row[0]
            for row in self.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
                if self.url.startswith("postgresql")
                else "SELECT name FROM sqlite_master WHERE type = 'table'"
            )
        }


def sqlite_file(path: Path) -> Fresh:
    def execute(statement: str) -> list[Any]:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()

    return Fresh(f"sqlite:///{path}", execute)


def duckdb_file(path: Path) -> Fresh:
    def execute(statement: str) -> list[Any]:
        with duckdb.connect(str(path)) as connection:
            return connection.execute(statement).fetchall()

    return Fresh(f"duckdb:///{path}", execute)


@pytest.fixture(params=["sqlite", pytest.param("duckdb", marks=pytest.mark.slow), "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Fresh:
    """Be an empty database of each kind."""
    if request.param == "sqlite":
        return sqlite_file(tmp_path / "records.db")
    if request.param == "duckdb":
        return duckdb_file(tmp_path / "records.duckdb")
    server: PostgresServer = request.getfixturevalue("postgres")
    name = server.database()
    return Fresh(server.url(name), lambda statement: server.execute(statement, name))


older = pytest.mark.parametrize("fresh", ["sqlite", "postgresql"], indirect=True)
"""The databases with tables of older releases, and with triggers that change a row in advance."""


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


KEPT = Position(timestamp=at(1))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([("1", KEPT)], ("2", Position(timestamp=at(2)))),
        ([("1", None)], ("2", None)),
        ([("1", None)], (None, KEPT)),
        ([(None, KEPT)], (None, Position(timestamp=at(2)))),
        ([], ("2", Position(timestamp=at(2)))),
    ],
    ids=["position after page", "pages", "position at the end", "positions", "stored before"],
)
@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_table_that_is_made_again_under_a_run_fails_it(
    fresh: Fresh,
    keep: str,
    before: list[tuple[str | None, Position | None]],
    after: tuple[str | None, Position | None],
) -> None:
    """Otherwise its next position would hide for good what it had stored before."""

    async def put(target: SqlSink, name: str | None, position: Position | None) -> None:
        await target.write("feed", Page([record(name, 1)] if name else []), position=position)

    async with fresh.sink(keep=keep) as target:
        if not before:
            await put(target, "1", KEPT)
    async with fresh.sink(keep=keep) as target:
        assert await target.position("feed") == (None if before else KEPT)
        for each in before:
            await put(target, *each)
        fresh.execute("DROP TABLE records")
        async with fresh.sink(keep=keep) as other:
            await other.write("other", Page([record("1", 1)]), position=KEPT)

        with pytest.raises(SinkError, match=r"'records' was dropped and made again.*'feed'"):
            await put(target, *after)
        # Of other sources, and of the next run, one that stays open takes everything.
        await target.write("third", Page([record("1", 1)]), position=KEPT)
        assert await target.position("feed") is None
        await put(target, *after)


async def test_table_that_is_restored_alone_is_filled_as_the_guide_says(tmp_path: Path) -> None:
    """A table that comes back from its backup lacks what came later; its positions do not."""
    (statement,) = re.findall(r"```sql\n(.*?);\n```", GUIDE.partition("## Restore a sink\n")[2])
    fresh, storage = sqlite_file(tmp_path / "records.db"), ScriptedStorage()
    records = [record("1", 1), record("2", 2)]
    await run(ScriptedSource([records[:1]]), fresh.sink(), storage, run_id="1")
    fresh.execute("CREATE TABLE backup AS SELECT * FROM records")
    ((made,),) = fresh.execute("SELECT sql FROM sqlite_master WHERE name = 'records'")
    await run(ScriptedSource([records[1:]]), fresh.sink(), storage, run_id="2")
    for each in ("DROP TABLE records", made, "INSERT INTO records SELECT * FROM backup", statement):
        fresh.execute(each)

    source = ScriptedSource([records])
    await run(source, fresh.sink(), storage, run_id="3")

    assert source.ranges == [(None, None)]
    assert fresh.execute("SELECT record_id FROM records ORDER BY 1") == [("1",), ("2",)]


async def test_position_of_a_source_without_rows_is_written_again(fresh: Fresh) -> None:
    """A run whose records were all deleted by their owner goes on."""
    async with fresh.sink() as target:
        await target.write("feed", Page([record("1", 1)]))
        fresh.execute("DELETE FROM records")
        await target.write("feed", Page([record("1", 1)]), position=KEPT)
        await target.write("feed", Page(), position=KEPT)

        assert fresh.execute("SELECT record_id FROM records") == []
        assert await target.position("feed") == KEPT


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

    with pytest.raises(
        SinkError, match=r"is of version 4, and this release supports 3\. Update ladon"
    ):
        await write(fresh.sink(), record("2", 2))


async def test_table_of_another_keep_or_another_program_is_refused(fresh: Fresh) -> None:
    """The error says what it was made for, or what it has."""
    await write(fresh.sink(), record("1", 1))
    fresh.execute("CREATE TABLE mine (id integer PRIMARY KEY, name text)")
    fresh.execute("CREATE VIEW view AS SELECT * FROM records")

    with pytest.raises(SinkError, match="created with keep='latest', not 'all'"):
        await write(fresh.sink(keep="all"))
    with pytest.raises(SinkError, match=r"'mine'.*has the columns id, name\. Use another table"):
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
    for database in (Sqlite, Duckdb, Postgresql):
        monkeypatch.setattr(database, "compare", Stale(database.compare))

    async with fresh.sink(keep=keep) as target:
        result = await target.write("feed", Page([record("1", 2, "new")]))
    assert (result.written, len(result.superseded)) == (0, 0)
    older = record("1", 1, "old")
    async with fresh.sink(keep=keep) as target:
        result = await target.write("feed", Page([older]))
    expected = 0 if keep == "latest" else 1
    assert (list(result.new), len(result.changed), list(result.superseded)) == (
        [],
        expected,
        [older],
    )
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


def second_version(fresh: Fresh, keep: str, *records: Record) -> None:
    """Make tables as the second version did."""
    kinds = {"instant": "TEXT", "json": "TEXT"}
    if not fresh.url.startswith("sqlite"):
        kinds = {"instant": "timestamptz", "json": "json"}
    key = "source_id, record_id" + (", version" if keep == "all" else "")
    for statement in (
        "CREATE TABLE records (source_id TEXT NOT NULL, record_id TEXT NOT NULL, "
        "version TEXT NOT NULL, record_timestamp {instant} NOT NULL, payload {json} NOT NULL, "
        "collected_at {instant} NOT NULL, removed_at {instant}, PRIMARY KEY ({key}))",
        "CREATE INDEX records_removed ON records (source_id, record_id) "
        "WHERE removed_at IS NOT NULL",
        "CREATE TABLE records_quarantine (source_id TEXT NOT NULL, digest TEXT NOT NULL, "
        "run_id TEXT NOT NULL, reason TEXT NOT NULL, raw TEXT NOT NULL, "
        "quarantined_at {instant} NOT NULL, PRIMARY KEY (source_id, digest))",
        "CREATE TABLE ladon_positions (table_name TEXT NOT NULL, source_id TEXT NOT NULL, "
        "timestamp {instant} NOT NULL, watermark {instant}, origin {instant}, run_id TEXT, "
        "PRIMARY KEY (table_name, source_id))",
        "CREATE TABLE ladon_meta (table_name TEXT NOT NULL, version INTEGER NOT NULL, "
        "PRIMARY KEY (table_name))",
        "INSERT INTO ladon_meta VALUES ('records', 2)",
        f"INSERT INTO ladon_positions VALUES ('records', 'feed', '{instant_text(at(3))}', NULL, "
        f"NULL, 'R')",
    ):
        fresh.execute(statement.format(key=key, **kinds))
    for number, each in enumerate(records):
        stored, collected = instant_text(each.timestamp), instant_text(at(100 + number))
        row = ("feed", each.record_id, each.version, stored, each.payload, collected)
        fresh.execute(f"INSERT INTO records VALUES ({', '.join(map(repr, row))}, NULL)")


@older
@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_tables_of_the_second_version_are_migrated(fresh: Fresh, keep: str) -> None:
    """Rows and position stay, the newest version is the current one, and all that is new works."""
    one, two, other = record("1", 1, "a"), record("1", 2, "b"), record("2", 2)
    rows = [two, other] if keep == "latest" else [two, one, other]
    second_version(fresh, keep, *rows)

    async with fresh.sink(keep=keep) as target:
        assert await target.position("feed") == Position(timestamp=at(3), run_id="R")
        result = await target.write("feed", Page([one, other]))
        assert (result.written, list(result.superseded)) == (0, [one])
        assert await target.revert("feed", [one], run_id="R") == 1
        result = await target.write("feed", Page([one, two, other]))
        assert (list(result.new), len(result.changed)) == ([], 1)
        full = Position(timestamp=at(4), document="d", order_shown=True)
        await target.write("feed", Page(), position=full)
        assert await target.position("feed") == full
    fresh.execute("DELETE FROM records WHERE record_id = '2'")
    assert await write(fresh.sink(keep=keep), other) == 0
    assert fresh.execute("SELECT version FROM ladon_meta") == [(3,)]
    if keep == "all":
        current = fresh.execute("SELECT version FROM records WHERE replaced_at IS NULL")
        assert current == [(two.version,)]


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_record_that_was_deleted_stays_deleted_until_it_changes(
    fresh: Fresh, keep: str
) -> None:
    """Whoever deletes a row means it; a change at the source is another row."""
    one, two, rest = record("1", 1, "a"), record("1", 2, "b"), record("2", 2)
    async with fresh.sink(keep=keep) as target:
        await target.write("feed", Page([one, rest]), position=Position(timestamp=at(2)))
        fresh.execute("DELETE FROM records WHERE record_id = '1'")
        result = await target.write("feed", Page([one, rest]))
        assert (result.written, list(result.superseded)) == (0, [])
    async with fresh.sink(keep=keep) as target:
        assert (await target.write("feed", Page([one, rest, record("3", 3)]))).written == 1
        assert (await target.write("feed", Page([one, record("4", 3)]))).written == 1
        assert await target.lacking("feed", {"1": at(1), "2": at(2)}) == set()
        assert await target.lacking("feed", {"1": at(2)}) == {"1"}
        assert await target.revert("feed", [one], run_id="R") == 0
        assert await target.mark_removed("feed", {"1", "2", "3", "4"}, 0.5) == 0
        assert await target.position("feed") == Position(timestamp=at(2))
        assert (await target.write("other", Page([one]))).written == 1
        assert (await target.write("feed", Page([two]))).written == 1
        result = await target.write("feed", Page([one]))
        assert (result.written, list(result.superseded)) == (0, [one])
    of_feed = "FROM records WHERE source_id = 'feed' ORDER BY record_id"
    assert fresh.execute(f"SELECT record_id {of_feed}") == [("1",), ("2",), ("3",), ("4",)]
    assert fresh.execute(f"SELECT version {of_feed}")[0] == (two.version,)

    fresh.execute("DELETE FROM records")
    assert await write(fresh.sink(keep=keep), two, rest) == 0
    assert await write(fresh.sink(keep=keep), record("1", 3, "c"), rest) == 1


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_record_that_was_deleted_and_changes_is_no_new_one(fresh: Fresh, keep: str) -> None:
    """The sink had it: a reconciliation would call it missed."""
    await write(fresh.sink(keep=keep), record("1", 1))
    fresh.execute("DELETE FROM records")
    changed, new = record("1", 2, "b"), record("2", 2)
    async with fresh.sink(keep=keep) as target:
        result = await target.write("feed", Page([changed, new]))
    assert (list(result.new), list(result.changed)) == ([new], [changed])


async def test_older_page_does_not_bring_back_what_was_deleted(fresh: Fresh) -> None:
    """Where one row is kept, a page that is replayed is no change at the source."""
    old, new = record("1", 1, "a"), record("1", 2, "b")
    async with fresh.sink() as target:
        await target.write("feed", Page([old]))
        await target.write("feed", Page([new]))
        fresh.execute("DELETE FROM records")
        result = await target.write("feed", Page([old]))
        assert (result.written, list(result.superseded)) == (0, [old])
        assert await target.revert("feed", [new], run_id="R") == 0
        assert await target.revert("feed", [old], run_id="R") == 1  # it went back, as its last word


async def test_table_that_is_made_again_knows_nothing_of_deletions(fresh: Fresh) -> None:
    """Neither those of the table that was dropped, nor those in one that was renamed."""
    page = [record("1", 1), record("2", 2)]
    await write(fresh.sink(), *page)
    fresh.execute("DELETE FROM records WHERE record_id = '1'")
    fresh.execute("DROP TABLE records")
    assert await write(fresh.sink(), *page) == 2

    fresh.rename("records", "archive")
    assert await write(fresh.sink(), *page) == 2
    fresh.execute("DELETE FROM archive")
    fresh.execute("DELETE FROM records WHERE record_id = '2'")
    assert await write(fresh.sink(), *page) == 0
    assert fresh.execute("SELECT record_id FROM ladon_deleted") == [("2",)]


async def test_trigger_that_is_missing_is_made_again(fresh: Fresh) -> None:
    """A table that was copied, or restored, has lost it."""
    await write(fresh.sink(), record("1", 1))
    on = "" if fresh.url.startswith("sqlite") else " ON records"
    fresh.execute(f"DROP TRIGGER ladon_gone_records{on}")
    await write(fresh.sink(), record("1", 1))
    fresh.execute("DELETE FROM records")

    assert await write(fresh.sink(), record("1", 1)) == 0


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_table_that_was_renamed_is_made_again(fresh: Fresh, keep: str) -> None:
    """However often: its indexes keep their names, and the new table has as many."""
    position, made = Position(timestamp=at(1)), 1 if keep == "latest" else 2
    if fresh.url.startswith("duckdb"):
        made = 0
    for number in range(3):
        async with fresh.sink(keep=keep) as target:
            assert await target.position("feed") is None
            page = Page([record("1", 1)])
            assert (await target.write("feed", page, position=position)).written == 1
        assert len(indexes(fresh, "records")) == made
        fresh.rename("records", f"archive_{number}")
        assert len(indexes(fresh, f"archive_{number}")) == made


def indexes(fresh: Fresh, table: str) -> list[Any]:
    """Return the names of the indexes of a table which a sink made for its marks."""
    if not fresh.url.startswith("postgresql"):
        return fresh.execute(
            f"SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = '{table}' "
            "AND sql LIKE '%_at IS NOT NULL'"
        )
    return fresh.execute(
        f"SELECT indexname FROM pg_indexes WHERE tablename = '{table}' "
        "AND indexdef LIKE '%_at IS NOT NULL%'"
    )


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_table_without_its_primary_key_is_refused_and_told_which(
    fresh: Fresh, keep: str
) -> None:
    """A copy of a table has none."""
    await write(fresh.sink(keep=keep), record("1", 1))
    for statement in (
        "CREATE TABLE made AS SELECT * FROM records",
        "DROP TABLE records",
        "ALTER TABLE made RENAME TO records",
    ):
        fresh.execute(statement)
    key = r"\(source_id, record_id\)" if keep == "latest" else r"\(source_id, record_id, version\)"
    with pytest.raises(SinkError, match=f"has no primary key; it should be {key}. Give"):
        await write(fresh.sink(keep=keep), record("1", 1))


async def test_message_about_a_table_of_others_names_no_trigger(fresh: Fresh) -> None:
    """It names the columns that there are."""
    await write(fresh.sink(), record("1", 1))
    fresh.rename("records", "made")
    fresh.execute("ALTER TABLE made RENAME COLUMN payload TO body")
    fresh.execute("ALTER TABLE made RENAME TO records")
    with pytest.raises(
        SinkError, match="is not a table of records: it has the columns body"
    ) as raised:
        await write(fresh.sink(), record("1", 1))
    assert "ladon_gone" not in str(raised.value)


def current(fresh: Fresh) -> list[Any]:
    """Return the versions that are current, where all are kept."""
    return fresh.execute("SELECT version FROM records WHERE replaced_at IS NULL ORDER BY record_id")


async def test_replaced_version_that_was_deleted_is_a_change_when_the_source_returns_to_it(
    fresh: Fresh,
) -> None:
    """The source says another one since; whoever thins out the history loses no present."""
    one, two = record("1", 1, "a"), record("1", 1, "b")
    await write(fresh.sink(keep="all"), one)
    await write(fresh.sink(keep="all"), two)
    fresh.execute("DELETE FROM records WHERE replaced_at IS NOT NULL")
    async with fresh.sink(keep="all") as target:
        assert (await target.write("feed", Page([one, two]))).written == 0
        result = await target.write("feed", Page([one]))
        assert (list(result.changed), list(result.superseded)) == ([one], [])
        assert (await target.write("feed", Page([one]))).written == 0
    assert current(fresh) == [(one.version,)]
    assert fresh.execute("SELECT count(*) FROM records") == [(2,)]

    fresh.execute("DELETE FROM records")
    assert await write(fresh.sink(keep="all"), one) == 0
    assert await write(fresh.sink(keep="all"), two) == 1
    assert current(fresh) == [(two.version,)]


async def test_deleted_version_of_an_earlier_time_waits_for_the_end_of_the_run(
    fresh: Fresh,
) -> None:
    """Only then it shows whether the source went back to it, or a history was read again."""
    one, two = record("1", 1, "a"), record("1", 2, "b")
    await write(fresh.sink(keep="all"), one, two)
    fresh.execute("DELETE FROM records WHERE replaced_at IS NOT NULL")
    async with fresh.sink(keep="all") as target:
        result = await target.write("feed", Page([one]))
        assert (result.written, list(result.superseded)) == (0, [one])
        assert (await target.write("feed", Page([two]))).written == 0
        assert await target.revert("feed", [one], run_id="R") == 1
    assert current(fresh) == [(one.version,)]


async def test_history_read_again_does_not_bring_back_the_current_version_that_was_deleted(
    fresh: Fresh,
) -> None:
    """Neither an older version that was kept, nor one that is new, is said after it."""
    older, one, two = record("1", 0, "o"), record("1", 1, "a"), record("1", 2, "b")
    await write(fresh.sink(keep="all"), one, two)
    fresh.execute("DELETE FROM records WHERE replaced_at IS NULL")
    for _ in range(2):
        for page in ([one], [two], [one, two], [older, one, two]):
            async with fresh.sink(keep="all") as target:
                await target.write("feed", Page(page))
        versions = fresh.execute("SELECT version FROM records ORDER BY record_timestamp")
        assert versions == [(older.version,), (one.version,)]
    assert current(fresh) == []
    async with fresh.sink(keep="all") as target:
        assert await target.revert("feed", [two], run_id="R") == 0
        assert await target.revert("feed", [one], run_id="R") == 1
        assert (await target.write("feed", Page([two]))).written == 1
    assert current(fresh) == [(two.version,)]


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_removed_record_that_was_deleted_is_stored_when_it_is_listed_again(
    fresh: Fresh, keep: str
) -> None:
    """The source took it back; whoever deletes what is marked does not refuse its return."""
    one, two, rest = record("1", 1, "a"), record("1", 2, "b"), record("2", 2)
    await write(fresh.sink(keep=keep), one, rest)
    fresh.execute("DELETE FROM records WHERE record_id = '1'")
    await write(fresh.sink(keep=keep), two, rest)
    async with fresh.sink(keep=keep) as target:
        assert await target.mark_removed("feed", {"2"}, 1) == 1
    fresh.execute("DELETE FROM records WHERE removed_at IS NOT NULL")
    assert await write(fresh.sink(keep=keep), one, rest) == 1
    assert fresh.execute("SELECT count(*) FROM records") == [(2,)]
    assert fresh.execute("SELECT count(*) FROM ladon_deleted") == [(0,)]


@older
@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_trigger_of_an_older_release_is_made_again(fresh: Fresh, keep: str) -> None:
    """It noted what was removed as if that were deleted on purpose."""
    await write(fresh.sink(keep=keep), record("1", 1), record("2", 1))
    values = (
        "'records', OLD.source_id, OLD.record_id, OLD.version, OLD.record_timestamp, '2024-01-01'"
    )
    insert = (
        "INSERT INTO ladon_deleted "
        "(table_name, source_id, record_id, version, record_timestamp, deleted_at) "
        f"VALUES ({values})"
    )
    if fresh.url.startswith("sqlite"):
        fresh.execute("DROP TRIGGER ladon_gone_records")
        fresh.execute(
            f"CREATE TRIGGER ladon_gone_records AFTER DELETE ON records BEGIN {insert}; END"
        )
    else:
        fresh.execute("DROP TRIGGER ladon_gone_records ON records")
        fresh.execute(
            "CREATE OR REPLACE FUNCTION ladon_note_deleted() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {insert}; RETURN NULL; END $$"
        )
        fresh.execute(
            "CREATE TRIGGER ladon_gone_records AFTER DELETE ON records FOR EACH ROW "
            "EXECUTE FUNCTION ladon_note_deleted()"
        )
    fresh.execute("ALTER TABLE ladon_deleted DROP COLUMN replaced_at")
    async with fresh.sink(keep=keep) as target:
        await target.mark_removed("feed", {"2"}, 1)
    fresh.execute("DELETE FROM records WHERE removed_at IS NOT NULL")

    assert await write(fresh.sink(keep=keep), record("1", 1), record("2", 1)) == 1


LONG = "x" * 52


async def test_table_of_a_long_name_has_its_trigger(fresh: Fresh) -> None:
    """The longest name that a table may have."""
    await write(fresh.sink(LONG), record("1", 1))
    await write(fresh.sink(LONG[:-1] + "y"), record("1", 1))
    fresh.execute(f"DELETE FROM {LONG}")

    assert await write(fresh.sink(LONG), record("1", 1)) == 0
    assert await write(fresh.sink(LONG[:-1] + "y"), record("1", 1), record("2", 2)) == 1


SWALLOWED = {
    "sqlite": [
        "CREATE TRIGGER no_{event} BEFORE {event} ON records WHEN NEW.record_id = '1' "
        "BEGIN SELECT RAISE(IGNORE); END"
    ],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.record_id = '1' THEN RETURN NULL; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER no_{event} BEFORE {event} ON records FOR EACH ROW EXECUTE FUNCTION no()",
    ],
}


def swallow(fresh: Fresh, event: str) -> None:
    for statement in SWALLOWED[fresh.url.partition(":")[0]]:
        fresh.execute(statement.replace("{event}", event))


@older
@pytest.mark.parametrize("keep", ["latest", "all"])
@pytest.mark.parametrize("others", [[], [record("2", 2), record("3", 3)]])
async def test_row_that_a_trigger_of_the_owner_swallows_fails_its_page(
    fresh: Fresh, keep: str, others: list[Record]
) -> None:
    """Nothing counts as stored that is not there, and nothing of its page is."""
    async with fresh.sink(keep=keep) as target:
        await target.write("feed", Page([record("0", 0)]))
        swallow(fresh, "INSERT")
        position = Position(timestamp=at(3))
        with pytest.raises(SinkError, match="rejected 1 of the rows"):
            await target.write("feed", Page([record("1", 1), *others]), position=position)
        assert await target.position("feed") is None
        assert (await target.write("feed", Page(others))).written == len(others)
    assert len(fresh.execute("SELECT * FROM records")) == 1 + len(others)


@older
async def test_change_that_a_trigger_of_the_owner_swallows_fails_its_page(fresh: Fresh) -> None:
    """Neither an update, nor a return, nor a mark is counted where the row stays as it was."""
    old, new = record("1", 1), record("1", 2, "b")
    await write(fresh.sink(), new, record("2", 2))
    swallow(fresh, "UPDATE")
    async with fresh.sink() as target:
        with pytest.raises(SinkError, match="rejected 1 of the rows"):
            await target.write("feed", Page([record("1", 3, "c")]))
        with pytest.raises(SinkError, match="rejected 1 of the rows"):
            await target.revert("feed", [old], run_id="R")
        with pytest.raises(SinkError, match="rejected 1 of the rows"):
            await target.mark_removed("feed", {"2"}, 1)
    assert fresh.execute("SELECT version FROM records WHERE record_id = '1'") == [(new.version,)]


@older
async def test_return_that_a_trigger_of_the_owner_swallows_fails_where_all_is_kept(
    fresh: Fresh,
) -> None:
    """A version that stays replaced is not the current one."""
    old, new = record("1", 1), record("1", 2, "b")
    await write(fresh.sink(keep="all"), old)
    await write(fresh.sink(keep="all"), new)
    swallow(fresh, "UPDATE")
    async with fresh.sink(keep="all") as target:
        with pytest.raises(SinkError, match=r"rejected 1 of the rows|was replaced"):
            await target.revert("feed", [old], run_id="R")


TAKEN_BACK = {
    "sqlite": [
        "CREATE TRIGGER back AFTER UPDATE OF replaced_at ON records "
        "WHEN NEW.replaced_at IS NOT NULL BEGIN UPDATE records SET replaced_at = NULL "
        "WHERE record_id = NEW.record_id AND version = NEW.version; END"
    ],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "NEW.replaced_at := OLD.replaced_at; RETURN NEW; END $$",
        "CREATE TRIGGER back BEFORE UPDATE ON records FOR EACH ROW EXECUTE FUNCTION back()",
    ],
}


@older
async def test_replacement_that_a_trigger_of_the_owner_takes_back_fails(fresh: Fresh) -> None:
    """Two current versions of one record would hide what the source said last."""
    old, new = record("1", 1), record("1", 2, "b")
    await write(fresh.sink(keep="all"), old)
    for statement in TAKEN_BACK[fresh.url.partition(":")[0]]:
        fresh.execute(statement)
    async with fresh.sink(keep="all") as target:
        with pytest.raises(SinkError, match="took back that a version of record '1'"):
            await target.write("feed", Page([new]))
    assert len(fresh.execute("SELECT * FROM records")) == 1


_COLUMNS = "source_id, record_id, version, record_timestamp, payload, collected_at, removed_at"

BOTH = {
    "update": ["UPDATE records SET payload = '{{}}' WHERE record_id = '0'"],
    "nullable column": ["ALTER TABLE records ADD COLUMN note text"],
    "column with a default": ["ALTER TABLE records ADD COLUMN note text NOT NULL DEFAULT 'x'"],
    "index": ["CREATE INDEX mine ON records (record_timestamp)"],
    "unique index": ["CREATE UNIQUE INDEX mine ON records (source_id, version, record_id)"],
    "view": ["CREATE VIEW mine AS SELECT * FROM records"],
    "maintenance": ["VACUUM", "ANALYZE"],
}
SQLITE = BOTH | {
    "generated column": [
        "ALTER TABLE records ADD COLUMN value text AS (json_extract(payload, '$.value'))"
    ],
    "order of columns": [
        "CREATE TABLE made (removed_at, {replaced} note, collected_at TEXT, payload TEXT, version "
        "TEXT, record_id TEXT, record_timestamp TEXT, source_id TEXT, PRIMARY KEY ({key}))",
        "INSERT INTO made ({columns}) SELECT {columns} FROM records",
        "DROP TABLE records",
        "ALTER TABLE made RENAME TO records",
    ],
    "without rowid": [
        "CREATE TABLE made (source_id TEXT, record_id TEXT, version TEXT, record_timestamp TEXT, "
        "payload TEXT, collected_at TEXT, removed_at TEXT, {replaced} PRIMARY KEY ({key})) "
        "WITHOUT ROWID",
        "INSERT INTO made ({columns}) SELECT {columns} FROM records",
        "DROP TABLE records",
        "ALTER TABLE made RENAME TO records",
    ],
    "log": ["PRAGMA wal_checkpoint(TRUNCATE)", "REINDEX"],
}
DUCKDB = BOTH | {
    "column with a default": ["ALTER TABLE records ADD COLUMN note text DEFAULT 'x'"],
    "column of lists": ["ALTER TABLE records ADD COLUMN tags text[] DEFAULT ['x']"],
    "unique index": ["CREATE UNIQUE INDEX mine ON records (source_id, record_id, version)"],
    "index of times": ["CREATE INDEX mine ON records (collected_at)"],
    "types and order of columns": [
        "CREATE TABLE made (removed_at TIMESTAMPTZ, {replaced} note text, "
        "collected_at TIMESTAMPTZ, payload JSON, version text, record_id text, "
        "record_timestamp TIMESTAMP, source_id text, "
        "PRIMARY KEY ({key}))",
        "INSERT INTO made ({columns}) SELECT {columns} FROM records",
        "DROP TABLE records",
        "ALTER TABLE made RENAME TO records",
    ],
    "maintenance": ["CHECKPOINT", "VACUUM ANALYZE records"],
}
POSTGRESQL = BOTH | {
    "generated column": [
        "ALTER TABLE records ADD COLUMN value text GENERATED ALWAYS AS (payload ->> 'value') STORED"
    ],
    "types": [
        "ALTER TABLE records ALTER record_id TYPE varchar, ALTER version TYPE varchar(99)",
        "ALTER TABLE records ALTER payload TYPE jsonb",
    ],
    "payload of text": ["ALTER TABLE records ALTER payload TYPE text"],
    "times without a zone": [
        "ALTER TABLE records ALTER record_timestamp TYPE timestamp "
        "USING record_timestamp AT TIME ZONE 'UTC'"
    ],
    "partitions": [
        "CREATE TABLE made (LIKE records INCLUDING ALL) PARTITION BY HASH (source_id)",
        "CREATE TABLE part PARTITION OF made FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        "INSERT INTO made SELECT * FROM records",
        "DROP TABLE records",
        "ALTER TABLE made RENAME TO records",
    ],
    "maintenance": ["VACUUM FULL records", "REINDEX TABLE records", "ANALYZE records"],
}


async def assert_goes_on(fresh: Fresh, keep: str, statements: list[str], *, is_open: bool) -> None:
    """Assert that a table is collected into after its owner's statements."""
    page = [record(str(n), n) for n in range(10)]
    at_type = "TEXT" if fresh.url.startswith("sqlite") else "TIMESTAMPTZ"
    names = {
        "key": "source_id, record_id" + (", version" if keep == "all" else ""),
        "columns": _COLUMNS + (", replaced_at" if keep == "all" else ""),
        "replaced": f"replaced_at {at_type}," if keep == "all" else "",
    }
    async with fresh.sink(keep=keep) as target:
        await target.write("feed", Page(page), position=Position(timestamp=at(9)))
        if is_open:
            for statement in statements:
                fresh.execute(statement.format(**names))
            assert (await target.write("feed", Page([*page, record("open", 1)]))).written == 1
    if not is_open:
        for statement in statements:
            fresh.execute(statement.format(**names))
    async with fresh.sink(keep=keep) as target:
        changed = [record("1", 20, "b"), record("2", 0, "older")]
        result = await target.write("feed", Page([*page[3:], record("new", 9), *changed]))
        expected = 1 if keep == "latest" else 2
        assert ([each.record_id for each in result.new], len(result.changed)) == (["new"], expected)
        assert [each.record_id for each in result.superseded] == ["2"]
        assert await target.revert("feed", changed[1:], run_id="R") + expected == 2
        assert await target.position("feed") == Position(timestamp=at(9))
        assert await target.lacking("feed", {"1": at(20), "3": at(99)}) == {"3"}
        assert await target.mark_removed("feed", {"new", *map(str, range(9))}, 0.5) == 1 + is_open
    fresh.execute("DELETE FROM records WHERE record_id = '3'")
    assert await write(fresh.sink(keep=keep), page[3], page[4]) == 0


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("keep", ["latest", "all"])
@pytest.mark.parametrize("what", SQLITE)
async def test_table_of_sqlite_that_its_owner_touched_is_collected_into(
    tmp_path: Path, what: str, keep: str, is_open: bool
) -> None:
    """Between two runs, or while one is going on: rows are right, and nothing is refused."""
    await assert_goes_on(sqlite_file(tmp_path / "r.db"), keep, SQLITE[what], is_open=is_open)


def paired(statements: dict[str, list[str]]) -> list[Any]:
    """Return each statement with either keep, once of both between two runs: any pair is there.

    SQLite, whose tables take a tenth of the time, has all three together, and in the quick tests.
    """
    latest = [(what, "latest", number % 2 == 1) for number, what in enumerate(statements)]
    return latest + [
        pytest.param(what, "all", not is_open, marks=pytest.mark.slow)
        for what, _, is_open in latest
    ]


@pytest.mark.parametrize(("what", "keep", "is_open"), paired(DUCKDB))
async def test_table_of_duckdb_that_its_owner_touched_is_collected_into(
    tmp_path: Path, what: str, keep: str, is_open: bool
) -> None:
    """Between two runs, or while one is going on: rows are right, and nothing is refused."""
    await assert_goes_on(duckdb_file(tmp_path / "r.duckdb"), keep, DUCKDB[what], is_open=is_open)


@pytest.mark.parametrize(("what", "keep", "is_open"), paired(POSTGRESQL))
async def test_table_of_postgresql_that_its_owner_touched_is_collected_into(
    postgres: PostgresServer, what: str, keep: str, is_open: bool
) -> None:
    """Between two runs, or while one is going on: rows are right, and nothing is refused."""
    name = postgres.database()
    fresh = Fresh(postgres.url(name), lambda statement: postgres.execute(statement, name))
    await assert_goes_on(fresh, keep, POSTGRESQL[what], is_open=is_open)
