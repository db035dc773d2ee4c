"""The sources that are one document, of ThreatFox and of CISA, and how a source is told."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from ladon_storage.collection.json_values import parse_json
from ladon_storage.collection.protocols import Source
from ladon_storage.collection.records import Record, Reject
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.sources import Kev, Nvd, Otx, RestApi, ThreatFox, UrlHaus, source_from, threatfox
from ladon_storage.testing import SourceContract, SourceFeed
from ladon_storage.testing.doubles import ScriptedSource
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.recordings import members


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def records(
    kind: type[ThreatFox | Kev],
    document: object,
    start: datetime | None = None,
    until: datetime | None = None,
) -> list[Record]:
    found, rejects = await items(kind, document, start, until)
    assert rejects == []
    return found


async def items(
    kind: type[ThreatFox | Kev],
    document: object,
    start: datetime | None = None,
    until: datetime | None = None,
) -> tuple[list[Record], list[Reject]]:
    async with FeedServer(Answer.of(document)) as feed:
        pages = [page async for page in kind(url=feed.url).pages(start, until)]
    return (
        [record for page in pages for record in page.records],
        [reject for page in pages for reject in page.rejects],
    )


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
async def test_indicator_is_as_new_as_its_last_sighting(
    first: Any, last: Any, expected: str
) -> None:
    """The later of both times counts, in every notation, and naive ones are UTC."""
    [found] = await records(ThreatFox, {"7": indicator(first, last)})

    assert found.timestamp == utc(expected)


async def test_threatfox_yields_all_of_the_export() -> None:
    """Whatever it is asked for; ids and contents are the export's."""
    document = {
        "1": indicator("2026-07-01 00:00:00"),
        "2": indicator("2026-07-01 00:00:00", "2026-07-02 00:00:00"),
        "3": indicator("2026-07-03 00:00:00", tags="café"),
        "4": indicator("2026-07-04 00:00:00"),
    }

    found = await records(ThreatFox, document, utc("2026-07-02"), utc("2026-07-04"))

    assert [(each.record_id, each.timestamp) for each in found] == [
        ("1", utc("2026-07-01")),
        ("2", utc("2026-07-02")),
        ("3", utc("2026-07-03")),
        ("4", utc("2026-07-04")),
    ]
    assert found[2].payload == json.dumps(
        document["3"][0], ensure_ascii=False, separators=(",", ":")
    )


@pytest.mark.parametrize(("unversioned", "versions"), [([], 3), (["last_seen_utc"], 2)])
async def test_sighting_alone_may_make_no_version(unversioned: list[str], versions: int) -> None:
    """It does by default; whoever does without keeps the sightings of the export, unversioned."""
    polls = [
        indicator("2026-07-01", "2026-07-02"),
        indicator("2026-07-01", "2026-07-03"),
        indicator("2026-07-01", "2026-07-04", tags="x"),
    ]
    found = []
    async with FeedServer(*(Answer.of({"7": each}) for each in polls)) as feed:
        source = source_from({"kind": "threatfox", "url": feed.url, "unversioned": unversioned})
        for _ in polls:
            found += [each async for page in source.pages(None, None) for each in page.records]

    assert len({each.version for each in found}) == versions
    assert [each.timestamp.day for each in found] == [2, 3, 4]
    assert json.loads(found[0].payload)["last_seen_utc"] == "2026-07-02"


@pytest.mark.recordings
@pytest.mark.slow
def test_recorded_sightings_are_nearly_all_versions() -> None:
    """What the description of the setting says that it saves is so."""
    versions: dict[tuple[str, ...], set[tuple[str, str]]] = {(): set(), ("last_seen_utc",): set()}
    for _, body in members("threatfox/polls_001_040.tar.xz"):
        for ioc_id, [item] in parse_json(body).items():
            for unversioned, found in versions.items():
                made = Record.of(ioc_id, utc("2026-07-01"), item, unversioned)
                found.add((ioc_id, made.version))

    assert [len(found) for found in versions.values()] == [128_425, 11_132]


async def test_threatfox_is_cut_into_pages() -> None:
    """A large export becomes durable in parts."""
    document = {str(number): indicator("2026-07-01 00:00:00") for number in range(2_001)}
    async with FeedServer(Answer.of(document)) as feed:
        sizes = [len(page.records) async for page in ThreatFox(url=feed.url).pages(None, None)]

    assert sizes == [1_000, 1_000, 1]


async def test_empty_export_is_no_error() -> None:
    """There may be nothing new in the hours that the export covers."""
    assert await records(ThreatFox, {}) == []


