"""The position that a sink stores next to the records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ladon_storage.collection.protocols import (
    Position,
    SupportsPosition,
)
from ladon_storage.collection.records import Page, Reject
from ladon_storage.testing.contracts.loops import in_event_loops, supporting
from ladon_storage.testing.contracts.sink_records import unstorable
from ladon_storage.testing.doubles import at, record
from ladon_storage.testing.places import SinkPlace, changes


def assert_is(found: Position | None, written: Position) -> None:
    """Compare positions, where a sink need not keep their run, or no more than a digest of it."""
    assert found is not None
    assert found.run_id is None or found.is_of(written.run_id)
    assert found.model_copy(update={"run_id": written.run_id}) == written


@in_event_loops
class PositionRules:
    """A position is durable with its page, exact, and of its source alone."""

    @pytest.fixture
    def remembering(self, place: SinkPlace) -> SinkPlace:
        """Return the place, where its sinks support that."""
        return supporting(place, SupportsPosition)

    async def test_position_is_what_was_written_last(self, remembering: SinkPlace) -> None:
        """A position is exact, of its source alone, outlives the run, and stays without one."""
        first = Position(timestamp=at(1) + timedelta(microseconds=1))
        least = datetime.min.replace(tzinfo=UTC)
        second = Position(timestamp=least, watermark=at(5), origin=at(-5), run_id="é R")
        async with remembering.make() as sink:
            assert await sink.position("feed") is None
            await sink.write("feed", Page([record("1", 1)]), position=first)
            assert await sink.position("feed") == first
        assert await remembering.position() == first
        async with remembering.make() as sink:
            assert changes(await sink.write("feed", Page(), position=second)) == 0
            await sink.write("feed", Page([record("2", 2)]))
            assert_is(await sink.position("feed"), second)
            await sink.write("other", Page(), position=first)
            assert_is(await sink.position("feed"), second)
        assert await remembering.position("other") == first

    async def test_position_keeps_what_a_pass_showed(self, remembering: SinkPlace) -> None:
        """The digest of the document and the order are stored with it, and forgotten with it."""
        full = Position(
            timestamp=at(1), document="0123456789abcdef0123456789abcd", order_shown=True
        )
        async with remembering.make() as sink:
            await sink.write("feed", Page([record("1", 1)]), position=full)
        found = await remembering.position()
        assert found is not None
        assert (found.document, found.order_shown) == (full.document, True)

        async with remembering.make() as sink:
            await sink.write("feed", Page(), position=Position(timestamp=at(2)))
        found = await remembering.position()
        assert found is not None
        assert (found.timestamp, found.document, found.order_shown) == (at(2), None, False)

    @pytest.mark.parametrize("run_id", ["R", "é R", "nul \0", "lone \ud800", "x" * 500])
    async def test_position_knows_its_run(self, remembering: SinkPlace, run_id: str) -> None:
        """A run that goes on must distinguish its own position from another's."""
        async with remembering.make() as sink:
            await sink.write("feed", Page(), position=Position(timestamp=at(1), run_id=run_id))
        found = await remembering.position()

        assert found is not None
        assert found.is_of(run_id)
        assert not found.is_of("another")

    async def test_page_that_fails_leaves_nothing_and_can_be_written_again(
        self, remembering: SinkPlace
    ) -> None:
        """Records, rejects and position of a page are durable together, or none of them is."""
        before, after = Position(timestamp=at(1)), Position(timestamp=at(9))
        rejects = [Reject.of("no id", {"a": 1})]
        async with remembering.make() as sink:
            await sink.write("feed", Page([record("1", 1)]), position=before)
            broken = Page([record("2", 2), unstorable("9")], rejects)
            with pytest.raises(Exception):  # noqa: B017, PT011 - there cannot be such a record
                await sink.write("feed", broken, position=after)
            assert await sink.position("feed") == before
            assert [row.record_id for row in remembering.rows()] == ["1"]
            assert remembering.rejects() == [] or not remembering.is_one_transaction
            assert (
                changes(await sink.write("feed", Page([record("2", 2)], rejects), position=after))
                == 1
            )
            assert await sink.position("feed") == after

        assert [row.record_id for row in remembering.rows()] == ["1", "2"]
        assert len(remembering.rejects()) == 1
