"""The sources that are one document, of ThreatFox and of CISA, and how a source is told."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from ladon_storage.collection.interfaces import Source
from ladon_storage.collection.records import Record
from ladon_storage.collection.sources import Kev, ThreatFox, source_from
from ladon_storage.collection.sources.threatfox import last_seen
from ladon_storage.errors import ConfigurationError, SourceError
from tests.collecting import ScriptedSource
from tests.feed_server import Answer, FeedServer


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def records(
    kind: type[ThreatFox | Kev],
    document: object,
    start: datetime | None = None,
    until: datetime | None = None,
) -> list[Record]:
    async with FeedServer(Answer.of(document)) as feed:
        pages = kind(url=feed.url).pages(start, until)
        return [record async for page in pages for record in page.records]


def indicator(first: Any, last: Any = None, **more: Any) -> list[dict[str, Any]]:
    return [{"ioc_value": "203.0.113.7:80", "first_seen_utc": first, "last_seen_utc": last, **more}]


def catalogue(*entries: Any, **fields: Any) -> dict[str, Any]:
    return {"title": "KEV", "count": len(entries), "vulnerabilities": list(entries), **fields}


def entry(cve: Any, added: Any = "2025-01-24") -> dict[str, Any]:
    return {"cveID": cve, "dateAdded": added, "product": "router"}


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ("2026-07-08 19:05:04", None, "2026-07-08T19:05:04"),
        ("2026-07-08 19:05:04", "2026-07-09 00:00:00", "2026-07-09"),
        ("2026-07-08 19:05:04", "2026-07-08 19:00:00", "2026-07-08T19:05:04"),
        ("2026-07-08 19:05:04 UTC", None, "2026-07-08T19:05:04"),
        ("2026-07-08T21:05:04+02:00", None, "2026-07-08T19:05:04"),
        (None, "2026-07-09 00:00:00.123456", "2026-07-09T00:00:00.123456"),
    ],
)
def test_indicator_is_as_new_as_its_last_sighting(first: Any, last: Any, expected: str) -> None:
    """The later of both times counts, in every notation, and naive ones are UTC."""
    assert last_seen(indicator(first, last)[0]) == utc(expected)


async def test_threatfox_yields_what_lies_in_the_range() -> None:
    """The start belongs to the range, its end does not; ids and contents are the export's."""
    document = {
        "1": indicator("2026-07-01 00:00:00"),
        "2": indicator("2026-07-01 00:00:00", "2026-07-02 00:00:00"),
        "3": indicator("2026-07-03 00:00:00", tags="café"),
        "4": indicator("2026-07-04 00:00:00"),
    }

    found = await records(ThreatFox, document, utc("2026-07-02"), utc("2026-07-04"))

    assert [(each.record_id, each.timestamp) for each in found] == [
        ("2", utc("2026-07-02")),
        ("3", utc("2026-07-03")),
    ]
    assert found[1].payload == json.dumps(
        document["3"][0], ensure_ascii=False, separators=(",", ":")
    )
    assert len(await records(ThreatFox, document)) == 4


async def test_threatfox_is_cut_into_pages() -> None:
    """A large export becomes durable in parts."""
    document = {str(number): indicator("2026-07-01 00:00:00") for number in range(2_001)}
    async with FeedServer(Answer.of(document)) as feed:
        sizes = [len(page.records) async for page in ThreatFox(url=feed.url).pages(None, None)]

    assert sizes == [1_000, 1_000, 1]


async def test_empty_export_is_no_error() -> None:
    """There may be nothing new in the hours that the export covers."""
    assert await records(ThreatFox, {}) == []


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "is not a JSON object"),
        (None, "is not a JSON object"),
        ({"7": {}}, "has at '7' something else"),
        ({"7": []}, "has at '7' something else"),
        ({"7": indicator("2026-07-01") * 2}, "has at '7' something else"),
        ({"7": ["x"]}, "has at '7' something else"),
        ({"7": indicator(None)}, "record '7': first_seen_utc and last_seen_utc are both missing"),
        ({"7": indicator("yesterday")}, "record '7': should be an ISO 8601"),
        ({"7": indicator("2026-07-01", 1_783_000_000)}, "record '7': should be an ISO 8601"),
        ({"7": indicator("0001-01-01T00:00:00+05:00")}, "record '7': should be an ISO 8601"),
        ({"": indicator("2026-07-01")}, "record '': the id of a record"),
    ],
)
async def test_malformed_export_names_the_record(document: Any, message: str) -> None:
    """An export that changed its shape fails the run, and the error says where."""
    with pytest.raises(SourceError) as caught:
        await records(ThreatFox, document)

    assert message in str(caught.value)
    assert "source 'threatfox' at http://127.0.0.1" in str(caught.value)
    assert caught.value.source_id == "threatfox"
    assert not caught.value.transient


async def test_number_beyond_floats_is_a_malformed_record() -> None:
    """A number that no float holds would be stored as an infinity; it is refused instead."""
    body = b'{"7": [{"first_seen_utc": "2026-07-01", "score": 1e999}]}'
    async with FeedServer(Answer(body)) as feed:
        with pytest.raises(SourceError, match="record '7'"):
            async for _ in ThreatFox(url=feed.url).pages(None, None):
                pass


