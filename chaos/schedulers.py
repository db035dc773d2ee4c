"""Two schedulers that stand by for each other, and that are killed with their runs.

Each starts a run of the same source as soon as its last one has ended, with ``when_busy = "skip"``.
The killed one stays dead for a while. The other has to take over within the lease: a run that began
after it collects. No run may fail, and every record has to be in the sink once.
``make chaos-schedulers SECONDS=600`` plays for ten minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGKILL
from statistics import median

from chaos.__main__ import PLACE
from chaos.world import ViolationError
from ladon_storage.cli import collect  # noqa: F401 - for the processes that are forked
from ladon_storage.client import client  # noqa: F401
from ladon_storage.sinks.sql import sqlite  # noqa: F401
from tests.forks import Fork, Forks, forking

LEASE_SECONDS = 2.0
SLACK_SECONDS = 60.0
"""The longest that a busy machine takes to start a run and to complete it."""
EVERY_SECONDS = 0.02
"""The time between two records of the source."""
COMMAND = "import sys\nfrom ladon_storage.cli import main\nsys.exit(main(sys.argv[1:]))\n"
SOURCE = """
import asyncio, sys
from datetime import UTC, datetime, timedelta
from pydantic import BaseModel
from ladon_storage.collection.records import Page, Record

BEGAN = datetime.fromisoformat({began!r})
EVERY = timedelta(seconds={every})


