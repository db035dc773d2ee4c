"""The sink that is a table of SQLite: its columns, its locks, and what it refuses."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
import traceback
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection.protocols import Position
from ladon_storage.collection.records import Columns, Page, Record
from ladon_storage.errors import SinkError
from ladon_storage.sinks import SqlSink
from ladon_storage.sinks.sql import sqlite as sql_sqlite
from ladon_storage.testing.doubles import at, record
from tests.tables import connection_of, table


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.db"


def sink(path: Path, keep: Any = "latest", name: str = "records") -> SqlSink:
    return SqlSink(f"sqlite:///{path}", name, keep)


async def write(target: SqlSink, *pages: list[Record], source_id: str = "feed") -> list[int]:
    async with target:
        return [(await target.write(source_id, Page(page))).written for page in pages]


def trace(target: SqlSink, statements: list[str]) -> None:
    driver: Any = connection_of(target).connection.driver_connection
    driver.set_trace_callback(statements.append)


VALUES = "record_id, json_extract(payload, '$.value')"


async def test_table_has_the_columns_that_were_promised(path: Path) -> None:
    """Other programs read the table: names and forms of its columns are a contract."""
    east = timezone(timedelta(hours=2))
    made = Record.of("1", datetime(2024, 1, 1, 2, tzinfo=east), {"b": "é", "a": 1})
    await write(sink(path), [made])

    columns = "source_id, record_id, version, record_timestamp, payload, typeof(payload)"
    assert table(path, columns) == [
        ("feed", "1", made.version, "2024-01-01T00:00:00.000000+00:00", '{"b":"é","a":1}', "text")
    ]
    [(collected_at,)] = table(path, "collected_at")
    assert datetime.fromisoformat(collected_at).utcoffset() == timedelta(0)


@pytest.mark.parametrize("keep", ["latest", "all"])
@pytest.mark.parametrize("size", [1, 2, 3, 250])
async def test_page_of_any_size_is_stored_whole(
    path: Path, keep: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows one statement takes, each record of a page is a row, counted once."""
    monkeypatch.setattr(sql_sqlite, "_INSERTED_CHARACTERS", 2 * len(record("1", 1).payload))
    page = [record(f"{number:03}", number) for number in range(size)]

    assert await write(sink(path, keep), page[::3], page, page) == [
        len(page[::3]),
        size - len(page[::3]),
        0,
    ]
    assert table(path, "record_id") == [(each.record_id,) for each in page]


async def test_ids_of_any_characters_are_found_and_told_apart(path: Path) -> None:
    """What JSON escapes, in which ids are looked up, is the same id before and after."""
    ids = [*map(chr, range(1, 128)), "\\n", "\\u0001", 'a"b', "a'b", "é", "🦜", "\u2028", "$.a"]
    page = [record(each, 1) for each in ids]
    newer = [record(each, 2, "b") for each in ids]

    assert await write(sink(path), page, page, newer, newer[:5] + page[5:]) == [
        len(ids),
        0,
        len(ids),
        0,
    ]


@pytest.mark.parametrize(
    ("pages", "counts", "expected"),
    [
        ([[("1", 1, "a")], [("1", 2, "b")]], [1, 1], "b"),
        ([[("1", 2, "b")], [("1", 1, "a")]], [1, 0], "b"),
        ([[("1", 1, "a")], [("1", 1, "b")]], [1, 1], "b"),
        ([[("1", 2, "b"), ("1", 1, "a")]], [1], "b"),
        ([[("1", 1, "a"), ("1", 2, "b")]], [1], "b"),
        ([[("1", 1, "a"), ("1", 1, "b")]], [1], "b"),
        ([[("1", 1, "a")], [("1", 1, "b"), ("1", 1, "a")]], [1, 0], "a"),
        ([[("1", 2, "a")], [("1", 1, "b"), ("1", 2, "c")]], [1, 1], "c"),
    ],
)
async def test_keep_latest_has_the_newest_content_however_it_arrives(
    path: Path, pages: list[list[tuple[str, int, str]]], counts: list[int], expected: str
) -> None:
    """Older content never replaces newer; at equal times what arrived later wins."""
    made = [[record(*each) for each in page] for page in pages]

    assert await write(sink(path), *made) == counts
    assert table(path, VALUES) == [("1", expected)]


@pytest.mark.parametrize(
    ("later", "count", "expected"),
    [
        (("1", 1, "b"), 0, "a"),
        (("1", 2, "a"), 0, "a"),
        (("1", 2, "b"), 1, "b"),
        (("1", 3, "b"), 1, "b"),
    ],
)
async def test_a_later_run_asks_what_is_newer(
    path: Path, later: tuple[str, int, str], count: int, expected: str
) -> None:
    """What the table is asked, before anything is written, has the same rule."""
    await write(sink(path), [record("1", 2, "a")])
    assert await write(sink(path), [record(*later)]) == [count]
    assert table(path, VALUES) == [("1", expected)]


