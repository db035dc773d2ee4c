"""What ``ladon-storage up`` gives its processes, and how they end when it is killed."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from errno import EACCES, ENOLCK
from pathlib import Path

import pytest

from ladon_storage.cli.local import (
    NotStartedError,
    Part,
    ended,
    environment,
    refuse_ended,
    started,
)
from ladon_storage.cli.up import Described, held, of_file, shared_by
from ladon_storage.errors import ConfigurationError
from tests.cli.called import Command

PART = ("part", "http.server", "--bind", "127.0.0.1", "0")
STEP_SECONDS = 60
"""A bound far beyond what a busy machine takes; no test waits for it."""

UP = f"""
import asyncio, pathlib, sys
from ladon_storage.cli.local import started
from ladon_storage.cli.up import held

async def main():
    with held(pathlib.Path(sys.argv[1])) as lock:
        part = await started(*{PART!r}, lock=lock)
        print(part.pid, flush=True)
        await part.wait()

asyncio.run(main())
"""
FILE = """
[storage]
url = "https://storage.example"
token = "STORAGE_SERVICE_TOKEN"
[sinks.lake]
url = "s3://bucket/lake"
secrets = { AWS_SECRET_ACCESS_KEY = "PREFECT_LAKE_KEY" }
[sources.otx]
kind = "otx"
key = "STORAGE_OTX_KEY"
"""


def test_runs_of_up_have_the_secrets_that_the_file_names(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret may have any name, also one that begins as the settings of another Prefect do."""
    for name in ("STORAGE_SERVICE_TOKEN", "PREFECT_LAKE_KEY", "STORAGE_OTX_KEY"):
        monkeypatch.setenv(name, f"the {name}")
    monkeypatch.setenv("STORAGE_SERVICE_URL", "https://another.example")
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    described = of_file(ladon.write("ladon.toml", FILE))
    given = environment(ladon.folder, **shared_by(described))
    assert given["STORAGE_SERVICE_TOKEN"] == "the STORAGE_SERVICE_TOKEN"
    assert given["PREFECT_LAKE_KEY"] == "the PREFECT_LAKE_KEY"
    assert given["STORAGE_OTX_KEY"] == "the STORAGE_OTX_KEY"
    assert not given.keys() & {"STORAGE_SERVICE_URL", "PREFECT_API_URL"}


def test_runs_of_up_share_the_circuits_of_other_commands(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their Prefect is another one, and ``circuit trip`` holds for them all the same."""
    described = Described((), ladon.folder)
    home = f"sqlite:///{ladon.folder}/prefect/ladon-storage-circuits.db"
    given = environment(ladon.folder / "local", **shared_by(described))
    assert given["STORAGE_CIRCUIT_URL"] == home
    assert given["PREFECT_HOME"] == str(ladon.folder / "local" / "prefect")
    monkeypatch.setenv("STORAGE_CIRCUIT_URL", "redis://redis.example")
    assert shared_by(described) == {"STORAGE_CIRCUIT_URL": "redis://redis.example"}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends them")
async def test_parts_of_up_end_when_it_is_killed(tmp_path: Path) -> None:
    """Nothing collects on in a stack that nobody has, and the next start is not refused."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", UP, str(tmp_path), stdout=PIPE, stderr=DEVNULL
    )
    assert process.stdout is not None
    part = int(await process.stdout.readline())
    process.kill()
    try:
        async with asyncio.timeout(STEP_SECONDS):
            await process.stdout.read()  # the part has its other end, too
            with (tmp_path / "lock").open() as lock:
                await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
    finally:
        await process.wait()
        with suppress(ProcessLookupError):
            os.kill(part, signal.SIGKILL)


@pytest.mark.parametrize(
    "text", ["", "\n", "up 1", "0 up", "-1 up", f"{10**30} up", "\x00\xff up", "1 \x1b[31mup", "1"]
)
def test_lock_with_any_text_says_that_it_is_up(tmp_path: Path, text: str) -> None:
    """It names no process that is none of its own, and the text is not repeated."""
    with (tmp_path / "lock").open("wb") as lock:
        lock.write(text.encode("latin-1"))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError) as caught, held(tmp_path):
            pass
    assert str(caught.value) == (
        f"It is up already, in {tmp_path}; end that one first, or give another --folder."
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(EACCES, "Permission denied"), "Permission denied"),
        (OSError(ENOLCK, "No locks available"), "No locks available"),
        (None, "Is a directory"),
    ],
)
def test_lock_that_cannot_be_had_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None, reason: str
) -> None:
    """A folder of its name, no right and a file system without locks are not another start."""

    def refuse(*_: object) -> None:
        raise error or AssertionError("it is not opened")

    monkeypatch.setattr(fcntl, "flock", refuse)
    if error is None:
        (tmp_path / "lock").mkdir()
    with (
        pytest.raises(ConfigurationError, match=f"cannot be locked .{reason}.; move it away"),
        held(tmp_path),
    ):
        pass


async def test_part_that_goes_on_is_named_and_refuses_the_next_up(tmp_path: Path) -> None:
    """Two servers over one database would take each other's runs, whoever started the first."""
    with held(tmp_path) as lock:
        part = await started(*PART, stdout=DEVNULL, stderr=DEVNULL, lock=lock)
    try:
        with pytest.raises(ConfigurationError, match=rf"part \({part.pid}\)"), held(tmp_path):
            pass
    finally:
        await ended(part)
    with held(tmp_path):
        pass


async def test_part_that_ends_by_itself_ends_the_wait_for_all(tmp_path: Path) -> None:
    """It is named with its end and its log: what kills it may write nothing there."""
    one, other = [await started(*PART, stdout=DEVNULL, stderr=DEVNULL) for _ in range(2)]
    log = tmp_path / "other.log"
    try:
        waiting = asyncio.create_task(
            refuse_ended(Part("One", one, tmp_path / "one.log"), Part("Other", other, log))
        )
        other.kill()
        async with asyncio.timeout(STEP_SECONDS):
            with pytest.raises(NotStartedError) as caught:
                await waiting
        assert str(caught.value) == f"Other ended by signal 9; read {log}."
        assert one.returncode is None
    finally:
        await ended(one)