@pytest.mark.parametrize("document", [[], None, "x"])
async def test_export_of_another_shape_fails_the_run(document: Any) -> None:
    """What is no object of ids is not ThreatFox's export."""
    with pytest.raises(SourceError) as caught:
        await records(ThreatFox, document)

    assert "source 'threatfox' at http://127.0.0.1" in str(caught.value)
    assert "is not a JSON object" in str(caught.value)
    assert caught.value.source_id == "threatfox"
    assert not caught.value.transient


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"first_seen_utc": None}, "first_seen_utc and last_seen_utc: missing"),
        ([], "should be an object, not a list"),
        (indicator("2026-07-01") * 2, "should be an object, not a list"),
        (["x"], "should be an object, not a text"),
        ([None], "should be an object, not null"),
        ([7], "should be an object, not a number"),
        (indicator(None), "first_seen_utc and last_seen_utc: missing"),
        (indicator("yesterday"), "first_seen_utc: should be an ISO 8601"),
        (indicator("2026-07-01", "x"), "last_seen_utc: should be an ISO 8601"),
        (indicator("2026-07-01", 17_830_000), "last_seen_utc: should be an ISO 8601"),
        (indicator("0001-01-01T00:00:00+05:00"), "first_seen_utc: should be an ISO 8601"),
    ],
)
async def test_unusable_indicator_is_rejected_and_the_rest_goes_on(entry: Any, reason: str) -> None:
    """One bad indicator is kept with its reason and id; the others are collected."""
    document = {"7": entry, "8": indicator("2026-07-01")}

    found, [reject] = await items(ThreatFox, document, utc("2026-06-01"))

    assert [each.record_id for each in found] == ["8"]
    assert reason in reject.reason
    assert reject.record_id == "7"
    alone = entry[0] if isinstance(entry, list) and len(entry) == 1 else entry
    assert json.loads(reject.raw) == alone


async def test_indicator_without_an_id_is_rejected() -> None:
    """Nobody could tell it from others."""
    found, [reject] = await items(ThreatFox, {"": indicator("2026-07-01")})

    assert found == []
    assert reject.reason == "its key: should be an id, and is none"
    assert reject.record_id is None


async def test_number_beyond_floats_is_stored_as_it_came() -> None:
    """No number of JSON is too large for its text; no constant beside JSON is one."""
    entry = b'{"first_seen_utc":"2026-07-01","score":%s}'
    async with FeedServer(
        *(Answer(b'{"7":[%s]}' % (entry % n)) for n in (b"1e999", b"NaN"))
    ) as feed:
        [page] = [page async for page in ThreatFox(url=feed.url).pages(None, None)]
        with pytest.raises(SourceError, match="NaN is not JSON"):
            assert [page async for page in ThreatFox(url=feed.url).pages(None, None)] == []

    assert [each.payload.encode() for each in page.records] == [entry % b"1e999"]


async def test_digits_of_a_large_document_are_stored_as_they_came() -> None:
    """However such a document is read."""
    entry = '{"first_seen_utc":"2026-07-01","score":0.10,"seen":12345678901234567890,"n":"%s"}'
    items = [entry % ("x" * 900 + str(number)) for number in range(2_000)]
    listed = ",".join(f'"{number}":[{item}]' for number, item in enumerate(items))
    body = f"{{{listed}}}"
    async with FeedServer(Answer(body.encode())) as feed:
        pages = [page async for page in ThreatFox(url=feed.url).pages(None, None)]

    assert [each.payload for page in pages for each in page.records] == items


async def test_kev_yields_the_whole_catalogue() -> None:
    """The id is the CVE, the timestamp the first instant of the day on which it was added."""
    found = await records(Kev, catalogue(entry("CVE-2025-2", "2025-01-25"), entry("CVE-2025-1")))

    assert [(each.record_id, each.timestamp) for each in found] == [
        ("CVE-2025-2", utc("2025-01-25")),
        ("CVE-2025-1", utc("2025-01-24")),
    ]
    assert json.loads(found[1].payload) == entry("CVE-2025-1")