async def test_changed_row_is_replaced_whole(path: Path) -> None:
    """Version, time and arrival of a row belong to its content."""
    old, new = record("1", 1, "a"), record("1", 2, "b")
    await write(sink(path), [old])
    [(_, _, arrived)] = table(path, "version, record_timestamp, collected_at")
    await write(sink(path), [new])

    [(version, timestamp, arrived_later)] = table(path, "version, record_timestamp, collected_at")
    assert (version, timestamp) == (new.version, "2024-01-01T00:02:00.000000+00:00")
    assert arrived_later > arrived


async def test_timestamps_order_as_text(path: Path) -> None:
    """Any two instants compare as their texts do, also far ones and those without microseconds."""
    moments = [datetime(1, 1, 1), at(0), at(0) + timedelta(microseconds=1), datetime(9999, 12, 31)]  # noqa: DTZ001 - naive is UTC
    await write(sink(path), [record(str(n), moment) for n, moment in enumerate(moments)])

    ordered = table(path, "record_timestamp, record_id")
    assert [row[1] for row in sorted(ordered)] == ["0", "1", "2", "3"]
    assert {len(row[0]) for row in ordered} == {32}


async def test_page_is_stored_whole_or_not_at_all(path: Path) -> None:
    """A page that breaks in its last row leaves no row; the pages before it stay."""
    async with sink(path) as target:
        await target.write("feed", Page([record("1", 1)]))
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(
                "CREATE TRIGGER refuse BEFORE INSERT ON records WHEN new.record_id = '9' "
                "BEGIN SELECT raise(ABORT, 'number nine'); END"
            )
            connection.commit()
        with pytest.raises(SinkError, match="could not store a page: number nine") as caught:
            await target.write("feed", Page([record("2", 2), record("9", 9)]))
        assert (await target.write("feed", Page([record("3", 3)]))).written == 1

    assert caught.value.source_id == "feed"
    assert [row[0] for row in table(path)] == ["1", "3"]


async def test_error_of_the_database_shows_no_record(path: Path) -> None:
    """A log of a failed write has neither the records nor the statement's parameters."""
    page = Page([record("1", 1, "CONTENT")])
    async with sink(path) as target:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DROP TABLE records")
        with pytest.raises(SinkError) as caught:
            await target.write("feed", page)

    assert "CONTENT" not in "".join(traceback.format_exception(caught.value))
    assert "no such table" in str(caught.value)
    assert caught.value.__cause__ is not None


async def test_other_programs_read_while_the_sink_writes(path: Path) -> None:
    """What was written is seen at once, and a reader never stops a writer."""
    async with sink(path) as target:
        await target.write("feed", Page([record("1", 1)]))
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM records").fetchone() == (1,)
            await target.write("feed", Page([record("2", 2)]))
            assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert len(table(path)) == 2


async def test_every_commit_reaches_the_disk(path: Path) -> None:
    """The log is flushed with each page, not only with each checkpoint: power may fail."""
    async with sink(path) as target:
        connection = connection_of(target)
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


async def test_two_sinks_write_one_table_at_once(path: Path) -> None:
    """Runs that overlap wait for each other's transactions, from the making of the table on."""

    async def fill(source_id: str) -> int:
        pages = [[record(str(n), n) for n in range(k, k + 20)] for k in range(0, 200, 20)]
        return sum(await write(sink(path), *pages, source_id=source_id))

    assert await asyncio.gather(*(fill(f"source-{n}") for n in range(4))) == [200] * 4
    assert len(table(path)) == 800


async def test_table_that_is_locked_for_too_long_fails_the_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program that never lets go is an error of ours, not a run that hangs."""
    monkeypatch.setattr(sql_sqlite, "WAIT_SECONDS", 0.01)
    async with sink(path) as target:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(
                SinkError, match=r"database is locked\. Stop the program that holds"
            ):
                await target.write("feed", Page([record("1", 1)]))


async def test_opening_waits_for_who_makes_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself fails at once where two switch a new file to a log; the sink waits a while."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(write(sink(path), [record("1", 1)]))
        await asyncio.wait({writing}, timeout=0.05)
        assert not writing.done()
        other.execute("ROLLBACK")
        assert await writing == [1]
        other.execute("PRAGMA journal_mode=DELETE")
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(sql_sqlite, "WAIT_SECONDS", 0.01)
        with pytest.raises(SinkError, match="could not be opened: database is locked"):
            await write(sink(path))


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_table_of_another_keep_is_refused(path: Path, keep: str) -> None:
    """One table cannot be both; the error says what it was made for."""
    other = "all" if keep == "latest" else "latest"
    await write(sink(path, keep), [record("1", 1)])

    with pytest.raises(SinkError, match=f"created with keep='{keep}', not '{other}'"):
        await write(sink(path, other))
    assert len(table(path)) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE records (id INTEGER PRIMARY KEY, name TEXT)",
        "CREATE VIEW records AS SELECT 1 AS one",
        "CREATE TABLE records"
        " (source_id, record_id, version, record_timestamp, payload, collected_at)",
    ],
)
async def test_table_that_the_sink_did_not_make_is_refused(path: Path, statement: str) -> None:
    """Somebody else's table is left as it is."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)

    with pytest.raises(SinkError, match=r"'records'.*[Uu]se another table"):
        await write(sink(path))


