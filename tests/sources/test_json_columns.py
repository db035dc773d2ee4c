"""Records that are made together, and pages that are parsed at once: the same as one by one."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladon_storage.collection.json_values import parse_json
from ladon_storage.collection.records import Columns, Page, Record
from ladon_storage.sources.json.exact import parse_compact
from ladon_storage.sources.json.items import ItemReader
from ladon_storage.sources.timestamps import any_timestamps
from ladon_storage.testing.doubles import at, record

TIMES = st.sampled_from(
    [
        *("2024-01-02T03:04:05+00:00", "2024-01-02T03:04:06Z", "2024-01-02 03:04:07", ""),
        *("2024-01-02T03:04:05.123", "2024-01-02T03:04:05.123456Z", "2024-01-02T03:04:05+02:00"),
        *("2016-12-31T23:59:60Z", "2024-02-30T00:00:00Z", "0000-00-00 00:00:00", "never", None),
        *(1_704_164_645, "2024-01-02", "2024-01-02T03:04:05-00:00", "\uff12024-01-02T03:04:05Z"),
    ]
)
IDS = st.sampled_from(["a", "b", "7", "", "é", "\0", None, 7, 2**63, 1.5, True, "-1"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["\x7f", "\ud800", "é", 2**64, -0.0, 1e16, 1e-5, 0.0001]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
ITEMS: st.SearchStrategy[list[Any]] = st.lists(
    st.fixed_dictionaries({"id": IDS, "seen": TIMES, "last": TIMES, "value": VALUES})
    | st.sampled_from([None, 1, "x", [], {}, {"id": "z"}]),
    max_size=4,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(items=ITEMS, alike=st.booleans(), unversioned=st.sampled_from([(), ("value",)]))
def test_records_made_together_are_those_made_one_by_one(
    items: list[Any], alike: bool, unversioned: tuple[str, ...]
) -> None:
    """Ids, times, payloads, versions and rejects are the same, whatever a page has."""
    if alike:  # as the pages of most feeds
        items = [{**item, "id": "a"} for item in items[:1] * 3 if isinstance(item, dict)]
    parsed = parse_json(json.dumps(items))
    reader = ItemReader("id", ("seen", "last"), any_timestamps(), (), unversioned)

    records, rejects = reader.read_all(parsed)

    expected = list(reader.read(parsed))
    assert list(records) == [each for each in expected if isinstance(each, Record)]
    assert rejects == [each for each in expected if not isinstance(each, Record)]
    if isinstance(records, Columns):
        assert records.instants == Columns.of(list(records)).instants


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(items=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=3))
def test_document_parsed_at_once_is_the_one_parsed_exactly(items: list[Any]) -> None:
    """No version changes with the parser: payload and version are the same, digit for digit."""
    body = json.dumps({"data": items}, ensure_ascii=False, separators=(",", ":")).encode(
        errors="surrogatepass"
    )

    document = parse_compact(body)

    if document is not None:
        exact = parse_json(body)
        assert repr(document) == repr(exact)
        for one, other in zip(document["data"], exact["data"], strict=True):
            assert Record.of("1", at(0), one) == Record.of("1", at(0), other)


@pytest.mark.parametrize(
    "body",
    [
        *(b'[{"a":0.10}]', b'[{"a":1e5}]', b'[{"a":1E5}]', b'[{"a":-0}]', b'[{"a":1.5}'),
        *(b'[{"a":123456789012345678901}]', b'[{"a":0.00001}]', b'[{"a":1e16}]'),
        b'[{"a":1,"a":2}]',
        *(b'[{"a":[1e22]}]', b'[{"a":[{"b":1e-7}]}]', b'[{"a":{"b":-1e22}}]', b"[[1.5e300,2]]"),
        *(b'[{"a":[1,1.5e-9,2]}]', b'{"a":-1.25e25,"data":[]}', b"1e22", b"[0.00001,1]"),
        b'[{"a":[{"b":{"c":1,"c":2}},{},{},{},{},{},{},{},{},{}]}]',
        *(b'{"data":[],"data":[{"a":1}]}', b'[{"a":"\\u00e9"}]', b'[{"a":"\\/"}]', b"[NaN]"),
        *(b'[{"a":"\\\\\\/"}]', b'[{"a":"\\""},{"a": 1}]'),
        *(b'[{"a": 1}]', b"\xef\xbb\xbf[]", b'["\\ud800"]', b"[1,]", b"", b'["\xff"]', b"[01]"),
        b"[" * 300 + b"]" * 300,
    ],
)
def test_document_of_which_anything_would_be_lost_is_parsed_exactly(body: bytes) -> None:
    """Digits, signs, exponents, equal keys and errors are the exact parser's."""
    assert parse_compact(body) is None


