"""Commands on a full disk: a failure that making room mends, and no wrong setting."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ladon_storage.cli.integrity import integrity
from ladon_storage.errors import ConfigurationError, DatabaseError
from ladon_storage.server import database
from tests.cli.called import Command

FILE = """
[storage]
url = "sqlite:///ladon.db"
[sinks.records]
url = "sqlite:///records.db"
[sources.kev]
kind = "kev"
url = "http://127.0.0.1:1/"
"""


@contextmanager
def no_room() -> Iterator[None]:
    """Let the system refuse each write to a file of this process, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "verb",
    [
        ["collect", "kev", "--no-prefect"],
        ["watermarks", "list"],
        ["backup", "copy.db", "--database", "ladon.db"],
        ["tokens", "list", "--database", "ladon.db"],
    ],
    ids=lambda verb: verb[0],
)
def test_full_disk_is_a_failure_that_room_mends(ladon: Command, verb: list[str]) -> None:
    """Another file, which was the advice, would have none of the watermarks."""
    ladon.write("ladon.toml", FILE)
    assert ladon("migrate", "--database", "ladon.db").code == 0
    with no_room():
        called = ladon(*verb)
    assert called.code == 1
    assert "ladon.db' cannot be used (disk I/O error): its disk is full, or fails." in called.err
    assert "Make room, and run it again." in called.err
    assert "choose" not in called.err


def test_doctor_of_a_full_disk_asks_for_room(ladon: Command) -> None:
    """A killed service left its log, and the disk has no room for the index of it."""
    with closing(database.open_database(Path("ladon.db"))) as opened:
        opened.execute("INSERT INTO tokens VALUES ('a', x'00', 0, '', 0)")
        for end in ("", "-wal"):
            shutil.copy(f"ladon.db{end}", f"left.db{end}")
    with no_room():
        found = integrity("database", Path("left.db"), "restore it")
    assert found.verdict == "failed"
    assert found.next_step == "Its disk is full, or fails: make room, and check it again."
    ladon.write("ladon.toml", FILE)
    with no_room():
        called = ladon("doctor")
    assert "its disk is full, or fails. Make room, and run it again." in called.out


@pytest.mark.parametrize(
    ("code", "inodes", "error"),
    [
        (sqlite3.SQLITE_FULL, 5, DatabaseError),
        (sqlite3.SQLITE_IOERR_WRITE, 5, DatabaseError),
        (sqlite3.SQLITE_CANTOPEN, 0, DatabaseError),
        (sqlite3.SQLITE_CANTOPEN, 5, ConfigurationError),
        (sqlite3.SQLITE_READONLY, 0, ConfigurationError),
    ],
)
def test_error_of_the_disk_is_told_from_one_of_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    inodes: int,
    error: type[Exception],
) -> None:
    """SQLite cannot open its log where no inode is left for it, and where the folder is closed."""

    def fail(_: object) -> None:
        failure = sqlite3.OperationalError("refused")
        failure.sqlite_errorcode = code
        raise failure

    real = os.statvfs

    def statvfs(folder: Path) -> os.statvfs_result:
        figures = list(real(folder))
        figures[4], figures[5], figures[7] = 9, 9, inodes
        return os.statvfs_result(figures)

    monkeypatch.setattr(database, "migrate", fail)
    monkeypatch.setattr(os, "statvfs", statvfs)
    with pytest.raises(error, match=r"cannot be used \(refused\)"):
        database.open_database(tmp_path / "ladon.db")
