"""``ladon-storage doctor`` and damaged files: found, named, and neither changed nor made."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ladon_storage.circuit.urls import circuit_of
from ladon_storage.cli import integrity
from ladon_storage.embedded import EmbeddedStorage
from tests.base_service import base_service
from tests.cli.called import Called, Command
from tests.raw_server import RawServer, Reply, http
from tests.service import calling, embedded_service, path, success

JANUARY = datetime(2026, 1, 1, tzinfo=UTC)
FILE = '[storage]\nurl = "sqlite:///ladon.db"\n'

LOCKED = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    print(error)
"""


async def filled(file: Path, sources: int = 60) -> None:
    """Write a file of watermarks that has more than a few pages."""
    async with EmbeddedStorage(file) as storage:
        for number in range(sources):
            text = f"{number} " + "refused " * 60
            await storage.update_watermark(f"source-{number}", JANUARY, "failed", text)


def damage(file: Path, page: int) -> None:
    """Overwrite the middle of a page, as a failing disk does."""
    content = bytearray(file.read_bytes())
    size = int.from_bytes(content[16:18])
    begin = (page - 1) * size
    assert len(content) >= begin + size
    content[begin : begin + size // 2] = b"\xa5" * (size // 2)
    file.write_bytes(content)


def checks(called: Called) -> dict[str, dict[str, str]]:
    """Return the checks of a call by their names."""
    return {each["what"]: each for each in called.json}


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


@pytest.mark.parametrize("page", [1, 2, 5, 9])
async def test_damaged_page_is_found_and_the_file_is_left_alone(ladon: Command, page: int) -> None:
    """Bytes overwritten in any page fail the check, with the file, the fault and the next step."""
    ladon.write("ladon.toml", FILE)
    file = ladon.folder / "ladon.db"
    await filled(file)
    well = await ladon.later("doctor", "--json")
    assert (well.code, checks(well)["database"]["verdict"]) == (0, "ok")
    damage(file, page)
    before = contents(ladon.folder)
    ill = await ladon.later("doctor", "--database", "ladon.db", "--json")
    assert ill.code == 1
    for name in ("storage", "database"):
        assert checks(ill)[name]["verdict"] == "failed"
        assert "ladon.db is damaged: " in checks(ill)[name]["finding"]
        assert "backup" in checks(ill)[name]["next_step"]
    assert contents(ladon.folder) == before


@pytest.mark.parametrize("content", [b"", b"text, and no database" * 400])
def test_file_that_is_no_database_is_damage(ladon: Command, content: bytes) -> None:
    """An empty file and another kind of file hold no watermark, so the service lost them."""
    (ladon.folder / "storage.db").write_bytes(content)
    called = ladon("doctor", "--database", "storage.db", "--json")
    assert (called.code, checks(called)["database"]["verdict"]) == (1, "failed")
    assert (ladon.folder / "storage.db").read_bytes() == content


async def test_what_does_not_answer_is_a_verdict_without_its_password(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses of the environment may have one; a failure is a line, and no traceback."""
    monkeypatch.setenv("STORAGE_SERVICE_URL", "http://ann:hunter2@127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://ann:hunter2@127.0.0.1:9/api")
    called = await ladon.later("doctor", "--json")
    found = checks(called)
    assert (found["storage"]["verdict"], found["Prefect API"]["verdict"]) == ("failed", "failed")
    assert "http://127.0.0.1:9/api does not answer" in found["Prefect API"]["finding"]
    assert "hunter2" not in called.out + called.err
    assert "Traceback" not in called.err


@pytest.mark.parametrize(
    ("address", "finding"),
    [
        ("http://ann:hunt/er2@127.0.0.1:9/api", "is no address"),
        ("127.0.0.1:4200/api", "is no address"),
        ("http://127.0.0.1:9/api?token=hunt/er2", "http://127.0.0.1:9/api does not answer"),
    ],
)
def test_address_of_prefect_is_shown_without_its_secrets(
    ladon: Command, monkeypatch: pytest.MonkeyPatch, address: str, finding: str
) -> None:
    """A password that makes an address none is a password still."""
    monkeypatch.setenv("PREFECT_API_URL", address)
    called = ladon("doctor", "--json")
    found = checks(called)["Prefect API"]
    assert (found["verdict"], finding in found["finding"]) == ("failed", True)
    assert "er2" not in called.out + called.err


def test_folder_that_takes_no_file_is_found(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run could not make its watermarks there."""
    ladon.write("ladon.toml", FILE)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    found = checks(ladon("doctor", "--json"))["storage"]
    assert (found["verdict"], "cannot be written" in found["finding"]) == ("failed", True)


def test_missing_file_is_not_made(ladon: Command) -> None:
    """A file that is not there yet is no fault of a new place; a named one is."""
    ladon.write("ladon.toml", FILE)
    called = ladon("doctor", "--json")
    assert (called.code, checks(called)["storage"]["verdict"]) == (0, "ok")
    named = ladon("doctor", "--database", "storage.db", "--json")
    assert (named.code, checks(named)["database"]["verdict"]) == (1, "failed")
    assert list(contents(ladon.folder)) == ["ladon.toml"]


async def test_running_service_is_checked_with_its_log(ladon: Command) -> None:
    """A running service is checked with its write-ahead log, and goes on."""
    file = ladon.folder / "storage.db"
    async with embedded_service(file) as address:
        ladon.write("ladon.toml", f'[storage]\nurl = "{address}"\n')
        async with calling(address) as call:
            for day in ("01", "02"):
                body = success(f"2026-01-{day}T00:00:00Z")
                assert (await call("PUT", path("kev"), body)).status in (200, 201)
                called = await ladon.later("doctor", "--database", "storage.db", "--json")
                assert called.code == 0
                assert checks(called)["database"]["verdict"] == "ok"
                assert checks(called)["storage"]["verdict"] == "ok"


def test_lock_of_this_process_is_kept(ladon: Command) -> None:
    """A check in a process that holds a lock of the file does not give the lock away."""
    file = ladon.folder / "storage.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("BEGIN IMMEDIATE")
        assert integrity.integrity("database", file, "").verdict == "ok"
        other = subprocess.run(
            [sys.executable, "-c", LOCKED, str(file)], capture_output=True, text=True, check=True
        )
        assert "locked" in other.stdout
        connection.execute("ROLLBACK")


def test_large_file_is_checked_for_a_bounded_time(tmp_path: Path) -> None:
    """A check that would take long ends, says what it has not seen, and claims no health."""
    file = tmp_path / "large.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE t (x UNIQUE)")
        rows = ((f"{number:09}" * 20,) for number in range(60_000))
        connection.executemany("INSERT INTO t VALUES (?)", rows)
        connection.commit()
    check = integrity.integrity("database", file, "", seconds=0.001)
    assert check.verdict == "warning"
    assert f"{file.stat().st_size:,} bytes to read" in check.finding
    assert os.listdir(tmp_path) == ["large.db"]


async def test_damaged_circuit_store_is_found(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The circuits' file is checked too; it may be deleted, since circuits are only closed then."""
    url = f"sqlite:///{ladon.folder}/circuits.db"
    monkeypatch.setenv("STORAGE_CIRCUIT_URL", url)
    async with embedded_service(ladon.folder / "storage.db") as address:
        ladon.write("ladon.toml", f'[storage]\nurl = "{address}"\n')
        circuit_of(address, url).trip("a test")
        well = await ladon.later("doctor", "--json")
        assert checks(well)["circuits"]["verdict"] == "ok"
        copy = ladon.folder / "copy.db"
        with (
            closing(sqlite3.connect(ladon.folder / "circuits.db")) as circuits,
            closing(sqlite3.connect(copy)) as copied,
        ):
            circuits.backup(copied)
        damage(copy, 2)
        monkeypatch.setenv("STORAGE_CIRCUIT_URL", f"sqlite:///{copy}")
        ill = await ladon.later("doctor", "--json")
    assert (ill.code, checks(ill)["circuits"]["verdict"]) == (1, "failed")
    assert checks(ill)["circuits"]["next_step"].startswith("Delete it")


KEV = '[sources.kev]\nkind = "kev"\nsource_id = "team-kev"\n'


@pytest.mark.parametrize(
    ("token", "file", "verdict", "step"),
    [
        (("--prefix", "team-"), KEV, "ok", ""),
        (("--prefix", "team-"), "", "warning", "ladon.toml"),
        (("--prefix", "other-"), KEV, "failed", "tokens list"),
        (("--read-only",), KEV, "failed", "tokens list"),
        (("--read-only",), "", "failed", "tokens list"),
        (None, KEV, "failed", "tokens add"),
    ],
)
async def test_token_is_tried_for_what_a_run_does(
    ladon: Command,
    monkeypatch: pytest.MonkeyPatch,
    token: tuple[str, ...] | None,
    file: str,
    verdict: str,
    step: str,
) -> None:
    """A run reads and writes its source; the check changes nothing and makes nothing."""
    database = ladon.folder / "storage.db"
    added = ladon("tokens", "add", "team", *(token or ()), "--database", database)
    secret = "ladon_of-another-service" if token is None else added.out.strip()
    monkeypatch.setenv("STORAGE_SERVICE_TOKEN", secret)
    if file:
        ladon.write("ladon.toml", file)
    async with embedded_service(database) as address:
        monkeypatch.setenv("STORAGE_SERVICE_URL", address)
        found = checks(await ladon.later("doctor", "--json"))["storage"]
    assert (found["verdict"], step in found["next_step"]) == (verdict, True)
    async with EmbeddedStorage(database) as storage:
        page = await storage.list_watermarks()
        history = await storage.watermark_history("team-kev.doctor")
    assert page is not None
    assert history is not None
    assert (page.watermarks, history.changes) == ([], [])


@pytest.mark.parametrize(
    ("reply", "step"),
    [
        (http(503, b""), "log"),
        (http(301, b"", "Location: http://elsewhere.example/"), "address"),
        (http(200, b"<html>", end="close"), "address"),
    ],
)
async def test_service_that_is_not_well_has_a_next_step(
    ladon: Command, monkeypatch: pytest.MonkeyPatch, reply: Reply, step: str
) -> None:
    """Whatever answers at its address."""
    async with RawServer(reply) as server:
        monkeypatch.setenv("STORAGE_SERVICE_URL", server.url)
        found = checks(await ladon.later("doctor", "--json"))["storage"]
    assert (found["verdict"], step in found["next_step"]) == ("failed", True)


async def test_service_of_the_base_contract_is_only_read(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may ignore a precondition, and so a write that must not happen is not tried."""
    async with base_service(lambda: datetime.now(UTC)) as address:
        monkeypatch.setenv("STORAGE_SERVICE_URL", address)
        found = checks(await ladon.later("doctor", "--json"))["storage"]
    assert found["verdict"] == "ok"


async def test_open_circuit_is_found(ladon: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is well, and no run calls it before the probe: both are said."""
    monkeypatch.setenv("STORAGE_CIRCUIT_URL", f"sqlite:///{ladon.folder}/circuits.db")
    async with embedded_service(ladon.folder / "storage.db") as address:
        monkeypatch.setenv("STORAGE_SERVICE_URL", address)
        assert ladon("circuit", "trip", "--reason", "moving house").code == 0
        ill = await ladon.later("doctor", "--json")
        assert ladon("circuit", "reset").code == 0
        well = await ladon.later("doctor", "--json")
    found = checks(ill)
    assert (found["circuit"]["verdict"], found["storage"]["verdict"]) == ("warning", "ok")
    assert "moving house" in found["circuit"]["finding"]
    assert "circuit reset" in found["circuit"]["next_step"]
    assert checks(well)["circuit"]["verdict"] == "ok"


@pytest.mark.parametrize("is_from", ["file", "variable", "nothing"])
@pytest.mark.parametrize("name", ["C#", "what?", "me@home"])
def test_folder_that_no_address_can_name_is_one_sentence_of_all_commands(
    ladon: Command, is_from: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the checks call good, a collection can use; the refusal names the folder."""
    folder = ladon.folder / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    text = '[sinks.r]\nurl = "jsonl://lines"\n[sources.kev]\nkind = "kev"\n'
    if is_from == "variable":
        monkeypatch.setenv("STORAGE_SERVICE_URL", "sqlite:///ladon.db")
    (folder / "ladon.toml").write_text((FILE if is_from == "file" else "") + text)
    for command in (
        ("source", "check", "--offline"), ("doctor",), ("collect", "kev"),
        ("watermarks", "list", "--file", folder / "ladon.toml"),
    ):  # fmt: skip
        called = ladon(*command)
        said = " ".join((called.out + called.err).split())
        assert called.code != 0, command
        assert f"The folder '{folder}' has a name that no address can carry" in said, command
        assert "Traceback" not in said
    assert [each.name for each in folder.iterdir()] == ["ladon.toml"]
