"""Who ended a run stands in its watermark: a signal, Prefect, a timeout."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect._flow_run_suspension import _active_flow_run_suspension_requests
from prefect.client.schemas.objects import State
from prefect.exceptions import ParameterTypeError, Pause, TerminationSignal
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling, Suspended
from prefect.utilities import engine
from yarl import URL

from ladon_storage.connect import new_client
from ladon_storage.fallback import by_task
from ladon_storage.flows import ending
from ladon_storage.flows.collect import collect, collect_kev
from ladon_storage.flows.collect_many import collect_many
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.doubles import ScriptedSource, record
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.flaky import Flaky
from tests.forks import Forks
from tests.waiting import reached

SECONDS = 180
"""How long a run in a process may take on a machine on which Prefect's own server stalls."""

COMMAND = """
import sys
from ladon_storage.cli import main
sys.exit(main(["collect", sys.argv[1], "--sink", sys.argv[2], "--prefect"]))
"""
NOHUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
HANGING = Answer(b'{"count": 2', stall_at=5)


@pytest.fixture(autouse=True)
def _no_signal_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep from each test the signal that another one left."""
    monkeypatch.setattr(ending, "_signal", None)


async def reason(storage: StorageSettings, source_id: str = "feed") -> str | None:
    """Return the error of a watermark that says failed, with no success before."""
    async with new_client(storage) as client:
        stored = await client.get_watermark(source_id)
    assert stored
    assert (stored.status, stored.last_successful_timestamp) == ("failed", None)
    return stored.error_message


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
async def test_signal_ends_a_run_and_is_named(
    number: signal.Signals,
    storage: StorageSettings,
    service: Flaky,
    tmp_path: Path,
    forks: Forks,
) -> None:
    """The command line writes failed with the signal's name, and ends with an error."""
    async with FeedServer(HANGING) as feed:
        source = json.dumps({"kind": "kev", "url": feed.url})
        async with forks.run(
            COMMAND,
            source,
            f"sqlite:///{tmp_path}/r.db",
            folder=tmp_path,
            STORAGE_SERVICE_URL=service.url,
        ) as running:
            await asyncio.wait_for(feed.asked.wait(), SECONDS)
            running.send_signal(number)
            _, log = await asyncio.wait_for(running.communicate(), SECONDS)
    assert running.returncode != 0, log
    assert await reason(storage, "kev") == f"ended by {number.name}", log


@pytest.mark.slow
async def test_hangup_that_is_ignored_ends_no_run(
    storage: StorageSettings, service: Flaky, tmp_path: Path, forks: Forks
) -> None:
    """Under nohup a run outlives its terminal."""
    document = {
        "count": 1,
        "vulnerabilities": [{"cveID": "CVE-2024-0001", "dateAdded": "2024-01-01"}],
    }
    async with FeedServer() as feed:
        source = json.dumps({"kind": "kev", "url": feed.url})
        async with forks.run(
            NOHUP + COMMAND,
            source,
            f"sqlite:///{tmp_path}/r.db",
            folder=tmp_path,
            STORAGE_SERVICE_URL=service.url,
        ) as running:

            def play(_asked: object) -> Answer:
                running.send_signal(signal.SIGHUP)
                return Answer.of(document)

            feed.play = play
            _, log = await asyncio.wait_for(running.communicate(), SECONDS)
    assert running.returncode == 0, log
    async with new_client(storage) as client:
        stored = await client.get_watermark("kev")
    assert stored
    assert stored.status == "success"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "ended", "why"),
    [
        (Cancelling(), "Cancelled", "a cancellation in Prefect"),
        (None, "AwaitingRetry", "SIGTERM"),
    ],
    ids=["cancelled", "rescheduled"],
)
async def test_run_that_prefect_ends_has_its_outcome_and_no_crash(
    state: State | None,
    ended: str,
    why: str,
    storage: StorageSettings,
    service: Flaky,
    tmp_path: Path,
) -> None:
    """Prefect kills a run of a worker that does not acknowledge, or shows it as crashed first."""
    async with FeedServer(HANGING) as feed, get_client() as client:
        deployment = await client.create_deployment(
            await client.create_flow(collect_kev),
            "ended",
            entrypoint="ladon_storage.flows.collect.collect_kev",
            parameters={
                "source": {"kind": "kev", "url": feed.url},
                "sink": {"url": f"sqlite:///{tmp_path}/r.db"},
            },
        )
        run = await client.create_flow_run_from_deployment(deployment)
        executing = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "prefect", "flow-run", "execute", str(run.id)),
            env={
                **os.environ,
                "PREFECT_API_URL": str(PREFECT_API_URL.value()),
                "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
                "STORAGE_SERVICE_URL": service.url,
            },
        )
        try:
            await asyncio.wait_for(feed.asked.wait(), SECONDS)
            if state is None:
                executing.terminate()
            else:
                await client.set_flow_run_state(run.id, state)
            await asyncio.wait_for(executing.wait(), SECONDS)
        finally:
            if executing.returncode is None:
                executing.kill()
                await executing.wait()
        states = [each.name for each in await client.read_flow_run_states(run.id)]
    assert states[-1] == ended
    assert "Crashed" not in states
    assert await reason(storage, "kev") == f"ended by {why}"


