"""Reads and writes that share statements: each is answered, whenever it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from ladon_storage.errors import DatabaseError
from ladon_storage.models import ChangeAction, Watermark
from ladon_storage.server.backend import Row
from ladon_storage.server.changes import Line, Written
from ladon_storage.server.postgresql_gathered import (
    MOST_READERS,
    MOST_WRITERS,
    GatheredReads,
    GatheredWrites,
    Outcome,
)
from ladon_storage.server.postgresql_writes import Change


async def until_all_work(gate: list[asyncio.Future[None]], count: int) -> None:
    async with asyncio.timeout(2):
        while len(gate) < count:
            await asyncio.sleep(0)


async def test_read_that_arrives_as_all_readers_end_is_answered() -> None:
    """Otherwise it would wait for ever, if no other request comes."""
    gate: list[asyncio.Future[None]] = []

    async def fetch(names: list[str]) -> list[Row]:
        if len(gate) < MOST_READERS:
            gate.append(asyncio.get_running_loop().create_future())
            await gate[-1]
        return [(name,) for name in names]

    reads = GatheredReads(fetch)

    async def twice() -> list[Row | None]:
        return [await reads.read("0"), await reads.read("again")]

    first = asyncio.create_task(twice())
    await until_all_work(gate, 1)
    others = []
    for number in range(1, MOST_READERS):
        others.append(asyncio.create_task(reads.read(f"{number}")))
        await until_all_work(gate, number + 1)
    for each in gate:  # all of them in the same turn of the loop
        each.set_result(None)
    async with asyncio.timeout(2):
        assert await first == [("0",), ("again",)]
        assert await asyncio.gather(*others) == [(f"{n}",) for n in range(1, MOST_READERS)]


async def test_read_that_fails_in_another_way_is_answered() -> None:
    """A name that the driver cannot send leaves none of the reads beside it without an answer."""

    async def fetch(names: list[str]) -> list[Row]:
        return [(name.encode(),) for name in names]

    reads = GatheredReads(fetch)
    async with asyncio.timeout(2):
        made = (reads.read(name) for name in ("kev", "\ud800"))
        failed = await asyncio.gather(*made, return_exceptions=True)
    assert [type(each) for each in failed] == [DatabaseError] * 2


async def test_write_that_arrives_as_all_writers_end_is_answered() -> None:
    """Otherwise it would wait for ever, past its deadline too."""
    gate: list[asyncio.Future[None]] = []

    async def store(changes: Sequence[Change], _: float) -> Sequence[Outcome]:
        if len(gate) < MOST_WRITERS:
            gate.append(asyncio.get_running_loop().create_future())
            await gate[-1]
        return [Written(each.before, each.before) for each in changes]

    ended: list[Outcome] = []
    writes = GatheredWrites(store)
    january = datetime(2024, 1, 1, tzinfo=UTC)
    before = Watermark(source_id="kev", last_successful_timestamp=january)
    change = Change("kev", before, Line(ChangeAction.PUT, january, before))

    async def write() -> Written | None:
        return await writes.write(change, 1.0, ended.append)

    async def twice() -> list[Written | None]:
        return [await write(), await write()]

    first = asyncio.create_task(twice())
    await until_all_work(gate, 1)
    others = []
    for number in range(1, MOST_WRITERS):
        others.append(asyncio.create_task(write()))
        await until_all_work(gate, number + 1)
    for each in gate:
        each.set_result(None)
    async with asyncio.timeout(2):
        assert await first == [Written(before, before)] * 2
        assert await asyncio.gather(*others) == [Written(before, before)] * (MOST_WRITERS - 1)
    assert ended == [Written(before, before)] * (MOST_WRITERS + 1)
