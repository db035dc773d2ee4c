"""Many sources in one run, a past range in windows, and whether watermarks are fresh."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prefect import get_client
from prefect.artifacts import Artifact

from ladon_storage.collection.freshness import Freshness, StaleWatermarkError
from ladon_storage.collection.protocols import Limits
from ladon_storage.connect import new_client
from ladon_storage.errors import (
    CollectionError,
    ConfigurationError,
    SourceError,
    StorageUnhealthyError,
)
from ladon_storage.flows import backfill, check_freshness, collect_many, fleet
from ladon_storage.models import EMPTY_WATERMARK
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.doubles import MemorySink, ScriptedSource, ScriptedStorage, record
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.flaky import Flaky
from tests.flows.test_artifacts import events_of
from tests.flows.test_fan_out import read_by
from tests.tables import table

DAY = timedelta(days=1)


@asynccontextmanager
async def catalogues() -> AsyncIterator[str]:
    """Serve a catalogue of one entry under each path, and 404 under paths with ``missing``."""

    async def answer(request: web.Request) -> web.Response:
        if "missing" in request.path:
            return web.Response(status=404)
        entry = {"cveID": "CVE-1", "dateAdded": "2024-01-01"}
        return web.json_response({"count": 1, "vulnerabilities": [entry]})

    application = web.Application()
    application.router.add_get("/{name}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def sink(folder: Path) -> dict[str, str]:
    return {"url": f"sqlite:///{folder}/records.db"}


def kev(url: str, name: str) -> dict[str, str]:
    return {"kind": "kev", "url": f"{url}/{name}", "source_id": name}


async def rows_of(key: str) -> list[dict[str, Any]]:
    artifact = await Artifact.aget(key)
    assert artifact
    rows: list[dict[str, Any]] = json.loads(str(artifact.data))
    return rows


async def test_many_sources_are_collected_in_one_run(
    storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """Health is asked once, one connection per place is enough, and each has its watermark."""
    async with catalogues() as url:
        sources = [kev(url, f"many-{number}") for number in range(30)]
        report = await collect_many(sources, sink=sink(tmp_path), storage=storage, concurrency=5)
        again = await collect_many(sources, sink=sink(tmp_path), storage=storage)
    assert (report.sources, report.records_written) == (30, 30)
    assert (again.sources, again.records_written) == (30, 0)
    assert len(table(tmp_path / "records.db")) == 30
    assert service.calls.count("HEALTH") == 2
    async with new_client(storage) as client:
        watermark = await client.get_watermark("many-29")
    assert watermark
    assert watermark.last_successful_timestamp == datetime(2024, 1, 1, tzinfo=UTC)
    assert len(await rows_of("ladon-collect-many")) == 30


async def test_attempt_that_completes_returns_its_report(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """A retried run has the result of its last attempt, and not the error of the one before."""
    entry = {"cveID": "CVE-1", "dateAdded": "2024-01-01"}
    fine = Answer.of({"count": 1, "vulnerabilities": [entry]})
    async with FeedServer(Answer(status=403), fine) as feed:
        retried = collect_many.with_options(retries=1)
        source = {"kind": "kev", "url": feed.url}
        report = await retried([source], sink=sink(tmp_path), storage=storage)
    assert report.records_written == 1


async def test_source_that_ends_by_a_cancellation_from_within_has_failed(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """Each would end its worker silently, and after a few nobody would collect what is left."""
    kinds = 4 * ["Lost"] + ["Noted"]
    sources = [
        {
            "kind": f"tests.flows.noted_sources:{kind}",
            "source_id": f"s-{number}",
            "folder": str(tmp_path),
        }
        for number, kind in enumerate(kinds)
    ]
    with pytest.raises(CollectionError, match=r"4 of 5 sources failed: .*not requested"):
        await collect_many(sources, sink=sink(tmp_path), storage=storage, concurrency=2)
    assert len(read_by(tmp_path)) == len(sources)


async def test_source_that_fails_leaves_the_others_alone(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """The run fails and says which; the others are collected, and so is the table."""
    async with catalogues() as url:
        sources = [
            kev(url, "fine"),
            kev(url, "missing"),
            {"kind": "kve", "source_id": "misspelt"},
            kev(url, "also-fine"),
        ]
        with pytest.raises(CollectionError) as caught:
            await collect_many(sources, sink=sink(tmp_path), storage=storage)
    text = str(caught.value)
    assert text.startswith("2 of 4 sources failed: ")
    assert "missing (SourceError: Source 'missing' answered 404" in text
    assert "misspelt (ConfigurationError: A source cannot be made" in text
    assert len(table(tmp_path / "records.db")) == 2
    rows = await rows_of("ladon-collect-many")
    assert [row["ended"] for row in rows] == ["failed", "failed", "completed", "completed"]
    (event,) = await events_of("missing", 1)
    assert event["event"] == "ladon.collection.failed"


@pytest.mark.slow
@pytest.mark.parametrize("count", [49, 50])
async def test_objects_of_the_process_are_set_aside_at_once_for_many_sources(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A search of Prefect's costs more than many sources; for a few they stay as they are."""
    frozen: list[int] = []

    def made(fields: dict[str, Any]) -> ScriptedSource:
        frozen.append(gc.get_freeze_count())
        return ScriptedSource([[record("1", 10)]], source_id=fields["source_id"])

    monkeypatch.setattr(fleet, "source_from", made)
    sources = [
        fleet.Collected(number, {"source_id": f"source-{number}"}, Limits(), "fail")
        for number in range(count)
    ]
    tally = fleet.Tally()
    collector = fleet.Collector(MemorySink(), ScriptedStorage(), "run", "family", tally)
    await collector.collect(sources, 1)

    assert tally.counts.records_new == count
    assert [each > 0 for each in frozen] == [count == 50] * count
    assert gc.get_freeze_count() == 0


