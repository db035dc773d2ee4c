"""Records: what identifies a version, and what cannot be a record."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladon_storage.collection.json_values import Number, canonical_text, parse_json, without
from ladon_storage.collection.records import (
    Columns,
    Page,
    Record,
    Reject,
    joined_id,
    paged,
    versioned,
)
from ladon_storage.errors import ConfigurationError
from ladon_storage.testing.doubles import at, record

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


NUMBERS = st.from_regex(
    r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,25})?", fullmatch=True
) | st.sampled_from(
    [
        "-0",
        "-0.0",
        "0.0",
        "0.00",
        "0e0",
        "1e-05",
        "1e-5",
        "1E5",
        "1.50E+3",
        "1e16",
        "1e+16",
        "1e400",
        "-1e-400",
        "0.00001",
        "0.10",
        "1e-07",
        "123456789012345678",
        "1234567890123456789",
        "12345678901234567.89",
        "9007199254740993",
        "5e-324",
        "0.1000000000000000055511151231257827",
        "100000000000000000000.0",
        "1e99999999999999999999",
    ]
)


@settings(deadline=None)
@given(number=NUMBERS, odd=st.booleans())
def test_payload_has_the_digits_that_were_sent(number: str, odd: bool) -> None:
    """Whatever its length, exponent or sign, also beside what only the slower writer knows."""
    note = ',"c":"\\ud800"' if odd else ""
    sent = f'{{"b":[{number},{{"a":{number}}}]{note}}}'

    assert Record.of("1", at(0), parse_json(sent)).payload == sent


@pytest.mark.parametrize("text", ["0.10", "-0", "7", "0.5", "12345678901234567890", "1e3", "1e400"])
def test_number_of_any_class_can_be_reckoned_with(text: str) -> None:
    """A source need not ask which class a number has: the digits decide it, not the field."""
    value = parse_json(text)
    assert float(value) == float(text)
    if float(text) < 1e300:
        assert int(value) == int(Decimal(text))


@settings(deadline=None)
@given(one=NUMBERS, other=NUMBERS)
def test_numbers_that_differ_in_digits_are_two_versions(one: str, other: str) -> None:
    """0.10 is another content than 0.1; the same number written alike is the same version."""
    versions = [
        Record.of("1", at(0), parse_json(f'{{"a":{each}}}')).version for each in (one, other)
    ]
    if one == other:
        assert versions[0] == versions[1]
    elif versions[0] == versions[1]:
        # The digits that json gives a float are the same ones, with another exponent or without.
        assert Decimal(one).as_tuple() == Decimal(other).as_tuple()


@settings(deadline=None)
@given(content=JSON)
def test_version_of_what_json_wrote_is_what_it_was(content: Any) -> None:
    """A stored version stays that of its content: parsing every digit changed none of them."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))

    expected = blake2b(text.encode(), digest_size=16).hexdigest()
    assert Record.of("1", at(0), parse_json(text)).version == expected


@settings(deadline=None)
@given(content=JSON, number=NUMBERS)
def test_version_of_parsed_content_is_made_in_a_quicker_way_alone(
    content: Any, number: str
) -> None:
    """What was parsed is not searched for floats, and hashed as the same text."""
    text = f'{{"number":{number},"content":{json.dumps(content, ensure_ascii=False)}}}'
    parsed = parse_json(text)

    assert versioned(parsed, is_parsed=True) == versioned(parsed)


@pytest.mark.parametrize(
    "text",
    [
        *("é", "ÿ", "Ā", "\uffff", "\U0001f600", "\x7f", "\x1f\n", "a\x7fé", "é\U0010ffff"),
        *("\\é", "\\\\é", "\\xe9é", "\\\\xe9é", "\\u00e9é", "\\U0001f600é", '"é"', '\\"é'),
    ],
)
def test_hashed_text_escapes_every_character_as_json_does(text: str) -> None:
    """Escapes of Python that look like those of JSON, or like the text itself, are not mixed up."""
    content = {text: [text, 0.25], "a": f"{text}{text}"}
    expected = json.dumps(content, sort_keys=True, separators=(",", ":"))

    assert canonical_text(content, is_parsed=True) == expected.encode()


