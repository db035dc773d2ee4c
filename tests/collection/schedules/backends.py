"""The storages and sinks of a schedule, and a look at what is in them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import duckdb

from ladon_storage import StorageServiceClient
from ladon_storage.collection.protocols import Position, Sink, WatermarkStore, WriteResult
from ladon_storage.collection.records import Page
from ladon_storage.models import (
    Watermark,
    WatermarkChange,
)
from ladon_storage.sinks import SqlSink
from ladon_storage.testing.doubles import (
    LatestSink,
    RememberingSink,
    ScriptedStorage,
)
from tests.collection.schedules.steps import (
    SOURCE,
)
from tests.service import Caller, calling, embedded_service, success
from tests.service import path as path_of

if TYPE_CHECKING:
    from tests.collection.schedules.oracle import Oracle


class Backend(Protocol):
    """Hold a storage and a sink, and show what is in them."""

    remembers: bool
    keeps_all: bool

    @property
    def storage(self) -> WatermarkStore: ...
    def sink(self) -> Sink: ...
    def rows(self) -> list[tuple[str, str]]: ...
    def current(self) -> list[tuple[str, str]]: ...
    def removed(self) -> set[str]: ...
    def rejects(self) -> list[str]: ...
    def position(self) -> Position | None: ...
    async def watermark(self) -> Watermark | None: ...
    async def reset(self, timestamp: datetime) -> str | None: ...
    async def delete(self) -> None: ...
    async def changes(self) -> list[WatermarkChange]: ...
    def backup(self) -> object: ...
    def restore(self, backup: object) -> None: ...


class Scripted:
    """Keep everything in memory, by the rules of the service."""

    keeps_all = True

    def __init__(self, world: Oracle, *, remembers: bool = True) -> None:
        self.remembers = remembers
        self.storage = ScriptedStorage(now=lambda: world.now, tells_time=True)
        self._kept = LatestSink()

    def sink(self) -> Sink:
        return self._kept if self.remembers else Forgetful(self._kept)

    def rows(self) -> list[tuple[str, str]]:
        return [(record_id, version) for _, record_id, version in self._kept.rows]

    def current(self) -> list[tuple[str, str]]:
        return [(each.record_id, each.version) for each in self._kept.current.values()]

    def removed(self) -> set[str]:
        return self._kept.removed

    def rejects(self) -> list[str]:
        return [raw for _, _, raw in self._kept.rejects]

    def position(self) -> Position | None:
        return self._kept.positions.get(SOURCE) if self.remembers else None

    async def watermark(self) -> Watermark | None:
        return self.storage.stored.get(SOURCE)

    async def reset(self, timestamp: datetime) -> str | None:
        stored = self.storage.stored[SOURCE].model_dump()
        stored |= {"last_successful_timestamp": timestamp, "run_id": None}
        self.storage.put(stored.pop("source_id"), **stored)
        return self.storage.stored[SOURCE].etag

    async def delete(self) -> None:
        del self.storage.stored[SOURCE]

    async def changes(self) -> list[WatermarkChange]:
        return []  # it is looked at after each write, and nothing comes between

    def backup(self) -> object:
        kept = self._kept
        kinds = (kept.rows, kept.positions, kept.rejects, kept.current, kept.removed)
        return [each.copy() for each in kinds]

    def restore(self, backup: Any) -> None:
        self._kept = kept = LatestSink()
        if backup is not None:
            kinds = (each.copy() for each in backup)
            kept.rows, kept.positions, kept.rejects, kept.current, kept.removed = kinds


class Real:
    """Keep watermarks in the embedded service, and records in a table of SQLite or DuckDB."""

    remembers = True

    def __init__(self, caller: Caller, client: StorageServiceClient, url: str, keep: Any) -> None:
        self.keeps_all = keep == "all"
        self.storage = client
        self._caller = caller
        self._url = url
        self._path = Path(url.partition(":///")[2])
        self._keep = keep

    def sink(self) -> Sink:
        return SqlSink(self._url, keep=self._keep)

    def rows(self) -> list[tuple[str, str]]:
        return [(row[0], row[1]) for row in self._table("SELECT record_id, version FROM records")]

    def current(self) -> list[tuple[str, str]]:
        current = " WHERE replaced_at IS NULL" if self.keeps_all else ""
        rows = self._table(f"SELECT record_id, version FROM records{current}")
        return [(row[0], row[1]) for row in rows]

    def removed(self) -> set[str]:
        rows = self._table("SELECT record_id FROM records WHERE removed_at IS NOT NULL")
        return {row[0] for row in rows}

    def rejects(self) -> list[str]:
        return [row[0] for row in self._table("SELECT raw FROM records_quarantine")]

    def position(self) -> Position | None:
        names = ("timestamp", "watermark", "origin", "run_id", "order_shown")
        rows = self._table(f"SELECT {', '.join(names)} FROM ladon_positions")
        return Position.model_validate(dict(zip(names, rows[0], strict=True))) if rows else None

    def _table(self, statement: str) -> list[tuple[str, ...]]:
        if not self._path.exists():
            return []
        connection: Any
        rows: list[tuple[str, ...]]
        if self._url.startswith("duckdb:"):
            with duckdb.connect(str(self._path)) as connection:
                rows = connection.execute(statement).fetchall()
                return rows
        with closing(sqlite3.connect(self._path)) as connection:
            rows = connection.execute(statement).fetchall()
            return rows

    async def watermark(self) -> Watermark | None:
        return await self.storage.get_watermark(SOURCE)

    async def reset(self, timestamp: datetime) -> str | None:
        body = {"timestamp": timestamp.isoformat(), "reason": "read it again"}
        answer = await self._caller("POST", path_of(SOURCE, "/reset"), body)
        if answer.status != 200:  # it takes none that moves it ahead
            answer = await self._caller("PUT", path_of(SOURCE), success(timestamp.isoformat()))
            assert answer.status == 200, answer.text
        return answer.etag

    async def delete(self) -> None:
        assert (await self._caller("DELETE", path_of(SOURCE))).status == 204

    async def changes(self) -> list[WatermarkChange]:
        changes: list[WatermarkChange] = []
        before: int | None = None
        while True:
            page = await self.storage.watermark_history(SOURCE, before=before)
            changes += page.changes if page else ()
            before = page.next if page else None
            if before is None:
                return changes

    def backup(self) -> object:
        return self._path.read_bytes() if self._path.exists() else None

    def restore(self, backup: Any) -> None:
        self._path.unlink(missing_ok=True)
        if backup is not None:
            self._path.write_bytes(backup)


@contextlib.asynccontextmanager
async def real_parts(
    world: Oracle, folder: Path, kind: str, keep: str, database: Path | str
) -> AsyncIterator[None]:
    """Let the world have a real service and a real sink."""
    async with (
        embedded_service(database, now=lambda: world.now) as address,
        calling(address) as caller,
        StorageServiceClient(address) as client,
    ):
        world.backend = Real(caller, client, f"{kind}:///{folder}/records", keep)
        yield


class Forgetful:
    """Be a sink that remembers no position."""

    def __init__(self, inner: RememberingSink) -> None:
        self._inner = inner

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult | int:
        assert position is None
        return await self._inner.write(source_id, page)
