"""The source that is a table, in SQLite and a real PostgreSQL: what it reads and must not lose."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import psycopg
import pytest
import stamina
from psycopg.types.range import Range
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from ladon_storage.collection.protocols import WriteResult
from ladon_storage.collection.records import Page, Record
from ladon_storage.collection.run import run
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.sinks import SqlSink
from ladon_storage.sources import source_from
from ladon_storage.sources.sql import source as sql_module
from ladon_storage.sources.sql import table as sql_table
from ladon_storage.sources.sql.sessions import reading_engine
from ladon_storage.sources.sql.source import SqlTable
from ladon_storage.sources.sql.values import json_value
from ladon_storage.testing import SourceContract, SourceFeed
from ladon_storage.testing.doubles import MemorySink, RememberingSink, ScriptedStorage, at
from tests.postgres import PASSWORD, PostgresServer
from tests.tables import table

SECRET = "LADON_TEST_DATABASE"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def read(
    source: SqlTable, start: datetime | None = None, until: datetime | None = None
) -> list[Page]:
    return [page async for page in source.pages(start, until)]


async def records(
    source: SqlTable, start: datetime | None = None, until: datetime | None = None
) -> list[Record]:
    return [each for page in await read(source, start, until) for each in page.records]


def ids(found: list[Record]) -> list[str]:
    return [each.record_id for each in found]


class File:
    """Be a SQLite database with one table, and the source that reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, statement: str, rows: list[tuple[Any, ...]] | None = None) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            if rows is None:
                connection.execute(statement)
            else:
                connection.executemany(statement, rows)

    def fill(self, *rows: tuple[Any, ...], kind: str = "TIMESTAMP") -> None:
        self.run(f"CREATE TABLE IF NOT EXISTS events (id, updated_at {kind}, note TEXT)")
        padded = [(*row, "a")[:3] for row in rows]
        self.run("INSERT INTO events VALUES (?, ?, ?)", padded)

    def source(self, **fields: Any) -> SqlTable:
        return SqlTable(
            **{"source_id": "log", "url": f"sqlite:///{self.path}", "table": "events", **fields}
        )


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "app.db")


class Base:
    """Be an empty database of the real PostgreSQL, and the source that reads it."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.name = server.database()
        self.url = server.url(self.name)

    def run(self, statement: str) -> list[tuple[object, ...]]:
        return self.server.execute(statement, self.name)

    def source(self, **fields: Any) -> SqlTable:
        return SqlTable(**{"source_id": "log", "url_secret": SECRET, "table": "events", **fields})


@pytest.fixture
def base(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Base:
    base = Base(postgres)
    monkeypatch.setenv(SECRET, base.url)
    return base


@contextmanager
def quick_retries(attempts: int) -> Iterator[None]:
    stamina.set_testing(True, attempts=attempts, cap=True)
    try:
        yield
    finally:
        stamina.set_testing(False)


# What a keyset reads.


async def test_rows_come_by_time_and_id(file: File) -> None:
    """What is asked for is the range, give or take a second; the content is the row's columns."""
    file.fill((3, "2024-01-01 00:02:00"), (1, "2024-01-01 00:01:00"), (4, "2024-01-01 00:03:02"))
    file.fill((2, "2024-01-01 00:01:00"), (0, "2024-01-01 00:00:58.999999"))

    found = await records(file.source(), at(1), at(3))

    assert [(each.record_id, each.timestamp) for each in found] == [
        ("1", at(1)),
        ("2", at(1)),
        ("3", at(2)),
    ]
    assert json.loads(found[0].payload) == {
        "id": 1,
        "updated_at": "2024-01-01 00:01:00",
        "note": "a",
    }


@pytest.mark.parametrize("page_size", [1, 2, 3, 7, 100])
async def test_ties_wider_than_a_page_are_all_read(file: File, page_size: int) -> None:
    """The id goes on where the timestamp stands still, whatever the page ends with."""
    file.fill(*((n, "2024-01-01 00:01:00") for n in range(10)), (10, "2024-01-01 00:02:00"))

    pages = await read(file.source(page_size=page_size))

    assert ids([each for page in pages for each in page.records]) == [str(n) for n in range(11)]
    assert max(len(page) for page in pages) <= page_size


async def test_rows_that_come_and_go_while_paging_shift_nothing(file: File) -> None:
    """A keyset goes on behind a row, not behind a number of rows."""
    file.fill(*((n, f"2024-01-01 00:{n:02}:00") for n in range(10, 20)))
    found = []

    async for page in file.source(page_size=3).pages(None, None):
        found += ids(page.records)
        if len(found) == 3:
            file.run("DELETE FROM events WHERE id IN (10, 11)")
            file.fill((9, "2024-01-01 00:09:00"), (155, "2024-01-01 00:15:00"))

    assert found == ["10", "11", "12", "13", "14", "15", "155", "16", "17", "18", "19"]


async def test_row_that_changes_while_paging_comes_once_more(file: File) -> None:
    """It moves behind the page that is read, so that its newest version is not missed."""
    file.fill(*((n, f"2024-01-01 00:{n:02}:00") for n in range(10, 14)))
    sink, storage = MemorySink(), ScriptedStorage()
    source = file.source(page_size=2)
    sink.script.append(
        lambda: file.run(
            "UPDATE events SET note = 'b', updated_at = '2024-01-01 00:30:00' WHERE id = 10"
        )
    )

    await run(source, sink, storage, run_id="r", clock=lambda: at(60))

    assert sink.ids == ["10", "10", "11", "12", "13"]
    assert storage.stored["log"].last_successful_timestamp == at(30)


async def test_two_rows_with_one_key_fail_loudly(file: File) -> None:
    """A page could end between them, and lose the second."""
    file.fill((1, "2024-01-01 00:01:00", "a"), (1, "2024-01-01 00:01:00", "b"))

    with pytest.raises(SourceError, match=r"two rows with the id 1 at .* Set id_column to"):
        await read(file.source(page_size=1))


