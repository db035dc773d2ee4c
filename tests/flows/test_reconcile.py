"""The flow that reads a source again: its page, its event, its state, and its command."""

from __future__ import annotations

from datetime import timedelta

import pytest
from prefect.artifacts import Artifact

from ladon_storage.errors import ConfigurationError
from ladon_storage.flows.collect import collect
from ladon_storage.flows.reconcile import reconcile
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.doubles import LatestSink, MemorySink, ScriptedSource, at, record
from tests.flaky import Flaky
from tests.flows.test_artifacts import events_of


@pytest.mark.slow
async def test_what_was_missed_is_a_page_an_event_and_a_state(
    storage: StorageSettings, service: Flaky
) -> None:
    """It is stored, named and told as a rate, and the watermark is only read."""
    sink = MemorySink()
    regular, missed = [record("1", 1), record("9", 9)], record("`2|`", 2)
    source = ScriptedSource([regular], [[*regular, missed]], [regular], source_id="again")
    await collect(source, sink, storage)
    writes = service.calls.count("PUT")

    state = await reconcile(source, sink, storage, return_state=True)
    assert state.message == "1 of 3 missed (33.33%), 0 changed since"
    assert sink.ids == ["1", "9", "`2|`"]
    assert service.calls.count("PUT") == writes
    artifact = await Artifact.aget("reconciliation-again")
    assert artifact
    for fact in (
        "# again: 1 of 3 missed (33.33%)",
        "| missed | 1 of 3 (33.33%) |",
        "## Missed: 1",
        "- `'2/'`",
        "| delivered | 3 = 1 new + 0 changed + 2 known + 0 quarantined + 0 skipped |",
    ):
        assert fact in str(artifact.data)
    found = [each for each in await events_of("again", 2) if each["event"].endswith("missed")]
    assert [each["payload"]["missed_ids"] for each in found] == [["`2|`"]]
    assert found[0]["event"] == "ladon.collection.missed"

    state = await reconcile(source, sink, storage, last_days=99_999, return_state=True)
    assert state.message == "0 of 2 missed (0.00%), 0 changed since"


@pytest.mark.slow
async def test_record_that_went_back_is_in_the_state_and_on_the_page(
    storage: StorageSettings,
) -> None:
    """It is counted and named, and the sink keeps its later version."""
    sink = LatestSink()
    source = ScriptedSource([[record("1", 9, "B")]], [[record("1", 1, "A")]], source_id="older")
    await collect(source, sink, storage)

    state = await reconcile(source, sink, storage, return_state=True)
    assert state.message == "0 of 1 missed (0.00%), 0 changed since, 1 older than in the sink"
    assert sink.current["1"].timestamp == at(9)
    artifact = await Artifact.aget("reconciliation-older")
    assert artifact
    for fact in ("| older than in the sink, which keeps its version | 1 |", "## Older than in the"):
        assert fact in str(artifact.data)


async def test_since_and_last_days_together_are_refused(storage: StorageSettings) -> None:
    """They say the same, and could say different things."""
    source = ScriptedSource([])
    since = record("1", 1).timestamp - timedelta(days=1)
    with pytest.raises(ConfigurationError, match="either since or last_days"):
        await reconcile(source, MemorySink(), storage, since=since, last_days=1)
