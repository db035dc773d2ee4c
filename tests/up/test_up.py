"""`make up` as a person meets it: addresses, a run, Ctrl-C, and everything there the next time."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from asyncio.subprocess import Process
from pathlib import Path

import aiohttp
import pytest

from ladon_storage import StorageServiceClient
from ladon_storage.cli.up import held, port_near
from ladon_storage.errors import ConfigurationError
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.tables import table
from tests.up.prefect_api import (
    CATALOGUE,
    STEP_SECONDS,
    UP,
    PrefectApi,
    left_of,
    module,
    processes_of,
)

RUNS_IN_A_ROW = 12
FREE_PORTS = ("--prefect-port", "0", "--storage-port", "0")
STOPPED_SECONDS = 120


async def addresses(process: Process) -> tuple[PrefectApi, str, str]:
    """Return Prefect and the Storage Service's address when all is up, and what was printed."""
    printed = ""
    assert process.stdout
    async with asyncio.timeout(STEP_SECONDS):
        while "Ctrl-C" not in printed:
            line = (await process.stdout.readline()).decode()
            assert line, printed
            printed += line
    prefect = re.search(r"Prefect UI +(http://127\.0\.0\.1:\d+)\n", printed)
    storage = re.search(r"Storage Service +(http://127\.0\.0\.1:\d+)\n", printed)
    assert prefect, printed
    assert storage, printed
    return PrefectApi(f"{prefect[1]}/api"), storage[1], printed


async def ended_runs(folder: Path) -> None:
    """Wait for the processes of runs: Prefect cancels a completed one that has not ended."""
    async with asyncio.timeout(STEP_SECONDS):
        while any("prefect.engine" in each for each in left_of(folder)):
            await asyncio.sleep(0.2)


async def test_up_runs_deployments_and_finds_its_data_again(tmp_path: Path) -> None:
    """A run completes, SIGINT ends every process, and the next start has runs and watermark."""
    folder = tmp_path / "local"
    command = (*UP, "--table", "prefect.yaml", "--folder", str(folder))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with (
            FeedServer(play=lambda _asked: Answer.of(CATALOGUE)) as feed,
            module(tmp_path, *command, "--prefect-port", str(port)) as process,
        ):
            api, service, printed = await addresses(process)
            assert f"Port {port} is taken" in printed
            run_id = await api.trigger("collect-kev/kev", source={"kind": "kev", "url": feed.url})
            run = await api.run(run_id)
            assert run["state_type"] == "COMPLETED", run["state"]["message"]
            await ended_runs(folder)
            paused = await api.ask("GET", "deployments/name/collect-otx/otx")
            assert paused["paused"]
            await api.ask("POST", f"deployments/{paused['id']}/resume_deployment")
            for number in (signal.SIGINT, signal.SIGTERM):  # a person who insists
                process.send_signal(number)
            assert await asyncio.wait_for(process.wait(), STEP_SECONDS) == 0
    assert left_of(folder) == []
    assert len(table(folder / "records.db")) == 2

    async with (
        FeedServer(play=lambda _asked: Answer.of(CATALOGUE)) as feed,
        module(tmp_path, *command, "--storage-port", "0") as process,
    ):
        api, service, _ = await addresses(process)
        assert (await api.run(run_id))["state_type"] == "COMPLETED"
        async with StorageServiceClient(service) as client:
            watermark = await client.get_watermark("kev")
        assert watermark
        assert watermark.status == "success"
        for slug in ("ladon-storage-service", "ladon-record-sink"):
            kind = await api.ask("GET", f"block_types/slug/{slug}")
            assert kind["logo_url"] == f"{service}/logo.svg"
        async with aiohttp.ClientSession() as session, session.get(kind["logo_url"]) as logo:
            assert (logo.status, logo.content_type) == (200, "image/svg+xml")
        resumed = await api.ask("GET", "deployments/name/collect-otx/otx")
        assert not resumed["paused"], "what a person switched on stays on"
        again = await api.trigger("collect-kev/kev", source={"kind": "kev", "url": feed.url})
        run = await api.run(again)
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), STEP_SECONDS) == 0
    assert left_of(folder) == []
    assert len(table(folder / "records.db")) == 2