async def test_versions_of_one_id_are_all_read(file: File) -> None:
    """A history table has an id many times, at different instants."""
    file.fill((1, "2024-01-01 00:01:00", "a"), (1, "2024-01-01 00:02:00", "b"))

    assert ids(await records(file.source(page_size=1))) == ["1", "1"]


async def test_view_is_read_like_a_table(file: File) -> None:
    """Whatever can be selected from can be collected, a computed timestamp included."""
    file.fill((1, None), (2, "2024-01-01 00:02:00"))
    file.run("CREATE VIEW seen AS SELECT id, coalesce(updated_at, '2024-01-01') AS at FROM events")

    found = await records(file.source(table="seen", timestamp_column="at"))

    assert [(each.record_id, each.timestamp) for each in found] == [("1", at(0)), ("2", at(2))]


async def test_chosen_columns_alone_are_collected(file: File) -> None:
    """A row is as new as its timestamp says, even if nobody wants to store it."""
    file.fill((7, "2024-01-01 00:01:00", "x"))

    (found,) = await records(file.source(columns=("note",)))

    assert (found.record_id, found.timestamp, found.payload) == ("7", at(1), '{"note":"x"}')


async def test_words_of_sql_are_names(tmp_path: Path) -> None:
    """Names are quoted, whatever they are."""
    file = File(tmp_path / "app.db")
    file.run('CREATE TABLE "order by; --" ("select" INTEGER, "from where" TEXT, "a%(b)s:c" TEXT)')
    file.run("INSERT INTO \"order by; --\" VALUES (1, '2024-01-01', 'x')")

    (found,) = await records(
        file.source(table="order by; --", id_column="select", timestamp_column="from where")
    )

    assert json.loads(found.payload)["a%(b)s:c"] == "x"


# Timestamps.


async def test_numbers_as_text_are_compared_as_numbers(file: File) -> None:
    """The text "10" is after "9"; what is no number goes into the quarantine."""
    file.fill((1, "9"), (2, "10"), (3, "x"), (4, None), kind="TEXT")
    source = file.source(timestamp_format="seconds", page_size=1)

    pages = await read(source)
    again = await records(source, datetime.fromtimestamp(10, UTC))

    assert ids([each for page in pages for each in page.records]) == ["1", "2"]
    assert sorted(each.record_id or "" for each in pages[0].rejects) == ["3", "4"]
    assert ids(again) == ["2"]


@pytest.mark.parametrize(
    ("times", "value", "expected"),
    [
        ("seconds", 1_700_000_000, "2023-11-14T22:13:20"),
        ("seconds", 1_700_000_000.25, "2023-11-14T22:13:20.250000"),
        ("seconds", -1, "1969-12-31T23:59:59"),
        ("milliseconds", 1_700_000_000_001, "2023-11-14T22:13:20.001000"),
        ("milliseconds", 1_700_000_000_000.9995, "2023-11-14T22:13:20.000999"),
        ("datetime", "2024-01-01 00:00:00.123456999", "2024-01-01T00:00:00.123456"),
        ("datetime", "2024-01-01", "2024-01-01"),
        ("text", "2024-01-02T21:59:38+05:30", "2024-01-02T16:29:38"),
        ("text", "2024-01-02T21:59:38.9999999Z", "2024-01-02T21:59:38.999999"),
    ],
)
async def test_timestamp_is_never_rounded_up(
    file: File, times: str, value: Any, expected: str
) -> None:
    """It is cut to microseconds, and the row is read again from exactly that instant on."""
    file.fill((1, value), kind="NUMERIC" if times.endswith("seconds") else "TEXT")
    source = file.source(timestamp_format=times)

    (found,) = await records(source)

    assert found.timestamp == utc(expected)
    assert ids(await records(source, found.timestamp)) == ["1"]
    assert ids(await records(source, found.timestamp + timedelta(seconds=3))) == []
    assert ids(await records(source, None, found.timestamp - timedelta(seconds=3))) == []
    assert ids(await records(source, None, found.timestamp + timedelta(microseconds=1))) == ["1"]


async def test_texts_with_offsets_are_compared_as_instants(file: File) -> None:
    """As texts they sort in another order, so that they promise none."""
    file.fill((1, "2024-01-01T05:00:00+05:00"), (2, "2024-01-01T01:00:00Z"), kind="TEXT")
    file.fill((3, "2023-12-31T23:00:00-12:00"), kind="TEXT")
    source = file.source(timestamp_format="text")

    for start, until, expected in ((0, 59, "1"), (1, 659, "2"), (61, 661, "3")):
        assert ids(await records(source, at(start), at(until))) == [expected]
    assert not source.ordered
    assert not source.order_guaranteed


async def test_texts_that_sort_wrong_are_refused_where_order_was_declared(file: File) -> None:
    """A checkpoint could skip what sorts wrong; the error says what to set."""
    file.fill((1, "2024-01-01 04:00:00"), (2, "2024-01-01T01:00:00"))

    with pytest.raises(
        SourceError, match=r"'2024-01-01T01:00:00' comes after .* Set timestamp_format to text"
    ):
        await read(file.source(page_size=1))
    assert ids(await records(file.source(timestamp_format="text"))) == ["1", "2"]


