"""What a sink does with records and rejects, whatever it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.testing.contracts.loops import in_event_loops
from ladon_storage.testing.doubles import at, record
from ladon_storage.testing.places import SinkPlace, changes

TEXTS = ["é';--", '"', "🦜", "a\nb\r\n", "%s %(x)s :y ?", "{}", "\\", " ", "\u2028", "../x", "null"]

ALIKE = [
    *("a", "A", "ａ", "ä", "a\u0308"),  # without case, width, accents; in one normal form
    *("x", " x", "x ", "x\t", "x\u200b"),  # without spaces and invisible characters
    *("ß", "ss", "1", "01", "1.0"),  # as the texts of a language, or as numbers
    *("k" * 255 + "1", "k" * 255 + "2"),  # up to the length of a column
]
"""Ids that a database may take for the same, by its collation or its types."""

ALIKE_SOURCES = ["a", "A", "ａ", "ä", "ß", "ss", "1", "01", "k" * 254 + "1", "k" * 254 + "2"]
"""Names of sources, up to the longest, that a database or a file system may take for the same."""

LONG = (2_000, 70_000)
"""The lengths of ids beyond what usual columns and indexes take."""

DIGITS = [52.520008123, 0.1 + 0.2, -122.41941550000001]
"""Numbers of 11 to 17 digits; a double has them all, and neither six nor 15 digits are enough."""

BEYOND = "12345678901234567.89"
"""A number with more digits than a double has."""

MANY = 12_000
"""The records of a page of a quick source; some databases take 1,000 at once, or 10,000."""

PATIENCE_SECONDS = 5
"""How long a place refuses a write that waits: a sink that lets it wait is right."""


class Instant(datetime):
    """An instant of another library: a subclass, as pendulum's, pandas' and freezegun's."""


class Written(float):
    """A parsed number that has its text as well, with the digits that a double lacks."""

    def __init__(self, text: str) -> None:
        self.text = text


