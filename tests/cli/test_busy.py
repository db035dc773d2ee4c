"""``ladon-storage collect --when-busy``: sources that another run holds, and real kills of it."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL

import pytest

from ladon_storage.embedded import EmbeddedStorage
from ladon_storage.models import WatermarkStatus, WatermarkUpdate
from ladon_storage.testing.doubles import at
from ladon_storage.testing.feed_server import FeedServer
from tests.cli.called import Command
from tests.cli.feeds import catalogue, project
from tests.forks import Fork, Forks, forking

COMMAND = "import sys\nfrom ladon_storage.cli import main\nsys.exit(main(sys.argv[1:]))\n"

SLOW = """
import asyncio
from datetime import UTC, datetime
from pydantic import BaseModel
from ladon_storage.collection.records import Page, Record


class Slow(BaseModel):
    source_id: str = "slow"
    overlap: None = None
    seconds: float = 0.3

    async def pages(self, start, until):
        print("reading", flush=True)
        await asyncio.sleep(self.seconds)
        yield Page(records=[Record.of("1", datetime(2024, 1, 1, tzinfo=UTC), {"title": "one"})])
"""

TABLE = """
[storage]
url = "sqlite:///ladon.db"
[sinks.records]
url = "sqlite:///records.db"
[sources.slow]
kind = "own:Slow"
limits.lease = {lease}
when_busy = "{when_busy}"
seconds = {seconds}
"""


@pytest.fixture(scope="module")
def commands() -> Iterator[Forks]:
    """Import the command once for the processes that run it."""
    with forking("ladon_storage.cli.collect") as made:
        yield made


async def hold(folder: Path, seconds: float) -> None:
    """Let another run hold the catalogue's source."""
    async with EmbeddedStorage(folder / "ladon.db") as storage:
        update = WatermarkUpdate.of(
            at(0), WatermarkStatus.RUNNING, run_id="other", lease=timedelta(seconds=seconds)
        )
        await storage.put_watermark("kev", update)


async def test_held_source_fails_waits_or_is_skipped(ladon: Command) -> None:
    """The option goes before the file; a skipped source is no failure, and is said."""
    async with FeedServer(catalogue(1)) as feed:
        ladon.write("ladon.toml", project(feed, 'when_busy = "skip"\n'))
        await hold(ladon.folder, 60)
        skipped = await ladon.later("collect", "kev")
        data = await ladon.later("collect", "kev", "--json")
        failed = await ladon.later("collect", "kev", "--when-busy", "fail")
        assert not feed.requests
        await hold(ladon.folder, 1)
        waited = await ladon.later("collect", "kev", "--when-busy", "wait")
    assert (skipped.code, skipped.out.splitlines()[1].split()[:2]) == (0, ["kev", "skipped"])
    assert "kev is skipped: run 'other' is collecting the source." in skipped.err
    [told] = data.json
    assert (told["outcome"], told["skipped"]["run_id"]) == ("skipped", "other")
    assert failed.code == 1
    assert "SourceBusyError" in failed.err or "is being collected by run 'other'" in failed.err
    assert waited.code == 0
    assert "This run waits for it" in waited.err
    assert waited.out.splitlines()[1].split()[:2] == ["kev", "done"]


def test_other_choice_is_refused(ladon: Command) -> None:
    """A misspelt choice is a usage error, in the option and in the file."""
    assert ladon("collect", "kev", "--when-busy", "skp").code == 2
    ladon.write(
        "ladon.toml",
        '[sinks.records]\nurl = "sqlite:///r.db"\n[sources.kev]\nkind = "kev"\nwhen_busy = "skp"\n',
    )
    called = ladon("collect", "kev")
    assert called.code == 2
    assert "when_busy" in called.sentence


@asynccontextmanager
async def collecting(commands: Forks, folder: Path, file: Path) -> AsyncIterator[Fork]:
    """Run ``collect slow`` by a file of sources, with its outputs in a folder."""
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240 - at once
    arguments = ("collect", "slow", "--no-prefect")
    async with commands.run(COMMAND, *arguments, folder=folder, LADON_FILE=str(file)) as life:
        yield life


async def has_begun(folder: Path, seconds: float = 20) -> bool:
    """Return whether a run reads its source within a time, and does not end before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        out = folder / "stdout"
        if out.exists() and (text := out.read_text()):
            return text == "reading\n"
        await asyncio.sleep(0.02)
    return False


def written(ladon: Command, name: str, when_busy: str, lease: float, seconds: float) -> Path:
    """Write a file with the slow source."""
    ladon.write("own.py", SLOW)
    return ladon.write(name, TABLE.format(when_busy=when_busy, lease=lease, seconds=seconds))


@pytest.mark.slow
async def test_killed_run_is_taken_over_within_its_lease(ladon: Command, commands: Forks) -> None:
    """Another run waits for the rest of the dead run's lease, no longer, and collects."""
    endless = written(ladon, "endless.toml", "fail", 8, 600)
    file = written(ladon, "ladon.toml", "wait", 8, 0)
    async with collecting(commands, ladon.folder / "a", endless) as dying:
        assert await has_begun(ladon.folder / "a")
        dying.send_signal(SIGKILL)
        await dying.communicate()
        killed = time.monotonic()
        async with collecting(commands, ladon.folder / "b", file) as other:
            _, errors = await asyncio.wait_for(other.communicate(), 30)
    assert other.returncode == 0, errors
    assert "This run waits for it" in errors
    assert time.monotonic() - killed < 8 + 5 + 5  # the lease, a look, and a busy machine
    async with EmbeddedStorage(ladon.folder / "ladon.db") as storage:
        stored = await storage.get_watermark("slow")
    assert stored
    assert stored.status == WatermarkStatus.SUCCESS


@pytest.mark.slow
async def test_schedulers_that_are_killed_take_over_and_none_is_red(
    ladon: Command, commands: Forks
) -> None:
    """Two schedulers start runs that skip, one dies every few seconds, and no run fails."""
    lease, drawn = 2.0, random.Random(7)
    file = written(ladon, "ladon.toml", "skip", lease, 0.3)
    end = time.monotonic() + 200
    ends: list[tuple[int | None, str]] = []
    kills: list[float] = []
    successes: list[float] = []

    async def scheduler(name: str) -> None:
        for number in itertools.count():
            folder = ladon.folder / f"{name}{number}"
            async with collecting(commands, folder, file) as life:
                if len(kills) <= 3 and drawn.random() < 0.5 and await has_begun(folder):
                    life.send_signal(SIGKILL)
                    kills.append(time.monotonic())
                out, errors = await asyncio.wait_for(life.communicate(), 30)
            ends.append((life.returncode, errors))
            if life.returncode == 0 and " done " in out:
                successes.append(time.monotonic())
            if len(kills) > 3 and successes and successes[-1] > kills[-1]:
                return
            assert time.monotonic() < end

    await asyncio.gather(scheduler("a"), scheduler("b"))
    assert {code for code, _ in ends} == {0, -SIGKILL}, ends
    for killed in kills:
        # The lease, and the starts of processes on a busy machine.
        assert min(each for each in successes if each > killed) - killed < lease + 15
