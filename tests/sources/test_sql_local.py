"""Tables whose timestamps are of a local clock: no row is lost in the nights in which it is set."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ladon_storage.collection.run import run
from ladon_storage.sources.sql.source import SqlTable
from ladon_storage.testing.doubles import MemorySink, RememberingSink, ScriptedStorage
from tests.mariadb import MariaServer
from tests.postgres import PostgresServer

BERLIN = ZoneInfo("Europe/Berlin")
SET_BACK = datetime(2024, 10, 27, 1, tzinfo=UTC)
SET_FORWARD = datetime(2024, 3, 31, 1, tzinfo=UTC)
NEW_YORK = ZoneInfo("America/New_York")
NEW_YORK_SET_BACK = datetime(2024, 11, 3, 6, tzinfo=UTC)
SECRET = "LADON_TEST_LOCAL"


def local(instant: datetime, zone: ZoneInfo = BERLIN) -> str:
    return instant.astimezone(zone).replace(tzinfo=None).isoformat(" ")


class LocalTable:
    """A table in a file of SQLite, and runs at instants that a test chooses."""

    def __init__(
        self,
        path: Path,
        sink: MemorySink,
        overlap: timedelta,
        page_size: int,
        zone: ZoneInfo = BERLIN,
    ) -> None:
        self.path = path
        self.zone = zone
        self.sink = sink
        self.storage = ScriptedStorage(now=lambda: SET_BACK + timedelta(days=30))
        self.source = SqlTable(
            source_id="log",
            url=f"sqlite:///{path}",
            table="events",
            zone=zone.key,
            overlap=overlap,
            page_size=page_size,
        )
        self.rows = 0
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DROP TABLE IF EXISTS events")
            connection.execute("CREATE TABLE events (id INTEGER, updated_at TEXT)")

    def add(self, instant: datetime) -> None:
        self.rows += 1
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(
                "INSERT INTO events VALUES (?, ?)", (self.rows, local(instant, self.zone))
            )

    async def run(self, instant: datetime) -> None:
        await run(self.source, self.sink, self.storage, run_id=f"{instant}", clock=lambda: instant)


def minutes(begin: datetime, *numbers: int) -> list[datetime]:
    return [begin + timedelta(minutes=number) for number in numbers]


@pytest.mark.parametrize("overlap", [timedelta(0), timedelta(minutes=10)])
async def test_row_of_the_hour_that_comes_twice_is_collected(
    tmp_path: Path, overlap: timedelta
) -> None:
    """The second 02:10 comes after a run that had seen the first 02:50."""
    table = LocalTable(tmp_path / "app.db", MemorySink(), overlap, 1_000)
    first, second = minutes(SET_BACK, -10, 10)

    for instant in (first, second):
        table.add(instant)
        await table.run(instant + timedelta(minutes=1))

    assert table.sink.ids == ["1", "2"]
    watermark = table.storage.stored["log"].last_successful_timestamp
    assert watermark == first, "the earlier reading of what is ambiguous"


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    where=st.sampled_from(
        [(BERLIN, SET_BACK), (BERLIN, SET_FORWARD), (NEW_YORK, NEW_YORK_SET_BACK)]
    ),
    steps=st.lists(
        st.tuples(st.integers(1, 30), st.sampled_from(["row", "row", "run", "crash"])),
        min_size=4,
        max_size=24,
    ),
    overlap=st.sampled_from([0, 10]),
    page_size=st.integers(1, 4),
    remembers=st.booleans(),
)
async def test_no_row_is_lost_whenever_runs_are(
    tmp_path: Path,
    where: tuple[ZoneInfo, datetime],
    steps: list[tuple[int, str]],
    overlap: int,
    page_size: int,
    remembers: bool,
) -> None:
    """Rows and runs come as they like in the hours about it, and some runs are cut off."""
    zone, change = where
    sink = RememberingSink() if remembers else MemorySink()
    table = LocalTable(tmp_path / "app.db", sink, timedelta(minutes=overlap), page_size, zone)
    now = change - timedelta(minutes=70)
    for wait, what in steps:
        now += timedelta(minutes=wait)
        if what == "row":
            table.add(now)
            continue
        sink.script.clear()
        if what == "crash":
            sink.script.extend([None, OSError("cut off")])
        with suppress(OSError):
            await table.run(now)
    sink.script.clear()
    await table.run(now + timedelta(minutes=1))

    assert sink.ids == sorted(str(n + 1) for n in range(table.rows))


@pytest.mark.parametrize("kind", ["postgresql", "mariadb", "mariadb date"])
async def test_server_is_asked_for_both_readings(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column without a zone is asked from the earliest time that a clock may yet show."""
    server: PostgresServer | MariaServer = request.getfixturevalue(
        "postgres" if kind == "postgresql" else "mariadb"
    )
    name = server.database()
    monkeypatch.setenv(SECRET, server.url(name))
    column = {"postgresql": "timestamp", "mariadb": "datetime", "mariadb date": "date"}[kind]
    server.execute(f"CREATE TABLE events (id int PRIMARY KEY, updated_at {column})", name)
    source = SqlTable(
        source_id="log",
        url_secret=SECRET,
        table="events",
        zone="Europe/Berlin",
        overlap=timedelta(0),
        page_size=1,
    )
    sink, storage = RememberingSink(), ScriptedStorage(now=lambda: SET_BACK + timedelta(days=30))

    for number, instant in enumerate(minutes(SET_BACK, -70, -10, 10, 50, 70, 130)):
        server.execute(f"INSERT INTO events VALUES ({number}, '{local(instant)}')", name)
        await run(source, sink, storage, run_id=str(number), clock=lambda: SET_BACK)

    assert sink.ids == ["0", "1", "2", "3", "4", "5"]
