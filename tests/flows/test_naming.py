"""The names of runs, task runs and artifacts: by the source, and without a secret."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.artifacts import Artifact
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from ladon_storage.collection.summaries import source_label
from ladon_storage.flows import naming
from ladon_storage.flows.artifacts import artifact_key, reconciliation_key
from ladon_storage.flows.backfill import backfill
from ladon_storage.flows.collect import collect
from ladon_storage.flows.collect_many import collect_many
from ladon_storage.flows.freshness import check_freshness
from ladon_storage.flows.naming import named_run
from ladon_storage.flows.reconcile import reconcile
from ladon_storage.settings import StorageSettings
from ladon_storage.sources.kev import Kev
from ladon_storage.tasks import collect_source, label_of
from ladon_storage.testing.doubles import ScriptedSource, at, record

SIX = datetime(2026, 3, 1, 6, tzinfo=UTC)


def sink(folder: Path) -> dict[str, str]:
    return {"url": f"sqlite:///{folder}/records.db"}


async def run_of(state: Any) -> FlowRun:
    async with get_client() as client:
        return await client.read_flow_run(state.state_details.flow_run_id)


async def task_names(run_id: UUID) -> set[str]:
    """Return the names of the task runs of a flow run."""
    async with get_client() as client:
        found = await client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        )
    return {each.name for each in found}


async def test_run_and_its_tasks_are_named_by_the_source(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """A collection has its source and its time, a past range its bounds."""
    runs: list[list[Any]] = [[[record("1", 1)]]] * 9
    source = ScriptedSource(*runs, source_id="named")
    state: Any = await collect(source, sink(tmp_path), storage, return_state=True)
    run = await run_of(state)
    assert state.is_completed()
    assert run.expected_start_time
    assert run.name == f"named {run.expected_start_time:%H:%M}"
    assert "Collect named" in await task_names(run.id)

    state = await collect(
        source, sink(tmp_path), storage, since=at(0), until=at(30), return_state=True
    )
    assert (await run_of(state)).name == "backfill named 2024-01-01 to 2024-01-01 00:30"
    month = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))
    state = await backfill(
        source, *month, sink(tmp_path), storage, window_hours=10_000, return_state=True
    )
    assert (await run_of(state)).name == "backfill named 2026-01-01 to 2026-02-01"
    state = await reconcile(source, sink(tmp_path), storage, return_state=True)
    assert re.fullmatch(r"reconcile named \d\d:\d\d", (await run_of(state)).name)


@pytest.mark.slow
async def test_runs_over_many_sources_are_told_apart(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """The number or the file of the sources is in the name; a check of ages says what it is."""
    wrong = {"kind": "no such kind"}
    state: Any = await collect_many(
        [wrong], sink=sink(tmp_path), storage=storage, return_state=True
    )
    assert re.fullmatch(r"1 source \d\d:\d\d", (await run_of(state)).name)
    state = await check_freshness([{"source_id": "kev"}], storage, return_state=True)
    assert re.fullmatch(r"freshness \d\d:\d\d", (await run_of(state)).name)
    assert naming.many({"file": "/etc/ladon.toml"}, "06:00") == "sources of ladon.toml 06:00"
    parted = {"file": "/etc/ladon.toml", "part": "2/8"}
    assert naming.many(parted, "06:00") == "part 2/8 of sources of ladon.toml 06:00"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("pastel-walrus", "kev 06:00"),  # the server's
        ("Licensed-Fossa", "kev 06:00"),  # of the form of the second UI
        ("gamma6-nessik-c", "kev 06:00"),  # of the first
        ("First collection", "First collection"),
        ("kev 05:00", "kev 05:00"),  # a run that is retried
        ("before-2026", "before-2026"),
    ],
)
def test_name_that_a_user_gave_stays(
    given: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the words that Prefect fills in are replaced, by the time of the schedule."""
    run = SimpleNamespace(name=given, expected_start_time=SIX)
    context = SimpleNamespace(flow_run=run, parameters={"source": Kev()})
    monkeypatch.setattr(FlowRunContext, "get", lambda: context)
    monkeypatch.delenv("TZ", raising=False)
    assert named_run(naming.collection)() == shown


@pytest.mark.parametrize(
    ("zone", "shown"), [("Europe/Berlin", "07:00"), (":UTC", "06:00"), ("Nowhere/At", "06:00")]
)
def test_times_are_in_the_zone_of_the_process(
    zone: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zone that there is not is UTC."""
    run = SimpleNamespace(name="pastel-walrus", expected_start_time=SIX)
    context = SimpleNamespace(flow_run=run, parameters={"source": {"kind": "kev"}})
    monkeypatch.setattr(FlowRunContext, "get", lambda: context)
    monkeypatch.setenv("TZ", zone)
    assert named_run(naming.collection)() == f"kev {shown}"


def test_fault_in_a_name_fails_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run keeps the name that it had."""
    run = SimpleNamespace(name="pastel-walrus", expected_start_time=None)
    monkeypatch.setattr(
        FlowRunContext, "get", lambda: SimpleNamespace(flow_run=run, parameters=None)
    )
    assert named_run(lambda _parameters, _time: str(1 // 0))() == "pastel-walrus"


@pytest.mark.parametrize(
    ("source", "label"),
    [
        (Kev(), "kev"),
        ({"kind": "kev"}, "kev"),
        ({"kind": "kev", "source_id": "mirror"}, "mirror"),
        ({"kind": "no such kind"}, "no such kind"),
        ({}, "dict"),
        ("a\nb", "a b"),
        ("x" * 300, "x" * 100 + " …"),
        ("https://me:hunter2@feeds.example/a?key=k", "https://feeds.example/a"),
        ("https://feeds.example/a?api_key=hunter2", "https://feeds.example/a"),
        ("postgresql://u:hunter2/x@db/t", "postgresql"),
    ],
)
def test_label_of_a_source_has_no_secret(source: object, label: str) -> None:
    """It is one short line, for a source, for its description, and for what is neither."""
    assert label_of(source) == label


ODD = ["a b", "a-b", "a_b", "A b", "a.b", "a  b", "ä b", "a-b--1", "日本", "-", "--", "a-", "/"]


def test_keys_of_artifacts_are_valid_and_distinct() -> None:
    """Ids that differ in odd characters alone have keys of their own, which Prefect takes."""
    ids = [*ODD, "x" * 200, "x" * 201, "kev", "kev-reconciliation", "https://u:hunter2@h/"]
    ids += [artifact_key(each).removeprefix("collection-") for each in ids]
    keys = [key(each) for each in dict.fromkeys(ids) for key in (artifact_key, reconciliation_key)]
    assert len(set(keys)) == len(keys)
    for each in keys:
        assert re.fullmatch(r"[a-z0-9-]+", each)
        assert "hunter2" not in each
        Artifact(key=each, type="markdown", data="")  # Prefect's own check
    assert artifact_key("kev") == "collection-kev"


def test_task_of_a_description_is_named_by_its_source() -> None:
    """The task as users call it has the name, too."""
    name: Any = collect_source.task_run_name
    assert name(parameters={"source": {"kind": "kev"}}) == "Collect kev"
    assert source_label("kev") == "kev"
