"""The source that is a table in a real MariaDB, whose zone is not UTC."""

from __future__ import annotations

import json
import traceback
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.engine import make_url

from ladon_storage.collection.run import run
from ladon_storage.errors import SourceError
from ladon_storage.sources.sql.sessions import reading_engine, with_driver
from ladon_storage.sources.sql.source import SqlTable
from ladon_storage.testing.doubles import MemorySink, ScriptedStorage
from tests.mariadb import PASSWORD, MariaServer
from tests.sources.sql_tables import SECRET, Base, ids, read, records, utc


@pytest.fixture
def base(mariadb: MariaServer, monkeypatch: pytest.MonkeyPatch) -> Base:
    base = Base(mariadb)
    monkeypatch.setenv(SECRET, base.url)
    return base


# Time.


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+pymysql"])
async def test_timestamp_is_an_instant_whatever_the_zone_of_the_server(
    base: Base, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TIMESTAMP is told in the session's zone, and the declared one is of what has none."""
    monkeypatch.setenv(SECRET, base.server.url(base.name, scheme))
    base.run(
        "CREATE TABLE events (id int PRIMARY KEY, updated_at timestamp(6) NULL, local datetime);"
        "INSERT INTO events VALUES (1, '2024-07-01 10:00:00.000001', '2024-07-01 12:00:00')"
    )
    instant = utc("2024-07-01 10:00:00.000001")

    (found,) = await records(base.source(zone="Asia/Tokyo"), instant)
    (same,) = await records(base.source(zone="Europe/Berlin", timestamp_column="local"))

    assert found.timestamp == instant
    assert same.timestamp == utc("2024-07-01 10:00:00")
    assert json.loads(found.payload) == {
        "id": 1,
        "updated_at": "2024-07-01T10:00:00.000001+00:00",
        "local": "2024-07-01T12:00:00",
    }
    assert await records(base.source(), instant + timedelta(microseconds=1)) == []
    assert await records(base.source(), None, instant) == []


async def test_run_is_not_asked_again_for_what_a_server_calls_later(base: Base) -> None:
    """The watermark is the instant of the last row, and never beyond the database's own clock."""
    base.run(
        "CREATE TABLE events (id int PRIMARY KEY, updated_at timestamp(6) NOT NULL DEFAULT now(6));"
        "INSERT INTO events (id) VALUES (1), (2)"
    )
    ((moment,),) = base.run("SELECT DISTINCT updated_at FROM events")
    assert isinstance(moment, datetime)
    sink, storage = MemorySink(), ScriptedStorage(now=lambda: datetime.now(UTC))

    report = await run(base.source(), sink, storage, run_id="r")

    assert sink.ids == ["1", "2"]
    assert storage.stored["log"].last_successful_timestamp == moment.replace(tzinfo=UTC)
    assert (report.records_in_future, report.completeness) == (0, "last page")


async def test_database_tells_when_it_was_first_asked(base: Base) -> None:
    """Its own clock bounds the watermark, also where there is no row."""
    base.run("CREATE TABLE events (id int PRIMARY KEY, updated_at timestamp NOT NULL)")
    before = datetime.now(UTC)

    (page,) = await read(base.source())

    assert page.asked_at is not None
    assert before <= page.asked_at <= datetime.now(UTC)
    assert page.completeness == "last page"


@pytest.mark.parametrize("kind", ["timestamp", "datetime", "timestamp(3)", "datetime(6)", "date"])
async def test_bound_is_compared_and_not_rounded(base: Base, kind: str) -> None:
    """A column of whole seconds is asked by fractions of one, and at the ends of all time."""
    told = "2024-01-02 00:00:00"
    base.run(
        f"CREATE TABLE events (id int PRIMARY KEY, updated_at {kind} NULL);"
        f"INSERT INTO events VALUES (1, '{told}')"
    )
    source, instant = base.source(), utc(told)

    for end in (timedelta(microseconds=1), timedelta(milliseconds=499), timedelta(hours=900)):
        assert ids(await records(source, instant, instant + end)) == ["1"]
    assert ids(await records(source, instant - timedelta(milliseconds=400))) == ["1"]
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    assert ids(await records(source, first, last)) == ["1"]
    assert ids(await records(base.source(zone="Europe/Berlin"), first, last)) == ["1"]


async def test_zero_date_is_quarantined_in_each_run(base: Base) -> None:
    """It is smaller than any bound: a later run would never come by it."""
    base.run(
        "CREATE TABLE events (id int PRIMARY KEY, updated_at datetime NOT NULL);"
        "INSERT INTO events VALUES (1, 0), (2, '2024-01-01 00:00:00'), (3, '2024-00-00 00:00:00')"
    )

    first = await read(base.source(page_size=1))
    later = await read(base.source(), utc("2023-06-01"))

    for pages, rejected in ((first, ["1", "3"]), (later, ["1", "3"])):
        assert ids([each for page in pages for each in page.records]) == ["2"]
        assert [each.record_id for page in pages for each in page.rejects] == rejected


@pytest.mark.parametrize("kind", ["timestamp", "datetime", "date"])
@pytest.mark.parametrize("mode", ["DEFAULT", "'TRADITIONAL'"])
async def test_zero_date_may_end_a_page_whatever_the_mode(base: Base, kind: str, mode: str) -> None:
    """MySQL 8 compares nothing to it where the session does not allow it."""
    base.run(
        f"CREATE TABLE events (id int PRIMARY KEY, updated_at {kind} NOT NULL);"
        "INSERT INTO events VALUES (1, 0), (2, 0), (3, '2024-01-01 00:00:00')"
    )
    base.run(f"SET GLOBAL sql_mode = {mode}")
    try:
        first = await read(base.source(page_size=1))
        later = await read(base.source(), utc("2023-06-01"))
        engine = reading_engine(with_driver(make_url(base.url)), timedelta(minutes=1))
        with engine.connect() as connection:
            mode_of_session = connection.exec_driver_sql("SELECT @@sql_mode").scalar_one()
        engine.dispose()
    finally:
        base.run("SET GLOBAL sql_mode = DEFAULT")

    for pages in (first, later):
        assert ids([each for page in pages for each in page.records]) == ["3"]
        assert [each.record_id for page in pages for each in page.rejects] == ["1", "2"]
    assert "NO_ZERO" not in mode_of_session


async def test_text_behind_all_times_fails_no_quiet_table(base: Base) -> None:
    """It would be in the range of each run, and be most of what a quiet one reads."""
    base.run(
        "CREATE TABLE events (id int PRIMARY KEY, updated_at varchar(30));"
        "INSERT INTO events SELECT seq, 'None' FROM seq_2_to_21;"
        "INSERT INTO events VALUES (1, '2024-01-01')"
    )
    source = base.source(timestamp_format="text")

    quiet = await read(source, utc("2023-12-31"))

    assert ids([each for page in quiet for each in page.records]) == ["1"]
    assert sum(len(page.rejects) for page in quiet) == 5


# Ids.


@pytest.mark.parametrize("unique", [False, True])
async def test_ids_that_a_collation_holds_for_equal_are_all_read(base: Base, unique: bool) -> None:
    """An index that says so makes them unique, and else their bytes tell them apart."""
    collation = "utf8mb4_bin" if unique else "utf8mb4_general_ci"
    told = ["a", "A", "ä", "Ä", "b", "B", "é", "e", *([] if unique else ["a "])]
    base.run(
        f"CREATE TABLE events (id varchar(20) COLLATE {collation}, updated_at datetime,"
        f" {'UNIQUE' if unique else ''} KEY (id));"
        "INSERT INTO events VALUES " + ", ".join(f"('{each}', '2024-01-01')" for each in told)
    )

    for size in (1, 2, 3):
        found = ids(await records(base.source(page_size=size)))
        assert sorted(found) == sorted(told)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("bigint unsigned", "18446744073709551615 18446744073709551614 9007199254740993 1 0"),
        ("enum('z','y','x','a')", "'z' 'y' 'x' 'a'"),
        ("set('z','y','x')", "'z' 'y' 'x' 'z,y'"),
        ("decimal(65,30)", "0.1 0.100000000000000000000000000001 2 -3 99999999999999999"),
        ("float", "0.1 0.7 0.3 16777216 -0.1"),
        ("double", "0.1 0.7 0.30000000000000004 1e300"),
        ("bit(9)", "b'101' b'1' b'100000000' b'0'"),
        ("binary(3)", "x'00ff00' x'ff0000' x'5c2725'"),
        ("varbinary(9)", "x'00' x'0000' x'ff' x'5c27'"),
        ("tinyint(1)", "-1 0 1 2"),
        ("int(5) zerofill", "1 20 300"),
        ("year", "1999 2000 2024"),
        ("date", "'1999-01-01' '2024-02-29'"),
        ("time(6)", "'-01:30:00' '25:00:00.5' '838:59:59' '00:00:00'"),
        ("datetime(6)", "'2024-01-01 00:00:00.000001' '2024-01-01 00:00:00.000002'"),
        ("uuid", "uuid() uuid() uuid() uuid()"),
        ("inet6", "'2001:db8::1' '::1' '::ffff:192.0.2.1'"),
        ("text", "'a' 'A' 'a ' '\\\\' '%' ''''"),
    ],
)
async def test_any_type_of_id_pages(base: Base, kind: str, values: str) -> None:
    """Rows of one instant are ordered and compared alike, and none is lost between pages."""
    unique = "" if kind == "text" else ", UNIQUE KEY (id)"
    base.run(f"CREATE TABLE events (id {kind}, updated_at timestamp NOT NULL{unique})")
    told = values.split(" ") if "'a ' " not in values else ["'a'", "'A'", "'a '", "'\\\\'", "''''"]
    if "datetime" in kind:
        told = [f"'2024-01-01 00:00:00.00000{n}'" for n in (1, 2)]
    for each in told:
        base.run(f"INSERT INTO events VALUES ({each}, '2024-01-01')")

    whole = ids(await records(base.source()))
    assert len(set(whole)) == len(told)
    for size in (1, 2, 3):
        assert ids(await records(base.source(page_size=size))) == whole


