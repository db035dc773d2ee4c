"""What people see of a run in Prefect: progress, a page per source, and events."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.artifacts import Artifact, aupdate_progress_artifact
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.exceptions import EventTooLarge
from prometheus_client import REGISTRY

from ladon_storage import events as emitting
from ladon_storage.collection.ledger import ExtractionResult
from ladon_storage.collection.records import Page, Reject
from ladon_storage.collection.summaries import summary
from ladon_storage.errors import SourceError
from ladon_storage.flows import artifacts as reports
from ladon_storage.flows.backfill import backfill
from ladon_storage.flows.collect import collect
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.doubles import ScriptedSource, at, record


def sink(folder: Path) -> dict[str, str]:
    return {"url": f"sqlite:///{folder}/records.db"}


async def page_of(source_id: str) -> str:
    """Return the latest artifact of a source, as the UI shows it."""
    artifact = await Artifact.aget(reports.artifact_key(source_id))
    assert artifact
    assert isinstance(artifact.data, str)
    return artifact.data


async def events_of(source_id: str, count: int) -> list[dict[str, Any]]:
    """Return the events whose resource is a source, once Prefect has stored so many."""
    asked = {"filter": {"resource": {"id": [f"ladon.source.{source_id}"]}}}
    async with get_client() as client, asyncio.timeout(20):
        while True:
            answer = await client._client.post("/events/filter", json=asked)
            events: list[dict[str, Any]] = answer.json()["events"]
            if len(events) >= count:
                return events
            await asyncio.sleep(0.05)


async def test_completed_run_writes_the_page_of_its_source(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """Counts, watermark before and after, lag and quarantine; one key makes the history."""
    pages: list[Any] = [[record("1", 1), record("2", 2)], Page([], [Reject("no id", "{}")])]
    source = ScriptedSource(pages, [[record("3", 3)]], source_id="paged")
    await collect(source, sink(tmp_path), storage)
    first = await page_of("paged")
    await collect(source, sink(tmp_path), storage)
    second = await page_of("paged")

    assert "# paged: completed" in first
    for fact in (
        "| records read | 2 on 2 pages |",
        "| new or changed | 2 |",
        "| quarantined | 1 |",
        "| watermark before | never collected |",
        "| watermark after | 2024-01-01 00:02:00 UTC |",
    ):
        assert fact in first
    assert "| watermark before | 2024-01-01 00:02:00 UTC |" in second
    assert "| watermark after | 2024-01-01 00:03:00 UTC |" in second
    assert "| records read | 1 on 1 page |" in second
    assert "`█▅`" in second
    async with get_client() as client:
        key = ArtifactFilterKey(any_=[reports.artifact_key("paged")])
        assert len(await client.read_artifacts(artifact_filter=ArtifactFilter(key=key))) == 2


async def test_ledger_stands_on_the_page_and_in_the_state(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """What was delivered adds up, and why some is quarantined is said, in one line as well."""
    rejects = [Reject("at: missing", "{}"), Reject("at: missing", "{1}")]
    page = Page([record("1", 1), record("2", 2)], rejects, completeness="total", total=4)
    source = ScriptedSource([page], source_id="ledger", overlap=timedelta(hours=6))
    state = await collect(source, sink(tmp_path), storage, return_state=True)
    report = await state.result()
    told = summary(report)
    assert state.message == told
    assert told.endswith("0 known; 2 quarantined: 'at: missing' (2)")
    page_text = await page_of("ledger")
    for fact in (
        "| asked for | all that the source has |",
        f"| delivered | 4 = {report.records_new} new + {report.records_changed} changed + 0 known "
        "+ 2 quarantined + 0 skipped |",
        "| how the end was known | as many came as the source states; the source states 4 |",
        "| quarantined | 2 |",
        "| quarantined because | `at: missing` (2) |",
        "| gap | none is known |",
        "| overlap | 6 h |",
    ):
        assert fact in page_text
    value = REGISTRY.get_sample_value(
        "ladon_collection_quarantined_total", {"source_id": "ledger", "reason": "at: missing"}
    )
    assert value == 2


@pytest.mark.slow
async def test_run_without_records_is_never_collected(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """A first run that stores nothing shows no year 1: on its page, in its report, in its state."""
    source = ScriptedSource([], [], source_id="nothing")
    for _ in range(2):
        state = await collect(source, sink(tmp_path), storage, return_state=True)
        report = await state.result()
        assert (report.watermark_before, report.watermark_after) == (None, None)
        text = f"{await page_of('nothing')} {state.message} {report.model_dump_json()}"
        assert "| watermark after | never collected |" in text
        assert "0001-" not in text


@pytest.mark.slow
async def test_text_of_a_feed_does_nothing_on_the_page(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """An error or a reason with Markdown and HTML in it is shown as it is, and on one line."""
    hostile = "![x](http://tracker.example/x.png) `` <img src=x> | a\n# heading\x1b[31m"
    failing = SourceError(hostile, "hostile")
    source = ScriptedSource(
        [Page([record("1", 1)], [Reject(hostile, "{}")])], [failing], source_id="hostile"
    )
    await collect(source, sink(tmp_path), storage)
    for _ in range(2):
        page = await page_of("hostile")
        (line,) = [each for each in page.splitlines() if "tracker.example" in each]
        shown = line[line.index("`") + 1 : line.rindex("`")]
        assert "tracker.example" in shown
        assert "`" not in shown
        assert "\x1b" not in page
        assert "\n# heading" not in page
        if source.runs:
            with pytest.raises(SourceError):
                await collect(source, sink(tmp_path), storage)


async def test_slow_prefect_holds_no_page_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress that Prefect does not take in time is dropped, and the next page does not wait."""
    reporter, held = reports.RunReporter("held"), asyncio.Event()

    async def show(_share: float) -> None:
        await held.wait()

    monkeypatch.setattr(reporter, "_show", show)
    monkeypatch.setattr(reports, "PREFECT_SECONDS", 0.05)
    async with asyncio.timeout(5):
        for number in range(3):
            await reporter.progress(ExtractionResult(pages=number))
        await reporter._shown_so_far()


