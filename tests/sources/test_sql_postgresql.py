"""The source that is a table of a real PostgreSQL: its types, transactions, connections."""

from __future__ import annotations

import asyncio
import json
import threading
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import stamina

from ladon_storage.collection.protocols import WriteResult
from ladon_storage.collection.run import run
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.sinks import SqlSink
from ladon_storage.sources.sql.source import SqlTable
from ladon_storage.testing.doubles import MemorySink, RememberingSink, ScriptedStorage, at
from tests.postgres import PASSWORD, PostgresServer
from tests.sources.sql_tables import SECRET, Base, ids, read, records, utc
from tests.tables import table


@pytest.fixture
def base(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Base:
    base = Base(postgres)
    monkeypatch.setenv(SECRET, base.url)
    return base


# Types and transactions.


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
@pytest.mark.parametrize(
    "time_type",
    [
        "timestamptz",
        pytest.param("timestamp", marks=pytest.mark.slow),
        pytest.param("date", marks=pytest.mark.slow),
    ],
)
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
    with stamina.set_testing(True, attempts=3, cap=True):
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
    with stamina.set_testing(True, attempts=2, cap=True):
        for url, said in ((wrong, "authentication failed"), (gone, "refused")):
            monkeypatch.setenv(SECRET, url)
            with pytest.raises(SourceError, match=said) as caught:
                await read(base.source())
            text = "".join(traceback.format_exception(caught.value)) + caplog.text
            assert caught.value.transient is (url == gone)
            assert not [each for each in (PASSWORD, quoted, "SECRET") if each in text]
    assert len(caplog.records) == 3, "two attempts, and stamina's word between them"


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


@pytest.mark.parametrize(
    "size", [2, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 3))]
)
@pytest.mark.parametrize(
    "kind",
    ["citext", 'text COLLATE "POSIX"', "real", "float8", "colour", "jsonb", "interval"],
)
async def test_ids_that_compare_oddly_are_all_read(base: Base, kind: str, size: int) -> None:
    """Texts that are equal without being the same, single precision, an enumeration's order."""
    values = {"real": "0.1 0.7 0.3 16777216", "float8": "0.1 0.7 1e300", "colour": "'z' 'y' 'a'"}
    values["jsonb"] = """'"10"' '"9"' '3' '20' '"x"'"""
    values["interval"] = "'1mon' '31d' '29d' '1y'"
    told = values.get(kind, "'a' 'A' 'b' 'B'").split(" ")
    base.run("CREATE TYPE colour AS ENUM ('z', 'y', 'a')")
    if kind == "citext":
        base.run("CREATE EXTENSION IF NOT EXISTS citext")
    base.run(f"CREATE TABLE events (id {kind}, updated_at timestamptz)")
    for each in told:
        base.run(f"INSERT INTO events VALUES ({each}, '2024-01-01')")

    assert len(set(ids(await records(base.source(page_size=size))))) == len(told)


async def test_times_of_another_type_than_declared_fail(base: Base) -> None:
    """The error says what is there."""
    base.run("CREATE TABLE events (id int, updated_at timestamptz)")

    with pytest.raises(SourceError, match=r"of the type TIMESTAMP, not seconds\. Set timestamp_f"):
        await read(base.source(timestamp_format="seconds"))


async def test_ids_of_json_that_are_one_id_fail(base: Base) -> None:
    """A number and a text of JSON are two ids, and one in a sink."""
    base.run("CREATE TABLE events (id jsonb, updated_at timestamptz)")
    base.run("""INSERT INTO events VALUES ('1', '2024-01-01Z'), ('"1"', '2024-01-01Z')""")

    with pytest.raises(SourceError, match="'id' '1' is of the type"):
        await records(base.source(page_size=1))


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


# What a run knows of its end, its clock, and its database.


async def test_end_and_clock_are_told(base: Base) -> None:
    """A keyset that found nothing more is an end; the clock is the server's."""
    base.run("CREATE TABLE events AS SELECT 1 AS id, now() AS updated_at")
    before = datetime.now(UTC)

    (page,) = await read(base.source())

    assert page.asked_at is not None
    assert before <= page.asked_at <= datetime.now(UTC)
    assert page.completeness == "last page"


async def test_settings_of_the_server_change_no_value(base: Base) -> None:
    """How it writes intervals, floats, instants, bytes and names is set for the session."""
    base.run(
        "CREATE TABLE events AS SELECT 1 AS id, now() AS updated_at, 0.1::float8 + 0.2 AS f,"
        " '1 day 2 seconds'::interval AS span, now()::date AS day, '\\x00ff'::bytea AS bytes,"
        " U&'\\20AC' AS text"
    )
    (before,) = await records(base.source())
    for setting in (
        *("intervalstyle = iso_8601", "extra_float_digits = 0", "datestyle = 'SQL, DMY'"),
        *("bytea_output = escape", "client_encoding = LATIN1", "quote_all_identifiers = on"),
        *("standard_conforming_strings = off", "transform_null_equals = on"),
    ):
        base.run(f"ALTER DATABASE {base.name} SET {setting}")
    assert await records(base.source(timestamp_column="day"))

    (after,) = await records(base.source())

    assert after == before
    assert '"f":0.30000000000000004,"span":"1 day, 0:00:02"' in after.payload


