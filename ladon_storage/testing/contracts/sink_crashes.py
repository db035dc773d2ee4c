"""A sink whose writes are cancelled, killed, or made by several runs at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection.protocols import Position, SupportsPosition
from ladon_storage.collection.records import Page, Reject
from ladon_storage.sinks import sink_from
from ladon_storage.testing.contracts.loops import in_event_loops
from ladon_storage.testing.crashes import ENGINE, CrashPoint, homes
from ladon_storage.testing.doubles import at, record
from ladon_storage.testing.places import SinkPlace
from ladon_storage.testing.processes import Nursery

PAGES = 2
SPREAD = 6
"""The number of lines at which a sink is killed, spread over those that it executes."""
GROWTH = 2
"""The factor between one line and the next at which a sink is killed, in a new place."""
LAST = 10
"""The page after which a sink is killed at any moment."""


def page_of(number: int) -> Page:
    """Return a page of ten records and a reject."""
    records = [record(f"{number}-{n}", number) for n in range(10)]
    return Page(records, [Reject.of("no id", number)])


async def fill(sink: Any, source_id: str, pages: int, pipe: int) -> None:
    """Write pages, and report the number of each one that is durable."""
    async with sink:
        for number in range(pages):
            position = Position(timestamp=at(number))
            await sink.write(source_id, page_of(number), run_id="R", position=position)
            os.write(pipe, f"{number}\n".encode())


def _crash(place: SinkPlace, source_id: str, nth: int, pipe: int) -> None:
    own = homes(type(place.make()), "write")
    point = CrashPoint(nth, own=own, foreign=(ENGINE,))
    point.arm()
    sink = place.make()
    made = point.lines
    asyncio.run(fill(sink, source_id, PAGES, pipe))
    point.disarm()
    facts = {"lines": point.lines, "counted": point.lines - made}
    os.write(pipe, f"{json.dumps(facts)}\n".encode())


def crashed(place: SinkPlace, source_id: str, nth: int, log: Path) -> tuple[int, int]:
    """Fill a place in a process that is killed at its nth line.

    Returns:
        The number of pages that it reported, and of the lines that it executed; 0: it was killed.
    """
    with Nursery() as nursery:
        child = nursery.fork(partial(_crash, place, source_id, nth), log)
        child.wait()
    reports: list[Any] = child.said
    ends = [each for each in reports if isinstance(each, dict)]
    assert ends or child.signalled, log.read_text()
    if not all(each["counted"] for each in ends):
        pytest.fail(
            f"No line of the package of {type(place.make()).__qualname__} was counted, so the sink "
            "was killed at none. A sink that is not written in Python needs a test of its own."
        )
    return sum(isinstance(each, int) for each in reports), sum(each["lines"] for each in ends)


def main() -> None:
    """Fill the place that the command line describes, until this process is killed."""
    asyncio.run(fill(sink_from(json.loads(sys.argv[1])), "feed", 1_000_000, 1))


def killed(place: SinkPlace, log: Path) -> int:
    """Fill a place in another process, kill it, and return the number of pages that it reported."""
    if place.description is not None:
        return _killed_anew(place.description)
    with Nursery() as nursery:
        child = nursery.fork(partial(_fill_for_ever, place), log)
        deadline = time.monotonic() + 30
        while len(child.said) <= LAST:
            assert child.hear(deadline), log.read_text()
        child.kill()
    return len(child.said)


def _fill_for_ever(place: SinkPlace, pipe: int) -> None:
    asyncio.run(fill(place.make(), "feed", 1_000_000, pipe))


def _killed_anew(description: dict[str, str]) -> int:
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import main; main()", json.dumps(description)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        last = -1
        while last < LAST:
            last = int(process.stdout.readline())
        process.kill()
        rest = process.stdout.read().split("\n")[:-1]  # without a line break, it was not written
    return 1 + (int(rest[-1]) if rest else last)


async def look(place: SinkPlace, source_id: str, reported: int) -> None:
    """Check that pages are there whole, the reported ones all, and can be written again."""
    pages = _pages(place, source_id)
    assert pages >= set(range(reported)), "a page is not there, and its write returned"
    if reported and isinstance(place.make(), SupportsPosition):
        position = await place.position(source_id)
        assert position is not None
        assert at(reported - 1) <= position.timestamp <= at(max(pages))
    again = set(range(reported + 1))
    added = await place.write(*map(page_of, sorted(again)), source_id=source_id)
    assert sum(added) == 10 * len(again - pages)
    assert _pages(place, source_id) == pages | again
    if place.quarantine is not None:
        rejects = len([each for each in place.rejects() if each[0] == source_id])
        # Where a page and its rejects are not one transaction, those of one more may be there.
        least = len(pages | again)
        assert least <= rejects <= least + (not place.is_one_transaction)


def _pages(place: SinkPlace, source_id: str) -> set[int]:
    """Return the pages that a place has, each of which has to be whole."""
    try:
        ids = [row.record_id for row in place.rows(source_id)]
    except Exception:  # a place of which nothing was made yet may have nothing to read
        return set()
    pages = {int(record_id.split("-")[0]) for record_id in ids}
    assert len(ids) == len(set(ids)), "a record is there twice"
    assert len(ids) == 10 * len(pages), "a page is there in part"
    return pages


@in_event_loops
class CrashRules:
    """Whatever ends a write, its page is durable whole or not at all, and can be written again."""

    def test_sink_that_is_killed_at_any_line_loses_and_repeats_nothing(
        self, place: SinkPlace, tmp_path: Path
    ) -> None:
        """No page is lost whose write returned, none is there in part, and a replay adds no row."""
        if not place.can_fork:
            pytest.skip("the sink cannot be forked; it is killed at any moment instead")
        nth, lines, log = 1, 0, tmp_path / "crashes.log"
        while not lines:
            reported, lines = crashed(place, f"line {nth}", nth, log)
            asyncio.run(look(place, f"line {nth}", reported))
            nth = nth * GROWTH + 1
        for each in range(1, SPREAD + 1):
            nth = lines * each // (SPREAD + 1)
            reported, _ = crashed(place, f"spread {nth}", nth, log)
            asyncio.run(look(place, f"spread {nth}", reported))

    def test_sink_that_is_killed_at_any_moment_loses_and_repeats_nothing(
        self, place: SinkPlace, tmp_path: Path
    ) -> None:
        """Also in the middle of what is no code of its own."""
        asyncio.run(look(place, "feed", killed(place, tmp_path / "kill.log")))

    async def test_two_sinks_write_one_place_at_once(self, place: SinkPlace) -> None:
        """Runs of one source and of several share a place, from its making on; nothing is twice."""

        async def fill(source_id: str) -> int:
            pages = [[record(str(n), n) for n in range(k, k + 20)] for k in range(0, 60, 10)]
            return sum(await place.write(*pages, source_id=source_id))

        one, two, other = await asyncio.gather(fill("feed"), fill("feed"), fill("other"))

        assert one + two == 70
        assert other == 70
        assert len(place.rows()) == len(place.rows("other")) == 70

    @pytest.mark.parametrize("turns", [0, 1, 3])
    async def test_cancelled_write_leaves_a_whole_page_or_none(
        self, place: SinkPlace, turns: int
    ) -> None:
        """A run that is cancelled leaves nothing half, and nothing that runs on."""
        page = Page([record(str(n), n) for n in range(500)])

        async def collect() -> None:
            async with place.make() as sink:
                await sink.write("feed", Page([record("first", 0)]))
                entered.set()
                await sink.write("feed", page, position=Position(timestamp=at(500)))

        entered = asyncio.Event()
        running = asyncio.create_task(collect())
        await asyncio.wait_for(entered.wait(), 20)
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        # A write that does not give way is over before it is cancelled.
        with contextlib.suppress(asyncio.CancelledError):
            await running

        is_there = len(place.rows()) == 501
        assert is_there or len(place.rows()) == 1
        if isinstance(place.make(), SupportsPosition):
            assert (await place.position() is not None) == is_there
        assert await place.write(page) == [0 if is_there else 500]
