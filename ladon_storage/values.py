"""The values of the Storage Service's contract: timestamps, source ids, error texts and ledgers.

- Timestamps are aware UTC datetimes with microseconds. They are parsed here and nowhere else, never
  compared as text, and never rounded up: digits beyond microseconds are cut off.
- An outcome must not go unrecorded: a text or a ledger that is too large or has no JSON form is cut
  and replaced until it can be stored.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    JsonValue,
    PlainSerializer,
    StringConstraints,
)
from pydantic_core import from_json, to_json

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""The instant from which numbers of seconds and microseconds count."""

MAX_SOURCE_ID_LENGTH = 255
"""The longest ``source_id`` in characters: encoded, it must fit any proxy's path limits."""


def to_utc(value: datetime) -> datetime:
    """Return ``value`` in UTC; a naive one is read as UTC.

    Raises:
        ValueError: Shifting to UTC leaves the years 1 to 9999.

    >>> to_utc(datetime.fromisoformat("2024-01-02T21:59:38+05:30")).isoformat()
    '2024-01-02T16:29:38+00:00'
    """
    if value.tzinfo is UTC:
        return value
    if value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("the timestamp lies outside the years 1 to 9999 in UTC") from None


def instant_text(instant: datetime) -> str:
    """Return an instant as a text of fixed width in UTC, which sorts correctly.

    >>> instant_text(datetime(1, 1, 1, tzinfo=UTC))
    '0001-01-01T00:00:00.000000+00:00'
    """
    if instant.tzinfo is not UTC:  # as a record's is
        instant = instant.astimezone(UTC)
    return instant.isoformat("T", "microseconds")


def parse_timestamp(value: object) -> datetime:
    """Return an ISO 8601 text, or a datetime, as an aware UTC datetime.

    Numbers are refused: nothing says whether they count seconds or milliseconds.

    Raises:
        ValueError: ``value`` is no ISO 8601 timestamp.
    """
    if isinstance(value, str):
        try:
            return to_utc(datetime.fromisoformat(value))
        except ValueError:
            pass
    elif isinstance(value, datetime):
        return to_utc(value)
    raise ValueError("should be an ISO 8601 timestamp such as 2024-01-01T12:00:00+00:00")


@lru_cache(maxsize=64)  # the answers of a second have the same date
def instant_of(date: str | None) -> datetime | None:
    """Return the timestamp of an HTTP date; ``None`` where it is missing or cannot be read."""
    try:
        return None if date is None else to_utc(parsedate_to_datetime(date))
    except (ValueError, OverflowError):
        return None


def check_source_id(value: str) -> str:
    """Return ``value`` if it can name a source.

    It has one form, as `check_form` says: two names that look alike would be two sources.

    Raises:
        ValueError: It is empty, too long, ``.`` or ``..`` (which no URL can carry as a path
            segment), or not in that form.
    """
    if not value or len(value) > MAX_SOURCE_ID_LENGTH:
        raise ValueError(f"source_id should have 1 to {MAX_SOURCE_ID_LENGTH} characters")
    if value in (".", ".."):
        raise ValueError(f"source_id {value!r} cannot be a path segment; choose another name")
    return check_form(value, "source_id")


def check_form(value: str, what: str) -> str:
    """Return a name if it has the one form of names that look like it.

    That is Unicode's NFC, without characters that are invisible or change the direction of writing,
    and without outer spaces.

    Raises:
        ValueError: It has another form; the message begins with ``what``.
    """
    if value != value.strip():
        raise ValueError(f"{what} should not begin or end with a space")
    if value.isascii() and value.isprintable():
        return value
    for character in value:
        if _is_invisible(character):
            raise ValueError(
                f"{what} should have no control characters, no invisible ones and no lone "
                f"surrogates, but has U+{ord(character):04X}"
            )
    if not unicodedata.is_normalized("NFC", value):
        raise ValueError(f"{what} should be in Unicode's normal form NFC")
    return value


def seen(name: str) -> str:
    """Return a name as a reader sees it in a list: two with the same look alike.

    >>> seen("r\u200bw ") == seen("rw") == seen("\uff52w"), seen("RW") == seen("rw")
    (True, False)
    """
    drawn = unicodedata.normalize("NFKC", name)
    return " ".join("".join(each for each in drawn if not _is_invisible(each)).split())


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in _CONFUSING or ord(character) in _IGNORABLE


_CONFUSING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""The categories of controls, formats (bidirectional, zero-width), surrogates, and separators."""

_IGNORABLE = frozenset(
    {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x3164, 0xFFA0}
    | {*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xFFF0, 0xFFF9)}
    | {*range(0xE0000, 0xE1000)}
)
"""Fillers, joiners and variation selectors: Unicode's other characters that are not drawn."""


Timestamp = Annotated[
    datetime,
    BeforeValidator(parse_timestamp),
    PlainSerializer(datetime.isoformat, return_type=str, when_used="json"),
]
"""An aware UTC datetime; ISO 8601 with offset on the wire."""


