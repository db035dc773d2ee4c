"""The runbook: from each alert to the mended source, by the commands of its section alone."""

from __future__ import annotations

import asyncio
import html
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from ladon_storage.circuit.urls import SharedCircuit, circuit_of
from ladon_storage.client import StorageServiceClient
from ladon_storage.connect import new_client
from ladon_storage.errors import WatermarkConflictError
from ladon_storage.server.serving import serving
from ladon_storage.server.sqlite import SqliteBackend
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.cli.called import Command
from tests.documents import ROOT, Block, blocks
from tests.project.test_monitoring import rules
from tests.service import service_process

OPERATE = ROOT / "docs" / "how-to" / "operate.md"
ALERTS = ROOT / "docs" / "how-to" / "alerts.md"
LIMIT = timedelta(hours=48)


def sections(page: Path) -> dict[str, list[Block]]:
    """Return the consoles of each section of a page, by the section's anchor."""
    lines = page.read_text(encoding="utf-8").splitlines()
    heads = [
        (number, re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-"))
        for number, line in enumerate(lines, 1)
        if re.match(r"#{2,3} ", line)
    ]
    found: dict[str, list[Block]] = {anchor: [] for _, anchor in heads}
    for block in blocks(page):
        above = [anchor for number, anchor in heads if number < block.line]
        if block.language == "console" and above:
            found[above[-1]].append(block)
    return found


def consoles(link: str) -> list[Block]:
    """Return the consoles of the section that a link names."""
    page, _, anchor = link.partition("#")
    return sections(ROOT / page)[anchor]


@dataclass
class World:
    """A service, a sink and the feed of one source, and an operator with a terminal."""

    ladon: Command
    feed: FeedServer
    stack: AsyncExitStack
    port: int
    name: str = "kev"
    source_id: str = "kev"
    pushed: dict[str, str] = field(default_factory=dict)
    offset: timedelta = timedelta(0)
    status: int = 200
    entries: list[dict[str, str]] = field(default_factory=list)
    _service: AsyncExitStack = field(default_factory=AsyncExitStack)
    _conflicts: float = 0.0

    @property
    def address(self) -> str:
        """The address of the service."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> Path:
        """The file of the service."""
        return self.ladon.folder / "storage.db"

    def now(self) -> datetime:
        """Return the service's time."""
        return datetime.now(UTC) + self.offset

    def describe(self, fields: str) -> None:
        """Write the file, with these fields of the source."""
        self.ladon.write(
            "ladon.toml",
            f'[storage]\nurl = "{self.address}"\n[sinks.records]\nurl = "sqlite:///records.db"\n'
            f"[sources.{self.name}]\nsource_id = {json.dumps(self.source_id)}\n"
            f'url = "{self.feed.url}"\n{fields}'
            f"freshness.max_age_hours = {LIMIT / timedelta(hours=1)}\n",
        )

    async def start_gateway(self) -> str:
        """Start a Pushgateway that keeps what runs push, and return its address."""

        async def put(request: web.Request) -> web.Response:
            self.pushed[request.path] = await request.text()
            return web.Response()

        application = web.Application()
        application.router.add_put("/{path:.*}", put)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        self.stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"127.0.0.1:{runner.addresses[0][1]}"

    async def start(self) -> None:
        """Start the service."""
        options: dict[str, Any] = {"now": self.now, "limits": {"kev": LIMIT}}
        await self._service.enter_async_context(
            serving(self.database, "127.0.0.1", self.port, **options)
        )

    async def stop(self) -> None:
        """Stop the service, however it runs."""
        await self._service.aclose()

    async def start_process(self, *command_line: str) -> None:
        """Start the service by a command line, as a process."""
        serve = command_line or ("serve", "--database", "storage.db", "--port", str(self.port))
        await self._service.enter_async_context(
            service_process(
                self.database,
                command_line=[sys.executable, "-m", "ladon_storage.cli", *serve],
                environment={"PYTHONPATH": str(ROOT)},
            )
        )

    async def client(self) -> StorageServiceClient:
        """Return a client of the service that knows what it offers."""
        client = new_client(StorageSettings(url=self.address, circuit_url="memory://"))
        assert isinstance(client, StorageServiceClient)
        await self.stack.enter_async_context(client)
        await client.get_watermark("unknown")
        return client

    def publish(self, *days: datetime | str) -> None:
        """Let the feed have an entry for each day."""
        texts = [each if isinstance(each, str) else f"{each:%Y-%m-%d}" for each in days]
        self.entries = [
            {"cveID": f"CVE-2024-{number:04}", "dateAdded": text}
            for number, text in enumerate(texts)
        ]

    def answer(self, _: Asked) -> Answer:
        """Return the feed's answer."""
        if self.status != 200:
            return Answer(b'{"error": "no such key"}', status=self.status)
        return Answer.of({"count": len(self.entries), "vulnerabilities": self.entries})

    async def get(self, path: str) -> tuple[int, str]:
        """Return the status and the text of a page of the service; 0: it does not answer."""
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{self.address}{path}") as response,
            ):
                return response.status, await response.text()
        except aiohttp.ClientError:
            return 0, ""

    async def of_source(self, name: str) -> float:
        """Return the value of a metric of the service for the source."""
        _, text = await self.get("/metrics")
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"storage_service_{name}" and sample.labels == {
                    "source_id": "kev"
                }:
                    return float(sample.value)
        return 0.0

    def circuit(self) -> SharedCircuit:
        """Return the circuit that processes share."""
        return circuit_of(self.address, os.environ["STORAGE_CIRCUIT_URL"])

    async def conflicts(self) -> float:
        """Return how many conflicts there were since the last look."""
        now = await self.of_source("conflicts_total")
        before, self._conflicts = self._conflicts, now
        return now - before

    async def type(self, command: str, shown: list[str]) -> None:
        """Run a command of the page; what the page shows of its output must be there."""
        program, *arguments = shlex.split(command.replace("8080", str(self.port)))
        if program == "ladon-storage" and arguments[0] == "serve":
            await self.start_process(*arguments)
            return
        if program == "ladon-storage":
            called = await self.ladon.later(*arguments)
            code, output = called.code, called.out + called.err
        else:
            assert program in ("mv", "rm", "cp")
            done = await asyncio.to_thread(
                subprocess.run, [program, *arguments], capture_output=True, text=True, check=False
            )
            code, output = done.returncode, done.stdout + done.stderr
        assert code == expected_code(arguments, shown), f"{command}\n{output}"
        for line in shown:
            words = ".*".join(map(re.escape, line.split()))
            assert re.search(words, output), f"{command}: {line}\n{output}"


