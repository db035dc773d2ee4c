"""The collection flow against a real service, feed and sink: commits, failures, forms, signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.settings import PREFECT_API_URL
from prefect.utilities.schema_tools import validate
from pydantic import BaseModel

from ladon_storage import flows
from ladon_storage.blocks import RecordSink, StorageService
from ladon_storage.connect import new_client
from ladon_storage.errors import (
    ConfigurationError,
    SourceError,
    StorageError,
    StorageUnhealthyError,
    WatermarkConflictError,
)
from ladon_storage.flows.collect import collect, collect_kev, collect_threatfox
from ladon_storage.models import Watermark
from ladon_storage.settings import StorageSettings
from ladon_storage.sources import KINDS
from ladon_storage.testing.doubles import ScriptedSource, at, record
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.flaky import Flaky
from tests.forks import Forks
from tests.service import embedded_service
from tests.tables import table
from tests.waiting import reached

ROOT = Path(__file__).resolve().parent.parent.parent
CATALOGUE = {
    "count": 2,
    "vulnerabilities": [
        {"cveID": "CVE-2024-0001", "dateAdded": "2024-01-01"},
        {"cveID": "CVE-2024-0002", "dateAdded": "2024-01-02"},
    ],
}


def sink(folder: Path, **fields: str) -> dict[str, str]:
    return {"url": f"sqlite:///{folder}/records.db", **fields}


async def watermark(storage: StorageSettings, source_id: str) -> Watermark | None:
    async with new_client(storage) as client:
        return await client.get_watermark(source_id)


async def last_state(name: str) -> str:
    """Return the state type of the flow's latest run."""
    async with get_client() as client:
        runs = await client.read_flow_runs(sort="START_TIME_DESC", limit=1)  # type: ignore[arg-type]
    assert runs[0].state
    return runs[0].state.type.value


