"""The wheel alone: from an empty folder to a scheduled run, by the commands that a person types."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest
from hatchling.build import build_wheel

from demo.stage import PROJECT
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.up.prefect_api import PrefectApi

CATALOGUE = {
    "title": "A mirror of the catalogue",
    "catalogVersion": "2024.03.01",
    "dateReleased": "2024-03-01T12:00:00Z",
    "count": 3,
    "vulnerabilities": [
        {
            "cveID": f"CVE-2024-000{number}",
            "vendorProject": "Example",
            "dateAdded": f"2024-01-0{number}",
            "dueDate": f"2024-02-0{number}",
        }
        for number in (3, 2, 1)
    ],
}
INSTALL_SECONDS, SECONDS = 600, 300


def environment() -> dict[str, str]:
    """Return the environment of a person who configured nothing."""
    ours = ("PREFECT_", "STORAGE_", "LADON_", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, and install it with the lock's versions into an environment of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    before = Path.cwd()
    os.chdir(PROJECT)
    try:
        wheel = folder / build_wheel(str(folder))
    finally:
        os.chdir(before)
    place = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, timeout=INSTALL_SECONDS)
    python = place / "bin" / "python"
    uv = shutil.which("uv")
    install = [uv, "pip", "install", "--python", str(python)] if uv else [
        str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-compile",
    ]  # fmt: skip
    locked = ["--no-deps", "--require-hashes", "--requirement", str(PROJECT / "requirements.lock")]
    for what in (locked, ["--no-deps", str(wheel)]):
        subprocess.run(
            [*install, "--quiet", *what], check=True, timeout=INSTALL_SECONDS, env=environment()
        )
    return place / "bin" / "ladon-storage"


class Person:
    """Be somebody who types commands in a folder."""

    def __init__(self, command: Path, folder: Path) -> None:
        self.command = command
        self.folder = folder

    async def __call__(self, *arguments: str, **variables: str) -> str:
        """Return what a command prints on standard output; one that fails fails the test."""
        process = await asyncio.create_subprocess_exec(
            str(self.command), *arguments, cwd=self.folder, env=environment() | variables,
            stdout=PIPE, stderr=PIPE,
        )  # fmt: skip
        output, errors = await asyncio.wait_for(process.communicate(), SECONDS)
        assert process.returncode == 0, f"{arguments}\n{output.decode()}\n{errors.decode()}"
        return output.decode()


async def test_wheel_leads_from_an_empty_folder_to_a_scheduled_run(
    command: Path, tmp_path: Path
) -> None:
    """Without a clone: a file, a proposed source, a try, a collection, deployments, a due run."""
    folder = tmp_path / "empty"
    folder.mkdir()
    person = Person(command, folder)
    async with FeedServer(play=lambda _asked: Answer.of(CATALOGUE)) as feed:
        await person("init")
        proposed = await person("source", "guess", feed.url)
        name = re.search(r"^\[sources\.([^\]]+)\]$", proposed, re.MULTILINE)
        assert name, proposed
        file = folder / "ladon.toml"
        # The example of the file is a feed on the internet, and daily.
        text = file.read_text(encoding="utf-8").replace('[sources.kev]\nkind = "kev"\n', "")
        text = text.replace('schedule.cron = "0 6 * * *"', "schedule.interval = 5")
        file.write_text(f"{text}\n{proposed}", encoding="utf-8")
        tried = await person("source", "try", name[1])
        assert "CVE-2024-0003" in tried
        await person("collect", name[1])
        assert await records(folder) == 3
        process = await asyncio.create_subprocess_exec(
            str(command), "up", "--prefect-port", "0", "--storage-port", "0",
            cwd=folder, env=environment(), stdout=PIPE, stderr=STDOUT,
        )  # fmt: skip
        try:
            api = await address(process)
            planned = await person("deploy", "--dry-run", PREFECT_API_URL=api)
            kept = re.search(rf"^(collect-\w+/{name[1]}) +keep ", planned, re.MULTILINE)
            assert kept, planned
            deployment = kept[1]
            [run, *_] = await PrefectApi(api).runs(deployment, 1, SECONDS)
            assert run["auto_scheduled"]
            assert run["state_type"] == "COMPLETED", run["state"]["message"]
            process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(process.wait(), 120) == 0
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.communicate()
    assert await records(folder) == 3


async def records(folder: Path) -> int:
    """Return how many records the sink has."""
    with sqlite3.connect(folder / "records.db") as connection:
        return int(connection.execute("SELECT count(*) FROM records").fetchone()[0])


async def address(process: asyncio.subprocess.Process) -> str:
    """Return the URL of Prefect's API when all is up."""
    printed = ""
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        while "Ctrl-C" not in printed:
            line = (await process.stdout.readline()).decode()
            assert line, printed
            printed += line
    prefect = re.search(r"Prefect UI +(http://127\.0\.0\.1:\d+)\n", printed)
    assert prefect, printed
    return f"{prefect[1]}/api"
