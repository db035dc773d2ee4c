"""A primary of PostgreSQL and its streaming standby, which fail over for real."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from tests.postgres import (
    PASSWORD,
    USER,
    PostgresServer,
    _answers,
    _free_port,
    _initdb_arguments,
    _programs,
    _run,
    _settings,
    _user,
)

_SECONDS = 60


class Member(PostgresServer):
    """One of the two servers, as a process that can be ended and started again."""

    def __init__(self, folder: Path, programs: Path, user: str | None) -> None:
        super().__init__(_free_port(), programs)
        self._folder = folder
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        self._given: dict[str, str] = {}

    def start(self, **settings: str) -> None:
        """Start it with these settings, and those of before, and wait until it answers."""
        self._given |= settings
        log = self._folder.with_suffix(".log")
        arguments = ["-D", str(self._folder), *_settings(self.port, self._given)]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(self.programs / "postgres"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                user=self._user,
            )
        assert _answers(self._process, self._folder / "postmaster.pid"), log.read_text()[-2000:]

    def hang(self) -> None:
        """Stop all of its processes: its connections stay, and nothing answers."""
        self._send(signal.SIGSTOP)

    def stop(self) -> None:
        """End it at once, as a crash that leaves no process behind."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._send(signal.SIGCONT)
            self._process.wait(_SECONDS)

    def _send(self, number: int) -> None:
        assert self._process is not None
        first = self._process.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text(encoding="ascii")
        for each in (first, *map(int, children.split())):
            with suppress(ProcessLookupError):
                os.kill(each, number)

    def promote(self) -> None:
        """Make a standby the primary."""
        self.execute("SELECT pg_promote(true, 60)")


class Pair:
    """A primary and its standby.

    Args:
        primary: The first primary.
        standby: The other one.
    """

    def __init__(self, primary: Member, standby: Member) -> None:
        self.primary = primary
        self.standby = standby

    def url(self, database: str = "postgres", query: str = "") -> str:
        """Return the address with both servers, the first primary first."""
        hosts = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        return f"postgresql://{USER}:{quote(PASSWORD, safe='')}@{hosts}/{database}{query}"

    def await_replication(self) -> None:
        """Wait until the standby has all that the primary has written."""
        target = self.primary.execute("SELECT pg_current_wal_lsn()")[0][0]
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            query = f"SELECT pg_last_wal_replay_lsn() >= '{target}'"
            if self.standby.execute(query) == [(True,)]:
                return
            time.sleep(0.02)
        raise AssertionError("the standby did not catch up")


@contextmanager
def pair(*, synchronous: bool) -> Iterator[Pair]:
    """Run a primary and a standby, which are ended and forgotten with the context.

    Args:
        synchronous: Whether a commit waits for the standby.
    """
    folder = Path(tempfile.mkdtemp(prefix="ladon-pair-"))
    members: list[Member] = []
    try:
        user = _user()
        if user is not None:
            shutil.chown(folder, user)
        programs = _programs(folder, user)
        _run([programs / "initdb", *_initdb_arguments(folder)], user, folder)
        _run(["cp", "-a", folder / "data", folder / "standby"], user, folder)
        (folder / "standby" / "standby.signal").touch()
        members = [Member(folder / name, programs, user) for name in ("data", "standby")]
        primary, standby = members
        secret = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
        origin = f"host=127.0.0.1 port={primary.port} user={USER} password='{secret}'"
        primary.start(
            wal_keep_size="512MB",
            synchronous_standby_names="*" if synchronous else "",
        )
        standby.start(primary_conninfo=f"{origin} application_name=other", wal_keep_size="512MB")
        made = Pair(primary, standby)
        made.await_replication()
        yield made
    finally:
        for each in members:
            each.stop()
        shutil.rmtree(folder, ignore_errors=True)
