"""The records that a sink lacks."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ladon_storage.collection.protocols import (
    SupportsLookup,
)
from ladon_storage.collection.records import Page
from ladon_storage.testing.contracts.loops import in_event_loops, supporting
from ladon_storage.testing.doubles import at, record
from ladon_storage.testing.places import SinkPlace


@in_event_loops
class LookupRules:
    """A sink can say which of listed records it lacks."""

    @pytest.fixture
    def looking(self, place: SinkPlace) -> SinkPlace:
        """Return the place, where its sinks support that."""
        return supporting(place, SupportsLookup)

    async def test_listed_records_that_are_lacking_are_returned(self, looking: SinkPlace) -> None:
        """By id and time: what is there at that time or later need not be asked for again."""
        await looking.write([record("1", 1), record("2", 2)])
        await looking.write([record("3", 3)], source_id="other")
        listed = {"1": at(1), "2": at(2) + timedelta(microseconds=1), "3": at(0), "é'": at(0)}
        async with looking.make() as sink:
            assert await sink.lacking("feed", listed) == {"2", "3", "é'"}
            assert await sink.lacking("feed", {"1": at(-5), "2": at(1)}) == set()
            assert await sink.lacking("feed", {}) == set()
            assert await sink.lacking("nothing", {"1": at(1)}) == {"1"}
            await sink.write("feed", Page([record("2", 3, "b")]))
            assert await sink.lacking("feed", listed) == {"3", "é'"}
            many = {str(n): at(1) for n in range(30_000)}
            assert await sink.lacking("feed", many) == many.keys() - {"1", "2"}
