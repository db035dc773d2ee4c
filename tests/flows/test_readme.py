"""What the documents give people to run in Prefect works as it stands, but for the addresses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL

from demo import kev
from ladon_storage.blocks import RecordSink, StorageService
from ladon_storage.connect import new_client
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.documents import ROOT, examples
from tests.flaky import Flaky
from tests.forks import Forks
from tests.tables import table

[(_, FIRST)] = examples(ROOT / "README.md")
OWN_FLOW, SYNC_FLOW = (code for _, code in examples(ROOT / "docs" / "how-to" / "own-flow.md"))
BLOCKS, SECRET = (code for _, code in examples(ROOT / "docs" / "how-to" / "deploy.md"))
CATALOGUE = Answer.of(
    {"count": 1, "vulnerabilities": [{"cveID": "CVE-1", "dateAdded": "2024-01-01"}]}
)


async def ran(code: str, folder: Path, service: Flaky, forks: Forks) -> tuple[int | None, str, str]:
    """Run an example as a script, and return how it ended and what it printed."""
    (folder / "example.py").write_text(code)
    async with forks.run(
        "import os, runpy, sys; os.chdir(sys.argv[1]); "
        "runpy.run_path('example.py', run_name='__main__')",
        str(folder),
        folder=folder,
        STORAGE_SERVICE_URL=service.url,
    ) as running:
        output, errors = await asyncio.wait_for(running.communicate(), 60)
    return running.returncode, output, errors


async def printed(code: str, folder: Path, service: Flaky, forks: Forks) -> str:
    """Run an example as a script to its good end, and return what it prints."""
    returned, output, errors = await ran(code, folder, service, forks)
    assert returned == 0, errors
    return output


@pytest.mark.slow
async def test_first_example_collects_the_catalogue(
    service: Flaky, tmp_path: Path, forks: Forks
) -> None:
    """It has at most 15 lines, and a second run writes nothing."""
    assert len(FIRST.strip().splitlines()) <= 15
    async with FeedServer(CATALOGUE, CATALOGUE) as feed:
        code = FIRST.replace('{"kind": "kev"}', f'{{"kind": "kev", "url": "{feed.url}"}}')
        assert code != FIRST
        outputs = [await printed(code, tmp_path, service, forks) for _ in range(2)]
    assert outputs == [
        f"{written} new or changed up to 2024-01-01 00:00:00+00:00\n" for written in (1, 0)
    ]
    assert table(tmp_path / "records.db", "record_id") == [("CVE-1",)]


async def test_own_flow_writes_its_watermark(
    service: Flaky, storage: StorageSettings, tmp_path: Path, forks: Forks
) -> None:
    """The tasks alone, in a stranger's flow, keep the source's watermark."""
    await printed(OWN_FLOW, tmp_path, service, forks)
    async with new_client(storage) as client:
        watermark = await client.get_watermark("tickets")
    assert watermark
    assert watermark["last_successful_timestamp"] == "2026-01-01T00:00:00+00:00"


async def test_sync_flow_writes_its_watermark_or_fails(
    service: Flaky, storage: StorageSettings, tmp_path: Path, forks: Forks
) -> None:
    """A future that is asked for its result raises: a write that was refused is no green run."""
    await printed(SYNC_FLOW, tmp_path, service, forks)
    async with new_client(storage) as client:
        watermark = await client.get_watermark("tickets")
        assert watermark
        assert watermark.last_successful_timestamp == datetime(2026, 1, 1, tzinfo=UTC)
        await client.update_watermark("tickets", datetime(2026, 1, 2, tzinfo=UTC))
    returned, _, errors = await ran(SYNC_FLOW, tmp_path, service, forks)
    assert (returned, "WatermarkConflictError" in errors) == (1, True)


async def test_blocks_are_saved_and_loaded(service: Flaky, tmp_path: Path, forks: Forks) -> None:
    """What the example saves is there for the forms, its secrets hidden."""
    await printed(BLOCKS + SECRET, tmp_path, service, forks)
    storage: Any = await StorageService.aload("default")
    sink: Any = await RecordSink.aload("default")
    assert (storage.url, sink.table) == ("http://127.0.0.1:8080", "records")
    assert "records.db" not in repr(sink)
    secret: Any = await Secret.aload("otx-key")
    assert secret.get() == "yours"
    await StorageService.adelete("default")
    await RecordSink.adelete("default")
    await Secret.adelete("otx-key")


@pytest.mark.slow
async def test_live_command_collects_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command for people who are online, against a catalogue on this machine."""

    @asynccontextmanager
    async def server(_folder: Path) -> AsyncIterator[str]:
        yield str(PREFECT_API_URL.value())

    monkeypatch.setattr(kev, "prefect_server", server)
    monkeypatch.setattr(kev, "PROJECT", tmp_path)
    async with FeedServer(CATALOGUE, CATALOGUE) as feed:
        assert await kev.main({"kind": "kev", "url": feed.url}) == 0
        shown = capsys.readouterr().out
        assert await kev.main({"kind": "kev", "url": feed.url}) == 1
    rows = [line.split("│")[1:-1] for line in shown.splitlines() if "completed" in line]
    assert [[cell.strip() for cell in row[:4]] for row in rows] == [
        ["1", "completed", "1", "1"],
        ["2", "completed", "0", "0"],  # the catalogue is the one that the sink has
    ]
    assert "answered 410" in capsys.readouterr().out
