"""The source that is a table, in SQLite: what it reads and must not lose."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import traceback
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import stamina
from psycopg.types.range import Range
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from ladon_storage.collection import prefetch
from ladon_storage.collection.records import Page
from ladon_storage.collection.run import run
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.sources import source_from
from ladon_storage.sources.sql import rows as sql_rows
from ladon_storage.sources.sql import source as sql_module
from ladon_storage.sources.sql import table as sql_table
from ladon_storage.sources.sql.sessions import reading_engine
from ladon_storage.sources.sql.source import SqlTable
from ladon_storage.sources.sql.values import json_value
from ladon_storage.testing import SourceContract, SourceFeed
from ladon_storage.testing.doubles import MemorySink, RememberingSink, ScriptedStorage, at
from tests.sources.sql_tables import File, ids, read, records, utc


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "app.db")


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


@pytest.mark.parametrize(
    ("one", "other", "kinds"),
    [(1, "1", "int in one row and str"), (b"1", "31", "bytes in one row and str")],
)
async def test_ids_of_two_types_that_are_one_id_fail(
    file: File, one: object, other: object, kinds: str
) -> None:
    """A column of SQLite may have both, and a sink keeps one of them."""
    file.fill((one, "2024-01-01 00:01:00", "a"), (other, "2024-01-01 00:02:00", "b"))

    with pytest.raises(SourceError, match=rf"'id' '\d+' is of the type {kinds} in another"):
        await read(file.source(page_size=1))
    found = await records(file.source(id_column=["id", "note"]))

    assert len(set(ids(found))) == 2


async def test_bytes_and_their_digits_are_one_id_of_several_columns(file: File) -> None:
    """Only numbers and texts keep their types in such an id."""
    file.fill(("h", "2024-01-01", "ff"), ("h", "2024-01-02", b"\xff"))

    with pytest.raises(SourceError, match=r"its 'note' 'ff' is of .* Collect from a view"):
        await read(file.source(id_column=["id", "note"]))


@pytest.mark.parametrize(
    ("one", "other", "kinds"),
    [(1, "1", "int in one row and str"), (b"1", "31", "str in one row and bytes")],
)
async def test_ids_of_two_types_fail_beyond_those_that_are_remembered(
    file: File, monkeypatch: pytest.MonkeyPatch, one: object, other: object, kinds: str
) -> None:
    """The database compares more ids than a run remembers; before the run is promoted."""
    monkeypatch.setattr(sql_rows, "MOST_IDS", 2)
    file.fill(*((n, f"2024-01-01 00:{n}:00", "a") for n in range(10, 15)))
    file.fill((one, "2024-01-01 00:21:00", "a"), (other, "2024-01-01 00:22:00", "b"))

    with pytest.raises(SourceError, match=rf"'id' '\d+' is of the type {kinds} in another"):
        await read(file.source(page_size=2))
    assert len(await records(file.source(page_size=2, id_column=["id", "note"]))) == 7


async def test_more_ids_of_two_types_than_are_remembered_are_read_if_they_are_others(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither other digits, nor another form of a number, nor a row out of the range is one id."""
    monkeypatch.setattr(sql_rows, "MOST_IDS", 2)
    several: list[Any] = [1, 2, "01", "a", b"b", 1.5, 1e300, "1.0e+300", "7"]
    file.fill(*((each, f"2024-01-01 00:{n}:00") for n, each in enumerate(several, 10)))
    file.fill((7, "2024-02-01 00:00:00"), (3, "2024-01-01 00:30:00"), (3, "2024-01-01 00:31:00"))

    assert len(await records(file.source(page_size=2), None, at(40))) == len(several) + 2


