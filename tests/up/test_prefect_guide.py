"""Each command and example of the guides to deployment and operation, in their order."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.stage import PROJECT, environment
from ladon_storage.cli.up import RUNS
from ladon_storage.flows.serve import DEPLOYMENTS_FILE
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.documents import blocks
from tests.up.place import Place
from tests.up.prefect_api import CATALOGUE, STEP_SECONDS

pytestmark = pytest.mark.asyncio(loop_scope="session")

GUIDES = [PROJECT / "docs" / "how-to" / f"{name}.md" for name in ("deploy", "operate")]
STAYS_UP = {
    "ladon-storage deploy --serve": "Serving.",
    "ladon-storage deploy --serve --table prefect.yaml": "Serving.",
    "prefect worker start --pool ladon": "started",
}
"""What a person ends by Ctrl-C, and what it prints when it works."""
NOT_HELD = 4
"""The exit code of a release of a source that no run holds, as here."""


def steps(guide: Path) -> list[tuple[str, str]]:
    """Return ``(language, text)`` of each command and example."""
    found = []
    for block in blocks(guide):
        if block.language == "python":
            found.append((block.language, block.text))
        elif block.language == "console":
            found += [(block.language, command) for command, _ in block.commands]
    return found


def local_table(feed: str) -> dict[str, Any]:
    """Return the table of deployments without a source on the internet that could be due."""
    table: dict[str, Any] = yaml.safe_load(DEPLOYMENTS_FILE.read_text())
    for each in table["deployments"]:
        if each["name"] == "kev":
            each["parameters"]["source"]["url"] = feed
        else:
            each.pop("schedules", None)
    return table


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
async def test_guide_can_be_followed_from_its_beginning(
    guide: Path, place: Place, tmp_path: Path
) -> None:
    """Nothing is typed that the guide does not say; only addresses on the internet differ."""
    async with (
        FeedServer(play=lambda _asked: Answer.of(CATALOGUE)) as feed,
        AsyncExitStack() as running,
    ):
        (tmp_path / "ladon.toml").write_text(
            f'[sinks.records]\nurl = "sqlite:///{tmp_path}/records.db"\n'
            f'[sources.kev]\nkind = "kev"\nurl = "{feed.url}"\n'
        )
        (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(local_table(feed.url)))
        follower = Follower(place, tmp_path, feed.url, running)
        if guide.stem == "operate":  # a reader comes to it from the other one
            follower.environment |= place.known | {"LADON_SOURCE_CONCURRENCY": "queue"}
            await follower.follow("console", "ladon-storage collect kev")
            shutil.copy(tmp_path / "records.db", tmp_path / "records-backup.db")
        for kind, text in steps(guide):
            await follower.follow(kind, text)


class Follower:
    """A person who follows the guides."""

    def __init__(self, place: Place, folder: Path, feed: str, running: AsyncExitStack) -> None:
        self.place = place
        self.folder = folder
        self.feed = feed
        self.running = running
        self.environment = environment(
            place.folder,
            **RUNS,
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            LADON_FILE=str(folder / "ladon.toml"),
        )

    async def follow(self, kind: str, text: str) -> None:
        """Do one step; one that fails fails the test with what it printed."""
        if text == "ladon-storage up":  # has a test of its own
            return
        if text in STAYS_UP:
            await self.stay(text)
            return
        text = self.local(text)
        if export := re.fullmatch(r"export (\w+)=(\S+)", text):
            self.environment[export[1]] = export[2]
            return
        command = ["bash", "-ec", text]
        if kind == "python":
            script = self.folder / "example.py"
            script.write_text(text)
            command = [sys.executable, str(script)]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=PROJECT, env=self.environment | {"PYTHONPATH": self.path()},
            stdin=DEVNULL, stdout=PIPE, stderr=STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), STEP_SECONDS)
        expected = NOT_HELD if "watermarks release" in text else 0
        assert process.returncode == expected, f"{text}\n{output.decode()}"

    async def stay(self, text: str) -> None:
        """Start what stays, until the guide is at its end."""
        await self.running.aclose()  # instead of what ran them before, not beside it
        program, *words = self.local(text).split()
        command = ["ladon_storage.cli" if program == "ladon-storage" else program, *words]
        file = {"LADON_FILE": self.environment["LADON_FILE"]}
        process = await self.running.enter_async_context(self.place.running(*command, **file))
        assert process.stdout
        await asyncio.wait_for(process.stdout.readuntil(STAYS_UP[text].encode()), STEP_SECONDS)

    def path(self) -> str:
        """Return the project's folder before what this process was given."""
        return os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])

    def local(self, text: str) -> str:
        """Return ``text`` with this test's addresses."""
        for there, here in {
            "http://127.0.0.1:4200/api": self.place.api.api,
            "http://127.0.0.1:8080": self.place.service,
            "https://mirror.example/kev.json": self.feed,
            "sqlite:////var/lib/ladon/records.db": f"sqlite:///{self.folder}/records.db",
            "rm -f records.db-wal records.db-shm": (
                f"rm -f {self.folder}/records.db-wal {self.folder}/records.db-shm"
            ),
            "cp records-backup.db records.db": (
                f"cp {self.folder}/records-backup.db {self.folder}/records.db"
            ),
            "--table prefect.yaml": f"--table {self.folder}/prefect.yaml",
            "deploy --all": f"deploy --prefect-file {self.folder}/prefect.yaml --all",
        }.items():
            text = text.replace(there, here)
        return text.strip()
