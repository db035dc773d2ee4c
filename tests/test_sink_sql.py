"""The sink that is a table of SQLite: what it counts, keeps, refuses, and what a crash leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import traceback
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection.interfaces import Sink
from ladon_storage.collection.records import Page, Record
from ladon_storage.collection.sinks import SqlSink, sink_from
from ladon_storage.collection.sinks import sql as sql_module
from ladon_storage.errors import ConfigurationError, SinkError
from tests.collecting import MemorySink, at, record, table


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.db"


def sink(path: Path, keep: Any = "latest", name: str = "records") -> SqlSink:
    return SqlSink(f"sqlite:///{path}", name, keep)


async def write(target: Sink, *pages: list[Record], source_id: str = "feed") -> list[int]:
    async with target:
        return [await target.write(source_id, Page(page)) for page in pages]


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
async def test_same_records_again_change_nothing(path: Path, keep: str) -> None:
    """A replay within a page, in a later page and in a later run counts no row."""
    page = [record("1", 1), record("2", 2), record("1", 1)]

    assert await write(sink(path, keep), page, page) == [2, 0]
    before = table(path, "*")
    assert await write(sink(path, keep), page) == [0]
    assert table(path, "*") == before


async def test_keep_all_has_one_row_for_each_version(path: Path) -> None:
    """A version that comes back is not stored again."""
    pages = [[record("1", 1, "a"), record("1", 1, "b")], [record("1", 2, "c"), record("1", 1, "a")]]

    assert await write(sink(path, "all"), *pages) == [2, 1]
    assert {row[1] for row in table(path, VALUES)} == {"a", "b", "c"}


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


async def test_sources_do_not_touch_each_others_records(path: Path) -> None:
    """The same id at another source is another record."""
    await write(sink(path), [record("1", 2, "a")], source_id="one")
    await write(sink(path), [record("1", 1, "b")], source_id="two")

    assert table(path, "source_id, " + VALUES) == [("one", "1", "a"), ("two", "1", "b")]


async def test_empty_page_is_nothing_to_store(path: Path) -> None:
    """A page without records costs no transaction."""
    assert await write(sink(path), []) == [0]


async def test_any_text_survives(path: Path) -> None:
    """What JSON can say, the table can hold."""
    content = {"nul": "\0", "lone": "\ud800", "emoji": "🦜", "quote": "';--"}
    await write(sink(path), [Record.of("é';--", at(0), content)], source_id="sø:urce/1")

    assert table(path, "source_id, record_id") == [("sø:urce/1", "é';--")]


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
        assert await target.write("feed", Page([record("3", 3)])) == 1

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
        connection = target._connection
        assert connection is not None
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
    monkeypatch.setattr(sql_module, "_BUSY_SECONDS", 0.01)
    async with sink(path) as target:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(SinkError, match="database is locked"):
                await target.write("feed", Page([record("1", 1)]))


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_table_of_another_keep_is_refused(path: Path, keep: str) -> None:
    """One table cannot be both; the error says what it was made for."""
    other = "all" if keep == "latest" else "latest"
    await write(sink(path, keep), [record("1", 1)])

    with pytest.raises(SinkError, match=f"made with keep='{keep}', not '{other}'"):
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

    with pytest.raises(SinkError, match=r"'records'.*use another table"):
        await write(sink(path))


async def test_file_that_is_no_database_is_refused(path: Path) -> None:
    """A file that happens to be there is not overwritten."""
    text = "this is a text, and long enough to be looked at as a header" * 20
    await asyncio.to_thread(path.write_text, text)

    with pytest.raises(SinkError, match="could not be opened: file is not a database"):
        await write(sink(path))
    assert await asyncio.to_thread(path.read_text) == text


async def test_missing_folder_is_named(tmp_path: Path) -> None:
    """SQLite says only that it is unable to open the file."""
    with pytest.raises(SinkError, match=f"folder {tmp_path}/nowhere does not exist; make it"):
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
        assert await writing == 1


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


async def test_sink_serves_one_run_at_a_time(path: Path) -> None:
    """An object that is open already says so; after it was left it can be used again."""
    target = sink(path)
    async with target:
        with pytest.raises(SinkError, match="serves another run"):
            await write(target)
        assert await target.write("feed", Page([record("1", 1)])) == 1
    with pytest.raises(SinkError, match="is not open"):
        await target.write("feed", Page([record("2", 2)]))
    assert await write(target, [record("2", 2)]) == [1]


async def test_sink_that_could_not_be_opened_can_be_tried_again(tmp_path: Path) -> None:
    """A failed opening leaves no thread that blocks the next."""
    target = sink(tmp_path / "later" / "records.db")
    with pytest.raises(SinkError):
        await write(target)
    (tmp_path / "later").mkdir()

    assert await write(target, [record("1", 1)]) == [1]


_WRITER = """
import asyncio, sys
from ladon_storage.collection.records import Page
from ladon_storage.collection.sinks import SqlSink
from tests.collecting import record

