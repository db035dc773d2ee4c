"""``ladon-storage up``: what a folder with a ladon.toml needs, and nothing of a checkout."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import aiohttp

from ladon_storage.testing.feed_server import FeedServer
from tests.cli.feeds import catalogue, project
from tests.tables import table
from tests.up.prefect_api import STEP_SECONDS, PrefectApi


async def read(address: str) -> str:
    """Return a page of the service."""
    async with aiohttp.ClientSession() as session, session.get(address) as answer:
        return await answer.text()


async def test_up_runs_what_the_file_says_and_ends_on_a_signal(tmp_path: Path) -> None:
    """A deployment of the file completes a run, and a signal ends every process with 0.

    The status page of its service knows the limits of the file, and leads to the run.
    """
    async with FeedServer(play=lambda asked: catalogue(1, 2)) as feed:
        (tmp_path / "ladon.toml").write_text(project(feed, "freshness.max_age_hours = 48\n"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ladon_storage.cli", "up",
            "--prefect-port", "0", "--storage-port", "0",
            cwd=tmp_path, env=dict(os.environ), stdout=PIPE, stderr=STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        printed = ""
        try:
            async with asyncio.timeout(STEP_SECONDS):
                while "Ctrl-C" not in printed:
                    line = (await process.stdout.readline()).decode()
                    assert line, printed
                    printed += line
            prefect = re.search(r"Prefect UI +(http://127\.0\.0\.1:\d+)\n", printed)
            assert prefect, printed
            api = PrefectApi(f"{prefect[1]}/api")
            run = await api.run(await api.trigger("collect-kev/kev"))
            assert run["state_type"] == "COMPLETED", run["state"]["message"]
            service = re.search(r"Storage Service +(http://127\.0\.0\.1:\d+)\n", printed)
            assert service, printed
            page = await read(f"{service[1]}/sources/kev")
            assert " of 2 d</dd>" in page  # its limit
            assert f'href="{prefect[1]}/runs/flow-run/{run["id"]}"' in page
            process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(process.wait(), STEP_SECONDS) == 0
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.communicate()
    assert len(table(tmp_path / "records.db")) == 2
    assert (tmp_path / "ladon.db").exists()
