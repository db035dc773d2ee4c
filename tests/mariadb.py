"""A real MariaDB on a free port of loopback, whose zone is Europe/Berlin, for a test session.

The fixture `mariadb` is for every test; `MariaServer.database` makes an empty database. The server
is a child of the session and forgets its data with it, so it never waits for a disk.
"""

from __future__ import annotations

import itertools
import os
import shutil
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

ZONE = "Europe/Berlin"
"""The server's zone: whoever takes its wall clock for UTC is wrong by an hour or two."""

_STARTS = 5
"""Another program may take the free port before the server does."""

_START_SECONDS = 60

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


class MariaServer:
    """A server that runs, and makes databases in it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._names = itertools.count()

    def url(self, database: str = "", scheme: str = "mysql") -> str:
        """Return the address of a database."""
        return f"{scheme}://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """Make an empty database, and return its name."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def execute(self, statement: str, database: str = "") -> list[tuple[object, ...]]:
        """Run statements of a test, committed, in a session of UTC; return the rows of the last."""
        import pymysql

        connection = pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            password=PASSWORD.encode(),
            database=database or None,
            charset="utf8mb4",
            autocommit=True,
            ssl_disabled=True,  # otherwise each connection first reads the machine's certificates
            init_command="SET time_zone = '+00:00', sql_mode = ''",
            client_flag=pymysql.constants.CLIENT.MULTI_STATEMENTS,
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            rows = cursor.fetchall()
            while cursor.nextset():
                rows = cursor.fetchall()
            return list(rows)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaServer]:
    """Run a MariaDB for the whole session, or skip the tests that need it and say why."""
    with _running() as server:
        yield server


@contextmanager
def _running() -> Iterator[MariaServer]:
    folder = Path(tempfile.mkdtemp(prefix="ladon-mariadb-"))
    try:
        program = _made(folder)
        process, server = _started(program, folder)
        try:
            yield server
        finally:
            process.kill()  # nobody reads its data again
            process.wait(10)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _made(folder: Path) -> str:
    """Make the files of an empty server, and return the program that serves them."""
    program = shutil.which("mariadbd", path=_PATH)
    install = shutil.which("mariadb-install-db", path=_PATH)
    # Called by the one above, and in another package of Debian's.
    defaults = shutil.which("my_print_defaults", path=_PATH)
    if program is None or install is None or defaults is None:
        # The tests of a change install it (.ci/run): there a skip hides nothing.
        pytest.skip(
            "there is no MariaDB here; install it:"
            " apt-get install mariadb-server-core mariadb-client-core"
        )
    # A folder of its own for temporary tables: a server that starts removes those of all others.
    command = [install, "--no-defaults", f"--datadir={folder / 'data'}", f"--tmpdir={folder}"]
    command += ["--skip-test-db", "--auth-root-authentication-method=normal", *_as_root()]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace")
        pytest.fail("MariaDB was not set up: " + said[-2000:])
    (folder / "init.sql").write_text(
        f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';\n"
        f"GRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;\n",
        encoding="utf-8",
    )
    return program


def _as_root() -> list[str]:
    """Return what lets it run as root, which it refuses without being told."""
    return ["--user=root"] if os.geteuid() == 0 else []


def _started(program: str, folder: Path) -> tuple[subprocess.Popen[bytes], MariaServer]:
    for _ in range(_STARTS):
        port = _free_port()
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [program, "--no-defaults", *_as_root(), *_settings(folder, port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "TZ": ZONE},
            )
        if _answers(process, port):
            return process, MariaServer(port)
        process.kill()
        process.wait()
    pytest.fail("MariaDB did not start: " + (folder / "log").read_text(errors="replace")[-2000:])


def _settings(folder: Path, port: int) -> list[str]:
    settings = {
        "datadir": folder / "data",
        "tmpdir": folder,
        "init-file": folder / "init.sql",
        "socket": folder / "s",
        "pid-file": folder / "pid",
        "bind-address": "127.0.0.1",
        "port": port,
        "character-set-server": "utf8mb4",
        "collation-server": "utf8mb4_general_ci",
        "innodb-buffer-pool-size": "32M",
        # A test ends processes, never the power: what the kernel has is durable enough here.
        "innodb-flush-log-at-trx-commit": 0,
        "innodb-doublewrite": 0,
    }
    return ["--skip-name-resolve", *(f"--{name}={value}" for name, value in settings.items())]


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server lets its user in; false if it ended."""
    import pymysql

    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            MariaServer(port).execute("SELECT 1")
        except pymysql.err.OperationalError:
            time.sleep(0.02)
        else:
            return process.poll() is None
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