@pytest.mark.slow
async def test_failed_run_says_why_and_what_is_durable(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """A failure is told as well, with what was stored before it."""
    failing = SourceError("Source 'fails-midway' answered 500 | twice.", "fails-midway")
    source = ScriptedSource([[record("1", 1)], failing], source_id="fails-midway")
    with pytest.raises(SourceError):
        await collect(source, sink(tmp_path), storage)
    page = await page_of("fails-midway")
    assert "# fails-midway: failed" in page
    assert "> `SourceError: Source 'fails-midway' answered 500 / twice.`" in page
    assert "| new or changed | 1 |" in page
    assert "`✗`" in page
    (event,) = await events_of("fails-midway", 1)
    assert event["event"] == "ladon.collection.failed"
    assert event["payload"]["records_written"] == 1
    assert "answered 500" in event["payload"]["error"]


@pytest.mark.slow
async def test_completed_run_and_its_gap_are_events(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """An automation can act on either; the source is the resource."""
    source = ScriptedSource([[record("1", 1)]], [[record("2", 2)]], source_id="gapped")
    await collect(source, sink(tmp_path), storage)
    source.retention = timedelta(days=30)  # type: ignore[attr-defined]
    await collect(source, sink(tmp_path), storage)
    assert sorted(each["event"] for each in await events_of("gapped", 3)) == [
        "ladon.collection.completed",
        "ladon.collection.completed",
        "ladon.collection.gap",
    ]
    assert "**gap** | lost: 2024-01-01 00:01:00 UTC" in await page_of("gapped")


async def test_backfill_shows_its_range(storage: StorageSettings, tmp_path: Path) -> None:
    """It has no watermark to show."""
    source = ScriptedSource([[record("1", 1)]], source_id="past")
    await collect(source, sink(tmp_path), storage, since=at(0), until=at(2))
    page = await page_of("past")
    assert "| backfill | 2024-01-01 00:00:00 UTC to 2024-01-01 00:02:00 UTC |" in page
    assert "watermark" not in page


async def test_range_is_an_event_of_collect_and_none_of_backfill(
    storage: StorageSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range of `collect` marks its event as a backfill; an automation can leave it out."""
    emitted: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        emitting, "emit_event", lambda event, *, payload, **_: emitted.append((event, payload))
    )
    await collect(
        ScriptedSource([[record("1", 1)]], source_id="ranged"),
        sink(tmp_path), storage, since=at(0), until=at(2),
    )  # fmt: skip
    [(event, report)] = emitted
    assert (event, report["backfill"]) == ("ladon.collection.completed", True)
    assert report["watermark_before"] is report["watermark_after"] is None
    source = ScriptedSource([[record("1", 1)]], source_id="windows")
    await backfill(source, at(0), at(2), sink(tmp_path), storage)
    assert len(emitted) == 1


async def test_event_that_cannot_be_emitted_fails_no_run(
    storage: StorageSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Everything is stored by then, and Prefect raises for an event that is too large."""

    def refuse(*_: object, **__: object) -> None:
        raise EventTooLarge(2, 1)

    monkeypatch.setattr(emitting, "emit_event", refuse)
    source = ScriptedSource([[record("1", 1)]], source_id="untold")
    report = await collect(source, sink(tmp_path), storage)
    assert report.records_written == 1
    assert "could not emit the event ladon.collection.completed" in caplog.text


@pytest.mark.slow
async def test_progress_is_shown_while_the_run_goes_on(
    storage: StorageSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A progress artifact of the run is updated, and ends at 100 percent."""
    shown: list[float] = []

    async def note(artifact_id: UUID, share: float, **options: Any) -> Any:
        shown.append(share)
        return await aupdate_progress_artifact(artifact_id, share, **options)

    monkeypatch.setattr(reports, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(reports, "aupdate_progress_artifact", note)
    runs: list[Any] = [[[record("1", 1)]], [[record("2", 2)], [record("3", 3)]]]
    source = ScriptedSource(*runs, source_id="slow")
    await collect(source, sink(tmp_path), storage)
    report = await collect(source, sink(tmp_path), storage)
    run = ArtifactFilterFlowRunId(any_=[UUID(report.run_id)])
    async with get_client() as client:
        found = await client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=run))
    (progress,) = [each for each in found if each.type == "progress"]
    assert progress.data == 100
    assert progress.description == "slow: page 2, 2 records read, 2 new or changed"
    assert shown[-1] == 100
    assert all(0 <= share <= 100 for share in shown)


async def test_pages_that_come_fast_are_not_all_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect hears of progress at most every two seconds."""
    seconds, shown = [100.0], list[int]()
    reporter = reports.RunReporter("fast", seconds=lambda: seconds[0])

    async def show(_share: float) -> None:
        shown.append(reporter.so_far.pages)

    monkeypatch.setattr(reporter, "_show", show)
    for number in range(1, 60):
        await reporter.progress(ExtractionResult(pages=number))
        await asyncio.sleep(0)
        seconds[0] += 0.125
    assert shown == [1, 17, 33, 49]


async def test_prefect_that_is_away_fails_no_run(
    storage: StorageSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A report that cannot be shown is a warning; the records are durable, and the run is well."""

    async def away(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no API")

    for name in ("acreate_progress_artifact", "acreate_markdown_artifact"):
        monkeypatch.setattr(reports, name, away)
    source = ScriptedSource([[record("1", 1)]], source_id="unseen")
    report = await collect(source, sink(tmp_path), storage)
    assert report.records_written == 1
    assert "Prefect could not write the artifact: ConnectionError: no API" in caplog.text


def test_every_source_has_a_key_of_its_own() -> None:
    """What Prefect does not take in a key is replaced, and two sources never share a page."""
    names = ["kev", "KEV", "kev ", "k/ev", "ü", "", "a" * 300, "a" * 301, "-"]
    keys = [reports.artifact_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for key in keys)
    assert max(map(len, keys)) < 100