@pytest.mark.parametrize(
    ("naive", "instant"),
    [
        ("2024-01-01 01:00:00", "2024-01-01T00:00:00"),
        ("2024-07-01 02:00:00", "2024-07-01T00:00:00"),
        ("2024-10-27 02:30:00", "2024-10-27T00:30:00"),  # twice on that day; the first
        ("2024-03-31 02:30:00", "2024-03-31T00:30:00"),  # never on that day
    ],
)
async def test_naive_timestamp_is_in_the_declared_zone(
    file: File, naive: str, instant: str
) -> None:
    """Also in the hours in which clocks are set: what is in the range is read, and nothing else."""
    file.fill((1, naive))
    source = file.source(zone="Europe/Berlin")

    for begin in (-timedelta(hours=2), -timedelta(hours=1), timedelta(0)):
        (found,) = await records(source, utc(instant) + begin)
        assert found.timestamp == utc(instant)
    for end in (timedelta(microseconds=1), timedelta(hours=1), timedelta(hours=2)):
        assert ids(await records(source, None, utc(instant) + end)) == ["1"]
    assert ids(await records(source, utc(instant) + timedelta(hours=3))) == []
    assert ids(await records(source, None, utc(instant) - timedelta(hours=3))) == []


async def test_range_at_the_ends_of_time_is_read(file: File) -> None:
    """A margin that leaves the years 1 to 9999 is none."""
    file.fill((1, "2024-01-01"))
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

    assert ids(await records(file.source(), first, last)) == ["1"]
    assert ids(await records(file.source(zone="Europe/Berlin"), first, last)) == ["1"]


async def test_unusable_rows_are_rejected_and_the_rest_goes_on(file: File) -> None:
    """A missing or impossible timestamp, or id, is quarantined, not lost."""
    file.fill((1, "2024-01-01 00:01:00"), (2, None), (3, "x"), (None, "2024-01-01 00:02:00"))
    file.fill((b"\x01", "2024-01-01 00:03:00"))
    sink, storage = RememberingSink(), ScriptedStorage()

    for run_id in ("1", "2"):
        await run(file.source(), sink, storage, run_id=run_id, clock=lambda: at(60))

    assert sink.ids == ["01", "1"]
    assert sorted(reason.partition(":")[0] for _, reason, _ in sink.rejects) == [
        "id",
        "updated_at",
        "updated_at",
    ]
    assert storage.stored["log"].last_successful_timestamp == at(3)


