"""Singer: a REST tap and a SQL target of the SDK, with a pipe between their processes.

The target is the SDK's own sample for SQLite, which appends: the SDK leaves a merge to be written.
Its generic insert takes no nested values, so the tap makes JSON of them.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.contenders.piped import piped
from benchmarks.feeds import Feed

# By name: only `make bench` installs it, and what checks types does without.
_sdk: Any = import_module("singer_sdk")
_sql: Any = import_module("singer_sdk.sql")
_pagination: Any = import_module("singer_sdk.pagination")
_NESTED = ("object", "array")


class _NextLink(_pagination.BaseHATEOASPaginator):  # type: ignore[misc]
    def get_next_url(self, response: Any) -> Any:
        return response.json()["next"]


def _schema(feed: Feed) -> dict[str, Any]:
    texts = ("text", *_NESTED)
    kinds = {
        name: {"type": ["string" if of in texts else of, "null"]}
        for name, of in feed.fields.items()
    }
    return {"type": "object", "properties": kinds}


def _tap(url: str, feed: Feed) -> Any:
    nested = [name for name, of in feed.fields.items() if of in _NESTED]

    class Records(_sdk.RESTStream):  # type: ignore[misc]
        name, primary_keys, schema = "records", ("id",), _schema(feed)
        records_jsonpath = "$.data[*]"
        url_base, _, path = url.partition("?")[0].rpartition("/")
        path = f"/{path}"

        def get_new_paginator(self) -> Any:
            return _NextLink()

        def get_url_params(self, context: Any, next_page_token: Any) -> Any:
            link = next_page_token.query if next_page_token else url.partition("?")[2]
            return dict(each.split("=") for each in link.split("&"))

        def post_process(self, row: Any, context: Any = None) -> Any:
            for each in nested:
                row[each] = json.dumps(row.get(each), default=float)
            return row

    class Tap(_sdk.Tap):  # type: ignore[misc]
        name = "tap-benchmark"
        config_jsonschema: dict[str, Any] = {"properties": {}}  # noqa: RUF012

        def discover_streams(self) -> Any:
            return [Records(tap=self)]

    return Tap


class _Connector(_sql.SQLConnector):  # type: ignore[misc]
    allow_temp_tables = allow_column_alter = False

    def get_sqlalchemy_url(self, config: Any) -> str:
        return f"sqlite:///{config['path_to_db']}"


class _Sink(_sql.SQLSink):  # type: ignore[misc]
    connector_class = _Connector


class _Target(_sql.SQLTarget):  # type: ignore[misc]
    name, default_sink_class, max_parallelism = "target-benchmark", _Sink, 1
    config_jsonschema = {"properties": {"path_to_db": {"type": "string"}}}  # noqa: RUF012


class Singer:
    """A tap and a target."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "records.db")

    def collect(self, url: str, feed: Feed) -> float:
        """Let the tap sync into the target."""
        tap = _tap(url, feed)
        return piped(
            lambda: tap(config={}).sync_all(),
            lambda: _Target(config={"path_to_db": self._path}).listen(),
        )

    def count(self) -> int:
        """Return the number of different records."""
        with closing(sqlite3.connect(self._path)) as database:
            return int(database.execute("SELECT count(DISTINCT id) FROM records").fetchone()[0])


CONTENDERS = {"Singer SDK, SQLite, append": Singer}
