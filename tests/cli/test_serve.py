"""``ladon-storage serve``: what it prints, what it needs, and what it exits with."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ladon_storage import cli
from ladon_storage.cli.serve import TOKEN_VARIABLE, token_from
from ladon_storage.server import serving
from ladon_storage.server.database import open_database
from tests.service import calling, command, path, service_process


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "watermarks.db"


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no token in the environment, and the process's logging as it was."""
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    for name in ("logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, True)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run ``serve``, check that it exits with 2 and one sentence, and return the sentence."""
    assert cli.main(["serve", *(str(argument) for argument in arguments)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"ladon-storage: [^\n]+\.\n", output.err)
    return output.err


@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", " javascript:alert(1)", "prefect.example:4200", "ftp://x", "x"]
)
def test_link_that_leads_to_no_prefect_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, link: str
) -> None:
    """The status page would have it in its links; the database is not looked at before that."""
    said = refused(capsys, "--database", tmp_path / "no" / "w.db", "--prefect-url", link)
    assert "--prefect-url is no address. Write it as http://127.0.0.1:4200, or" in said


@pytest.mark.parametrize("link", ["https://prefect.example", "/prefect", ""])
def test_link_to_prefect_may_be_a_path(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, link: str
) -> None:
    """Behind one proxy both are of one host, and a variable that is not set links to nothing."""
    said = refused(capsys, "--database", tmp_path / "no" / "w.db", "--prefect-url", link)
    assert "The directory of database" in said


async def test_serve_under_nohup_outlives_its_terminal(file: Path) -> None:
    """Where SIGHUP is ignored from the start, it stays ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with service_process(file) as service:
            service.process.send_signal(signal.SIGHUP)
            async with calling(service.address) as call:
                assert (await call("GET", "/health")).status == 200
            assert await service.end() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_serve_prints_its_address_alone_and_ends_on_a_signal(
    file: Path, signal_number: int
) -> None:
    """Standard output is the address, at once, once it answers; the end is exit code 0."""
    async with service_process(file) as service:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", service.address)
        async with calling(service.address) as call:
            assert (await call("GET", "/health")).status == 200
        assert await service.end(signal_number) == 0
        assert service.process.stdout is not None
        assert await service.process.stdout.read() == b""
        assert "Traceback" not in service.log.read_text()


async def test_serve_takes_its_token_from_the_environment(file: Path) -> None:
    """With the variable set, requests need the token, and no log line tells it."""
    environment = {TOKEN_VARIABLE: "correct-horse"}
    async with service_process(file, environment=environment) as service:
        async with calling(service.address) as call:
            assert (await call("GET", path("kev"))).status == 401
        async with calling(service.address, "correct-horse") as call:
            body = {"timestamp": "2024-01-01T00:00:00Z"}
            assert (await call("PUT", path("kev"), body)).status == 201
        log = service.log.read_text()
    assert "Watermark 'kev'" in log
    assert "horse" not in log


def test_token_file_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flag is the nearer word, and the line's end is no part of the token."""
    monkeypatch.setenv(TOKEN_VARIABLE, "from-environment")
    (tmp_path / "token").write_text("from-file\n")
    assert token_from(tmp_path / "token") == "from-file"
    assert token_from(None) == "from-environment"
    monkeypatch.delenv(TOKEN_VARIABLE)
    assert token_from(None) is None


def test_token_file_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning has the file and the remedy, and not the token."""
    token = tmp_path / "token"
    token.write_text("correct-horse-battery")
    token.chmod(0o640)
    assert token_from(token) == "correct-horse-battery"
    [warning] = caplog.messages
    assert f"{token} can be read by other users; `chmod 600` it" in warning
    assert "horse" not in warning
    caplog.clear()
    token.chmod(0o600)
    assert token_from(token)
    assert not caplog.messages


@pytest.mark.parametrize("token", ["", " \n", "two words", "tökén", "line\nline", "nul\x00"])
def test_token_that_no_header_carries_is_refused(
    file: Path, tmp_path: Path, token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty or damaged token file must not start a service that anybody may use."""
    (tmp_path / "token").write_text(token)
    sentence = refused(capsys, "--database", file, "--token-file", tmp_path / "token")
    assert "token" in sentence
    assert token.strip() == "" or token.strip() not in sentence
    assert not file.exists()


