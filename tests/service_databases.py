"""The two databases of a Storage Service, for tests of what it promises over either."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.postgres import PostgresServer

KINDS = ["sqlite", "postgresql"]
of_a_file = pytest.mark.parametrize("service_database", ["sqlite"], indirect=True)
"""Marks a test of what only a file has."""


@pytest.fixture(scope="session")
def migrated_postgres(postgres: PostgresServer) -> str:
    """The address of a database that every test of a session empties, and none makes again."""
    from ladon_storage.server.postgresql_schema import address_of, migrate

    url = postgres.url(postgres.database())
    migrate(address_of(url))
    return url


def emptied(postgres: PostgresServer, url: str) -> str:
    """Take everything out of a migrated database, and return its address."""
    name = url.rpartition("/")[2]
    # What a test left behind in the server may hold a table for some moments.
    postgres.execute(
        f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
    )
    postgres.execute(
        "TRUNCATE ladon_storage.history, ladon_storage.watermarks, ladon_storage.health, "
        "ladon_storage.tokens; ALTER SEQUENCE ladon_storage.history_version RESTART",
        name,
    )
    return url


@pytest.fixture
def empty_postgres(postgres: PostgresServer, migrated_postgres: str) -> str:
    """The address of an empty database of a service in PostgreSQL."""
    return emptied(postgres, migrated_postgres)


@pytest.fixture(params=KINDS)
def service_database(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """An empty database of a service: a file, and one in PostgreSQL."""
    if request.param == "sqlite":
        return tmp_path / "watermarks.db"
    return str(request.getfixturevalue("empty_postgres"))
