"""The benchmarks run, measure what they say, and do not take a fault for a figure."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from benchmarks import breaker, load, measuring

ROOT = Path(__file__).resolve().parent.parent.parent
# A cost above bare may be below nothing where a script runs at its smallest size.
FIGURE = re.compile(r"(-?[\d,.]+) \((-?[\d,.]+)–(-?[\d,.]+)\)")


def quick(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script at its smallest size."""
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}", "--quick"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=180,
    )


def rows(output: str) -> dict[str, list[list[float]]]:
    """Return the figures of each row of the tables by its texts, checked for being figures."""
    found: dict[str, list[list[float]]] = {}
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        figures = [match for cell in cells if (match := FIGURE.fullmatch(cell))]
        if not line.startswith("│"):
            continue
        numbers = [[float(text.replace(",", "")) for text in match.groups()] for match in figures]
        assert numbers, line
        # The first column of numbers is a cost or a rate.
        assert 0 < numbers[0][1] <= numbers[0][0] <= numbers[0][2]
        texts = [cell for cell in cells if cell and not FIGURE.fullmatch(cell)]
        found.setdefault(": ".join(texts), []).append(numbers[0])
    return found


def test_breaker_is_measured_beside_each_peer_that_is_there() -> None:
    """Each peer has its figures of both kinds of calls, or is said to be missing."""
    ran = quick("breaker")
    found = rows(ran.stdout)
    for each in (breaker.BARE, breaker.OURS, breaker.OURS_TOO):
        assert len(found.pop(each.name)) == 2
    for peer in breaker.PEERS:
        if importlib.util.find_spec(peer.library.partition(".")[0]):
            assert len(found.pop(peer.name)) == 2
        else:
            assert f"{peer.library} is not installed" in ran.stderr
    assert not found


@pytest.mark.slow
def test_startup_times_whole_processes() -> None:
    """Each verb ends well, and has its seconds."""
    printed = quick("startup").stdout
    found = rows(printed)
    assert {"--help", "source try", "collect, nothing new"} <= set(found)
    assert "CPU above an empty flow's" in printed


@pytest.mark.usefixtures("small_heap")
async def test_breaker_that_admits_is_not_measured_as_rejecting() -> None:
    """What should be open and lets a call through is a fault, not a cheap rejection."""
    never_open = breaker.Contender("asyncio", "await func()", breaker.BARE.make)
    with pytest.raises(breaker.AdmittedError):
        await breaker.nanoseconds(never_open, "rejected", calls=1)


