"""``ladon-storage backup``: a copy of the Storage Service's database while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ladon_storage.cli.databases import Database, database_of
from ladon_storage.cli.output import note
from ladon_storage.errors import ConfigurationError


def backup(
    to: Annotated[Path, Parameter(help="The copy; it must not exist yet.")],
    /,
    *,
    database: Database = None,
) -> None:
    """Copy the Storage Service's database while it runs."""
    from ladon_storage.cli.running import ended_by_signals
    from ladon_storage.server.database import copy_database

    file = database_of(database)
    if not isinstance(file, Path):
        raise ConfigurationError(
            "A database in PostgreSQL is backed up by PostgreSQL. Use `pg_dump "
            "--schema=ladon_storage`, or its point-in-time recovery."
        )
    if not file.is_file():
        raise ConfigurationError(f"There is no database {str(file)!r}; name the service's.")
    if to.exists():
        raise ConfigurationError(f"{str(to)!r} exists already; name another file for the copy.")
    with ended_by_signals():
        sources = copy_database(file, to)
    note(f"{to}: {sources} watermark{'' if sources == 1 else 's'}, {to.stat().st_size:,} bytes")
