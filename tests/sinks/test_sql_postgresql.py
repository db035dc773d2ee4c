"""The sink that is a table of a real PostgreSQL: types, rights, and connections that end."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from ladon_storage.cli.sink_check import check_place
from ladon_storage.collection.protocols import Position
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.errors import SinkError
from ladon_storage.sinks import SqlSink
from ladon_storage.sinks.sql import postgresql as sql_postgresql
from ladon_storage.sinks.sql.errors import describe
from ladon_storage.testing.doubles import at, record
from tests.postgres import PASSWORD, PostgresServer
from tests.tables import connection_of


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    """Be an empty database."""
    return postgres.database()


def sink(postgres: PostgresServer, database: str, keep: Any = "latest") -> SqlSink:
    return SqlSink(postgres.url(database), keep=keep)


async def write(target: SqlSink, *records: Record) -> int:
    async with target:
        return (await target.write("feed", Page(list(records)))).written


async def test_table_has_the_columns_that_were_promised(
    postgres: PostgresServer, database: str
) -> None:
    """Other programs read the table: names and types of its columns are a contract."""
    await write(sink(postgres, database), record("1", 1))

    columns = postgres.execute(
        "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
        "WHERE table_name = 'records' ORDER BY column_name",
        database,
    )
    instant = "timestamp with time zone"
    assert columns == [
        ("collected_at", instant, "NO"),
        ("payload", "json", "NO"),
        ("record_id", "text", "NO"),
        ("record_timestamp", instant, "NO"),
        ("removed_at", instant, "YES"),
        ("source_id", "text", "NO"),
        ("version", "text", "NO"),
    ]


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_payload_is_the_text_that_the_source_gave(
    postgres: PostgresServer, database: str, keep: str
) -> None:
    """Keys keep their order and numbers their form, what no text can be stays escaped."""
    text = '{"b":1.00, "a":1E5, "value":"x"}'
    odd = '{"nul":"\\u0000","lone":"\\ud800"}'
    records = [Record("1", at(1), text, "v"), Record("2", at(2), odd, "v")]
    await write(sink(postgres, database, keep), *records)

    query = "SELECT payload::text FROM records ORDER BY record_id"
    assert postgres.execute(query, database) == [(text,), (odd,)]
    query = "SELECT payload ->> 'value' FROM records WHERE record_id = '1'"
    assert postgres.execute(query, database) == [("x",)]


async def test_connection_that_is_lost_fails_its_page_alone(
    postgres: PostgresServer, database: str
) -> None:
    """A server that restarts ends a run with a clear sentence, and the sink can go on."""
    async with sink(postgres, database) as target:
        await target.write("feed", Page([record("1", 1)]))
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{database}' AND application_name = 'ladon-storage'"
        )
        with pytest.raises(SinkError, match=r"terminating connection.*Check that the server can"):
            await target.write("feed", Page([record("2", 2)]))
        assert (await target.write("feed", Page([record("2", 2)]))).written == 1


async def test_table_that_is_locked_for_too_long_fails_the_write(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program that never lets go is an error of ours, not a run that hangs."""
    monkeypatch.setattr(sql_postgresql, "WAIT_SECONDS", 0.02)
    async with sink(postgres, database) as target:
        with psycopg.connect(postgres.url(database)) as other:
            other.execute("LOCK TABLE records")
            with pytest.raises(SinkError, match=r"lock timeout\. Stop the program that holds"):
                await target.write("feed", Page([record("1", 1)]))
            other.rollback()
        assert (await target.write("feed", Page([record("1", 1)]))).written == 1


async def test_rows_are_taken_in_the_order_of_their_ids(
    postgres: PostgresServer, database: str
) -> None:
    """Two runs that change the same rows wait for each other, and never in a circle."""
    lock = "SELECT 1 FROM records WHERE record_id = '{}' FOR UPDATE NOWAIT"
    waiting = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{database}' AND wait_event_type"
    async with sink(postgres, database) as target:
        await target.write("feed", Page([record("1", 1), record("2", 1)]))
        with psycopg.connect(postgres.url(database)) as other:
            other.execute(lock.format(2).encode())
            changed = Page([record("2", 2, "b"), record("1", 2, "b")])
            writing = asyncio.create_task(target.write("feed", changed))
            async with asyncio.timeout(10):
                while not postgres.execute(f"{waiting} = 'Lock'"):
                    await asyncio.sleep(0.01)
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute(lock.format(1).encode())
        assert (await writing).written == 2


