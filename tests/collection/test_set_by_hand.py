"""A watermark that an operator set by hand: when the next run begins there, and when not."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ladon_storage import StorageServiceClient
from ladon_storage.collection.ledger import SinkBehind
from ladon_storage.collection.protocols import WatermarkStore
from ladon_storage.collection.run import Report, run
from ladon_storage.errors import SourceError, StorageResponseError
from ladon_storage.models import IMPORTED, Precondition, WatermarkDelete, WatermarkReset
from ladon_storage.testing.clock import FakeClock
from ladon_storage.testing.doubles import RememberingSink, ScriptedSource, Step, at, record
from tests.service import embedded_service

NOW = at(24 * 60)


class World:
    """Be a service with a history, and a sink that remembers its position."""

    def __init__(self, client: StorageServiceClient) -> None:
        self.client = client
        self.storage: WatermarkStore = client
        self.sink = RememberingSink()
        self.runs = 0
        self.source = ScriptedSource()

    async def run(self, *pages: Step, ends: bool = True) -> Report | None:
        """Collect pages; one that does not end breaks off after them."""
        self.runs += 1
        given: list[Any] = [*pages, *([] if ends else [SourceError("down")])]
        self.source = ScriptedSource(given, overlap=timedelta(0))
        doing = run(
            self.source, self.sink, self.storage, run_id=f"run-{self.runs}", clock=lambda: NOW
        )
        if ends:
            return await doing
        with pytest.raises(SourceError):
            await doing
        return None

    async def set(self, to: datetime, reason: str = "skip it") -> None:
        """Be the operator who moves the watermark, as the commands do."""
        unchanged = Precondition.unchanged(await self.client.get_watermark("feed"))
        wanted = WatermarkReset(timestamp=to, reason=reason)
        assert await self.client.reset_watermark("feed", wanted, unchanged)

    @property
    def asked_from(self) -> datetime | None:
        return self.source.ranges[0][0]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A world whose service has a clock of its own."""
    async with (
        embedded_service(tmp_path / "w.db", now=FakeClock(NOW).now) as address,
        StorageServiceClient(address) as client,
    ):
        yield World(client)