async def test_file_that_is_no_database_is_refused(path: Path) -> None:
    """A file that happens to be there is not overwritten."""
    text = "this is a text, and long enough to be looked at as a header" * 20
    await asyncio.to_thread(path.write_text, text)

    message = r"could not be opened: file is not a database\. Set the sink to a database of SQLite"
    with pytest.raises(SinkError, match=message):
        await write(sink(path))
    assert await asyncio.to_thread(path.read_text) == text


async def test_missing_folder_is_named(tmp_path: Path) -> None:
    """SQLite says only that it is unable to open the file."""
    with pytest.raises(SinkError, match=rf"folder {tmp_path}/nowhere does not exist\. Create it"):
        await write(sink(tmp_path / "nowhere" / "records.db"))


async def test_relative_address_is_beside_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As databases are told everywhere: three slashes are relative."""
    monkeypatch.chdir(tmp_path)
    await write(SqlSink("sqlite:///here.db"), [record("1", 1)])

    assert len(table(tmp_path / "here.db")) == 1


async def test_event_loop_goes_on_while_the_database_waits(path: Path) -> None:
    """A locked or slow disk does not stop the heartbeats of the same loop."""
    beats = asyncio.Event()
    async with sink(path) as target:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            writing = asyncio.create_task(target.write("feed", Page([record("1", 1)])))
            asyncio.get_running_loop().call_later(0.01, beats.set)
            await asyncio.wait_for(beats.wait(), 5)
            assert not writing.done()
            other.execute("COMMIT")
        assert (await writing).written == 1


async def test_cancelled_write_leaves_nothing_behind(path: Path) -> None:
    """Leaving waits for the transaction that is under way; no thread and no lock remain."""
    threads = set(threading.enumerate())
    target = sink(path)
    entered = asyncio.Event()

    async def collect() -> None:
        async with target:
            entered.set()
            await target.write("feed", Page([record("1", 1)]))

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        await write(sink(path))
        other.execute("BEGIN IMMEDIATE")
        running = asyncio.create_task(collect())
        await asyncio.wait_for(entered.wait(), 5)
        running.cancel()
        await asyncio.sleep(0)
        assert not running.done()
        other.execute("COMMIT")
    with pytest.raises(asyncio.CancelledError):
        await running
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)
        assert not thread.is_alive()

    assert await write(target, [record("1", 1), record("2", 2)]) in ([1], [2])
    assert len(table(path)) == 2


async def test_sink_that_could_not_be_opened_can_be_tried_again(tmp_path: Path) -> None:
    """A failed opening leaves no thread that blocks the next."""
    target = sink(tmp_path / "later" / "records.db")
    with pytest.raises(SinkError):
        await write(target)
    (tmp_path / "later").mkdir()

    assert await write(target, [record("1", 1)]) == [1]


@pytest.mark.parametrize("name", ["order", "Records", "_x1"])
async def test_table_may_have_any_usual_name(path: Path, name: str) -> None:
    """Names that are words of SQL are quoted."""
    assert await write(sink(path, name=name), [record("1", 1)]) == [1]
    assert len(table(path, name=f'"{name}"')) == 1


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_page_of_known_records_waits_for_nobody(path: Path, keep: str) -> None:
    """Nor does opening what is there: both only read."""
    page = [record("1", 1), record("2", 2)]
    await write(sink(path, keep), page)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert await asyncio.wait_for(write(sink(path, keep), page), 10) == [0]


async def test_large_page_is_inserted_in_parts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large it is, little of it is in memory once more; it is one transaction."""
    page = [record(str(number), number) for number in range(5)]
    monkeypatch.setattr(sql_sqlite, "_INSERTED_CHARACTERS", 2 * len(page[0].payload))
    statements: list[str] = []
    async with sink(path) as target:
        trace(target, statements)
        assert (await target.write("feed", Page(page))).written == 5
    kinds = [each.split()[0] for each in statements]
    assert kinds.count("INSERT") == 3
    assert kinds.count("COMMIT") == 1


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_page_is_looked_up_unless_the_one_before_was_all_new(path: Path, keep: str) -> None:
    """A first collection asks for nothing that it cannot find; a later one only asks."""
    statements: list[str] = []
    first, second = [record("1", 1), record("2", 2)], [record("3", 3)]
    seen = []
    async with sink(path, keep) as target:
        trace(target, statements)
        for page in (first, second, first, first, second):
            written = (await target.write("feed", Page(page))).written
            asked = "".join(statements)
            seen.append((written, "LEFT JOIN" in asked, "INSERT" in asked))
            statements.clear()
    assert seen == [
        (2, False, True),
        (1, False, True),
        (0, True, keep == "latest"),  # not all new after all: begun again
        (0, True, False),
        (0, True, False),
    ]