async def test_event_loop_goes_on_while_the_database_waits(
    postgres: PostgresServer, database: str
) -> None:
    """A server that is busy does not stop the heartbeats of the same loop."""
    beats = asyncio.Event()
    async with sink(postgres, database) as target:
        with psycopg.connect(postgres.url(database)) as other:
            other.execute("LOCK TABLE records")
            writing = asyncio.create_task(target.write("feed", Page([record("1", 1)])))
            asyncio.get_running_loop().call_later(0.01, beats.set)
            await asyncio.wait_for(beats.wait(), 5)
            assert not writing.done()
            other.rollback()
        assert (await writing).written == 1


async def test_acknowledged_commit_is_durable_whatever_the_default_is(
    postgres: PostgresServer, database: str
) -> None:
    """A database may be set to acknowledge what a crash of the server loses."""
    postgres.execute(f"ALTER DATABASE {database} SET synchronous_commit TO off")
    async with sink(postgres, database) as target:
        connection = connection_of(target)
        setting = await asyncio.to_thread(
            lambda: connection.exec_driver_sql("SHOW synchronous_commit").scalar()
        )
        connection.rollback()
    assert setting == "on"


@pytest.mark.parametrize(
    "setting",
    [
        *("datestyle = 'SQL, DMY'", "datestyle = 'German'", "client_encoding = 'LATIN1'"),
        *("client_encoding = 'SQL_ASCII'", "standard_conforming_strings = off"),
    ],
)
async def test_settings_of_the_owner_change_no_text_and_no_time(
    postgres: PostgresServer, database: str, setting: str
) -> None:
    """A database may have its own defaults, which are those of other programs."""
    postgres.execute(f"ALTER DATABASE {database} SET {setting}")
    page = Page([record("\N{EURO SIGN}", 1)], [Reject("no id", "\N{EURO SIGN}")])
    position = Position(timestamp=at(1), watermark=at(0))
    for new in (1, 0):
        async with sink(postgres, database) as target:
            assert (await target.write("f\N{EURO SIGN}", page, position=position)).written == new
        async with sink(postgres, database) as target:
            assert await target.position("f\N{EURO SIGN}") == position
            assert await target.lacking("f\N{EURO SIGN}", {"\N{EURO SIGN}": at(1), "b": at(1)}) == {
                "b"
            }


async def test_encoding_of_the_environment_is_not_that_of_a_sink(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other programs of a host use lacks characters that a source sends."""
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")

    assert await write(sink(postgres, database), record("\N{EURO SIGN}", 1)) == 1
    assert await write(sink(postgres, database), record("\N{EURO SIGN}", 1)) == 0


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_database_that_does_not_hold_every_text_is_refused(
    postgres: PostgresServer, encoding: str
) -> None:
    """It would fail in the middle of a run, by the first text that it lacks."""
    name = f"of_{encoding.lower()}"
    postgres.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    said = f"'{name}' of a sink has the encoding {encoding}.*with the encoding UTF8"

    with pytest.raises(SinkError, match=said):
        await write(sink(postgres, name), record("1", 1))
    with pytest.raises(SinkError, match=said):
        await check_place(postgres.url(name))


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_writer_that_waited_sees_what_the_other_one_wrote(
    postgres: PostgresServer, database: str, isolation: str
) -> None:
    """Under the owner's default it would fail, as the rows of the other one are too new for it."""
    postgres.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = '{isolation}'")
    waiting = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{database}' AND wait_event_type"
    async with sink(postgres, database) as target, sink(postgres, database) as other:
        await target.write("feed", Page([record("1", 1)]))
        with psycopg.connect(postgres.url(database)) as holder:
            holder.execute("SELECT 1 FROM records WHERE record_id = '1' FOR UPDATE")
            changes = [
                asyncio.create_task(each.write("feed", Page([record("1", n, str(n))])))
                for n, each in ((2, target), (3, other))
            ]
            async with asyncio.timeout(10):
                while len(postgres.execute(f"{waiting} = 'Lock'")) < 2:
                    await asyncio.sleep(0.01)
        await asyncio.gather(*changes)

    rows = postgres.execute("SELECT payload->>'value' FROM records", database)
    assert rows == [("3",)]


async def test_role_that_may_only_read_and_write_rows_is_enough(
    postgres: PostgresServer, database: str
) -> None:
    """Whoever makes the tables need not be who collects; what is refused is said."""
    await write(sink(postgres, database), record("1", 1))
    role = f"writer_{database}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'w'")
    grant = "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO"
    postgres.execute(f"{grant} {role}", database)
    url = f"postgresql://{role}:w@127.0.0.1:{postgres.port}/{database}"

    assert await write(SqlSink(url), record("1", 1), record("2", 2)) == 1
    with pytest.raises(SinkError, match=r"permission denied for schema public\. Grant that"):
        await write(SqlSink(url, "other"), record("1", 1))


