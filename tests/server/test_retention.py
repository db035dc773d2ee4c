"""How much history the service keeps, and what is never deleted."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from ladon_storage.collection.lateness import Lateness
from ladon_storage.collection.ledger import Ledger
from ladon_storage.errors import DatabaseError
from ladon_storage.models import Precondition, WatermarkReset, WatermarkStatus, WatermarkUpdate
from ladon_storage.server import retention
from ladon_storage.server.overview import Listing
from ladon_storage.server.retention import Retention
from ladon_storage.server.store import WatermarkDatabase
from ladon_storage.testing.clock import FakeClock
from tests.documents import ROOT
from tests.service_databases import of_a_file

DAY = 86_400
OPERATE = ROOT / "docs" / "how-to" / "operate.md"


@pytest.fixture
def clock() -> FakeClock:
    """The service's time."""
    return FakeClock()


@pytest.fixture
async def store(service_database: Path | str, clock: FakeClock) -> AsyncIterator[WatermarkDatabase]:
    """A store whose clock is the test's."""
    opened = await WatermarkDatabase.open(service_database, clock.now)
    yield opened
    await opened.close()


async def written(store: WatermarkDatabase, clock: FakeClock, source_id: str, days: int) -> None:
    """Write a success a day."""
    for _ in range(days):
        clock.advance(DAY)
        await store.put(source_id, WatermarkUpdate(timestamp=clock.now()))


async def lines(store: WatermarkDatabase, source_id: str) -> int:
    """Return how many lines a source has."""
    return len((await store.history(source_id, limit=1000)).changes)


