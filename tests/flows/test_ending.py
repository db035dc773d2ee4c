"""Who ended a run stands in its watermark: a signal, Prefect, a timeout."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

from flows import ending
from flows.collect import collect
from flows.collect_many import collect_many
from ladon_storage.connect import new_client
from ladon_storage.fallback import by_task
from ladon_storage.settings import StorageSettings
from tests.collecting import ScriptedSource, record
from tests.feed_server import Answer, FeedServer
from tests.flaky import Flaky

ROOT = Path(__file__).resolve().parent.parent.parent
HANGING = Answer(b'{"count": 2', stall_at=5)


@pytest.fixture(autouse=True)
def _no_signal_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test be told of the signal of another one."""
    monkeypatch.setattr(ending, "_signal", None)


async def reason(storage: StorageSettings, source_id: str = "feed") -> str | None:
    """Return the error of a watermark that says failed, with no success before."""
    async with new_client(storage) as client:
        stored = await client.get_watermark(source_id)
    assert stored
    assert (stored.status, stored.last_successful_timestamp) == ("failed", None)
    return stored.error_message


async def process(*command: str, service: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={
            **os.environ,
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "STORAGE_SERVICE_URL": service,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_signal_ends_a_run_and_is_named(
    number: signal.Signals, storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """The command line writes failed with the signal's name, and ends with an error."""
    async with FeedServer(HANGING) as feed:
        source = json.dumps({"kind": "kev", "url": feed.url})
        running = await process(
            sys.executable, "-m", "flows.collect", source, f"sqlite:///{tmp_path}/r.db",
            service=service.url,
        )  # fmt: skip
        await asyncio.wait_for(feed.asked.wait(), 60)
        running.send_signal(number)
        output, _ = await asyncio.wait_for(running.communicate(), 60)
    assert running.returncode != 0, output.decode()
    assert await reason(storage, "kev") == f"ended by {number.name}", output.decode()


async def test_hangup_that_is_ignored_ends_no_run(
    storage: StorageSettings, service: Flaky, tmp_path: Path
) -> None:
    """Under nohup a run outlives its terminal."""
    document = {
        "count": 1,
        "vulnerabilities": [{"cveID": "CVE-2024-0001", "dateAdded": "2024-01-01"}],
    }
    async with FeedServer() as feed:
        source = json.dumps({"kind": "kev", "url": feed.url})
        running = await process(
            "nohup", sys.executable, "-m", "flows.collect", source, f"sqlite:///{tmp_path}/r.db",
            service=service.url,
        )  # fmt: skip

        def play(_asked: object) -> Answer:
            running.send_signal(signal.SIGHUP)
            return Answer.of(document)

        feed.play = play
        output, _ = await asyncio.wait_for(running.communicate(), 60)
    assert running.returncode == 0, output.decode()
    async with new_client(storage) as client:
        stored = await client.get_watermark("kev")
    assert stored
    assert stored.status == "success"


def hanging_source(started: asyncio.Event) -> ScriptedSource:
    async def hang() -> None:
        started.set()
        await asyncio.Event().wait()

    return ScriptedSource([[record("1", 1)], hang])


async def test_timeout_of_the_flow_is_named(storage: StorageSettings, tmp_path: Path) -> None:
    """A run that took longer than its flow may says so, and for how long it was let."""
    limited = collect.with_options(timeout_seconds=3)
    with pytest.raises(TimeoutError):
        await limited(
            hanging_source(asyncio.Event()), {"url": f"sqlite:///{tmp_path}/r.db"}, storage
        )
    assert await reason(storage) == "ended by its timeout of 3 s"


async def test_cancellation_in_prefect_is_named(storage: StorageSettings, tmp_path: Path) -> None:
    """A run that Prefect wants cancelled says so when it is told to end."""
    started = asyncio.Event()
    run = asyncio.ensure_future(
        collect(hanging_source(started), {"url": f"sqlite:///{tmp_path}/r.db"}, storage)
    )
    await started.wait()
    async with new_client(storage) as client, get_client() as prefect:
        stored = await client.get_watermark("feed")
        assert stored
        await prefect.set_flow_run_state(stored.run_id, Cancelling(), force=True)  # type: ignore[arg-type]
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert await reason(storage) == "ended by a cancellation in Prefect"


async def test_each_source_of_many_says_who_ended_it(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """Cancelling a run of many sources writes the same into the watermark of each under way."""
    async with FeedServer(HANGING) as feed:
        sources = [{"kind": "kev", "url": feed.url}]
        run = asyncio.ensure_future(
            collect_many(sources, sink={"url": f"sqlite:///{tmp_path}/r.db"}, storage=storage)
        )
        await feed.asked.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    assert await reason(storage, "kev") == "ended by a cancellation"


async def test_signals_are_given_back() -> None:
    """After the last run whoever handled a signal before handles it again."""
    before = [signal.getsignal(each) for each in ending._NOTED]
    with ending.signals_noted(), ending.signals_noted():
        assert signal.getsignal(signal.SIGTERM) is ending._note
    assert [signal.getsignal(each) for each in ending._NOTED] == before


async def test_signal_before_the_body_of_a_run_ends_it() -> None:
    """What Prefect's handler raised was lost while the run was set up: its body never begins."""
    before = [signal.getsignal(each) for each in ending._NOTED]
    began = False
    signal.signal(signal.SIGTERM, lambda *_: None)  # as if what it raises were lost
    try:
        ending.note_signals()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(TerminationSignal), ending.signals_noted():
            began = True
        assert ending.signal_noted() == "SIGTERM"
    finally:
        signal.signal(signal.SIGTERM, before[0])
    assert not began
    assert [signal.getsignal(each) for each in ending._NOTED] == before
    with ending.signals_noted():
        assert ending.signal_noted() is None


async def test_signal_that_a_callback_loses_cancels_the_run(
    storage: StorageSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on as if there had been no signal is cancelled, and names the signal."""
    monkeypatch.setattr(ending, "GRACE_SECONDS", 0)
    before = signal.signal(signal.SIGTERM, lambda *_: None)

    async def lose() -> None:
        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)  # type: ignore[operator, misc]
        await asyncio.Event().wait()

    try:
        source = ScriptedSource([[record("1", 1)], lose])
        monkeypatch.setattr("prefect.utilities.engine._prefect_sigterm_handler", lambda *_: None)
        with pytest.raises(asyncio.CancelledError):
            await collect(source, {"url": f"sqlite:///{tmp_path}/r.db"}, storage)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert await reason(storage) == "ended by SIGTERM"


async def test_signal_in_a_task_run_ends_its_caller() -> None:
    """A task run that a signal struck is not taken for one that Prefect failed."""

    async def struck() -> None:
        raise TerminationSignal(signal.SIGTERM)

    async def directly() -> None:
        raise AssertionError("went on")

    with pytest.raises(TerminationSignal):
        await by_task("The call", struck, directly)


async def test_error_that_says_something_keeps_its_words() -> None:
    """Only what says nothing but that a run was cancelled is put in other words."""
    named: Any = ending.Ending()
    assert await named.named("SourceError: CancelledError at the feed") == (
        "SourceError: CancelledError at the feed"
    )
    assert await named.named("CancelledError") == "ended by a cancellation"
