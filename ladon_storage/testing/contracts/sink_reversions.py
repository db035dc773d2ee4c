"""The current versions of records, when a source goes back to earlier ones."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from ladon_storage.collection.protocols import (
    Position,
    SupportsLookup,
    SupportsReversion,
    WriteResult,
)
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.collection.run import run
from ladon_storage.testing.contracts.loops import in_event_loops, supporting
from ladon_storage.testing.doubles import ScriptedSource, ScriptedStorage, Step, at, record
from ladon_storage.testing.places import SinkPlace


def summary(result: WriteResult | int) -> tuple[list[tuple[str, str]], int, list[tuple[str, str]]]:
    """Return the result of a write with ids and versions for records."""
    assert isinstance(result, WriteResult)
    new, superseded = (
        sorted((each.record_id, each.version) for each in records)
        for records in (result.new, result.superseded)
    )
    return new, len(result.changed), superseded


@in_event_loops
class ReversionRules:
    """The version that the source delivered last is current, whatever its time."""

    @pytest.fixture
    def reverting(self, place: SinkPlace) -> SinkPlace:
        """Return the place, where its sinks support that."""
        return supporting(place, SupportsReversion)

    async def test_version_that_comes_back_changes_what_is_current(
        self, reverting: SinkPlace
    ) -> None:
        """Of one time, what arrived later is current; where all are kept, it is there already."""
        pages = [[record("1", 1, "a")], [record("1", 1, "b")], [record("1", 1, "a")]]

        assert await reverting.write(*pages) == [1, 1, 1]
        assert reverting.current() == [("1", "a")]
        assert len(reverting.rows()) == (
            1 if reverting.keep == "latest" else 2 + reverting.repeats_reverted
        )
        assert await reverting.write(pages[0]) == [0]

    async def test_known_version_is_current_again_unless_it_is_older(
        self, reverting: SinkPlace
    ) -> None:
        """After a return to an older one, a newer one is no return: it takes over by its time."""
        one, two = record("1", 1, "a"), record("1", 2, "b")
        await reverting.write([one], [two])
        await reverting.revert(one)
        [result] = await reverting.results([record("0", 0), two])

        assert ([each.record_id for each in result.new], len(result.changed)) == (["0"], 1)
        assert list(result.superseded) == []
        assert reverting.current() == [("0", "a"), ("1", "b")]

    async def test_write_returns_what_was_new_changed_and_superseded(
        self, reverting: SinkPlace
    ) -> None:
        """A record is new once; a later one replaces it or is added; an older one is superseded."""
        one, two, three = record("1", 1, "a"), record("2", 5, "a"), record("3", 1)
        newer, older = record("1", 2, "b"), record("2", 4, "b")
        first, known, mixed, again = await reverting.results(
            [one, two], [two, one], [newer, older, three], [newer, three, two]
        )

        assert summary(first) == ([("1", one.version), ("2", two.version)], 0, [])
        assert summary(known) == ([], 0, [])
        stored = 1 if reverting.keep == "latest" else 2  # where all are kept, the older one is, too
        assert summary(mixed) == ([("3", three.version)], stored, [("2", older.version)])
        assert summary(again) == ([], 0, [])
        assert reverting.current() == [("1", "b"), ("2", "a"), ("3", "a")]

    async def test_superseded_records_are_those_of_the_page(self, reverting: SinkPlace) -> None:
        """The engine finds them by identity, also where an equal one is in the page twice."""
        old = record("1", 1, "a")
        await reverting.results([old], [record("1", 2, "b")])
        page = [record("1", 1, "a"), record("2", 2), record("1", 1, "a")]
        [result] = await reverting.results(page)

        assert result.superseded
        assert {id(each) for each in result.superseded} <= {id(each) for each in page}
        assert any(each is page[2] for each in result.superseded)

    @pytest.mark.parametrize("is_known", [True, False])
    async def test_version_that_is_twice_in_a_page_counts_at_its_latest_time(
        self, reverting: SinkPlace, is_known: bool
    ) -> None:
        """As where the time does not change the version: what came earlier may be the later one."""
        one, other = record("1", 3, "a"), record("1", 4, "b")
        page = [one, Record(one.record_id, at(1), one.payload, one.version)]
        if is_known:  # the source went back, and the page has the version it went back to twice
            await reverting.write([record("1", 5, "c")])
            [result] = await reverting.results(page)
            assert [each is one for each in result.superseded] == [True]
            await reverting.revert(*result.superseded)
            assert reverting.current() == [("1", "a")]
        else:
            await reverting.write([record("0", 0)], page, [record("1", 2, "b")])
            assert reverting.current() == [("0", "a"), ("1", "a")]
        await reverting.write([other, one, Record("1", at(0), other.payload, other.version)])
        assert reverting.current()[-1] == ("1", "b")

    @pytest.mark.parametrize("is_first_new", [True, False])
    async def test_record_that_is_twice_in_a_page_is_new_once(
        self, reverting: SinkPlace, is_first_new: bool
    ) -> None:
        """Whatever the order of its versions, and whether the sink looked before it wrote."""
        before = [record("0", 0)]
        page = [record("1", 2, "b"), record("1", 1, "a"), record("1", 2, "b"), record("2", 3)]
        pages = [page] if is_first_new else [before, before, page]
        result = (await reverting.results(*pages))[-1]

        assert sorted(each.record_id for each in result.new) == ["1", "2"]
        assert len(result.changed) == (0 if reverting.keep == "latest" else 1)
        assert reverting.current()[-2:] == [("1", "b"), ("2", "a")]
        assert (await reverting.results(page))[0].written == 0

    @pytest.mark.parametrize("is_known", [True, False])
    async def test_versions_of_one_time_in_a_page_are_in_its_order(
        self, reverting: SinkPlace, is_known: bool
    ) -> None:
        """The last one is the current one, and what was there before is not."""
        if is_known:
            await reverting.write([record("1", 1, "z")])
        await reverting.write([record("1", 1, "b"), record("1", 1, "a"), record("1", 1, "c")])

        assert reverting.current() == [("1", "c")]

    async def test_page_with_one_new_record_among_known_ones_returns_it(
        self, reverting: SinkPlace
    ) -> None:
        """A sink that did not look up a page returns the same result."""
        first, more = (
            [record(str(n), n) for n in range(5)],
            [record(str(n), n) for n in range(5, 9)],
        )
        changed = record("0", 9, "b")
        _, result, last = await reverting.results(first, [*first[1:], changed, *more], more)

        assert sorted(each.record_id for each in result.new) == ["5", "6", "7", "8"]
        assert (len(result.changed), list(result.superseded)) == (1, [])
        assert summary(last) == ([], 0, [])

    async def test_other_sources_records_are_not_known(self, reverting: SinkPlace) -> None:
        """What is new is so at its own source."""
        page = [record("1", 1, "b")]
        await reverting.results([record("1", 2, "a")], source_id="other")
        [result] = await reverting.results(page)

        assert (list(result.new), len(result.changed), list(result.superseded)) == (page, 0, [])

    async def test_revert_makes_an_older_version_the_current_one(
        self, reverting: SinkPlace
    ) -> None:
        """The source went back, by its time or its content: what it said last is current."""
        one, two = record("1", 1, "a"), record("1", 2, "b")
        await reverting.write([one, record("2", 1)], [two])

        [result] = await reverting.results([one])
        assert summary(result) == ([], 0, [("1", one.version)])
        assert reverting.current() == [("1", "b"), ("2", "a")]
        assert await reverting.revert(one) == 1
        assert reverting.current() == [("1", "a"), ("2", "a")]
        assert await reverting.revert(one) == 0
        assert summary((await reverting.results([one]))[0]) == ([], 0, [])
        assert (
            len(reverting.rows())
            == (2 if reverting.keep == "latest" else 3) + reverting.repeats_reverted
        )

    async def test_revert_may_go_to_a_version_that_was_never_stored(
        self, reverting: SinkPlace
    ) -> None:
        """An older time with another content: where all are kept it was counted as it was added."""
        await reverting.write([record("1", 5, "a")])
        older = record("1", 1, "b")
        async with reverting.make() as sink:
            result = await sink.write("feed", Page([older]))
            assert list(result.superseded) == [older]
            reverted = await sink.revert("feed", [older], run_id="R")

        assert result.written + reverted == 1
        assert reverting.current() == [("1", "b")]

    async def test_source_may_go_back_and_on_any_number_of_times(
        self, reverting: SinkPlace
    ) -> None:
        """A to B to A to B to C: a newer version takes over again by itself."""
        one, two, three = record("1", 1, "a"), record("1", 2, "b"), record("1", 3, "c")
        await reverting.write([one], [two])
        for back, value in ((one, "a"), (two, "b"), (one, "a")):
            [result] = await reverting.results([back])
            if result.superseded:
                await reverting.revert(back)
            assert reverting.current() == [("1", value)]
        await reverting.write([record("2", 1)], [three])
        assert reverting.current() == [("1", "c"), ("2", "a")]
        await reverting.write([record("1", 3, "d")])
        assert reverting.current() == [("1", "d"), ("2", "a")]

    async def test_position_is_not_moved_with_what_the_sink_passed_over(
        self, reverting: SinkPlace
    ) -> None:
        """The end of a run shows whether the source went back; after a crash it is read again."""
        one, two = record("1", 1, "a"), record("1", 2, "b")
        before, after = Position(timestamp=at(1)), Position(timestamp=at(2))
        async with reverting.make() as sink:
            await sink.write("feed", Page([one]))
            await sink.write("feed", Page([two]), position=before)
            page = Page([one, record("2", 2)], [Reject.of("no id", 7)])
            result = await sink.write("feed", page, position=after)
            assert (list(result.superseded), await sink.position("feed")) == ([one], before)
            await sink.write("feed", Page([one]), position=after)
            assert await sink.position("feed") == before
            await sink.write("feed", Page([two, one, record("3", 3)]), position=after)
            assert await sink.position("feed") == after

        assert len(reverting.rejects()) == 1
        assert reverting.current() == [("1", "b"), ("2", "a"), ("3", "a")]

    async def test_history_in_a_page_is_no_return(self, reverting: SinkPlace) -> None:
        """A page that has an id twice means the newer one, whatever the order."""
        one, two = record("1", 1, "a"), record("1", 2, "b")
        page = [two, record("0", 0), one]
        first, *others = await reverting.results(page, page, [one, two], [*page, record("3", 3)])

        assert not [each for each in (first, *others) if each.superseded]
        assert reverting.current() == [("0", "a"), ("1", "b"), ("3", "a")]

    async def test_record_that_is_removed_is_not_new_when_it_is_back(
        self, reverting: SinkPlace
    ) -> None:
        """Its row was there all the time."""
        one = record("1", 1)
        await reverting.write([one, record("2", 2)])
        async with reverting.make() as sink:
            assert await sink.mark_removed("feed", {"2"}, 0.5) == 1
            assert await sink.lacking("feed", {"1": at(1)}) == set()
            assert summary(await sink.write("feed", Page([one]))) == ([], 0, [])
            assert await sink.mark_removed("feed", {"2"}, 0.5) == 1
            assert await sink.revert("feed", [one], run_id="R") == 0

    async def test_version_that_the_source_left_is_lacking_again(
        self, reverting: SinkPlace
    ) -> None:
        """Where it goes forward once more, it must be read; whether its row is kept or not."""
        supporting(reverting, SupportsLookup)
        one, two = record("1", 1, "a"), record("1", 2, "b")
        await reverting.write([one, record("2", 9)], [two])
        async with reverting.make() as sink:
            assert await sink.revert("feed", [one], run_id="R") == 1
            many = {str(n): at(2) for n in range(30_000)}
            for listed in ({"1": at(2), "2": at(2)}, many):
                assert await sink.lacking("feed", listed) == listed.keys() - {"2"}
            assert await sink.lacking("feed", {"1": at(1)}) == set()
            assert (await sink.write("feed", Page([two]))).written == 1
            assert await sink.lacking("feed", {"1": at(2)}) == set()
        assert reverting.current() == [("1", "b"), ("2", "a")]

    @pytest.mark.parametrize("seed", range(6))
    async def test_any_pages_and_returns_leave_what_one_rule_says(
        self, reverting: SinkPlace, seed: int
    ) -> None:
        """Whatever comes in whatever order, in one run or several: every sink shows the same."""
        chance = random.Random(seed)
        known = [record(str(n), 1 + k // 2, "abcd"[k]) for n in range(3) for k in range(4)]
        current: dict[str, Record] = {}
        for _ in range(4):
            async with reverting.make() as sink:
                for _ in range(5):
                    page = chance.choices(known, k=chance.randint(1, 5))
                    last: dict[str, Record] = {}
                    for each in page:
                        if (
                            each.record_id not in last
                            or each.timestamp >= last[each.record_id].timestamp
                        ):
                            last[each.record_id] = each
                    expected = []
                    for each in last.values():
                        before = current.get(each.record_id)
                        if before is None or each.timestamp >= before.timestamp:
                            current[each.record_id] = each
                        elif each.version != before.version:
                            expected.append(each)
                    result = await sink.write("feed", Page(page))
                    assert sorted(map(id, result.superseded)) == sorted(map(id, expected))
                    if result.superseded and chance.random() < 0.5:
                        await sink.revert("feed", list(result.superseded), run_id="R")
                        current |= {each.record_id: each for each in result.superseded}
                    found = [row.version for row in reverting.rows() if row.is_current]
                    assert sorted(found) == sorted(each.version for each in current.values())

    @pytest.mark.parametrize("overlap", [None, timedelta(days=1)], ids=["whole", "overlap"])
    async def test_runs_show_what_the_source_said_last(
        self, reverting: SinkPlace, overlap: timedelta | None
    ) -> None:
        """A to B to A, in pages, with others around it: a replay undoes nothing.

        What is older than anything before is stored, and current where it was delivered last.
        """
        storage = ScriptedStorage(now=lambda: at(60))
        one, two = record("1", 5, "a"), record("1", 9, "b")
        old = record("1", 2, "c")
        rest = [record("8", 8), record("2", 3)]
        script: list[tuple[list[Step], str]] = [
            ([[one], rest], "a"),
            ([[two], rest], "b"),
            ([rest, [one]], "a"),
            ([[one], rest], "a"),
            ([[one], rest, [two]], "b"),
            ([rest, [old]], "c"),
            ([[one, old], rest], "a"),
            ([[record("1", 9, "d"), *rest]], "d"),
        ]
        for number, (listed, expected) in enumerate(script):
            source = ScriptedSource(listed, overlap=overlap)
            run_id, sink = f"run-{number}", reverting.make()
            await run(source, sink, storage, run_id=run_id, clock=lambda: at(60))
            assert reverting.current() == [("1", expected), ("2", "a"), ("8", "a")]
