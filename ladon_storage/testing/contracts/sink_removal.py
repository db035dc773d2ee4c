"""The marks of records that a source no longer lists."""

from __future__ import annotations

import pytest

from ladon_storage.collection.protocols import (
    SupportsRemoval,
)
from ladon_storage.collection.records import Page, Record
from ladon_storage.errors import SourceError
from ladon_storage.testing.contracts.loops import in_event_loops, supporting
from ladon_storage.testing.doubles import record
from ladon_storage.testing.places import SinkPlace


@in_event_loops
class RemovalRules:
    """A record that its source no longer lists is marked, unless too many would be."""

    @pytest.fixture
    def removing(self, place: SinkPlace) -> SinkPlace:
        """Return the place, where its sinks support that."""
        return supporting(place, SupportsRemoval)

    async def test_record_that_is_no_longer_listed_is_marked_once(
        self, removing: SinkPlace
    ) -> None:
        """A mark deletes nothing, is set once, and only at its own source."""
        page = [record(str(n), n) for n in range(4)]
        await removing.write(page, source_id="other")
        await removing.write([*page, record("3", 5, "b")])
        async with removing.make() as sink:
            assert await sink.mark_removed("feed", {"0", "1", "2", "unknown"}, 0.5) == 1
            assert await sink.mark_removed("feed", {"0", "1", "2"}, 0.5) == 0

        assert removing.removed() == ["3"]
        assert removing.removed("other") == []
        assert {row.record_id for row in removing.rows()} == {"0", "1", "2", "3"}
        async with removing.make() as sink:
            assert await sink.mark_removed("feed", {"0", "1"}, 0.5) == 1
        assert removing.removed() == ["2", "3"]

    @pytest.mark.parametrize(
        "page",
        [
            [record("1", 1, "a")],
            [record("1", 2, "b")],
            [record("1", 0, "older")],
            [record("0", 0), record("1", 1, "a"), record("9", 9)],
        ],
        ids=["same version", "new version", "older version", "among others"],
    )
    async def test_record_that_is_back_loses_its_mark(
        self, removing: SinkPlace, page: list[Record]
    ) -> None:
        """Whatever its version is, a record in a page is there."""
        await removing.write([record("0", 0), record("1", 1, "a"), record("2", 2)])
        async with removing.make() as sink:
            assert await sink.mark_removed("feed", {"0"}, 1) == 2
            await sink.write("feed", Page(page))

        assert removing.removed() == ["2"]

    async def test_record_that_is_listed_again_loses_its_mark(self, removing: SinkPlace) -> None:
        """A list of ids is enough: its content need not come again."""
        await removing.write([record("0", 0), record("1", 1)])
        async with removing.make() as sink:
            assert await sink.mark_removed("feed", {"0"}, 0.5) == 1
            assert await sink.mark_removed("feed", {"0", "1"}, 0.5) == 0

        assert removing.removed() == []

    async def test_implausible_removal_is_refused_whole(self, removing: SinkPlace) -> None:
        """A truncated document marks nothing; the error has the source; the bound is allowed."""
        await removing.write([record(str(n), n) for n in range(10)])
        async with removing.make() as sink:
            with pytest.raises(SourceError) as caught:
                await sink.mark_removed("feed", {"0", "1", "2", "3"}, 0.5)
            assert caught.value.source_id == "feed"
            assert removing.removed() == []
            assert await sink.mark_removed("feed", {"0", "1", "2", "3", "4"}, 0.5) == 5
            with pytest.raises(SourceError):
                await sink.mark_removed("feed", {"0", "1"}, 0.5)
            assert await sink.mark_removed("nothing", set(), 0) == 0

        assert removing.removed() == ["5", "6", "7", "8", "9"]

    async def test_share_that_may_be_removed_is_not_a_matter_of_rounding(
        self, removing: SinkPlace
    ) -> None:
        """0.29 of 100 is a little less than 29 in binary, and 29 may be removed."""
        await removing.write([record(f"{n:03}", n) for n in range(100)])
        async with removing.make() as sink:
            with pytest.raises(SourceError):
                await sink.mark_removed("feed", {f"{n:03}" for n in range(70)}, 0.29)
            assert await sink.mark_removed("feed", {f"{n:03}" for n in range(71)}, 0.29) == 29

        assert len(removing.removed()) == 29

    async def test_mark_is_of_a_record_and_not_of_a_version(self, removing: SinkPlace) -> None:
        """A record of several versions is one that is removed, and counts as one of those known."""
        await removing.write([record("1", 1, "a"), record("2", 2)], [record("1", 3, "b")])
        async with removing.make() as sink:
            with pytest.raises(SourceError):
                await sink.mark_removed("feed", {"2"}, 0.4)
            assert await sink.mark_removed("feed", {"2"}, 0.5) == 1
            assert removing.removed() == ["1"]
            await sink.write("feed", Page([record("1", 4, "c")]))

        assert removing.removed() == []
        assert removing.current() == [("1", "c"), ("2", "a")]

    async def test_hundreds_of_thousands_of_ids_may_be_present(self, removing: SinkPlace) -> None:
        """A source that is read whole may be large."""
        present = {f"id-{n}" for n in range(300_000)}
        await removing.write([record("id-1", 1), record("id-2", 2), record("gone", 3)])
        async with removing.make() as sink:
            assert await sink.mark_removed("feed", present, 0.5) == 1

        assert removing.removed() == ["gone"]
