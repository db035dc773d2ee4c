"""Schedules that really run, served and by a work pool's worker, and a run that vanishes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from itertools import pairwise
from typing import Any

import pytest

from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.up.place import Place
from tests.up.prefect_api import CATALOGUE, STEP_SECONDS

SERVE = ("ladon_storage.cli", "deploy", "--serve", "--table")
COLLECT = ("ladon_storage.cli", "collect", "--prefect", "--json")

pytestmark = pytest.mark.asyncio(loop_scope="session")


def check_runs(runs: list[dict[str, Any]]) -> None:
    """Each was made by the schedule and completed, and none began before another's end."""
    for run in runs:
        assert run["auto_scheduled"]
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
    for earlier, later in pairwise(runs):
        assert earlier["end_time"] <= later["start_time"]


async def test_served_schedule_runs_one_at_a_time(place: Place) -> None:
    """Serving runs what is due, again and again, and never two at once."""
    async with FeedServer(play=lambda _asked: Answer.of(CATALOGUE)) as feed:
        table = place.table("served", feed.url)
        async with place.running(*SERVE, str(table)) as process:
            assert process.stdout
            await asyncio.wait_for(process.stdout.readuntil(b"Serving."), STEP_SECONDS)
            check_runs(await place.api.runs("collect-kev/served", 3))
            # What was paused by hand is not switched on by the next start.
            found = await place.api.ask("GET", "deployments/name/collect-kev/served")
            await place.api.ask("POST", f"deployments/{found['id']}/pause_deployment")
        async with place.running(*SERVE, str(table)) as process:
            assert process.stdout
            await asyncio.wait_for(process.stdout.readuntil(b"Serving."), STEP_SECONDS)
            found = await place.api.ask("GET", "deployments/name/collect-kev/served")
            assert found["paused"]
            late = await place.api.ask(
                "POST",
                "flow_runs/filter",
                flow_runs={
                    "deployment_id": {"any_": [found["id"]]},
                    "state": {"type": {"any_": ["SCHEDULED"]}},
                },
            )
            assert late == [], "what was missed is not made up for"


async def test_worker_of_a_pool_runs_the_schedule(place: Place) -> None:
    """`prefect deploy --all` and a worker run the same table through a work pool."""
    async with FeedServer(play=lambda _asked: Answer.of(CATALOGUE)) as feed:
        table = place.table("worked", feed.url)
        await place.done("prefect", "work-pool", "create", "scheduled", "--type", "process")
        await place.done("prefect", "--no-prompt", "deploy", "--prefect-file", str(table), "--all")
        async with place.running("prefect", "worker", "start", "--pool", "scheduled"):
            check_runs(await place.api.runs("collect-kev/worked", 2))


async def test_killed_run_is_crashed_and_a_live_one_is_not(place: Place) -> None:
    """What serves deployments crashes a run that was killed elsewhere, and no completed one."""
    sink = f"sqlite:///{place.folder}/records.db"
    hanging = Answer(body=b'{"count": 2', stall_at=5)
    async with FeedServer(Answer.of(CATALOGUE), hanging) as feed:
        table = place.table("idle", feed.url, schedules=[])
        source = {"kind": "kev", "url": feed.url, "source_id": "vanishing"}
        completed = json.loads(await place.done(*COLLECT, json.dumps(source), "--sink", sink))
        feed.asked.clear()
        async with place.running(*COLLECT, json.dumps(source), "--sink", sink) as process:
            await asyncio.wait_for(feed.asked.wait(), STEP_SECONDS)
            found = await place.api.ask(
                "POST", "flow_runs/filter", flows={"name": {"any_": ["collect"]}}, limit=10
            )
            os.killpg(process.pid, signal.SIGKILL)
        states = {run["id"]: run["state_type"] for run in found}
        (killed,) = [run_id for run_id, state in states.items() if state == "RUNNING"]
        (other,) = [run_id for run_id in states if run_id != killed]
        assert completed[0]["records_written"] == 2
        async with place.running(*SERVE, str(table)):
            crashed = await place.api.run(killed)
    assert crashed["state_type"] == "CRASHED"
    assert "no heartbeat for 90 s" in crashed["state"]["message"]
    assert (await place.api.run(other))["state_type"] == "COMPLETED"
