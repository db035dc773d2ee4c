"""The search for the times of records, their formats, and the ones that show changes.

- A field is a time if its values can be read as times. Numbers need a fitting name, too: an id may
  have as many digits as a count of seconds.
- A time that changes with the record is preferred: by the time of its creation alone, a changed
  record would not be found again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from ladon_storage.collection.json_values import Number
from ladon_storage.probing.leaves import distance, paths_of, wrapper_of
from ladon_storage.sources.json.items import is_no_time, value_at
from ladon_storage.sources.timestamps import TimestampParser, timestamp_parser

# The first match counts: a pattern of the name, its rank, and its meaning.
_MEANINGS: tuple[tuple[str, int, str], ...] = (
    (
        r"expir|valid_?(until|to|from)|^due|_due|deadline|birth|until|(^|_)ends?(_|$|ed|date|time)"
        r"|(^|_)next_|schedul|renew|embargo|remind|delet|archiv",
        1,
        "says when something is due, not when the record changed",
    ),
    (
        r"updat|modif|chang|edit|revis|touch|mtime|last_?write",
        50,
        "changes with the record",
    ),
    (r"last_?(seen|online|active|activity|observed|sight)", 40, "changes when it is seen again"),
    (
        r"^@?(timestamp|time|ts|date_?time|date|event_?time|logged|occurred|received|published)"
        r"(_?(at|on|utc|gmt|time|date|datetime))?$",
        30,
        "is the time of the record",
    ),
    (
        r"creat|publish|added|date_?add|issued|posted|first_?seen|reported|insert|submit|opened"
        r"|released|ingest|discovered|occurred|received|generated|detected|logged",
        20,
        "is the time at which the record was made",
    ),
    (r"time|date|stamp|(^|_)(at|on|ts|seen|when)$|_at$|seen|utc|gmt", 10, "looks like a time"),
)
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9@]+")
_YEAR = re.compile(r"(?<!\d)(19|20)\d\d(?!\d)|(?<!\d)(19|20)\d\d[01]\d[0-3]\dT")
_COUNTED = re.compile(r"\d{9,19}(\.\d+)?")

# From 1990 to 2100, by the number of digits of a count before its point.
_SIZES = (
    ("seconds", 631_152_000, 4_102_444_800),
    ("milliseconds", 631_152_000_000, 4_102_444_800_000),
    ("microseconds", 631_152_000_000_000, 4_102_444_800_000_000),
    ("nanoseconds", 631_152_000_000_000_000, 4_102_444_800_000_000_000),
)
_PATTERNS = (
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y %I:%M:%S %p",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
    "%d-%m-%Y %H:%M:%S",
    "%d-%m-%Y %H:%M",
    "%d-%m-%Y",
    "%Y%m%d%H%M%S",
    "%Y%m%d",
    "%y-%m-%d %H:%M:%S",
)
_FILLERS = ("0001-01-01", "1970-01-01T00:00:00", "1970-01-01 00:00:00", "9999-12-31", "1900-01-01")
_OFFSET = re.compile(r"(Z|UTC|GMT|[+-]\d\d:?\d\d|\b[A-Z]{3,4})\s*$")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")

_OTHERS = re.compile(
    r"author|user|owner|creator|account|organi[sz]ation|company|parent|reporter|assignee|group|team|"
    r"customer|member|sender|repository|project|channel|source$|latest|previous|license"
)

_CHANGING, _OWN, _MADE = 40, 30, 20
"""The ranks from which a time changes with the record, is that of the record, or of its making."""

_LEAST_READ = 0.9
"""The minimum share of a field's values that can be read as times."""

_FEW = 5
"""The number of values of which one must fit a format that is examined further."""