def hanging_source(started: asyncio.Event) -> ScriptedSource:
    async def hang() -> None:
        started.set()
        await asyncio.Event().wait()

    return ScriptedSource([[record("1", 1)], hang])


@pytest.mark.slow
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
    await reached(started, run)
    async with new_client(storage) as client, get_client() as prefect:
        stored = await client.get_watermark("feed")
        assert stored
        await prefect.set_flow_run_state(stored.run_id, Cancelling(), force=True)  # type: ignore[arg-type]
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert await reason(storage) == "ended by a cancellation in Prefect"


@pytest.mark.parametrize(
    ("step", "status", "error"),
    [
        ("PUT", "failed", "ended by a suspension in Prefect"),
        ("page", "success", None),
    ],
)
async def test_suspended_run_writes_its_outcome(
    step: str,
    status: str,
    error: str | None,
    storage: StorageSettings,
    service: Flaky,
    tmp_path: Path,
) -> None:
    """Prefect begins no further task of it: what it has collected is promoted, and no more read."""

    def suspend(called: str = "page", _body: str = "") -> None:
        if called == step:
            for request in _active_flow_run_suspension_requests.values():
                request.mark_requested(Suspended())

    async def read() -> None:
        suspend()

    service.fault = suspend
    with pytest.raises(Pause):
        await collect(
            ScriptedSource([[record("1", 1)], read]), {"url": f"sqlite:///{tmp_path}/r.db"}, storage
        )
    async with new_client(storage) as client:
        stored = await client.get_watermark("feed")
    assert stored
    assert (stored.status, stored.error_message) == (status, error)
    assert (stored.last_successful_timestamp is None) == (status == "failed")


