"""The records of a range that a sink counts."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ladon_storage.collection.protocols import SupportsCount, SupportsRemoval
from ladon_storage.testing.contracts.loops import in_event_loops, supporting
from ladon_storage.testing.doubles import at, record
from ladon_storage.testing.places import SinkPlace


@in_event_loops
class CountRules:
    """A sink can count the records between two times."""

    @pytest.fixture
    def counting(self, place: SinkPlace) -> SinkPlace:
        """Return the place, where its sinks support that."""
        return supporting(place, SupportsCount)

    async def test_records_between_two_times_are_counted(self, counting: SinkPlace) -> None:
        """Without those at the two times, those of other sources, and beyond the limit."""
        await counting.write([record(str(minute), minute) for minute in range(10)])
        await counting.write([record("other", 5)], source_id="other")
        instant = timedelta(microseconds=1)
        async with counting.make() as sink:
            assert await sink.count_records("feed", at(2), at(5), 100) == 2
            assert await sink.count_records("feed", at(2) - instant, at(5) + instant, 100) == 4
            assert await sink.count_records("feed", None, at(2), 100) == 2
            assert await sink.count_records("feed", None, at(20), 3) == 3
            assert await sink.count_records("feed", at(9), at(20), 100) == 0
            assert await sink.count_records("nothing", None, at(20), 100) == 0

    async def test_record_is_counted_at_its_current_version(self, counting: SinkPlace) -> None:
        """A record that moved on, in an earlier page or in this run, is not where it was."""
        await counting.write([record("1", 1), record("2", 2)])
        await counting.write([record("1", 10, "b")])
        async with counting.make() as sink:
            assert await sink.count_records("feed", None, at(5), 100) == 1
            assert await sink.count_records("feed", at(5), at(15), 100) == 1

    async def test_record_that_is_marked_as_removed_is_not_counted(
        self, counting: SinkPlace
    ) -> None:
        """Its source no longer lists it, which is known already."""
        supporting(counting, SupportsRemoval)
        await counting.write([record("1", 1), record("2", 2)])
        async with counting.make() as sink:
            await sink.mark_removed("feed", {"2"}, 1.0)
            assert await sink.count_records("feed", None, at(5), 100) == 1