async def test_role_that_may_read_and_write_rows_goes_on_after_a_migration(
    postgres: PostgresServer, database: str
) -> None:
    """What is made beside a table may be read by whoever may read the table."""
    await write(sink(postgres, database, "all"), record("1", 1))
    role = f"writer_{database}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'w'")
    grant = "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO"
    postgres.execute(f"{grant} {role}", database)
    for statement in (
        "DROP TRIGGER ladon_gone_records ON records",
        "DROP TRIGGER ladon_void_records ON records",
        "DROP TABLE ladon_deleted",
        "DROP FUNCTION ladon_note_deleted",
        "ALTER TABLE records DROP replaced_at",
        "ALTER TABLE ladon_positions DROP document, DROP order_shown",
        "UPDATE ladon_meta SET version = 2",
    ):
        postgres.execute(statement, database)
    url = f"postgresql://{role}:w@127.0.0.1:{postgres.port}/{database}"
    with pytest.raises(SinkError, match=r"must be owner of|permission denied"):
        await write(SqlSink(url, keep="all"), record("1", 1))

    await write(sink(postgres, database, "all"), record("1", 1))
    async with SqlSink(url, keep="all") as target:
        page = Page([record("1", 1), record("1", 2, "b")])
        position = Position(timestamp=at(2), document="d", order_shown=True)
        assert (await target.write("feed", page, position=position)).written == 1
        assert await target.revert("feed", page.records[:1]) == 1
        assert await target.position("feed") == position


async def test_whoever_may_delete_rows_can(postgres: PostgresServer, database: str) -> None:
    """A role that knows nothing of the sink's other tables deletes, and that is noted."""
    await write(sink(postgres, database), record("1", 1), record("2", 2))
    role = f"editor_{database}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'w'")
    postgres.execute(f"GRANT SELECT, DELETE ON records TO {role}", database)
    url = f"postgresql://{role}:w@127.0.0.1:{postgres.port}/{database}"
    with psycopg.connect(url) as other:
        other.execute("DELETE FROM records WHERE record_id = '1'")

    assert await write(sink(postgres, database), record("1", 1), record("2", 2)) == 0
    assert await write(sink(postgres, database), record("1", 2, "b")) == 1


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_table_that_was_truncated_stays_empty_until_the_source_says_more(
    postgres: PostgresServer, database: str, keep: str
) -> None:
    """It is a deletion of every row; what was removed at the source may come back, as there."""
    listed = [record(each, 1) for each in "123"]
    await write(sink(postgres, database, keep), *listed)
    async with sink(postgres, database, keep) as target:
        await target.mark_removed("feed", {"1", "2"}, 0.5)
    role = f"editor_{database}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'w'")
    postgres.execute(f"GRANT TRUNCATE ON records TO {role}", database)
    url = f"postgresql://{role}:w@127.0.0.1:{postgres.port}/{database}"
    with psycopg.connect(url) as other:
        other.execute("TRUNCATE records")

    assert await write(sink(postgres, database, keep), *listed) == 1
    assert await write(sink(postgres, database, keep), record("1", 2, "b")) == 1
    assert postgres.execute("SELECT record_id FROM records ORDER BY 1", database) == [
        ("1",),
        ("3",),
    ]


async def test_truncation_is_noted_though_the_sink_of_before_did_not(
    postgres: PostgresServer, database: str
) -> None:
    """The trigger is made where it is missing, as that of a deletion is."""
    await write(sink(postgres, database), record("1", 1))
    postgres.execute("DROP TRIGGER ladon_void_records ON records", database)
    await write(sink(postgres, database), record("1", 1))
    postgres.execute("TRUNCATE records", database)

    assert await write(sink(postgres, database), record("1", 1)) == 0


