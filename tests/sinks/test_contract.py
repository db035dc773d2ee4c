"""The contract of sinks, asked of every sink of the package, and of one of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ladon_storage.collection.protocols import (
    Sink,
    SupportsCount,
    SupportsLookup,
    SupportsPosition,
    SupportsRemoval,
    SupportsReversion,
)
from ladon_storage.collection.records import Page
from ladon_storage.errors import SinkError, SourceError
from ladon_storage.testing import SinkContract, SinkPlace, record
from ladon_storage.testing.doubles import at
from tests.sinks import places
from tests.sinks.places import OURS


class TestOurSinks(SinkContract):
    """Every sink of the package keeps the contract, and supports all that a sink may."""

    @pytest.fixture(params=OURS)
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> SinkPlace:
        """Return each place in turn."""
        return places.place(request.param, tmp_path, request)

    @pytest.mark.slow
    def test_sink_that_is_killed_at_any_line_loses_and_repeats_nothing(
        self, place: SinkPlace, tmp_path: Path
    ) -> None:
        """The quick tests kill each of them at any moment, and a sink of one's own at any line."""
        super().test_sink_that_is_killed_at_any_line_loses_and_repeats_nothing(place, tmp_path)

    @pytest.mark.slow
    def test_page_of_another_process_between_two_lines_of_a_write_is_known(
        self, place: SinkPlace, tmp_path: Path
    ) -> None:
        """The quick tests have two runs of each in one process, and of one's own in two."""
        super().test_page_of_another_process_between_two_lines_of_a_write_is_known(place, tmp_path)

    @pytest.mark.slow
    def test_record_may_be_large(self, place: SinkPlace) -> None:  # type: ignore[override]
        """The quick tests have a large one for a sink of one's own."""
        super().test_record_may_be_large(place)  # type: ignore[unused-coroutine]

    @pytest.mark.parametrize(
        "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
    )
    def test_any_pages_and_returns_leave_what_one_rule_says(  # type: ignore[override]
        self, reverting: SinkPlace, seed: int
    ) -> None:
        """The quick tests take two of the six seeds."""
        super().test_any_pages_and_returns_leave_what_one_rule_says(reverting, seed)  # type: ignore[unused-coroutine]

    def test_sink_does_all_that_a_sink_may_do(self, place: SinkPlace) -> None:
        """The engine looks for these methods, and does without what it does not find."""
        sink = place.make()
        assert isinstance(sink, Sink)
        assert isinstance(sink, SupportsPosition)
        assert isinstance(sink, SupportsRemoval)
        assert isinstance(sink, SupportsReversion)
        assert isinstance(sink, SupportsLookup)
        assert isinstance(sink, SupportsCount)

    async def test_sink_that_is_not_open_says_so(self, place: SinkPlace) -> None:
        """Before it is entered, and after it was left, it refuses; it can be entered again."""
        sink = place.make()
        for _ in range(2):
            with pytest.raises(SinkError, match="is not open"):
                await sink.write("feed", Page([record("2", 2)]))
            async with sink:
                with pytest.raises(SinkError, match="serves another run"):
                    await sink.__aenter__()
                await sink.write("feed", Page([record("1", 1)]))

        assert [row.record_id for row in place.rows()] == ["1"]

    async def test_listed_ids_may_be_of_a_derived_class(self, place: SinkPlace) -> None:
        """As a parser of HTML gives them; those of a record are plain texts by then."""

        class Text(str):
            __slots__ = ()

        async with place.make() as sink:
            await sink.write("feed", Page([record("1", 1)]))
            assert await sink.lacking("feed", {Text("1"): at(1), Text("2"): at(1)}) == {"2"}
            assert await sink.mark_removed("feed", {Text("1")}, 1.0) == 0

    async def test_error_of_an_implausible_removal_has_the_numbers(self, place: SinkPlace) -> None:
        """It names the source, how many of how many records disappeared, the limit, the setting."""
        await place.write([record(str(n), n, value) for n in range(10) for value in "ab"])
        message = r"(?=.*'feed')(?=.*\b6\b)(?=.*\b10 records)(?=.*\b29%)(?=.*removed_share)"
        async with place.make() as sink:
            with pytest.raises(SourceError, match=message):
                await sink.mark_removed("feed", {"0", "1", "2", "3"}, 0.29)


class TestOwnSink(SinkContract):
    """A sink of one's own, as the documentation shows it."""

    @pytest.fixture
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> SinkPlace:
        """Return its place."""
        return places.place("own", tmp_path, request)
