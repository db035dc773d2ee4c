"""From parsed JSON to records: where an item's id and times are, and what cannot be used.

- One unusable item is a `Reject`, and the rest goes on. What fails a run is a document whose
  structure is wrong, and that is for each source to say.
- No item is dropped for its time: what was delivered is stored, and the engine alone selects.
- Of several times the latest counts. One that is missing is no time; one that is there and makes no
  sense rejects the item, since nobody knows how new it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ladon_storage.collection.records import Item, Record, Reject
from ladon_storage.collection.sources.times import Moment


def value_at(document: object, path: str) -> Any:
    """Return what is at a dotted path; ``None`` where nothing is, the document itself for no path.

    A key may have dots itself, and a number counts in a list.

    >>> value_at({"cve": {"id": "CVE-1"}}, "cve.id"), value_at({"@odata.next": 1}, "@odata.next")
    ('CVE-1', 1)
    >>> value_at({"events": [{"date": "2024-01-01"}]}, "events.0.date"), value_at([], "a.b")
    ('2024-01-01', None)
    """
    while path:
        if isinstance(document, dict) and path in document:
            return document[path]
        first, _, path = path.partition(".")
        if isinstance(document, dict):
            document = document.get(first)
        elif isinstance(document, list) and first.isdecimal() and int(first) < len(document):
            document = document[int(first)]
        else:
            return None
    return document


@dataclass(frozen=True)
class ItemReader:
    """Make records of items.

    Args:
        id: The path of the id, in each item; ``None`` where ids come from outside.
        times: The paths of the times, of which the latest counts.
        moment: How a time is read.
    """

    id: str | None
    times: tuple[str, ...]
    moment: Moment

    def read(self, items: Iterable[object]) -> Iterator[Item]:
        """Yield a record of each item, or a reject where it cannot be used."""
        for item in items:
            yield self._one(item, None)

    def read_keyed(self, items: Mapping[str, object]) -> Iterator[Item]:
        """Yield as `read` does, of an object whose keys are the ids; a list of one is its item."""
        for key, item in items.items():
            alone = item[0] if isinstance(item, list) and len(item) == 1 else item
            yield self._one(alone, key)

    def record_id(self, item: object) -> str | None:
        """Return the id of an item, whole numbers as text; ``None`` where it has none."""
        found = None if self.id is None else value_at(item, self.id)
        if isinstance(found, int) and not isinstance(found, bool):
            return str(found)
        return found if isinstance(found, str) and found else None

    def timestamp(self, item: object) -> datetime:
        """Return how new an item is.

        Raises:
            ValueError: It does not say.
        """
        found = []
        for path in self.times:
            value = value_at(item, path)
            if value is None or value == "":
                continue
            try:
                found.append(self.moment(value))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        if not found:
            raise ValueError(f"{' and '.join(self.times)}: missing")
        return max(found)

    def _one(self, item: object, key: str | None) -> Item:
        record_id = self.record_id(item) if key is None else key
        if not isinstance(item, dict):
            return Reject.of(f"should be an object, and is {_kind(item)}", item, record_id)
        try:
            timestamp = self.timestamp(item)
            if record_id:
                return Record.of(record_id, timestamp, item)
        except ValueError as error:
            return Reject.of(error, item, record_id)
        return Reject.of(f"{self.id or 'its key'}: should be an id, and is none", item)


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}.get(
        type(value), "a number"
    )
