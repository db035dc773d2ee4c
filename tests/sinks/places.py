"""The places that the contract of sinks is tested at.

Which version of a record is current, where all versions are kept: a table has no ``replaced_at``
for it, which is when another version followed; files follow the rule of `_order`, and a Delta table
that of `_delta_order`.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ladon_storage.sinks import sink_from
from ladon_storage.testing import SinkPlace, SinkRow
from tests.postgres import PostgresServer
from tests.sinks.own_sink import OwnSink
from tests.tables import refusing

# What needs a server, or opens its files anew for each test, has its second half in the slow ones.
OURS: list[Any] = [
    "sqlite-latest",
    "sqlite-all",
    "postgresql-all",
    pytest.param("postgresql-latest", marks=pytest.mark.slow),
    "jsonl-all",
    "duckdb-latest",
    pytest.param("duckdb-all", marks=pytest.mark.slow),
]
if find_spec("ladon_storage.sinks.delta.sink") and find_spec("deltalake"):
    OURS += ["delta-latest", pytest.param("delta-all", marks=pytest.mark.slow)]

_tables = itertools.count()


def place(name: str, folder: Path, request: pytest.FixtureRequest) -> SinkPlace:
    """Return an empty place of a kind, such as ``sqlite-latest``."""
    kind, _, keep = name.partition("-")
    if kind == "own":
        return _own(folder / "own.db")
    if kind == "sqlite":
        return _sqlite(folder / "records.db", keep)
    if kind == "duckdb":
        return _duckdb(folder / "records.duckdb", keep)
    if kind == "postgresql":
        return _postgresql(request.getfixturevalue("postgres"), keep)
    if kind == "jsonl":
        return _jsonl(folder / "files")
    return delta(f"delta://{folder / 'lake'}", keep)


def _described(
    description: dict[str, str],
    read: Callable[[], list[SinkRow]],
    quarantine: Callable[[], list[tuple[str, str, str]]],
    *,
    is_one_transaction: bool = True,
    unwritable: Callable[[], AbstractContextManager[None]] | None = None,
) -> SinkPlace:
    def make() -> Any:
        return sink_from(description)

    keep: Any = description["keep"]
    return SinkPlace(
        make,
        read,
        keep,
        quarantine,
        description,
        can_fork=not description["url"].startswith(("delta:", "s3:")),
        is_one_transaction=is_one_transaction,
        unwritable=unwritable,
    )


@contextmanager
def a_file_instead(folder: Path) -> Iterator[None]:
    """Have a file where a folder was, which cannot be written to even by the superuser."""
    away = folder.rename(folder.with_name("away"))
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)


def _row(
    values: Sequence[Any], timestamp: datetime, removed_at: object, replaced_at: object = None
) -> SinkRow:
    source_id, record_id, version, payload = values
    is_removed, is_current = removed_at is not None, replaced_at is None
    return SinkRow(source_id, record_id, version, timestamp, payload, is_removed, is_current)


def _replaced_at(keep: str) -> str:
    return "replaced_at" if keep == "all" else "NULL"


def _sqlite(path: Path, keep: str) -> SinkPlace:
    def ask(statement: str) -> list[Any]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(statement).fetchall()

    def read() -> list[SinkRow]:
        rows = ask(
            "SELECT source_id, record_id, version, payload, record_timestamp, removed_at, "
            f"{_replaced_at(keep)} FROM records"
        )
        return [
            _row([*row[:3], json.loads(row[3])], datetime.fromisoformat(row[4]), *row[5:])
            for row in rows
        ]

    return _described(
        {"url": f"sqlite:///{path}", "keep": keep},
        read,
        lambda: ask("SELECT source_id, run_id, reason FROM records_quarantine ORDER BY 1, 2, 3"),
        unwritable=lambda: refusing(ask),
    )


def _duckdb(path: Path, keep: str) -> SinkPlace:
    def ask(statement: str) -> list[Any]:
        with duckdb.connect(str(path)) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            return connection.execute(statement).fetchall()

    def read() -> list[SinkRow]:
        rows = ask(
            "SELECT source_id, record_id, version, payload, record_timestamp, removed_at, "
            f"{_replaced_at(keep)} FROM records"
        )
        return [
            _row([*row[:3], json.loads(row[3])], row[4].astimezone(UTC), *row[5:]) for row in rows
        ]

    return _described(
        {"url": f"duckdb:///{path}", "keep": keep},
        read,
        lambda: ask("SELECT source_id, run_id, reason FROM records_quarantine ORDER BY 1, 2, 3"),
    )


def _postgresql(server: PostgresServer, keep: str) -> SinkPlace:
    table = f"records_{next(_tables)}"

    def read() -> list[SinkRow]:
        rows: list[Any] = server.execute(
            # In UTC, since the first hours of the year 1 are in no year elsewhere.
            "SELECT source_id, record_id, version, payload::text, "
            f"record_timestamp AT TIME ZONE 'UTC', removed_at, {_replaced_at(keep)} FROM {table}"
        )
        return [
            _row([*row[:3], json.loads(row[3])], row[4].replace(tzinfo=UTC), *row[5:])
            for row in rows
        ]

    def quarantine() -> list[Any]:
        return server.execute(
            f"SELECT source_id, run_id, reason FROM {table}_quarantine ORDER BY 1, 2, 3"
        )

    @contextmanager
    def unwritable() -> Iterator[None]:
        server.execute(f"ALTER TABLE {table} ADD CONSTRAINT refusal CHECK (false) NOT VALID")
        try:
            yield
        finally:
            server.execute(f"ALTER TABLE {table} DROP CONSTRAINT refusal")

    described = {"url": server.url(), "table": table, "keep": keep}
    return _described(described, read, quarantine, unwritable=unwritable)


def _jsonl(folder: Path) -> SinkPlace:
    def lines(name: str) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for path in sorted(folder.glob(f"{name}/**/*.jsonl"))
            for line in path.read_bytes().split(b"\n")[:-1]
        ]

    def read() -> list[SinkRow]:
        removed = {(each["source_id"], each["record_id"]) for each in lines("records_removed")}
        written = lines("records")
        current: dict[tuple[str, str], dict[str, Any]] = {}
        for each in written:
            key = each["source_id"], each["record_id"]
            if key not in current or _order(each) >= _order(current[key]):
                current[key] = each
        return [
            SinkRow(
                each["source_id"],
                each["record_id"],
                each["version"],
                datetime.fromisoformat(each["record_timestamp"]),
                each["payload"],
                (each["source_id"], each["record_id"]) in removed,
                current[each["source_id"], each["record_id"]] is each,
            )
            for each in written
        ]

    def quarantine() -> list[tuple[str, str, str]]:
        found = lines("records_quarantine")
        return sorted((each["source_id"], each["run_id"], each["reason"]) for each in found)

    described = _described(
        {"url": f"jsonl://{folder}", "keep": "all"},
        read,
        quarantine,
        unwritable=lambda: a_file_instead(folder),
    )
    return replace(described, repeats_reverted=True)


def _order(line: dict[str, Any]) -> tuple[str, str]:
    """Return what the current line of a record is the greatest by, as it is documented."""
    return line.get("returned_at", ""), line["record_timestamp"]


def delta(url: str, keep: str) -> SinkPlace:
    """Return a place in Delta tables, in a folder or on an object storage."""

    def ask(table: str, columns: list[str]) -> list[dict[str, Any]]:
        from deltalake import DeltaTable

        address = f"{url}/{table}".removeprefix("delta://")
        if not DeltaTable.is_deltatable(address):
            return []
        opened = DeltaTable(address)
        there = [field.name for field in opened.schema().fields]
        found: Any = opened.to_pyarrow_table(columns=[each for each in columns if each in there])
        rows: list[dict[str, Any]] = found.to_pylist()
        return rows

    def read() -> list[SinkRow]:
        names = ["source_id", "record_id", "version", "record_timestamp", "payload"]
        names += ["collected_at", "removed_at", "returned_at"]
        found = ask("records", names)
        current: dict[tuple[str, str], dict[str, Any]] = {}
        for each in found:
            key = each["source_id"], each["record_id"]
            if key not in current or _delta_order(each) >= _delta_order(current[key]):
                current[key] = each
        return [
            SinkRow(
                each["source_id"],
                each["record_id"],
                each["version"],
                each["record_timestamp"].astimezone(UTC),
                json.loads(each["payload"]),
                each["removed_at"] is not None,
                current[each["source_id"], each["record_id"]] is each,
            )
            for each in found
        ]

    def quarantine() -> list[tuple[str, str, str]]:
        names = ["source_id", "run_id", "reason"]
        found = ask("records_quarantine", names)
        return sorted((each["source_id"], each["run_id"], each["reason"]) for each in found)

    folder = Path(url.removeprefix("delta://"))
    return _described(
        {"url": url, "keep": keep},
        read,
        quarantine,
        is_one_transaction=False,
        unwritable=(lambda: a_file_instead(folder)) if url.startswith("delta:") else None,
    )


def _delta_order(row: dict[str, Any]) -> tuple[datetime, datetime, datetime]:
    """Return what the current row of a record is the greatest by, as it is documented."""
    returned_at = row.get("returned_at") or datetime.min.replace(tzinfo=UTC)
    return returned_at, row["record_timestamp"], row["collected_at"]


def _own(path: Path) -> SinkPlace:
    def ask(statement: str) -> list[Any]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(statement).fetchall()

    def read() -> list[SinkRow]:
        rows = ask("SELECT source, id, version, payload, at FROM record")
        return [
            _row([*row[:3], json.loads(row[3])], datetime.fromisoformat(row[4]), None)
            for row in rows
        ]

    return SinkPlace(
        lambda: OwnSink(str(path)),
        read,
        quarantine=lambda: [
            (source, run, reason.strip("'"))
            for source, run, reason in ask(
                "SELECT source, run, reason FROM unusable ORDER BY 1, 2, 3"
            )
        ],
        unwritable=lambda: refusing(ask, "record"),
    )