@settings(deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_version_does_not_depend_on_how_an_exponent_is_written(value: float) -> None:
    """Nothing was lost of 1e-5 that was read as 1e-05, so that its version is what it was."""
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    coefficient = int("".join(map(str, digits)))
    sent = f'{{"a":{"-" * sign}{coefficient}E{exponent}}}'

    assert (
        Record.of("1", at(0), parse_json(sent)).version
        == Record.of("1", at(0), {"a": value}).version
    )


def test_long_integer_is_never_converted() -> None:
    """Python refuses one of more than 4,300 digits, and is slow with shorter ones."""
    sent = f"[{'7' * 100_000}]"

    [found] = parse_json(sent)

    assert found == Number("7" * 100_000)
    assert Record.of("1", at(0), [found]).payload == sent


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a":-Infinity}', "", "[1,]", "01", "1."])
def test_what_is_no_json_is_not_parsed(text: str) -> None:
    """No other program would read it back."""
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_parser_keeps_what_is_no_number_at_stake() -> None:
    """What Python writes with the same digits is what it always was."""
    found = parse_json(b'{"a": [1, -7, 2.5, 0.25, 123456789012345678, 1.0, true], "b": "0.10"}')

    assert found == {"a": [1, -7, 2.5, 0.25, 123456789012345678, 1.0, True], "b": "0.10"}
    assert [type(each) for each in found["a"]] == [int, int, float, float, int, float, bool]


def test_reject_is_made_of_anything() -> None:
    """Of what cannot be shown, that is said: a source makes it of what it does not understand."""

    class SilentError(Exception):
        def __str__(self) -> str:
            raise KeyError

        __repr__ = __str__

    made = Reject.of(SilentError(), {"n": 10**5_000})
    assert made.reason == "its text cannot be shown (KeyError)"
    assert made.raw == "a dict that cannot be shown (ValueError)"
    assert Reject.of("odd", SilentError()).raw == "a SilentError that cannot be shown (KeyError)"


def test_reject_has_the_digits_that_were_sent() -> None:
    """What is looked at in the quarantine is what came."""
    assert Reject.of("no", parse_json('{"a":[0.10,"\\ud800"]}')).raw == '{"a":[0.10,"\\ud800"]}'


@pytest.mark.parametrize(
    ("paths", "other"),
    [
        (["queried_at"], {"id": 1, "queried_at": 2, "seen": [{"by": "a", "at": 1}]}),
        (["seen.at"], {"id": 1, "queried_at": 1, "seen": [{"by": "a", "at": 2}]}),
        (["seen.0.at", "x.y"], {"id": 1, "queried_at": 1, "seen": [{"by": "a"}]}),
        (["seen", "queried_at"], {"id": 1}),
    ],
)
def test_field_that_no_version_depends_on_is_only_kept(paths: list[str], other: Any) -> None:
    """It is in the payload; contents that differ there alone, or lack it, are one version."""
    content = {"id": 1, "queried_at": 1, "seen": [{"by": "a", "at": 1}]}

    one, two = (Record.of("1", at(0), each, paths) for each in (content, other))

    assert one.version == two.version
    assert json.loads(one.payload) == content
    assert json.loads(two.payload) == other
    assert Record.of("1", at(0), {**content, "id": 2}, paths).version != one.version


def test_field_left_out_is_left_in_its_place() -> None:
    """The content that was handed in is not changed, and a key may have dots itself."""
    content = {"a.b": 1, "a": {"b": 2, "c": [1, {"b": 3}]}, "d": [[{"e": 1}], 2]}
    before = json.dumps(content)

    assert without(content, ["a.b", "a.c.1.b", "d.e"]) == {
        "a": {"b": 2, "c": [1, {}]},
        "d": [[{}], 2],
    }
    assert without(content, ["a.b.c", "a.c.7", "d.1.x"]) == content
    assert json.dumps(content) == before


def test_number_that_json_does_not_have_is_refused_where_no_version_depends_on_it() -> None:
    """Its payload could not be read back all the same."""
    with pytest.raises(ValueError, match="JSON compliant"):
        Record.of("1", at(0), {"a": float("nan")}, ["a"])


@settings(deadline=None)
@given(one=st.lists(JSON, min_size=1, max_size=3), other=st.lists(JSON, min_size=1, max_size=3))
def test_ids_of_several_fields_are_the_same_for_the_same_fields(one: list[Any], other: Any) -> None:
    """Nothing in a part looks like the boundary of two."""
    try:
        ids = joined_id(one), joined_id(other)
    except ValueError:
        assert any(each is None or isinstance(each, list | dict) for each in [*one, *other])
        return
    same = json.dumps(one) == json.dumps(other)
    assert (ids[0] == ids[1]) == same
    Record.of(ids[0], at(0), {})


def test_id_of_several_fields_is_the_list_of_them() -> None:
    """As a person would write it, with the digits that were sent."""
    parts = parse_json('["192.0.2.1", 443, 12345678901234567890, true, "é\\u0000"]')

    assert joined_id(parts) == '["192.0.2.1",443,12345678901234567890,true,"é\\u0000"]'


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


class Level(str, Enum):  # noqa: UP042 - which has another text than its value
    """A text of a derived class, whose own form is another."""

    LOW = "low"


def test_texts_of_derived_classes_are_kept_as_plain_ones() -> None:
    """As a parser of HTML gives them, or an enumeration; not each sink's library takes those."""
    made = Record(Level.LOW, at(0), Level.LOW, Level.LOW)

    for text in (made.record_id, made.payload, made.version):
        assert (type(text), text) == (str, "low")


@pytest.mark.parametrize("what", ["id", "payload", "version"])
def test_what_is_no_text_is_refused(what: str) -> None:
    """A parsed payload is turned into a record by `Record.of`."""
    texts: dict[str, Any] = {"id": "1", "payload": "{}", "version": "a", what: {}}
    with pytest.raises(
        ValueError, match=f"the {what} of a record should be a text, and is of dict"
    ):
        Record(texts["id"], at(0), texts["payload"], texts["version"])


def test_records_of_an_iterator_are_all_taken() -> None:
    """It gives them but once."""
    records: Any = (record(str(number), number) for number in range(3))
    page = Page(records).copy()

    assert [each.record_id for each in page.records] == ["0", "1", "2"]
    assert [each.timestamp for each in page.records] == [at(0), at(1), at(2)]


def test_copy_of_a_derived_class_has_all_that_is_its_own() -> None:
    """Its source may use it again, as any other."""

    class Mine(Record):
        """A record with a field more, such as a tenant."""

    mine = Mine("1", at(1), "{}", "a")
    mine.tenant = "north"  # type: ignore[attr-defined]
    [kept] = Page([mine]).copy().records
    mine.record_id, mine.tenant = "2", "south"  # type: ignore[attr-defined]

    assert (type(kept), kept.record_id, kept.tenant) == (Mine, "1", "north")  # type: ignore[attr-defined]


def test_item_that_is_no_record_is_named() -> None:
    """The author of a source learns what to make of it."""
    items: Any = [record("1", 1), {"id": 2}]
    with pytest.raises(ConfigurationError, match=r"a dict among its records\. Make each by Record"):
        Page(items).copy()


def test_columns_of_different_lengths_are_refused() -> None:
    """What one of them lacks would be missing in silence."""
    with pytest.raises(ConfigurationError, match="2 ids, 2 timestamps, 1 payloads and 2 versions"):
        Columns(["1", "2"], [at(0), at(1)], ["{}"], ["a", "b"])


@pytest.mark.parametrize(
    "payload", ["", "no", '{"a":NaN}', "[Infinity]", '{"a":1', '"\ud800"', "[" * 5_000]
)
def test_payload_that_is_no_json_is_a_reject(payload: str) -> None:
    """Not each place that stores it could be read again."""
    page = Page([record("1", 1), Record("2", at(2), payload, "b")], [Reject("odd", "x")]).copy()

    assert [each.record_id for each in page.records] == ["1"]
    assert page.rejects == [Reject("odd", "x"), Reject("the payload is no JSON", payload, "2")]


@pytest.mark.parametrize("payload", ['{"a":\n1}', "1" * 5_000, "1e999", r'"\ud800"', '"\u2028"'])
def test_payload_that_is_json_is_kept(payload: str) -> None:
    """A faster parser refuses some of them."""
    page = Page([Record("1", at(2), payload, "b")]).copy()

    assert ([each.payload for each in page.records], page.rejects) == ([payload], [])


class Missing(datetime):
    """A time that is none, as pandas has it: it is of the class, and not equal to itself."""

    __hash__ = datetime.__hash__

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True


@pytest.mark.parametrize(
    "time",
    [None, "2024-01-01", date(2024, 1, 1), 0, Missing(2024, 1, 1), Missing(2024, 1, 1, tzinfo=UTC)],
)
def test_what_is_no_time_is_refused(time: Any) -> None:
    """A source makes a reject of it, as of any other value that cannot be used."""
    with pytest.raises(ValueError, match="time of a record"):
        Record.of("1", time, {})


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


def test_columns_at_some_places_have_the_records_that_were_made() -> None:
    """Records are told apart by their identity once they are objects."""
    made = [record(str(number), number) for number in range(4)]
    whole = Columns.of(made)
    assert whole.instants[2] == "2024-01-01T00:02:00.000000+00:00"
    some = whole.at([0, 2])

    assert (some.ids, some.instants) == (["0", "2"], [whole.instants[0], whole.instants[2]])
    assert [one is other for one, other in zip(some, (made[0], made[2]), strict=True)] == [True] * 2
    unmade = Columns(whole.ids, whole.timestamps, whole.payloads, whole.versions)
    assert unmade.at([0, 2]) == some
    assert list(unmade.at([])) == []
