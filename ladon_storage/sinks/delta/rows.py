"""The conversion of records and rejects to rows of a Delta table, with numbers for instants.

- Columns are a contract: other engines read them. A new column is nullable, and comes last.
- The current version of a record is the first by ``returned_at``, ``record_timestamp`` and
  ``collected_at``, each the latest first, and null last.
- An instant is exact in microseconds, from the year 1 to 9999, and is never a float.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from hashlib import blake2b

import pyarrow as pa
import pyarrow.compute as pc

from ladon_storage.collection.records import Columns, Record, Reject
from ladon_storage.values import EPOCH

INSTANT = pa.timestamp("us", "UTC")
_PARTITIONS = [
    pa.field("source_id", pa.string(), nullable=False),
    pa.field("day", pa.date32(), nullable=False),
]
RECORDS = pa.schema(
    [
        *_PARTITIONS,
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("record_timestamp", INSTANT, nullable=False),
        pa.field("payload", pa.string(), nullable=False),
        pa.field("collected_at", INSTANT, nullable=False),
        pa.field("removed_at", INSTANT),
    ]
)
RETURNED = pa.field("returned_at", INSTANT)
"""The time when a version became current again, or current despite a later one."""
DELETED = pa.schema(
    [
        *_PARTITIONS,
        *(RECORDS.field(name) for name in ("record_id", "version", "record_timestamp")),
        RECORDS.field("collected_at"),
        RETURNED,
        pa.field("deleted_at", INSTANT, nullable=False),
    ]
)
"""Records that another writer deleted deliberately, without their content."""
REJECTS = pa.schema(
    [
        *_PARTITIONS,
        pa.field("reject_id", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("raw", pa.string(), nullable=False),
        pa.field("record_id", pa.string()),
        pa.field("quarantined_at", INSTANT, nullable=False),
    ]
)
_KEYS = pa.schema(
    [
        field
        for field in (*RECORDS, RETURNED)
        if field not in _PARTITIONS and field.name != "payload"
    ]
)
_PAYLOADS = 1_024
"""The payloads of one array: it grows by copying itself."""

_MICROSECOND = timedelta(microseconds=1)
NEVER = -(2**63)
"""The number for ``None`` in a position: before any instant."""


class FreshRows:
    """The rows of records, whose payloads are a column only while they are written.

    The payloads are the largest part of a page, and a column is a copy of them.

    Args:
        keys: Their other columns.
        payloads: Their payloads.
    """

    def __init__(self, keys: pa.Table, payloads: Sequence[str]) -> None:
        self.keys = keys
        self._payloads = payloads

    @classmethod
    def of(
        cls, records: Sequence[Record], arrived: Sequence[int], returned: Sequence[int | None]
    ) -> FreshRows:
        """Return the rows of records, which arrive and return at instants in microseconds."""
        those = Columns.of(records)
        # As arrays: the library would first have to infer the types of lists.
        columns = [
            pa.array(those.ids, pa.string()),
            pa.array(those.versions, pa.string()),
            pa.array(those.timestamps, INSTANT),
            pa.array(arrived, INSTANT),
            pa.nulls(len(those), INSTANT),
            pa.array(returned, INSTANT),
        ]
        return cls(pa.Table.from_arrays(columns, schema=_KEYS), those.payloads)

    def by_day(self) -> dict[str, FreshRows]:
        """Return the rows of each day of their times, with the day as the partition is named."""
        days = self.keys["record_timestamp"].cast(pa.date32())
        if len(days.unique()) == 1:
            return {days[0].as_py().isoformat(): self}
        # Sorted once, and cut: a page of an old feed has rows of a thousand days.
        order = pc.sort_indices(days)
        keys = self.keys.take(order)
        payloads = [self._payloads[place] for place in order.to_pylist()]
        found, first = {}, 0
        for day, count in _counts(days.take(order)):
            part = slice(first, first + count)
            found[day.isoformat()] = FreshRows(keys.slice(first, count), payloads[part])
            first += count
        return found

    def whole(self) -> pa.Table:
        """Return the rows with their payloads."""
        field, texts = RECORDS.field("payload"), self._payloads
        parts = range(0, len(texts), _PAYLOADS)
        column = pa.chunked_array(
            [pa.array(texts[at : at + _PAYLOADS], pa.string()) for at in parts], pa.string()
        )
        return self.keys.append_column(field, column)


def _counts(days: pa.ChunkedArray) -> Iterator[tuple[date, int]]:
    """Yield each of some values, in the order in which they come, and how often it does."""
    for each in days.value_counts():
        yield each["values"].as_py(), each["counts"].as_py()


def microseconds(instant: datetime) -> int:
    """Return an instant as a number."""
    return (instant - EPOCH) // _MICROSECOND


def now_in_microseconds() -> int:
    """Return the time as a number."""
    return microseconds(datetime.now(UTC))


def instant(number: int | None) -> datetime | None:
    """Return the instant of a number; ``None`` for null, or for the number that represents it."""
    return None if number is None or number == NEVER else EPOCH + number * _MICROSECOND


def day_of(number: int) -> str:
    """Return the day of a number, as a partition is named."""
    return (EPOCH + number * _MICROSECOND).date().isoformat()


def reject_id_of(reject: Reject) -> str:
    """Return the id that equal rejects share: the digest of their text."""
    return blake2b(_storable(reject.raw).encode(), digest_size=16).hexdigest()


def former_reject_id_of(reject: Reject) -> str:
    """Return a reject's id in releases in which its reason was a part of it."""
    text = json.dumps([reject.reason, reject.raw])
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _storable(text: str) -> str:
    """Return a text as valid UTF-8: half of a surrogate pair as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def quarantine_rows(rejects: Mapping[str, Reject], run_id: str, now: datetime) -> pa.Table:
    """Return the rows of rejects by their ids."""
    columns = {
        "reject_id": list(rejects),
        "run_id": [_storable(run_id)] * len(rejects),
        "reason": [_storable(each.reason) for each in rejects.values()],
        "raw": [_storable(each.raw) for each in rejects.values()],
        "record_id": [each.record_id and _storable(each.record_id) for each in rejects.values()],
        "quarantined_at": [now] * len(rejects),
    }
    return pa.table(columns, schema=without_partitions(REJECTS))


def without_partitions(schema: pa.Schema) -> pa.Schema:
    """Return the columns of a schema that are stored in its files."""
    return pa.schema([field for field in schema if field not in _PARTITIONS])