def expected_code(arguments: list[str], shown: list[str]) -> int:
    """Return the exit code of a command whose output the page shows."""
    is_check = arguments[:1] == ["doctor"] or arguments[:2] == ["source", "check"]
    fails = any(line.endswith(" failed") for line in shown)
    return int(any(line.startswith("ladon-storage: ") for line in shown) or (is_check and fails))


async def nothing(_: World) -> None:
    """Leave the world as it is."""


async def down(world: World) -> None:
    """End the service."""
    await world.stop()


async def touched(world: World) -> None:
    """Delete the log of a running service, of which there is a backup."""
    await world.type("ladon-storage collect kev", [])
    await world.type("ladon-storage backup backup.db --database storage.db", [])
    await world.stop()
    await world.start_process()
    client = await world.client()
    await client.update_watermark("other", datetime(2024, 1, 1, tzinfo=UTC))
    (world.ladon.folder / "storage.db-wal").unlink()


async def stale(world: World) -> None:
    """Let ten days pass in which nothing is collected, though the feed goes on."""
    now = datetime.now(UTC)
    world.publish(now - timedelta(days=10))
    await world.type("ladon-storage collect kev", [])
    world.publish(now - timedelta(days=10), now)


async def failing(world: World) -> None:
    """Let the feed refuse the key of three runs."""
    world.status = 401
    for _ in range(3):
        called = await world.ladon.later("collect", "kev")
        assert called.code == 1


async def allowed(world: World) -> None:
    """Let the feed accept the key again."""
    world.status = 200


async def killed(world: World) -> None:
    """Kill a run while it reads, and let its lease end."""
    world.feed.script.append(Answer(b'{"vulnerabilities": [', stall_at=5))
    world.feed.asked.clear()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ladon_storage.cli", "collect", "kev",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    async with asyncio.timeout(60):
        await world.feed.asked.wait()
    process.send_signal(signal.SIGKILL)
    await process.wait()
    world.offset += timedelta(minutes=2)


async def held(world: World) -> None:
    """Let a run renew its lease for seven hours."""
    client = await world.client()
    begun = datetime(2024, 1, 1, tzinfo=UTC)
    running: dict[str, Any] = {"run_id": "old-run", "lease": timedelta(minutes=1)}
    await client.update_watermark("kev", begun, "running", **running)
    world.offset += timedelta(hours=7)
    await client.update_watermark("kev", begun, "running", **running)


