"""``ladon-storage migrate``: the schema of the Storage Service's database, brought up to date."""

from __future__ import annotations

from pathlib import Path

from ladon_storage.cli.databases import Database, database_of
from ladon_storage.cli.output import note
from ladon_storage.errors import ConfigurationError


def migrate(*, database: Database = None) -> None:
    """Bring the schema of the Storage Service's database up to date."""
    found = database_of(database)
    if isinstance(found, Path):
        from ladon_storage.server.database import migrations, open_database

        open_database(found).close()
        note(f"{found}: schema version {len(migrations())}")
        return
    try:
        from ladon_storage.server import postgresql_schema
    except ImportError as error:
        raise ConfigurationError(
            "A database in PostgreSQL requires psycopg. Install ladon-storage[postgresql]."
        ) from error
    address = postgresql_schema.address_of(found)
    applied = postgresql_schema.migrate(address)
    version = len(postgresql_schema.migrations())
    note(f"{address.shown}: schema version {version}, {applied} applied now")
