"""A Prefect home of a newer Prefect ends a command in one sentence."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import prefect
import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    temporary_settings,
)

from demo.stage import prefect_server
from ladon_storage.errors import ConfigurationError
from ladon_storage.flows import home
from ladon_storage.flows.home import check_database, check_home
from tests.documents import ROOT
from tests.forks import forking

UNKNOWN = "0123456789ab"
KNOWN = "9725c1cbee35"
"""The first revision that Prefect ever had."""
AS_A_COMMAND = "import sys; from ladon_storage.cli import main; sys.exit(main())"


def database_at(folder: Path, *revisions: str) -> Path:
    """Make a database that has ``revisions``, as Prefect keeps it in its home."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prefect.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        rows = [(revision,) for revision in revisions]
        connection.executemany("INSERT INTO alembic_version VALUES (?)", rows)
    return path


def test_revision_of_a_newer_prefect_is_refused_with_the_next_step(tmp_path: Path) -> None:
    """The sentence names the file, its revision, the installed Prefect, and what to do."""
    path = database_at(tmp_path / "a home? 100%", UNKNOWN)
    with pytest.raises(ConfigurationError) as caught:
        check_database(path)
    message = str(caught.value)
    for fact in (str(path), UNKNOWN, prefect.__version__, "PREFECT_HOME"):
        assert fact in message


def test_database_that_prefect_can_judge_itself_is_not_refused(tmp_path: Path) -> None:
    """None yet, a known revision, none at all, and a file of another kind are Prefect's matter."""
    check_database(tmp_path / "prefect.db")
    check_database(database_at(tmp_path / "known", KNOWN))
    check_database(database_at(tmp_path / "empty"))
    other = tmp_path / "other.db"
    other.write_bytes(b"no database " * 100)
    check_database(other)
    sqlite3.connect(tmp_path / "new.db").close()
    check_database(tmp_path / "new.db")


def test_unknown_place_of_migrations_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Prefect that keeps its migrations elsewhere knows revisions that are not found here."""
    monkeypatch.setattr(home, "MIGRATIONS", Path("elsewhere"))
    check_database(database_at(tmp_path, UNKNOWN))


def test_revisions_of_the_installed_prefect_are_where_they_are_looked_for() -> None:
    """With no file there, nothing would ever be refused."""
    (package,) = prefect.__path__
    assert len(list(Path(package, home.MIGRATIONS).glob("*.py"))) > 100


def test_home_is_checked_only_where_prefect_would_open_it(tmp_path: Path) -> None:
    """With a Prefect API, no command opens the database of the home."""
    database_at(tmp_path, UNKNOWN)
    # Other tests of the same process have a Prefect server.
    theirs = {PREFECT_API_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL}
    with temporary_settings({PREFECT_HOME: tmp_path}, restore_defaults=theirs):
        with pytest.raises(ConfigurationError, match=UNKNOWN):
            check_home()
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
            check_home()


@pytest.mark.slow
async def test_command_with_the_home_of_a_newer_prefect_ends_in_one_line(tmp_path: Path) -> None:
    """It prints no log of Prefect's, and does not wait for a server that cannot start."""
    home = tmp_path / "home"
    database_at(home, UNKNOWN)
    settings = {"PREFECT_HOME": str(home), "STORAGE_SERVICE_URL": "http://127.0.0.1:1"}
    with forking("prefect", **settings) as forks:
        for command in (
            ["collect", "kev", "--sink", "sqlite:///records.db", "--prefect"],
            ["deploy", "--serve", "--table", str(ROOT / "prefect.yaml")],
            ["circuit", "automate", "--deployment", "collect-kev/kev"],
        ):
            async with forks.run(AS_A_COMMAND, *command, folder=tmp_path, **settings) as process:
                printed, log = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 2, command
            (line,) = log.splitlines()
            assert line.startswith("ladon-storage: "), command
            assert UNKNOWN in line
            assert not printed


async def test_server_of_the_demonstration_is_not_started_over_a_newer_database(
    tmp_path: Path,
) -> None:
    """`make up` keeps its Prefect between starts, and the project's lock may have gone back."""
    database_at(tmp_path / "prefect", UNKNOWN)
    with pytest.raises(ConfigurationError, match=UNKNOWN):
        async with prefect_server(tmp_path):
            pass
    assert not (tmp_path / "prefect-server.log").exists()
