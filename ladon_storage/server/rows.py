"""Rows of the database as models, models as rows, and the statements that both databases share.

Timestamps are integer microseconds since 1970-01-01 UTC, converted without a float.
"""

from __future__ import annotations

import unicodedata
from datetime import datetime, timedelta
from typing import Any, overload

from pydantic_core import from_json, to_json

from ladon_storage.models import (
    Watermark,
    WatermarkChange,
    WatermarkStatus,
    given,
    meant,
)
from ladon_storage.server.changes import Line
from ladon_storage.values import EPOCH

COLUMNS = (
    "source_id, version, last_successful_timestamp, last_run_timestamp, status, error_message, "
    "records_collected, run_id, lease_microseconds, ledger"
)
HISTORY_COLUMNS = (
    "version, source_id, at, action, actor, run_id, status, timestamp, from_timestamp, "
    "to_timestamp, records_collected, error_message, reason, ledger"
)
LINE = "SELECT run_id, status, timestamp FROM history WHERE version = ?"
"""What tells a repeated write from another one, in the line of the stored version."""
SET_CHECKED = (
    "INSERT INTO health (id, checked_at) VALUES (1, ?) "
    "ON CONFLICT (id) DO UPDATE SET checked_at = excluded.checked_at"
)
"""A write that leaves nothing behind, for the health check."""

_STATUSES = {str(status): status for status in WatermarkStatus}
_MICROSECOND = timedelta(microseconds=1)


@overload
def to_microseconds(instant: datetime) -> int: ...
@overload
def to_microseconds(instant: None) -> None: ...
@overload
def to_microseconds(instant: datetime | None) -> int | None: ...
def to_microseconds(instant: datetime | None) -> int | None:
    """Return an aware timestamp as microseconds since 1970, exactly.

    >>> to_microseconds(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=EPOCH.tzinfo))
    -1
    """
    return None if instant is None else (instant - EPOCH) // _MICROSECOND


@overload
def from_microseconds(number: int) -> datetime: ...
@overload
def from_microseconds(number: None) -> None: ...
@overload
def from_microseconds(number: int | None) -> datetime | None: ...
def from_microseconds(number: int | None) -> datetime | None:
    """Return the timestamp in UTC of a number from ``to_microseconds``."""
    return None if number is None else EPOCH + timedelta(microseconds=number)


def to_length(duration: timedelta) -> int:
    """Return a duration in microseconds, exactly."""
    return duration // _MICROSECOND


def to_watermark(row: tuple[Any, ...]) -> Watermark:
    """Return a row of ``COLUMNS`` with its version tag."""
    source_id, version, succeeded, run, status, error, records, run_id, lease, ledger = row
    return Watermark.trusted(
        f'"{version}"',
        source_id=source_id,
        last_successful_timestamp=from_microseconds(succeeded),
        last_run_timestamp=from_microseconds(run),
        status=_STATUSES[status],
        error_message=error,
        records_collected=records,
        run_id=run_id,
        lease_seconds=None if lease is None else lease / 1_000_000,
        ledger=None if ledger is None else from_json(ledger),
    )


def to_answer(row: tuple[Any, ...]) -> tuple[bytes, str]:
    """Return a row of ``COLUMNS`` as the JSON of its watermark, and its version tag.

    The JSON is that of `to_watermark`, without the model: a read needs no check of what was checked
    when it was written.
    """
    source_id, version, succeeded, run, status, error, records, run_id, lease, ledger = row
    fields = {
        "source_id": source_id,
        "last_successful_timestamp": _to_text_of_time(succeeded),
        "last_run_timestamp": _to_text_of_time(run),
        "status": status,
        "error_message": error,
        "records_collected": records,
        "run_id": run_id,
    }
    if lease is not None:
        fields["lease_seconds"] = lease / 1_000_000
    body = to_json(fields)
    if ledger is not None:  # stored as JSON
        body = b'%b,"ledger":%b}' % (body[:-1], ledger.encode())
    return body, f'"{version}"'


def _to_text_of_time(number: int | None) -> str | None:
    return None if number is None else (EPOCH + timedelta(microseconds=number)).isoformat()


def to_change(row: tuple[Any, ...]) -> WatermarkChange:
    """Return the change of a row of ``HISTORY_COLUMNS``; *nothing collected* is ``None``."""
    fields = dict(zip(HISTORY_COLUMNS.split(", "), row, strict=True))
    for name in ("at", "timestamp", "from_timestamp", "to_timestamp"):
        fields[name] = meant(from_microseconds(fields[name]))
    ledger = fields.pop("ledger")
    return WatermarkChange(**fields, **given(ledger=None if ledger is None else from_json(ledger)))


def from_watermark(new: Watermark) -> tuple[Any, ...]:
    """Return the row of ``COLUMNS`` of a watermark, without its name and its version."""
    return (
        to_microseconds(new.last_successful_timestamp),
        to_microseconds(new.last_run_timestamp),
        str(new.status),
        new.error_message,
        new.records_collected,
        new.run_id,
        None if new.lease_seconds is None else round(new.lease_seconds * 1_000_000),
        _to_text(new.ledger),
    )


def from_line(source_id: str, before: Watermark | None, line: Line) -> tuple[Any, ...]:
    """Return the row of ``HISTORY_COLUMNS`` of a change, without its number."""
    after = line.after
    return (
        source_id,
        to_microseconds(line.at),
        str(line.action),
        line.actor,
        line.run_id,
        str(after.status) if after else None,
        to_microseconds(line.timestamp),
        to_microseconds(before.last_successful_timestamp) if before else None,
        to_microseconds(after.last_successful_timestamp) if after else None,
        after.records_collected if after else None,
        after.error_message if after else None,
        line.reason,
        _to_text(line.ledger),
    )


def version_of(stored: Watermark) -> int:
    """Return the version in a stored watermark's tag."""
    return int((stored.etag or "").strip('"'))


def folded(text: str) -> str:
    """Return a text as it is searched for, in any case and any form of its accents.

    >>> folded("STRASSE") == folded("straße"), folded("E\u0301") == folded("é")
    (True, True)
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def _to_text(ledger: dict[str, Any] | None) -> str | None:
    return None if ledger is None else to_json(ledger).decode()
