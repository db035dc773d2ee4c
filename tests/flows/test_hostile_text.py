"""Texts of a feed in Prefect: its logs, states and pages show them, and obey none."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.artifacts import Artifact
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.logging.handlers import APILogHandler

from ladon_storage.collection.freshness import Freshness, StaleWatermarkError
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.connect import new_client
from ladon_storage.errors import SourceError
from ladon_storage.flows import artifacts as reports
from ladon_storage.flows import check_freshness, collect_many, reconcile
from ladon_storage.flows.collect import collect
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.doubles import ScriptedSource, at
from tests.hostile import EVIL, attacks

STEPS: dict[str, list[Any]] = {
    "error of a custom source": [ValueError(EVIL)],
    "error of the system": [OSError(5, EVIL)],
    "group of errors": [ExceptionGroup(EVIL, [ValueError(EVIL)])],
    "error of the feed": [SourceError(f"The feed says: {EVIL}")],
    "reasons": [Page([Record.of("1", at(1), {})], [Reject(EVIL, EVIL, EVIL)])],
    "ids": [Page([Record.of(EVIL, at(1), {EVIL: EVIL})])],
}
NOTED = "tests.flows.noted_sources:Noted"
CODE = re.compile(r"`[^`\n]*`")


async def run_of(name: str) -> tuple[FlowRun, list[str]]:
    """Return the run of a source, and the lines of its log."""
    await APILogHandler.aflush()
    async with get_client() as client:
        [run] = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_=name))
        )
        lines = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
    return run, [each.message for each in lines]


@pytest.mark.slow
@pytest.mark.parametrize("attack", STEPS)
async def test_text_of_a_feed_is_not_obeyed_by_prefect(
    attack: str, storage: StorageSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Logs, states, artifacts and the watermark have no control character and no markup of it."""
    name = f"evil-{attack.replace(' ', '-')}"
    source = ScriptedSource(STEPS[attack], source_id=name)
    caplog.set_level(logging.INFO)
    fails = "error" in attack
    error: Exception | None = None
    try:
        await collect(source, {"url": f"sqlite:///{tmp_path}/records.db"}, storage)
    except Exception as raised:
        error = raised
    assert (error is not None) == fails
    assert not attacks(str(error))
    run, lines = await run_of(name)
    assert run.state
    assert not attacks(run.state.message or "")
    for record in caplog.records:  # with its traceback, as a console has it
        assert not attacks(logging.Formatter().format(record)), record.name
    assert lines
    for line in lines:
        assert not attacks(line)
    page = await Artifact.aget(reports.artifact_key(name))
    assert page
    assert not attacks(str(page.data))
    assert not re.search(r"\]\(http|<b>|\[link", CODE.sub("", str(page.data)))
    async with new_client(storage) as client:
        stored = await client.get_watermark(name)
    assert stored
    assert not attacks(stored.error_message or "")


async def test_id_with_markup_is_shown_and_not_obeyed(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """The pages, tables and descriptions of a source have its id as a text."""
    evil = "![x](http://evil.example/x.png)<img src=x>"
    sink = {"url": f"sqlite:///{tmp_path}/records.db"}
    source = {"kind": NOTED, "source_id": evil, "folder": str(tmp_path)}
    await collect(source, sink, storage)
    await reconcile(source, sink, storage)
    await collect_many([source], sink=sink, storage=storage)
    with pytest.raises(StaleWatermarkError):
        await check_freshness([Freshness(source_id=evil, max_age_hours=1)], storage=storage)
    keys = (
        reports.artifact_key(evil),
        reports.reconciliation_key(evil),
        "ladon-collect-many",
        "ladon-freshness",
    )
    for key in keys:
        artifact = await Artifact.aget(key)
        assert artifact
        assert "evil.example" in f"{artifact.data}{artifact.description}"
        assert "evil.example" not in CODE.sub("", f"{artifact.data}\n{artifact.description}"), key