async def test_several_columns_are_one_id(base: Base) -> None:
    """None of them is unique alone, and pages go on between any two of their values."""
    base.run(
        "CREATE TABLE events (host varchar(9), port int, updated_at datetime,"
        " PRIMARY KEY (host, port))"
    )
    pairs = [(host, port) for host in ("b", "a", "c") for port in (443, 80, 8080)]
    for host, port in pairs:
        base.run(f"INSERT INTO events VALUES ('{host}', {port}, '2024-01-01')")

    for size in (1, 2, 4, 100):
        found = ids(await records(base.source(id_column=["host", "port"], page_size=size)))
        assert found == [f'["{host}",{port}]' for host, port in sorted(pairs)]


# Values.


async def test_every_type_is_told_without_loss(base: Base) -> None:
    """What JSON has no kind for is a text, and a number has the digits that it was stored with."""
    base.run(
        "CREATE TABLE events (id bigint unsigned, updated_at timestamp, dec_ decimal(40,20),"
        " fl float, tiny tinyint(1), bits bit(9), raw varbinary(9), year_ year, span time(6),"
        " choice enum('x','y'), some set('x','y'), doc json, place point, none int, zf int(5)"
        " zerofill, ch char(5), never date, big longtext);"
        "INSERT INTO events VALUES (18446744073709551615, '2024-01-01', 1.10, 1234567, 7, b'101',"
        " x'00ff', 2024, '-25:00:00.5', 'y', 'x,y', '{\"a\": 1.10}', point(1, 2), NULL, 42, 'a',"
        " 0, 'é')"
    )

    (found,) = await records(base.source())

    assert json.loads(found.payload) == {
        "id": 18446744073709551615,
        "updated_at": "2024-01-01T00:00:00+00:00",
        "dec_": "1.10000000000000000000",
        "fl": 1234567,
        "tiny": 7,
        "bits": "0005",
        "raw": "00ff",
        "year_": 2024,
        "span": "-2 days, 22:59:59.500000",
        "choice": "y",
        "some": "x,y",
        "doc": '{"a": 1.10}',
        "place": "000000000101000000000000000000f03f0000000000000040",
        "none": None,
        "zf": 42,
        "ch": "a",
        "never": "0000-00-00",
        "big": "é",
    }