def test_missing_peer_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Without the peers, the comparison runs with those that are there."""
    peers = [
        breaker.Contender(library, "await guarded()", breaker.BARE.make)
        for library in ("asyncio", "no_such_breaker")
    ]
    assert breaker.installed(peers) == peers[:1]
    assert "no_such_breaker is not installed" in capsys.readouterr().err


@pytest.mark.slow
def test_shared_circuit_is_measured_beside_the_plain_one() -> None:
    """Each circuit has its figures with a request and without, and each store with its accesses."""
    found = rows(quick("circuit").stdout)
    kinds = ["shared, memory", "shared, SQLite file"]
    assert {name: len(figures) for name, figures in found.items()} == {
        "a circuit of its own": 2,
        **dict.fromkeys(kinds, 2),
        **{f"{kind}: {what}": 1 for kind in kinds for what in ("a look", "a change")},
    }


@pytest.mark.slow
def test_client_is_measured_beside_bare_aiohttp() -> None:
    """Each client has its figures with both servers, one after another and 32 at a time."""
    found = rows(quick("client").stdout)
    assert {name: len(figures) for name, figures in found.items()} == {
        "StorageServiceClient": 4,
        "bare aiohttp, one session": 4,
        "aiohttp, new session each": 4,
    }


@pytest.mark.slow
def test_service_is_measured_beside_the_bare_handler() -> None:
    """Both answer real requests from a process of its own, at a rate and at a cost in CPU time."""
    found = rows(quick("service").stdout)
    servers = ("embedded service", "bare aiohttp handler")
    assert set(found) == {
        *servers, *(f"{method}: {name}" for method in ("GET", "PUT") for name in servers)
    }  # fmt: skip


async def test_load_counts_answers_and_writes_and_reads_in_turn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that comes in pieces is one answer, and each connection has its own source."""
    asked: list[tuple[str, str]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append((request.method, request.path))
        response = web.StreamResponse(headers={"Content-Length": "4"})
        await response.prepare(request)
        for piece in (b"an", b"sw"):
            await response.write(piece)
            await asyncio.sleep(0)
        return response

    monkeypatch.setattr(load, "WARM_UP_SECONDS", 0.0)
    await loaded(answer)
    assert json.loads(capsys.readouterr().out)["per_second"] > 0
    for number in range(2):
        methods = [method for method, path in asked if path.endswith(f"/source-{number}")]
        assert len(methods) > 2
        assert methods == (["PUT", "GET"] * len(methods))[: len(methods)]


async def test_load_of_conditional_writes_names_the_version_of_each_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the case of the header is; without a version there is no figure."""
    named: dict[str, list[str | None]] = {}

    async def answer(request: web.Request) -> web.StreamResponse:
        conditions = named.setdefault(request.path, [])
        conditions.append(request.headers.get("If-Match"))
        return web.Response(headers={"eTaG": f'"V{len(conditions)}"'})

    monkeypatch.setattr(load, "WARM_UP_SECONDS", 0.0)
    await loaded(answer, "CAS")
    for conditions in named.values():
        assert len(conditions) > 2
        assert conditions == [None, *(f'"V{number}"' for number in range(1, len(conditions)))]

    async def answer_without_version(_: web.Request) -> web.StreamResponse:
        return web.Response()

    with pytest.raises(RuntimeError, match="no version tag"):
        await loaded(answer_without_version, "CAS")


@pytest.mark.parametrize("status", [204, 404, 409, 500])
async def test_load_that_meets_a_refusal_gives_no_figure(
    status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that refuses quickly is not fast."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    with pytest.raises(RuntimeError, match=str(status)):
        await loaded(answer)
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_service_over_postgresql_is_measured_beside_pgbench() -> None:
    """Writes of one and of two processes, pgbench's, and the requests over many sources."""
    ran = quick("postgresql_service")
    found = rows(ran.stdout)
    assert {"one process", "two processes", "pgbench", "metrics", "search"} <= set(found)
    assert {"one process, 200 connections", "two processes, 200 connections"} <= set(found)
    assert "Back, with every field the same" in ran.stdout
    assert ran.stdout.count(" at least ") == 5


@pytest.mark.slow
def test_backfill_is_measured_with_one_worker_and_with_eight() -> None:
    """Both read all windows, and the ratio of their times has its target."""
    printed = quick("windows").stdout
    assert set(rows(printed)) == {"1", "8"}
    assert "at most 0.17" in printed


async def loaded(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]], *methods: str
) -> None:
    """Run the load against a server in this process, with two connections."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    others = asyncio.all_tasks()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        # A clock that each look at it moves: so many answers, however slow the machine is.
        clock = SimpleNamespace(
            perf_counter=partial(next, count(0, 0.001)), process_time=time.process_time
        )
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(load, "time", clock)
            await asyncio.to_thread(load.main, [port], 2, 0.1, methods or ("GET", "PUT"))
    finally:
        # A load that meets a refusal hangs up at once. A connection that is being accepted while
        # its server is closed would stay open.
        while ending := asyncio.all_tasks() - others:
            await asyncio.wait(ending)
        await runner.cleanup()


async def test_variables_are_written_and_read_in_turn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task keeps a Variable of its own, replaces it, and reads it again."""
    from benchmarks import variables

    called: list[tuple[str, str]] = []

    async def aset(name: str, value: dict[str, str], *, overwrite: bool) -> None:
        assert overwrite
        assert value["status"] == "success"
        called.append(("aset", name))
        await asyncio.sleep(0)

    async def aget(name: str) -> None:
        called.append(("aget", name))
        await asyncio.sleep(0)

    monkeypatch.setattr(variables, "Variable", SimpleNamespace(aset=aset, aget=aget))
    monkeypatch.setattr(variables, "WARM_UP_SECONDS", 0.0)
    await variables.main(connections=2, seconds=0.05)
    assert json.loads(capsys.readouterr().out)["per_second"] > 0
    assert [name for name, _ in called[:4]] == ["aset", "aset", "aget", "aget"]
    assert {name for _, name in called} == {"source_0", "source_1"}


async def test_contenders_alternate_and_the_first_round_is_thrown_away() -> None:
    """Each begins as often as the other, and a figure is the mean of its turns."""
    order: list[str] = []

    def contender(name: str) -> Callable[[], Awaitable[float]]:
        async def figure() -> float:
            order.append(name)
            return float(len(order))

        return figure

    figures = await measuring.alternating(
        "turns", {"a": contender("a"), "b": contender("b")}, repetitions=2, turns=2
    )
    assert order == list("abba" * 3)
    assert figures == {"a": [6.5, 10.5], "b": [6.5, 10.5]}


def test_verdict_goes_by_the_median(capsys: pytest.CaptureFixture[str]) -> None:
    """A median beyond its target is said not to meet it, whichever side the target is on."""
    measuring.verdict("low", [0.4, 0.5, 9], 0.5, at_most=True)
    measuring.verdict("high", [0.4, 0.6, 9], 0.5, at_most=True)
    measuring.verdict("few", [19, 19.9, 30], 20, at_most=False)
    measuring.verdict("many", [19, 20, 30], 20, at_most=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("NOT MET") for line in lines] == [False, True, True, False]
    assert lines[0] == "low: 0.50 (0.40–9.00); at most 0.5 is met"
    measuring.verdict("low", [2], 1, at_most=True, floor=[1.4, 1.5, 1.6])
    assert "low: 2.00 (2.00–2.00), its floor 1.50 (1.40–1.60); at most" in capsys.readouterr().out