class Ticks(BaseModel):
    source_id: str = "ticks"
    overlap: None = None

    async def pages(self, start, until):
        print("reading", file=sys.stderr, flush=True)
        number = 0 if start is None else max(0, (start - BEGAN) // EVERY)
        last = (datetime.now(UTC) - BEGAN) // EVERY
        while number <= last:
            numbers = range(number, min(number + 500, last + 1))
            yield Page(records=[
                Record.of(str(each), BEGAN + each * EVERY, {{"number": each}}) for each in numbers
            ])
            number = numbers.stop
            await asyncio.sleep(0.3)
"""
TABLE = """
[storage]
url = "{url}"
[sinks.records]
url = "sqlite:///{folder}/records.db"
[sources.ticks]
kind = "own:Ticks"
limits.lease = {lease}
when_busy = "skip"
"""


class Schedulers:
    """Two schedulers, what their runs came to, and when they were killed.

    Args:
        folder: Where their files are.
        forks: Where processes come from.
        draw: Who is killed when.
        end: When they stop.
    """

    def __init__(self, folder: Path, forks: Forks, draw: random.Random, end: float) -> None:
        self.outcomes: Counter[str] = Counter()
        self.kills: list[float] = []
        self.kills_of_holders: list[float] = []
        self.collected: list[float] = []
        self._folder = folder
        self._forks = forks
        self._draw = draw
        self._end = end
        self._alive: dict[str, tuple[Fork, Path]] = {}
        self._killed: set[str] = set()

    async def schedule(self, name: str) -> None:
        """Start one run after another, and be dead for a while after a kill."""
        number = 0
        while time.monotonic() < self._end:
            number += 1
            await self.run(name, self._folder / f"{name}-{number}")
            if name in self._killed:
                self._killed.discard(name)
                await asyncio.sleep(self._draw.random() * 2 * LEASE_SECONDS)

    async def run(self, name: str, folder: Path, *more: str) -> None:
        """Run the command once, with more of its arguments, and note what came of it."""
        folder.mkdir()  # noqa: ASYNC240 - at once
        file, began = self._folder / "ladon.toml", datetime.now(UTC)
        arguments = ("collect", "ticks", "--no-prefect", "--json", *more)
        options = {"LADON_FILE": str(file), "PYTHONPATH": str(self._folder)}
        async with self._forks.run(COMMAND, *arguments, folder=folder, **options) as life:
            self._alive[name] = life, folder
            try:
                out, errors = await asyncio.wait_for(life.communicate(), 60)
            finally:
                del self._alive[name]
        if life.returncode == -SIGKILL and name in self._killed:
            self.outcomes["killed"] += 1
        elif life.returncode != 0:
            raise ViolationError(f"a run failed with {life.returncode}: {errors[-2000:]}")
        else:
            [report] = json.loads(out)
            self.outcomes[report["outcome"]] += 1
            if report["outcome"] == "done":
                self.collected.append(time.monotonic())
            elif datetime.fromisoformat(report["skipped"]["until"]) < began:
                raise ViolationError(f"a run stood by for a lease that had ended: {report}")
        shutil.rmtree(folder)

    async def kill(self) -> None:
        """Kill one of them every few seconds: mostly the one that holds the source."""
        while time.monotonic() < self._end - 5 * LEASE_SECONDS:
            await asyncio.sleep(1 + self._draw.random() * 3)
            if self.kills and not (self.collected and self.collected[-1] > self.kills[-1]):
                continue  # the other one has not taken over yet
            wants_holder = self._draw.random() < 0.8
            for _ in range(500):
                for name, (life, folder) in list(self._alive.items()):
                    holds = "reading" in _text(folder / "stderr")
                    if holds or not wants_holder:
                        self._killed.add(name)
                        life.send_signal(SIGKILL)
                        self.kills.append(time.monotonic())
                        if holds:
                            self.kills_of_holders.append(time.monotonic())
                        break
                else:
                    await asyncio.sleep(0.01)
                    continue
                break

    def takeovers(self) -> list[float]:
        """Return how long after each kill of a holder a run had collected."""
        found = []
        for killed in self.kills_of_holders:
            after = [each for each in self.collected if each > killed]
            if not after or after[0] - killed > LEASE_SECONDS + SLACK_SECONDS:
                raise ViolationError("the other one did not take over")
            found.append(after[0] - killed)
        return found


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""


def _look(folder: Path) -> int:
    """Return the number of records, each of which is there once, without a hole."""
    with closing(sqlite3.connect(folder / "records.db")) as database:
        rows = database.execute("SELECT record_id FROM records").fetchall()
    numbers = sorted(int(row[0]) for row in rows)
    if numbers != list(range(len(numbers))):
        lost = set(range(max(numbers))) - set(numbers)
        raise ViolationError(
            f"{len(lost)} records are lost, {len(numbers) - len(set(numbers))} are there twice"
        )
    return len(numbers)


async def _play(folder: Path, forks: Forks, seconds: float, seed: str) -> str:
    began = time.monotonic()
    made = Schedulers(folder, forks, random.Random(seed), began + seconds)
    killing = asyncio.create_task(made.kill())
    try:
        await asyncio.gather(made.schedule("a"), made.schedule("b"))
    finally:
        killing.cancel()
    await made.run("last", folder / "last", "--when-busy", "wait")
    records = _look(folder)
    takeovers = made.takeovers()
    ends = ", ".join(f"{number} {outcome}" for outcome, number in made.outcomes.most_common())
    return (
        f"{time.monotonic() - began:.0f} s: {len(made.kills)} kills, {len(takeovers)} of a run "
        f"that held the source; {made.outcomes.total()} runs ({ends}), 0 failed, "
        "none stood by for a lease that had ended\n"
        f"the source was collected again {median(takeovers):.1f} s after such a kill, at most "
        f"{max(takeovers):.1f} s (lease {LEASE_SECONDS:g} s)\n"
        f"{records} records, 0 lost, 0 twice"
    )


def main() -> int:
    """Play, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m chaos.schedulers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="default: %(default)g")
    parser.add_argument("--seed", default="1", help="who is killed when; default: %(default)s")
    options = parser.parse_args()
    PLACE.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=PLACE))
    began = datetime.now(UTC).isoformat()
    (folder / "own.py").write_text(SOURCE.format(began=began, every=EVERY_SECONDS))
    serve = [sys.executable, "-m", "ladon_storage.cli", "serve", "--port", "0"]
    with (
        (folder / "service.log").open("w") as log,
        subprocess.Popen(
            [*serve, "--database", str(folder / "service.db")],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as service,
        forking("chaos.schedulers") as forks,
    ):
        try:
            assert service.stdout is not None
            url = service.stdout.readline().strip()
            table = TABLE.format(url=url, folder=folder, lease=LEASE_SECONDS)
            (folder / "ladon.toml").write_text(table)
            print(asyncio.run(_play(folder, forks, options.seconds, options.seed)))
        except ViolationError as violation:
            print(f"VIOLATION: {violation}\n  its files: {folder}")
            return 1
        finally:
            service.terminate()
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