async def test_names_and_views_are_read_as_they_are(base: Base) -> None:
    """A view has no index, and a name may have any character."""
    base.run(
        "CREATE TABLE `a``b%s:c` (`select` varchar(9), `from %` timestamp(6) NOT NULL);"
        "INSERT INTO `a``b%s:c` VALUES ('a', '2024-01-01'), ('A', '2024-01-01');"
        "CREATE VIEW events AS SELECT `select` AS id, `from %` AS updated_at FROM `a``b%s:c`"
    )

    plain = base.source(table="a`b%s:c", id_column="select", timestamp_column="from %", page_size=1)

    assert ids(await records(plain)) == ids(await records(base.source(page_size=1))) == ["A", "a"]


async def test_view_with_texts_as_times_is_read_again(base: Base) -> None:
    """Without a unique index, texts are compared by their bytes, and so are the ends of a range."""
    base.run(
        "CREATE TABLE plain (id varchar(9) PRIMARY KEY, updated_at varchar(40));"
        "INSERT INTO plain VALUES ('a', '2024-01-01T00:00:00Z'), ('b', '20240104T000000Z');"
        "CREATE VIEW events AS SELECT * FROM plain"
    )
    source = base.source(timestamp_format="text")

    assert ids(await records(source, utc("2024-01-01"), utc("2024-01-05"))) == ["a", "b"]
    assert "b" in ids(await records(source, utc("2024-01-03")))