def test_compact_document_is_parsed_at_once() -> None:
    """The usual page of an API does not take the slower way."""
    content = {"next": None, "data": [{"id": "7", "score": 9.8, "n": 2**53, "ok": True}] * 3}
    assert parse_compact(orjson.dumps(content) + b"\n") == content


@pytest.mark.parametrize(
    "text",
    [
        *("a:1e5,b", ",1e5}", "[2.5E-7]", "0.00001", ":e:", "e", "cpe:2.3:e:"),
        *("a\\/b", "\\u00e9", 'a": b', '\\": ', "\\\\/"),
    ],
)
def test_text_that_looks_like_an_exponent_or_an_escape_is_a_text(text: str) -> None:
    """Nested records with hashes, versions and paths in texts do not take the slower way."""
    content = [{"id": "7", "in": [{"a": {"b": [{}, {}, {text: text}]}}] * 9, "n": [0.5, -7]}]
    assert parse_compact(orjson.dumps(content)) == content


VERSIONS = {
    '{"id":"7","seen":"2024-01-02T03:04:05Z","n":1,"ok":true}': "952419bd0c4e3aa7db51846f12a7de3a",
    '{"seen":"2024-01-02 03:04:05","id":7,"b":"\u00e9","a":[1.5,{"c":null}]}': (
        "ffdb8f3774bbe7ee305e00f302de8fca"
    ),
    '{"id":"8","seen":"2024-01-02T03:04:05.123Z","score":9.80,"big":12345678901234567890123}': (
        "8a22406273e56d717e7628360baf2eb8"
    ),
    '{"id":"9","seen":"2024-01-02T05:04:05+02:00","tiny":0.00001,"huge":1e22,'
    '"text":"\x7f \U0001f600"}': "e040449f59c10cbed21ec0d7cfaf4070",
}
"""Versions as they were made before records were made together: sinks have them."""


@pytest.mark.parametrize(("text", "version"), VERSIONS.items())
def test_version_of_a_stored_record_stays(text: str, version: str) -> None:
    """A changed version would store every record again; the payload is the text that was sent."""
    body = f"[{text}]".encode()
    compact = parse_compact(body)
    reader = ItemReader("id", ("seen",), any_timestamps())
    for document in [parse_json(body)] + [compact] * (compact is not None):
        records, rejects = reader.read_all(document)
        assert [(each.version, each.payload) for each in records] == [(version, text)]
        assert not rejects


@pytest.mark.parametrize("last", [[None, None], [None, "2024-01-02 03:04:06"], [""] * 2])
def test_latest_time_of_a_page_made_together_passes_over_missing_ones(last: list[Any]) -> None:
    """A second time that no item has, or that some have, is not read item by item."""
    seen = ["2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z"]
    items = [
        {"id": str(number), "seen": one, "last": other}
        for number, (one, other) in enumerate(zip(seen, last, strict=True))
    ]
    reader = ItemReader("id", ("seen", "last"), any_timestamps())

    records, _ = reader.read_all(items)

    assert list(records) == list(reader.read(items))
    assert isinstance(records, Columns) is (last[0] is None)


def test_columns_are_a_sequence_of_records() -> None:
    """A sink of one's own reads, and a source of one's own changes, what is a list otherwise."""
    one, two, three = (record(str(number), number) for number in (1, 2, 3))
    columns = Columns.of([one, two])
    page = Page(Columns(columns.ids, columns.timestamps, columns.payloads, columns.versions))

    assert page.records == [one, two]
    assert page.records[0] is page.records[0]
    assert (page.records[1:], len(page), page.characters > 0) == ([two], 2, True)
    page.records.append(three)
    del page.records[0]
    page.records[0] = one
    assert Columns.of(page.records).ids == ["1", "3"]
    assert list(Page.of([page, Page([two])]).records) == [one, three, two]
    assert isinstance(Page.of([page, page]).records, Columns)
