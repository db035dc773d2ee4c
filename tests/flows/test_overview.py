"""The overview of all sources in Prefect: right rows, whoever writes at once, and few requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from prefect import flow, get_client
from prefect.artifacts import Artifact
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from ladon_storage.collection.freshness import Freshness
from ladon_storage.collection.records import Page, Reject
from ladon_storage.errors import CollectionError
from ladon_storage.flows import artifacts, overview
from ladon_storage.flows.collect import collect
from ladon_storage.flows.freshness import check_freshness
from ladon_storage.flows.overview import OVERVIEW_KEY, SourceFacts, update_overview
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.doubles import ScriptedSource, at, record

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


async def versions() -> list[Artifact]:
    """Return all versions of the overview."""
    key = ArtifactFilter(key=ArtifactFilterKey(any_=[OVERVIEW_KEY]))
    async with get_client() as client:
        return list(await client.read_artifacts(artifact_filter=key))  # type: ignore[arg-type]


async def rows() -> dict[str, dict[str, Any]]:
    """Return the rows of the latest version by their sources."""
    latest = await Artifact.aget(OVERVIEW_KEY)
    assert latest
    return {row["source"]: row for row in json.loads(str(latest.data))}


@pytest_asyncio.fixture(autouse=True)
async def no_overview(prefect_server: None) -> AsyncIterator[None]:
    """Begin without a version: other tests leave theirs behind."""
    async with get_client() as client:
        for each in await versions():
            await client.delete_artifact(each.id)  # type: ignore[attr-defined]
    yield


def sink(folder: Path) -> dict[str, str]:
    return {"url": f"sqlite:///{folder}/records.db"}


@pytest.mark.slow
async def test_every_run_keeps_its_row(storage: StorageSettings, tmp_path: Path) -> None:
    """A row has outcome, reason, records, watermark and the run; a later run replaces it."""
    first = [record("1", 1), record("2", 2)]
    source = ScriptedSource([first], [Page([record("3", 3)], [Reject("no id", "{}")])])
    source.source_id = "rows"
    state = await collect(source, sink(tmp_path), storage, return_state=True)
    before = (await rows())["rows"]
    assert before["last outcome"].startswith("completed ")
    assert (before["state"], before["records"], before["reason"]) == ("ok", "2", "")
    assert before["watermark"] == "2024-01-01 00:02:00 UTC"
    assert str(state.state_details.flow_run_id) in before["run"]
    await collect(source, sink(tmp_path), storage)
    after = (await rows())["rows"]
    assert (after["records"], after["reason"]) == ("1", "`1 quarantined: 'no id' (1)`")
    assert after["run"] != before["run"]


@pytest.mark.slow
async def test_failed_run_leaves_the_watermark_in_its_row(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """The reason is named, and what a feed writes into it is no Markdown."""
    source = ScriptedSource([[record("1", 1)]], [CollectionError("![x](http://tracker.example/)")])
    source.source_id = "fails"
    await collect(source, sink(tmp_path), storage)
    with pytest.raises(CollectionError):
        await collect(source, sink(tmp_path), storage)
    row = (await rows())["fails"]
    assert (row["state"], row["watermark"]) == ("failing", "2024-01-01 00:01:00 UTC")
    assert row["reason"] == "`CollectionError: ![x](http://tracker.example/)`"


@pytest.mark.slow
async def test_backfill_says_nothing_of_the_regular_runs(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """A run with bounds leaves the row as it was."""
    source = ScriptedSource([[record("1", 1)]], [[record("2", 2)]], source_id="bounded")
    await collect(source, sink(tmp_path), storage)
    before = await rows()
    await collect(source, sink(tmp_path), storage, since=at(0), until=at(5))
    assert (await rows())["bounded"] == before["bounded"]


@pytest.mark.slow
async def test_age_is_shown_against_the_limit_of_the_freshness(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """The limit stays in the row when the source is collected again."""
    source = ScriptedSource([[record("1", 1)]], [[record("2", 2)]], source_id="aged")
    await collect(source, sink(tmp_path), storage)
    limits = [Freshness(source_id="aged", max_age_hours=12), Freshness(source_id="unheard-of")]
    with pytest.raises(CollectionError):
        await check_freshness(limits, storage)
    found = await rows()
    assert (found["aged"]["state"], found["aged"]["limit (hours)"]) == ("stale", "12")
    assert found["aged"]["run"]
    assert (found["unheard-of"]["state"], found["unheard-of"]["limit (hours)"]) == (
        "never collected",
        "24",
    )
    assert list(found) == ["aged", "unheard-of"]  # problems first
    await collect(source, sink(tmp_path), storage)
    assert (await rows())["aged"]["limit (hours)"] == "12"


def facts(source: str, minutes: float = 0, **fields: Any) -> SourceFacts:
    ended = NOON + timedelta(minutes=minutes)
    given: dict[str, Any] = {"ended": ended, "outcome": "completed"} | fields
    return SourceFacts(source, **given)


async def test_runs_that_end_at_once_lose_no_row(prefect_server: None) -> None:
    """The last version has the row of each, though they read and write in any order."""

    async def run(number: int) -> None:
        await update_overview([facts(f"source-{number}")])

    await asyncio.gather(*(run(number) for number in range(4)))
    assert set(await rows()) == {f"source-{number}" for number in range(4)}


async def test_row_that_a_version_lost_is_found_in_the_one_before(prefect_server: None) -> None:
    """The next run of any source brings it back, with its later outcome."""
    async with get_client() as client:
        await overview._write(client, [facts("a", 0), facts("b", 0, max_age_hours=3.0)])
        await overview._write(client, [facts("a", 5), facts("b", 0, max_age_hours=3.0)])
        await overview._write(client, [facts("a", 0), facts("b", 6, outcome="failed")])
    await update_overview([facts("c", 7)])
    found = await rows()
    assert found["a"]["last outcome"] == "completed 2026-01-01 12:05:00 UTC"
    assert found["b"]["last outcome"] == "failed 2026-01-01 12:06:00 UTC"
    assert found["b"]["limit (hours)"] == "3"
    assert "c" in found


async def test_update_costs_as_much_for_many_sources_as_for_one(
    prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of requests does not grow, and old versions are deleted."""
    monkeypatch.setattr(overview, "_KEPT", 3)
    asked: list[str] = []
    async with get_client() as client:
        kind = type(client._client)
    send = kind.send

    async def counted(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(f"{request.method} {request.url.path}")
        return await send(self, request, *args, **kwargs)

    for _ in range(5):
        await update_overview([facts("one")])
    monkeypatch.setattr(kind, "send", counted)
    await update_overview([facts(f"many-{number}") for number in range(100)])
    assert len([each for each in asked if "artifacts" in each]) <= 5
    assert len(await versions()) == 3


@pytest.mark.parametrize("data", ['{"a": 1}', "[1]", '[{"source": "x"}]', "no JSON", '"text"'])
async def test_version_that_cannot_be_read_is_replaced(prefect_server: None, data: str) -> None:
    """Whatever stands under the key, the next update writes a table."""
    async with get_client() as client:
        await client.create_artifact(ArtifactCreate(key=OVERVIEW_KEY, type="table", data=data))
    await update_overview([facts("after")])
    assert set(await rows()) == {"after"}


def test_row_tells_all_that_is_known() -> None:
    """A row that is read back is the same, for whatever is known of a source."""
    full = SourceFacts(
        "kev", NOON, "failed", "`why, and 1,000`", 1_234, "[kev 12:00](http://x/y)",
        "2026-01-01 00:00:00 UTC", 0.5,
    )  # fmt: skip
    for each in (
        full,
        facts("y", max_age_hours=8_766_000.25),
        SourceFacts("kev"),
        facts("x", watermark="never collected"),
    ):
        assert SourceFacts.of_row(each.row(NOON)) == each


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "ok"),
        ({"watermark": "2026-01-01 10:00:00 UTC"}, "ok"),
        ({"watermark": "2026-01-01 10:00:00 UTC", "max_age_hours": 3.0}, "fresh"),
        ({"watermark": "2026-01-01 10:00:00 UTC", "max_age_hours": 1.0}, "stale"),
        ({"watermark": "2026-01-03 10:00:00 UTC", "max_age_hours": 1.0}, "in the future"),
        ({"watermark": "never collected"}, "never collected"),
        ({"outcome": "failed"}, "failing"),
        ({"outcome": "failed", "watermark": "2026-01-01 00:00:00 UTC", "max_age_hours": 1.0},
         "stale"),
    ],
)  # fmt: skip
def test_state_names_the_worst(fields: dict[str, Any], state: str) -> None:
    """A watermark that is wrong, missing or too old comes before a run that failed."""
    assert facts("kev", **fields).state(NOON) == state


async def test_prefect_that_refuses_fails_no_run(
    storage: StorageSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collection is complete, and its log says what is missing."""

    async def refused(_facts: Any) -> None:
        raise OSError("Prefect is away")

    monkeypatch.setattr(artifacts, "update_overview", refused)
    source = ScriptedSource([[record("1", 1)]], source_id="alone")
    report = await collect(source, sink(tmp_path), storage)
    assert report.records_new == 1


async def test_run_without_a_flow_has_no_link(prefect_server: None) -> None:
    """A row needs no run."""

    @flow
    async def inside() -> str:
        return overview._link()

    assert overview._link() == ""
    linked = await inside()
    assert "/runs/flow-run/" in linked