@contextlib.contextmanager
def written_numbers() -> Iterator[None]:
    """Let ``json.loads`` return numbers with their texts, where it is called with a text alone."""
    loads = json.loads

    def parsed(text: Any, **options: Any) -> Any:
        return loads(text, **(options or {"parse_float": Written}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "loads", parsed)
        yield


def is_beyond(found: Any) -> bool:
    """Return whether a number is `BEYOND`, as exactly as the parser of a place shows it."""
    if type(found) is float:
        return found == float(BEYOND)
    return Decimal(getattr(found, "text", str(found))) == Decimal(BEYOND)


def unstorable(record_id: str) -> Record:
    """Return a record that few sinks can store: half of a surrogate pair has no UTF-8."""
    return Record(record_id, at(9), '{"value":"\ud800"}', "v")


async def repeated(place: SinkPlace, write: Callable[[Any], Awaitable[None]]) -> bool:
    """Write a record and then a page; if that fails, write it again, and return whether it did."""
    page = Page([record("2", 2)])
    failed = written = False
    with contextlib.suppress(Exception):  # a sink may be over when a write of it failed
        async with place.make() as sink:
            await sink.write("feed", Page([record("1", 1)]))
            try:
                await write(sink)
            except Exception:
                failed = True
                await sink.write("feed", page)
                written = True
    if failed and not written:
        await place.write(page)
    return failed


@in_event_loops
class RecordRules:
    """Records are kept by the rule of the place, once, and as the source delivered them."""

    async def test_same_records_again_change_nothing(self, place: SinkPlace) -> None:
        """A replay counts nothing: in a page, in a later one, with other bounds, in a later run."""
        one, two, three = (record(str(n), n) for n in (1, 2, 3))

        assert await place.write([one, two, one], [one, two], [two, three]) == [2, 0, 1]
        before = place.rows()
        assert await place.write([three, one], [two]) == [0, 0]
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
        self, place: SinkPlace, pages: list[list[tuple[str, int, str]]], latest: str
    ) -> None:
        """All are kept, or the newest; of two at one time the one that arrived later."""
        made = [[record(*each) for each in page] for page in pages]
        await place.write(*made)

        values = {value for _, value in place.values()}
        assert values == ({latest} if place.keep == "latest" else {"a", "b"})
        assert len(place.rows()) == len(values)

    async def test_row_has_what_the_source_gave(self, place: SinkPlace) -> None:
        """Id, version, time and content of a record belong together."""
        made = Record.of("1", at(1), {"b": [1.0, None, {"c": "é"}, *DIGITS], "a": 10**20})
        exact = Record("2", at(2), f'{{"value": "a", "amount": {BEYOND}}}', "v")
        await place.write([record("1", 0), made, exact])

        with written_numbers():
            rows = place.rows()
        [row] = [row for row in rows if row.version == made.version]
        assert (row.record_id, row.timestamp, row.is_removed) == ("1", at(1), False)
        assert json.dumps(row.payload) == (
            '{"b": [1.0, null, {"c": "\\u00e9"}, 52.520008123, 0.30000000000000004, '
            '-122.41941550000001], "a": 100000000000000000000}'
        )
        [amount] = [row.payload["amount"] for row in rows if row.record_id == "2"]
        assert is_beyond(amount), (
            f"the number {BEYOND} of a payload is {getattr(amount, 'text', amount)} in the sink. "
            "Store the text of the payload as it is: `json.loads` and a column of doubles cut "
            "digits."
        )

    async def test_any_text_survives(self, place: SinkPlace) -> None:
        """What JSON can say comes back as it was, also as an id."""
        odd = {"nul": "\0", "lone": "\ud800"}
        page = [Record.of(text, at(0), {"value": text, text: text} | odd) for text in TEXTS]

        assert await place.write(page, page) == [len(page), 0]
        assert {row.record_id: (row.version, row.payload) for row in place.rows()} == {
            made.record_id: (made.version, {"value": text, text: text} | odd)
            for text, made in zip(TEXTS, page, strict=True)
        }

    async def test_ids_that_look_alike_are_different_records(self, place: SinkPlace) -> None:
        """An id is compared by its characters: a record of one that looks alike is not known."""
        content = {"value": "a"}  # of the same version
        page = [Record.of(each, at(0), content) for each in ALIKE]
        later = [Record.of(f"{each}{each}", at(0), content) for each in ALIKE]

        assert await place.write(page, page, later[::2], later[1::2], later) == [
            *(len(ALIKE), 0),
            *(len(later[::2]), len(later[1::2]), 0),
        ]
        assert [row.record_id for row in place.rows()] == sorted(
            each.record_id for each in page + later
        )

    @pytest.mark.parametrize("length", LONG)
    async def test_long_ids_are_stored_whole_or_refused(
        self, place: SinkPlace, length: int
    ) -> None:
        """Two that differ in their last character are two records; an error is no loss."""
        ids = [f"{'k' * (length - 1)}{end}" for end in "12"]
        try:
            written = await place.write([Record.of(each, at(0), {"value": "a"}) for each in ids])
        except Exception:  # the engine fails with any
            return
        assert written == [2]
        assert [row.record_id for row in place.rows()] == ids

    async def test_page_may_have_many_records(self, place: SinkPlace) -> None:
        """All of them are stored, or the write fails: a source that is quick fills large pages."""
        page = [record(str(number), number) for number in range(MANY)]

        assert await place.write(page, page) == [MANY, 0]
        assert {row.record_id for row in place.rows()} == {each.record_id for each in page}

    async def test_source_may_have_any_name(self, place: SinkPlace) -> None:
        """A name is a value, never a part of a statement or a path."""
        async with place.make() as sink:
            for text in TEXTS:
                assert changes(await sink.write(text, Page([record("1", 1, text)]))) == 1
                assert changes(await sink.write(text, Page([record("1", 1, text)]))) == 0

        assert [[row.payload["value"] for row in place.rows(text)] for text in TEXTS] == [
            [text] for text in TEXTS
        ]

    async def test_sources_whose_names_look_alike_are_different(self, place: SinkPlace) -> None:
        """A name is compared by its characters, up to the 255 that it may have."""
        stored = []
        async with place.make() as sink:
            for name in ALIKE_SOURCES:
                try:
                    written = await sink.write(name, Page([record("1", 1)]))
                except Exception:
                    if len(name) < 255:  # a sink may refuse what is too long for it
                        raise
                else:
                    assert changes(written) == 1
                    stored.append(name)
        assert sorted(row.source_id for row in place.read()) == sorted(stored)

    async def test_instants_keep_their_microseconds_and_far_years(self, place: SinkPlace) -> None:
        """The first and the last instant that there are, and two that are next to each other."""
        instants = [
            datetime.min.replace(tzinfo=UTC),
            at(0),
            at(0) + timedelta(microseconds=1),
            datetime.max.replace(tzinfo=UTC),
        ]
        pages = [[record(str(n), instant)] for n, instant in enumerate(instants)]
        await place.write(*pages)

        assert [row.timestamp for row in place.rows()] == instants
        older = [record("2", at(0), "older")]
        assert await place.write(older) == [0 if place.keep == "latest" else 1]

    async def test_instant_may_be_of_another_library(self, place: SinkPlace) -> None:
        """To the microsecond, however it is written; known, and newer, as any other."""
        made = Instant(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
        page = [record("1", made), record("2", made.replace(microsecond=0))]
        changed = [record("1", made + timedelta(seconds=1), "newer")]
        assert await place.write(page) == [2]
        assert await place.write(page) == [0]
        assert await place.write(changed) == [1]
        assert {row.timestamp for row in place.rows()} >= {page[1].timestamp, changed[0].timestamp}

    async def test_record_may_be_large(self, place: SinkPlace) -> None:
        """A payload of megabytes is a record as any other, also among small ones."""
        large = record("1", 1, "é" * 3_000_000)
        page = [record("0", 0), large, record("2", 2)]

        assert await place.write(page, page) == [3, 0]
        [row] = [row for row in place.rows() if row.record_id == "1"]
        assert row.payload["value"] == "é" * 3_000_000

    async def test_sources_do_not_touch_each_others_records(self, place: SinkPlace) -> None:
        """The same id at another source is another record."""
        await place.write([record("1", 2, "a")], source_id="one")
        await place.write([record("1", 1, "b")], source_id="two")

        assert [row.payload["value"] for row in place.rows("one")] == ["a"]
        assert [row.payload["value"] for row in place.rows("two")] == ["b"]

    async def test_write_that_returns_has_stored_its_page(self, place: SinkPlace) -> None:
        """What it cannot store is an error: the watermark moves over what a write returned for."""
        stored = [("1", "a")]
        async with place.make() as sink:
            await sink.write("feed", Page([record("1", 1)]))
            try:
                await sink.write("feed", Page([record("2", 2), unstorable("9")]))
            except Exception:  # the engine fails with any
                pass
            else:
                stored += [("2", "a"), ("9", "\ud800")]
        assert place.values() == stored, "a write returned without storing its page, or tore it"

    async def test_page_that_failed_can_be_written_again(self, place: SinkPlace) -> None:
        """Nothing of it is known before it is durable, neither to this sink nor to the next one."""

        async def write(sink: Any) -> None:
            await sink.write("feed", Page([record("2", 2), unstorable("9")]))

        if not await repeated(place, write):
            pytest.skip("the sink stores any text")
        assert place.values() == [("1", "a"), ("2", "a")]

    async def test_write_that_the_place_refuses_is_an_error(self, place: SinkPlace) -> None:
        """It is not taken for nothing new, and its page can be written later."""
        unwritable = place.unwritable
        if unwritable is None:
            pytest.skip("the place has no way to refuse a write")

        was_refused = False

        async def write(sink: Any) -> None:
            nonlocal was_refused
            with unwritable():
                writing = asyncio.ensure_future(sink.write("feed", Page([record("2", 2)])))
                await asyncio.wait([writing], timeout=PATIENCE_SECONDS)
            was_refused = True
            await writing

        await repeated(place, write)
        assert was_refused, "the place did not become unwritable, or not writable again"
        assert place.values() == [("1", "a"), ("2", "a")], "a write returned without its page"

    async def test_empty_page_is_nothing_to_store(self, place: SinkPlace) -> None:
        """A page without records says nothing about a source."""
        assert await place.write([]) == [0]
        assert place.rows() == []


@in_event_loops
class QuarantineRules:
    """Rejects are kept once, with their reasons."""

    @pytest.fixture
    def quarantining(self, place: SinkPlace) -> SinkPlace:
        """Return the place, where its quarantine can be read."""
        if place.quarantine is None:
            pytest.skip("the place has no quarantine to read")
        return place

    async def test_reject_is_quarantined_once(self, quarantining: SinkPlace) -> None:
        """The same text of the same source is kept once, with the run that met it first and why."""
        odd = "lone \ud800, NUL \0, 🦜 and 'quotes'"
        page = Page([], [Reject.of("no id", {"a": 1}), Reject("odd", odd), Reject("odd", odd)])

        assert await quarantining.write(page, page) == [0, 0]
        assert await quarantining.write(page, Page([record("1", 1)], page.rejects)) == [0, 1]
        assert await quarantining.write(page, source_id="other") == [0]
        assert quarantining.rejects() == [
            (source_id, "R", reason)
            for source_id in ("feed", "other")
            for reason in ("no id", "odd")
        ]

    async def test_reject_of_another_reason_is_the_same_one(self, quarantining: SinkPlace) -> None:
        """A release that words a reason differently does not fill the quarantine again."""
        await quarantining.write(
            Page([], [Reject("no id", "raw")]),
            Page([], [Reject("it has no id", "raw")]),
        )

        assert quarantining.rejects() == [("feed", "R", "no id")]

    async def test_reason_of_a_reject_may_be_any_text(self, quarantining: SinkPlace) -> None:
        """A reason often repeats a part of what is wrong."""
        page = Page([], [Reject("what is \0 and \ud800?", "raw")])

        assert await quarantining.write(page, page) == [0, 0]
        assert len(quarantining.rejects()) == 1
