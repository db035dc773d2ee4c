"""Collectors that are written by hand: a right one, and the usual mistakes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

BEFORE_ALL = datetime(1, 1, 1, tzinfo=UTC)


class Loop:
    """A right loop: a row for each id, and a watermark that is written after the last page."""

    overlap = timedelta(minutes=5)
    key = "PRIMARY KEY"
    insert = "INSERT OR REPLACE INTO record VALUES (?, ?)"

    def collect(self, url: str, folder: Path) -> None:
        with self.opened(folder) as database:
            mark = self.mark(database)
            newest, page = mark, f"{url}?{urlencode({'since': self.since(mark)})}"
            while page:
                with urlopen(page) as response:
                    body = json.load(response)
                with database:
                    for item in body["items"]:
                        newest = max(newest, self.store(database, item, mark))
                page = body["next"]
            with database:
                self.move(database, min(newest, datetime.fromisoformat(body["now"])))

    def rows(self, folder: Path) -> list[tuple[str, str]]:
        with self.opened(folder) as database:
            return database.execute("SELECT id, value FROM record").fetchall()

    @contextmanager
    def opened(self, folder: Path) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(folder / "records.db", timeout=30)) as database:
            database.execute("PRAGMA synchronous = OFF")  # a kill loses no page of the system
            database.execute(f"CREATE TABLE IF NOT EXISTS record (id TEXT {self.key}, value TEXT)")
            database.execute("CREATE TABLE IF NOT EXISTS mark (at TEXT)")
            yield database

    def mark(self, database: sqlite3.Connection) -> datetime:
        found = [datetime.fromisoformat(at) for (at,) in database.execute("SELECT at FROM mark")]
        return max(found, default=BEFORE_ALL)

    def move(self, database: sqlite3.Connection, at: datetime) -> None:
        database.execute("INSERT INTO mark VALUES (?)", [at.isoformat()])

    def since(self, mark: datetime) -> str:
        return (mark - self.overlap if mark > BEFORE_ALL else mark).isoformat()

    def store(self, database: sqlite3.Connection, item: dict[str, Any], _: datetime) -> datetime:
        if "id" not in item:
            return BEFORE_ALL  # a quarantine would be better
        database.execute(self.insert, [item["id"], item["value"]])
        return datetime.fromisoformat(item["updated_at"])


class TieLoop(Loop):
    """It takes what is newer than its watermark, and so leaves out what ties with it."""

    overlap = timedelta(0)

    def store(self, database: sqlite3.Connection, item: dict[str, Any], mark: datetime) -> datetime:
        if "id" in item and datetime.fromisoformat(item["updated_at"]) <= mark:
            return mark
        return super().store(database, item, mark)


class LateLoop(Loop):
    """It has no overlap, and so never sees what comes late."""

    overlap = timedelta(0)


class AppendLoop(Loop):
    """It appends what is not there by its own memory, which a kill wipes out."""

    key = ""
    insert = "INSERT INTO record VALUES (?, ?)"
    overlap = timedelta(0)

    def store(self, database: sqlite3.Connection, item: dict[str, Any], mark: datetime) -> datetime:
        if "id" in item and datetime.fromisoformat(item["updated_at"]) <= mark:
            return mark
        return super().store(database, item, mark)


class FutureLoop(Loop):
    """Its watermark is the greatest time that it saw, whatever that is."""

    def move(self, database: sqlite3.Connection, at: datetime) -> None:
        found = [at, *map(datetime.fromisoformat, self.newest)]
        super().move(database, max(found))

    newest: list[str]

    def collect(self, url: str, folder: Path) -> None:
        self.newest = []
        super().collect(url, folder)

    def store(self, database: sqlite3.Connection, item: dict[str, Any], mark: datetime) -> datetime:
        self.newest += [item["updated_at"]] if "id" in item else []
        return super().store(database, item, mark)


class QuietLoop(Loop):
    """It takes an error of its feed for the end."""

    def collect(self, url: str, folder: Path) -> None:
        with suppress(Exception):
            super().collect(url, folder)


class StrictLoop(Loop):
    """It fails at an item that it cannot use."""

    def store(self, database: sqlite3.Connection, item: dict[str, Any], mark: datetime) -> datetime:
        database.execute(self.insert, [item["id"], item["value"]])
        return datetime.fromisoformat(item["updated_at"])


class FirstWordLoop(Loop):
    """It keeps the first version of each record."""

    insert = "INSERT OR IGNORE INTO record VALUES (?, ?)"


class ClockLoop(Loop):
    """It moves its watermark to the time of its own clock."""

    def move(self, database: sqlite3.Connection, at: datetime) -> None:
        super().move(database, datetime.now(UTC))


class PageLoop(Loop):
    """It moves its watermark with each page that is stored, as pages that come by time allow."""

    def collect(self, url: str, folder: Path) -> None:
        with self.opened(folder) as database:
            mark = newest = self.mark(database)
            page = f"{url}?{urlencode({'since': self.since(mark)})}"
            while page:
                with urlopen(page) as response:
                    body = json.load(response)
                page, items = body["next"], [item for item in body["items"] if "id" in item]
                newest = max(
                    [newest, *(datetime.fromisoformat(each["updated_at"]) for each in items)]
                )
                at = min(newest, datetime.fromisoformat(body["now"]))
                self.take(database, items, at, is_last=not page)

    def take(self, database: Any, items: list[Any], at: datetime, *, is_last: bool) -> None:
        with database:
            self.put(database, items)
            self.move(database, at)

    def put(self, database: sqlite3.Connection, items: list[Any]) -> None:
        for each in items:
            self.store(database, each, BEFORE_ALL)


class MarkFirstLoop(PageLoop):
    """It moves its watermark before the page is stored."""

    def take(self, database: Any, items: list[Any], at: datetime, *, is_last: bool) -> None:
        with database:
            self.move(database, at)
        with database:
            self.put(database, items)


class BufferLoop(PageLoop):
    """It moves its watermark with each page, and stores pages together."""

    def take(self, database: Any, items: list[Any], at: datetime, *, is_last: bool) -> None:
        with database:
            self.move(database, at)
        self.kept = [*vars(self).get("kept", []), *items]
        if is_last or len(self.kept) > 20:
            with database:
                self.put(database, self.kept)
            self.kept = []


class FinallyLoop(Loop):
    """It moves its watermark to the time of the run, however that ended."""

    def collect(self, url: str, folder: Path) -> None:
        with urlopen(f"{url}?since=2100-01-01T00:00:00%2B00:00") as response:
            now = datetime.fromisoformat(json.load(response)["now"])
        try:
            super().collect(url, folder)
        finally:
            with self.opened(folder) as database, database:
                self.move(database, now)