async def test_reader_waits_for_no_writer_whatever_the_isolation_of_the_owner(base: Base) -> None:
    """A serializable reader that may be deferred waits until every writer has ended."""
    base.run("CREATE TABLE events AS SELECT 1 AS id, now() AS updated_at")
    for setting in ("isolation = serializable", "deferrable = on"):
        base.run(f"ALTER DATABASE {base.name} SET default_transaction_{setting}")
    with psycopg.connect(base.url) as writer:
        writer.execute("INSERT INTO events VALUES (2, now())")

        assert ids(await records(base.source(timeout=timedelta(seconds=1)))) == ["1"]


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


@pytest.mark.parametrize(
    ("kind", "times", "none"),
    [
        ("timestamptz", "datetime", "'infinity'"),
        ("timestamp", "datetime", "'20224-03-01'"),
        ("date", "datetime", "'infinity'"),
        ("float8", "seconds", "'NaN'"),
        ("text", "text", "'None'"),
        ('text COLLATE "C"', "text", "'None'"),
    ],
)
async def test_time_behind_all_calendars_fails_no_quiet_table(
    base: Base, kind: str, times: str, none: str
) -> None:
    """It would be in the range of each run, and be most of what a quiet one reads."""
    usual = "1704067200" if kind == "float8" else "'2024-01-01'"
    base.run(f"CREATE TABLE events (id int, updated_at {kind})")
    base.run(f"INSERT INTO events VALUES (1, {usual})")
    base.run(f"INSERT INTO events SELECT n, {none} FROM generate_series(2, 21) n")
    source = base.source(timestamp_format=times)
    assert sum(len(page.rejects) for page in await read(source)) == 20

    quiet = await read(source, utc("2023-12-31"))

    assert ids([each for page in quiet for each in page.records]) == ["1"]
    assert sum(len(page.rejects) for page in quiet) == 5


@pytest.mark.parametrize("size", [1, 100])
async def test_row_as_an_id_may_have_a_field_without_value(base: Base, size: int) -> None:
    """PostgreSQL finds it neither NULL nor NOT NULL."""
    base.run("CREATE TYPE endpoint AS (host inet, port int)")
    base.run("CREATE TABLE events (id endpoint, updated_at timestamptz)")
    base.run("INSERT INTO events VALUES ('(10.0.0.1,80)', now()), ('(10.0.0.2,)', now())")
    base.run("INSERT INTO events VALUES ('(,)', now()), (NULL, now())")

    pages = await read(base.source(page_size=size))

    found = sorted(ids([each for page in pages for each in page.records]))
    assert found == ["(,)", "(10.0.0.1,80)", "(10.0.0.2,)"]
    assert sum(len(page.rejects) for page in pages) == 1


async def test_view_without_a_primary_key_is_read(base: Base) -> None:
    """The catalogue says nothing of its ids."""
    base.run("CREATE TABLE kept (tenant int, id int, at timestamptz, PRIMARY KEY (tenant, id))")
    base.run("INSERT INTO kept VALUES (1, 1, '2024-01-01Z'), (2, 1, '2024-01-02Z')")
    base.run("CREATE VIEW events AS SELECT id, at AS updated_at FROM kept")

    assert ids(await records(base.source())) == ["1", "1"]


async def test_database_without_an_encoding_needs_one_in_the_address(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL hands back what was written, and only its owner knows how."""
    name = f"{base.name}_ascii"
    base.run(f"CREATE DATABASE {name} ENCODING SQL_ASCII LOCALE 'C' TEMPLATE template0")
    statement = "CREATE TABLE events AS SELECT 'caf' || chr(233) AS id, now() AS updated_at"
    base.server.execute(statement, name)
    url = base.server.url(name)

    monkeypatch.setenv(SECRET, url)
    with pytest.raises(SourceError, match=r"Name the encoding .* \?client_encoding=LATIN1"):
        await read(base.source())
    monkeypatch.setenv(SECRET, f"{url}?client_encoding=sql_ascii")
    with pytest.raises(ConfigurationError, match="client_encoding=sql_ascii, which makes bytes"):
        await read(base.source())
    monkeypatch.setenv(SECRET, f"{url}?client_encoding=LATIN1")
    assert ids(await records(base.source())) == ["café"]


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
