"""What the browser meets: a Prefect server, the Storage Service, a feed, and a served deployment.

Everything is on loopback, and everything that it writes is in ``.e2e``.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from asyncio.subprocess import DEVNULL, STDOUT
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from demo.feed import Feed, states
from demo.stage import PROJECT, StorageService, ended, environment, prefect_server
from ladon_storage import blocks

FOLDER = PROJECT / ".e2e"
SCREENSHOTS = FOLDER / "screenshots"

SECONDS = 60
"""Bound on what one step may take on a machine that does other things too."""

DEPLOYMENT = "collect-threatfox/threatfox"
BACKFILL = "backfill/any"
SERVICE_BLOCK = "local"
SINK_BLOCK = "records"
_TABLE = """
deployments:
  - name: threatfox
    entrypoint: flows/collect.py:collect_threatfox
    description: A replay of ThreatFox's export.
    tags: [ladon, indicators]
    parameters: { storage: null }
    concurrency_limit: { limit: 1, collision_strategy: ENQUEUE }
  - name: any
    entrypoint: flows/backfill.py:backfill
    description: A backfill of any source.
    parameters: { source: { kind: nvd } }
"""


# Nothing here is scheduled, late or triggered, and each of these services writes to Prefect's
# SQLite, which refuses a form while it is locked.
_SERVER: dict[str, Any] = {
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
} | {
    f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false"
    for name in (
        "SCHEDULER", "LATE_RUNS", "TRIGGERS", "FOREMAN", "PAUSE_EXPIRATIONS",
        "CANCELLATION_CLEANUP",
    )
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """Say where everything is; blocks of the Storage Service and of the sink are saved."""

    prefect: str
    feed: Feed
    feed_url: str
    service: StorageService
    sink: Path
    deployment_id: str

    @property
    def form(self) -> str:
        """The path of the form that starts a run, in either UI."""
        return f"/deployments/deployment/{self.deployment_id}/run"


async def flow_runs() -> list[FlowRun]:
    """Return all runs that Prefect knows, whatever became of them."""
    async with get_client() as client:
        return await client.read_flow_runs()


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Set everything up anew, and end what was started; logs and screenshots stay."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    SCREENSHOTS.mkdir(parents=True)
    feed, service, sink = Feed(shown=states()[0]), StorageService(FOLDER), FOLDER / "records.db"
    async with contextlib.AsyncExitStack() as stack:
        feed_url = await stack.enter_async_context(feed.served())
        api = await stack.enter_async_context(prefect_server(FOLDER, **_SERVER))
        stack.push_async_callback(service.stop)
        await service.start()
        stack.enter_context(temporary_settings({PREFECT_API_URL: api}))
        await blocks.StorageService(url=service.url).save(SERVICE_BLOCK)
        await blocks.RecordSink(url=f"sqlite:///{sink}").save(SINK_BLOCK)
        await _register_logos(api, service.url)
        deployment_id = await stack.enter_async_context(_served(api))
        yield Stage(api.removesuffix("/api"), feed, feed_url, service, sink, deployment_id)


async def _register_logos(api: str, service: str) -> None:
    """Register the blocks as the guide says, where the service shows their logo."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "prefect", "block", "register", "-m", "ladon_storage.blocks",
        env=environment(FOLDER, PREFECT_API_URL=api, STORAGE_SERVICE_URL=service),
        cwd=PROJECT, stdin=DEVNULL, stdout=DEVNULL,
    )  # fmt: skip
    assert await process.wait() == 0


@contextlib.asynccontextmanager
async def _served(api: str) -> AsyncIterator[str]:
    """Serve the deployment, as ``make up`` does, and give its id."""
    table, log = FOLDER / "deployments.yaml", FOLDER / "serve.log"
    table.write_text(_TABLE, encoding="utf-8")
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ladon_storage.cli", "deploy", "--serve", "--table", str(table),
            cwd=PROJECT, stdin=DEVNULL, stdout=output, stderr=STDOUT, start_new_session=True,
            env=environment(
                FOLDER,
                PREFECT_API_URL=api,
                PREFECT_LOGGING_LEVEL="INFO",  # as people have it: what a run logs is on its page
                PREFECT_RUNNER_POLL_FREQUENCY="1",
            ),
        )  # fmt: skip
    try:
        async with get_client() as client, asyncio.timeout(120):
            while True:
                if process.returncode is not None:
                    raise RuntimeError(f"The deployment is not served; read {log}.")
                with contextlib.suppress(ObjectNotFound):
                    found = await client.read_deployment_by_name(DEPLOYMENT)
                    break
                await asyncio.sleep(0.2)
        yield str(found.id)
    finally:
        await ended(process)
