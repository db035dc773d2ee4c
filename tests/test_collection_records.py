"""Records: what identifies a version, and what cannot be a record."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from hashlib import blake2b
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladon_storage.collection.records import Page, Record, paged
from tests.collecting import at, record

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.sampled_from([2**63, 2**64, -(2**63) - 1, 1e-05, 1e16])
    | st.sampled_from(["\x7f", "\0", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None)
@given(content=JSON)
def test_payload_is_the_content(content: Any) -> None:
    """Any JSON value survives, lone surrogates included, as text that any database takes."""
    made = Record.of("1", at(0), content)

    made.payload.encode()
    assert repr(json.loads(made.payload)) == repr(content)


@settings(deadline=None)
@given(content=JSON)
def test_version_is_the_hash_of_one_text(content: Any) -> None:
    """Whatever writes it, what is hashed is the text that ``json`` gives: versions are stored."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))

    expected = blake2b(text.encode(), digest_size=16).hexdigest()
    assert Record.of("1", at(0), content).version == expected


@settings(deadline=None)
@given(content=st.dictionaries(st.text(), JSON, min_size=2))
def test_version_is_that_of_the_content_in_any_order_of_keys(content: dict[str, Any]) -> None:
    """A feed that shuffles its keys has not changed; its payload is kept as it came."""
    shuffled = dict(reversed(content.items()))

    one, other = Record.of("1", at(0), content), Record.of("2", at(1), shuffled)

    assert one.version == other.version
    assert list(json.loads(other.payload)) == list(shuffled)


def test_version_is_the_same_for_ever() -> None:
    """A version is stored: whoever changes how it is made stores every record again."""
    made = Record.of("1", at(0), {"b": [1, 2.5, None], "a": "ü"})

    assert made.version == "7d5da99dd651ce355c9bcbcb4ab9f3f5"
    assert made.payload == '{"b":[1,2.5,null],"a":"ü"}'


@pytest.mark.parametrize("other", [{"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {}, [1]])
def test_other_content_is_another_version(other: Any) -> None:
    """What differs in JSON differs in its version."""
    assert Record.of("1", at(0), {"a": 1}).version != Record.of("1", at(0), other).version


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 10.0**308 * 10])
def test_number_that_json_does_not_have_is_refused(value: float) -> None:
    """What no other program could read back is not stored."""
    for content in (value, {"score": value}, {"scores": [{"all": [1, value]}]}):
        with pytest.raises(ValueError, match="JSON compliant"):
            Record.of("1", at(0), content)


@pytest.mark.parametrize("nested", [lambda x: x, lambda x: [[x]], lambda x: {"a": [{"b": x}]}])
@pytest.mark.parametrize(
    "value", [at(0), UUID(int=0), {1}, b"raw", Page()], ids=lambda value: type(value).__name__
)
def test_value_of_another_class_is_refused(nested: Any, value: Any) -> None:
    """What is no JSON is not made JSON on the way: its text could be another one tomorrow."""
    with pytest.raises(TypeError, match="not JSON serializable"):
        Record.of("1", at(0), nested(value))


def test_content_nested_too_deeply_is_refused() -> None:
    """A hostile document is a bad record, not the end of the interpreter."""
    content: Any = []
    for _ in range(100_000):
        content = [content]

    with pytest.raises(ValueError, match="nested too deeply"):
        Record.of("1", at(0), content)


@pytest.mark.parametrize("record_id", ["", None, 7, "a\0b", "é\0", "\ud800"])
def test_unusable_id_is_refused(record_id: Any) -> None:
    """An id is a text that is not empty and that every database can store."""
    with pytest.raises(ValueError, match="id of a record"):
        Record.of(record_id, at(0), {})


def test_timestamp_is_kept_in_utc() -> None:
    """An offset is applied, and a naive time is UTC, so that timestamps compare as instants."""
    east = timezone(timedelta(hours=5, minutes=30))
    aware = Record.of("1", datetime(2024, 1, 2, 21, 59, 38, tzinfo=east), {})
    naive = Record.of("1", datetime(2024, 1, 2, 16, 29, 38), {})  # noqa: DTZ001 - the point

    assert aware.timestamp == naive.timestamp == datetime(2024, 1, 2, 16, 29, 38, tzinfo=UTC)
    assert aware.timestamp.tzinfo is naive.timestamp.tzinfo is UTC


def test_pages_are_cut_without_reading_ahead() -> None:
    """A page is handed on before the first record of the next is made."""
    made: list[int] = []

    def records() -> Any:
        for number in range(5):
            made.append(number)
            yield record(str(number), number)

    pages = paged(records(), size=2)

    assert [each.record_id for each in next(pages).records] == ["0", "1"]
    assert made == [0, 1]
    assert [len(page.records) for page in pages] == [2, 1]
    assert list(paged([])) == []
    assert Page().records == []
