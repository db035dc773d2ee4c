"""What recorded polls say about an overlap: how late news was, and which overlap is right."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from ladon_storage.collection.records import Page
from ladon_storage.collection.run import Report, run
from ladon_storage.sources.threatfox import _INDICATORS
from ladon_storage.testing.doubles import RememberingSink, ScriptedStorage
from tests.recordings import members


class Polls:
    """The recorded exports of ThreatFox, one for each run."""

    source_id = "feed"

    def __init__(self, overlap: timedelta) -> None:
        self.overlap = overlap
        self.body = b""

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        yield Page(list(_INDICATORS.read_keyed(json.loads(self.body))))  # type: ignore[arg-type]


async def collected(overlap: timedelta, polls: int) -> Report:
    source, sink, clock = Polls(overlap), RememberingSink(), [datetime.min.replace(tzinfo=UTC)]

    def now() -> datetime:
        return clock[0]

    storage = ScriptedStorage(now=now)
    for number, (name, source.body) in enumerate(members("threatfox/polls_001_040.tar.xz")):
        polled = re.search(r"_(\d{8}T\d{6})Z_", name)
        assert polled
        clock[0] = datetime.strptime(polled[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
        report = await run(source, sink, storage, run_id=f"run-{number}", clock=now)
        if number + 1 == polls:
            break
    return report


@pytest.mark.slow
@pytest.mark.recordings
@pytest.mark.parametrize(("hours", "is_narrow"), [(6, True), (24, False)])
async def test_overlap_of_threatfox_is_judged_by_its_polls(
    hours: int, is_narrow: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Six hours lose versions that appear later than that; twenty-four are wide enough."""
    report = await collected(timedelta(hours=hours), polls=20)
    assert ("is narrow" in caplog.text) == is_narrow
    assert report.lateness.count > 0
    assert report.lateness.worst is not None
    assert report.lateness.worst >= (report.lateness.quantile(0.99) or timedelta())