async def test_unhealthy_service_fails_before_any_source(
    storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """One health check stands for all."""
    service.fail(503, "HEALTH")
    with pytest.raises(StorageUnhealthyError):
        await collect_many([{"kind": "kev"}], sink=sink(tmp_path), storage=storage)
    assert set(service.calls) == {"HEALTH"}


async def test_table_is_capped_and_shows_failures_first(
    storage: StorageSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many sources there are, the table has a bounded number of rows."""
    module = sys.modules["ladon_storage.flows.collect_many"]
    monkeypatch.setattr(module, "TABLE_ROWS", 3)
    monkeypatch.setattr(module, "NAMED_FAILURES", 1)
    async with catalogues() as url:
        names = ["a", "missing-1", "b", "missing-2", "c", "d"]
        with pytest.raises(CollectionError, match=r"2 of 6 sources .*; and 1 more"):
            await collect_many(
                [kev(url, name) for name in names], sink=sink(tmp_path), storage=storage
            )
    rows = await rows_of("ladon-collect-many")
    assert [row["ended"] for row in rows] == ["failed", "failed", "completed"]


@pytest.mark.parametrize("name", ["sources.toml", "sources.json"])
async def test_sources_of_a_file_are_collected(
    storage: StorageSettings, tmp_path: Path, name: str
) -> None:
    """All that are configured in one file, TOML or JSON."""
    async with catalogues() as url:
        sources = [kev(url, "one"), kev(url, "two")]
        lines = [
            "\n".join(["[[sources]]", *(f"{key} = {json.dumps(each[key])}" for key in each)])
            for each in sources
        ]
        text = "\n".join(lines) if name.endswith("toml") else json.dumps({"sources": sources})
        (tmp_path / name).write_text(text)
        report = await collect_many(file=str(tmp_path / name), sink=sink(tmp_path), storage=storage)
    assert (report.sources, report.records_written) == (2, 2)


PROJECT = """
[storage]
url = "{storage}"
[sinks.records]
url = "sqlite:///records.db"
[sources.one]
kind = "kev"
url = "{feed}/x"
freshness.max_age_hours = 24
[sources.two]
kind = "kev"
url = "{feed}/x"
freshness.max_age_hours = 100000
[sources.own]
kind = "tests.own_classes:Tickets"
project = "p"
limits.initial_lookback = 3650
"""


async def test_project_is_collected_and_checked(
    storage: StorageSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `ladon.toml` is all that a run needs: sources, also of one's own, sink, limits, storage."""
    monkeypatch.delenv("STORAGE_SERVICE_URL", raising=False)
    file = tmp_path / "ladon.toml"
    async with catalogues() as url:
        file.write_text(PROJECT.format(storage=storage.url, feed=url))
        report = await collect_many(file=str(file))
    assert report.sources == 3
    async with new_client(storage) as client:
        for name in ("one", "two", "own"):
            stored = await client.get_watermark(name)
            assert stored
            assert stored.status == "success"
    assert (tmp_path / "records.db").exists()
    with pytest.raises(StaleWatermarkError, match="1 of 2 sources is stale: one"):
        await check_freshness(file=str(file))


async def test_project_of_several_sinks_needs_a_name(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """One run has one sink, and does not choose it; two sources of one name are refused as ever."""
    text = PROJECT.format(storage=storage.url, feed="http://127.0.0.1:9/")
    other = (
        text.replace('kind = "tests', 'sink = "other"\nkind = "tests')
        .replace(
            "[sources.one]",
            '[sinks.other]\nurl = "sqlite:///o.db"\n[sources.one]\nsink = "records"',
        )
        .replace("[sources.two]", '[sources.two]\nsink = "records"')
    )
    file = tmp_path / "ladon.toml"
    file.write_text(other)
    with pytest.raises(ConfigurationError, match="go to several sinks, other, records"):
        await collect_many(file=str(file))
    file.write_text(text + 'source_id = "one"\n')
    with pytest.raises(ConfigurationError, match="Several sources are called 'one'"):
        await collect_many(file=str(file))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "either sources or a file"),
        ({"sources": [{"kind": "kev"}], "file": "x"}, "either sources or a file"),
        ({"sources": [{"kind": "kev"}, {"kind": "kev"}]}, "Several sources are called 'kev'"),
        ({"sources": [{"kind": "kev"}], "concurrency": 0}, "concurrency should be 1 or more"),
        ({"file": "nowhere.toml"}, "cannot be read"),
        ({"file": "empty.toml"}, "has no list of sources"),
    ],
)
async def test_wrong_list_is_refused_at_once(
    storage: StorageSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    complaint: str,
) -> None:
    """One clear sentence, before anything is collected."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(ConfigurationError, match=complaint):
        await collect_many(sink=sink(tmp_path), storage=storage, **options)


@pytest.mark.slow
async def test_backfill_goes_window_by_window_and_resumes(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """After a failure the windows that were finished are not read again; the watermark stays."""
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    pages = [[record(str(number), begin + number * DAY)] for number in range(4)]
    source = ScriptedSource([pages[0]], [pages[1]], [SourceError("down")], source_id="archive")
    past: dict[str, Any] = {"since": begin, "until": begin + 4 * DAY}
    with pytest.raises(SourceError):
        await backfill(source, sink=sink(tmp_path), storage=storage, **past)
    source.runs.extend([[pages[2]], [pages[3]]])
    report = await backfill(source, sink=sink(tmp_path), storage=storage, **past)

    assert [start for start, _ in source.ranges] == [
        begin + number * DAY for number in (0, 1, 2, 2, 3)
    ]
    assert (report.windows, report.windows_done_before, report.records_written) == (4, 2, 2)
    assert len(table(tmp_path / "records.db")) == 4
    async with new_client(storage) as client:
        assert await client.get_watermark("archive") is None
    again = await backfill(source, sink=sink(tmp_path), storage=storage, **past)
    assert (again.windows_done_before, again.records_read) == (4, 0)


async def test_backfill_by_workers_asks_prefect_for_no_window(
    storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """Windows are read at once, progress is shown, and a first collection is handed over."""
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    runs: list[Any] = [[[record(str(number), begin + number * DAY)]] for number in range(8)]
    source = ScriptedSource(*runs, source_id="years")
    state: Any = await backfill(
        source,
        begin,
        begin + 8 * DAY,
        sink=sink(tmp_path),
        storage=storage,
        workers=4,
        first_collection=True,
        return_state=True,
    )
    report = await state.result()
    assert (report.windows, report.records_new) == (8, 8)
    assert service.calls.count("HEALTH") == 1
    async with get_client() as client:
        tasks = await client.read_task_runs()
    mine = [each for each in tasks if each.flow_run_id == state.state_details.flow_run_id]
    assert len(mine) <= 1
    async with new_client(storage) as client:
        stored = await client.get_watermark("years")
    assert stored
    assert (stored.status, stored.last_successful_timestamp) == ("success", begin + 7 * DAY)


@pytest.mark.slow
async def test_windows_of_another_length_read_what_is_left(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """A last window is shorter, and a repeated backfill begins inside of one."""
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    source = ScriptedSource([], [SourceError("down")], source_id="uneven")
    past: dict[str, Any] = {"since": begin, "until": begin + timedelta(hours=25)}
    with pytest.raises(SourceError):
        await backfill(source, sink=sink(tmp_path), storage=storage, window_hours=20, **past)
    source.runs.extend([[], [], []])
    await backfill(source, sink=sink(tmp_path), storage=storage, window_hours=24, **past)
    hours = [
        ((start - begin) / timedelta(hours=1), (end - begin) / timedelta(hours=1))
        for start, end in source.ranges
        if start
        if end
    ]
    assert hours == [(0, 20), (20, 25), (20, 24), (24, 25)]


async def test_empty_backfill_is_refused(storage: StorageSettings, tmp_path: Path) -> None:
    """A range that ends before it begins is a mistake."""
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    with pytest.raises(ConfigurationError, match="is empty"):
        await backfill({"kind": "kev"}, begin, begin, sink=sink(tmp_path), storage=storage)


@pytest.mark.slow
async def test_stale_watermark_fails_the_check_and_is_an_event(storage: StorageSettings) -> None:
    """Too old, or never collected: both are told, and the run's state is the alert."""
    now = datetime.now(UTC)
    async with new_client(storage) as client:
        await client.update_watermark("fresh", now - timedelta(hours=1))
        await client.update_watermark("old", now - timedelta(hours=30))
        await client.update_watermark("dead", now, "failed", "boom")
    ages = await check_freshness(
        [Freshness(source_id="fresh"), Freshness(source_id="old", max_age_hours=31)], storage
    )
    assert ages["fresh"] == pytest.approx(1, abs=0.1)
    sources = [Freshness(source_id=name) for name in ("fresh", "old", "dead", "unknown")]
    with pytest.raises(StaleWatermarkError) as caught:
        await check_freshness(sources, storage)
    assert str(caught.value).startswith(
        "3 of 4 sources are stale: old (30.0 h behind, limit 24 h), dead (never collected, "
    )
    (event,) = await events_of("old", 1)
    assert event["event"] == "ladon.watermark.stale"
    assert [row["stale"] for row in await rows_of("ladon-freshness")] == ["", "yes", "yes", "yes"]
    with pytest.raises(ConfigurationError, match="at least one source"):
        await check_freshness([], storage)