COLUMNS = (
    "source_id text, record_id text, version text NOT NULL, record_timestamp timestamptz NOT NULL, "
    "payload json NOT NULL, collected_at timestamptz NOT NULL, removed_at timestamptz, "
    "replaced_at timestamptz"
)
KEYS = {"latest": "source_id, record_id", "all": "source_id, record_id, version"}


def part_by_source(postgres: PostgresServer, database: str, keep: str) -> None:
    """Create the table of records as its owner would, with a partition for one source."""
    for each in (
        f"CREATE TABLE records ({COLUMNS}, PRIMARY KEY ({KEYS[keep]})) "
        "PARTITION BY LIST (source_id)",
        "CREATE TABLE part PARTITION OF records FOR VALUES IN ('feed')",
        "CREATE TABLE rest PARTITION OF records DEFAULT",
    ):
        postgres.execute(each, database)


@pytest.mark.parametrize("keep", ["latest", "all"])
@pytest.mark.parametrize(
    "act",
    [
        "DELETE FROM records WHERE record_id IN ('1', '2')",
        "DELETE FROM part WHERE record_id IN ('1', '2')",
        "DELETE FROM other.later WHERE record_id IN ('1', '2')",
        "TRUNCATE part",
        "TRUNCATE other.later",
        "TRUNCATE records",
    ],
)
async def test_deletion_from_a_partition_is_one_from_the_table(
    postgres: PostgresServer, database: str, keep: str, act: str
) -> None:
    """Its owner may name the partition, also one that was added after the sink's last run."""
    part_by_source(postgres, database, keep)
    if "later" in act:
        await write(sink(postgres, database, keep), record("0", 0))
        for each in (
            "CREATE SCHEMA other",
            "DROP TABLE part",
            "CREATE TABLE other.later PARTITION OF records FOR VALUES IN ('feed')",
        ):
            postgres.execute(each, database)
    listed = [record(each, 1) for each in "123"]
    assert await write(sink(postgres, database, keep), *listed) == 3
    postgres.execute(act, database)

    left = 0 if "TRUNCATE" in act else 1
    assert postgres.execute("SELECT count(*) FROM records", database) == [(left,)]
    assert await write(sink(postgres, database, keep), *listed) == 0
    assert await write(sink(postgres, database, keep), record("1", 2, "b")) == 1


async def test_table_that_was_attached_to_another_notes_what_is_deleted_there(
    postgres: PostgresServer, database: str
) -> None:
    """Its triggers are made again, for each row."""
    listed = [record(each, 1) for each in "12"]
    await write(sink(postgres, database), *listed)
    for each in (
        f"CREATE TABLE everything ({COLUMNS}) PARTITION BY LIST (source_id)",
        "ALTER TABLE records ADD COLUMN replaced_at timestamptz",
        "ALTER TABLE everything ATTACH PARTITION records DEFAULT",
    ):
        postgres.execute(each, database)
    assert await write(sink(postgres, database), *listed) == 0
    postgres.execute("DELETE FROM everything WHERE record_id = '1'", database)

    assert await write(sink(postgres, database), *listed) == 0
    postgres.execute("ALTER TABLE everything DETACH PARTITION records", database)
    assert await write(sink(postgres, database), record("1", 2, "b")) == 1
    postgres.execute("DELETE FROM records", database)
    assert await write(sink(postgres, database), record("1", 2, "b"), *listed[1:]) == 0


@pytest.mark.parametrize("keep", ["latest", "all"])
@pytest.mark.parametrize("is_parted", [False, True])
@pytest.mark.parametrize(
    "act", ["DELETE FROM {}", "TRUNCATE {}", "DELETE FROM {} WHERE record_id IN ('1', '2')"]
)
async def test_deletion_in_a_session_without_triggers_is_noted(
    postgres: PostgresServer, database: str, keep: str, act: str, is_parted: bool
) -> None:
    """A session in the role of a replica skips other triggers, and the sink's act in it."""
    if is_parted:
        part_by_source(postgres, database, keep)
    listed = [record(each, 1) for each in "12"]
    await write(sink(postgres, database, keep), *listed)
    with psycopg.connect(postgres.url(database), autocommit=True) as other:
        other.execute("SET session_replication_role = replica")
        other.execute(act.format("part" if is_parted else "records").encode())

    assert postgres.execute("SELECT count(*) FROM records", database) == [(0,)]
    assert await write(sink(postgres, database, keep), *listed) == 0
    assert await write(sink(postgres, database, keep), record("1", 2, "b")) == 1