@dataclass(frozen=True)
class Times:
    """The times of records.

    Args:
        paths: The fields, the most significant first; none: there is no time.
        forms: Their formats, as values of `timestamp_format`.
        no_time: Values that mean that there is no time.
        reason: The reason for these fields.
        doubts: The questions that stay open.
        missing: The number of records without any.
    """

    paths: tuple[str, ...] = ()
    forms: tuple[str, ...] = ("iso",)
    no_time: tuple[str | int, ...] = ()
    reason: str = ""
    doubts: tuple[str, ...] = ()
    missing: int = 0
    fields: tuple[str, ...] = ()
    """All fields that are times, including those with another meaning."""

    @property
    def change(self) -> bool:
        """Whether the most significant one changes with the record."""
        return bool(self.paths) and meaning_of(self.paths[0])[0] >= _CHANGING

    def of(self, item: object) -> datetime | None:
        """Return the latest time of a record; ``None``: it has no readable one."""
        moment, found = _moment_of(self.forms), []
        for path in self.paths:
            value = value_at(item, path)
            if value is None or is_filler(value):
                continue
            try:
                found.append(moment(value))
            except ValueError:
                continue
        return max(found, default=None)


@lru_cache(maxsize=64)
def _moment_of(forms: tuple[str, ...]) -> TimestampParser:
    return timestamp_parser(forms)


def meaning_of(path: str) -> tuple[int, str]:
    """Return the rank of a field's name among times, and its meaning; 0: it is no time's name.

    >>> meaning_of("lastModifiedDateTime"), meaning_of("status")
    ((50, 'changes with the record'), (0, ''))
    """
    name = "_".join(word.lower() for word in _WORDS.split(path.rpartition(".")[2]) if word)
    for pattern, rank, meaning in _MEANINGS:
        if re.search(pattern, name):
            return rank + 2 * bool(re.search(r"gmt|utc", name)), meaning
    return 0, ""


def is_of_making(name: str) -> bool:
    """Return whether a name is that of a time at which a record was made.

    >>> is_of_making("created_after"), is_of_making("updated_after"), is_of_making("since")
    (True, False, False)
    """
    return _MADE <= meaning_of(name)[0] < _OWN


def is_filler(value: object) -> bool:
    """Return whether a value stands for no time, as a placeholder of a program."""
    if value in (0, "0") and not isinstance(value, bool):
        return True
    if not isinstance(value, str):
        return value in (False, "") or value is None
    return is_no_time(value) or value.strip().startswith(_FILLERS)


def find_times(items: Sequence[dict[str, Any]]) -> Times:
    """Return the fields that show how new a record is.

    >>> find_times([{"created": "2024-01-01", "updated": 1704067200}]).paths
    ('updated',)
    """
    wrapper = wrapper_of(items)
    fields = [field for path in paths_of(items) if (field := _field(items, path, wrapper))]
    if not fields:
        return Times()
    fields.sort(key=lambda field: -field.rank)
    chosen = _covering(fields, len(items))
    forms = _forms(chosen)
    fillers = {each for field in chosen for each in field.fillers}
    doubts = [doubt for field in chosen for doubt in field.doubts]
    covered = set[int]().union(*(field.covers for field in chosen))
    return Times(
        tuple(field.path for field in chosen),
        forms,
        tuple(sorted(fillers, key=str)),
        f"{chosen[0].path} {chosen[0].meaning}",
        tuple(dict.fromkeys(doubts)),
        len(items) - len(covered),
        tuple(field.path for field in fields),
    )


@dataclass(frozen=True)
class _Field:
    """A field whose values are times."""

    path: str
    rank: float
    meaning: str
    form: str
    covers: frozenset[int]
    fillers: frozenset[str | int]
    doubts: tuple[str, ...]