async def test_kev_yields_the_whole_catalogue() -> None:
    """The id is the CVE, the timestamp the first instant of the day on which it was added."""
    found = await records(Kev, catalogue(entry("CVE-2025-2", "2025-01-25"), entry("CVE-2025-1")))

    assert [(each.record_id, each.timestamp) for each in found] == [
        ("CVE-2025-2", utc("2025-01-25")),
        ("CVE-2025-1", utc("2025-01-24")),
    ]
    assert json.loads(found[1].payload) == entry("CVE-2025-1")


async def test_kev_backfill_filters_by_the_day_added() -> None:
    """A backfill takes the entries that were added in its range."""
    days = ["2025-01-23", "2025-01-24", "2025-01-25"]
    document = catalogue(*(entry(f"CVE-{day}", day) for day in days))

    found = await records(Kev, document, utc("2025-01-24"), utc("2025-01-25"))

    assert [each.record_id for each in found] == ["CVE-2025-01-24"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "is not an object with a list"),
        ({}, "is not an object with a list"),
        ({"count": 1, "vulnerabilities": {}}, "is not an object with a list"),
        (catalogue(), "is empty"),
        (catalogue(entry("CVE-1"), count=2), "has 1 entries and states 2: it was cut off"),
        ({"vulnerabilities": [entry("CVE-1")]}, "has 1 entries and states None"),
        (catalogue(entry("CVE-1"), "x"), "at position 1"),
        (catalogue(entry(None)), "unusable entry None at position 0: the id of a record"),
        (catalogue({"dateAdded": "2025-01-24"}), "unusable entry None at position 0: the id"),
        (catalogue(entry("CVE-1", None)), "unusable entry 'CVE-1' at position 0: should be an ISO"),
        (catalogue(entry("CVE-1", "24.1.25")), "unusable entry 'CVE-1' at position 0: should be"),
    ],
)
async def test_malformed_catalogue_says_what_is_wrong(document: Any, message: str) -> None:
    """A catalogue that is cut off, empty or of another shape fails the run."""
    with pytest.raises(SourceError) as caught:
        await records(Kev, document)

    assert message in str(caught.value)
    assert caught.value.source_id == "kev"


@pytest.mark.parametrize("kind", [ThreatFox, Kev])
def test_every_field_reads_well_in_a_form(kind: type[BaseModel]) -> None:
    """A form made of the schema has a title and a sentence for each field."""
    for name, field in kind.model_json_schema()["properties"].items():
        assert field["title"][0].isupper(), name
        assert field["description"].endswith("."), name


@pytest.mark.parametrize("kind", [ThreatFox, Kev])
def test_settings_of_a_source_cannot_change(kind: type[ThreatFox | Kev]) -> None:
    """A run is told by what it was given."""
    with pytest.raises(ValidationError, match="frozen"):
        setattr(kind(), "source_id", "other")  # noqa: B010 - the type checker knows it too


def test_dictionary_becomes_the_source_of_its_kind() -> None:
    """Files and command lines tell a source by a dictionary."""
    source = source_from({"kind": "threatfox", "overlap": "PT6H", "source_id": "tf"})

    assert source == ThreatFox(source_id="tf", overlap=timedelta(hours=6))
    assert isinstance(source_from({"kind": "kev"}), Kev)


def test_defaults_are_the_public_feeds() -> None:
    """Nothing needs to be set for the public feeds."""
    assert (ThreatFox().source_id, ThreatFox().overlap) == ("threatfox", timedelta(hours=24))
    assert ThreatFox().url == "https://threatfox.abuse.ch/export/json/recent/"
    assert (Kev().source_id, Kev().overlap) == ("kev", None)
    assert Kev().url.startswith("https://www.cisa.gov/sites/default/files/feeds/")


def test_source_of_ones_own_is_taken_as_it_is() -> None:
    """A class needs the methods, not a base."""
    own = ScriptedSource()

    assert isinstance(own, Source)
    assert source_from(own) is own


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "otx"}, "kind should be one of 'threatfox', 'kev'"),
        ({}, "kind should be one of 'threatfox', 'kev'"),
        ("kev", "it: "),
        (None, "it: "),
        ({"kind": "kev", "overlap": "P1D"}, "overlap: Extra inputs are not permitted"),
        ({"kind": "threatfox", "overlap": "-P1D"}, "overlap: Input should be greater than"),
        ({"kind": "threatfox", "overlap": "P366D"}, "overlap: Input should be less than"),
        ({"kind": "kev", "url": "feeds.example.org"}, "url: Value error, should be an address"),
        ({"kind": "kev", "url": "file:///etc/passwd"}, "url: Value error, should be an address"),
        ({"kind": "kev", "url": "http://[::"}, "url: Value error, should be an address"),
        ({"kind": "kev", "source_id": ""}, "source_id: Value error, source_id should have"),
    ],
)
def test_wrong_description_names_the_field(value: object, message: str) -> None:
    """What cannot be a source is a `ConfigurationError` that says which field and why."""
    with pytest.raises(ConfigurationError) as caught:
        source_from(value)

    assert str(caught.value).startswith("A source cannot be made: ")
    assert message in str(caught.value)


def test_wrong_description_does_not_show_values() -> None:
    """A misplaced secret is not repeated in the error."""
    with pytest.raises(ConfigurationError) as caught:
        source_from({"kind": "kev", "token": "SECRET", "url": "SECRET"})

    assert "SECRET" not in str(caught.value)
    assert caught.value.__context__ is None
