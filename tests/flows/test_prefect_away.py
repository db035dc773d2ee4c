"""Runs while Prefect's API stalls or is gone: the Storage Service has their outcome anyway."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from ladon_storage.connect import new_client
from ladon_storage.models import Watermark
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.flaky import Flaky
from tests.flows.away import Away
from tests.tables import table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent
CATALOGUE = {
    "count": 2,
    "vulnerabilities": [
        {"cveID": "CVE-2024-0001", "dateAdded": "2024-01-01"},
        {"cveID": "CVE-2024-0002", "dateAdded": "2024-01-02"},
    ],
}
BROKEN = Answer(b"no", status=404)

BEGIN_SECONDS = 300
"""How long Prefect may take to let a run begin: its server stalls for a minute on a busy day."""

OUTCOME_SECONDS = 60
"""How long a run may take from there: nothing of it waits for Prefect."""

# Prefect remembers for seconds that a tag has no limit, and then begins a task without its server.
COMMAND = """
import sys
from cachetools import TTLCache
from prefect.concurrency import services
services._no_limits_cache = TTLCache(1, 0)
from ladon_storage.flows import ending, artifacts as reports
from ladon_storage.cli import main
from ladon_storage import fallback
fallback.PATIENCE_SECONDS = ending.ASK_SECONDS = reports.PREFECT_SECONDS = 0.5
sys.exit(main(["collect", sys.argv[1], "--sink", sys.argv[2], "--prefect"]))
"""


async def outcome_through(
    away: Away, feed: str, sink: Path, storage: StorageSettings, service: Flaky
) -> tuple[Watermark, str]:
    """Collect in a process that reaches Prefect through ``away``; return what the service has.

    The process is not waited for: it ends when Prefect's client gave up telling how it went.
    """

    def log() -> str:
        return (sink.parent / "run.log").read_text()

    async def pause() -> None:
        assert process.returncode is None, log()
        await asyncio.sleep(0.1)

    async def outcome() -> Watermark:
        async with new_client(storage) as client:
            while True:
                watermark = await client.get_watermark("kev")
                if watermark and watermark.status in ("success", "failed"):
                    return watermark
                await pause()

    with (sink.parent / "run.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            COMMAND,
            json.dumps({"kind": "kev", "url": feed}),
            f"sqlite:///{sink}",
            cwd=ROOT,
            env={
                **os.environ,
                "PREFECT_API_URL": away.url,
                "PREFECT_API_REQUEST_TIMEOUT": "20",
                "STORAGE_SERVICE_URL": storage.url or "",
            },
            stdout=output,
            stderr=output,
        )
        try:
            async with asyncio.timeout(BEGIN_SECONDS):
                while not service.calls:  # its first one is of the run's body
                    await pause()
            async with asyncio.timeout(OUTCOME_SECONDS):
                return await outcome(), log()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def act_at(
    step: str, away: Away, how: str, service: Flaky, feed: FeedServer, answer: Answer
) -> None:
    """Let Prefect stall or die when a run has come to ``step``."""
    loop = asyncio.get_running_loop()
    act = away.stall if how == "stalled" else away.die

    def fault(method: str, body: str) -> None:
        told = method
        if method == "PUT":
            told = "running" if '"running"' in body else "outcome"
        if told == step:
            loop.call_soon_threadsafe(act)

    def play(_asked: object) -> Answer:
        if step == "feed":
            act()
        return answer

    service.fault = fault
    feed.play = play


AWAY = [("HEALTH", "stalled"), ("running", "killed"), ("feed", "stalled"), ("feed", "killed")]


@pytest.mark.parametrize(("step", "how"), AWAY)
async def test_success_is_written_while_prefect_is_away(
    step: str, how: str, storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """Whatever step Prefect is lost at, what was collected is durable and promoted, once."""
    async with Away(str(PREFECT_API_URL.value())).running() as away, FeedServer() as feed:
        act_at(step, away, how, service, feed, Answer.of(CATALOGUE))
        watermark, log = await outcome_through(
            away, feed.url, tmp_path / "records.db", storage, service
        )
    assert (watermark.status, watermark.records_collected) == ("success", 2), log
    assert table(tmp_path / "records.db") == [("CVE-2024-0001",), ("CVE-2024-0002",)]
    assert len(feed.requests) == 1
    assert service.calls.count("PUT") == 2


@pytest.mark.parametrize("how", ["stalled", "killed"])
async def test_failure_is_written_while_prefect_is_away(
    how: str, storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """A source that failed while Prefect was lost is on record, with the reason."""
    async with Away(str(PREFECT_API_URL.value())).running() as away, FeedServer() as feed:
        act_at("feed", away, how, service, feed, BROKEN)
        watermark, log = await outcome_through(
            away, feed.url, tmp_path / "records.db", storage, service
        )
    assert watermark.status == "failed", log
    assert "404" in (watermark.error_message or "")


async def test_task_run_that_begins_late_does_not_write_again(
    storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """Prefect that goes on after a run went on without it adds no second write, and no conflict."""
    async with Away(str(PREFECT_API_URL.value())).running() as away, FeedServer() as feed:
        act_at("running", away, "stalled", service, feed, Answer.of(CATALOGUE))
        play = feed.play
        assert play

        def go_on(asked: Asked) -> Answer:
            away.go_on()
            return play(asked)

        feed.play = go_on
        watermark, log = await outcome_through(
            away, feed.url, tmp_path / "records.db", storage, service
        )
    assert watermark.status == "success", log
    assert service.calls.count("PUT") == 2
