"""The sinks of this package, as places that a test collects into and looks at from outside."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Make = Callable[[Path, pytest.FixtureRequest], "Place"]


@dataclass(frozen=True)
class Place:
    """Be a sink's description, and read what is in it as another program would."""

    sink: dict[str, str]
    read: Callable[[str, str], list[tuple[Any, ...]]]
    """Return columns of a table: `records`, or `records_quarantine`."""

    @property
    def keep(self) -> str:
        """What it keeps: the latest version of each record, or all."""
        return self.sink["keep"]

    def rows(self) -> list[tuple[str, Any]]:
        """Return id and value of each row."""
        found = self.read("record_id, payload", "records")
        return sorted(((row[0], json.loads(row[1]).get("value")) for row in found), key=str)

    def quarantine(self) -> list[tuple[Any, ...]]:
        """Return source, run, reason and raw text of what could not be used."""
        return sorted(self.read("source_id, run_id, reason, raw", "records_quarantine"))


def places() -> list[Any]:
    """Return the parameters of a fixture: each makes a place, empty and of its own."""
    return [
        pytest.param(make, id=f"{name}-{keep}")
        for name, keep, make in (
            ("sqlite", "latest", _sqlite("latest")),
            ("sqlite", "all", _sqlite("all")),
        )
    ]


def _sqlite(keep: str) -> Make:
    def make(folder: Path, _request: pytest.FixtureRequest) -> Place:
        path = folder / "records.db"

        def read(columns: str, table: str) -> list[tuple[Any, ...]]:
            with closing(sqlite3.connect(path)) as connection:
                return connection.execute(f"SELECT {columns} FROM {table}").fetchall()

        return Place({"url": f"sqlite:///{path}", "keep": keep}, read)

    return make