async def main():
    async with SqlSink(sys.argv[1]) as sink:
        for page in range(1_000_000):
            await sink.write("feed", Page([record(f"{page}-{n}", n) for n in range(10)]))
            print(page, flush=True)

asyncio.run(main())
"""


def test_killed_process_loses_no_page_that_was_written(path: Path) -> None:
    """After kill -9 every page for which `write` returned is there, and no half page."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, f"sqlite:///{path}"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": "."},
    )
    with process:
        assert process.stdout is not None
        last = -1
        while last < 20:
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        last = int(process.stdout.read().split("\n")[-2:][0] or last)

    ids = [row[0] for row in table(path)]
    pages = {int(record_id.split("-")[0]) for record_id in ids}
    assert pages >= set(range(last + 1))
    assert len(ids) == 10 * len(pages)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "told by a dictionary"),
        ("sqlite:///records.db", "told by a dictionary"),
        ({}, "needs its address as the text 'url'"),
        ({"url": 7}, "needs its address as the text 'url'"),
        ({"url": "records.db"}, "address without a scheme; there are: sqlite://"),
        ({"url": "delta:///records"}, "address of the scheme 'delta'; there are: sqlite://"),
        (
            {"url": "sqlite:///a.db", "mode": "x"},
            "no field 'mode'; its fields are url, table, keep",
        ),
        ({"url": "sqlite:///a.db", "keep": "first"}, "'latest' or 'all', not 'first'"),
        ({"url": "sqlite:///a.db", "table": "a b"}, "cannot be named 'a b'"),
        ({"url": "sqlite:///a.db", "table": ""}, "cannot be named ''"),
        ({"url": "sqlite:///a.db", "table": None}, "cannot be named None"),
        ({"url": "sqlite:///a.db", "table": 'x"; DROP TABLE y; --'}, "cannot be named"),
        ({"url": "sqlite:///a.db", "table": "sqlite_master"}, "cannot be named"),
        ({"url": "sqlite:///a.db", "table": "x" * 64}, "cannot be named"),
        ({"url": "sqlite://"}, "is no file, so not durable"),
        ({"url": "sqlite:///:memory:"}, "is no file, so not durable"),
        ({"url": "sqlite:///file:x?mode=memory&uri=true"}, "is no file, so not durable"),
        ({"url": "sqlite://host:port/x"}, "The sink's address cannot be used"),
    ],
)
def test_wrong_description_says_what_is_wrong(value: Any, message: str) -> None:
    """What cannot be a sink is a `ConfigurationError` before anything is opened."""
    with pytest.raises(ConfigurationError) as caught:
        sink_from(value)

    assert message in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://me:SECRET@/",
        "postgres://me:SECRET@host/db",
        "sqlite://me:SECRET@host:x/db",
        "SECRET",
    ],
)
def test_no_error_shows_a_password(url: str) -> None:
    """An address that cannot be used is not repeated with its password."""
    with pytest.raises(ConfigurationError) as caught:
        sink_from({"url": url})

    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_dictionary_becomes_the_sink_of_its_scheme(path: Path) -> None:
    """The defaults are the table `records` and the latest content of each record."""
    assert repr(sink_from({"url": f"sqlite:///{path}"})) == (
        f"SqlSink('sqlite:///{path}', table='records', keep='latest')"
    )


@pytest.mark.parametrize("name", ["order", "Records", "_x1"])
async def test_table_may_have_any_usual_name(path: Path, name: str) -> None:
    """Names that are words of SQL are quoted."""
    assert await write(sink(path, name=name), [record("1", 1)]) == [1]
    assert len(table(path, name=f'"{name}"')) == 1


def test_sink_of_ones_own_is_taken_as_it_is() -> None:
    """A class needs the methods, not a base."""
    own = MemorySink()

    assert sink_from(own) is own