async def test_each_source_of_many_says_who_ended_it(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """Cancelling a run of many sources writes the same into the watermark of each under way."""
    async with FeedServer(HANGING) as feed:
        sources = [{"kind": "kev", "url": feed.url}]
        run = asyncio.ensure_future(
            collect_many(sources, sink={"url": f"sqlite:///{tmp_path}/r.db"}, storage=storage)
        )
        await reached(feed.asked, run)
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


async def test_intent_of_prefect_is_acknowledged_in_a_run() -> None:
    """Prefect kills a run at once that does not acknowledge; afterwards its handler is its own."""
    prefects = engine._prefect_sigterm_handler
    with engine.capture_sigterm():
        ending.note_signals()
        assert engine.can_ack_control_intent()
        with ending.signals_noted():
            assert engine.can_ack_control_intent()
        assert engine.can_ack_control_intent()
        assert signal.getsignal(signal.SIGTERM) is prefects
    assert signal.getsignal(signal.SIGTERM) is not prefects
    assert engine._prefect_sigterm_handler is prefects


async def test_parameters_that_are_checked_without_a_run_leave_signals_alone() -> None:
    """Handlers that no run gives back would be taken for the process's own by the next run."""
    before = [signal.getsignal(each) for each in ending._NOTED]
    collect_kev.validate_parameters({"source": {"kind": "kev"}})
    assert [signal.getsignal(each) for each in ending._NOTED] == before


async def test_run_that_ends_before_its_body_leaves_no_handler() -> None:
    """Who interrupts the program later meets the program's own handlers."""
    before = [signal.getsignal(each) for each in ending._NOTED]
    with pytest.raises(ParameterTypeError):
        await collect_kev(source={"kind": "kev"}, limits={"lease": "never"})
    assert [signal.getsignal(each) for each in ending._NOTED] == before


async def test_signal_before_the_body_of_a_run_ends_it() -> None:
    """What Prefect's handler raised was lost while the run was set up: its body never begins."""
    before = [signal.getsignal(each) for each in ending._NOTED]
    began = False
    with engine.capture_sigterm():
        ending.note_signals()
        with suppress(TerminationSignal):  # as if it were raised in a callback of the loop
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(TerminationSignal), ending.signals_noted():
            began = True
        assert ending.signal_noted() == "SIGTERM"
    assert not began
    assert [signal.getsignal(each) for each in ending._NOTED] == before
    with ending.signals_noted():
        assert ending.signal_noted() is None


STRIKES = """
import asyncio, os, signal, sys
from aiohttp.client_proto import ResponseHandler
from ladon_storage.flows import ending
from ladon_storage.cli import main
how, number, feed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
received = ResponseHandler.data_received

def tell():
    os.kill(os.getpid(), number)

def strike(self, data):
    if self.transport.get_extra_info("peername")[1] != feed:
        return received(self, data)
    ResponseHandler.data_received = received
    if how == "protocol":
        tell()
    elif how == "callback":
        asyncio.get_running_loop().call_soon(tell)
    elif how == "task":
        tasks.append(asyncio.ensure_future(told()))
    elif how == "finalizer":
        Finalized()
    elif how == "twice":
        tell()
        os.kill(os.getpid(), signal.SIGTERM)
    elif how == "stuck":
        ending.GRACE_SECONDS = 0.1
        tell()
        while True:
            pass
    received(self, data)

async def told():
    tell()

class Finalized:
    def __del__(self):
        tell()

tasks = []
ResponseHandler.data_received = strike
sys.exit(main(["collect", sys.argv[4], "--sink", sys.argv[5], "--prefect"]))
"""
PLACES = ["protocol", "callback", "task", "finalizer", "twice", "stuck"]
STRUCK = [(place, signal.SIGTERM) for place in PLACES]
STRUCK += [("protocol", signal.SIGHUP), ("protocol", signal.SIGINT), ("stuck", signal.SIGINT)]


@pytest.mark.slow
@pytest.mark.parametrize(("place", "number"), STRUCK)
async def test_signal_is_lost_nowhere(
    place: str,
    number: signal.Signals,
    storage: StorageSettings,
    service: Flaky,
    tmp_path: Path,
    forks: Forks,
) -> None:
    """Wherever the process is when a signal strikes, the run ends by it and names it."""
    async with FeedServer(HANGING) as feed:
        source = json.dumps({"kind": "kev", "url": feed.url})
        port = str(URL(feed.url).port)
        arguments = (place, str(int(number)), port, source, f"sqlite:///{tmp_path}/r.db")
        async with forks.run(
            STRIKES, *arguments, folder=tmp_path, STORAGE_SERVICE_URL=service.url
        ) as running:
            _, log = await asyncio.wait_for(running.communicate(), SECONDS)
    assert running.returncode not in (0, 1), log
    assert await reason(storage, "kev") == f"ended by {number.name}", log
    assert "Fatal error" not in log or place == "stuck"


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


async def test_error_after_a_signal_names_the_signal() -> None:
    """Whatever a run ends with once a signal was noted, its outcome names the signal first."""

    async def body() -> None:
        with ending.signals_noted():
            named = ending.Ending()
            os.kill(os.getpid(), signal.SIGHUP)
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            said = await named.named("SourceError: 410")
            raise LookupError(said)

    with pytest.raises(TerminationSignal) as told:
        await asyncio.ensure_future(body())
    assert str(told.value.__cause__) == "ended by SIGHUP: SourceError: 410"


async def test_signal_that_comes_too_late_to_cancel_is_not_lost() -> None:
    """A body that was done when the signal came has its outcome, and the process is told then."""
    with pytest.raises(KeyboardInterrupt), ending.signals_noted():
        os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task
    assert not task.cancelling()