@pytest.mark.parametrize("is_parted", [False, True])
@pytest.mark.parametrize("is_enabled", [False, True])
@pytest.mark.parametrize("name", ["ALL", "ladon_gone_records", "ladon_void_records"])
async def test_triggers_that_were_disabled_are_enabled_and_the_gap_is_logged(
    postgres: PostgresServer,
    database: str,
    is_parted: bool,
    is_enabled: bool,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Deletions of that time are unknown, which one warning says; later ones are noted."""
    if is_parted:
        part_by_source(postgres, database, "latest")
    table = "part" if is_parted else "records"
    listed = [record(each, 1) for each in "12"]
    await write(sink(postgres, database), *listed)
    await write(sink(postgres, database), *listed)
    assert not caplog.messages
    postgres.execute(f"ALTER TABLE {table} DISABLE TRIGGER {name}", database)
    postgres.execute(f"DELETE FROM {table} WHERE record_id = '1'", database)
    if is_enabled:
        postgres.execute(f"ALTER TABLE {table} ENABLE TRIGGER {name}", database)

    is_unknown = name != "ladon_void_records"
    assert await write(sink(postgres, database), *listed) == is_unknown
    [message] = caplog.messages
    assert "triggers of the table 'records' that note deletions were disabled" in message
    postgres.execute(f"TRUNCATE {table}", database)
    assert await write(sink(postgres, database), *listed) == 0
    assert len(caplog.messages) == 1


async def test_triggers_of_an_older_release_are_enabled_without_a_warning(
    postgres: PostgresServer, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its triggers were enabled as usual, and its function lacks a line."""
    await write(sink(postgres, database), record("1", 1))
    older = (
        "CREATE OR REPLACE FUNCTION ladon_note_deleted() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN RETURN NULL; END'"
    )
    postgres.execute(older, database)
    postgres.execute("ALTER TABLE records ENABLE TRIGGER ALL", database)
    assert await write(sink(postgres, database), record("1", 1)) == 0
    assert not caplog.messages

    postgres.execute("DELETE FROM records", database)
    assert await write(sink(postgres, database), record("1", 1)) == 0


async def test_role_without_ownership_collects_with_the_triggers_of_an_older_release(
    postgres: PostgresServer, database: str
) -> None:
    """What they note is enough for such a role; with a disabled one it is refused."""
    await write(sink(postgres, database), record("1", 1))
    role = f"writer_{database}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'w'")
    postgres.execute(
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}", database
    )
    target = SqlSink(f"postgresql://{role}:w@127.0.0.1:{postgres.port}/{database}")
    postgres.execute("ALTER TABLE records ENABLE TRIGGER ALL", database)
    assert await write(target, record("2", 1)) == 1

    postgres.execute("ALTER TABLE records DISABLE TRIGGER ALL", database)
    with pytest.raises(SinkError, match=r"permission|owner"):
        await write(target, record("3", 1))


@pytest.mark.parametrize("kind", ["", "PARTITION BY HASH (source_id)"])
@pytest.mark.parametrize("act", ["DELETE FROM feeds WHERE name = 'feed'", "TRUNCATE feeds CASCADE"])
async def test_deletion_that_cascades_is_one(
    postgres: PostgresServer, database: str, kind: str, act: str
) -> None:
    """A foreign key of the table's owner deletes as the owner does."""
    for each in (
        "CREATE TABLE feeds (name text PRIMARY KEY)",
        "INSERT INTO feeds VALUES ('feed'), ('other')",
        f"CREATE TABLE records ({COLUMNS}, PRIMARY KEY (source_id, record_id), "
        f"FOREIGN KEY (source_id) REFERENCES feeds ON DELETE CASCADE) {kind}",
        *(
            ["CREATE TABLE only_one PARTITION OF records FOR VALUES WITH (modulus 1, remainder 0)"]
            if kind
            else []
        ),
    ):
        postgres.execute(each, database)
    listed = [record(each, 1) for each in "12"]
    assert await write(sink(postgres, database), *listed) == 2
    postgres.execute(act, database)
    postgres.execute("INSERT INTO feeds VALUES ('feed') ON CONFLICT DO NOTHING", database)

    assert postgres.execute("SELECT count(*) FROM records", database) == [(0,)]
    assert await write(sink(postgres, database), *listed) == 0
    assert await write(sink(postgres, database), record("1", 2, "b")) == 1