@pytest.mark.parametrize("collation", ["utf8mb4_unicode_ci", "utf8mb4_general_ci"])
@pytest.mark.parametrize("other", ["n/a", "20240604T000000Z", "?"])
async def test_texts_of_another_form_leave_out_no_row_in_any_collation(
    base: Base, collation: str, other: str
) -> None:
    """One collation sorts a hyphen before other signs, and another one behind them."""
    base.run(
        f"CREATE TABLE events (id varchar(9) PRIMARY KEY, updated_at varchar(40), "
        f"UNIQUE (updated_at, id)) COLLATE {collation};"
        "INSERT INTO events VALUES ('1', '2024-01-01T00:00:00Z'), ('2', '2024-06-03T00:00:00Z'),"
        f" ('3', '2024-06-10T00:00:00Z'), ('4', '{other}')"
    )
    source = base.source(timestamp_format="text")
    due = {"4"} if other.isalnum() else set()

    assert {*ids(await records(source, utc("2024-06-02")))} >= {"2", "3"} | due
    found = {*ids(await records(source, utc("2024-06-02"), utc("2024-06-05")))}
    assert found >= {"2"} | due
    if not due:  # a text that is no time costs no wider range
        assert "1" not in found


async def test_numbers_as_text_and_texts_are_times(base: Base) -> None:
    """As in other databases: "10" is after "9", and texts with offsets promise no order."""
    base.run(
        "CREATE TABLE events (id int PRIMARY KEY, n varchar(20), t varchar(40));"
        "INSERT INTO events VALUES (1, '9', '2024-01-01T05:00:00+05:00'),"
        " (2, '10', '2024-01-01t00:00:01Z'), (3, 'x', '')"
    )

    numbers = await read(base.source(timestamp_column="n", timestamp_format="seconds", page_size=1))
    texts = await read(
        base.source(timestamp_column="t", timestamp_format="text", page_size=1), utc("2024-01-01")
    )

    for pages in (numbers, texts):
        assert sorted(ids([each for page in pages for each in page.records])) == ["1", "2"]
        assert [each.record_id for page in pages for each in page.rejects] == ["3"]


# The session.


async def test_table_cannot_be_written(base: Base) -> None:
    """What is collected from belongs to somebody else, also what its views call."""
    base.run(
        "CREATE TABLE events AS SELECT 1 AS id, now() AS updated_at;"
        "CREATE FUNCTION write_() RETURNS int MODIFIES SQL DATA BEGIN DELETE FROM events; RETURN 1;"
        " END;"
        "CREATE VIEW writing AS SELECT id, updated_at, write_() AS w FROM events"
    )

    with pytest.raises(SourceError, match="READ ONLY transaction"):
        await read(base.source(table="writing"))