async def test_rows_without_timestamp_are_bounded(
    file: File, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A first run may fail over them, a later one may not; how many there are is always said."""
    monkeypatch.setattr(sql_module, "UNREACHABLE_ROWS", 20)
    file.fill(*((n, None) for n in range(30)))

    first, quiet = await read(file.source()), await read(file.source(), at(0))
    file.fill((99, "2024-01-01 00:01:00"))
    again = await read(file.source(), at(0))

    assert (
        "has 30 rows without a usable timestamp or id in 'events', of which this run reads 20"
        in (caplog.messages[0])
    )
    assert "of which this run reads 5" in caplog.messages[1]
    assert [len(page.rejects) for page in first] == [20, 0]
    assert [len(page) for page in quiet] == [0]  # alone they would fail a table that is quiet
    assert [each.record_id for each in again[0].rejects] == ["29", "28", "27", "26", "25"]


async def test_columns_that_are_never_null_cost_no_statement(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search for what cannot be there would read the whole table."""
    file.run("CREATE TABLE events (id INTEGER PRIMARY KEY NOT NULL, updated_at TEXT NOT NULL)")
    monkeypatch.setattr(sql_table.TableReader, "_rows", lambda *_: pytest.fail("was asked"))
    reader = None

    async def opened() -> tuple[list[sql_table.Row], int]:
        source = file.source()
        layout = sql_table.Layout(
            "log", "events", None, ("id",), "updated_at", (), "datetime", UTC, 10, source.timeout
        )
        nonlocal reader
        reader = sql_table.TableReader(layout, await source._address())
        reader.open()
        return reader.unreachable(10, is_first=True)

    assert await opened() == ([], 0)
    assert reader is not None
    reader.close()


async def test_text_that_is_no_utf8_is_kept(file: File) -> None:
    """One such text in SQLite does not fail its page for ever."""
    file.run("CREATE TABLE events (id, updated_at, note)")
    file.run("INSERT INTO events VALUES (1, '2024-01-01', CAST(x'61ff' AS TEXT))")

    (found,) = await records(file.source())

    assert json.loads(found.payload)["note"] == "a\udcff"


async def test_driver_that_tells_less_than_its_database_does_not_loop(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come twice then, and the run fails where a page holds only one such instant."""
    file.fill(*((n, f"2024-01-01 00:00:00.{n}") for n in range(1, 8)))
    plain = sql_table.TableReader._rows

    def coarse(reader: sql_table.TableReader, statement: Any) -> list[sql_table.Row]:
        rows = plain(reader, statement)
        return [replace(each, key=(each.key[0][:19], each.key[1])) for each in rows]

    monkeypatch.setattr(sql_table.TableReader, "_rows", coarse)

    with pytest.raises(SourceError, match=r"more than 3 rows within one microsecond.* larger page"):
        await read(file.source(page_size=3))
    assert len(await records(file.source(page_size=7))) == 7


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("1E+3"), "1000"),
        (datetime.fromisoformat("2024-01-01T09:00:00+09:00"), "2024-01-01T00:00:00+00:00"),
        (datetime(2024, 1, 1), "2024-01-01T00:00:00"),  # noqa: DTZ001 - as a driver gives it
        ({1: [b"\x00", (None, True)]}, {"1": ["00", [None, True]]}),
    ],
)
def test_value_is_told_the_same_whatever_the_server_is_set_to(value: Any, expected: Any) -> None:
    """Else a row would have changed because its server was moved."""
    assert json_value(value) == expected


def test_file_cannot_be_written(file: File) -> None:
    """What is collected from belongs to somebody else."""
    file.fill((1, "2024-01-01"))
    engine = reading_engine(make_url(f"sqlite:///{file.path}"), timedelta(seconds=1))

    with engine.connect() as connection, pytest.raises(OperationalError, match="readonly"):
        connection.exec_driver_sql("DELETE FROM events")
    engine.dispose()


# PostgreSQL.


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
async def test_naive_column_is_in_the_declared_zone(base: Base, zone: str) -> None:
    """Whatever zone its server is set to."""
    base.run(f"ALTER DATABASE {base.name} SET timezone = 'Asia/Tokyo'")
    base.run(
        "CREATE TABLE events AS SELECT 1 AS id, '2024-07-01 02:00:00.000001'::timestamp"
        " AS updated_at, '2024-01-01 00:00Z'::timestamptz AS at"
    )
    base.run("CREATE VIEW told AS SELECT id, updated_at, at::text AS at FROM events")
    source = base.source(table="told", zone=zone)
    instant = utc(f"2024-07-01T{'02' if zone == 'UTC' else '00'}:00:00.000001")

    (found,) = await records(source, instant, instant + timedelta(microseconds=1))

    assert found.timestamp == instant
    assert json.loads(found.payload)["at"] == "2024-01-01 00:00:00+00"
    assert await records(source, None, instant) == []


async def test_every_type_is_told_without_loss(base: Base) -> None:
    """What JSON has no kind for is a text that says it all."""
    base.run("SET timezone = 'Asia/Tokyo'")
    base.run(
        "CREATE TABLE events AS SELECT 1::bigint AS id, "
        " '2024-01-01 00:00:00.123456+09'::timestamptz AS updated_at,"
        " 9007199254740993::bigint AS large, 1.10::numeric AS exact,"
        " 1e30::numeric AS huge, 'NaN'::numeric AS nan, '-Infinity'::float8 AS minus,"
        " 0.1::float8 AS f, true AS yes, '\\x00ff'::bytea AS raw, '2024-01-02'::date AS day,"
        " '6fa459ea-ee8a-3ca4-894e-db77e160355e'::uuid AS u, '{\"a\": [1, null]}'::jsonb AS doc,"
        " ARRAY[1.5, 2]::numeric[] AS many, '1 day 2 seconds'::interval AS span,"
        " '203.0.113.7'::inet AS ip, 'infinity'::timestamptz AS never, NULL::text AS none"
    )

    (found,) = await records(base.source())

    assert found.timestamp == utc("2023-12-31T15:00:00.123456")
    assert json.loads(found.payload) == {
        "id": 1,
        "updated_at": "2023-12-31T15:00:00.123456+00:00",
        "large": 9007199254740993,
        "exact": "1.10",
        "huge": "1" + "0" * 30,
        "nan": "NaN",
        "minus": "-Infinity",
        "f": 0.1,
        "yes": True,
        "raw": "00ff",
        "day": "2024-01-02",
        "u": "6fa459ea-ee8a-3ca4-894e-db77e160355e",
        "doc": {"a": [1, None]},
        "many": ["1.5", "2"],
        "span": "1 day, 0:00:02",
        "ip": "203.0.113.7",
        "never": "infinity",
        "none": None,
    }


@pytest.mark.parametrize(
    "id_type", ["bigint", "text", "varchar(20)", "uuid", "numeric", "smallint", "bytea"]
)
@pytest.mark.parametrize("time_type", ["timestamptz", "timestamp", "date"])
async def test_any_type_of_id_pages(base: Base, id_type: str, time_type: str) -> None:
    """The database compares its own values; ties are wider than a page, and no row comes twice."""
    value = {
        "uuid": "md5(n::text)::uuid",
        "bytea": "int4send(n)",
    }.get(id_type, f"n::{id_type}")
    base.run(
        f"CREATE TABLE events AS SELECT {value} AS id, '2024-01-02'::{time_type} AS updated_at"
        " FROM generate_series(1, 25) AS n"
    )

    found = await records(base.source(page_size=4), utc("2024-01-02"), utc("2024-01-03"))

    assert len(found) == len(set(ids(found))) == 25
    assert await records(base.source(), utc("2024-01-03")) == []
    assert await records(base.source(), None, utc("2024-01-01")) == []
    assert len(await records(base.source(), None, utc("2024-01-02T00:00:00.000001"))) == 25


async def test_thousand_rows_of_one_transaction_are_read(base: Base) -> None:
    """They share one `now()`, and a page holds a tenth of them."""
    base.run("CREATE TABLE events (id serial PRIMARY KEY, updated_at timestamptz NOT NULL)")
    base.run("INSERT INTO events (updated_at) SELECT now() FROM generate_series(1, 1000)")
    sink, storage = MemorySink(), ScriptedStorage(now=lambda: datetime.now(UTC))

    report = await run(base.source(page_size=100), sink, storage, run_id="r")

    ((moment,),) = base.run("SELECT DISTINCT updated_at FROM events")
    assert len(sink.rows) == report.records_read == 1000
    assert storage.stored["log"].last_successful_timestamp == moment


async def test_transaction_that_commits_late_is_found_by_the_overlap(base: Base) -> None:
    """Its row is older than the watermark when it appears, and is collected once."""
    base.run("CREATE TABLE events (id serial PRIMARY KEY, updated_at timestamptz NOT NULL)")
    sink, storage = MemorySink(), ScriptedStorage(now=lambda: datetime.now(UTC))
    source = base.source()
    with psycopg.connect(base.url) as late:
        late.execute("INSERT INTO events (updated_at) VALUES (now())")
        base.run("INSERT INTO events (updated_at) VALUES (clock_timestamp())")
        await run(source, sink, storage, run_id="1")
        assert sink.ids == ["2"]
        first = storage.stored["log"].last_successful_timestamp
        late.commit()

    report = await run(source, sink, storage, run_id="2")

    assert sink.ids == ["1", "2"]
    assert report.records_written == 1
    assert storage.stored["log"].last_successful_timestamp == first
    without = await records(base.source(overlap=timedelta(0)), first)
    assert ids(without) == ["2"], "without an overlap it would be missed for ever"


async def test_deleted_row_stays_collected(base: Base) -> None:
    """A delete is invisible: the sink keeps the row, and marks nothing as removed."""
    base.run(
        "CREATE TABLE events AS SELECT n AS id, now() AS updated_at FROM generate_series(1, 3) n"
    )
    sink, storage = RememberingSink(), ScriptedStorage(now=lambda: datetime.now(UTC))
    await run(base.source(), sink, storage, run_id="1")
    base.run("DELETE FROM events WHERE id = 1")

    report = await run(base.source(), sink, storage, run_id="2")

    assert (sink.ids, sink.removed, report.records_removed) == (["1", "2", "3"], set(), 0)


async def test_run_that_was_cut_off_goes_on_behind_its_last_page(
    base: Base, tmp_path: Path
) -> None:
    """Pages come in order, so that a sink which remembers its position is not filled again."""
    base.run(
        "CREATE TABLE events AS SELECT n AS id, '2024-01-01'::timestamptz + n * interval '1 minute'"
        " AS updated_at FROM generate_series(1, 100) n"
    )
    path = tmp_path / "records.db"
    storage = ScriptedStorage()
    source = base.source(page_size=10, overlap=timedelta(0))
    sink = SqlSink(f"sqlite:///{path}")
    write, durable = sink.write, 0

    async def failing(*arguments: Any, **named: Any) -> WriteResult:
        nonlocal durable
        if durable:
            raise KeyboardInterrupt
        result = await write(*arguments, **named)
        durable += result.written
        return result

    sink.write = failing  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        await run(source, sink, storage, run_id="1", clock=lambda: at(300))

    report = await run(
        source, SqlSink(f"sqlite:///{path}"), storage, run_id="2", clock=lambda: at(300)
    )

    assert report.start == at(durable)
    assert len(table(path)) == 100
    assert report.records_read == 100 - durable + 1


async def test_impossible_instants_are_rejected(base: Base) -> None:
    """`infinity` and the years before Christ are rows too, and fail no page."""
    base.run(
        "CREATE TABLE events AS SELECT * FROM (VALUES (1, '-infinity'::timestamptz),"
        " (2, '0044-03-15 BC'), (3, '2024-01-01 00:00Z'), (4, 'infinity')) AS v (id, updated_at)"
    )

    pages = await read(base.source(page_size=1))

    assert ids([each for page in pages for each in page.records]) == ["3"]
    assert [each.record_id for page in pages for each in page.rejects] == ["1", "2", "4"]


async def test_table_cannot_be_written_and_no_transaction_stays_open(base: Base) -> None:
    """Between pages nothing is held: a run of hours must not keep a vacuum from its work."""
    base.run(
        "CREATE TABLE events AS SELECT n AS id, now() AS updated_at FROM generate_series(1, 4) n"
    )
    base.run(
        "CREATE FUNCTION write() RETURNS int LANGUAGE sql AS 'DELETE FROM events RETURNING id'"
    )
    base.run("CREATE VIEW writing AS SELECT *, write() FROM events")
    states = []
    async for _ in base.source(page_size=1).pages(None, None):
        states += base.run(
            "SELECT state, xact_start FROM pg_stat_activity"
            " WHERE application_name = 'ladon-storage'"
        )

    assert states == [("idle", None)] * 4
    with pytest.raises(SourceError, match="read-only transaction"):
        await read(base.source(table="writing"))


async def test_statement_that_takes_too_long_is_ended_by_the_server(base: Base) -> None:
    """It is not repeated, since the next one would take as long; the error says what helps."""
    base.run("CREATE TABLE events AS SELECT 1 AS id, now() AS updated_at")
    base.run("CREATE VIEW slow AS SELECT id, updated_at, pg_sleep(30)::text AS s FROM events")

    with pytest.raises(SourceError, match=r"statement timeout. Create an index .* longer timeout"):
        await read(base.source(table="slow", timeout=timedelta(milliseconds=50)))


async def test_page_whose_connection_is_lost_is_read_again(base: Base) -> None:
    """The run goes on behind the last page, on a new connection."""
    base.run(
        "CREATE TABLE events AS SELECT n AS id, now() AS updated_at FROM generate_series(1, 6) n"
    )
    found = []
    with quick_retries(3):
        async for page in base.source(page_size=2).pages(None, None):
            found += ids(page.records)
            base.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'ladon-storage'"
            )

    assert found == ["1", "2", "3", "4", "5", "6"]


async def test_table_of_a_schema_is_read(base: Base) -> None:
    """A schema is a setting of its own."""
    base.run("CREATE SCHEMA audit")
    base.run("CREATE TABLE audit.events AS SELECT 1 AS id, now() AS updated_at")

    assert ids(await records(base.source(schema_name="audit"))) == ["1"]
    with pytest.raises(SourceError, match=r"no such table or view\. Correct the table"):
        await read(base.source())


async def test_password_is_in_no_error(
    base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is down or says no is named without it; a wrong password is not tried again."""
    quoted = base.url.split(":")[2].split("@")[0]
    wrong = base.url.replace(quoted, "SECRET").replace("/test", "/test")
    gone = base.url.replace(f":{base.server.port}/", ":1/")
    with quick_retries(2):
        for url, said in ((wrong, "authentication failed"), (gone, "refused")):
            monkeypatch.setenv(SECRET, url)
            with pytest.raises(SourceError, match=said) as caught:
                await read(base.source())
            text = "".join(traceback.format_exception(caught.value)) + caplog.text
            assert caught.value.transient is (url == gone)
            assert not [each for each in (PASSWORD, quoted, "SECRET") if each in text]
    assert len(caplog.records) == 3, "two attempts, and stamina's word between them"


# What is told wrong.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"url": "postgresql://me:SECRET@h/db"},
            "url: Value error, should not contain a password",
        ),
        ({"url": "postgresql://me@h/db?password=SECRET"}, "should not contain a password"),
        ({"url": "postgresql://me@h/db?sslpassword=SECRET"}, "should not contain a password"),
        ({"url": "SECRET"}, "should be an address such as postgresql://"),
        ({"url": "nosuch://SECRET"}, "should be an address such as postgresql://"),
        ({"url": "sqlite+aiosqlite:///SECRET"}, "should be an address such as postgresql://"),
        ({"url": ""}, "should have exactly one of url and url_secret"),
        (
            {"url": "sqlite:///a.db", "url_secret": "A"},
            "should have exactly one of url and url_secret",
        ),
        ({"url": "sqlite:///a.db", "zone": "Mars/Base"}, "should be a time zone"),
        ({"url": "sqlite:///a.db", "page_size": 0}, "page_size"),
        ({"url": "sqlite:///a.db", "offset": 3}, "offset: There is no such field"),
        ({"url": "sqlite:///a.db", "overlap": -1}, "overlap"),
    ],
)
def test_wrong_setting_is_named_without_a_password(fields: dict[str, Any], message: str) -> None:
    """It is refused before anything is asked."""
    with pytest.raises(ConfigurationError) as caught:
        source_from({"kind": "sql", "source_id": "log", "table": "events", **fields})

    assert message in str(caught.value)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("value", ["SECRET", "sqlite+aiosqlite:///SECRET", "nosuch://a:SECRET@b"])
