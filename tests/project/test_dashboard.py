"""The dashboard and the alerts, in a real Prometheus that scrapes a real service and its runs."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.sax.saxutils import unescape

import pytest

from ladon_storage import StorageError, StorageServiceClient
from ladon_storage.client.metrics import count_missed
from ladon_storage.client.pushing import PUSHGATEWAY_VARIABLE, push_metrics
from ladon_storage.server.overview import State
from ladon_storage.server.serving import serving
from tests.project.prometheus import (
    GATEWAY,
    MONITORING,
    PROMETHEUS,
    Prometheus,
    prometheus,
    pushgateway,
)
from tests.service import calling, path, success

PICTURE = MONITORING.parent / "docs" / "images" / "dashboard.svg"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}

needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None or GATEWAY is None, reason="Prometheus and its gateway are Debian's"
)


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    """Return each query with the title of its panel."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target


def test_dashboard_can_be_imported() -> None:
    """It has its own id, panels that do not hide each other, and no data source of one site."""
    assert DASHBOARD["uid"] == "ladon-storage"
    assert "id" not in DASHBOARD
    panels = DASHBOARD["panels"]
    for name in ("id", "title"):
        assert len({panel[name] for panel in panels}) == len(panels)
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["source"]["datasource"] == DATA_SOURCE
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & covered, panel["title"]
        assert place["x"] + place["w"] <= 24
        covered |= cells
        assert panel["datasource"] == DATA_SOURCE
        assert len({each["refId"] for each in panel["targets"]}) == len(panel["targets"])
    assert all(target["datasource"] == DATA_SOURCE for _, target in targets())


def test_picture_in_the_documents_has_the_present_panels() -> None:
    """A panel that is added, renamed or moved is drawn again before it is released."""
    drawn = PICTURE.read_text(encoding="utf-8")
    titles = re.findall('font-weight="bold"[^>]*>([^<]+)<', drawn)
    assert [unescape(title) for title in titles] == [each["title"] for each in DASHBOARD["panels"]]


@asynccontextmanager
async def everything_wrong(folder: Path) -> AsyncIterator[Prometheus]:
    """Run the service with a source in each state, and what watches it and its runs."""
    now = datetime.now(UTC)
    running = {"timestamp": now.isoformat(), "status": "running"}
    failed = {"timestamp": now.isoformat(), "status": "failed", "error_message": "no answer"}
    ledger = {
        "records_delivered": 20, "records_quarantined": 3, "gap": {"start": "2025-01-01"},
        "lateness_p99_seconds": 90.5, "overlap_seconds": 3600.0,
    }  # fmt: skip
    limits = {name: timedelta(hours=1) for name in ("ok", "stale", "failing")}
    async with (
        serving(folder / "w.db", limits=limits) as address,
        calling(address) as call,
        pushgateway(folder) as gateway,
    ):

        async def write(source_id: str, *bodies: dict[str, object]) -> None:
            for body in bodies:
                assert (await call("PUT", path(source_id), body)).status in (200, 201)

        await write("ok", {**running, "run_id": "1"})
        await write("ok", success(now.isoformat(), run_id="1", ledger=ledger, records_collected=17))
        await write("stale", success((now - timedelta(hours=2)).isoformat()))
        await write("ahead", success((now + timedelta(hours=2)).isoformat()))
        await write("nothing", success("0001-01-01T00:00:00Z"))
        await write("held", {**running, "lease_seconds": 0.001})
        await write("running", success(now.isoformat()))
        await write("running", {**running, "run_id": "1", "lease_seconds": 3600})
        await write("failing", success(now.isoformat()))
        for run_id in ("1", "2", "3"):
            await write("failing", {**running, "run_id": run_id}, {**failed, "run_id": run_id})
        await write_metrics_of_a_run(address, gateway)
        async with prometheus(folder, address.removeprefix("http://"), gateway) as watching:
            yield watching


async def write_metrics_of_a_run(address: str, gateway: str, source_id: str = "ok") -> None:
    """Push what a run leaves behind that had a request refused and found records missed."""
    async with StorageServiceClient(address) as client:
        await client.get_watermark(source_id)
        with pytest.raises(StorageError):
            await client.update_watermark(source_id, datetime(2024, 1, 1, tzinfo=UTC))
        count_missed(source_id, 2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(PUSHGATEWAY_VARIABLE, f"http://{gateway}")
            assert await push_metrics(source_id)


@needs_prometheus
@pytest.mark.slow
async def test_every_query_of_the_dashboard_yields_series(tmp_path: Path) -> None:
    """No panel stays empty while its fault is there, and none has a query that is wrong."""
    async with everything_wrong(tmp_path) as watching:
        for title, target in targets():
            expression = target["expr"].replace("$source", ".*").replace("$__rate_interval", "20s")
            assert "$" not in expression, title
            series = await watching.series(expression)
            labels = set(series[0]["metric"])
            named = {each.partition("}}")[0] for each in target["legendFormat"].split("{{")[1:]}
            assert named <= labels, title
        states = await watching.series("storage_service_sources == 1")
        assert {each["metric"]["state"] for each in states} >= {
            State.FUTURE, State.HELD, State.FAILED, State.STALE, State.NEVER, State.RUNNING
        }  # fmt: skip


@needs_prometheus
@pytest.mark.slow
@pytest.mark.parametrize(
    ("alert", "source_id"),
    [
        ("StorageSourceFailing", "failing"),
        ("StorageServiceRunStale", "held"),
    ],
)
async def test_alert_sees_the_fault_in_the_service(
    tmp_path: Path, alert: str, source_id: str
) -> None:
    """From the service's own numbers, Prometheus raises the alert of a source that needs it."""
    async with everything_wrong(tmp_path) as watching:
        raised = await watching.alert(alert)
        assert raised["labels"]["source_id"] == source_id
        assert raised["state"] in ("pending", "firing")
        assert source_id in raised["annotations"]["summary"]
