"""``ladon-storage migrate``: the schema of the Storage Service's database, brought up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ladon_storage.cli.databases import Database, database_of
from ladon_storage.cli.output import counted, note


def migrate(
    *,
    database: Database = None,
    from_: Annotated[
        str | None,
        Parameter(
            name="--from",
            help="Another database, whose content is copied into this one, which is empty. Stop "
            "the other one's service first.",
        ),
    ] = None,
) -> None:
    """Bring the schema of the Storage Service's database up to date."""
    found, copied = database_of(database), None
    if from_ is not None:  # first: it makes nothing if there is nothing to copy
        from ladon_storage.server.copying import copy_content

        copied = copy_content(database_of(from_), found)
    if isinstance(found, Path):
        from ladon_storage.server.database import migrations, open_database

        open_database(found).close()
        note(f"{found}: schema version {len(migrations())}")
    else:
        _migrate_server(found)
    if copied is not None:
        note(
            f"copied: {counted(copied.watermarks, 'watermark')}, "
            f"{counted(copied.changes, 'change')}, {counted(copied.tokens, 'token')}"
        )


def _migrate_server(url: str) -> None:
    from ladon_storage.server import postgresql_schema

    address = postgresql_schema.address_of(url)
    applied = postgresql_schema.migrate(address)
    version = len(postgresql_schema.migrations())
    note(f"{address.shown}: schema version {version}, {applied} applied now")