async def test_secret_that_is_no_address_is_not_shown(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how an address is written."""
    monkeypatch.setenv("LADON_DB", value)

    with pytest.raises(ConfigurationError, match=r"'LADON_DB' .* is not the address") as caught:
        await read(SqlTable(source_id="log", url_secret="LADON_DB", table="events"))
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


async def test_missing_driver_is_named() -> None:
    """A database whose driver is not installed says so, and what to install."""
    with pytest.raises(ConfigurationError, match=r"'oracle'.*Install its driver"):
        await read(SqlTable(source_id="log", url="oracle://h/db", table="events"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"table": "nowhere"}, "no such table or view"),
        ({"id_column": "uid"}, "no column 'uid'; its columns are id, updated_at, note"),
        ({"columns": ("id", "nothing")}, "no column 'nothing'"),
        (
            {"timestamp_format": "seconds"},
            "is of the type TIMESTAMP, not seconds. Set timestamp_format",
        ),
    ],
)
async def test_table_that_is_not_as_declared_fails(
    file: File, fields: dict[str, Any], message: str
) -> None:
    """The error says what is there."""
    file.fill((1, "2024-01-01"))

    with pytest.raises(SourceError, match=message):
        await read(file.source(**fields))


async def test_missing_file_is_not_made(file: File) -> None:
    """SQLite would make an empty one, and the run would find nothing new for ever."""
    with pytest.raises(SourceError, match=r"is missing\. Correct the address"):
        await read(file.source())
    assert not file.path.exists()


# The thread.


async def test_event_loop_goes_on_and_no_thread_remains(base: Base) -> None:
    """A slow statement stops no heartbeat, and a cancelled run leaves nothing behind."""
    base.run("CREATE TABLE events AS SELECT 1 AS id, now() AS updated_at")
    base.run("CREATE VIEW slow AS SELECT id, updated_at, pg_sleep(30)::text AS s FROM events")
    threads = set(threading.enumerate())
    running = asyncio.create_task(
        read(base.source(table="slow", timeout=timedelta(milliseconds=500)))
    )

    def sleeping() -> bool:
        return bool(base.run("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))

    while not await asyncio.to_thread(sleeping):
        assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    for thread in set(threading.enumerate()) - threads:
        if thread.name.startswith("ladon-source"):
            thread.join(5)
            assert not thread.is_alive()
    assert not base.run("SELECT 1 FROM pg_stat_activity WHERE application_name = 'ladon-storage'")


async def test_locked_file_is_waited_for_and_asked_again(file: File) -> None:
    """A writer that holds SQLite for too long is an error that passes."""
    file.fill((1, "2024-01-01"))
    with closing(sqlite3.connect(file.path, isolation_level=None)) as writer, quick_retries(2):
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SourceError, match="database is locked") as caught:
            await read(file.source(timeout=timedelta(milliseconds=1)))
        writer.execute("COMMIT")

    assert caught.value.transient
    assert ids(await records(file.source())) == ["1"]


# Ids and values that are told in more than one way.


async def test_several_columns_are_one_id(file: File) -> None:
    """None of them is unique alone, and pages go on between any two of their values."""
    file.run("CREATE TABLE events (host TEXT, port INTEGER, updated_at TEXT)")
    pairs = [(host, port) for host in ("b", "a", "c") for port in (443, 80, 8080)]
    file.run("INSERT INTO events VALUES (?, ?, '2024-01-01')", pairs)
    file.run("INSERT INTO events VALUES ('d', NULL, '2024-01-01')")

    for size in (1, 2, 4, 100):
        pages = await read(file.source(id_column=["host", "port"], page_size=size))
        found = ids([each for page in pages for each in page.records])
        assert found == [f'["{host}",{port}]' for host, port in sorted(pairs)]
        assert [each.reason for page in pages for each in page.rejects] == ["port: missing"]


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_ids_that_a_collation_holds_for_equal_are_all_read(file: File, size: int) -> None:
    """Their bytes tell them apart, so that none is lost between two pages."""
    file.run("CREATE TABLE events (id TEXT COLLATE NOCASE, updated_at TEXT COLLATE RTRIM)")
    rows = [("a", "2024-01-01"), ("A", "2024-01-01"), ("b", "2024-01-01 "), ("B", "2024-01-01")]
    file.run("INSERT INTO events VALUES (?, ?)", rows)

    assert sorted(ids(await records(file.source(page_size=size)))) == ["A", "B", "a", "b"]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", ["citext", 'text COLLATE "POSIX"', "real", "float8", "colour"])
async def test_ids_that_compare_oddly_are_all_read(base: Base, kind: str, size: int) -> None:
    """Texts that are equal without being the same, single precision, an enumeration's order."""
    values = {"real": "0.1 0.7 0.3 16777216", "float8": "0.1 0.7 1e300", "colour": "'z' 'y' 'a'"}
    told = values.get(kind, "'a' 'A' 'b' 'B'").split(" ")
    base.run("CREATE TYPE colour AS ENUM ('z', 'y', 'a')")
    if kind == "citext":
        base.run("CREATE EXTENSION IF NOT EXISTS citext")
    base.run(f"CREATE TABLE events (id {kind}, updated_at timestamptz)")
    for each in told:
        base.run(f"INSERT INTO events VALUES ({each}, '2024-01-01')")

    assert len(set(ids(await records(base.source(page_size=size))))) == len(told)


async def test_types_that_json_has_no_kind_for_are_texts(base: Base) -> None:
    """Each is told as the database writes it, and none costs its row."""
    base.run("CREATE TYPE pair AS (a int, b text)")
    base.run(
        "CREATE TABLE events AS SELECT 1 AS id, '2024-01-01Z'::timestamptz AS updated_at,"
        " '[2024-01-01,2024-02-01)'::daterange AS days,"
        " '[2024-01-01 02:00+02,infinity)'::tstzrange AS span, 'empty'::int4range AS nothing,"
        " '{[1,3),[5,)}'::int4multirange AS many, ARRAY['[1,3)'::int4range] AS listed,"
        " ROW(1, 'x,y')::pair AS composite, '(1,2)'::point AS place, B'101' AS bits,"
        " '1 mon 2 days'::interval AS month, '24:00'::time AS late,"
        " '08:00:2b:01:02:03'::macaddr AS mac, 'a:1 b:2'::tsvector AS words,"
        " '10.0.0.0/8'::cidr AS net, '{\"n\": 1.10, \"big\": 1e400}'::jsonb AS numbers,"
        " 1.5::real AS single"
    )

    (found,) = await records(base.source())

    told = json.loads(found.payload, parse_float=str)
    assert told == {
        "id": 1,
        "updated_at": "2024-01-01T00:00:00+00:00",
        "days": "[2024-01-01,2024-02-01)",
        "span": '["2024-01-01 00:00:00+00",infinity)',
        "nothing": "empty",
        "many": "{[1,3),[5,)}",
        "listed": ["[1,3)"],
        "composite": '(1,"x,y")',
        "place": "(1,2)",
        "bits": "101",
        "month": "1 mon 2 days",
        "late": "24:00:00",
        "mac": "08:00:2b:01:02:03",
        "words": "'a':1 'b':2",
        "net": "10.0.0.0/8",
        "numbers": {"n": "1.10", "big": int("1" + "0" * 400)},
        "single": "1.5",
    }


class Colour(Enum):
    RED = 1


class Unnamed:
    """A type of a driver that nobody here knows."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Range(1, 3), "[1,3)"),
        (Range(None, Decimal("1.10"), bounds="(]"), "(,1.10]"),
        (Range(empty=True), "empty"),
        (
            Range(datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), None),
            "[2024-01-01T00:00:00+00:00,)",
        ),
        (Range("a b", 'c"'), '["a b","c\\"")'),
        (Colour.RED, "RED"),
        ({"b", "a"}, ["a", "b"]),
        (Unnamed("POINT (1 2)"), "POINT (1 2)"),
        (timedelta(hours=25), "1 day, 1:00:00"),
        (complex(1, 2), "(1+2j)"),
    ],
)
def test_value_of_an_unknown_type_is_its_text(value: Any, expected: Any) -> None:
    """The rest of its row would be lost otherwise."""
    assert json_value(value) == expected


@pytest.mark.parametrize("value", [object(), Unnamed("<Point object at 0x7f3e467de550>")])
def test_text_that_changes_with_each_run_is_refused(value: Any) -> None:
    """An address in memory would be a new version each time."""
    with pytest.raises(ValueError, match="has no JSON form"):
        json_value(value)


# What a run knows of its end, its clock, and its database.


async def test_end_and_clock_are_told(base: Base, file: File) -> None:
    """A keyset that found nothing more is an end; SQLite has no clock but ours."""
    base.run("CREATE TABLE events AS SELECT 1 AS id, now() AS updated_at")
    file.fill((1, "2024-01-01"), (2, None))
    before = datetime.now(UTC)

    (page,) = await read(base.source())
    lost, last = await read(file.source())

    assert page.asked_at is not None
    assert before <= page.asked_at <= datetime.now(UTC)
    assert (page.completeness, last.completeness) == ("last page", "last page")
    assert (lost.asked_at, last.asked_at, lost.completeness) == (None, None, None)


async def test_settings_of_the_server_change_no_value(base: Base) -> None:
    """How it writes intervals, floats and instants is set for the session."""
    base.run(
        "CREATE TABLE events AS SELECT 1 AS id, now() AS updated_at, 0.1::float8 + 0.2 AS f,"
        " '1 day 2 seconds'::interval AS span"
    )
    (before,) = await records(base.source())
    for setting in ("intervalstyle = iso_8601", "extra_float_digits = 0", "datestyle = 'SQL, DMY'"):
        base.run(f"ALTER DATABASE {base.name} SET {setting}")

    (after,) = await records(base.source())

    assert after == before
    assert '"f":0.30000000000000004,"span":"1 day, 0:00:02"' in after.payload


async def test_database_that_is_not_tested_is_named(
    file: File, caplog: pytest.LogCaptureFixture
) -> None:
    """Once in a run, by its name; the tested ones say nothing."""
    file.fill((1, "2024-01-01"))
    await read(file.source())
    assert caplog.messages == []

    with pytest.raises(ConfigurationError):
        await read(SqlTable(source_id="log", url="oracle://h/db", table="events"))

    (message,) = caplog.messages
    assert message.startswith("Source 'log' reads a database of 'oracle', which is not tested")


@pytest.mark.parametrize("kind", ["TEXT", "TIMESTAMP", ""])
async def test_timestamp_that_sorts_before_all_is_quarantined_in_each_run(
    file: File, kind: str
) -> None:
    """An empty text, or a number among texts: a later run would never come by it."""
    file.fill((1, "2024-01-01"), (2, ""), (3, 17), (4, " 2024-01-03"), (5, "01/02/24"), kind=kind)
    file.fill((6, "0000-00-00 00:00:00"))

    pages = await read(file.source(), at(-60))

    assert ids([each for page in pages for each in page.records]) == ["4", "1"]
    rejected = sorted(each.record_id or "" for page in pages for each in page.rejects)
    assert rejected == ["2", "3", "5", "6"]


@pytest.mark.parametrize(
    ("kind", "times", "none"),
    [
        ("timestamptz", "datetime", ["'-infinity'", "'0044-03-15 BC'"]),
        ("timestamp", "datetime", ["'-infinity'", "'0044-03-15 BC'"]),
        ("date", "datetime", ["'-infinity'", "'0044-03-15 BC'"]),
        ("float8", "seconds", ["'-infinity'", "-1e18"]),
        ("numeric", "seconds", ["-1e18", "-1e17"]),
        ("text", "seconds", ["'-999999999999'", "'-99999999999'"]),
    ],
)
async def test_time_before_all_calendars_is_quarantined_by_a_later_run(
    base: Base, kind: str, times: str, none: list[str]
) -> None:
    """What is smaller than any time is behind each watermark, and yet no row goes unseen."""
    usual = "'2024-01-01'" if times == "datetime" else "'1704067200'"
    base.run(f"CREATE TABLE events (id int, updated_at {kind})")
    base.run(f"INSERT INTO events VALUES (1, {usual})")
    source = base.source(timestamp_format=times)
    assert ids(await records(source)) == ["1"]

    base.run(f"INSERT INTO events VALUES (2, {none[0]}), (3, {none[1]}), (4, {usual})")
    pages = await read(source, utc("2023-12-31"))

    assert ids([each for page in pages for each in page.records]) == ["1", "4"]
    assert sorted(str(each.record_id) for page in pages for each in page.rejects) == ["2", "3"]


@pytest.mark.parametrize("kind", ["citext", "text", "timestamptz"])
async def test_domain_is_read_as_the_type_below_it(base: Base, kind: str) -> None:
    """A type by another name is compared as what it is, also over two names."""
    if kind == "citext":
        base.run("CREATE EXTENSION IF NOT EXISTS citext")
    base.run(f"CREATE DOMAIN one AS {kind}")
    base.run("CREATE DOMAIN other AS one")
    id_type, time_type = ("int", "other") if kind == "timestamptz" else ("other", "timestamptz")
    base.run(f"CREATE TABLE events (id {id_type}, updated_at {time_type})")
    names = list("123456") if kind == "timestamptz" else list("aAbBcC")
    base.run(
        "INSERT INTO events VALUES " + ", ".join(f"('{each}', '2024-01-01')" for each in names)
    )

    assert sorted(ids(await records(base.source(page_size=1)))) == sorted(names)


async def read_for_a_while(source: SqlTable) -> None:
    count = 0
    async for _ in source.pages(None, None):
        count += 1
        assert count < 1_000


@pytest.mark.parametrize("step", ["1 microsecond", "10 milliseconds"])
async def test_view_that_tells_the_present_is_refused(base: Base, step: str) -> None:
    """Rows that are newer whenever they are looked at keep a run at its first pages for ever.

    That may be each page, or only each time that a coarse clock goes on.
    """
    base.run("CREATE TABLE plain AS SELECT generate_series(0, 999) AS id")
    now = f"date_bin('{step}', clock_timestamp(), '2024-01-01')"
    base.run(f"CREATE VIEW events AS SELECT id, {now} AS updated_at FROM plain")
    with pytest.raises(SourceError, match=r"its timestamps changed .* came 5 times"):
        await read_for_a_while(base.source(page_size=2))


async def read_and_alter(source: SqlTable, base: Base, statement: str) -> None:
    async for page in source.pages(None, None):
        if ids(page.records) == ["2", "3"]:
            base.run(statement)


@pytest.mark.parametrize("column", ["updated_at", "id"])
async def test_table_that_is_altered_while_it_is_read_is_refused(base: Base, column: str) -> None:
    """Days are before their times, and other ids in another order: what is left may be behind."""
    base.run("CREATE TABLE events (id text PRIMARY KEY, updated_at timestamptz)")
    base.run(
        "INSERT INTO events SELECT i, '2024-01-01T12:00:00Z'::timestamptz + i * interval '1 s'"
        " FROM generate_series(0, 9) i"
    )
    kind = {"updated_at": "date", "id": "varchar(40)"}[column]
    altered = f"ALTER TABLE events ALTER {column} TYPE {kind}"

    with pytest.raises(SourceError, match=f"its column '{column}' changed its type while"):
        await read_and_alter(base.source(page_size=2), base, altered)


class TestContract(SourceContract):
    """A table keeps the contract of sources; it is filled with what the feed has."""

    def unusable(self) -> object:
        return (None, "2024-01-01 00:00:00", "a")

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def new_source(self, feed: SourceFeed) -> Any:
        return TableOfFeed(feed, File(self.folder / "app.db"))

    def item(self, record_id: str, time: datetime, value: str) -> object:
        return record_id, f"{time:%Y-%m-%d %H:%M:%S}", value


class TableOfFeed:
    """The source over a table that has what a feed has at each reading."""

    def __init__(self, feed: SourceFeed, file: File) -> None:
        self._feed = feed
        self._file = file
        self._inner = file.source(page_size=2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def pages(self, *arguments: Any) -> AsyncIterator[Page]:
        self._file.run("DROP TABLE IF EXISTS events")
        with contextlib.suppress(ConnectionError):  # then there is no table
            self._file.fill(*self._feed.read())
        async for page in self._inner.pages(*arguments):
            yield page