async def in_future(world: World) -> None:
    """Write a watermark while the service's clock is two years ahead."""
    await world.type("ladon-storage collect kev", [])
    client = await world.client()
    world.offset = timedelta(days=730)
    await client.update_watermark("kev", world.now() - timedelta(days=1))
    world.offset = timedelta(0)


async def restored(world: World) -> None:
    """Put a backup in the place of the sink, and let a run find that."""
    await world.type("ladon-storage collect kev", [])
    shutil.copy("records.db", "records-backup.db")
    world.publish("2024-01-01", "2024-01-02", "2024-01-03", world.now() - timedelta(days=1))
    await world.type("ladon-storage collect kev", [])
    shutil.copy("records-backup.db", "records.db")
    await world.type("ladon-storage collect kev", ["sink was restored from a backup"])


def reported(**ledger: object) -> Callable[[World], Awaitable[None]]:
    """Return the fault of a source whose last run wrote this ledger."""

    async def make(world: World) -> None:
        client = await world.client()
        await client.update_watermark("kev", datetime(2024, 1, 1, tzinfo=UTC), ledger=ledger)

    return make


async def unusable(world: World) -> None:
    """Let one entry of three be without its id."""
    del world.entries[1]["cveID"]
    await world.type("ladon-storage collect kev", [])


async def corrected(world: World) -> None:
    """Let the feed have the id again."""
    world.entries[1]["cveID"] = "CVE-2024-0001"


async def overtaken(world: World) -> None:
    """Let another run be faster four times."""
    client = await world.client()
    at = datetime(2024, 1, 1, tzinfo=UTC)
    first = await client.update_watermark("kev", at, "running", run_id="one")
    await client.update_watermark("kev", at, run_id="another")
    for _ in range(4):
        with pytest.raises(WatermarkConflictError):
            await client.update_watermark("kev", at, run_id="one", if_match=first.etag)


async def open_circuit(world: World) -> None:
    """Open the circuit that processes share."""
    world.circuit().trip("5 calls failed")


async def missed(world: World) -> None:
    """Let a record come later than the overlap reaches, and reconcile."""
    world.describe(
        'kind = "rest"\nrecords = "vulnerabilities"\nid = "cveID"\ntimestamps = ["dateAdded"]\n'
        'since.parameter = "since"\noverlap = "PT1H"\n'
    )
    await world.type("ladon-storage collect kev", [])
    late = datetime(2024, 1, 1, 12, tzinfo=UTC)
    world.entries.append({"cveID": "CVE-2024-0009", "dateAdded": f"{late:%Y-%m-%dT%H:%M:%SZ}"})
    await world.type("ladon-storage reconcile kev", ["missed 1 of"])


async def lost(world: World) -> None:
    """Let the service's database lack acknowledged changes, as PostgreSQL after a failover."""
    world.stack.enter_context(patch.object(SqliteBackend, "lost_changes", 7))


async def restarted(world: World) -> None:
    """Start the service again, which knows of no loss from then on."""
    await world.stop()
    world.stack.enter_context(patch.object(SqliteBackend, "lost_changes", 0))
    await world.start()


@dataclass(frozen=True)
class Fault:
    """A fault: how it is made, what is mended besides commands, and the sign that an alert sees."""

    make: Callable[[World], Awaitable[None]]
    fires: Callable[[World], Awaitable[bool]]
    mend: Callable[[World], Awaitable[None]] = nothing


def metric(name: str, least: float = 1.0) -> Callable[[World], Awaitable[bool]]:
    """Return whether a metric of the service has the value at which its alert fires."""

    async def fires(world: World) -> bool:
        return await world.of_source(name) >= least

    return fires


async def is_too_old(world: World) -> bool:
    """Return whether the watermark is older than its limit."""
    age = await world.of_source("watermark_age_seconds")
    return age > await world.of_source("watermark_age_limit_seconds")


async def is_mostly_unusable(world: World) -> bool:
    """Return whether more than 5 % of the last run are in quarantine."""
    quarantined = await world.of_source("last_run_quarantined")
    return quarantined > 0.05 * await world.of_source("last_run_delivered")


async def is_late(world: World) -> bool:
    """Return whether records are nearly as late as the overlap reaches."""
    overlap = await world.of_source("overlap_seconds")
    return overlap > 0 and await world.of_source("last_run_behind_seconds") > 0.8 * overlap


