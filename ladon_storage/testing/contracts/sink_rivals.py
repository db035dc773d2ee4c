"""Two processes that write one place, of which one writes a page between two lines of the other."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from ladon_storage.collection.records import Page
from ladon_storage.testing.crashes import ENGINE, CrashPoint, homes
from ladon_storage.testing.doubles import record
from ladon_storage.testing.places import SinkPlace, changes
from ladon_storage.testing.processes import Nursery

TURNS = 16
"""The number of pages, and so of the lines between which the other process writes."""
SIZE = 3
PATIENCE_SECONDS = 0.05
"""How long a write waits for the other process, which a lock of the sink may keep waiting."""


def _page(number: int) -> Page:
    return Page([record(f"{number}-{n}", number) for n in range(SIZE)])


class _Leader:
    """A process that lets its rival write each page in the middle of its own write of it."""

    def __init__(self, place: SinkPlace, rival: Connection, pipe: int) -> None:
        self._place = place
        self._rival = rival
        self._pipe = pipe
        self._page = 0
        self._told = 0
        own = homes(type(place.make()), "write")
        self._point = CrashPoint(0, self._give_way, own=own, foreign=(ENGINE,))

    async def write(self) -> None:
        self._point.arm()
        async with self._place.make() as sink:
            self._point.restart()
            _report(self._pipe, 0, changes(await sink.write("feed", _page(0))))
            lines = self._point.lines
            for self._page in range(1, TURNS + 1):
                few = lines <= TURNS
                self._point.restart(self._page if few else lines * self._page // (TURNS + 1))
                added = changes(await sink.write("feed", _page(self._page)))
                if self._told < self._page:
                    self._give_way()
                _report(self._pipe, self._page, added)
        self._point.disarm()

    def _give_way(self) -> None:
        self._told = self._page
        self._rival.send(self._page)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._rival.poll(max(0.0, deadline - time.monotonic())):
            if self._rival.recv() == self._page:
                break


def _lead(place: SinkPlace, rival: Connection, pipe: int) -> None:
    asyncio.run(_Leader(place, rival, pipe).write())


def _follow(place: SinkPlace, leader: Connection, pipe: int) -> None:
    async def write() -> None:
        async with place.make() as sink:
            for _ in range(TURNS):
                number = leader.recv()
                _report(pipe, number, changes(await sink.write("feed", _page(number))))
                leader.send(number)

    asyncio.run(write())


def _report(pipe: int, number: int, added: int) -> None:
    os.write(pipe, json.dumps({"page": number, "added": added}).encode() + b"\n")


class RivalRules:
    """Two runs may write the same records at once, in processes of their own."""

    def test_page_of_another_process_between_two_lines_of_a_write_is_known(
        self, place: SinkPlace, tmp_path: Path
    ) -> None:
        """Nothing is there twice, and each record counts once, whichever of both was faster."""
        if not place.can_fork:
            pytest.skip("the sink cannot be forked")
        log = tmp_path / "rivals.log"
        here, there = multiprocessing.Pipe()
        with here, there, Nursery() as nursery:
            children = [
                nursery.fork(partial(_lead, place, here), log),
                nursery.fork(partial(_follow, place, there), log),
            ]
            for each in children:
                each.wait(60)
                assert each.code == 0, log.read_text()
        added = dict.fromkeys(range(TURNS + 1), 0)
        for said in [*children[0].said, *children[1].said]:
            added[said["page"]] += said["added"]
        ids = [row.record_id for row in place.rows()]
        assert len(ids) == len(set(ids)) == SIZE * (TURNS + 1), "a record is there twice, or not"
        assert set(added.values()) == {SIZE}, "a record was counted twice, or not"