async def test_bytes_of_several_columns_fail_beyond_those_that_are_remembered(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers and texts keep their types there, and bytes do not."""
    monkeypatch.setattr(sql_rows, "MOST_IDS", 1)
    file.fill((1, "2024-01-01", "ff"), ("1", "2024-01-02", "ff"), (2, "2024-01-03", "ff"))
    assert len(await records(file.source(id_column=["id", "note"]))) == 3
    file.fill((2, "2024-01-04", b"\xff"))
    with pytest.raises(SourceError, match=r"its 'note' 'ff' is of .* Collect from a view"):
        await read(file.source(id_column=["id", "note"]))


async def test_ids_of_two_types_that_are_other_ids_are_read(file: File) -> None:
    """A column may have numbers and texts, and an id its versions."""
    file.fill((1, "2024-01-01 00:01:00"), ("a", "2024-01-01 00:02:00"), (1, "2024-01-01 00:03:00"))

    assert ids(await records(file.source(page_size=1))) == ["1", "a", "1"]


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


async def test_numbers_beside_texts_are_read_in_each_run(file: File) -> None:
    """A column of SQLite without a type has the type of each value."""
    seconds = int(at(0).timestamp())
    file.fill((1, seconds), (2, seconds + 0.5), (3, f"{seconds + 1}"), (4, seconds + 1.5), kind="")
    source = file.source(timestamp_format="seconds", page_size=1)

    assert ids(await records(source)) == ["1", "2", "3", "4"]
    assert ids(await records(source, at(1 / 60))) == ["3", "4"]
    assert (await records(source))[-1].timestamp == at(1.5 / 60)


async def test_column_of_sqlite_with_a_type_of_dates_may_have_numbers(file: File) -> None:
    """SQLite keeps a number there as a number."""
    seconds = int(at(0).timestamp())
    file.fill(*((n, seconds + n) for n in range(3)), (3, "2024-01-01"), kind="DATETIME")
    source = file.source(timestamp_format="seconds", page_size=1)

    assert ids(await records(source)) == ["0", "1", "2"]
    assert ids(await records(source, at(1 / 60), at(2 / 60)))[0] == "1"
    assert [len(page.rejects) for page in await read(source)][-1] == 1


async def test_nanoseconds_as_digits_are_numbers(file: File) -> None:
    """Nineteen digits fit into an integer of the database, as long as they begin with no 9."""
    first = 1_700_000_000_000_000_000
    file.fill((1, str(first)), (2, str(first + 1_000)), (3, "9" * 19), kind="TEXT")
    source = file.source(timestamp_format="nanoseconds")

    pages = await read(source)

    assert ids([each for page in pages for each in page.records]) == ["1", "2"]
    assert [each.record_id for each in pages[0].rejects] == ["3"]


@pytest.mark.parametrize(
    ("times", "value", "expected"),
    [
        ("seconds", 1_700_000_000, "2023-11-14T22:13:20"),
        ("seconds", 1_700_000_000.25, "2023-11-14T22:13:20.250000"),
        ("seconds", -1, "1969-12-31T23:59:59"),
        ("milliseconds", 1_700_000_000_001, "2023-11-14T22:13:20.001000"),
        ("milliseconds", 1_700_000_000_000.9995, "2023-11-14T22:13:20.000999"),
        ("microseconds", 1_700_000_000_000_001, "2023-11-14T22:13:20.000001"),
        ("nanoseconds", 1_700_000_000_000_001_999, "2023-11-14T22:13:20.000001"),
        ("nanoseconds", -1, "1969-12-31T23:59:59.999999"),
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


@pytest.mark.parametrize(
    "form",
    [
        *("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d", "%Y%m%dT%H%M%SZ", "%Y/%m/%d %H:%M:%S"),
        *("%Y.%m.%d %H:%M", "%Y-%jT%H:%M:%S", "%G-W%V-%uT%H:%M:%S", "%GW%V%u"),
    ],
)
@pytest.mark.parametrize("kind", ["TEXT", "TIMESTAMP"])
async def test_range_of_texts_in_any_form_has_its_rows(file: File, form: str, kind: str) -> None:
    """A form that is read by a run is found by a backfill, also where a year begins."""
    days = {n: utc("2020-12-20") + timedelta(days=n) for n in range(60)}
    file.fill(*((n, day.strftime(form)) for n, day in days.items()), kind=kind)
    source = file.source(timestamp_format="text" if kind == "TEXT" else "datetime")

    for start, until in ((3, 6), (10, 16), (13, 14), (30, 59)):
        found = {int(each) for each in ids(await records(source, days[start], days[until]))}
        assert found >= set(range(start, until))
    assert {int(each) for each in ids(await records(source, days[13]))} >= set(range(13, 60))


async def test_range_before_the_year_of_another_form_has_its_rows(file: File) -> None:
    """What a later year has, when the form changed with it, hides nothing of an earlier one."""
    days = [utc("2024-12-01") + timedelta(days=n) for n in range(40)]
    forms = {2024: "%Y%m%dT%H%M%SZ", 2025: "%Y-%m-%dT%H:%M:%SZ"}
    file.fill(*((n, day.strftime(forms[day.year])) for n, day in enumerate(days)), kind="TEXT")
    source = file.source(timestamp_format="text")

    for until in range(20, 36):
        found = {int(each) for each in ids(await records(source, days[10], days[until]))}
        assert found >= set(range(10, until))


async def test_range_of_texts_with_dates_reads_no_more_than_these(file: File) -> None:
    """A backfill in windows would read each year as often as it has windows."""
    rows = [(n, (utc("2024-01-01") + timedelta(days=n)).isoformat()) for n in range(300)]
    file.fill(*rows, (300, "n/a"), (301, "?"), (302, None), kind="TEXT")

    found = await records(file.source(timestamp_format="text"), at(0), utc("2024-01-11"))

    assert len(found) == 11


async def test_texts_that_sort_wrong_are_refused_where_order_was_declared(file: File) -> None:
    """A checkpoint could skip what sorts wrong; the error says what to set."""
    file.fill((1, "2024-01-01 04:00:00"), (2, "2024-01-01T01:00:00"))

    with pytest.raises(
        SourceError, match=r"'2024-01-01T01:00:00' comes after .* Set timestamp_format to text"
    ):
        await read(file.source(page_size=1))
    assert ids(await records(file.source(timestamp_format="text"))) == ["1", "2"]


@pytest.mark.parametrize("batch", [1, 2, 100])
async def test_texts_that_sort_wrong_are_refused_before_the_first_page(
    file: File, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed, or follows the advice of the error, would go on behind later ones."""
    monkeypatch.setattr(sql_table, "_TIMES", batch)
    file.fill(*((n, f"2024-01-01 1{n}:00:00") for n in range(5)), (9, "2024-01-01T01:00:00"))
    file.fill((7, "n/a"), (8, 5), (6, "2024-01-01 10:00:00"))
    sink, storage = RememberingSink(), ScriptedStorage()

    with pytest.raises(SourceError, match="Set timestamp_format to text"):
        await run(file.source(page_size=1), sink, storage, run_id="1", clock=lambda: at(2000))
    assert (sink.ids, sink.positions) == ([], {})
    text = file.source(page_size=1, timestamp_format="text")
    await run(text, sink, storage, run_id="2", clock=lambda: at(2000))

    assert sink.ids == ["0", "1", "2", "3", "4", "6", "9"]


@pytest.mark.parametrize(
    "other", ["2024-01-01T01:00:00", "2024-01-01 01:00", b"2024-01-01 01:00:00", 5, "01/01/2024"]
)
async def test_texts_of_one_form_alone_need_no_closer_look(
    file: File, other: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They sort as their times do; one of another form, or no text, need not."""
    looks: list[object] = []
    look = sql_table.TableReader.times

    def times(*given: Any) -> list[Any]:
        looks.append(given)
        return look(*given)

    monkeypatch.setattr(sql_table.TableReader, "times", times)
    file.fill(*((n, f"2024-01-01 1{n}:00:00") for n in range(5)))
    assert len(await records(file.source(page_size=2))) == 5
    assert not looks

    file.fill((9, other))
    with suppress(SourceError):
        await records(file.source(page_size=2))
    assert looks


async def test_forms_of_texts_that_follow_each_other_are_read(file: File) -> None:
    """An application may change what it writes, from one day to the next."""
    file.fill((1, "2024-01-01 23:00:00"), (2, "2024-01-02T00:00:00+00:00"), (3, "2024-01-02T01:00"))

    assert ids(await records(file.source(page_size=1))) == ["1", "2", "3"]


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


@pytest.mark.parametrize("column", ["id", "updated_at"])
async def test_page_ends_with_a_text_that_is_no_utf8(file: File, column: str) -> None:
    """The page after it begins there."""
    file.fill(*((f"r{n}", f"2024-01-0{n}") for n in range(1, 6)))
    file.run(f"UPDATE events SET {column} = CAST({column} AS BLOB) || x'ff' WHERE id = 'r2'")
    file.run(f"UPDATE events SET {column} = CAST({column} AS TEXT)")

    pages = await read(file.source(page_size=2))

    good = ["r1", "r3", "r4", "r5"]
    assert sorted(ids([each for page in pages for each in page.records])) == good
    assert sum(len(page.rejects) for page in pages) == 1


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


# What is told wrong.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"url": "postgresql://me:SECRET@h/db"},
            "url: should not contain a password",
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


async def test_locked_file_is_waited_for_and_asked_again(file: File) -> None:
    """A writer that holds SQLite for too long is an error that passes."""
    file.fill((1, "2024-01-01"))
    with (
        closing(sqlite3.connect(file.path, isolation_level=None)) as writer,
        stamina.set_testing(True, attempts=2, cap=True),
    ):
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


async def test_end_is_told_and_no_clock_but_ours(file: File) -> None:
    """A keyset that found nothing more is an end; SQLite has no clock of its own."""
    file.fill((1, "2024-01-01"), (2, None))

    lost, last = await read(file.source())

    assert last.completeness == "last page"
    assert (lost.asked_at, last.asked_at, lost.completeness) == (None, None, None)


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


@pytest.mark.parametrize("kind", ["TEXT", "TIMESTAMP", ""])
@pytest.mark.parametrize("none", ["None", "NaT", "null", "n/a", "infinity"])
async def test_text_behind_all_times_fails_no_quiet_table(file: File, kind: str, none: str) -> None:
    """It would be in the range of each run, and be most of what a quiet one reads."""
    file.fill(*((n, f"2024-01-01 {n:02}:00:00") for n in range(20)), kind=kind)
    file.fill(*((n, none) for n in range(100, 120)), kind=kind)
    source = file.source(page_size=3)
    first = await read(source)
    assert sum(len(page.rejects) for page in first) == 20

    quiet = await read(source, utc("2024-01-01T19:00"))

    assert ids([each for page in quiet for each in page.records]) == ["19"]
    assert [len(page.rejects) for page in quiet] == [5, 0]


async def test_times_of_a_format_that_changed_are_read_by_each_run(file: File) -> None:
    """They are behind all others too, and must fail the run."""
    file.fill((1, "2024-01-01"), *((n, f"Jan 2, 2024 00:{n}:00") for n in range(10, 30)))
    file.fill((31, b"2024-01-03"))

    pages = await read(file.source(), utc("2024-01-01"))

    assert sum(len(page.rejects) for page in pages) == 21


@pytest.mark.parametrize(
    ("key", "fields", "is_told"),
    [
        ("tenant, id", {}, True),
        ("tenant, id", {"id_column": "id"}, False),
        ("tenant, id", {"id_column": ["tenant", "id"]}, False),
        ("tenant, id", {"columns": ("id",)}, False),
        ("id, updated_at", {}, False),
        ("tenant, unique_id", {"id_column": "unique_id"}, False),
    ],
)
async def test_rows_of_one_id_and_several_primary_keys_are_told(
    file: File,
    key: str,
    fields: dict[str, Any],
    is_told: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They may be versions of one record, and are the rows of several tenants as often."""
    file.run(
        "CREATE TABLE events (tenant TEXT, id INT, unique_id INT, updated_at TEXT,"
        f" PRIMARY KEY ({key}))"
    )
    rows = [(f"t{n % 3}", n // 3, n, f"2024-01-01 00:00:{n}") for n in range(10, 30)]
    file.run("INSERT INTO events VALUES (?, ?, ?, ?)", rows)

    assert len(await records(file.source(page_size=4, **fields))) == 20
    told = [each for each in caplog.messages if "their primary keys differ" in each]
    assert len(told) == is_told
    if told:
        assert 'Set id_column to ["tenant", "id"] if they are records of their own' in told[0]


async def test_two_rows_with_one_key_name_the_primary_key(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever follows the error has each row, also of the pages that were durable before it."""
    monkeypatch.setattr(prefetch, "GATHER_SECONDS", 0.0)
    file.run("CREATE TABLE events (tenant, id, updated_at TEXT, PRIMARY KEY (tenant, id))")
    rows = [("a", 1, "2024-01-01"), ("b", 1, "2024-01-02"), ("a", 2, "2024-01-03")]
    file.run("INSERT INTO events VALUES (?, ?, ?)", [*rows, ("b", 2, "2024-01-03")])
    sink, storage = RememberingSink(), ScriptedStorage(now=lambda: datetime.now(UTC))

    with pytest.raises(SourceError, match=r'Set id_column to \["tenant", "id"\], its primary key'):
        await run(file.source(page_size=1), sink, storage, run_id="1")
    assert sink.ids == ["1", "1"]
    await run(file.source(id_column=["tenant", "id"]), sink, storage, run_id="2")

    assert [each for each in sink.ids if each.startswith("[")] == [
        '["a",1]',
        '["a",2]',
        '["b",1]',
        '["b",2]',
    ]


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
        return record_id, f"{time:%Y-%m-%d %H:%M:%S.%f}", value


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