async def test_row_that_was_not_committed_is_not_read(base: Base) -> None:
    """It may be rolled back, also where the server's own setting is to read such rows."""
    import pymysql

    base.run("CREATE TABLE events (id int PRIMARY KEY, updated_at timestamp NOT NULL)")
    base.run("SET GLOBAL TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
    writer = pymysql.connect(
        host="127.0.0.1",
        port=base.server.port,
        user="ladon",
        password=PASSWORD.encode(),
        database=base.name,
    )
    try:
        with writer.cursor() as cursor:
            cursor.execute("INSERT INTO events VALUES (1, now())")
            assert await records(base.source()) == []
    finally:
        writer.close()
        base.run("SET GLOBAL TRANSACTION ISOLATION LEVEL REPEATABLE READ")


async def test_statement_that_takes_too_long_is_ended_by_the_server(base: Base) -> None:
    """It is not repeated, since the next one would take as long; the error says what helps."""
    base.run("CREATE TABLE events AS SELECT 1 AS id, now() AS updated_at")
    base.run("CREATE VIEW slow AS SELECT id, updated_at, sleep(30) AS s FROM events")

    with pytest.raises(SourceError, match=r"max_statement_time.*Create an index .* longer timeout"):
        await read(base.source(table="slow", timeout=timedelta(milliseconds=50)))


@pytest.mark.usefixtures("two_attempts")
async def test_page_whose_connection_is_lost_is_read_again(base: Base) -> None:
    """The run goes on behind the last page, on a new connection that is set up like the first."""
    base.run(
        "CREATE TABLE events (id int PRIMARY KEY, updated_at timestamp NOT NULL);"
        "INSERT INTO events SELECT seq, '2024-07-01' FROM seq_1_to_6"
    )
    found = []
    async for page in base.source(page_size=2).pages(None, None):
        found += [(each.record_id, each.timestamp) for each in page.records]
        for (number,) in base.run(
            "SELECT id FROM information_schema.processlist WHERE command = 'Sleep'"
            f" AND db = '{base.name}'"
        ):
            base.run(f"KILL {number}")

    assert found == [(str(n), utc("2024-07-01")) for n in range(1, 7)]


@pytest.mark.usefixtures("two_attempts")
async def test_password_is_in_no_error(
    base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is down or says no is named without it; a wrong password is not tried again."""
    quoted = base.url.split(":")[2].split("@")[0]
    wrong = base.url.replace(quoted, "SECRET%E2%82%AC")
    gone = base.url.replace(f":{base.server.port}/", ":1/")
    for url, said in ((wrong, "Access denied"), (gone, "Can't connect")):
        monkeypatch.setenv(SECRET, url)
        with pytest.raises(SourceError, match=said) as caught:
            await read(base.source())
        text = "".join(traceback.format_exception(caught.value)) + caplog.text
        assert caught.value.transient is (url == gone)
        assert not [each for each in (PASSWORD, quoted, "SECRET") if each in text]


async def test_server_that_tells_values_otherwise_is_set(base: Base) -> None:
    """A row has not changed because its server was set otherwise."""
    base.run(
        "CREATE TABLE events (id char(5) PRIMARY KEY, updated_at timestamp NOT NULL);"
        "INSERT INTO events VALUES ('a', '2024-01-01')"
    )
    (before,) = await records(base.source())
    base.run(
        "SET GLOBAL sql_mode = 'PAD_CHAR_TO_FULL_LENGTH,ANSI_QUOTES,NO_BACKSLASH_ESCAPES',"
        " GLOBAL time_zone = '+09:00'"
    )
    try:
        (after,) = await records(base.source())
    finally:
        base.run("SET GLOBAL sql_mode = DEFAULT, GLOBAL time_zone = SYSTEM")

    assert after == before


async def test_date_of_a_server_in_the_mode_of_oracle_is_one(base: Base) -> None:
    """Such a server tells the type as `mariadb_schema.date`, since `date` is another one there."""
    base.run(
        "CREATE TABLE events (id int PRIMARY KEY, updated_at date);"
        "INSERT INTO events VALUES (1, '2024-01-01')"
    )
    base.run("SET GLOBAL sql_mode = 'ORACLE'")
    try:
        (found,) = await records(base.source())
    finally:
        base.run("SET GLOBAL sql_mode = DEFAULT")

    assert found.timestamp == utc("2024-01-01")


@pytest.mark.parametrize("kind", ["datetime(6)", "date"])
async def test_time_before_year_one_is_quarantined_by_a_later_run(base: Base, kind: str) -> None:
    """A year 0 is behind each watermark, as no time at all is, and yet no such row goes unseen."""
    base.run(
        f"CREATE TABLE events (id int PRIMARY KEY, updated_at {kind});"
        "INSERT INTO events VALUES (1, '2024-01-01'), (2, '0000-00-00'), (3, '0000-12-31')"
    )

    pages = await read(base.source(), utc("2023-12-31"))

    assert ids([each for page in pages for each in page.records]) == ["1"]
    assert sorted(str(each.record_id) for page in pages for each in page.rejects) == ["2", "3"]


async def read_and_alter(source: SqlTable, base: Base, statement: str) -> None:
    async for page in source.pages(None, None):
        if ids(page.records) == ["2", "3"]:
            base.run(statement)


async def test_table_that_is_altered_while_it_is_read_is_refused(base: Base) -> None:
    """Days are before their times: what is left to read may be behind the last page."""
    base.run(
        "CREATE TABLE events (id int PRIMARY KEY, updated_at datetime);"
        "INSERT INTO events SELECT seq, '2024-01-01 12:00' + INTERVAL seq SECOND FROM seq_0_to_9"
    )

    with pytest.raises(SourceError, match="its column 'updated_at' changed its type while"):
        await read_and_alter(
            base.source(page_size=2), base, "ALTER TABLE events MODIFY updated_at date"
        )
