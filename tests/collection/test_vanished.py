"""What a source delivered before, and suddenly does not: a run does not end green with nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from ladon_storage.collection.protocols import Limits
from ladon_storage.collection.reconciliation import reconcile
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.collection.run import Report, run
from ladon_storage.collection.vanished import MAX_DELETED
from ladon_storage.errors import SourceError
from ladon_storage.testing.doubles import (
    LatestSink,
    MemorySink,
    RememberingSink,
    ScriptedSource,
    ScriptedStorage,
    at,
    record,
)

NOW = at(24 * 60)
HOUR = timedelta(hours=1)
MANY = [record(str(minute), minute) for minute in range(100, 100 + MAX_DELETED + 2)]
"""Of the last hour before the watermark; the first one is at the start of the shortest overlap."""


class World:
    """A storage and a sink that several runs of one source meet."""

    def __init__(self, sink: Any = None) -> None:
        self.storage = ScriptedStorage(now=lambda: NOW)
        self.sink = sink or RememberingSink()
        self.runs = 0
        self.asked: datetime | None = None

    async def collect(
        self,
        *pages: Any,
        overlap: timedelta | None = HOUR,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        **fields: Any,
    ) -> Report:
        bounds = {name: fields.pop(name) for name in ("since", "until") if name in fields}
        source = ScriptedSource(list(pages), overlap=overlap)
        for name, value in fields.items():
            setattr(source, name, value)
        self.runs += 1
        try:
            return await run(
                source,
                self.sink,
                self.storage,
                run_id=f"run-{self.runs}",
                clock=lambda: NOW,
                limits=limits,
                **bounds,
            )
        finally:
            self.asked = source.ranges[0][0]


async def test_range_that_had_many_records_and_has_none_fails() -> None:
    """The overlap asks again for what was delivered; nothing at all contradicts the sink."""
    world = World()
    await world.collect(MANY)
    with pytest.raises(SourceError, match=r"delivers nothing from .* more than 10 records before"):
        await world.collect()
    assert world.storage.stored["feed"].status == "failed"
    assert (await world.collect(MANY)).records_known == len(MANY)


async def test_range_that_had_a_few_records_and_has_none_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A source may delete a few records; the run says how many are gone."""
    world = World()
    await world.collect(MANY[-MAX_DELETED:])
    await world.collect()
    assert "delivers nothing from" in caplog.text
    assert f"the sink has {MAX_DELETED} of its records from there" in caplog.text


async def test_source_without_an_overlap_may_have_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It may leave out the start of its range, and deliver only what is newer."""
    world = World()
    await world.collect([record(str(n), 100) for n in range(50)])
    await world.collect(overlap=timedelta(0))
    assert not caplog.records


async def test_record_at_the_start_of_the_range_is_not_expected() -> None:
    """A server may compare by `later than`."""
    world = World()
    await world.collect([record(str(n), 100) for n in range(50)] + [record("last", 160)])
    await world.collect()
    assert world.asked == at(100)


async def test_range_of_which_anything_comes_again_is_not_empty() -> None:
    """Also an item that cannot be used, which is a finding of its own, or a new record."""
    for page in ([record("new", 200)], Page([record("1", 1)], [Reject.of("no id", {})])):
        world = World()
        await world.collect(MANY)
        await world.collect(page)


async def test_record_beyond_the_retention_is_not_expected() -> None:
    """After a pause the source has forgotten what it delivered."""
    world = World()
    await world.collect(MANY)
    await world.collect(retention=NOW - at(120))
    with pytest.raises(SourceError, match="delivers nothing"):
        await world.collect(retention=NOW - at(100))


async def test_removal_of_all_records_can_be_allowed() -> None:
    """By the setting of listings, which is the message's next step."""
    world = World()
    await world.collect(MANY)
    await world.collect(limits=Limits(removed_share=1))


async def test_records_of_a_run_that_did_not_end_are_evidence() -> None:
    """They are in the sink beyond the watermark, and in what the next run asks for."""
    world = World()
    with pytest.raises(SourceError, match="down"):
        await world.collect(MANY, SourceError("down"))
    for _ in range(2):
        with pytest.raises(SourceError, match="delivers nothing, and delivered more than 10"):
            await world.collect()


async def test_record_of_the_future_is_not_expected() -> None:
    """A source that withdraws wrong times is not blocked by them for years."""
    world = World()
    await world.collect([record(str(n), 24 * 60 + n) for n in range(1, 50)])
    await world.collect()


async def test_sink_that_cannot_count_proves_nothing() -> None:
    """The engine goes without the method, as without any other."""
    world = World(MemorySink())
    await world.collect(MANY)
    await world.collect()


async def test_backfill_of_an_open_range_without_its_records_fails() -> None:
    """It is asked for what the sink has from there."""
    world = World()
    await world.collect(MANY)
    with pytest.raises(SourceError, match="delivers nothing"):
        await world.collect(since=at(90))
    await world.collect(since=at(100 + len(MANY)))


