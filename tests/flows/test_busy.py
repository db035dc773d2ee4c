"""Flow runs whose source another run holds: skipped ones are completed, and say so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.artifacts import Artifact

from ladon_storage.collection.protocols import Limits
from ladon_storage.collection.run import Report
from ladon_storage.collection.standby import Holder, Standby
from ladon_storage.connect import new_client
from ladon_storage.errors import SourceBusyError
from ladon_storage.flows import fleet
from ladon_storage.flows.collect import collect
from ladon_storage.flows.collect_many import collect_many
from ladon_storage.models import WatermarkStatus, WatermarkUpdate
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.flaky import Flaky
from tests.flows.test_artifacts import events_of
from tests.tables import table

CATALOGUE = Answer.of(
    {"count": 1, "vulnerabilities": [{"cveID": "CVE-2024-0001", "dateAdded": "2024-01-01"}]}
)


async def hold(
    storage: StorageSettings, source_id: str, seconds: float, run_id: str = "other"
) -> None:
    """Let another run hold a source."""
    update = WatermarkUpdate.of(
        datetime.now(UTC),
        WatermarkStatus.RUNNING,
        run_id=run_id,
        lease=timedelta(seconds=seconds),
    )
    async with new_client(storage) as client:
        await client.put_watermark(source_id, update)
        # A client sends the run's id once an answer has shown that the service keeps it.
        await client.put_watermark(source_id, update)


@pytest.mark.slow
async def test_skipped_run_is_completed_and_says_so(
    storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """The state's message, the page and the event name the holder, and nothing is written."""
    sink = {"url": f"sqlite:///{tmp_path}/records.db"}
    await hold(storage, "held", 60)
    service.calls.clear()
    async with FeedServer() as feed:
        source = {"kind": "kev", "url": feed.url, "source_id": "held"}
        state: Any = await collect(source, sink, storage, when_busy="skip", return_state=True)
        assert not feed.requests
    assert state.is_completed()
    assert state.message == "skipped: run 'other' is collecting the source"
    assert service.calls == ["HEALTH", "GET"]
    assert not (tmp_path / "records.db").exists()
    page = await Artifact.aget("collection-held")
    assert page
    assert str(page.data).startswith("# held: skipped\n\n> `run 'other' is collecting the source`")
    assert "| skipped | 0 | 0 |" in str(page.data)
    (event,) = await events_of("held", 1)
    assert event["event"] == "ladon.collection.skipped"
    assert event["payload"]["run_id"] == "other"


@pytest.mark.slow
async def test_waiting_run_asks_prefect_once(
    storage: StorageSettings, service: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run collects when the source is free; its looks in between are no task runs."""
    sink = {"url": f"sqlite:///{tmp_path}/records.db"}
    await hold(storage, "soon", 60)
    looks = 0

    async def wait(_: Standby, busy: SourceBusyError, _now: datetime) -> None:
        nonlocal looks
        looks += 1
        assert busy.run_id == "other"
        if looks == 3:
            ended = WatermarkUpdate.of(datetime.now(UTC), WatermarkStatus.SUCCESS, run_id="other")
            async with new_client(storage) as client:
                await client.put_watermark("soon", ended)

    monkeypatch.setattr(Standby, "wait", wait)
    async with FeedServer(CATALOGUE) as feed:
        source = {"kind": "kev", "url": feed.url, "source_id": "soon"}
        state: Any = await collect(source, sink, storage, when_busy="wait", return_state=True)
    assert state.is_completed()
    assert looks >= 3
    assert service.calls.count("GET") > looks
    assert len(table(tmp_path / "records.db")) == 1
    async with get_client() as client:
        runs = await client.read_task_runs()
    mine = [each for each in runs if each.flow_run_id == state.state_details.flow_run_id]
    assert sum(each.name.startswith("Read watermark") for each in mine) <= 1


def test_skipped_source_of_many_is_a_row_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its event has the holder; what was collected does not count it."""
    emitted: list[tuple[str, str, Any]] = []
    monkeypatch.setattr(fleet, "emit_of_source", lambda *given: emitted.append(given))
    tally, each = fleet.Tally(), fleet.Collected(0, {"source_id": "taken"}, Limits(), "skip")
    report = Report(
        source_id="taken", run_id="mine", backfill=False, watermark_before=None,
        watermark_after=None, seconds=0.1, skipped=Holder(run_id="other"),
    )  # fmt: skip
    tally.completed(each, report)
    assert tally.sums == {"ended": 1, "skipped": 1}
    assert (tally.failures, [row.cells["ended"] for row in tally.rows]) == ({}, ["skipped"])
    [(event, name, holder)] = emitted
    assert (event, name) == ("ladon.collection.skipped", "taken")
    assert holder["run_id"] == "other"


@pytest.mark.slow
async def test_skipped_sources_of_many_are_counted(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """One of many that is held is a row of the table and a number of the report, and no failure."""
    await hold(storage, "taken", 60)
    async with FeedServer(CATALOGUE) as feed:
        sources = [
            {"kind": "kev", "url": feed.url, "source_id": name} for name in ("taken", "free")
        ]
        state: Any = await collect_many(
            sources,
            sink={"url": f"sqlite:///{tmp_path}/records.db"},
            storage=storage,
            when_busy="skip",
            return_state=True,
        )
    assert state.message.startswith("2 sources, 1 of them skipped: 1 new")
    report = await state.result()
    assert (report.sources, report.skipped, report.failed) == (2, 1, 0)
    (event,) = await events_of("taken", 1)
    assert event["event"] == "ladon.collection.skipped"