async def test_runs_that_add_different_versions_at_once_leave_one_current(
    postgres: PostgresServer, database: str
) -> None:
    """Whoever writes a source's rows waits for the other, also where neither finds anything."""
    await write(sink(postgres, database, "all"), record("0", 0))

    async def fill(value: str) -> None:
        for n in range(10):
            page = [record(str(k), n, value) for k in range(n, n + 3)]
            await write(sink(postgres, database, "all"), *page)

    await asyncio.gather(*(fill(value) for value in "abc"))
    current = postgres.execute(
        "SELECT record_id, count(*) FILTER (WHERE replaced_at IS NULL) FROM records GROUP BY 1",
        database,
    )
    assert {count for _, count in current} == {1}


@pytest.mark.parametrize("content", ["CONTENT", '{"a":CONTENT}'])
async def test_error_of_the_database_shows_no_record(
    postgres: PostgresServer, database: str, content: str
) -> None:
    """PostgreSQL repeats values in the details of an error; ours has its first sentence alone."""
    async with sink(postgres, database) as target:
        with pytest.raises(SinkError, match="invalid input syntax for type json") as caught:
            await target.write("feed", Page([Record("1", at(1), content, "v")]))

    assert "CONTENT" not in "".join(traceback.format_exception(caught.value))
    assert isinstance(caught.value.__cause__, psycopg.errors.InvalidTextRepresentation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("127.0.0.1:", "127.0.0.1:1/x?port="), "Check that the server can be reached"),
        ((quote(PASSWORD, safe=""), "WRONG"), "password authentication failed"),
        (("/postgres", "/nowhere"), 'database "nowhere" does not exist'),
        (("/postgres", "/postgres?options=-cx%3Dy"), "could not be opened: "),
    ],
    ids=["port", "password", "database", "options"],
)
async def test_server_that_lets_nobody_in_is_a_clear_error(
    postgres: PostgresServer, change: tuple[str, str], message: str
) -> None:
    """The address is named without its password, which is nowhere in the error."""
    url = postgres.url().replace(*change)
    if "port=" in url:
        url = f"postgresql://ladon:{quote(PASSWORD, safe='')}@127.0.0.1:1/postgres"
    with pytest.raises(SinkError, match=message) as caught:
        await write(SqlSink(url))

    text = "".join(traceback.format_exception(caught.value))
    assert "postgresql://ladon:***@127.0.0.1" in text
    assert not [
        secret for secret in (PASSWORD, quote(PASSWORD, safe=""), "WRONG") if secret in text
    ]


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (psycopg.errors.DeadlockDetected, "Run again, as another program was in the way"),
        (psycopg.errors.SerializationFailure, "Run again, as another program was in the way"),
        (psycopg.errors.DiskFull, "Free resources"),
        (psycopg.errors.TooManyConnections, "Free resources"),
        (psycopg.errors.AdminShutdown, "Check that the server can be reached"),
        (psycopg.errors.ConnectionFailure, "Check that the server can be reached"),
        (psycopg.errors.InsufficientPrivilege, "Grant that to the sink's user"),
        (psycopg.errors.ProgramLimitExceeded, "Set id to a shorter field"),
        (psycopg.errors.LockNotAvailable, "Stop the program that holds"),
        (psycopg.OperationalError, "Check that the server can be reached"),
        (psycopg.errors.UndefinedTable, "Repair the database"),
        (psycopg.errors.DataCorrupted, "Repair the database"),
    ],
)
def test_every_failure_has_a_next_step(error: type[psycopg.Error], step: str) -> None:
    """What cannot be provoked here has its sentence too; only the first line is kept."""
    said, told_step, cause = describe(DBAPIError("", None, error("It failed.\nDETAIL: CONTENT")))

    assert (said, str(cause)) == ("It failed.", "It failed.")
    assert told_step.startswith(step)
    assert type(cause) is error
