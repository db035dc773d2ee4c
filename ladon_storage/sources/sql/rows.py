"""The step from a table's rows to records, and unusable rows."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, tzinfo

from ladon_storage.collection.records import Item, Record, Reject, joined_id
from ladon_storage.errors import SourceError
from ladon_storage.sources.sql.table import Layout, Row
from ladon_storage.sources.sql.values import (
    clock_spread,
    id_text,
    json_value,
    row_timestamp,
)

MOST_IDS = 100_000
"""The number of ids whose types are remembered, where a column may have values of any type.

Where there are more, and of several types, the database compares them.
"""

_LONGEST_ID = 40

logger = logging.getLogger(__name__)


@dataclass
class TableRows:
    """The rules by which records are made of rows.

    Args:
        layout: The table, and the way it is read.
        names: The columns.
        zone: The zone of timestamps without an offset.
        must_ascend: Whether rows that go back in time are refused.
        is_untyped: Whether one column may have a number 1 and a text '1', as in SQLite.
        primary_key: The columns of the primary key, where the user did not set the id.
    """

    layout: Layout
    names: tuple[str, ...]
    zone: tzinfo
    must_ascend: bool
    is_untyped: bool = False
    primary_key: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {*self.layout.id_columns, self.layout.timestamp_column}
        self._apart = [
            place
            for place, name in enumerate(self.names)
            if name in self.primary_key and name not in known
        ]
        """The places of the primary key's other columns, until rows of one id differ in them."""
        self._keys: dict[int, int] = {}
        self._types: dict[int, tuple[type, ...]] = {}
        self._kinds: set[tuple[type, ...]] = set()
        self._has_more_ids = False
        self._moment = row_timestamp(self.layout.timestamp_format, self.zone)
        self._highest: datetime | None = None

    def read(self, rows: list[Row]) -> Iterator[Item]:
        """Yield the records and rejects of a page's rows."""
        for row in rows:
            item = self._item(row)
            if isinstance(item, Record):
                if self.must_ascend:
                    self._check_order(item.timestamp, row.time)
                if self._apart:
                    self._see_key(item.record_id, row)
            yield item

    def check_order(self, times: Iterable[object]) -> None:
        """Refuse timestamps that go back in time; what is no timestamp has no place in the order.

        Raises:
            SourceError: They do.
        """
        for time in times:
            with suppress(ValueError):
                self._check_order(self._moment(time), time)

    def unreachable(self, rows: list[Row]) -> list[Item]:
        """Return the items of rows that are on no page; one with timestamp and id is usable."""
        return [self._item(row) for row in rows]

    def _item(self, row: Row) -> Item:
        try:
            return Record.of(self._id(row), self._moment_of(row), self._content(row))
        except ValueError as error:
            return self._reject(error, row)

    def _id(self, row: Row) -> str:
        for name, value in zip(self.layout.id_columns, row.ids, strict=True):
            if value is None:
                raise ValueError(f"{name}: missing")
        text = self._id_of(row.ids)
        if self.is_untyped:
            self._check_type(text, row.ids)
        return text

    def _id_of(self, values: Sequence[object]) -> str:
        if len(values) == 1:
            return id_text(values[0])
        return joined_id([json_value(each) for each in values])

    def _check_type(self, text: str, values: Sequence[object]) -> None:
        """Refuse an id that another row has as a value of another type.

        Raises:
            SourceError: The two rows would be one record.
        """
        place, found = hash(text), tuple(map(type, values))
        self._kinds.add(found)
        if len(self._types) >= MOST_IDS and place not in self._types:
            self._has_more_ids = True
        elif (known := self._types.setdefault(place, found)) != found:
            raise self._types_differ(known, values)

    @property
    def may_mix_types(self) -> bool:
        """Whether ids have several types, and were too many for a comparison of all of them."""
        return self._has_more_ids and len(self._kinds) > 1

    def check_types(self, pairs: Iterable[tuple[Sequence[object], Sequence[object]]]) -> None:
        """Refuse ids of several types that are one, among pairs that the database takes for one.

        Raises:
            SourceError: There are such ids.
        """
        for one, other in pairs:
            if self._id_of(one) == self._id_of(other):
                raise self._types_differ(tuple(map(type, one)), other)

    def _types_differ(self, known: tuple[type, ...], values: Sequence[object]) -> SourceError:
        found = tuple(map(type, values))
        differ = [one is not other for one, other in zip(known, found, strict=True)]
        at = differ.index(True)
        one, other, shown = known[at], found[at], str(json_value(values[at]))
        step = "Collect from a view in which it has one type"
        if len(values) == 1 and bytes not in (one, other):
            step = "Set id_column to several columns, whose values keep their types"
        return SourceError(
            f"Source {self.layout.source_id!r} cannot read the table {self.layout.table!r}: "
            f"its {self.layout.id_columns[at]!r} {shown[:_LONGEST_ID]!r} is of the type "
            f"{one.__name__} in one row and {other.__name__} in another, which are one id. "
            f"{step}.",
            self.layout.source_id,
            refutes=True,
        )

    def _see_key(self, text: str, row: Row) -> None:
        """Say once that rows with one id have several primary keys: versions, or other records."""
        place, key = hash(text), hash(repr([row.values[each] for each in self._apart]))
        if len(self._keys) >= MOST_IDS and place not in self._keys:
            return
        if self._keys.setdefault(place, key) == key:
            return
        self._apart = []
        ids = ", ".join(self.layout.id_columns)
        logger.warning(
            "Source %r reads rows of %r with one %s, such as %s, as versions of one record, and "
            "their primary keys differ. Set id_column to %s if they are records of their own, and "
            "delete the watermark; set it to %s if they are versions.",
            self.layout.source_id,
            self.layout.table,
            ids,
            text[:_LONGEST_ID],
            json.dumps(self.primary_key),
            json.dumps(ids),
            extra={"source_id": self.layout.source_id},
        )

    def _moment_of(self, row: Row) -> datetime:
        name = self.layout.timestamp_column
        if row.time is None:
            raise ValueError(f"{name}: missing, or not a number as declared")
        try:
            return self._moment(row.time)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def _check_order(self, moment: datetime, time: object) -> None:
        highest = self._highest
        # A time that a clock skipped, when it was set forward, is read as one after that.
        if highest is not None and moment + clock_spread(moment, self.zone) < highest:
            raise SourceError(
                f"The texts in {self.layout.timestamp_column!r} of source "
                f"{self.layout.source_id!r} sort in another order than their times: "
                f"{time!r} comes after {highest.isoformat()}. Set timestamp_format to text.",
                self.layout.source_id,
                refutes=True,
            )
        self._highest = moment if highest is None else max(moment, highest)

    def _content(self, row: Row) -> dict[str, object]:
        content = {}
        for name, value in zip(self.names, row.values, strict=True):
            try:
                content[name] = json_value(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return content

    def _reject(self, reason: object, row: Row) -> Reject:
        raw = {
            name: _json_or_repr(value) for name, value in zip(self.names, row.values, strict=True)
        }
        has_id = all(each is not None for each in row.ids)
        record_id = ", ".join(str(_json_or_repr(each)) for each in row.ids)
        return Reject.of(reason, raw, record_id if has_id else None)


def _json_or_repr(value: object) -> object:
    try:
        return json_value(value)
    except ValueError:
        return repr(value)
