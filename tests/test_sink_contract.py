"""What every sink promises, asked of every sink, and of one of one's own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ladon_storage.collection.interfaces import MarksRemoved, Position, RemembersPosition, Sink
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.errors import SinkError, SourceError
from tests import sink_places
from tests.collecting import at, record
from tests.sink_places import OURS, Place

ROOT = Path(__file__).resolve().parent.parent
ALL = [*OURS, "own"]


@pytest.fixture(params=ALL)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Be every place that there is."""
    return sink_places.place(request.param, tmp_path, request)


@pytest.fixture(params=OURS)
def ours(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Be every place of a sink of this package, which does all that a sink may do."""
    return sink_places.place(request.param, tmp_path, request)


async def write(place: Place, *pages: Page | list[Record], source_id: str = "feed") -> list[int]:
    """Write pages in a run of their own."""
    async with place.make() as sink:
        return [
            await sink.write(source_id, each if isinstance(each, Page) else Page(each), run_id="R")
            for each in pages
        ]


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
    assert isinstance(sink, RemembersPosition)
    assert isinstance(sink, MarksRemoved)


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


async def test_version_that_comes_back_is_new_only_where_it_was_replaced(place: Place) -> None:
    """A place that keeps all has it already."""
    pages = [[record("1", 1, "a")], [record("1", 1, "b")], [record("1", 1, "a")]]

    expected = [1, 1, 1] if place.keep == "latest" else [1, 1, 0]
    assert await write(place, *pages) == expected


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
            assert await sink.write(text, Page([record("1", 1, text)])) == 1
            assert await sink.write(text, Page([record("1", 1, text)])) == 0

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


async def test_position_is_what_was_written_last(place: Place) -> None:
    """A position is exact, of its source alone, outlives the run, and stays when none is given."""
    first = Position(timestamp=at(1) + timedelta(microseconds=1))
    least = datetime.min.replace(tzinfo=UTC)
    second = Position(timestamp=least, watermark=at(5), origin=at(-5), run_id="é R")
    nameless = second.model_copy(update={"run_id": None})  # a sink need not keep whose it is
    async with place.make() as sink:
        assert await sink.position("feed") is None
        await sink.write("feed", Page([record("1", 1)]), position=first)
        assert await sink.position("feed") == first
    assert await read_position(place) == first
    async with place.make() as sink:
        assert await sink.write("feed", Page(), position=second) == 0
        await sink.write("feed", Page([record("2", 2)]))
        assert await sink.position("feed") in (second, nameless)
        await sink.write("other", Page(), position=first)
        assert await sink.position("feed") in (second, nameless)
    assert await read_position(place, "other") == first


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
        assert await sink.write("feed", Page([record("2", 2)], rejects), position=after) == 1
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
from ladon_storage.collection.interfaces import Position
from ladon_storage.collection.records import Page, Reject
from ladon_storage.collection.sinks import sink_from
from tests.collecting import at, record

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