async def test_kev_backfill_is_the_whole_catalogue() -> None:
    """What of it is in the range is for the run to select."""
    days = ["2025-01-23", "2025-01-24", "2025-01-25"]
    document = catalogue(*(entry(f"CVE-{day}", day) for day in days))

    found = await records(Kev, document, utc("2025-01-24"), utc("2025-01-25"))

    assert [each.record_id for each in found] == [f"CVE-{day}" for day in days]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "is not an object with a list"),
        ({}, "is not an object with a list"),
        ({"count": 1, "vulnerabilities": {}}, "is not an object with a list"),
        (catalogue(), "is empty"),
        (catalogue(entry("CVE-1"), count=2), "was cut off: it has 1 entries and states 2"),
        ({"vulnerabilities": [entry("CVE-1")]}, "has 1 entries and states None"),
        (
            catalogue(entry("CVE-1"), entry("CVE-2"), entry("CVE-1", "2025-01-25")),
            "has 3 entries, and an id in more than one of them: 'CVE-1', so another is missing",
        ),
    ],
)
async def test_malformed_catalogue_says_what_is_wrong(document: Any, message: str) -> None:
    """A catalogue that is cut off, empty or of another shape fails the run."""
    with pytest.raises(SourceError) as caught:
        await records(Kev, document)

    assert message in str(caught.value)
    assert caught.value.source_id == "kev"


@pytest.mark.parametrize(
    ("bad", "reason", "record_id"),
    [
        ("x", "should be an object, not a text", None),
        (entry(None), "cveID: should be an id, and is none", None),
        (entry(True), "cveID: should be an id, and is none", None),
        ({"dateAdded": "2025-01-24"}, "cveID: should be an id, and is none", None),
        (entry("CVE-1", None), "dateAdded: missing", "CVE-1"),
        (entry("CVE-1", "24.1.25"), "dateAdded: should be an ISO 8601", "CVE-1"),
        (entry("CVE-\0"), "the id of a record should have no NUL", "CVE-\0"),
    ],
)
async def test_unusable_entry_is_rejected_and_the_rest_goes_on(
    bad: Any, reason: str, record_id: str | None
) -> None:
    """One bad entry does not hold the catalogue back; its id is kept, so it is not removed."""
    found, [reject] = await items(Kev, catalogue(bad, entry("CVE-2")))

    assert [each.record_id for each in found] == ["CVE-2"]
    assert reject.reason.startswith(reason)
    assert reject.record_id == record_id
    assert json.loads(reject.raw) == bad


class ThreatFoxApi:
    """Answer as the API does: the days asked for, and refusals inside of an answer 200."""

    def __init__(
        self, *found: dict[str, Any], key: str = "s3cret", now: datetime | None = None
    ) -> None:
        self.found = found
        self.key = key
        self.now = now

    def __call__(self, asked: Asked) -> Answer:
        answer = self.answer(asked)
        if self.now is not None:
            answer.headers["Date"] = format_datetime(self.now, usegmt=True)
        return answer

    def answer(self, asked: Asked) -> Answer:
        assert asked.method == "POST"
        if asked.headers.get("Auth-Key") != self.key:
            return Answer.of({"query_status": "unknown_auth_key", "data": "unknown"})
        assert asked.body["query"] == "get_iocs"
        if asked.body["days"] not in range(1, 8):
            return Answer.of({"query_status": "illegal_days", "data": "illegal"})
        if not self.found:
            return Answer.of({"query_status": "no_result", "data": "Your query yielded none"})
        return Answer.of({"query_status": "ok", "data": list(self.found)})


def ioc(ioc_id: Any, first: Any, last: Any = None) -> dict[str, Any]:
    return {"id": ioc_id, "ioc": "203.0.113.7:80", "first_seen": first, "last_seen": last}


@pytest.fixture
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABUSE_KEY", "s3cret")


def by_api(url: str) -> ThreatFox:
    return ThreatFox(via="api", url=url, key="ABUSE_KEY")


@pytest.mark.usefixtures("_key")
async def test_threatfox_api_yields_what_it_finds() -> None:
    """Times that end in UTC are read, and the later one counts."""
    api = ThreatFoxApi(
        ioc("1", "2026-07-01 10:00:00 UTC"),
        ioc("2", "2026-07-01 10:00:00 UTC", "2026-07-02 10:00:00 UTC"),
        ioc("3", "some day UTC"),
    )
    async with FeedServer(play=api) as feed:
        [page] = [page async for page in by_api(feed.url).pages(utc("2026-07-02"), None)]

    assert [(each.record_id, each.timestamp) for each in page.records] == [
        ("1", utc("2026-07-01T10:00:00")),
        ("2", utc("2026-07-02T10:00:00")),
    ]
    assert [each.record_id for each in page.rejects] == ["3"]


@pytest.mark.usefixtures("_key")
async def test_threatfox_api_without_a_result_is_empty() -> None:
    """That there is nothing is no error."""
    async with FeedServer(play=ThreatFoxApi()) as feed:
        [page] = [page async for page in by_api(feed.url).pages(None, None)]

    assert (len(page), page.completeness) == (0, "whole document")


