"""A place that a sink writes to, and what another program finds there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Page, Record


@dataclass(frozen=True)
class SinkRow:
    """A record in a sink, or one version of it where all are kept.

    Args:
        source_id: Its source.
        record_id: Its id.
        version: Its version.
        timestamp: Its timestamp.
        payload: Its parsed content.
        is_removed: Whether it is marked as removed.
        is_current: Whether the source delivered it last, of its versions.
    """

    source_id: str
    record_id: str
    version: str
    timestamp: datetime
    payload: Any
    is_removed: bool = False
    is_current: bool = True


@dataclass(frozen=True)
class SinkPlace:
    """An empty place, the sinks that write to it, and a way to read it without a sink.

    Args:
        make: Returns a new sink of this place.
        read: Returns its rows, of all sources, as another program would read them.
        keep: Whether it keeps the ``latest`` version of each record, or ``all``.
        quarantine: Returns source, run and reason of each reject, in this order; ``None``: rejects
            are kept where no test can look.
        description: The dictionary that `ladon_storage.sinks.sink_from` makes the sink of, for a
            sink that is killed at any moment; ``None``: it is made in a forked process.
        can_fork: Whether a forked process can make a sink. It cannot where a library has threads of
            its own in this process.
        is_one_transaction: Whether a page and its rejects appear together; otherwise the rejects
            appear first.
        repeats_reverted: Whether a version that the source went back to is there once more.
        unwritable: Returns a context in which the place refuses each write, as one whose table is
            away; a sink should learn of it at once. ``None``: that is not tried.
    """

    make: Callable[[], Any]
    read: Callable[[], Sequence[SinkRow]]
    keep: Literal["latest", "all"] = "all"
    quarantine: Callable[[], Sequence[tuple[str, str, str]]] | None = None
    description: dict[str, str] | None = None
    can_fork: bool = True
    is_one_transaction: bool = True
    repeats_reverted: bool = False
    unwritable: Callable[[], AbstractContextManager[None]] | None = None

    def rows(self, source_id: str = "feed") -> list[SinkRow]:
        """Return a source's rows, by id and timestamp."""
        rows = [row for row in self.read() if row.source_id == source_id]
        return sorted(rows, key=lambda row: (row.record_id, row.timestamp, row.version))

    def rejects(self) -> list[tuple[str, str, str]]:
        """Return source, run and reason of each reject, in order."""
        assert self.quarantine is not None, "the place has no quarantine to read"
        return sorted((each[0], each[1], each[2]) for each in self.quarantine())

    def values(self) -> list[tuple[str, str]]:
        """Return id and value of each row."""
        return [(row.record_id, row.payload["value"]) for row in self.rows()]

    def current(self) -> list[tuple[str, str]]:
        """Return id and value of each row that the source delivered last."""
        return [(row.record_id, row.payload["value"]) for row in self.rows() if row.is_current]

    def removed(self, source_id: str = "feed") -> list[str]:
        """Return the ids that are marked as removed."""
        return sorted({row.record_id for row in self.rows(source_id) if row.is_removed})

    async def results(self, *pages: Page | list[Record], source_id: str = "feed") -> list[Any]:
        """Write pages with one new sink, and return its result of each."""
        made = [each if isinstance(each, Page) else Page(each) for each in pages]
        async with self.make() as sink:
            return [await sink.write(source_id, page, run_id="R") for page in made]

    async def write(self, *pages: Page | list[Record], source_id: str = "feed") -> list[int]:
        """Write pages with one new sink, and return the number of rows that each changed."""
        return [changes(each) for each in await self.results(*pages, source_id=source_id)]

    async def revert(self, *records: Record) -> int:
        """Revert to these versions with one new sink, and return how many changed."""
        async with self.make() as sink:
            count: int = await sink.revert("feed", list(records), run_id="R")
            return count

    async def position(self, source_id: str = "feed") -> Position | None:
        """Return the position that a new sink finds."""
        async with self.make() as sink:
            found: Position | None = await sink.position(source_id)
            return found


def changes(result: WriteResult | int) -> int:
    """Return the number of rows that a write changed; a simple sink returns no more."""
    return result if isinstance(result, int) else result.written