async def test_runs_in_a_row_do_not_lock_prefect(tmp_path: Path) -> None:
    """Run after run, Prefect's server never says that its database is locked."""
    folder = tmp_path / "local"
    command = (*UP, "--table", "prefect.yaml", "--folder", str(folder), *FREE_PORTS)
    async with (
        FeedServer(play=lambda _asked: Answer.of(CATALOGUE)) as feed,
        module(tmp_path, *command) as process,
    ):
        api, _, _ = await addresses(process)
        source = {"kind": "kev", "url": feed.url}
        for _ in range(RUNS_IN_A_ROW):
            run = await api.run(await api.trigger("collect-kev/kev", source=source))
            assert run["state_type"] == "COMPLETED", run["state"]["message"]
        log = (folder / "prefect-server.log").read_text(errors="replace")
        assert log.count("database is locked") == 0


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_outcome_is_written_while_prefect_is_away(
    number: signal.Signals, tmp_path: Path
) -> None:
    """A server that is stopped for two minutes, or killed, keeps no outcome from the service."""
    folder = tmp_path / "local"
    command = (*UP, "--table", "prefect.yaml", "--folder", str(folder), *FREE_PORTS)
    async with FeedServer() as feed, module(tmp_path, *command) as process:
        api, service, _ = await addresses(process)
        servers = [pid for pid, text in processes_of(folder) if "prefect server start" in text]
        assert servers, processes_of(folder)

        def play(_asked: Asked) -> Answer:
            for each in servers:
                os.kill(each, number)
            return Answer.of(CATALOGUE)

        feed.play = play
        run_id = await api.trigger("collect-kev/kev", source={"kind": "kev", "url": feed.url})
        async with asyncio.timeout(STEP_SECONDS), StorageServiceClient(service) as client:
            while (watermark := await client.get_watermark("kev")) is None or (
                watermark.status == "running"
            ):
                await asyncio.sleep(0.2)
        assert watermark.status == "success", watermark.error_message
        assert len(table(folder / "records.db")) == 2
        if number == signal.SIGSTOP:
            await asyncio.sleep(STOPPED_SECONDS)
            for each in servers:
                os.kill(each, signal.SIGCONT)
            run = await api.run(run_id)
            assert run["state_type"] == "COMPLETED", run["state"]["message"]


async def test_end_in_the_middle_of_a_run_is_recorded(tmp_path: Path) -> None:
    """SIGINT lets a run under way write that it failed; Prefect does not show it as running."""
    folder = tmp_path / "local"
    hanging = Answer(body=b'{"count": 2', stall_at=5)
    command = (*UP, "--table", "prefect.yaml", "--folder", str(folder), *FREE_PORTS)
    async with FeedServer(hanging) as feed:
        async with module(tmp_path, *command) as process:
            api, _, _ = await addresses(process)
            run_id = await api.trigger("collect-kev/kev", source={"kind": "kev", "url": feed.url})
            await asyncio.wait_for(feed.asked.wait(), STEP_SECONDS)
            process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(process.wait(), STEP_SECONDS) == 0
        assert left_of(folder) == []
        async with module(tmp_path, *command) as process:
            api, service, _ = await addresses(process)
            assert (await api.run(run_id))["state_type"] == "CANCELLED"
            async with StorageServiceClient(service) as client:
                watermark = await client.get_watermark("kev")
            assert watermark
            assert watermark.status == "failed"
            feed.play = lambda _asked: Answer.of(CATALOGUE)
            again = await api.trigger("collect-kev/kev", source={"kind": "kev", "url": feed.url})
            assert (await api.run(again))["state_type"] == "COMPLETED"


@pytest.mark.parametrize(
    ("name", "log"),
    [("Prefect", "prefect-server.log"), ("Storage Service", "storage-service.log")],
)
async def test_up_ends_when_a_server_of_it_is_killed(tmp_path: Path, name: str, log: str) -> None:
    """Every run would fail from then on, and nothing would start the server again."""
    folder = tmp_path / "local"
    command = (*UP, "--table", "prefect.yaml", "--folder", str(folder), *FREE_PORTS)
    async with module(tmp_path, *command) as process:
        await addresses(process)
        found = re.search(rf"^(\d+) {name}$", (folder / "lock").read_text(), re.MULTILINE)
        assert found
        os.kill(int(found[1]), signal.SIGKILL)
        printed, _ = await asyncio.wait_for(process.communicate(), STOPPED_SECONDS)
    assert process.returncode == 1
    assert f"{name} ended by signal 9; read {folder / log}." in printed.decode()
    assert left_of(folder) == []


def test_second_up_of_a_folder_is_refused(tmp_path: Path) -> None:
    """Two servers over one database would take each other's runs: the second says so and ends."""
    with held(tmp_path), pytest.raises(ConfigurationError, match="up already"), held(tmp_path):
        pass
    with held(tmp_path):
        pass


def test_taken_port_is_replaced_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """The port that was asked for where it is free; another one, said aloud, where it is not."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port_near(port, "Prefect") != port
        assert f"Port {port} is taken: Prefect is at" in capsys.readouterr().err
    assert port_near(port, "Prefect") == port
    assert capsys.readouterr().err == ""
