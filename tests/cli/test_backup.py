"""``ladon-storage backup``: a copy that holds what was acknowledged, and can be served."""

from __future__ import annotations

import os
import stat
from pathlib import Path

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
