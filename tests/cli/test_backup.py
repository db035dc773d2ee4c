"""``ladon-storage backup``: a copy that holds what was acknowledged, and can be served."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.server import database
from tests.cli.called import Command
from tests.service import calling, embedded_service, path, success


async def test_copy_of_a_running_service_has_what_was_acknowledged(
    ladon: Command, tmp_path: Path
) -> None:
    """The service goes on; the copy is its owner's alone, and another service serves it."""
    async with embedded_service(tmp_path / "w.db") as address, calling(address) as call:
        for day in range(1, 10):
            answer = await call("PUT", path(f"s{day}"), success(f"2024-01-0{day}T00:00:00Z"))
            assert answer.status == 201
        made = await ladon.later("backup", "copy.db", "--database", "w.db")
        assert (made.code, "9 watermarks" in made.err) == (0, True)
        assert (await call("PUT", path("later"), success("2024-02-01T00:00:00Z"))).status == 201
    copy = tmp_path / "copy.db"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert [name for name in os.listdir(tmp_path) if "copy" in name] == ["copy.db"]
    async with embedded_service(copy) as address, calling(address) as call:
        assert (await call("GET", path("s9"))).status == 200
        assert (await call("GET", path("later"))).status == 404
        changes = (await call("GET", path("s9", "/history"))).json["changes"]
        assert len(changes) == 1


def test_copy_overwrites_nothing(ladon: Command) -> None:
    """An existing file, and a database that is none, are named in one sentence."""
    ladon.write("other.db", "text")
    ladon.write("there.db", "text")
    exists = ladon("backup", "there.db", "--database", "other.db")
    assert (exists.code, "exists already" in exists.sentence) == (2, True)
    no_database = ladon("backup", "copy.db", "--database", "other.db")
    assert no_database.code == 2
    assert "'other.db' cannot be read (file is not a database)" in no_database.sentence
    no_folder = ladon("backup", "absent/copy.db", "--database", "other.db")
    assert (no_folder.code, "folder of the copy" in no_folder.sentence) == (2, True)
    missing = ladon("backup", "copy.db", "--database", "absent.db")
    assert (missing.code, "absent.db" in missing.sentence) == (2, True)
    assert not Path("copy.db").exists()


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Let something happen once when a draft is complete, and has no name yet."""

    def before_the_name(happen: Callable[[], object]) -> None:
        check = database.check_integrity

        def checked(connection: sqlite3.Connection) -> str:
            monkeypatch.setattr(database, "check_integrity", check)
            happen()
            return check(connection)

        monkeypatch.setattr(database, "check_integrity", checked)

    return before_the_name


def test_two_copies_to_one_name_do_not_touch_each_other(
    ladon: Command, copied: Callable[[Callable[[], object]], None]
) -> None:
    """The first to end has the name and stays as it was acknowledged; the other is refused."""
    assert ladon("migrate", "--database", "w.db").code == 0
    codes: list[int] = []
    copied(lambda: codes.append(ladon("backup", "copy.db", "--database", "w.db").code))
    second = ladon("backup", "copy.db", "--database", "w.db")
    assert (codes, second.code) == ([0], 2)
    assert "'copy.db' exists already" in second.err
    with closing(sqlite3.connect("copy.db")) as copy:
        assert database.check_integrity(copy) == ""
    assert sorted(os.listdir()) == ["copy.db", "w.db"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_copy_that_a_signal_ends_leaves_nothing(
    ladon: Command, copied: Callable[[Callable[[], object]], None], number: signal.Signals
) -> None:
    """A draft is as large as the database, and nothing would remove it later."""
    assert ladon("migrate", "--database", "w.db").code == 0
    before = signal.getsignal(number)
    copied(lambda: signal.raise_signal(number))
    ended = ladon("backup", "copy.db", "--database", "w.db")
    assert (ended.code, ended.sentence) == (128 + number, f"ladon-storage: Ended by {number.name}.")
    assert os.listdir() == ["w.db"]
    assert signal.getsignal(number) is before


def test_draft_is_written_through_no_link(ladon: Command) -> None:
    """A link in a folder of others leads to a file that the caller may write, and they may not."""
    assert ladon("migrate", "--database", "w.db").code == 0
    victim = ladon.write("victim", "precious")
    Path(".copy.db.tmp").symlink_to(victim)
    assert ladon("backup", "copy.db", "--database", "w.db").code == 0
    assert (victim.read_text(), Path("copy.db").is_symlink()) == ("precious", False)
    Path("dangling.db").symlink_to("nowhere")
    refused = ladon("backup", "dangling.db", "--database", "w.db")
    assert (refused.code, "exists already" in refused.sentence) == (2, True)


def test_copy_needs_no_hard_links(ladon: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stick or a share may have none; a name that is taken is refused there too."""
    assert ladon("migrate", "--database", "w.db").code == 0

    def link(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert ladon("backup", "copy.db", "--database", "w.db").code == 0
    assert stat.S_IMODE(Path("copy.db").stat().st_mode) == 0o600
    Path("dangling.db").symlink_to("nowhere")
    assert "exists already" in ladon("backup", "dangling.db", "--database", "w.db").sentence
    assert sorted(os.listdir()) == ["copy.db", "dangling.db", "w.db"]


def test_fault_of_a_copy_names_the_file_that_has_it(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database is not suspected where the copy has no room, nor the copy where it is damaged."""
    assert ladon("migrate", "--database", "w.db").code == 0
    with open("w.db", "r+b") as file:  # a page behind the first one
        file.seek(4096)
        file.write(b"\xff" * 4096)
    damaged = ladon("backup", "copy.db", "--database", "w.db")
    assert (damaged.code, "Database 'w.db' could not be copied" in damaged.sentence) == (2, True)
    assert ladon("migrate", "--database", "v.db").code == 0

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    full = ladon("backup", "copy.db", "--database", "v.db")
    assert full.code == 1
    assert "copy 'copy.db' could not be written (No space left on device)" in full.sentence
    assert "v.db" not in full.sentence


@pytest.mark.parametrize(
    "verb",
    [
        ["backup", "N", "--database", "w.db"],
        ["backup", "copy.db", "--database", "N"],
        ["tokens", "list", "--database", "N"],
        ["migrate", "--database", "N/w.db"],
        ["watermarks", "list", "--storage", "sqlite:///N"],
        ["up", "--table", "N"],
        ["up", "--folder", "N"],
        ["source", "guess", "--sample", "N"],
        ["collect", "N"],
        ["deploy", "--dry-run", "--file", "N"],
    ],
    ids=lambda verb: " ".join(verb),
)
def test_name_that_no_file_system_takes_is_wrong_usage(ladon: Command, verb: list[str]) -> None:
    """Whichever command it is given to says so in a sentence, and not as an error of Python's."""
    ladon.write("ladon.toml", '[sources.kev]\nkind = "kev"\n')
    assert ladon("migrate", "--database", "w.db").code == 0
    called = ladon(*(each.replace("N", "n" * 300) for each in verb))
    assert (called.code, "Errno" in called.err) == (2, False)
    assert called.sentence.endswith(".")


def test_folder_that_may_not_be_looked_into_is_wrong_usage(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python raises where it cannot know whether there is such a file."""
    assert ladon("migrate", "--database", "w.db").code == 0

    def refuse(file: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(Path, "exists", refuse)
    called = ladon("backup", "closed/copy.db", "--database", "w.db")
    assert called.code == 2
    assert "'closed/copy.db' cannot be used (Permission denied). Name another" in called.sentence