async def test_backfill_of_a_range_with_an_end_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its records may all have changed since, and be later now."""
    world = World()
    await world.collect(MANY)
    await world.collect(since=at(90), until=at(200))
    assert "the sink has more than 10 of its records from there" in caplog.text
    caplog.clear()
    await world.collect(since=at(10), until=at(100))
    assert not caplog.records


async def test_reconciliation_that_reads_nothing_fails() -> None:
    """It would report that nothing was missed."""
    world = World()
    await world.collect(MANY)
    source = ScriptedSource([], overlap=HOUR)
    with pytest.raises(SourceError, match="delivers nothing"):
        await reconcile(source, world.sink, world.storage, run_id="again", clock=lambda: NOW)


class Moving(LatestSink):
    """A sink that counts current versions."""

    async def count_records(
        self, source_id: str, after: datetime | None, before: datetime, limit: int
    ) -> int:
        """Count the current versions between two times."""
        found: Sequence[Record] = [
            each
            for each in self.current.values()
            if each.timestamp < before and (after is None or each.timestamp > after)
        ]
        return min(limit, len(found))


async def test_record_that_moved_on_is_not_expected_where_it_was() -> None:
    """Each counts at its current version, from which the next range starts."""
    world = World(Moving())
    await world.collect(MANY)
    await world.collect([record(each.record_id, 500, "b") for each in MANY])
    await world.collect(overlap=timedelta(0))
    with pytest.raises(SourceError, match="delivers nothing"):
        await world.collect()


# Few records where there were many.

LATE = [record(str(minute), minute) for minute in range(100, 200)]
"""All of them but the first one are behind the start of the next range."""


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (10, "delivered 10 records from .*, and the sink has more than 31 from there"),
        (49, "delivered 49 records from .*, and the sink has 99 from there"),
        (51, None),
    ],
)
async def test_range_with_few_of_its_records_is_warned_of(
    kept: int, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """An overlap has what was delivered before; a list that was cut has the beginning of it."""
    world = World()
    await world.collect(LATE, overlap=2 * HOUR)
    await world.collect(LATE[-kept:], overlap=timedelta(minutes=99))
    if said is None:
        assert not caplog.records
    else:
        assert re.search(said, caplog.text)


async def test_range_of_a_quiet_time_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """The first run had all there is, and the range of the second one only a few of them."""
    world = World()
    await world.collect(LATE)
    await world.collect(LATE[-11:], overlap=timedelta(minutes=10))
    assert not caplog.records


async def test_listing_with_few_of_the_records_before_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that is no full snapshot has no other rule; a listing that stays small is said once."""
    world = World()
    for page in (LATE, LATE[:10], LATE[:10]):
        await world.collect(page, ignores_range=True)
    [one] = caplog.records
    assert "delivered 10 records, and 100 in the run before" in one.getMessage()


async def test_few_records_can_be_allowed(caplog: pytest.LogCaptureFixture) -> None:
    """By the setting that allows all of them to disappear, and by being few in any case."""
    world = World()
    await world.collect(LATE, ignores_range=True)
    await world.collect(LATE[:1], ignores_range=True, limits=Limits(removed_share=1))
    small = World()
    await small.collect(LATE[:11], ignores_range=True)
    await small.collect(LATE[:1], ignores_range=True)
    assert not caplog.records


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("ignores_range", [True, False])
async def test_new_records_alone_are_warned_of(
    is_known: bool, ignores_range: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A source with only its latest records lost those before them, and says nothing of it."""
    world = World()
    await world.collect(MANY, ignores_range=ignores_range)
    new = [record(f"new {minute}", minute) for minute in range(400, 400 + len(MANY))]
    await world.collect([*MANY[-1:], *new] if is_known else new, ignores_range=ignores_range)

    assert ("Records in between may be missing" in caplog.text) is not is_known


async def test_new_records_alone_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """Counting takes long where there are many, and a source of few latest ones goes on so."""
    world = World()
    await world.collect(MANY)
    for first in (400, 800):
        new = [record(f"new {minute}", minute) for minute in range(first, first + len(MANY))]
        await world.collect(new, overlap=12 * HOUR)

    assert caplog.text.count("Records in between may be missing") == 1


async def test_new_records_alone_are_warned_of_after_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A source that broke off for a while no longer has what came meanwhile."""

    def break_off() -> None:
        raise OSError("broke off")

    world = World()
    await world.collect(MANY)
    with pytest.raises(OSError, match="broke off"):
        await world.collect([record("first", 399)], break_off, overlap=12 * HOUR)
    assert (world.storage.stored["feed"].ledger or {})["records_new"] == 1
    new = [record(f"new {minute}", minute) for minute in range(400, 400 + len(MANY))]
    await world.collect(new, overlap=12 * HOUR)

    assert "Records in between may be missing" in caplog.text


async def test_new_records_alone_are_warned_of_without_a_ledger(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A service that keeps no ledger does not say what the run before was delivered."""
    world = World()
    await world.collect(MANY)
    world.storage.stored["feed"] = world.storage.stored["feed"].model_copy(update={"ledger": None})
    new = [record(f"new {minute}", minute) for minute in range(400, 400 + len(MANY))]
    await world.collect(new, overlap=12 * HOUR)

    assert "Records in between may be missing" in caplog.text


async def test_new_records_alone_are_right_where_few_are_expected(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Few records may have been deleted; none is delivered again without an overlap."""
    for known, overlap in ((MANY[:MAX_DELETED], HOUR), (MANY, timedelta(0))):
        world = World()
        await world.collect(known, overlap=overlap)
        new = [record(f"new {minute}", minute) for minute in range(400, 400 + len(MANY))]
        await world.collect(new, overlap=overlap)

    assert "Records in between" not in caplog.text
