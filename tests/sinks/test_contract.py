"""What every sink promises, asked of every sink, and of one of one's own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection.protocols import (
    Position,
    Sink,
    SupportsLookup,
    SupportsPosition,
    SupportsRemoval,
    SupportsReversion,
    WriteResult,
)
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.errors import SinkError, SourceError
from ladon_storage.testing.doubles import ScriptedSource, Step, at, record
from tests.collection.test_ledger import World
from tests.sinks import places as sink_places
from tests.sinks.places import OURS, Place

ROOT = Path(__file__).resolve().parent.parent.parent
ALL = [*OURS, "own"]


@pytest.fixture(params=ALL)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Be every place that there is."""
    return sink_places.place(request.param, tmp_path, request)


@pytest.fixture(params=OURS)
def ours(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Be every place of a sink of this package, which does all that a sink may do."""
    return sink_places.place(request.param, tmp_path, request)


async def results(place: Place, *pages: Page | list[Record], source_id: str = "feed") -> list[Any]:
    """Write pages in a run of their own, and return what the sink says about each."""
    made = [each if isinstance(each, Page) else Page(each) for each in pages]
    async with place.make() as sink:
        return [await sink.write(source_id, page, run_id="R") for page in made]


async def write(place: Place, *pages: Page | list[Record], source_id: str = "feed") -> list[int]:
    """Write pages in a run of their own, and return how many rows each made or changed."""
    found = await results(place, *pages, source_id=source_id)
    return [each if isinstance(each, int) else each.written for each in found]


async def count(writing: Awaitable[WriteResult | int]) -> int:
    """Return how many rows a write made or changed: a simple sink tells no more."""
    result = await writing
    return result if isinstance(result, int) else result.written


async def read_position(place: Place, source_id: str = "feed") -> Position | None:
    async with place.make() as sink:
        position: Position | None = await sink.position(source_id)
        return position


def unstorable(record_id: str) -> Record:
    """Return a record that no place can hold: half of a surrogate pair has no UTF-8."""
    return Record(record_id, at(9), '{"value":"\ud800"}', "v")


def test_sink_does_all_that_a_sink_may_do(ours: Place) -> None:
    """The engine looks for these methods, and does without what it does not find."""
    sink = ours.make()
    assert isinstance(sink, Sink)
    assert isinstance(sink, SupportsPosition)
    assert isinstance(sink, SupportsRemoval)
    assert isinstance(sink, SupportsReversion)
    assert isinstance(sink, SupportsLookup)


async def test_same_records_again_change_nothing(place: Place) -> None:
    """A replay counts nothing: in a page, in a later one, with other borders, in a later run."""
    one, two, three = (record(str(n), n) for n in (1, 2, 3))

    assert await write(place, [one, two, one], [one, two], [two, three]) == [2, 0, 1]
    before = place.rows()
    assert await write(place, [three, one], [two]) == [0, 0]
    assert place.rows() == before
    assert [row.record_id for row in before] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("pages", "latest"),
    [
        ([[("1", 1, "a")], [("1", 2, "b")]], "b"),
        ([[("1", 2, "b")], [("1", 1, "a")]], "b"),
        ([[("1", 1, "a")], [("1", 1, "b")]], "b"),
        ([[("1", 2, "b"), ("1", 1, "a")]], "b"),
        ([[("1", 1, "a"), ("1", 1, "b")]], "b"),
    ],
    ids=["newer", "older", "same time", "older in a page", "same time in a page"],
)
async def test_versions_are_kept_by_the_rule_of_the_place(
    place: Place, pages: list[list[tuple[str, int, str]]], latest: str
) -> None:
    """All are kept, or the newest; of two at one time the one that arrived later."""
    made = [[record(*each) for each in page] for page in pages]
    await write(place, *made)

    values = {value for _, value in place.values()}
    assert values == ({latest} if place.keep == "latest" else {"a", "b"})
    assert len(place.rows()) == len(values)


async def test_version_that_comes_back_changes_what_is_current(ours: Place) -> None:
    """Of one time, what arrived later is current; where all are kept, it is there already."""
    pages = [[record("1", 1, "a")], [record("1", 1, "b")], [record("1", 1, "a")]]

    assert await write(ours, *pages) == [1, 1, 1]
    assert ours.current() == [("1", "a")]
    assert len(ours.rows()) == (1 if ours.keep == "latest" else 2 + ours.repeats_reverted)
    assert await write(ours, pages[0]) == [0]


async def test_known_version_is_current_again_unless_it_is_older(ours: Place) -> None:
    """After a return to an older one, a newer one is no return: it takes over by its time."""
    one, two = record("1", 1, "a"), record("1", 2, "b")
    await write(ours, [one], [two])
    await revert(ours, one)
    [result] = await results(ours, [record("0", 0), two])

    assert ([each.record_id for each in result.new], len(result.changed)) == (["0"], 1)
    assert list(result.superseded) == []
    assert ours.current() == [("0", "a"), ("1", "b")]


async def revert(place: Place, *records: Record) -> int:
    """Make versions the current ones in a run of their own, and return how many were not."""
    async with place.make() as sink:
        count: int = await sink.revert("feed", list(records), run_id="R")
        return count


def told(result: WriteResult) -> tuple[list[tuple[str, str]], int, list[tuple[str, str]]]:
    """Return what a sink says about a page, with ids and versions for records."""
    new, superseded = (
        sorted((each.record_id, each.version) for each in records)
        for records in (result.new, result.superseded)
    )
    return new, len(result.changed), superseded


async def test_write_tells_what_was_new_changed_and_superseded(ours: Place) -> None:
    """A record is new once; later ones replace it or are added to it; an older one is told."""
    one, two, three = record("1", 1, "a"), record("2", 5, "a"), record("3", 1)
    newer, older = record("1", 2, "b"), record("2", 4, "b")
    first, known, mixed, again = await results(
        ours, [one, two], [two, one], [newer, older, three], [newer, three, two]
    )

    assert told(first) == ([("1", one.version), ("2", two.version)], 0, [])
    assert told(known) == ([], 0, [])
    stored = 1 if ours.keep == "latest" else 2  # where all are kept, the older one is, too
    assert told(mixed) == ([("3", three.version)], stored, [("2", older.version)])
    assert told(again) == ([], 0, [])
    assert ours.current() == [("1", "b"), ("2", "a"), ("3", "a")]


async def test_superseded_records_are_those_of_the_page(ours: Place) -> None:
    """The engine tells them by identity, also where an equal one is in the page twice."""
    old = record("1", 1, "a")
    await results(ours, [old], [record("1", 2, "b")])
    page = [record("1", 1, "a"), record("2", 2), record("1", 1, "a")]
    [result] = await results(ours, page)

    assert result.superseded
    assert {id(each) for each in result.superseded} <= {id(each) for each in page}
    assert any(each is page[2] for each in result.superseded)


@pytest.mark.parametrize("is_first_new", [True, False])
async def test_record_that_is_twice_in_a_page_is_new_once(ours: Place, is_first_new: bool) -> None:
    """Whatever the order of its versions, and whether the sink looked before it wrote."""
    before = [record("0", 0)]
    page = [record("1", 2, "b"), record("1", 1, "a"), record("1", 2, "b"), record("2", 3)]
    pages = [page] if is_first_new else [before, before, page]
    result = (await results(ours, *pages))[-1]

    assert sorted(each.record_id for each in result.new) == ["1", "2"]
    assert len(result.changed) == (0 if ours.keep == "latest" else 1)
    assert ours.current()[-2:] == [("1", "b"), ("2", "a")]
    assert (await results(ours, page))[0].written == 0


@pytest.mark.parametrize("is_known", [True, False])
async def test_versions_of_one_time_in_a_page_are_in_its_order(ours: Place, is_known: bool) -> None:
    """The last one is the current one, and what was there before is not."""
    if is_known:
        await write(ours, [record("1", 1, "z")])
    await write(ours, [record("1", 1, "b"), record("1", 1, "a"), record("1", 1, "c")])

    assert ours.current() == [("1", "c")]


async def test_page_with_one_new_record_among_known_ones_tells_it(ours: Place) -> None:
    """A sink that did not look up a page tells the same about it."""
    first, more = [record(str(n), n) for n in range(5)], [record(str(n), n) for n in range(5, 9)]
    changed = record("0", 9, "b")
    _, result, last = await results(ours, first, [*first[1:], changed, *more], more)

    assert sorted(each.record_id for each in result.new) == ["5", "6", "7", "8"]
    assert (len(result.changed), list(result.superseded)) == (1, [])
    assert told(last) == ([], 0, [])


async def test_other_sources_records_are_not_known(ours: Place) -> None:
    """What is new is so at its own source."""
    page = [record("1", 1, "b")]
    await results(ours, [record("1", 2, "a")], source_id="other")
    [result] = await results(ours, page)

    assert (list(result.new), len(result.changed), list(result.superseded)) == (page, 0, [])


async def test_revert_makes_an_older_version_the_current_one(ours: Place) -> None:
    """The source went back, by its time or its content: what it said last is current."""
    one, two = record("1", 1, "a"), record("1", 2, "b")
    await write(ours, [one, record("2", 1)], [two])

    [result] = await results(ours, [one])
    assert told(result) == ([], 0, [("1", one.version)])
    assert ours.current() == [("1", "b"), ("2", "a")]
    assert await revert(ours, one) == 1
    assert ours.current() == [("1", "a"), ("2", "a")]
    assert await revert(ours, one) == 0
    assert told((await results(ours, [one]))[0]) == ([], 0, [])
    assert len(ours.rows()) == (2 if ours.keep == "latest" else 3) + ours.repeats_reverted


async def test_revert_may_go_to_a_version_that_was_never_stored(ours: Place) -> None:
    """An older time with another content: where all are kept it was counted as it was added."""
    await write(ours, [record("1", 5, "a")])
    older = record("1", 1, "b")
    async with ours.make() as sink:
        result = await sink.write("feed", Page([older]))
        assert list(result.superseded) == [older]
        reverted = await sink.revert("feed", [older], run_id="R")

    assert result.written + reverted == 1
    assert ours.current() == [("1", "b")]


async def test_source_may_go_back_and_on_any_number_of_times(ours: Place) -> None:
    """A to B to A to B to C: a newer version takes over again without being told to."""
    one, two, three = record("1", 1, "a"), record("1", 2, "b"), record("1", 3, "c")
    await write(ours, [one], [two])
    for back, value in ((one, "a"), (two, "b"), (one, "a")):
        [result] = await results(ours, [back])
        if result.superseded:
            await revert(ours, back)
        assert ours.current() == [("1", value)]
    await write(ours, [record("2", 1)], [three])
    assert ours.current() == [("1", "c"), ("2", "a")]
    await write(ours, [record("1", 3, "d")])
    assert ours.current() == [("1", "d"), ("2", "a")]


async def test_listed_records_that_are_lacking_are_told(ours: Place) -> None:
    """By id and time: what is there at that time or later need not be asked for again."""
    await write(ours, [record("1", 1), record("2", 2)])
    await write(ours, [record("3", 3)], source_id="other")
    listed = {"1": at(1), "2": at(2) + timedelta(microseconds=1), "3": at(0), "é'": at(0)}
    async with ours.make() as sink:
        assert await sink.lacking("feed", listed) == {"2", "3", "é'"}
        assert await sink.lacking("feed", {"1": at(-5), "2": at(1)}) == set()
        assert await sink.lacking("feed", {}) == set()
        assert await sink.lacking("nothing", {"1": at(1)}) == {"1"}
        await sink.write("feed", Page([record("2", 3, "b")]))
        assert await sink.lacking("feed", listed) == {"3", "é'"}
        many = {str(n): at(1) for n in range(30_000)}
        assert await sink.lacking("feed", many) == many.keys() - {"1", "2"}


async def test_row_has_what_the_source_gave(place: Place) -> None:
    """Id, version, time and content of a record belong together."""
    made = Record.of("1", at(1), {"b": [1.0, None, {"c": "é"}], "a": 10**20})
    await write(place, [record("1", 0), made])

    [row] = [row for row in place.rows() if row.version == made.version]
    assert (row.record_id, row.timestamp, row.is_removed) == ("1", at(1), False)
    assert (
        json.dumps(row.payload)
        == '{"b": [1.0, null, {"c": "\\u00e9"}], "a": 100000000000000000000}'
    )


TEXTS = ["é';--", '"', "🦜", "a\nb\r\n", "%s %(x)s :y ?", "{}", "\\", " ", "\u2028", "../x", "null"]


async def test_any_text_survives(place: Place) -> None:
    """What JSON can say comes back as it was, also as an id."""
    odd = {"nul": "\0", "lone": "\ud800"}
    page = [Record.of(text, at(0), {"value": text, text: text} | odd) for text in TEXTS]

    assert await write(place, page, page) == [len(page), 0]
    assert {row.record_id: (row.version, row.payload) for row in place.rows()} == {
        made.record_id: (made.version, {"value": text, text: text} | odd)
        for text, made in zip(TEXTS, page, strict=True)
    }


async def test_source_may_have_any_name(place: Place) -> None:
    """A name is a value, never a part of a statement or a path."""
    async with place.make() as sink:
        for text in TEXTS:
            assert await count(sink.write(text, Page([record("1", 1, text)]))) == 1
            assert await count(sink.write(text, Page([record("1", 1, text)]))) == 0

    assert [[row.payload["value"] for row in place.rows(text)] for text in TEXTS] == [
        [text] for text in TEXTS
    ]


async def test_instants_keep_their_microseconds_and_far_years(place: Place) -> None:
    """The first and the last instant that there are, and two that are next to each other."""
    instants = [
        datetime.min.replace(tzinfo=UTC),
        at(0),
        at(0) + timedelta(microseconds=1),
        datetime.max.replace(tzinfo=UTC),
    ]
    pages = [[record(str(n), instant)] for n, instant in enumerate(instants)]
    await write(place, *pages)

    assert [row.timestamp for row in place.rows()] == instants
    older = [record("2", at(0), "older")]
    assert await write(place, older) == [0 if place.keep == "latest" else 1]


class Instant(datetime):
    """Be what pendulum, pandas and freezegun make of an instant: a subclass."""


async def test_instant_may_be_of_another_library(place: Place) -> None:
    """To the microsecond, however it is written; known, and newer, as any other."""
    made = Instant(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    page = [record("1", made), record("2", made.replace(microsecond=0))]
    changed = [record("1", made + timedelta(seconds=1), "newer")]
    assert await write(place, page) == [2]
    assert await write(place, page) == [0]
    assert await write(place, changed) == [1]
    assert {row.timestamp for row in place.rows()} >= {page[1].timestamp, changed[0].timestamp}


async def test_record_may_be_large(place: Place) -> None:
    """A payload of megabytes is a record as any other, also among small ones."""
    large = record("1", 1, "é" * 3_000_000)
    page = [record("0", 0), large, record("2", 2)]

    assert await write(place, page, page) == [3, 0]
    [row] = [row for row in place.rows() if row.record_id == "1"]
    assert row.payload["value"] == "é" * 3_000_000


async def test_sources_do_not_touch_each_others_records(place: Place) -> None:
    """The same id at another source is another record."""
    await write(place, [record("1", 2, "a")], source_id="one")
    await write(place, [record("1", 1, "b")], source_id="two")

    assert [row.payload["value"] for row in place.rows("one")] == ["a"]
    assert [row.payload["value"] for row in place.rows("two")] == ["b"]


async def test_empty_page_is_nothing_to_store(place: Place) -> None:
    """A page without records says nothing about a source."""
    assert await write(place, []) == [0]
    assert place.rows() == []
    assert await read_position(place) is None


def assert_is(found: Position | None, written: Position) -> None:
    """Compare positions, where a sink need not keep whose it is, or no more than a digest."""
    assert found is not None
    assert found.run_id is None or found.is_of(written.run_id)
    assert found.model_copy(update={"run_id": written.run_id}) == written


async def test_position_is_what_was_written_last(place: Place) -> None:
    """A position is exact, of its source alone, outlives the run, and stays when none is given."""
    first = Position(timestamp=at(1) + timedelta(microseconds=1))
    least = datetime.min.replace(tzinfo=UTC)
    second = Position(timestamp=least, watermark=at(5), origin=at(-5), run_id="é R")
    async with place.make() as sink:
        assert await sink.position("feed") is None
        await sink.write("feed", Page([record("1", 1)]), position=first)
        assert await sink.position("feed") == first
    assert await read_position(place) == first
    async with place.make() as sink:
        assert await count(sink.write("feed", Page(), position=second)) == 0
        await sink.write("feed", Page([record("2", 2)]))
        assert_is(await sink.position("feed"), second)
        await sink.write("other", Page(), position=first)
        assert_is(await sink.position("feed"), second)
    assert await read_position(place, "other") == first


async def test_position_keeps_what_a_pass_showed(ours: Place) -> None:
    """The digest of the document and the order are remembered with it, and forgotten with it."""
    full = Position(timestamp=at(1), document="0123456789abcdef0123456789abcd", order_shown=True)
    async with ours.make() as sink:
        await sink.write("feed", Page([record("1", 1)]), position=full)
    found = await read_position(ours)
    assert found is not None
    assert (found.document, found.order_shown) == (full.document, True)

    async with ours.make() as sink:
        await sink.write("feed", Page(), position=Position(timestamp=at(2)))
    found = await read_position(ours)
    assert found is not None
    assert (found.timestamp, found.document, found.order_shown) == (at(2), None, False)


async def test_position_is_not_moved_with_what_the_sink_passed_over(ours: Place) -> None:
    """Whether the source went back shows at the end of a run; a crash before must read it again."""
    one, two = record("1", 1, "a"), record("1", 2, "b")
    before, after = Position(timestamp=at(1)), Position(timestamp=at(2))
    async with ours.make() as sink:
        await sink.write("feed", Page([one]))
        await sink.write("feed", Page([two]), position=before)
        page = Page([one, record("2", 2)], [Reject.of("no id", 7)])
        result = await sink.write("feed", page, position=after)
        assert (list(result.superseded), await sink.position("feed")) == ([one], before)
        await sink.write("feed", Page([one]), position=after)
        assert await sink.position("feed") == before
        await sink.write("feed", Page([two, one, record("3", 3)]), position=after)
        assert await sink.position("feed") == after

    assert len(ours.quarantine()) == 1
    assert ours.current() == [("1", "b"), ("2", "a"), ("3", "a")]


async def test_history_in_a_page_is_no_return(ours: Place) -> None:
    """A page that has an id twice means the newer one, whatever the order."""
    one, two = record("1", 1, "a"), record("1", 2, "b")
    page = [two, record("0", 0), one]
    first, *others = await results(ours, page, page, [one, two], [*page, record("3", 3)])

    assert not [each for each in (first, *others) if each.superseded]
    assert ours.current() == [("0", "a"), ("1", "b"), ("3", "a")]


@pytest.mark.parametrize("run_id", ["R", "é R", "nul \0", "lone \ud800", "x" * 500])
async def test_position_knows_its_run(ours: Place, run_id: str) -> None:
    """A run that goes on must tell its own position from another's."""
    async with ours.make() as sink:
        await sink.write("feed", Page(), position=Position(timestamp=at(1), run_id=run_id))
    found = await read_position(ours)

    assert found is not None
    assert found.is_of(run_id)
    assert not found.is_of("another")


async def test_page_that_fails_leaves_nothing_and_can_be_written_again(place: Place) -> None:
    """Records, rejects and position of a page are durable together, or none of them is."""
    before, after = Position(timestamp=at(1)), Position(timestamp=at(9))
    rejects = [Reject.of("no id", {"a": 1})]
    async with place.make() as sink:
        await sink.write("feed", Page([record("1", 1)]), position=before)
        broken = Page([record("2", 2), unstorable("9")], rejects)
        with pytest.raises(Exception):  # noqa: B017, PT011 - there cannot be such a record
            await sink.write("feed", broken, position=after)
        assert await sink.position("feed") == before
        assert [row.record_id for row in place.rows()] == ["1"]
        assert place.quarantine() == [] or not place.is_one_transaction
        assert await count(sink.write("feed", Page([record("2", 2)], rejects), position=after)) == 1
        assert await sink.position("feed") == after

    assert [row.record_id for row in place.rows()] == ["1", "2"]
    assert len(place.quarantine()) == 1


async def test_reject_is_quarantined_once(place: Place) -> None:
    """The same text of the same source is kept once, with the run that met it first and why."""
    odd = "lone \ud800, NUL \0, 🦜 and 'quotes'"
    page = Page([], [Reject.of("no id", {"a": 1}), Reject("odd", odd), Reject("odd", odd)])

    assert await write(place, page, page) == [0, 0]
    assert await write(place, page, Page([record("1", 1)], page.rejects)) == [0, 1]
    assert await write(place, page, source_id="other") == [0]
    assert place.quarantine() == [
        (source_id, "R", reason) for source_id in ("feed", "other") for reason in ("no id", "odd")
    ]


async def test_reject_of_another_reason_is_the_same_one(place: Place) -> None:
    """A release that words a reason differently does not fill the quarantine again."""
    await write(
        place, Page([], [Reject("no id", "raw")]), Page([], [Reject("it has no id", "raw")])
    )

    assert place.quarantine() == [("feed", "R", "no id")]


async def test_reason_of_a_reject_may_be_any_text(place: Place) -> None:
    """A reason often repeats a part of what is wrong."""
    page = Page([], [Reject("what is \0 and \ud800?", "raw")])

    assert await write(place, page, page) == [0, 0]
    assert len(place.quarantine()) == 1


async def test_record_that_is_no_longer_listed_is_marked_once(ours: Place) -> None:
    """A mark deletes nothing, is set once, and only at its own source."""
    page = [record(str(n), n) for n in range(4)]
    await write(ours, page, source_id="other")
    await write(ours, [*page, record("3", 5, "b")])
    async with ours.make() as sink:
        assert await sink.mark_removed("feed", {"0", "1", "2", "unknown"}, 0.5) == 1
        assert await sink.mark_removed("feed", {"0", "1", "2"}, 0.5) == 0

    assert ours.removed() == ["3"]
    assert ours.removed("other") == []
    assert {row.record_id for row in ours.rows()} == {"0", "1", "2", "3"}
    async with ours.make() as sink:
        assert await sink.mark_removed("feed", {"0", "1"}, 0.5) == 1
    assert ours.removed() == ["2", "3"]


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
async def test_record_that_is_back_loses_its_mark(ours: Place, page: list[Record]) -> None:
    """Whatever its version is, a record in a page is there."""
    await write(ours, [record("0", 0), record("1", 1, "a"), record("2", 2)])
    async with ours.make() as sink:
        assert await sink.mark_removed("feed", {"0"}, 1) == 2
        await sink.write("feed", Page(page))

    assert ours.removed() == ["2"]


async def test_record_that_is_listed_again_loses_its_mark(ours: Place) -> None:
    """A list of ids is enough: its content need not come again."""
    await write(ours, [record("0", 0), record("1", 1)])
    async with ours.make() as sink:
        assert await sink.mark_removed("feed", {"0"}, 0.5) == 1
        assert await sink.mark_removed("feed", {"0", "1"}, 0.5) == 0

    assert ours.removed() == []


async def test_implausible_removal_is_refused_whole(ours: Place) -> None:
    """A truncated document marks nothing; the error has the numbers; the bound itself is right."""
    await write(ours, [record(str(n), n) for n in range(10)])
    async with ours.make() as sink:
        with pytest.raises(
            SourceError, match=r"(?=.*'feed')(?=.*\b6\b)(?=.*\b10 records)"
        ) as caught:
            await sink.mark_removed("feed", {"0", "1", "2", "3"}, 0.5)
        assert caught.value.source_id == "feed"
        assert ours.removed() == []
        assert await sink.mark_removed("feed", {"0", "1", "2", "3", "4"}, 0.5) == 5
        with pytest.raises(SourceError, match=r"(?=.*\b3\b)(?=.*\b5 records)"):
            await sink.mark_removed("feed", {"0", "1"}, 0.5)
        assert await sink.mark_removed("nothing", set(), 0) == 0

    assert ours.removed() == ["5", "6", "7", "8", "9"]


async def test_share_that_may_be_removed_is_not_a_matter_of_rounding(ours: Place) -> None:
    """0.29 of 100 is a little less than 29 in binary; the error names the setting."""
    await write(ours, [record(f"{n:03}", n) for n in range(100)])
    async with ours.make() as sink:
        with pytest.raises(SourceError, match=r"(?=.*\b30\b)(?=.*\b29%)(?=.*removed_share)"):
            await sink.mark_removed("feed", {f"{n:03}" for n in range(70)}, 0.29)
        assert await sink.mark_removed("feed", {f"{n:03}" for n in range(71)}, 0.29) == 29

    assert len(ours.removed()) == 29


async def test_mark_is_of_a_record_and_not_of_a_version(ours: Place) -> None:
    """A record of several versions is one that is removed, and counts as one of those known."""
    await write(ours, [record("1", 1, "a"), record("2", 2)], [record("1", 3, "b")])
    async with ours.make() as sink:
        with pytest.raises(SourceError, match=r"(?=.*\b1\b)(?=.*\b2 records)"):
            await sink.mark_removed("feed", {"2"}, 0.4)
        assert await sink.mark_removed("feed", {"2"}, 0.5) == 1
        assert ours.removed() == ["1"]
        await sink.write("feed", Page([record("1", 4, "c")]))

    assert ours.removed() == []
    assert ours.current() == [("1", "c"), ("2", "a")]


async def test_record_that_is_removed_is_not_new_when_it_is_back(ours: Place) -> None:
    """Its row was there all the time."""
    one = record("1", 1)
    await write(ours, [one, record("2", 2)])
    async with ours.make() as sink:
        assert await sink.mark_removed("feed", {"2"}, 0.5) == 1
        assert await sink.lacking("feed", {"1": at(1)}) == set()
        assert told(await sink.write("feed", Page([one]))) == ([], 0, [])
        assert await sink.mark_removed("feed", {"2"}, 0.5) == 1
        assert await sink.revert("feed", [one], run_id="R") == 0


async def test_hundreds_of_thousands_of_ids_may_be_present(ours: Place) -> None:
    """A source that is read whole may be large."""
    present = {f"id-{n}" for n in range(300_000)}
    await write(ours, [record("id-1", 1), record("id-2", 2), record("gone", 3)])
    async with ours.make() as sink:
        assert await sink.mark_removed("feed", present, 0.5) == 1

    assert ours.removed() == ["gone"]


async def test_two_sinks_write_one_place_at_once(ours: Place) -> None:
    """Runs of one source and of several share a place, from its making on; nothing is twice."""

    async def fill(source_id: str) -> int:
        pages = [[record(str(n), n) for n in range(k, k + 20)] for k in range(0, 60, 10)]
        return sum(await write(ours, *pages, source_id=source_id))

    one, two, other = await asyncio.gather(fill("feed"), fill("feed"), fill("other"))

    assert one + two == 70
    assert other == 70
    assert len(ours.rows()) == len(ours.rows("other")) == 70


async def test_sink_that_is_not_open_says_so(ours: Place) -> None:
    """Before it is entered, and after it was left, it can do nothing; it can be entered again."""
    sink = ours.make()
    for _ in range(2):
        with pytest.raises(SinkError, match="is not open"):
            await sink.write("feed", Page([record("2", 2)]))
        async with sink:
            with pytest.raises(SinkError, match="serves another run"):
                await sink.__aenter__()
            await sink.write("feed", Page([record("1", 1)]))

    assert [row.record_id for row in ours.rows()] == ["1"]


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_cancelled_write_leaves_a_whole_page_or_none(ours: Place, turns: int) -> None:
    """A run that is cancelled leaves nothing half, and nothing that runs on."""
    page = Page([record(str(n), n) for n in range(500)])

    async def collect() -> None:
        async with ours.make() as sink:
            await sink.write("feed", Page([record("first", 0)]))
            entered.set()
            await sink.write("feed", page, position=Position(timestamp=at(500)))

    entered = asyncio.Event()
    running = asyncio.create_task(collect())
    await asyncio.wait_for(entered.wait(), 20)
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    is_there = len(ours.rows()) == 501
    assert is_there or len(ours.rows()) == 1
    assert (await read_position(ours) is not None) == is_there
    assert await write(ours, page) == [0 if is_there else 500]


_WRITER = """
import asyncio, json, sys
from ladon_storage.collection.protocols import Position
from ladon_storage.collection.records import Page, Reject
from ladon_storage.sinks import sink_from
from ladon_storage.testing.doubles import ScriptedSource, Step, at, record

async def main():
    async with sink_from(json.loads(sys.argv[1])) as sink:
        for page in range(1_000_000):
            records = [record(f"{page}-{n}", page) for n in range(10)]
            rejects = [Reject.of("no id", page)]
            await sink.write("feed", Page(records, rejects), position=Position(timestamp=at(page)))
            print(page, flush=True)

asyncio.run(main())
"""


def killed_writer(description: dict[str, str] | None) -> int:
    """Write pages in another process, kill it, and return the last page that it saw written."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, json.dumps(description)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
    )
    with process:
        assert process.stdout is not None
        last = -1
        while last < 10:
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")[:-1]  # what has no line break was not written
    return int(rest[-1]) if rest else last


async def test_killed_process_loses_no_page_that_was_written(ours: Place) -> None:
    """After kill -9 each page for which `write` returned is there whole, and its position."""
    last = await asyncio.to_thread(killed_writer, ours.description)

    pages = [int(row.record_id.split("-")[0]) for row in ours.rows()]
    assert set(pages) >= set(range(last + 1))
    assert len(pages) == 10 * len(set(pages))
    assert len(ours.quarantine()) >= len(set(pages))
    position = await read_position(ours)
    assert position is not None
    assert at(last) <= position.timestamp <= at(max(pages))
    again = [record(f"{page}-{n}", page) for page in range(last + 2) for n in range(10)]
    assert await write(ours, again) == [10 * (last + 2 - len(set(pages)))]


@pytest.mark.parametrize("seed", range(6))
async def test_any_pages_and_returns_leave_what_one_rule_says(ours: Place, seed: int) -> None:
    """Whatever comes in whatever order, in one run or several: every sink shows the same."""
    chance = random.Random(seed)
    known = [record(str(n), 1 + k // 2, "abcd"[k]) for n in range(3) for k in range(4)]
    current: dict[str, Record] = {}
    for _ in range(4):
        async with ours.make() as sink:
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
                found = [row.version for row in ours.rows() if row.is_current]
                assert sorted(found) == sorted(each.version for each in current.values())


@pytest.mark.parametrize("overlap", [None, timedelta(days=1)], ids=["whole", "overlap"])
async def test_runs_show_what_the_source_said_last(ours: Place, overlap: timedelta | None) -> None:
    """A to B to A, in pages, with others around it: each run adds up, and a replay undoes nothing.

    What is older than anything before is stored and current as well, where it is the last word.
    """
    world = World(ours.make())
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
    for listed, expected in script:
        await world.run(ScriptedSource(listed, overlap=overlap))
        assert ours.current() == [("1", expected), ("2", "a"), ("8", "a")]
