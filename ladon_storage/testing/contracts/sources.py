"""The contract of sources."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import stamina

from ladon_storage.collection.protocols import Source
from ladon_storage.collection.records import Page, Record
from ladon_storage.collection.run import Report, run
from ladon_storage.testing.contracts.loops import in_event_loops
from ladon_storage.testing.contracts.source_answers import (
    BROKEN,
    MAY_END,
    NULL_LIST,
    PASSING,
    SIGN_IN,
    is_own,
    with_null,
    with_text,
)
from ladon_storage.testing.contracts.source_versions import versions_elsewhere
from ladon_storage.testing.doubles import LatestSink, RememberingSink, ScriptedStorage
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from ladon_storage.values import check_source_id

EAST, WEST = "LOCAL-13:45", "LOCAL+13:45"
"""Zones where a range in local time, read as UTC, begins too late, and where it ends too early.

They are so far from UTC that their dates at `begin` are other ones than its own.
"""

SIZES = (9, 101, 2_001)
"""The numbers of items of which the first one that fills more than one page is taken."""

POSITIONS = 5
"""The number of requests of a reading, about, at which its answers are broken."""

QUICK_SECONDS = 2
"""How long it may take to read several pages which many tests read; a source may limit its rate."""

PATIENCE_SECONDS = 5
"""How long a reading of a broken feed may take: a source that waits until it works is right."""


class SourceFeed(FeedServer):
    """The feed of a contract: items that a server on loopback delivers, until it is broken.

    Args:
        respond: Returns the answer of the source's API to a request, with the items that it has.
    """

    def __init__(self, respond: Callable[[Asked, list[Any]], Answer]) -> None:
        super().__init__(play=self._play)
        self.items: list[Any] = []
        self.answers: list[Answer] = []
        """Those of the API, in turn."""
        self._respond = respond
        self._broken: Answer | None = None
        self._whole = 0
        self._times: int | None = None

    def read(self) -> list[Any]:
        """Return the items, for a source that does not read over HTTP.

        Raises:
            ConnectionError: The feed is broken.
        """
        if self._next_broken() is not None:
            raise ConnectionError("the feed is broken")
        return list(self.items)

    def break_down(self, answer: Answer, after: int = 0, times: int | None = None) -> None:
        """Give this answer to each request after the next ``after`` ones, or to so many of them."""
        self._broken, self._whole, self._times = answer, after, times

    def _next_broken(self) -> Answer | None:
        """Return the broken answer of the next request; ``None``: it is answered."""
        if self._broken is None or self._times == 0:
            return None
        if self._whole:
            self._whole -= 1
            return None
        if self._times is not None:
            self._times -= 1
        return self._broken

    def _play(self, request: Asked) -> Answer:
        if self._broken is not None and request.path == SIGN_IN:
            return BROKEN["a page for people"]
        if broken := self._next_broken():
            return broken
        self.answers.append(self._respond(request, list(self.items)))
        return self.answers[-1]


@dataclass(frozen=True)
class Extent:
    """The number of items that fill several pages, and what a reading of so many left out.

    It is the least number where the API has no pages, or where reading several takes long.
    """

    several: int = SIZES[0]
    missing: int = 0
    items: int = 0


_extents: dict[type, Extent] = {}


@in_event_loops
class SourceContract:
    """What the engine relies on of a source, as tests of pytest.

    Derive a test class. `new_source` makes the source, `item` an item of its API, and `answer`
    plays the API itself: write it as the API behaves, with its pages, bounds and order. A source
    that does not read over HTTP reads ``feed.read()``.

    The example is a whole test module:

    .. code-block:: python

        class TestTickets(SourceContract):
            def new_source(self, feed: SourceFeed) -> Tickets:
                return Tickets(url=feed.url)

            def item(self, record_id: str, time: datetime, value: str) -> object:
                return {"id": record_id, "updated_at": time.isoformat(), "title": value}
    """

    step = timedelta(minutes=1)
    """The least time between two items that the API distinguishes."""
    begin = datetime(2024, 1, 1, 12, 34, 56, 789_876, tzinfo=UTC)
    """The time of the first item: no whole second, so that rounding up is seen. Take a whole one
    where the API has no others."""
    ends_with: Collection[str] = ()
    """The kinds of `BROKEN` answers that the API means, such as ``"not found"`` behind the last
    page. Those that `answer` gives need not be named."""
    most = SIZES[-1]
    """The most items that a test gives the API. Take fewer where the API lists so many at most, as
    the newest hundred, and has no page with the others."""

    def new_source(self, feed: SourceFeed) -> Any:
        """Return a new source that reads the feed, in pages of few items if it has pages."""
        raise NotImplementedError(f"{type(self).__name__} needs a method new_source(feed)")

    def item(self, record_id: str, time: datetime, value: str) -> object:
        """Return an item as the API has it; ``value`` is a part of its content."""
        raise NotImplementedError(f"{type(self).__name__} needs a method item(id, time, value)")

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        """Return the answer of the API that has these items; by default all of them as JSON."""
        return Answer.of(items)

    def unusable(self) -> object:
        """Return an item that cannot be used; ``None``: the API has none."""
        return {"note": "neither id nor time"}

    def record_id(self, number: int) -> str:
        """Return the id of an item, as its API has ids; several numbers have several ids."""
        return f"id-{number}"

    def at(self, steps: int) -> datetime:
        """Return the instant of so many steps after the beginning."""
        return self.begin + self.step * steps

    def items(self, *steps: int, value: str = "a") -> list[Any]:
        """Return items at these instants, with the ids of their places in the list."""
        return [self.item(self.record_id(n), self.at(at), value) for n, at in enumerate(steps)]

    @asynccontextmanager
    async def feed(self, items: Sequence[Any] = (), zone: str = EAST) -> AsyncIterator[SourceFeed]:
        """Serve a feed of items to this process in another zone than UTC."""
        with local_time(zone):
            async with SourceFeed(self.answer) as feed:
                feed.items = list(items)
                yield feed

    async def read(
        self, source: Any, start: datetime | None = None, until: datetime | None = None
    ) -> list[Page]:
        """Return the pages of a range, as the engine takes them."""
        return [page.copy() async for page in source.pages(start, until)]

    async def versions(self, items: Sequence[Any]) -> list[list[str]]:
        """Return id and version of each record of these items."""
        async with self.feed(items) as feed:
            records = records_of(await self.read(self.new_source(feed)))
        return sorted([each.record_id, each.version] for each in records)

    @pytest.fixture(autouse=True)
    def _impatient_retries(self) -> Iterator[None]:
        """Try once what a source tries several times."""
        with stamina.set_testing(True):
            yield

    async def test_source_has_a_stable_name_and_an_overlap(self) -> None:
        """The name finds the watermark again, so two sources made alike have the same."""
        async with self.feed() as feed:
            one, other = self.new_source(feed), self.new_source(feed)
        assert isinstance(one, Source)
        check_source_id(one.source_id)
        assert one.source_id == other.source_id
        assert one.overlap is None or one.overlap >= timedelta(0)

    async def test_every_item_is_read(self) -> None:
        """Over all pages, with several items of one instant across the end of a page."""
        steps = [1, 2, 2, 2, 2, 3, 4]
        async with self.feed(self.items(*steps)) as feed:
            records = records_of(await self.read(self.new_source(feed)))
        ids = {self.record_id(number) for number in range(len(steps))}
        assert {each.record_id for each in records} == ids

    async def test_every_item_of_several_pages_is_read(self) -> None:
        """Also where a page has many: ever more items are read, until the API has two pages."""
        extent = _extents[type(self)] = await self._measured()
        assert not extent.missing, (
            f"{extent.missing} of {extent.items} items were not read, and the source raised no "
            "error. Read on until the API has no more. If the API lists fewer at most, set `most`."
        )

    async def _extent(self) -> Extent:
        """Return how many items fill several pages, measured once for the tests of a class."""
        if type(self) not in _extents:
            _extents[type(self)] = await self._measured()
        return _extents[type(self)]

    async def _measured(self) -> Extent:
        requests, began = 0, time.monotonic()
        for number in (1, *sorted({min(each, self.most) for each in SIZES})):
            try:
                ids = {self.record_id(n) for n in range(number)}
                if len(ids) < number:  # the test has not so many
                    break
                # Pairs of one instant, of which the end of a page parts some.
                async with self.feed(self.items(*((n + 1) // 2 for n in range(number)))) as feed:
                    read = records_of(await self.read(self.new_source(feed)))
            except Exception:  # the engine fails with any; or the test has not so many
                break
            if missing := len(ids - {each.record_id for each in read}):
                return Extent(missing=missing, items=number)
            if number > 1 and len(feed.asks) > requests:
                is_quick = time.monotonic() - began < QUICK_SECONDS
                return Extent(number) if is_quick else Extent()
            requests = len(feed.asks)
            if not requests:  # it does not read over HTTP
                break
        return Extent()

    async def test_timestamps_are_those_of_the_items(self) -> None:
        """They are aware, and neither rounded up nor read in another zone, as this machine's."""
        steps = [1, 2, 5]
        async with self.feed(self.items(*steps)) as feed:
            pages = await self.read(self.new_source(feed))
        found = {each.record_id: each.timestamp for each in records_of(pages)}
        if not any(page.undated for page in pages):
            assert found == {self.record_id(n): self.at(at) for n, at in enumerate(steps)}, (
                "the times are not the items'; if the API has no microseconds, set `begin`"
            )
        assert all(each.tzinfo is not None for each in found.values())

    async def test_items_at_the_start_are_read_again(self) -> None:
        """The start is included: of several items of one instant, some may not be stored yet."""
        async with self.feed(self.items(1, 3, 3, 5)) as feed:
            records = records_of(await self.read(self.new_source(feed), self.at(3)))
        missing = {self.record_id(n) for n in (1, 2, 3)} - {each.record_id for each in records}
        assert not missing, (
            f"{sorted(missing)} are not before the start, and were not read. Ask for the start "
            "itself, rounded down where the API has whole seconds or days, and in the zone that "
            "the API reads it in, as UTC: `start.astimezone()` is this machine's, with its date."
        )

    @pytest.mark.parametrize("zone", [EAST, WEST], ids=["east of UTC", "west of UTC"])
    async def test_range_is_half_open(self, zone: str) -> None:
        """All items of ``start <= timestamp < until`` are read; others may be as well."""
        async with self.feed(self.items(1, 2, 3, 4, 5), zone) as feed:
            records = records_of(await self.read(self.new_source(feed), self.at(2), self.at(4)))
        missing = {self.record_id(n) for n in (1, 2)} - {each.record_id for each in records}
        assert not missing, (
            f"{sorted(missing)} are in the range, and were not read. Ask for its bounds in the "
            "zone that the API reads them in, as UTC, and for the end rounded up: more may be "
            "read, not less."
        )

    async def test_reading_again_yields_the_same_versions(self) -> None:
        """By the same source and by another one; also after a reading that was left early."""
        async with self.feed(self.items(1, 2, 2, 3)) as feed:
            source = self.new_source(feed)
            async for _ in source.pages(None, None):
                break
            readings = [await self.read(each) for each in (source, source, self.new_source(feed))]
        versions = [sorted((r.record_id, r.version) for r in records_of(each)) for each in readings]
        assert versions[0] == versions[1] == versions[2]

    async def test_another_process_reads_the_same_versions(self) -> None:
        """A version outlives the process: Python's ``hash``, and the order of a set, do not."""
        items = self.items(1, 2, 2, 3)
        here = await self.versions(items)
        assert versions_elsewhere(self, items) == here

    async def test_changed_content_is_another_version(self) -> None:
        """The time may be the same; the id is."""
        async with self.feed(self.items(1, 2)) as feed:
            before = records_of(await self.read(self.new_source(feed)))
            feed.items[0] = self.item(self.record_id(0), self.at(1), "b")
            after = records_of(await self.read(self.new_source(feed)))
        versions = [
            {each.record_id: each.version for each in records} for records in (before, after)
        ]
        changed = {each for each in versions[0] if versions[0][each] != versions[1].get(each)}
        assert changed == {self.record_id(0)}

    async def test_unusable_item_is_rejected_and_the_others_are_read(self) -> None:
        """It does not end the reading, and is not left out."""
        unusable = self.unusable()
        if unusable is None:
            pytest.skip("the source has no unusable items")
        items = self.items(1, 2)
        async with self.feed([items[0], unusable, items[1]]) as feed:
            pages = await self.read(self.new_source(feed))
        assert {each.record_id for each in records_of(pages)} == {
            self.record_id(0),
            self.record_id(1),
        }
        rejects = [each for page in pages for each in page.rejects]
        assert len(rejects) == 1
        assert rejects[0].reason

    async def test_page_without_a_usable_item_is_no_end(self) -> None:
        """The pages behind it are read as well, or the reading fails."""
        if self.unusable() is None:
            pytest.skip("the source has no unusable items")
        last = 2 + (await self._extent()).several
        first, *rest = self.items(1, *range(last, last + 3))
        async with self.feed([first, *self._unusable_items(last), *rest]) as feed:
            try:
                records = records_of(await self.read(self.new_source(feed)))
            except Exception:  # the engine fails with any
                return
        assert {each.record_id for each in records} >= {self.record_id(n) for n in range(4)}

    def _unusable_items(self, end: int) -> list[Any]:
        """Return enough of them for a page: with a time, by which an API may have an order."""
        try:
            return [self.item("", self.at(steps), f"{steps}") for steps in range(2, end)]
        except Exception:  # its ids are never empty
            return [self.unusable()] * (end - 2)

    async def test_item_that_is_no_object_is_rejected(self) -> None:
        """It is not left out without a word, among items that are objects in JSON."""
        if self.unusable() is None:
            pytest.skip("the source has no unusable items")
        spoilt: list[Answer] = []

        def respond(request: Asked, items: list[Any]) -> Answer:
            answer = self.answer(request, items)
            if not spoilt and (odd := with_text(answer, items)):
                spoilt.append(odd)
                return odd
            return answer

        with local_time(EAST):
            async with SourceFeed(respond) as feed:
                feed.items = self.items(1, 2)
                try:
                    pages = await self.read(self.new_source(feed))
                except Exception:  # the engine fails with any
                    return
        if not feed.asks:  # it does not read over HTTP
            return
        if not spoilt:
            pytest.skip("the API has no list of objects")
        assert any(page.rejects for page in pages), "an item that is no object was left out"

    @pytest.mark.parametrize("kind", BROKEN)
    async def test_broken_answer_is_an_error(self, kind: str) -> None:
        """An empty list would be a run that says that there is nothing."""
        items = self.items(1, 2)
        async with self.feed(items) as feed:
            await self.read(self.new_source(feed))
        answer = self._broken(kind, feed, feed.answers[:1])
        async with self.feed(items) as feed:
            feed.break_down(answer)
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    pages = await self.read(self.new_source(feed))
            except Exception:  # the engine fails with any
                return
        # It fails as well where nothing is usable.
        assert any(page.rejects for page in pages), "a broken answer was read as an empty one"
        assert not records_of(pages)

    @pytest.mark.parametrize("kind", BROKEN)
    async def test_broken_answer_in_the_middle_is_an_error(self, kind: str) -> None:
        """Whichever request it is the answer of: a short list would lose the rest."""
        number, requests, feed = await self._read_whole()
        if requests < 2:
            return
        answer = self._broken(kind, feed, feed.answers)
        for after in sorted({*range(1, requests, -(-requests // POSITIONS)), requests - 1}):
            async with self.feed(feed.items) as broken:
                broken.break_down(answer, after)
                try:
                    async with asyncio.timeout(PATIENCE_SECONDS) as patience:
                        pages = await self.read(self.new_source(broken))
                except Exception:  # the engine fails with any
                    if patience.expired():
                        return
                    continue
            if self._missing(number, pages) or kind not in MAY_END:
                pytest.fail(
                    f"{kind} was read as the end; if the API ends so, let `answer` play that, or "
                    "name it in `ends_with`"
                )

    async def test_answer_that_is_broken_once_loses_nothing(self) -> None:
        """A source that tries again asks for the same page; one that does not raises."""
        number, requests, feed = await self._read_whole()
        after = requests // 2
        with stamina.set_testing(True, attempts=2), suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):  # it may wait before it tries again
                for kind in PASSING if requests else PASSING[:1]:
                    try:
                        answer = self._broken(kind, feed, feed.answers)
                    except pytest.skip.Exception:
                        continue
                    async with self.feed(feed.items) as broken:
                        broken.break_down(answer, after, times=1)
                        try:
                            pages = await self.read(self.new_source(broken))
                        except Exception:  # the engine fails with any
                            continue
                    missing = self._missing(number, pages)
                    # The engine fails as well where nothing is usable.
                    if missing and (records_of(pages) or not any(each.rejects for each in pages)):
                        pytest.fail(
                            f"{kind} was the answer to request {after + 1} alone, and "
                            f"{len(missing)} of {number} items were left out without an error. Ask "
                            "for the same page again, or raise; go on only after an answer."
                        )

    async def _read_whole(self) -> tuple[int, int, SourceFeed]:
        """Read several pages, and return the numbers of items and of requests, and the feed."""
        number = (await self._extent()).several
        async with self.feed(self.items(*range(1, number + 1))) as feed:
            await self.read(self.new_source(feed))
        return number, len(feed.asks), feed

    def _missing(self, number: int, pages: Sequence[Page]) -> set[str]:
        """Return the ids of so many items that pages have not."""
        read = {each.record_id for each in records_of(pages)}
        return {self.record_id(n) for n in range(number)} - read

    def _broken(self, kind: str, feed: SourceFeed, given: list[Answer]) -> Answer:
        """Return the broken answer of a kind to what a feed was asked; skip what the API means."""
        answer, empty = BROKEN[kind], None
        if feed.asks:
            with suppress(Exception):  # what it answers without items is not played
                empty = self.answer(feed.asks[0], [])
        if kind == NULL_LIST and feed.asks:
            found = empty and with_null(feed.answers[0], empty)
            if not found:
                pytest.skip("the API answers without a list where it has no items")
            answer = found
        if kind in self.ends_with or is_own(answer, [*given, *([empty] if empty else [])]):
            pytest.skip(f"the API answers with {kind} itself")
        return answer

    async def test_declared_order_is_kept(self) -> None:
        """No record on a later page is older than one on an earlier page."""
        steps = list(range(1, 1 + (await self._extent()).several))
        random.Random(1).shuffle(steps)
        async with self.feed(self.items(*steps)) as feed:
            source = self.new_source(feed)
            pages = [page for page in await self.read(source) if page.records]
        if getattr(source, "ordered", False):
            times = [[each.timestamp for each in page.records] for page in pages]
            assert all(max(one) <= min(next_) for one, next_ in pairwise(times))

    async def test_full_snapshot_is_read_whole(self) -> None:
        """Whatever range is requested: an item that is not listed counts as removed."""
        async with self.feed(self.items(1, 2, 3, 4)) as feed:
            source = self.new_source(feed)
            pages = await self.read(source, self.at(3), self.at(4))
        if getattr(source, "full_snapshot", source.overlap is None):
            listed = {each.record_id for each in records_of(pages)}
            listed |= {record_id for page in pages for record_id in page.listed}
            assert listed == {self.record_id(number) for number in range(4)}

    async def test_runs_collect_every_item_once(self) -> None:
        """The first run all, the second nothing, the third what tied, came late or changed."""
        now = self.at(100)
        storage, sink = ScriptedStorage(now=lambda: now), LatestSink()
        async with self.feed(self.items(10, 20, 20)) as feed:
            source = self.new_source(feed)

            async def collect() -> Report:
                return await run(
                    source, sink, storage, run_id=f"run-{len(storage.updates)}", clock=lambda: now
                )

            first, second = await collect(), await collect()
            assert (first.records_new, second.records_written) == (3, 0)
            late = self.at(20) - min(source.overlap or self.step, self.step)
            feed.items.append(self.item(self.record_id(3), self.at(20), "a"))
            feed.items.append(self.item(self.record_id(4), late, "a"))
            feed.items[1] = self.item(self.record_id(1), self.at(20), "b")
            third = await collect()
            assert (third.records_new, third.records_changed) == (2, 1)
            fourth = await collect()
            assert fourth.records_written == 0

    async def test_next_run_reads_what_a_failed_one_did_not_store(self) -> None:
        """What was read is not durable yet: where to go on says ``start``, and no state beside it.

        The next run has the same object, or a new one as in a new process.
        """
        now = self.at(100)
        storage, sink = ScriptedStorage(now=lambda: now), RememberingSink()
        async with self.feed(self.items(10)) as feed:
            source = self.new_source(feed)

            async def collect() -> None:
                run_id = f"run-{len(storage.updates)}"
                await run(source, sink, storage, run_id=run_id, clock=lambda: now)

            await collect()
            for number, kind in enumerate(("the same source", "a new source"), 1):
                await collect()
                feed.items.append(self.item(self.record_id(number), self.at(10 + number), "a"))
                sink.script.append(OSError("the disk is full"))
                with suppress(OSError):
                    await collect()
                sink.script.clear()
                if kind == "a new source":
                    source = self.new_source(feed)
                await collect()
                assert self.record_id(number) in sink.ids, (
                    f"{kind} did not read again what the run before it read and could not store. "
                    "Go on from `start`, which is behind what is durable. A token or validator of "
                    "the API that is kept belongs to the start that it leads on from: use it for "
                    "no earlier one."
                )


@contextmanager
def local_time(zone: str) -> Iterator[None]:
    """Let this process be in another zone, where the system lets it choose one."""
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TZ", zone)
            _choose_zone()
            yield
    finally:
        _choose_zone()


def _choose_zone() -> None:
    if hasattr(time, "tzset"):
        time.tzset()


def records_of(pages: Sequence[Page]) -> list[Record]:
    """Return the records of pages."""
    return [record for page in pages for record in page.records]
