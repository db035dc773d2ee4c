"""``ladon-storage backup``: a copy of the Storage Service's database while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ladon_storage.cli.output import note
from ladon_storage.errors import ConfigurationError


def backup(
    to: Annotated[Path, Parameter(help="The copy; it must not exist yet.")],
    /,
    *,
    database: Annotated[Path, Parameter(help="The service's file; it may be running.")],
) -> None:
    """Copy the Storage Service's database while it runs."""
    from ladon_storage.server.database import copy_database

    if not database.is_file():
        raise ConfigurationError(f"There is no database {str(database)!r}; name the service's.")
    if to.exists():
        raise ConfigurationError(f"{str(to)!r} exists already; name another file for the copy.")
    sources = copy_database(database, to)
    note(f"{to}: {sources} watermark{'' if sources == 1 else 's'}, {to.stat().st_size:,} bytes")