def test_empty_token_in_the_environment_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variable that is set and empty is a mistake, not the wish for no token."""
    monkeypatch.setenv(TOKEN_VARIABLE, "")
    assert TOKEN_VARIABLE in refused(capsys, "--database", file)


def test_token_file_that_is_missing_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt file does not mean no token."""
    assert "missing" in refused(capsys, "--database", file, "--token-file", "missing")


def test_host_beyond_loopback_without_a_token_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence says what to set."""
    sentence = refused(capsys, "--database", file, "--host", "0.0.0.0")
    assert TOKEN_VARIABLE in sentence
    assert "--token-file" in sentence


def test_port_that_is_taken_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence names the port, and the database is closed again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refused(capsys, "--database", file, "--port", port)
    assert sorted(entry.name for entry in file.parent.iterdir()) == [file.name]


@pytest.mark.parametrize("port", [-1, 65536, 10**30])
def test_port_that_does_not_exist_is_refused(
    file: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number out of range is a sentence, not a traceback."""
    assert str(port) in refused(capsys, "--database", file, "--port", port)


def test_host_that_does_not_exist_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that does not resolve is a sentence, not a traceback."""
    monkeypatch.setenv(TOKEN_VARIABLE, "token")
    for host in ("example.invalid", "a" * 70 + ".invalid", "127.0.0.1x"):
        assert host in refused(capsys, "--database", file, "--port", 0, "--host", host)


def test_database_that_cannot_be_used_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing directory, another format and a newer schema are one sentence each."""
    assert "does not exist" in refused(capsys, "--database", file / "nested")
    file.write_bytes(b"no database" * 100)
    assert "not a database" in refused(capsys, "--database", file)
    file.unlink()
    connection = open_database(file)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "upgrade" in refused(capsys, "--database", file)


@pytest.mark.parametrize(
    ("name", "address"),
    [(("::1", 80, 0, 0), "http://[::1]:80"), (("127.0.0.1", 80), "http://127.0.0.1:80")],
)
def test_address_of_ipv6_has_brackets(name: tuple[Any, ...], address: str) -> None:
    """The printed address is a URL, whatever the family."""
    listener = SimpleNamespace(sockets=[SimpleNamespace(getsockname=lambda: name)])
    assert serving._address(cast(Any, listener), secure=False) == address


async def test_limits_of_the_file_are_on_the_status_page(tmp_path: Path) -> None:
    """A source that is older than its limit in ladon.toml is stale on the page."""
    file = tmp_path / "ladon.toml"
    file.write_text(
        '[sources.vulnerabilities]\nkind = "kev"\nfreshness.max_age_hours = 2\n', encoding="utf-8"
    )
    database = tmp_path / "watermarks.db"
    async with (
        service_process(database, "--file", str(file)) as service,
        calling(service.address) as call,
    ):
        await call("PUT", path("vulnerabilities"), {"timestamp": "2024-01-01T00:00:00Z"})
        page = await call("GET", "/?state=stale")
        assert ("vulnerabilities" in page.text, "of 2 h" in page.text) == (True, True)


async def test_wrong_file_ends_the_start(tmp_path: Path) -> None:
    """A file with a fault is one sentence, and nothing is served without its limits."""
    file = tmp_path / "ladon.toml"
    file.write_text("[sources.x]\nkin = 'kev'\n", encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *command(tmp_path / "w.db", "--file", str(file)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert (process.returncode, len(said.splitlines())) == (2, 1)
    assert b"kind" in said