async def test_run_begins_where_an_operator_set_the_watermark(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The range is left out, the run says so and how to have it, and no restore is claimed."""
    await world.run([record("1", 10)])
    await world.set(at(30))
    report = await world.run([record("4", 40)])
    assert report is not None
    assert (world.asked_from, report.sink_behind) == (at(30), None)
    assert f"since={at(10).isoformat()}, until={at(30).isoformat()}" in caplog.text
    assert "restored" not in caplog.text
    assert report.watermark_after == at(40)


async def test_first_watermark_of_a_source_is_where_it_begins(world: World) -> None:
    """An operator chooses the start of a source of which the sink has nothing."""
    await world.set(at(30))
    await world.run()
    assert world.asked_from == at(30)
    await world.run([record("4", 40)])
    assert world.asked_from == at(30)


async def test_failed_run_after_the_move_changes_nothing(world: World) -> None:
    """The next one begins there, too: what the first one stored promises nothing."""
    await world.run([record("1", 10)])
    await world.set(at(30))
    await world.run([record("4", 40)], ends=False)
    await world.run()
    assert world.asked_from == at(30)


async def test_several_moves_before_a_run_are_one(world: World) -> None:
    """What they leave out together is what the sink lacks."""
    await world.run([record("1", 10)])
    for to in (at(20), at(50), at(30)):
        await world.set(to)
    await world.run()
    assert world.asked_from == at(30)


@pytest.mark.parametrize("to", [30, 40])
async def test_move_that_takes_an_earlier_one_back_leaves_out_nothing(
    world: World, to: int
) -> None:
    """A sink that was restored later lacks what the runs before both moves had collected."""
    await world.run([record("1", 20)])
    early = dict(world.sink.positions)
    await world.run([record("2", 25), record("3", 30)])
    await world.set(at(5))
    await world.set(at(to))
    world.sink.positions = early
    await world.run()
    assert world.asked_from == at(20)


async def test_sink_that_was_restored_is_filled_whatever_an_operator_left_out(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It lacks more than that, before the move or after a run has moved the watermark on."""
    await world.run([record("1", 10)])
    first = dict(world.sink.positions)
    await world.run([record("2", 20)])
    second, world.sink.positions = dict(world.sink.positions), first
    await world.set(at(30))
    report = await world.run()
    assert report is not None
    assert (world.asked_from, report.sink_behind) == (at(10), SinkBehind(start=at(10), end=at(30)))
    assert "restored from a backup" in caplog.text
    await world.set(at(35))
    await world.run([record("4", 40)])
    assert world.asked_from == at(35)
    world.sink.positions = second
    await world.run()
    assert world.asked_from == at(20)


async def test_sink_that_is_new_is_filled_where_the_source_was_collected_before(
    world: World,
) -> None:
    """The move leaves out a range, and not what the dropped sink had."""
    await world.run([record("1", 10)])
    await world.set(at(30))
    world.sink = RememberingSink()
    await world.run()
    assert world.asked_from is None


async def test_first_watermark_leaves_out_nothing_of_a_sink_with_records(world: World) -> None:
    """A service that lost its watermarks is no operator who skips a range."""
    await world.run([record("1", 10)])
    assert await world.client.delete_watermark("feed", WatermarkDelete(reason="lost"))
    await world.set(at(30))
    await world.run()
    assert world.asked_from == at(10)


async def test_move_by_hand_that_a_run_has_left_behind_leaves_out_nothing(
    world: World, tmp_path: Path
) -> None:
    """It stays in the history when the runs' own moves are too old for it."""
    await world.run([record("1", 10)])
    early = dict(world.sink.positions)
    await world.set(at(30))
    await world.run([record("4", 40)])
    await world.run()
    with closing(sqlite3.connect(tmp_path / "w.db")) as connection, connection:
        connection.execute("DELETE FROM history WHERE action = 'put' AND to_timestamp IS NOT NULL "
                           "AND from_timestamp IS NOT to_timestamp")  # fmt: skip
    world.sink.positions = early
    await world.run()
    assert world.asked_from == at(10)


@pytest.mark.parametrize(("moves", "begins"), [((30,), 30), ((5, 40), 10), ((12, 40), 10)])
async def test_move_by_hand_holds_when_the_history_has_dropped_what_runs_did(
    world: World, tmp_path: Path, moves: tuple[int, ...], begins: int
) -> None:
    """A quiet source has no move of a run among the last thousand changes; operators' ones stay."""
    await world.run([record("1", 10)])
    early = dict(world.sink.positions)
    if len(moves) > 1:
        await world.run([record("2", 20)])
    for to in moves:
        await world.set(at(to))
    with closing(sqlite3.connect(tmp_path / "w.db")) as connection, connection:
        connection.execute("DELETE FROM history WHERE action = 'put'")
    world.sink.positions = early
    await world.run()
    assert world.asked_from == at(begins)


async def test_import_leaves_out_nothing(world: World) -> None:
    """It repeats what another storage knew, which is no choice to skip a range."""
    await world.set(at(30), f"{IMPORTED}: a new host")
    await world.run()
    assert world.asked_from is None


async def test_time_that_was_in_the_future_leaves_out_nothing(world: World, tmp_path: Path) -> None:
    """Nobody knew what would be there."""
    await world.run([record("1", 10)])
    clock = FakeClock(at(20))
    async with (
        embedded_service(tmp_path / "w.db", now=clock.now) as address,
        StorageServiceClient(address) as client,
    ):
        unchanged = Precondition.unchanged(await client.get_watermark("feed"))
        wanted = WatermarkReset(timestamp=at(30), reason="a typo")
        await client.reset_watermark("feed", wanted, unchanged)
    await world.run()
    assert world.asked_from == at(10)


@pytest.mark.parametrize(("status", "ends"), [(403, True), (404, True), (501, True), (500, False)])
async def test_history_that_no_run_may_read_leaves_out_nothing(
    world: World, status: int, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a gateway the sink is filled, as without a history; an outage is not the same."""
    await world.run([record("1", 10)])
    await world.set(at(30))

    async def refuse(*_: Any, **__: Any) -> None:
        raise StorageResponseError("no", status)

    monkeypatch.setattr(StorageServiceClient, "watermark_history", refuse)
    if ends:
        await world.run()
        assert world.asked_from == at(10)
        return
    with pytest.raises(StorageResponseError):
        await world.run()
