"""Collect the sample feed five times, through an outage, and count what was lost and repeated.

Each collection is a run of the ``collect`` flow in a process of its own, as Prefect runs it,
against an embedded Storage Service and a Prefect server. Exits with 1 if a record was lost or
repeated, or if a run did not end as it should.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from demo.feed import Feed, states
from demo.stage import LEASE_SECONDS, PROJECT, StorageService, prefect_server, run_flow
from ladon_storage import StorageConnectionError, StorageServiceClient

console = Console()


@dataclass
class Outcome:
    """Say how one run went, and what was at the source and in the sink after it.

    Records are counted by their versions: one that was sighted again is a new version.
    """

    title: str
    expected: str
    ended: str
    why: str
    requests: int
    at_source: int
    in_sink: int
    missing: int
    repeated: int
    before: str
    after: str

    @property
    def lost(self) -> int:
        """How many records a completed run left out; a failed one leaves them to the next."""
        return self.missing if self.ended == "completed" else 0

    @property
    def as_expected(self) -> bool:
        """Whether it ended as it should, and lost and repeated nothing."""
        return self.ended == self.expected and not self.lost and not self.repeated


def content(record: dict[str, Any]) -> str:
    """Return a record's content as one text, whatever the order of its keys."""
    return json.dumps(record, sort_keys=True)


class Demonstration:
    """Hold the feed, the service and the sink, and run the flow against them."""

    def __init__(self, folder: Path, api: str, feed: Feed, url: str) -> None:
        self.folder = folder
        self.sink = folder / "records.db"
        self.api = api
        self.feed = feed
        self.source = {"kind": "threatfox", "source_id": "sample-feed", "url": url}
        self.service = StorageService(folder)
        self.outcomes: list[Outcome] = []
        self.published: set[tuple[str, str]] = set()

    def publish(self, export: dict[str, list[dict[str, Any]]]) -> None:
        """Let the feed show ``export``, and remember what the sink must have in the end."""
        self.feed.shown = export
        self.published |= {
            (number, content(record)) for number, records in export.items() for record in records
        }

    async def watermark(self) -> str:
        """Return the watermark as people read it."""
        async with StorageServiceClient(self.service.url) as client:
            try:
                watermark = await client.get_watermark("sample-feed")
            except StorageConnectionError:
                return "unreachable"
        if watermark is None or watermark.last_successful_timestamp is None:
            return "never"
        return f"{watermark.last_successful_timestamp:%d %b %H:%M}"

    def rows(self) -> list[tuple[str, str]]:
        """Return what is in the sink, as (id, content)."""
        with contextlib.closing(sqlite3.connect(self.sink)) as connection:
            found = connection.execute("SELECT record_id, payload FROM records").fetchall()
        return [(record_id, content(json.loads(payload))) for record_id, payload in found]

    async def collect(self, title: str, expected: str) -> None:
        """Run the flow once, and compare the source with the sink."""
        before = await self.watermark()
        requests = self.feed.requests
        with console.status(f"Run {len(self.outcomes) + 1}: {title} …"):
            run = await run_flow(
                self.folder, self.api, self.service.url, self.source, self.sink, keep="all"
            )
        rows = self.rows()
        outcome = Outcome(
            title=title,
            expected=expected,
            ended=run.ended,
            why=run.why,
            requests=self.feed.requests - requests,
            at_source=len(self.published),
            in_sink=len(rows),
            missing=len(self.published - set(rows)),
            repeated=len(rows) - len(set(rows)),
            before=before,
            after=await self.watermark(),
        )
        self.outcomes.append(outcome)
        asked = f"asked the source {outcome.requests} x"
        console.print(f"[bold]Run {len(self.outcomes)}[/]: {title}: {run.ended}, {asked}")
        if run.why:
            console.print(f"       {run.why}", style="dim", highlight=False, soft_wrap=True)

    async def play(self) -> None:
        """Run through the whole story."""
        first, news, more, last = states()
        await self.service.start()
        try:
            self.publish(first)
            self.feed.faults = [self.feed.unavailable, self.feed.cut_off]
            await self.collect("first collection", "completed")
            self.publish(news)
            await self.collect("with news", "completed")
            await self.service.kill()
            self.publish(more)
            await self.collect("service down", "failed")
            await self.service.start()
            self.feed.before_answer = self.service.kill
            await self.collect("service dies", "failed")
            self.feed.before_answer = None
            await self.service.start()
            console.print("       The service is back: ladon-storage circuit reset", style="dim")
            await self.service.close_circuit()
            # Run 4 could not say that it failed, and holds the source until its lease is over.
            await asyncio.sleep(LEASE_SECONDS)
            self.publish(last)
            await self.collect("service is back", "completed")
        finally:
            await self.service.stop()


def table(outcomes: list[Outcome]) -> Table:
    """Return the outcomes as a table that anybody can read, in 80 columns."""
    shown = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    shown.add_column("run", no_wrap=True)
    shown.add_column("ended")
    for heading in ("at\nsource", "in\nsink", "lost", "repeated"):
        shown.add_column(heading, justify="right")
    shown.add_column("watermark\nbefore", no_wrap=True)
    shown.add_column("\nafter", no_wrap=True)
    for number, outcome in enumerate(outcomes, start=1):
        shown.add_row(
            f"{number} {outcome.title}",
            outcome.ended if outcome.as_expected else f"{outcome.ended} (!)",
            str(outcome.at_source),
            str(outcome.in_sink),
            str(outcome.lost),
            str(outcome.repeated),
            outcome.before,
            outcome.after,
        )
    return shown


def verdict(outcomes: list[Outcome]) -> int:
    """Show what came of the runs, and return the exit code: 1 if anything is not as it should."""
    console.print("\nRecords by version: one that was sighted again counts again.")
    console.print(table(outcomes))
    if not all(outcome.as_expected for outcome in outcomes):
        console.print("A run did not end as it should, or a record was lost or repeated.")
        return 1
    last = outcomes[-1]
    console.print(
        f"{last.at_source} records were published, {last.in_sink} are in the sink, "
        f"{last.lost} lost, {last.repeated} repeated."
    )
    return 0


async def main() -> int:
    """Play the demonstration in the project's folder ``.demo``, and return the exit code."""
    # The service is down on purpose, and the runs say so themselves.
    logging.getLogger("ladon_storage").setLevel(logging.CRITICAL)
    folder = PROJECT / ".demo" / "sample"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    feed = Feed()
    console.print("Five runs of the collect flow, about a minute. Everything stays in .demo/.")
    with console.status("Starting a Prefect server of its own (15 to 30 s) …") as status:
        async with prefect_server(folder) as api, feed.served() as url:
            status.stop()
            demonstration = Demonstration(folder, api, feed, url)
            await demonstration.play()
    return verdict(demonstration.outcomes)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