async def test_each_source_keeps_its_latest_changes(
    store: WatermarkDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source with many changes keeps the newest, in as many batches as it takes."""
    monkeypatch.setattr(retention, "BATCH", 7)
    await written(store, clock, "busy", 50)
    await written(store, clock, "calm", 5)
    assert await store.prune(Retention(changes=20)) == 30
    assert (await lines(store, "busy"), await lines(store, "calm")) == (20, 5)
    newest = (await store.history("busy")).changes[0]
    watermark = await store.get("busy")
    assert watermark is not None
    assert f'"{newest.version}"' == watermark.etag
    assert await store.prune(Retention(changes=20)) == 0


async def test_old_changes_go_and_the_stored_watermark_stays(
    store: WatermarkDatabase, clock: FakeClock
) -> None:
    """A source that is no longer collected keeps its watermark, and its line."""
    await written(store, clock, "gone", 3)
    await written(store, clock, "kev", 10)
    assert await store.prune(Retention(age=timedelta(days=4))) == 7
    assert (await lines(store, "gone"), await lines(store, "kev")) == (1, 5)
    assert await store.get("gone") is not None
    # A conditional write still finds its version.
    watermark = await store.get("gone")
    assert watermark is not None
    assert watermark.etag is not None
    precondition = Precondition(watermark.etag)
    await store.put("gone", WatermarkUpdate(timestamp=clock.now()), precondition)


async def test_acts_of_operators_are_kept(store: WatermarkDatabase, clock: FakeClock) -> None:
    """Resets and deletions stay with their reasons, however old and many they are."""
    await written(store, clock, "kev", 3)
    reset = WatermarkReset(timestamp=clock.now(), reason="the feed was rebuilt")
    await store.reset("kev", reset, actor="ann")
    await store.delete("kev", actor="ann")
    await written(store, clock, "kev", 10)
    clock.advance(1000 * DAY)
    await store.prune(Retention(age=timedelta(days=1), changes=1))
    actions = [str(each.action) for each in (await store.history("kev")).changes]
    assert actions == ["put", "delete", "reset"]


@of_a_file
async def test_space_of_deleted_history_is_used_again(
    store: WatermarkDatabase, clock: FakeClock, tmp_path: Path
) -> None:
    """Where history is bounded, the file stops growing."""

    def pages() -> int:
        with sqlite3.connect(tmp_path / "watermarks.db") as connection:
            found: int = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.close()
        return found

    sizes = []
    for _ in range(4):
        await written(store, clock, "kev", 300)
        await store.prune(Retention(changes=50))
        sizes.append(pages())
    assert sizes[-1] == sizes[1]


async def test_renewals_of_a_lease_are_not_kept(store: WatermarkDatabase, clock: FakeClock) -> None:
    """A run of a day keeps the line of its beginning and the latest hour, not 4,320 lines."""
    running = WatermarkUpdate(timestamp=clock.now(), status=WatermarkStatus.RUNNING, run_id="r")
    await written(store, clock, "kev", 2)
    began = clock.now() + timedelta(minutes=10)
    for _ in range(144):
        clock.advance(600)
        await store.put("kev", running)
    await store.prune()
    lines = (await store.history("kev", limit=1000)).changes
    assert len(lines) == 2 + 1 + 6 + 1
    assert lines[-3].at == began
    [(_, details)] = (await store.overview(Listing(10))).sources
    assert details.began_at == began
    assert len(details.runs) == 2


@of_a_file
async def test_search_for_lines_grows_with_their_number_alone(
    store: WatermarkDatabase, clock: FakeClock, tmp_path: Path
) -> None:
    """Ten times the sources make ten times the work, and not a hundred times."""

    async def steps(sources: range) -> int:
        for number in sources:
            await written(store, clock, f"s{number}", 10)
        counted = 0

        def count() -> int:
            nonlocal counted
            counted += 1
            return 0

        with closing(sqlite3.connect(tmp_path / "watermarks.db")) as connection:
            connection.set_progress_handler(count, 100)
            connection.execute("BEGIN")
            for rule in retention.rules(Retention(changes=8), clock.now()):
                while versions := rule(connection, 0):
                    retention.delete_lines(connection, versions)
        return counted

    few, many = await steps(range(10)), await steps(range(10, 100))
    assert many < 20 * few


async def test_call_may_be_bounded_in_batches(
    store: WatermarkDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that shortens the history of a neglected file is held up for some batches only."""
    monkeypatch.setattr(retention, "BATCH", 7)
    await written(store, clock, "kev", 50)
    assert await store.prune(Retention(changes=20), batches=2) == 14
    assert await store.prune(Retention(changes=20), batches=9) == 16


async def test_age_beyond_the_calendar_keeps_all_and_the_other_bounds_hold(
    store: WatermarkDatabase, clock: FakeClock
) -> None:
    """An operator who never wants an old line deleted may say so in any number of days."""
    await written(store, clock, "kev", 50)
    assert await store.prune(Retention(age=timedelta(days=999_999), changes=20)) == 30


async def test_rule_that_fails_leaves_the_others_at_work(
    store: WatermarkDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is raised once the rest is pruned."""
    await written(store, clock, "kev", 50)

    def fail(*_: object, **__: object) -> list[int]:
        raise DatabaseError("too slow")

    monkeypatch.setattr(retention, "_old", fail)
    with pytest.raises(DatabaseError, match="too slow"):
        await store.prune(Retention(changes=20))
    assert await lines(store, "kev") == 20


@pytest.mark.slow
async def test_year_of_many_sources_stays_under_the_size_that_the_documents_state(
    tmp_path: Path, clock: FakeClock
) -> None:
    """The file stops growing, at a size for each kept line that makes the stated one for all."""
    stated = re.search(r"every ten minutes stays under (\d+) MB", OPERATE.read_text("utf-8"))
    assert stated
    sources, kept, sizes = 20, 100, list[int]()
    file = tmp_path / "year.db"
    store = await WatermarkDatabase.open(file, clock.now)
    for run in range(1, 181):
        clock.advance(600)
        names = [f"provider.example/feed-{number:04}" for number in range(sources)]
        await asyncio.gather(*(collected(store, each, clock.now()) for each in names))
        if run % 6 == 0:
            await store.prune(Retention(changes=kept))
        if run % 90 == 0:
            sizes.append(file.stat().st_size)
    await store.close()
    assert sizes[1] <= sizes[0] * 1.02
    of_a_line = file.stat().st_size / (sources * kept)
    assert of_a_line * Retention().changes * 1000 < int(stated[1]) * 1_000_000


async def collected(store: WatermarkDatabase, source_id: str, now: datetime) -> None:
    """Write what a run writes: that it holds the source, and its outcome with a usual ledger."""
    run_id, actor = str(uuid4()), "collector@10.0.0.17"
    running = WatermarkUpdate(
        timestamp=now, status=WatermarkStatus.RUNNING, run_id=run_id, lease=timedelta(minutes=1)
    )
    await store.put(source_id, running, actor=actor)
    ledger = Ledger(
        start=now - timedelta(hours=1),
        until=now,
        pages=3,
        records_delivered=600,
        records_new=12,
        records_changed=3,
        records_known=585,
        completeness="last page",
        total=600,
        lateness=Lateness(counts=(0,) * 30 + (3, 5, 2, 1, 0, 0, 1), worst_seconds=91_564.181),
    )
    done = WatermarkUpdate(
        timestamp=now,
        records_collected=15,
        run_id=run_id,
        ledger=ledger.model_dump(mode="json"),
    )
    await store.put(source_id, done, actor=actor)