async def is_down(world: World) -> bool:
    """Return whether the service does not answer."""
    return (await world.get("/health"))[0] == 0


async def has_errors(world: World) -> bool:
    """Return whether the service answers with an error of its own."""
    return (await world.get("/health"))[0] >= 500


async def has_lost(world: World) -> bool:
    """Return whether the database lacks acknowledged changes."""
    return "storage_service_lost_changes_total 0.0" not in (await world.get("/metrics"))[1]


async def is_open(world: World) -> bool:
    """Return whether the shared circuit is open."""
    return str(world.circuit().shared_record().circuit[0]) == "open"


async def has_conflicts(world: World) -> bool:
    """Return whether more than three conflicts came since the last look."""
    return await world.conflicts() > 3


async def has_missed(world: World) -> bool:
    """Return whether the last reconciliation pushed that it found missed records."""
    # The group's name has a space, and so is in base64.
    [pushed] = [text for path, text in world.pushed.items() if "@base64" in path]
    return 'ladon_reconciliation_missed{source_id="kev"} 0.0' not in pushed


async def started(world: World) -> None:
    """Start the service again."""
    await world.start()


FAULTS = {
    "StorageServiceDown": Fault(down, is_down),
    "StorageServiceErrors": Fault(touched, has_errors, down),
    "StorageServiceChangesLost": Fault(lost, has_lost, restarted),
    "StorageSourceStale": Fault(stale, is_too_old),
    "StorageSourceFailing": Fault(failing, metric("failures_in_a_row", 3), allowed),
    "StorageServiceRunStale": Fault(killed, metric("run_stale")),
    "StorageSourceHeldLong": Fault(held, metric("running_seconds", 6 * 3600)),
    "StorageServiceWatermarkInFuture": Fault(in_future, metric("watermark_in_future")),
    "StorageSourceGap": Fault(
        reported(gap={"start": "2024-01-01T00:00:00Z", "end": "2024-01-02T00:00:00Z"}),
        metric("last_run_gap"),
    ),
    "StorageSinkBehind": Fault(restored, metric("last_run_sink_behind")),
    "StorageSourceQuarantine": Fault(unusable, is_mostly_unusable, corrected),
    "StorageSourceLate": Fault(reported(behind_seconds=3500.0, overlap_seconds=3600.0), is_late),
    "StorageSourceConflicts": Fault(overtaken, has_conflicts),
    "StorageClientCircuitBreakerOpen": Fault(open_circuit, is_open),
    "StorageClientHighErrorRate": Fault(down, is_down, started),
    "StorageRecordsMissed": Fault(missed, has_missed),
}


