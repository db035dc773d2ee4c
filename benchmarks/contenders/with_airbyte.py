"""Airbyte's CDK: a declarative source and a destination, with a pipe between their processes.

PyPI has no destination for a local file, so it is the CDK's interface with the storing half of the
script in it. It needs an environment of its own: the CDK pins what others need newer.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.contenders.piped import piped
from benchmarks.feeds import PAGE, Feed

# By name: only `make bench` installs it, in an environment that has nothing of ours.
_models: Any = import_module("airbyte_cdk.models")
_entrypoint: Any = import_module("airbyte_cdk.entrypoint")
_destinations: Any = import_module("airbyte_cdk.destinations")
_declarative: Any = import_module(
    "airbyte_cdk.sources.declarative.concurrent_declarative_source"
).ConcurrentDeclarativeSource
_orjson: Any = import_module("orjson")
_TYPES = {"text": "string"}
_UPSERT = (
    "INSERT INTO records VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET payload = excluded.payload"
)


def _manifest(url: str, feed: Feed) -> dict[str, Any]:
    kinds = {name: {"type": [_TYPES.get(of, of), "null"]} for name, of in feed.fields.items()}
    base, _, query = url.partition("?")
    return {
        "version": "6.0.0",
        "type": "DeclarativeSource",
        "check": {"type": "CheckStream", "stream_names": ["records"]},
        "spec": {"type": "Spec", "connection_specification": {"type": "object", "properties": {}}},
        "streams": [
            {
                "type": "DeclarativeStream",
                "name": "records",
                "primary_key": "id",
                "schema_loader": {
                    "type": "InlineSchemaLoader",
                    "schema": {"type": "object", "properties": kinds},
                },
                "retriever": {
                    "type": "SimpleRetriever",
                    "requester": {"type": "HttpRequester", "url_base": f"{base}?{query}"},
                    "record_selector": {
                        "type": "RecordSelector",
                        "extractor": {"type": "DpathExtractor", "field_path": ["data"]},
                    },
                    "paginator": {
                        "type": "DefaultPaginator",
                        "page_token_option": {"type": "RequestPath"},
                        "pagination_strategy": {
                            "type": "CursorPagination",
                            "cursor_value": "{{ response.get('next') }}",
                            "stop_condition": "{{ not response.get('next') }}",
                        },
                    },
                },
            }
        ],
    }


class _Sqlite(_destinations.Destination):  # type: ignore[misc]
    def spec(self, logger: Any) -> Any:
        return _models.ConnectorSpecification(connectionSpecification={"type": "object"})

    def check(self, logger: Any, config: Any) -> Any:
        return _models.AirbyteConnectionStatus(status=_models.Status.SUCCEEDED)

    def write(self, config: Any, configured_catalog: Any, input_messages: Any) -> Any:
        with closing(sqlite3.connect(config["path"], isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("CREATE TABLE records (id TEXT PRIMARY KEY, payload TEXT)")
            rows: list[tuple[str, str]] = []
            for message in input_messages:
                if message.type == _models.Type.RECORD:
                    data = message.record.data
                    rows.append((data["id"], _orjson.dumps(data).decode()))
                elif message.type == _models.Type.STATE:
                    _store(database, rows)
                    yield message
                if len(rows) == PAGE:
                    _store(database, rows)
            _store(database, rows)


def _store(database: sqlite3.Connection, rows: list[tuple[str, str]]) -> None:
    database.execute("BEGIN IMMEDIATE")
    database.executemany(_UPSERT, rows)
    database.execute("COMMIT")
    rows.clear()


class Airbyte:
    """A source and a destination of the CDK."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self, url: str, feed: Feed) -> float:
        """Read the source into the destination."""
        manifest = _manifest(url, feed)
        stream = {"name": "records", "json_schema": {}, "supported_sync_modes": ["full_refresh"]}
        catalog = {
            "streams": [
                {"stream": stream, "sync_mode": "full_refresh", "destination_sync_mode": "append"}
            ]
        }
        config, catalog_path = self._folder / "config.json", self._folder / "catalog.json"
        config.write_text(json.dumps({"path": str(self._folder / "records.db")}))
        catalog_path.write_text(json.dumps(catalog))
        paths = ["--config", str(config), "--catalog", str(catalog_path)]

        def read() -> None:
            configured = _models.ConfiguredAirbyteCatalogSerializer.load(catalog)
            source = _declarative(configured, {}, [], source_config=manifest)
            _entrypoint.launch(source, ["read", *paths])

        def store() -> None:
            sys.argv = ["destination"]
            _Sqlite().run(["write", *paths])

        return piped(read, store)

    def count(self) -> int:
        """Return the number of rows."""
        with closing(sqlite3.connect(self._folder / "records.db")) as database:
            return int(database.execute("SELECT count(*) FROM records").fetchone()[0])


CONTENDERS = {"Airbyte CDK, SQLite": Airbyte}
