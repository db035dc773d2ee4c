"""The database of a service in PostgreSQL, as the verbs that name one take it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ladon_storage.cli import databases
from tests.cli.called import Command
from tests.postgres import PASSWORD, PostgresServer
from tests.service import calling, path, service_process, success

VARIABLE = "STORAGE_SERVICE_DATABASE"


@pytest.mark.parametrize(
    "verb", [["serve"], ["migrate"], ["backup", "copy.db"], ["tokens", "list"], ["doctor"]]
)
def test_password_on_a_command_line_is_refused(ladon: Command, verb: list[str]) -> None:
    """The sentence says where a password belongs, and does not repeat it."""
    for address in (
        "postgresql://ann:hunter2@db/ladon",
        "postgresql://ann@db/ladon?password=hunter2",
        "postgresql+psycopg://ann:hunter2@db/ladon",
    ):
        called = ladon(*verb, "--database", address)
        assert called.code == (1 if verb == ["doctor"] else 2)
        assert VARIABLE in called.out + called.err
        assert "hunter2" not in called.out + called.err


@pytest.mark.parametrize(
    "address",
    ["mysql://u:hunter2@h/d", "postgresql://u@h", "http://h/d", "dbname=x password=hunter2",
     "postgresql:u:hunter2@h/d", "postgresql://u:a/hunter2@h", "postgresql://u:a/hunter2@h/d",
     "postgresql://u:a@hunter2@h/d", "postgresql://u:a?hunter2@h/d", "dbname = d"],
)  # fmt: skip
def test_address_that_names_no_database_is_refused(
    ladon: Command, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another kind of server, or a server without a database, is no file of that name."""
    called = ladon("migrate", "--database", address)
    monkeypatch.setenv(VARIABLE, address)
    named = ladon("migrate")
    assert (called.code, named.code) == (2, 2)
    assert "hunter2" not in called.err + named.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", ["./a=b.db", "storage.db", "./postgresql:x"])
def test_file_of_any_name_is_a_database(ladon: Command, name: str) -> None:
    """A name that looks like an address is a file's with its folder."""
    assert ladon("migrate", "--database", name).code == 0
    assert Path(name).is_file()


def test_missing_database_is_named_with_its_variable(ladon: Command) -> None:
    """A flag that was forgotten is named together with what stands for it."""
    called = ladon("serve")
    assert (called.code, VARIABLE in called.sentence) == (2, True)


@pytest.mark.parametrize("verb", [["serve"], ["migrate"], ["tokens", "list"], ["doctor"]])
def test_missing_driver_is_named_with_its_extra(
    ladon: Command, verb: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package without the extra says what to install, whichever verb is asked."""
    monkeypatch.setattr(databases, "find_spec", lambda name: None)
    called = ladon(*verb, "--database", "postgresql://ann@db.example/ladon")
    assert called.code == (1 if verb == ["doctor"] else 2)
    assert "Install ladon-storage[postgresql]" in called.out + called.err


@pytest.mark.parametrize("origin", ["absent.db", "other.txt", "postgresql://ann:hunter2@db/ladon"])
def test_database_that_cannot_be_moved_leaves_nothing_behind(ladon: Command, origin: str) -> None:
    """What is moved is checked before the other database is made."""
    ladon.write("other.txt", "no database" * 100)
    called = ladon("migrate", "--database", "new.db", "--from", origin)
    assert called.code == 2
    assert "hunter2" not in called.sentence
    assert not Path("new.db").exists()


def test_schema_is_migrated_apart(
    ladon: Command, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verb brings either database up to date, and may be repeated; doctor sees the state."""
    monkeypatch.setenv(VARIABLE, postgres.url(postgres.database()))
    shown = "postgresql://127.0.0.1"
    first, again = ladon("migrate"), ladon("migrate")
    assert (first.code, again.code) == (0, 0)
    assert "schema version 4, 4 applied now" in first.err
    assert "schema version 4, 0 applied now" in again.err
    assert shown in first.err
    assert PASSWORD not in first.err
    file = ladon("migrate", "--database", "w.db")
    assert (file.code, file.sentence) == (0, "w.db: schema version 4")


def test_content_is_copied_by_the_verb(
    ladon: Command, empty_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's service moves to PostgreSQL by one command, which says what went over."""
    assert ladon("tokens", "add", "team", "--database", "w.db").code == 0
    monkeypatch.setenv(VARIABLE, empty_postgres)
    moved = ladon("migrate", "--from", "w.db")
    assert (moved.code, "copied: 0 watermarks, 0 changes, 1 token" in moved.err) == (0, True)
    [found] = ladon("tokens", "list", "--json").json
    assert found["name"] == "team"
    again = ladon("migrate", "--from", "w.db")
    assert (again.code, "content already" in again.err) == (2, True)


def test_doctor_looks_at_a_database_in_postgresql(
    ladon: Command, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the version of the server and of the schema, and makes nothing."""
    name = postgres.database()
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    address = f"postgresql://ladon@127.0.0.1:{postgres.port}/{name}"
    before = ladon("doctor", "--database", address, "--json")
    [check] = [each for each in before.json if each["what"] == "database"]
    assert (check["verdict"], "schema version 0 of 4" in check["finding"]) == ("warning", True)
    assert "migrate" in check["next_step"]
    assert ladon("migrate", "--database", address).code == 0
    after = ladon("doctor", "--database", address, "--json")
    [check] = [each for each in after.json if each["what"] == "database"]
    assert "fsync is off" in check["finding"]  # of the tests' server


def test_backup_of_postgresql_names_its_tools(ladon: Command) -> None:
    """A copy of a file is no backup of a server."""
    called = ladon("backup", "copy.db", "--database", "postgresql://ann@db/ladon")
    assert (called.code, "pg_dump" in called.sentence) == (2, True)


def test_tokens_are_kept_in_postgresql(
    ladon: Command, empty_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token is made, listed and revoked as in a file."""
    monkeypatch.setenv(VARIABLE, empty_postgres)
    assert ladon("tokens", "add", "team", "--read-only", "--prefix", "a/").code == 0
    [found] = ladon("tokens", "list", "--json").json
    assert (found["name"], found["read_only"], found["prefix"]) == ("team", True, "a/")
    assert ladon("tokens", "add", "team").code == 2
    assert ladon("tokens", "revoke", "team").code == 0
    assert ladon("tokens", "revoke", "team").code == 1


async def test_service_runs_over_postgresql(tmp_path: Path, empty_postgres: str) -> None:
    """Two processes serve one database, and no log line has its password."""
    environment = {VARIABLE: empty_postgres}
    serve = [*_serve(), "--port", "0"]
    async with (
        service_process(tmp_path / "a", environment=environment, command_line=serve) as one,
        service_process(tmp_path / "b", environment=environment, command_line=serve) as two,
    ):
        async with calling(one.address) as call:
            put = await call("PUT", path("kev"), success("2024-01-01T00:00:00Z"))
            assert put.status == 201
        async with calling(two.address) as call:
            assert (await call("GET", path("kev"))).etag == put.etag
        for each in (one, two):
            assert await each.end() == 0
            log = each.log.read_text()
            assert "Traceback" not in log
            assert PASSWORD not in log


def _serve() -> list[str]:
    return [sys.executable, "-m", "ladon_storage.cli", "serve"]
