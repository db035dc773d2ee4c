"""What a sink does with records and rejects, whatever it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

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

MANY = 12_000
"""The records of a page of a quick source; some databases take 1,000 at once, or 10,000."""


class Instant(datetime):
    """An instant of another library: a subclass, as pendulum's, pandas' and freezegun's."""


def unstorable(record_id: str) -> Record:
    """Return a record that few sinks can store: half of a surrogate pair has no UTF-8."""
    return Record(record_id, at(9), '{"value":"\ud800"}', "v")


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
        made = Record.of("1", at(1), {"b": [1.0, None, {"c": "é"}], "a": 10**20})
        await place.write([record("1", 0), made])

        [row] = [row for row in place.rows() if row.version == made.version]
        assert (row.record_id, row.timestamp, row.is_removed) == ("1", at(1), False)
        assert (
            json.dumps(row.payload)
            == '{"b": [1.0, null, {"c": "\\u00e9"}], "a": 100000000000000000000}'
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