async def test_watermark_in_the_future_is_wrong_and_not_fresh(
    storage: StorageSettings, service: Flaky
) -> None:
    """It fails with how far ahead it is and what to do; clocks may differ by seconds."""
    now = datetime.now(UTC)
    async with new_client(storage) as client:
        await client.update_watermark("ahead", now + timedelta(hours=3))
        await client.update_watermark("skewed", now + timedelta(seconds=20))
    with pytest.raises(
        StaleWatermarkError, match=r"ahead \(3\.0 h ahead\); set .* watermarks reset"
    ):
        await check_freshness([Freshness(source_id="ahead")], storage)
    (row,) = await rows_of("ladon-freshness")
    assert row["stale"] == "in the future"
    assert await check_freshness([Freshness(source_id="skewed")], storage) == {"skewed": 0.0}


async def test_source_without_records_is_never_collected(
    storage: StorageSettings, service: Flaky
) -> None:
    """A success of a run that stored nothing is no watermark of the year 1 for who reads it."""
    async with new_client(storage) as client:
        await client.update_watermark("nothing", EMPTY_WATERMARK)
    with pytest.raises(StaleWatermarkError, match=r"nothing \(never collected"):
        await check_freshness([Freshness(source_id="nothing", max_age_hours=1e9)], storage)