async def test_page_after_a_position_is_looked_up_at_once(path: Path) -> None:
    """Whether the source has rows is not asked; where it has none, the page is stored as well."""
    statements: list[str] = []
    async with sink(path) as target:
        await target.write("feed", Page(), position=Position(timestamp=at(0)))
    async with sink(path) as target:
        trace(target, statements)
        assert await target.position("feed") is not None
        assert (await target.write("feed", Page([record("1", 1)]))).written == 1
    asked = [each for each in statements if each.lstrip().startswith("SELECT")]
    assert len([each for each in asked if "LEFT JOIN" in each]) == 1
    assert len(asked) == 3  # with the position, and what the rows of the source are like


async def test_known_records_of_a_page_become_no_objects(path: Path) -> None:
    """Nor do its new ones, whose columns are stored as they are."""
    made = [record(str(number), number) for number in range(4)]
    those = Columns.of(made)
    page = Columns(those.ids, those.timestamps, those.payloads, those.versions)
    async with sink(path) as target:
        await target.write("feed", Page(made[1:3]))
        await target.write("feed", Page(made[1:3]))
        result = await target.write("feed", Page(page))
    assert page._records is None
    assert isinstance(result.new, Columns)
    assert (result.new.ids, result.changed) == (["0", "3"], [])


@pytest.mark.parametrize("deleted", [False, True])
async def test_superseded_records_of_columns_are_objects_of_the_page(
    path: Path, deleted: bool
) -> None:
    """By their identity the page tells what it says last of them."""
    newer, other, new = record("1", 9, "newer"), record("2", 2), record("3", 3)
    those = Columns.of([record("1", 1, "older"), other, new])
    page = Columns(those.ids, those.timestamps, those.payloads, those.versions)
    async with sink(path) as target:
        await target.write("feed", Page([newer, other]))
        if deleted:
            with closing(sqlite3.connect(path, isolation_level=None)) as owner:
                owner.execute("DELETE FROM records WHERE record_id = '1'")
        await target.write("feed", Page([other]))
        result = await target.write("feed", Page(page))
    assert [each.record_id for each in result.new] == ["3"]
    [superseded] = result.superseded
    assert superseded is page[0]


async def test_full_disk_is_said(path: Path) -> None:
    """The error has what SQLite says and what to do; what was there stays, and it goes on."""
    async with sink(path) as target:
        await target.write("feed", Page([record("1", 1)]))
        connection = connection_of(target)
        connection.exec_driver_sql("PRAGMA max_page_count = 20").close()
        connection.commit()
        page = Page([record(str(n), n, "x" * 1000) for n in range(200)])
        with pytest.raises(SinkError, match=r"database or disk is full\. Free some disk space"):
            await target.write("feed", page)
        assert len(table(path)) == 1
        connection.exec_driver_sql("PRAGMA max_page_count = 100000").close()
        connection.commit()
        assert (await target.write("feed", page)).written == 200


async def test_relative_address_starts_at_the_working_directory_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that changes its folder writes into the database of the folder that it is in."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        async with SqlSink("sqlite:///relative.db") as target:
            assert (await target.write("feed", Page([record("1", 1)]))).written == 1
        assert (tmp_path / name / "relative.db").exists()


TAKEN_AWAY: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: path.unlink(),
    "moved": lambda path: path.rename(path.with_name("other.db")),
    "replaced": lambda path: shutil.move(shutil.copy(path, path.with_name("other.db")), path),
}


@pytest.mark.parametrize("how", TAKEN_AWAY)
async def test_file_that_is_taken_away_during_a_run_fails_it(path: Path, how: str) -> None:
    """What can be written to a file that nobody finds again is not durable."""
    async with SqlSink(f"sqlite:///{path}") as sink:
        await sink.write("feed", Page([record("1", 1), record("2", 2)]))
        TAKEN_AWAY[how](path)
        with pytest.raises(SinkError, match="moved, removed or replaced while a run"):
            await sink.write("feed", Page([record("3", 3)]))
        with pytest.raises(SinkError, match="moved, removed or replaced while a run"):
            await sink.revert("feed", [record("1", 0, "b")])
        with pytest.raises(SinkError, match="moved, removed or replaced while a run"):
            await sink.mark_removed("feed", {"2", "3"}, 1)