@pytest.fixture
async def world(
    ladon: Command, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[World]:
    """Give a world in which all is well; a parameter is the name of the source in the file."""
    monkeypatch.setenv("STORAGE_CIRCUIT_URL", f"sqlite:///{ladon.folder}/circuits.db")
    with socket.socket() as held:
        # Bound for as long as services come and go: nothing else is given its port.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        async with AsyncExitStack() as stack, FeedServer() as feed:
            made = World(ladon, feed, stack, port, getattr(request, "param", "kev"))
            feed.play = made.answer
            made.publish("2024-01-01", "2024-01-02", "2024-01-03")
            made.describe('kind = "kev"\n')
            monkeypatch.setenv("LADON_PUSHGATEWAY_URL", await made.start_gateway())
            await made.start()
            yield made
            await made.stop()


async def follow(world: World, found: list[Block], mend: Callable[[World], Awaitable[None]]) -> int:
    """Type the commands of a section; after its first console the world is mended besides."""
    typed = 0
    for number, block in enumerate(found):
        for command, shown in block.commands:
            await world.type(command, shown)
            typed += 1
        if number == 0:
            await mend(world)
    return typed


def test_each_alert_has_its_fault() -> None:
    """No section is left out of the walk."""
    assert set(FAULTS) == set(rules())


@pytest.mark.parametrize("alert", sorted(FAULTS))
async def test_section_leads_from_the_alert_to_the_mended_source(alert: str, world: World) -> None:
    """The commands of the section that an alert names end what the alert saw, word for word."""
    fault = FAULTS[alert]
    await fault.make(world)
    assert await fault.fires(world)
    assert await follow(world, consoles(rules()[alert]["annotations"]["runbook"]), fault.mend)
    assert not await fault.fires(world)


async def test_section_leads_from_a_restored_sink_to_all_records(world: World) -> None:
    """A sink from a backup is filled from its own position, and nothing is missed."""
    await world.type("ladon-storage collect kev", [])
    shutil.copy("records.db", "records-backup.db")
    world.publish("2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05")
    await world.type("ladon-storage collect kev", [])
    assert await follow(world, sections(OPERATE)["restore-a-sink"], nothing) == 4
    with closing(sqlite3.connect("records.db")) as records:
        assert records.execute("SELECT count(*) FROM records").fetchone() == (5,)


@pytest.mark.parametrize(
    "alert",
    [
        "StorageSourceStale",
        "StorageSourceFailing",
        "StorageServiceRunStale",
        "StorageSourceHeldLong",
        "StorageServiceWatermarkInFuture",
        "StorageSourceGap",
        "StorageSinkBehind",
        "StorageSourceQuarantine",
        "StorageSourceLate",
    ],
)
async def test_page_of_the_source_names_the_commands_of_the_runbook(
    alert: str, world: World
) -> None:
    """A person who starts at the status page is led to the same commands."""
    await FAULTS[alert].make(world)
    status, page = await world.get("/sources/kev")
    assert status == 200
    commands = [html.unescape(each) for each in re.findall(r"<code>([^<]*)</code>", page)]
    found = consoles(rules()[alert]["annotations"]["runbook"])
    typed = [command for block in found for command, _ in block.commands]
    assert commands
    for command in commands:
        pattern = re.escape(command).replace("TIMESTAMP", r"\S+").replace("TEXT", '".*"')
        assert any(re.fullmatch(pattern, each) for each in typed), command
    _, listed = await world.get("/")
    assert "/sources/kev" in listed


@pytest.mark.parametrize("world", ["catalogue"], indirect=True)
@pytest.mark.parametrize(
    "command",
    ["collect kev", "freshness kev", "source check kev", "source try kev", "reconcile kev"],
)
async def test_command_takes_the_name_that_an_alert_has(command: str, world: World) -> None:
    """An alert names a watermark: the source of the file is meant, and no kind of that name."""
    now = datetime.now(UTC)
    world.publish(now - timedelta(days=1), now)
    await world.type("ladon-storage collect catalogue", [])
    requests = len(world.feed.requests)
    await world.type(f"ladon-storage {command}", [])
    if command != "freshness kev":
        assert len(world.feed.requests) > requests


async def state_and_commands(world: World) -> tuple[str, list[str]]:
    """Return the state of the source that its page has, and the commands that it names."""
    status, page = await world.get(f"/sources/{quote(world.source_id, safe='')}")
    assert status == 200
    [state] = re.findall(r"<dt>State</dt><dd>(.*?)</dd>", page, re.DOTALL)
    commands = re.findall(r"<code>([^<]*)</code>", page)
    return re.sub(r"<[^>]*>", "", state).strip(), [html.unescape(each) for each in commands]


@pytest.mark.parametrize(
    ("alert", "state", "path"),
    [
        ("StorageSourceStale", "stale", ["watermarks show", "collect"]),
        ("StorageSourceFailing", "failed", ["source check", "collect"]),
        ("StorageServiceRunStale", "held by a dead run", ["collect"]),
        ("StorageSourceHeldLong", "running", ["watermarks release", "source check", "collect"]),
        ("StorageServiceWatermarkInFuture", "in the future", ["collect"]),
        ("StorageSinkBehind", "sink refilled", ["watermarks show", "reconcile", "collect"]),
    ],
)
async def test_page_alone_leads_to_a_source_that_is_well(
    alert: str, state: str, path: list[str], world: World
) -> None:
    """The commands of the page, in its order and looked at again after each change, end in *ok*."""
    fault = FAULTS[alert]
    await fault.make(world)
    found, commands = await state_and_commands(world)
    assert found == state
    world.publish(world.now() - timedelta(days=1), datetime.now(UTC))
    await fault.mend(world)
    typed = list[str]()
    while commands:
        assert len(typed) < len(path), commands
        command = commands.pop(0)
        await world.type(command.replace("TEXT", "'its host is gone'"), [])
        typed.append(" ".join(itertools.takewhile("kev".__ne__, command.split()[1:])))
        before, (found, again) = found, await state_and_commands(world)
        commands = commands if found == before else again
    assert (found, typed) == ("ok", path)


async def test_page_leads_from_a_future_watermark_by_a_reset_where_no_run_comes(
    world: World,
) -> None:
    """A timestamp of the history is typed as the page asks, and the future is gone."""
    await in_future(world)
    _, commands = await state_and_commands(world)
    [reset] = [each for each in commands if " reset " in each]
    to = (datetime.now(UTC) - timedelta(days=1)).isoformat(timespec="seconds")
    await world.type(reset.replace("TIMESTAMP", to).replace("TEXT", "'a clock was wrong'"), [])
    assert await state_and_commands(world) == ("ok", [])


@pytest.mark.parametrize("source_id", ["-x", "--all", "kev=1", "it's $HOME", "a b/c", "ä#?%"])
async def test_page_has_commands_that_a_shell_and_the_command_take_for_each_name(
    source_id: str, world: World
) -> None:
    """A name that looks like an option, or like a name with its limit, still names its source."""
    world.name, world.source_id = "catalogue", source_id
    world.describe('kind = "kev"\n')
    client = await world.client()
    world.offset = timedelta(days=730)
    await client.update_watermark(source_id, world.now() - timedelta(days=1))
    world.offset = timedelta(0)
    state, commands = await state_and_commands(world)
    assert (state, len(commands)) == ("in the future", 3)
    for command in commands:
        typed = command.replace("TIMESTAMP", "2024-01-03").replace("TEXT", "'a clock was wrong'")
        await world.type(typed, [])
    assert (await state_and_commands(world))[0] == "ok"
    stored = await client.get_watermark(source_id)
    assert stored
    assert stored.last_successful_timestamp == datetime(2024, 1, 3, tzinfo=UTC)
    freshness = await world.ladon.later("freshness", "--json", "--", source_id)
    assert [each["source_id"] for each in freshness.json] == [source_id]


OPERATIONS = {
    "read-a-watermark-and-its-history": nothing,
    "reset-a-watermark": nothing,
    "release-a-source": held,
    "read-a-past-range-again": nothing,
    "find-what-regular-runs-missed": nothing,
    "move-to-another-storage-service": nothing,
}
"""The sections of the guide with commands, and what is wrong when they are typed."""
ELSEWHERE = {"restore-a-sink", "when-prefect-is-away", "free-a-slot"}
"""Sections that the test above has, and those that are about Prefect."""


def test_each_section_of_the_guide_with_commands_is_typed() -> None:
    """No console of the guide is left out of the tests."""
    found = {anchor for anchor, consoles in sections(OPERATE).items() if consoles}
    assert found == set(OPERATIONS) | ELSEWHERE


@pytest.mark.parametrize("section", sorted(OPERATIONS))
async def test_commands_of_the_guide_do_what_its_section_is_for(section: str, world: World) -> None:
    """Each can be typed while a service runs, and a reset and a release have their effect."""
    await world.type("ladon-storage collect kev", [])
    await OPERATIONS[section](world)
    assert await follow(world, sections(OPERATE)[section], nothing)
    stored = await (await world.client()).get_watermark("kev")
    assert stored
    is_reset = stored.last_successful_timestamp == datetime(2024, 1, 1, tzinfo=UTC)
    assert is_reset == (section == "reset-a-watermark")
    assert (stored.status == "failed") == (section == "release-a-source")


async def test_backup_and_move_of_the_guide_take_all_watermarks_along(world: World) -> None:
    """Its commands with placeholders lead to a service that has the same watermark."""
    text = " ".join(OPERATE.read_text(encoding="utf-8").split())
    [backup] = re.findall(r"ladon-storage backup copy\.db --database storage\.db", text)
    [moved] = re.findall(r"`(ladon-storage watermarks import [^`]+)`", text)
    await world.type("ladon-storage collect kev", [])
    await world.type(backup, [])
    exported = await world.ladon.later("watermarks", "export")
    world.ladon.write("FILE", exported.out)
    async with serving(world.ladon.folder / "other.db", "127.0.0.1", 0) as other:
        await world.type(moved.replace("ADDRESS", other), [])
        async with aiohttp.ClientSession() as session:
            for database in (f"{world.address}", other):
                path = "/api/v1/watermarks/kev"
                async with session.get(f"{database}{path}") as response:
                    found = (await response.json())["last_successful_timestamp"]
                    assert found.startswith("2024-01-03T00:00:00")
    await world.stop()
    shutil.copy("copy.db", "storage.db")
    await world.start()
    assert await (await world.client()).get_watermark("kev")


async def test_limit_on_the_command_line_judges_a_source(world: World) -> None:
    """The command of the section on freshness works, with a limit in hours."""
    world.publish(datetime.now(UTC))
    await world.type("ladon-storage collect kev", [])
    assert await follow(world, sections(ALERTS)["freshness"], nothing) == 1
