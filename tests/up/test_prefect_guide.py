"""Each command and example of docs/PREFECT.md, in its order, against one server."""

from __future__ import annotations

import asyncio
import json
import os
import re
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
from tests.up.place import Place
from tests.up.prefect_api import CATALOGUE, STEP_SECONDS

pytestmark = pytest.mark.asyncio(loop_scope="session")

GUIDE = PROJECT / "docs" / "PREFECT.md"
STEPS = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STAYS_UP = {
    ".venv/bin/ladon-storage deploy --serve --table prefect.yaml": "Serving.",
    ".venv/bin/prefect worker start --pool ladon": "started",
}
"""What a person ends by Ctrl-C, and what it prints when it works."""


def steps() -> list[tuple[str, str]]:
    """Return ``(kind, text)`` of each command and example."""
    found = []
    for kind, text in STEPS.findall(GUIDE.read_text()):
        if kind == "python":
            found.append((kind, text))
            continue
        lines = text.splitlines()
        assert all(line.startswith("$ ") for line in lines), text
        found += [(kind, line[2:]) for line in lines]
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


async def test_guide_can_be_followed_from_its_beginning(place: Place, tmp_path: Path) -> None:
    """Nothing is typed that the guide does not say; only addresses on the internet differ."""
    async with (
        FeedServer(play=lambda _asked: Answer.of(CATALOGUE)) as feed,
        AsyncExitStack() as running,
    ):
        (tmp_path / "sources.toml").write_text(f'[[sources]]\nkind = "kev"\nurl = "{feed.url}"\n')
        (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(local_table(feed.url)))
        follower = Follower(place, tmp_path, feed.url, running)
        for kind, text in steps():
            await follower.follow(kind, text)
    assert set(follower.stayed) == set(STAYS_UP)


class Follower:
    """Be the person who follows the guide."""

    def __init__(self, place: Place, folder: Path, feed: str, running: AsyncExitStack) -> None:
        self.place = place
        self.folder = folder
        self.feed = feed
        self.running = running
        self.stayed: list[str] = []
        self.environment = environment(
            place.folder, **RUNS, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        )

    async def follow(self, kind: str, text: str) -> None:
        """Do one step; one that fails fails the test with what it printed."""
        if text == "make up":  # has a test of its own
            return
        if text in STAYS_UP:
            await self.stay(text)
            return
        text = self.local(text)
        if export := re.fullmatch(r"export (\w+)=(\S+)", text):
            self.environment[export[1]] = export[2]
            return
        command = ["bash", "-ec", text.replace(".venv/bin/", "")]
        if kind == "python":
            script = self.folder / "example.py"
            script.write_text(text)
            command = [sys.executable, str(script)]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=PROJECT, env=self.environment | {"PYTHONPATH": self.path()},
            stdin=DEVNULL, stdout=PIPE, stderr=STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), STEP_SECONDS)
        assert process.returncode == 0, f"{text}\n{output.decode()}"

    async def stay(self, text: str) -> None:
        """Start what stays, until the guide is at its end."""
        if "worker" in text:  # instead of the runner, not beside it
            await self.running.aclose()
        program, *words = self.local(text).split()
        command = ["ladon_storage.cli" if "ladon" in Path(program).name else "prefect", *words]
        process = await self.running.enter_async_context(self.place.running(*command))
        assert process.stdout
        await asyncio.wait_for(process.stdout.readuntil(STAYS_UP[text].encode()), STEP_SECONDS)
        self.stayed.append(text)

    def path(self) -> str:
        """Return the project's folder before what this process was given."""
        return os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])

    def local(self, text: str) -> str:
        """Return ``text`` with this test's addresses."""
        kev = json.dumps({"kind": "kev", "url": self.feed})
        for there, here in {
            "http://127.0.0.1:4200/api": self.place.api.api,
            "http://127.0.0.1:8080": self.place.service,
            "https://mirror.example/kev.json": self.feed,
            "sqlite:////var/lib/ladon/records.db": f"sqlite:///{self.folder}/records.db",
            "sqlite:///records.db": f"sqlite:///{self.folder}/records.db",
            "storage collect kev": f"storage collect '{kev}'",
            "storage backfill kev": f"storage backfill '{kev}'",
            "storage reconcile kev": f"storage reconcile '{kev}'",
            "--table prefect.yaml": f"--table {self.folder}/prefect.yaml",
            "deploy --all": f"deploy --prefect-file {self.folder}/prefect.yaml --all",
            "sources.toml": str(self.folder / "sources.toml"),
        }.items():
            text = text.replace(there, here)
        return text.strip()
