"""The engine on recordings of real feeds, served over loopback HTTP one after another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ladon_storage.collection.engine import Report, run
from ladon_storage.collection.sinks import sink_from
from ladon_storage.collection.sources import Kev, ThreatFox
from ladon_storage.errors import SourceError
from tests.clock import FakeClock
from tests.collecting import ScriptedStorage, table
from tests.feed_server import Answer, FeedServer
from tests.recordings import members

pytestmark = pytest.mark.recordings

_STAMP = re.compile(r"_(\d{8}T\d{6})Z_")


def polled_at(name: str) -> datetime:
    """Return when a ThreatFox poll was made, as its name says."""
    stamp = _STAMP.search(name)
    assert stamp, name
    return datetime.strptime(stamp[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)


def versions(body: bytes) -> Iterator[tuple[str, str]]:
    """Yield each id of an export with its content, by a way of its own."""
    for record_id, entry in json.loads(body).items():
        yield record_id, json.dumps(entry[0], ensure_ascii=False, separators=(",", ":"))


async def test_forty_threatfox_polls_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """With its default settings the source brings every version of 40 polls into the sink once."""
    path, storage, reports = tmp_path / "records.db", ScriptedStorage(), list[Report]()
    published: set[tuple[str, str]] = set()
    sink = {"url": f"sqlite:///{path}", "keep": "all"}
    async with FeedServer() as feed:
        source = ThreatFox(url=feed.url)
        for name, body in members("threatfox/polls_001_040.tar.xz"):
            feed.script.append(Answer(body))
            published.update(versions(body))
            clock = FakeClock(polled_at(name))
            reports.append(
                await run(source, sink_from(sink), storage, run_id=name, clock=clock.now)
            )

    stored = table(path, "record_id, payload")
    assert len(reports) == 40
    assert (len({row[0] for row in stored}), len(stored)) == (11_116, 128_425)
    assert set(stored) == published
    assert sum(report.records_written for report in reports) == 128_425
    watermarks = [report.watermark_after for report in reports if report.watermark_after]
    assert watermarks == sorted(watermarks)
    assert len(watermarks) == 40
    assert all(
        report.start == report.watermark_before - timedelta(hours=24)
        for report in reports
        if report.watermark_before
    )


async def test_forty_catalogues_leave_each_version_and_the_truncated_one_fails(
    tmp_path: Path,
) -> None:
    """Number 024, cut off as it was published, fails its run; watermark and sink stay."""
    path, storage = tmp_path / "records.db", ScriptedStorage()
    sink = {"url": f"sqlite:///{path}", "keep": "all"}
    failed: list[str] = []
    async with FeedServer() as feed:
        source = Kev(url=feed.url)
        for name, body in members("kev/snapshots_001_040.tar.xz"):
            feed.script.append(Answer(body))
            if name.startswith("024"):
                before, rows = storage.stored["kev"], table(path, "record_id, version")
                with pytest.raises(SourceError) as caught:
                    await run(source, sink_from(sink), storage, run_id=name)
                after = storage.stored["kev"]
                assert after.last_successful_timestamp == before.last_successful_timestamp
                assert after.error_message == f"SourceError: {caught.value}"
                assert after.status == "failed"
                assert table(path, "record_id, version") == rows
                failed.append(name)
            else:
                await run(source, sink_from(sink), storage, run_id=name)

    stored = table(path, "record_id, payload")
    assert len(failed) == 1
    assert len(feed.requests) == 40
    assert (len({row[0] for row in stored}), len(stored)) == (1_315, 1_365)
    assert storage.stored["kev"].status == "success"
    assert storage.stored["kev"].last_successful_timestamp == datetime(2025, 4, 7, tzinfo=UTC)
