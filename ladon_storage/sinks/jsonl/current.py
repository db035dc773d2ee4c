"""The current line of a record, in files of newline-delimited JSON.

The current line has the greatest ``returned_at``; if no line has one, the greatest
``record_timestamp``; among equals it is the last in its file. A line has a ``returned_at`` if its
time alone would not make it the current one.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import groupby
from typing import Any

from ladon_storage.collection.protocols import utc_now
from ladon_storage.collection.records import Record
from ladon_storage.sinks.jsonl.index import Line

_KEY = 16
"""Bytes of a digest, stored before the sort key of a record's current line."""


class Current:
    """The current lines of a source: for each id the digest of its version, and the sort key."""

    def __init__(self) -> None:
        self._current: dict[str, bytes] = {}

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._current

    def forget(self) -> None:
        """Forget all lines."""
        self._current.clear()

    def is_before(self, record_id: str, at: datetime) -> bool:
        """Return whether there is no line of an id, or the current one is older."""
        current = self._current.get(record_id)
        return current is None or _time_of(current) < _text(at).encode()

    def count(
        self,
        others: Iterable[Line],
        after: datetime | None,
        before: datetime,
        without: Container[str],
    ) -> int:
        """Return how many ids have their current line between two times.

        Args:
            others: Further lines, those of an id one after another; of an id that is known here,
                they are passed over.
            after: The time after which a line is.
            before: The time before which it is.
            without: The ids that are not counted.
        """
        first, end = _text(after).encode() if after else b"", _text(before).encode()
        found = sum(
            first < _time_of(line) < end
            for record_id, line in self._current.items()
            if record_id not in without
        )
        for record_id, those in groupby(others, lambda line: line.id):
            if record_id not in self._current and record_id not in without:
                rank = max(line.rank for line in those)
                found += bool(rank) and first < rank.split(b"\0")[1] < end
        return found

    def learn(self, line: dict[str, Any]) -> tuple[str, bytes]:
        """Add a line, and return its id and its key."""
        key = record_key(line["record_id"], line["version"])
        returned = line.get("returned_at", "")
        self._note(line["record_id"], key, f"{returned}\0{line['record_timestamp']}".encode())
        return line["record_id"], key

    def restore(self, line: Line) -> None:
        """Add a line from the index."""
        current = self._current.get(line.id)
        if line.rank and (current is None or line.rank > current[_KEY:]):
            self._current[line.id] = line.key + line.rank

    def rank(self, record_id: str, key: bytes) -> bytes:
        """Return the sort key of a line, if it is the current one; else nothing."""
        current = self._current.get(record_id, b"")
        return current[_KEY:] if current.startswith(key) else b""

    def see(self, record: Record, key: bytes, returned: str | None) -> None:
        """Add a new record."""
        order = f"{returned or ''}\0{record.timestamp.isoformat()}".encode()
        self._note(record.record_id, key, order)

    def _note(self, record_id: str, key: bytes, order: bytes) -> None:
        current = self._current.get(record_id)
        if current is None or order >= current[_KEY:]:
            self._current[record_id] = key + order

    def has(self, record: Record, key: bytes | None = None) -> bool:
        """Return whether a version is the current one."""
        key = key or record_key(record.record_id, record.version)
        return self._current.get(record.record_id, b"").startswith(key)

    def mark(self, record: Record) -> str:
        """Return the ``returned_at`` that makes a record's line the current one."""
        now = _text(utc_now(), "microseconds")
        before = self._current.get(record.record_id, bytes(_KEY))[_KEY:].split(b"\0")[0]
        if before and before.decode() >= now:
            return _later(before.decode())
        return now

    def placed(self, added: Mapping[bytes, Record]) -> tuple[dict[bytes, str], dict[bytes, Record]]:
        """Return new lines that need a ``returned_at``, and those older than the current ones."""
        returned: dict[bytes, str] = {}
        older: dict[bytes, Record] = {}
        last: dict[str, datetime] = {}
        known = [each for each in added.items() if each[1].record_id in self._current]
        for key, record in sorted(known, key=lambda each: each[1].timestamp):
            current = self._current[record.record_id]
            time = _text(record.timestamp).encode()
            if time < _time_of(current):
                older[key] = record
            elif time == _time_of(current) or current[_KEY:].split(b"\0")[0]:
                at = datetime.fromisoformat(self.mark(record))
                before = last.get(record.record_id)
                last[record.record_id] = at = max(
                    at, before + timedelta(microseconds=1) if before else at
                )
                returned[key] = _text(at, "microseconds")
            elif record.record_id in last:
                # A line of this page at the time of the current one has a mark, and must not win.
                last[record.record_id] += timedelta(microseconds=1)
                returned[key] = _text(last[record.record_id], "microseconds")
        if not older:
            return returned, older
        replaced = {added[key].record_id for key in added.keys() - older.keys()}
        return returned, {k: each for k, each in older.items() if each.record_id not in replaced}

    def again(
        self, passed: list[Record], returned: dict[bytes, str]
    ) -> tuple[dict[bytes, Record], list[Record]]:
        """Return the lines that become current again at once, and the lines older than the current.

        The former have a ``returned_at`` after those of the page's other lines.
        """
        again: dict[bytes, Record] = {}
        older: list[Record] = []
        latest_mark = max(returned.values(), default="")
        for record in passed:
            if _text(record.timestamp).encode() < _time_of(self._current[record.record_id]):
                older.append(record)
                continue
            key = record_key(record.record_id, record.version)
            again[key] = record
            returned[key] = max(self.mark(record), _later(latest_mark))
        return again, older


class Rejects:
    """What is known of rejects: their keys, which are their ids."""

    def learn(self, line: dict[str, Any]) -> tuple[str, bytes]:
        """Return the id and the key of a reject."""
        key = digest(line["raw"])
        return key.hex(), key

    def restore(self, line: Line) -> None:
        """Do nothing."""

    def rank(self, record_id: str, key: bytes) -> bytes:
        """Return nothing: a reject has no versions."""
        return b""

    def forget(self) -> None:
        """Do nothing."""


def _text(at: datetime, timespec: str = "auto") -> str:
    return at.astimezone(UTC).isoformat(timespec=timespec)


def _later(mark: str) -> str:
    """Return the mark after a given one; for no mark, none."""
    if not mark:
        return mark
    return _text(datetime.fromisoformat(mark) + timedelta(microseconds=1), "microseconds")


def _time_of(current: bytes) -> bytes:
    return current[_KEY:].split(b"\0")[1]


def record_key(record_id: str, version: str) -> bytes:
    """Return the digest that identifies a version of a record."""
    return digest(f"{version}\0{record_id}")


def digest(text: str) -> bytes:
    """Return the digest of a text."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY).digest()