async def test_attempt_that_completes_returns_its_report(
    storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """A retried run has the result of its last attempt, and not the error of the one before."""
    source = ScriptedSource([OSError("first attempt")], [[record("1", 1)]])
    report = await collect.with_options(retries=1)(source, sink(tmp_path), storage)
    assert report.records_written == 1


async def test_dictionary_of_a_source_is_collected(
    storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """Health, read, running, collect, success, in this order; the report says what was done."""
    async with FeedServer(Answer.of(CATALOGUE)) as feed:
        report = await collect({"kind": "kev", "url": feed.url}, sink(tmp_path), storage)
    assert service.calls == ["HEALTH", "GET", "PUT", "PUT"]
    assert (report.records_read, report.records_written) == (2, 2)
    assert (report.watermark_before, report.watermark_after) == (
        None,
        datetime(2024, 1, 2, tzinfo=UTC),
    )
    assert table(tmp_path / "records.db") == [("CVE-2024-0001",), ("CVE-2024-0002",)]
    stored = await watermark(storage, "kev")
    assert stored
    assert (stored.status, stored.records_collected) == ("success", 2)


async def test_source_of_ones_own_is_collected(storage: StorageSettings, tmp_path: Path) -> None:
    """Any object that is a source goes through the same body; a second run starts at its end."""
    source = ScriptedSource([[record("1", 1)]], [], overlap=timedelta(minutes=1))
    await collect(source, sink(tmp_path), storage)
    report = await collect(source, sink(tmp_path), storage)
    assert source.ranges == [(None, None), (at(0), None)]
    assert (report.watermark_before, report.watermark_after) == (at(1), at(1))


@pytest.mark.slow
async def test_storage_comes_from_a_block_by_name_or_the_environment(
    service: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A saved block's name, the block itself and the environment all lead to the service."""
    block = StorageService(url=service.url)
    await block.save("for-collect", overwrite=True)
    source = ScriptedSource([[record("1", 1)]], [], [])
    await collect(source, sink(tmp_path), "for-collect")
    await collect(source, sink(tmp_path), await StorageService.aload("for-collect"))
    monkeypatch.setenv("STORAGE_SERVICE_URL", service.url)
    report = await collect(source, sink(tmp_path))
    assert report.watermark_before == at(1)


@pytest.mark.slow
async def test_blocks_called_default_are_used_where_nothing_is_said(
    service: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment needs no parameters but its source; the environment goes before the block."""
    monkeypatch.delenv("STORAGE_SERVICE_URL", raising=False)
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "a-deployment")
    with pytest.raises(
        ConfigurationError,
        match=r"set STORAGE_SERVICE_URL .* or save a block ladon-storage-service/default\.",
    ):
        await collect({"kind": "kev"}, sink(tmp_path))
    await StorageService(url=service.url).save("default", overwrite=True)
    with pytest.raises(ConfigurationError, match="no block ladon-record-sink/default; save one"):
        await collect({"kind": "kev"})
    await RecordSink(url=f"sqlite:///{tmp_path}/records.db").save("default", overwrite=True)
    try:
        async with FeedServer(Answer.of(CATALOGUE)) as feed:
            report = await collect({"kind": "kev", "url": feed.url})
        assert report.records_written == 2
        monkeypatch.setenv("STORAGE_SERVICE_URL", "http://127.0.0.1:9")
        with pytest.raises(StorageUnhealthyError):
            await collect({"kind": "kev"})
    finally:
        await RecordSink.adelete("default")
        await StorageService.adelete("default")


@pytest.mark.slow
async def test_wrong_setting_is_a_sentence_in_the_log_of_a_run(
    storage: StorageSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect's traceback of it would lead to the code; that of any other error stays."""
    with pytest.raises(ConfigurationError):
        await collect({"kind": "otx", "key": "NO_SUCH_KEY"}, sink(tmp_path), storage)
    errors = [each for each in caplog.records if each.levelname == "ERROR"]
    assert {each.name for each in errors} >= {"prefect.flow_runs", "prefect.task_runs"}
    assert any(each.getMessage().startswith("The secret 'NO_SUCH_KEY'") for each in errors)
    assert all(each.exc_info is None for each in errors)
    caplog.clear()
    with pytest.raises(OSError, match="away"):
        await collect(ScriptedSource([OSError("away")]), sink(tmp_path), storage)
    assert any(each.exc_info for each in caplog.records)


@pytest.mark.parametrize(
    "variable", ["ENVIRONMENT", "PREFECT__RUNTIME__DEPLOYMENT__ID"], ids=["production", "deployed"]
)
async def test_environment_without_a_service_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """In production, and in a run of a deployment, a missing address says what to set."""
    monkeypatch.setenv(variable, "production")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="STORAGE_SERVICE_URL"):
        await collect(ScriptedSource([]), sink(tmp_path))
    assert not (tmp_path / "ladon.db").exists()


@pytest.mark.slow
async def test_run_by_hand_without_a_service_keeps_its_watermark_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing is configured, the next run resumes from the file, which one line names."""
    monkeypatch.delenv("STORAGE_SERVICE_URL", raising=False)
    monkeypatch.delenv("ENVIRONMENT", raising=False)
    monkeypatch.chdir(tmp_path)
    source = ScriptedSource([[record("1", 1)]], [[record("2", 2)]])
    await collect(source, sink(tmp_path))
    report = await collect(source, sink(tmp_path))
    assert (report.watermark_before, report.watermark_after) == (at(1), at(2))
    said = [each for each in caplog.messages if "No Storage Service is configured" in each]
    assert len(said) == 1
    assert str(tmp_path / "ladon.db") in said[0]
    async with embedded_service(tmp_path / "ladon.db") as address:
        stored = await watermark(StorageSettings(url=address), "feed")
    assert stored
    assert stored.last_successful_timestamp == at(2)


async def test_unhealthy_service_fails_before_anything_is_collected(
    storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """In production no source is asked, and no sink opened, without a healthy service."""
    service.fail(503, "HEALTH")
    source = ScriptedSource([[record("1", 1)]])
    with pytest.raises(StorageUnhealthyError):
        await collect(source, sink(tmp_path), storage)
    assert source.ranges == []
    assert not (tmp_path / "records.db").exists()
    assert await last_state("collect") == "FAILED"


async def test_unreadable_watermark_is_not_never_collected(
    storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """A service that answers health and fails the read fails the run; nothing is collected."""
    service.fail(500, "GET")
    source = ScriptedSource([[record("1", 1)]])
    with pytest.raises(StorageError):
        await collect(source, sink(tmp_path), storage)
    assert source.ranges == []


async def test_failed_source_is_recorded_and_fails_the_run(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """The watermark says failed and why, and keeps its last success; the run's state is true."""
    source = ScriptedSource([[record("1", 1)]], [[record("2", 2)], SourceError("the feed broke")])
    await collect(source, sink(tmp_path), storage)
    with pytest.raises(SourceError):
        await collect(source, sink(tmp_path), storage)
    stored = await watermark(storage, "feed")
    assert stored
    assert (stored.status, stored.last_successful_timestamp) == ("failed", at(1))
    assert "the feed broke" in (stored.error_message or "")
    assert await last_state("collect") == "FAILED"


@pytest.mark.slow
async def test_failed_last_write_fails_the_run_and_repeats_nothing(
    storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """The sink committed and the success could not be written: the next run adds nothing."""
    source = ScriptedSource([[record("1", 1)]], [[record("1", 1)]])
    service.fail(500, "PUT", body='"success"')
    with pytest.raises(StorageError):
        await collect(source, sink(tmp_path, keep="all"), storage)
    stored = await watermark(storage, "feed")
    assert stored
    assert (stored.status, stored.last_successful_timestamp) == ("failed", None)
    service.heal()
    report = await collect(source, sink(tmp_path, keep="all"), storage)
    assert (report.records_written, report.watermark_after) == (0, at(1))
    assert table(tmp_path / "records.db") == [("1",)]


async def test_run_that_lost_to_another_fails_and_leaves_it_alone(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """A watermark that moved during the run is not overwritten, neither by success nor failure."""

    async def faster() -> None:
        async with new_client(storage) as client:
            await client.update_watermark("feed", at(50))

    source = ScriptedSource([[record("1", 1)], faster])
    with pytest.raises(WatermarkConflictError):
        await collect(source, sink(tmp_path), storage)
    stored = await watermark(storage, "feed")
    assert stored
    assert (stored.status, stored.last_successful_timestamp) == ("success", at(50))


async def test_lost_answer_to_the_last_write_is_not_a_conflict(
    storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """A success that was stored, and whose answer was lost, is found again by the retry."""
    service.lose_one_answer('"success"')
    report = await collect(ScriptedSource([[record("1", 1)]]), sink(tmp_path), storage)
    assert service.calls == ["HEALTH", "GET", "PUT", "PUT", "PUT"]
    assert report.watermark_after == at(1)


async def test_backfill_leaves_the_watermark_alone(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """A range with since and until is collected, and no watermark is read or written."""
    source = ScriptedSource([[record("9", 90)]], [[record("1", 1)]])
    await collect(source, sink(tmp_path), storage)
    report = await collect(source, sink(tmp_path), storage, since=at(0), until=at(20))
    assert source.ranges[1] == (at(0), at(20))
    assert report.backfill
    stored = await watermark(storage, "feed")
    assert stored
    assert stored.last_successful_timestamp == at(90)


async def test_naive_since_is_refused(storage: StorageSettings, tmp_path: Path) -> None:
    """A time without a zone means something else to everybody."""
    with pytest.raises(Exception, match="timezone"):
        await collect(
            ScriptedSource([]),
            sink(tmp_path),
            storage,
            since=datetime(2024, 1, 1),  # noqa: DTZ001
        )


async def test_cancelled_run_records_its_failure(storage: StorageSettings, tmp_path: Path) -> None:
    """Cancelling the flow in the middle of a page writes `failed`, and the cancellation goes on."""
    started = asyncio.Event()

    async def hang() -> None:
        started.set()
        await asyncio.Event().wait()

    run = asyncio.ensure_future(
        collect(ScriptedSource([[record("1", 1)], hang]), sink(tmp_path), storage)
    )
    await reached(started, run)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    stored = await watermark(storage, "feed")
    assert stored
    assert (stored.status, stored.last_successful_timestamp) == ("failed", None)
    assert stored.error_message == "ended by a cancellation"


async def test_sigterm_records_the_failure(
    storage: StorageSettings, service: Flaky, tmp_path: Path, forks: Forks
) -> None:
    """A run that is told to end writes `failed` on its way out, and Prefect calls it crashed."""
    body = json.dumps(CATALOGUE).encode()
    async with FeedServer(Answer(body, stall_at=10)) as feed:
        source = json.dumps({"kind": "kev", "url": feed.url})
        async with forks.run(
            "import sys; from ladon_storage.cli import main; sys.exit(main())",
            *("collect", source, "--sink", f"sqlite:///{tmp_path}/records.db", "--prefect"),
            folder=tmp_path,
            STORAGE_SERVICE_URL=service.url,
        ) as process:
            await asyncio.wait_for(feed.asked.wait(), 60)
            process.send_signal(signal.SIGTERM)
            _, log = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode != 0, log
    stored = await watermark(storage, "kev")
    assert stored
    assert (stored.status, stored.last_successful_timestamp) == ("failed", None)
    assert await last_state("collect") == "CRASHED"


@pytest.mark.slow
async def test_command_line_collects_and_prints_the_report(
    storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """A source in a file and a sink's address are enough; the report is JSON on standard output."""
    async with FeedServer(Answer.of(CATALOGUE)) as feed:
        described = tmp_path / "source.json"
        described.write_text(json.dumps({"kind": "kev", "url": feed.url}))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ladon_storage.cli", "collect", str(described)),
            *("--sink", f"sqlite:///{tmp_path}/records.db", "--prefect", "--json"),
            cwd=ROOT, stdout=PIPE, stderr=PIPE,
            env=os.environ | {
                "PREFECT_API_URL": str(PREFECT_API_URL.value()),
                "STORAGE_SERVICE_URL": service.url,
            },
        )  # fmt: skip
        output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    assert json.loads(output)[0]["records_written"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_form_of_each_kind_is_exact(kind: type[BaseModel]) -> None:
    """The UI's form has the fields of one kind with their texts, and blocks for what is secret."""
    name = kind.model_fields["kind"].default
    each = getattr(flows, f"collect_{name}")
    assert each.name == f"collect-{name}"
    schema = each.parameters.model_dump()
    fields = ["source", "sink", "storage", "since", "until", "limits", "when_busy"]
    assert list(schema["properties"]) == fields
    assert schema["required"] == ["source"]
    fields = schema["definitions"][kind.__name__]["properties"]
    assert set(fields) == set(kind.model_fields)
    assert all(field["title"] and field["description"] for field in fields.values())
    for field in schema["properties"].values():
        assert field["description"].endswith(".")
        assert "``" not in field["description"], "the form shows it as it is"
        assert field.get("title", "L")[0].isupper()  # or it is that of its model, which is Limits
        assert all(each.get("title") for each in field.get("anyOf", [])), "types are no tabs"
    limits = schema["definitions"]["Limits"]["properties"]
    for field in [*fields.values(), *limits.values()]:
        assert field["description"].endswith(".")
        assert "duration" not in json.dumps(field), "nobody types P1D"
        assert all(
            {"title", "$ref"} & set(each) or each["type"] == "null"
            for each in field.get("anyOf", [])
        ), "types are no tabs"
    slugs = {
        name: definition.get("block_type_slug")
        for name, definition in schema["definitions"].items()
        if "block_type_slug" in definition
    }
    assert slugs == {
        "RecordSink": "ladon-record-sink",
        "StorageService": "ladon-storage-service",
    }


def test_form_takes_references_to_blocks_and_refuses_what_is_wrong() -> None:
    """Prefect's API lets a run through that names its blocks, and none with a wrong number."""
    schema: Any = collect_threatfox.parameters.model_dump_for_openapi()
    chosen: Any = {"$ref": {"block_document_id": "c8d58d50-fa36-4165-abfa-9ac8a92127d2"}}
    assert not validate({"source": {}, "sink": chosen, "storage": chosen}, schema)
    [error] = validate({"source": {"overlap": -1}}, schema)
    assert error.json_path == "$.source.overlap"


async def test_flow_of_a_kind_takes_what_the_form_sends(service: Flaky, tmp_path: Path) -> None:
    """Parameters as the UI posts them, blocks by reference, run the one body."""
    storage_id = await StorageService(url=service.url).save("form", overwrite=True)
    sink_id = await RecordSink(url=f"sqlite:///{tmp_path}/records.db").save("form", overwrite=True)
    async with FeedServer(Answer.of(CATALOGUE)) as feed:
        flow: Any = collect_kev  # its signature is made, and no type checker sees it
        report = await flow(
            source={"kind": "kev", "url": feed.url, "source_id": "form"},
            sink={"$ref": {"block_document_id": str(sink_id)}},
            storage={"$ref": {"block_document_id": str(storage_id)}},
        )
    assert (report.source_id, report.records_written) == ("form", 2)