@pytest.mark.parametrize(
    "document",
    [
        {"query_status": "unknown_auth_key", "data": []},
        {"query_status": "ok", "data": "x"},
        {"query_status": "ok", "data": []},
        {"query_status": "no_result", "data": [{"id": "1"}]},
        {"data": []},
        [],
        None,
    ],
)
@pytest.mark.usefixtures("_key")
async def test_threatfox_api_says_no_inside_of_an_answer(document: Any) -> None:
    """Only the status ok is a success; another one is told."""
    async with FeedServer(Answer.of(document)) as feed:
        with pytest.raises(SourceError) as caught:
            async for _ in by_api(feed.url).pages(None, None):
                pass

    status = document.get("query_status") if isinstance(document, dict) else None
    assert f"answered {status!r}" in str(caught.value)


@pytest.mark.usefixtures("_key")
@pytest.mark.parametrize(
    ("age", "days"), [(None, 7), (0, 1), (24, 1), (25, 2), (167, 7), (169, 7), (-3, 1)]
)
async def test_threatfox_api_is_asked_for_the_days_since_the_start(
    age: int | None, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days are rounded up, from one to the seven that there are."""
    now = utc("2026-07-08")
    monkeypatch.setattr(threatfox, "utc_now", lambda: now)
    start = None if age is None else now - timedelta(hours=age)
    async with FeedServer(play=ThreatFoxApi(now=now)) as feed:
        async for _ in by_api(feed.url).pages(start, None):
            pass

    assert [asked.body["days"] for asked in feed.asks] == [days]


@pytest.mark.usefixtures("_key")
async def test_threatfox_api_counts_days_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came while the clock here was behind would be asked for by no later run."""
    now = utc("2026-07-08")
    monkeypatch.setattr(threatfox, "utc_now", lambda: now - timedelta(hours=30))
    async with FeedServer(play=ThreatFoxApi(now=now)) as feed:
        async for _ in by_api(feed.url).pages(now - timedelta(hours=60), None):
            pass

    assert [asked.body["days"] for asked in feed.asks] == [2, 3]


def test_threatfox_says_how_far_back_it_reaches() -> None:
    """A gap is reported for what the export or the API no longer has; a mirror may have it all."""
    assert ThreatFox().retention == timedelta(hours=48)
    assert ThreatFox(via="api", key="K").retention == timedelta(days=7)
    assert ThreatFox(url="https://threatfox.abuse.ch/export/json/full/").retention is None
    assert ThreatFox(via="api", key="K").url == "https://threatfox-api.abuse.ch/api/v1/"


def test_threatfox_api_needs_a_key() -> None:
    """It is told when the source is made, not by a refusal in the night."""
    for fields in ({"via": "api"}, {"url": "https://example.org/{key}/recent.json"}):
        with pytest.raises(ConfigurationError, match="it requires a key"):
            source_from({"kind": "threatfox", **fields})


@pytest.mark.usefixtures("_key")
async def test_threatfox_export_may_have_the_key_in_its_path() -> None:
    """Newer exports are below the key, which is shown to the server alone."""
    async with FeedServer(Answer.of({}), Answer(status=404)) as feed:
        source = ThreatFox(url=feed.at("exports/{key}/recent.json"), key="ABUSE_KEY")
        assert [len(page) async for page in source.pages(None, None)] == [0]
        with pytest.raises(SourceError) as caught:
            assert [page async for page in source.pages(None, None)] == []

    assert feed.requests == ["/api/exports/s3cret/recent.json"] * 2
    assert "s3cret" not in str(caught.value)


SOURCES = [ThreatFox, UrlHaus, Kev, Otx, Nvd, RestApi]
EXAMPLES = [
    ThreatFox(),
    UrlHaus(),
    Kev(),
    Otx(key="OTX_KEY"),
    Nvd(),
    RestApi(source_id="api", url="https://example.org/", timestamps=("at",)),
]


def models(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [schema, *schema.get("$defs", {}).values()]


@pytest.mark.parametrize("kind", SOURCES)
def test_every_field_reads_well_in_a_form(kind: type[BaseModel]) -> None:
    """A form made of the schema has a title and a sentence for each field."""
    for model in models(kind.model_json_schema()):
        for name, field in model["properties"].items():
            assert field["title"][0].isupper(), name
            assert field["description"].endswith("."), name


@pytest.mark.parametrize("source", EXAMPLES, ids=lambda source: source.kind)
def test_settings_of_a_source_cannot_change(source: BaseModel) -> None:
    """A run is told by what it was given."""
    assert isinstance(source, Source)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(source, "source_id", "other")  # noqa: B010 - the type checker knows it too


@pytest.mark.parametrize("source", EXAMPLES, ids=lambda source: source.kind)
def test_source_is_told_by_its_own_dictionary(source: Any) -> None:
    """What a form or a file stores makes the same source again."""
    assert source_from(source.model_dump(mode="json")) == source


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
        ({"kind": "kve"}, "kind should be one of 'threatfox', "),
        ({}, "kind should be one of 'threatfox', "),
        ({"kind": "otx"}, "key: is missing"),
        ({"kind": "nvd", "key": "a b"}, "key: should be the name of a Prefect"),
        ("kev", "it: "),
        (None, "it: "),
        ({"kind": "kev", "overlap": "P1D"}, "overlap: There is no such field; there are kind, url"),
        ({"kind": "kev", "ulr": "x"}, "ulr: There is no such field; did you mean 'url'?"),
        ({"kind": "kev", "connection": {"time_out": 5}}, "did you mean 'timeout'?"),
        ({"kind": "threatfox", "overlap": "-P1D"}, "overlap: Input should be greater than"),
        ({"kind": "threatfox", "overlap": "P366D"}, "overlap: Input should be less than"),
        ({"kind": "kev", "url": "feeds.example.org"}, "url: should be an address"),
        ({"kind": "kev", "url": "file:///etc/passwd"}, "url: should be an address"),
        ({"kind": "kev", "url": "http://[::"}, "url: should be an address"),
        ({"kind": "kev", "source_id": ""}, "source_id: source_id should have"),
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


@pytest.mark.parametrize(
    "key",
    [
        "0123456789abcdef" * 3,
        "01234567-89ab-cdef-0123-456789abcdef",
        "a7Kd9fQ2mZx4Lp8Rt3Vb6Nc1",
        "q1w2e3r4t5y6u7i8o9p0asdf",
        "dG9-a2V_bjE4aGs3Zm9vYmFy0xYz",
        "ghp_" + "a" * 36,
        "glpat-" + "x" * 20,
        "AKIA" + "ABCDEFGH12345678",
        "eyJ" + "hbGciOiJIUzI1NiIsInR5cCI6",
    ],
)
def test_key_in_place_of_its_name_is_refused_unshown(key: str) -> None:
    """Who puts the key itself where its name belongs does not find it in a log."""
    with pytest.raises(ConfigurationError, match="looks like the secret itself") as caught:
        source_from({"kind": "otx", "key": key})
    with pytest.raises(ValidationError) as direct:
        Otx(key=key)

    assert key not in str(caught.value) + str(direct.value)


@pytest.mark.parametrize(
    "name",
    [
        "ABUSE_CH_KEY",
        "THREATFOX_AUTH_KEY_2024",
        "s3-bucket-eu-west-1-key2",
        "MyCompanyFeedKey2024Production",
        "X509_CERT_KEY_P12_PASSWORD",
        "feed_key_sha256_rs512_es384_v2",
    ],
)
def test_name_with_digits_is_a_name(name: str) -> None:
    """Numbers at the ends of words make no secret of a name."""
    assert Otx(key=name).key == name


class TestKevContract(SourceContract):
    """The catalogue keeps the contract of sources."""

    step = timedelta(days=1)
    begin = datetime(2024, 1, 1, tzinfo=UTC)

    def unusable(self) -> object:
        return {"product": "router"}

    def new_source(self, feed: SourceFeed) -> Kev:
        return Kev(url=feed.url)

    def item(self, record_id: str, time: datetime, value: str) -> object:
        return {"cveID": record_id, "dateAdded": f"{time:%Y-%m-%d}", "product": value}

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        return Answer.of(catalogue(*items))


class TestThreatFoxContract(SourceContract):
    """The export keeps the contract of sources."""

    step = timedelta(seconds=1)
    begin = SourceContract.begin.replace(microsecond=0)

    def unusable(self) -> object:
        return ("0", [{"ioc_value": "203.0.113.7:80"}])

    def new_source(self, feed: SourceFeed) -> ThreatFox:
        return ThreatFox(url=feed.url)

    def record_id(self, number: int) -> str:
        return str(number + 1)

    def item(self, record_id: str, time: datetime, value: str) -> object:
        return record_id, indicator(f"{time:%Y-%m-%d %H:%M:%S}", threat_type=value)

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        return Answer.of(dict(items))