def _field(items: Sequence[dict[str, Any]], path: str, wrapper: str) -> _Field | None:
    rank, meaning = meaning_of(path)
    present = {index: value_at(item, path) for index, item in enumerate(items)}
    present = {index: value for index, value in present.items() if value is not None}
    usable = {index: value for index, value in present.items() if not is_filler(value)}
    form = _form_of(list(usable.values()), is_named=rank > 0) if usable else None
    if form is None:
        return None
    deep = distance(path, wrapper)
    # Times of related objects, such as a record's author, are not its own.
    rank = max(rank, 5) - 15 * deep - 25 * bool(_OTHERS.search(path.rpartition(".")[0].lower()))
    texts = [value for value in usable.values() if isinstance(value, str)]
    rank -= 4 * (bool(texts) and all(_DAY.fullmatch(each.strip()) for each in texts))
    fillers = [value for value in present.values() if _is_declared_filler(value)]
    return _Field(
        path,
        rank,
        meaning or "looks like a time",
        form,
        frozenset(usable),
        frozenset(fillers),
        tuple(_doubts(path, texts, form, meaning_of(path)[0])),
    )


def _is_declared_filler(value: object) -> bool:
    """Return whether a filler must be declared: `ItemReader` recognises the others."""
    if isinstance(value, str):
        return value.strip().startswith(_FILLERS) or value == "0"
    return value == 0 and not isinstance(value, bool)


def _form_of(values: list[object], *, is_named: bool) -> str | None:
    """Return the format in which nearly all values are times."""
    if any(isinstance(each, bool | dict | list) for each in values):
        return None
    sizes = {_size_of(each) for each in values}
    if None not in sizes:
        if not is_named:
            return None
        return sizes.pop() if len(sizes) == 1 else "iso"
    for form in ("iso", *_PATTERNS):
        if form == "iso" and not all(
            isinstance(each, str) and _YEAR.search(each) for each in values
        ):
            continue
        texts = [str(each) for each in values]
        if not any(_is_read(form, each) for each in texts[:_FEW]):
            continue
        read = sum(_is_read(form, each) for each in texts)
        if read >= _LEAST_READ * len(values):
            return form if is_named or form == "iso" else None
    return None


def _size_of(value: object) -> str | None:
    text = value.text if isinstance(value, Number) else str(value)
    if not _COUNTED.fullmatch(text):
        return None
    count = int(text.partition(".")[0])
    return next((form for form, low, high in _SIZES if low <= count < high), None)


@lru_cache(maxsize=20_000)
def _is_read(form: str, value: str) -> bool:
    if len(value) > 64:
        return False
    try:
        _moment_of((form,))(value)
    except ValueError:
        return False
    return True


def _doubts(path: str, texts: list[str], form: str, rank: int) -> list[str]:
    doubts = []
    if rank == 1:
        doubts.append(f"{path} seems to say when something is due; there is no other time")
    if not texts or form not in ("iso", *_PATTERNS):
        return doubts
    if form != "iso" and form[:5] in ("%d/%m", "%m/%d"):
        swapped = form.replace("%d/%m", "%x").replace("%m/%d", "%d/%m").replace("%x", "%m/%d")
        if all(_is_read(swapped, each) for each in texts):
            doubts.append(f"whether {path} has the day or the month first: {form} was taken")
    if all(_DAY.fullmatch(each.strip()) for each in texts):
        doubts.append(f"{path} is a day alone: what changes within a day is found by its content")
    elif not any(_OFFSET.search(each) for each in texts) and not re.search("gmt|utc", path.lower()):
        doubts.append(f"{path} names no time zone: UTC was taken, set zone if it is another")
    return doubts


def _covering(fields: list[_Field], count: int) -> list[_Field]:
    """Return the best field, and further ones until each record has a time."""
    chosen, covered = [fields[0]], set(fields[0].covers)
    for field in fields[1:]:
        if len(covered) == count:
            break
        if field.rank > 1 and field.covers - covered:
            chosen.append(field)
            covered |= field.covers
    return chosen


def _forms(chosen: list[_Field]) -> tuple[str, ...]:
    forms = tuple(dict.fromkeys(field.form for field in chosen))
    counts = {form for form, _, _ in _SIZES}
    # Counts of several sizes, or mixed with texts: iso distinguishes them by their size.
    if len(forms) > 1 and set(forms) <= {*counts, "iso"}:
        return ("iso",)
    return forms
