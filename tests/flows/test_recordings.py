"""The flow on recordings of real feeds, served over loopback HTTP one after another.

A real Storage Service keeps the watermarks, and is out of order during some of the runs.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ladon_storage.collection.run import Report
from ladon_storage.connect import new_client
from ladon_storage.errors import SourceError, StorageError
from ladon_storage.flows.collect import collect
from ladon_storage.models import Watermark
from ladon_storage.settings import StorageSettings
from ladon_storage.sources import Kev, ThreatFox
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.flaky import Flaky
from tests.recordings import members
from tests.tables import table

pytestmark = [pytest.mark.recordings, pytest.mark.slow]

OUTAGES = [("HEALTH", ""), ("GET", ""), ("PUT", '"running"'), ("PUT", '"success"')]
"""What the service fails at, in turn: the method, and what stands in the body."""


def versions(body: bytes) -> Iterator[tuple[str, str]]:
    """Yield each id of an export with its content, by a way of its own."""
    for record_id, entry in json.loads(body).items():
        yield record_id, json.dumps(entry[0], ensure_ascii=False, separators=(",", ":"))


async def test_forty_threatfox_polls_lose_nothing_and_repeat_nothing(
    tmp_path: Path, storage: StorageSettings, service: Flaky
) -> None:
    """Every version of 40 polls is in the sink once, also of those that met an outage."""
    path, reports, failed = tmp_path / "records.db", list[Report](), 0
    published: set[tuple[str, str]] = set()
    sink = {"url": f"sqlite:///{path}", "keep": "all"}
    async with FeedServer() as feed:
        source = ThreatFox(url=feed.url)
        for number, (_, body) in enumerate(members("threatfox/polls_001_040.tar.xz")):
            published.update(versions(body))
            if number % 5 == 4:
                method, within = OUTAGES[number // 5 % len(OUTAGES)]
                feed.script.append(Answer(body))
                service.fail(500, method, body=within)
                with pytest.raises(StorageError):
                    await collect(source, sink, storage)
                failed += 1
                service.heal()
                feed.script.clear()
            feed.script.append(Answer(body))
            reports.append(await collect(source, sink, storage))

    stored = table(path, "record_id, payload")
    assert (len(reports), failed) == (40, 8)
    assert (len({row[0] for row in stored}), len(stored)) == (11_116, 128_425)
    assert set(stored) == published
    for before, after in itertools.pairwise(reports):
        assert before.watermark_after == after.watermark_before
        assert before.watermark_after
        assert after.watermark_after
        assert after.watermark_after >= before.watermark_after
        # Or later, from where the sink is: the run before could not write its success.
        assert after.start
        assert after.start >= before.watermark_after - timedelta(hours=24)


async def watermark(storage: StorageSettings) -> Watermark:
    async with new_client(storage) as client:
        stored = await client.get_watermark("kev")
    assert stored
    return stored


async def test_forty_catalogues_leave_each_version_and_the_truncated_one_fails(
    tmp_path: Path, storage: StorageSettings
) -> None:
    """Number 024, cut off as it was published, fails its run; watermark and sink stay."""
    path, failed = tmp_path / "records.db", list[str]()
    sink = {"url": f"sqlite:///{path}", "keep": "all"}
    async with FeedServer() as feed:
        source = Kev(url=feed.url)
        for name, body in members("kev/snapshots_001_040.tar.xz"):
            feed.script.append(Answer(body))
            if not name.startswith("024"):
                await collect(source, sink, storage)
                continue
            before, rows = await watermark(storage), table(path, "record_id, version")
            with pytest.raises(SourceError) as caught:
                await collect(source, sink, storage)
            after = await watermark(storage)
            assert after.last_successful_timestamp == before.last_successful_timestamp
            assert after.error_message == f"SourceError: {caught.value}"
            assert after.status == "failed"
            assert table(path, "record_id, version") == rows
            failed.append(name)

    stored = table(path, "record_id, payload")
    assert len(failed) == 1
    assert len(feed.requests) == 40
    assert (len({row[0] for row in stored}), len(stored)) == (1_315, 1_365)
    last = await watermark(storage)
    assert last.status == "success"
    assert last.last_successful_timestamp == datetime(2025, 4, 7, tzinfo=UTC)