def _check_number(value: object) -> object:
    if isinstance(value, bool | str | bytes):
        raise ValueError("should be a number")
    return value


NUMBER = BeforeValidator(_check_number)
"""The check that a number is one: neither ``true`` nor a text of digits."""

SourceId = Annotated[str, AfterValidator(check_source_id)]
"""The name of a source: 1 to 255 characters that one path segment can carry."""

MAX_LEDGER_BYTES = 16_384
"""The largest ledger in bytes of JSON; `fitting_ledger` cuts a longer one."""


MAX_LEDGER_DEPTH = 32
"""The levels of the deepest ledger, itself included: a parser has a limit for a whole page."""


def check_ledger(ledger: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return ``ledger`` if it is small enough to be stored, with null in place of NaN and infinity.

    Raises:
        ValueError: It is too large, or nested too deep.
    """
    if _is_deep(ledger):
        raise ValueError(f"ledger should be nested at most {MAX_LEDGER_DEPTH} levels deep")
    text = to_json(ledger, inf_nan_mode="null")
    if len(text) > MAX_LEDGER_BYTES:
        raise ValueError(f"ledger should have at most {MAX_LEDGER_BYTES} bytes, not {len(text)}")
    if b"null" not in text:  # nothing was replaced
        return ledger
    values: dict[str, JsonValue] = from_json(text)
    return values


def fitting_ledger(ledger: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Return ``ledger`` as JSON that can be stored, whatever it holds.

    Timestamps and all values without a JSON form become text, and what is nested too deep becomes
    an ellipsis. A ledger that is too large keeps its numbers and short texts as far as they fit,
    and the field ``cut`` says so.

    >>> fitting_ledger({"pages": 2, "start": datetime(2026, 1, 1, tzinfo=UTC)})
    {'pages': 2, 'start': '2026-01-01T00:00:00Z'}
    """
    text = to_json(_encodable(ledger), inf_nan_mode="null")
    values: dict[str, JsonValue] = from_json(text)
    if len(text) <= MAX_LEDGER_BYTES and not _is_deep(values):
        return values
    kept: dict[str, JsonValue] = {"cut": True}
    size = len(to_json(kept))
    for name, value in values.items():
        if isinstance(value, dict | list) or (isinstance(value, str) and len(value) > _SHORT):
            continue
        size += len(to_json({name: value}))
        if size > MAX_LEDGER_BYTES:
            break
        kept[name] = value
    return kept


def _is_deep(ledger: Mapping[str, Any]) -> bool:
    level: list[Any] = [ledger]
    for _ in range(MAX_LEDGER_DEPTH):
        below = [each.values() if isinstance(each, Mapping) else each for each in level]
        level = [one for each in below for one in each if isinstance(one, dict | list)]
    return bool(level)


_READ_BITS = 10_000
"""The size of a whole number from which not every parser reads it."""


def _encodable(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Return ``value`` as JSON without lone surrogates, which a file name or JSON may contain.

    What is too deep, or contains itself, becomes an ellipsis.

    Args:
        value: The value.
        above: What it is in, by its ids.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()
    if value is None or isinstance(value, float):  # before the slower looks at a class
        return value
    if isinstance(value, int) and value.bit_length() < _READ_BITS:
        return value
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        if len(above) == MAX_LEDGER_DEPTH or id(value) in above:
            return "…"
        above = (*above, id(value))
        if isinstance(value, Mapping):
            return {_text(key): _encodable(one, above) for key, one in value.items()}
        return [_encodable(each, above) for each in value]
    try:
        return from_json(to_json(value, fallback=_text, inf_nan_mode="null"))
    except Exception:  # as of bytes that are no text
        return _text(value)


def _text(value: object) -> str:
    """Return a value's text without lone surrogates; or that its class fails to return it."""
    try:
        return str(value).encode(errors="replace").decode()
    except Exception as failure:
        return f"its text cannot be shown ({type(failure).__name__})"


StoredLedger = Annotated[dict[str, JsonValue], AfterValidator(check_ledger)]
"""The request and the results of a run, as a JSON object that `check_ledger` admits."""

_SHORT = 255


def check_run_id(value: object) -> str:
    """Return ``value`` if the service can record it as the name of a run.

    Raises:
        ValueError: It is no text, is too long, or has a lone surrogate.
    """
    if not isinstance(value, str) or len(value) > _SHORT or value != fitting_error(value):
        raise ValueError(
            f"run_id should be a text of at most {_SHORT} characters without lone surrogates"
        )
    return value


ShortText = Annotated[str, StringConstraints(max_length=_SHORT)]

MAX_ERROR_LENGTH = 16_384
"""The longest ``error_message`` in characters; the writer cuts a longer one."""

ErrorText = Annotated[str, StringConstraints(max_length=MAX_ERROR_LENGTH)]


def fitting_error(text: str) -> str:
    """Return an error's text in the form that can be stored, whatever it holds."""
    return text[:MAX_ERROR_LENGTH].encode(errors="replace").decode()
