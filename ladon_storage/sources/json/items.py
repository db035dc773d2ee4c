"""The step from parsed JSON to records: an item's id and times, and unusable items.

- An unusable item is a `Reject`, and the rest continues. A document with a wrong structure fails
  the run, and each source decides that.
- No item is dropped for its time: every delivered item is stored, and the engine alone selects.
- Of several times the latest counts. A missing time, or a declared filler, is no time. Any other
  invalid time rejects the item, since its age is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from itertools import repeat
from typing import Any

from ladon_storage.collection.json_values import Number
from ladon_storage.collection.records import Item, Record, Reject, joined_id, versioned
from ladon_storage.sources.json.columns import columns_of
from ladon_storage.sources.timestamps import TimestampParser

INDEX = re.compile(r"-?[0-9]{1,9}")


def value_at(document: object, path: str) -> Any:
    """Return the value at a dotted path, ``None`` for no value, the document for an empty path.

    A key may contain dots, and a number is an index of a list, a negative one from its end.

    >>> value_at({"cve": {"id": "CVE-1"}}, "cve.id"), value_at({"@odata.next": 1}, "@odata.next")
    ('CVE-1', 1)
    >>> value_at({"events": [{"date": "2024-01-01"}]}, "events.0.date"), value_at([], "a.b")
    ('2024-01-01', None)
    >>> value_at({"hits": [{"sort": 1}, {"sort": 2}]}, "hits.-1.sort")
    2
    """
    while path:
        if isinstance(document, dict) and path in document:
            return document[path]
        first, _, path = path.partition(".")
        if isinstance(document, dict):
            document = document.get(first)
        elif isinstance(document, list) and INDEX.fullmatch(first):
            index = int(first)
            if not -len(document) <= index < len(document):
                return None
            document = document[index]
        else:
            return None
    return document


def getter(path: str) -> Callable[[Any], Any]:
    """Return the quickest function that returns the value at a path of an object, as `value_at`.

    >>> getter("id")({"id": 7}), getter("cve.id")({"cve": {"id": 7}}), getter("id")({})
    (7, 7, None)
    """
    if path and "." not in path:
        return lambda item: item.get(path)
    return partial(value_at, path=path)


def values_at(items: Iterable[Any], path: str) -> list[Any]:
    """Return the value at a path of each object, as `value_at`, without a call for each.

    >>> values_at([{"id": 7}, {}], "id"), values_at([{"cve": {"id": 7}}], "cve.id")
    ([7, None], [7])
    """
    if path and "." not in path:
        return [each.get(path) for each in items]
    return [value_at(each, path) for each in items]


_NO_TIME = frozenset(
    (
        *("#n/a", "(none)", "(null)", "-infinity", "<null>", "\\n"),
        *("infinity", "invalid date", "n.a.", "n/a", "na", "nan", "nat", "never", "nil", "none"),
        *("not available", "not set", "null", "undefined", "unknown"),
    )
)
"""Texts in lower case with which programs say that there is no time."""

# Zeros and marks; days of a year 0 or below, as PHP and databases write a date of zeros; and the
# first day of all, as .NET writes a date that was never set.
_EMPTY_TIME = re.compile(
    r"[-\u2013\u2014?*0:./,\stz+]*|(?:-?0000|-0001)-\d\d-\d\d.*|0?1(?P<mark>[./-])0?1(?P=mark)0001\b.*",
    re.DOTALL,
)


@dataclass(frozen=True)
class ItemReader:
    """The rules by which records are made of items that were parsed from JSON.

    Args:
        id: The path of the id in each item, or those of its parts; no part: the hash of the
            content. ``None`` if ids come from outside.
        times: The paths of the times, of which the latest counts.
        parser: The parser of a time.
        no_time: Values that mean that there is no time, in addition to those of `is_no_time`.
        unversioned: The paths of values that do not affect the version.
    """

    id: str | tuple[str, ...] | None
    times: tuple[str, ...]
    parser: TimestampParser
    no_time: tuple[str | int, ...] = ()
    unversioned: tuple[str, ...] = ()

    def read(self, items: Iterable[object]) -> Iterator[Item]:
        """Yield a record of each item, or a reject if it is unusable."""
        # A generator would hold the item while its record is used, and the next one is parsed.
        return map(self._one, items, repeat(None))

    def read_all(self, items: Sequence[object]) -> tuple[MutableSequence[Record], list[Reject]]:
        """Return the records and the rejects of some items, as `read` yields them, at less cost."""
        path = self._id_path
        if path is not None and not self.no_time:
            get_ids = partial(values_at, path=path)
            columns = columns_of(items, get_ids, self._columns, self.parser, self.unversioned)
            if columns is not None:
                return columns, []
        return _parted(self.read(items))

    def read_all_keyed(
        self, keys: Sequence[str], items: Sequence[object]
    ) -> tuple[MutableSequence[Record], list[Reject]]:
        """Return the same from items of an object and their keys, as `read_keyed` yields them."""
        items = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in items]
        if not self.no_time:
            ids = list(keys)
            columns = columns_of(items, lambda _: ids, self._columns, self.parser, self.unversioned)
            if columns is not None:
                return columns, []
        return _parted(map(self._one, items, keys))

    def read_keyed(self, items: Mapping[str, object]) -> Iterator[Item]:
        """Yield as `read`, from an object whose keys are the ids; a list of one is its item."""
        return map(self._one_of_pair, items.items())

    def record_id(self, item: object) -> str | None:
        """Return the id of an item, whole numbers as text; ``None`` if it has none."""
        if self.id is None:
            return None
        if self._get_id is not None and isinstance(item, dict):
            return _id_of(self._get_id(item))
        if isinstance(self.id, str):
            return _id_of(value_at(item, self.id))
        if len(self.id) == 1:
            return _id_of(value_at(item, self.id[0]))
        parts = [value_at(item, path) for path in self.id]
        if any(part is None or part == "" for part in parts):
            return None
        try:
            return joined_id(parts) if parts else None
        except ValueError:
            return None

    def timestamp(self, item: object) -> datetime:
        """Return the timestamp of an item.

        Raises:
            ValueError: It has no usable time.
        """
        latest: datetime | None = None
        for path, get in self._times if isinstance(item, dict) else ():
            value = get(item)
            if value is None or value == "" or (self.no_time and self._is_declared_none(value)):
                continue
            try:
                found = self.parser(value)
            except ValueError as error:
                if _is_filler(value):
                    continue
                raise ValueError(f"{path}: {error}") from None
            if latest is None or found > latest:
                latest = found
        if latest is None:
            raise ValueError(f"{' and '.join(self.times)}: missing")
        return latest

    @cached_property
    def _times(self) -> list[tuple[str, Callable[[Any], Any]]]:
        return [(path, getter(path)) for path in self.times]

    @cached_property
    def _columns(self) -> list[Callable[[Sequence[Any]], list[Any]]]:
        return [partial(values_at, path=path) for path in self.times]

    @cached_property
    def _id_path(self) -> str | None:
        """The path of an object's id; ``None`` where it is not at one path."""
        if isinstance(self.id, tuple):
            return self.id[0] if len(self.id) == 1 else None
        return self.id

    @cached_property
    def _get_id(self) -> Callable[[Any], Any] | None:
        """The function that gives an object's id; ``None`` where it is not at one path."""
        return None if self._id_path is None else getter(self._id_path)

    def _is_declared_none(self, value: object) -> bool:
        return not isinstance(value, bool) and str(value).strip() in map(str, self.no_time)

    def _one_of_pair(self, pair: tuple[str, object]) -> Item:
        key, item = pair
        return self._one(item[0] if isinstance(item, list) and len(item) == 1 else item, key)

    def _one(self, item: object, key: str | None) -> Item:
        record_id = self.record_id(item) if key is None else key
        if not isinstance(item, dict):
            return Reject.of(f"should be an object, not {_kind(item)}", item, record_id)
        try:
            timestamp = self.timestamp(item)
            if record_id or (key is None and self.id == ()):
                version, payload = versioned(item, self.unversioned, is_parsed=True)
                return Record(record_id or version, timestamp, payload, version)
        except ValueError as error:
            return Reject.of(error, item, record_id)
        return Reject.of(f"{self._place()}: should be an id, and is none", item)

    def _place(self) -> str:
        if isinstance(self.id, tuple):
            return " and ".join(self.id)
        return self.id or "its key"


def _parted(items: Iterable[Item]) -> tuple[list[Record], list[Reject]]:
    records: list[Record] = []
    rejects: list[Reject] = []
    for item in items:
        if isinstance(item, Record):
            records.append(item)
        else:
            rejects.append(item)
    return records, rejects


def _id_of(value: object) -> str | None:
    if isinstance(value, str):
        return value or None
    if isinstance(value, Number):
        return value.text if value.is_whole else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def is_no_time(text: str) -> bool:
    """Return whether a text that is no time stands for none.

    >>> is_no_time("Never"), is_no_time("0000-00-00 00:00:00"), is_no_time("soon")
    (True, True, False)
    """
    text = text.strip().lower()
    return text in _NO_TIME or _EMPTY_TIME.fullmatch(text) is not None


def _is_filler(value: object) -> bool:
    """Return whether an invalid time is a filler for no time."""
    if isinstance(value, int | float | Number) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        return is_no_time(value)
    # Programs without types write it like this.
    return value is False or value in ([], {})


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}.get(
        type(value), "a number"
    )
