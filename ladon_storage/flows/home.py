"""The database of a Prefect home, and whether the installed Prefect can read it.

- A newer Prefect migrates a home for good. An older one that finds it logs a thousand lines and
  waits for minutes, and so a command asks before it starts one.
- Only a revision that is certainly unknown is refused. Prefect itself judges a database that cannot
  be read, or a Prefect whose migrations are elsewhere.
"""

from __future__ import annotations

import contextlib
import sqlite3
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from ladon_storage.errors import ConfigurationError

MIGRATIONS = Path("server", "database", "_migrations", "versions", "sqlite")


def check_home() -> None:
    """Check the database that Prefect would open for a command without a Prefect API.

    Raises:
        ConfigurationError: A newer Prefect has migrated it.
    """
    # Here, because a process that checks another one's database needs no import of Prefect.
    from prefect.settings import get_current_settings
    from sqlalchemy import make_url

    settings = get_current_settings()
    address = settings.server.database.connection_url
    if settings.api.url or address is None:
        return
    url = make_url(address.get_secret_value())
    if url.get_backend_name() == "sqlite" and url.database:
        check_database(Path(url.database))


def check_database(database: Path) -> None:
    """Check that the installed Prefect knows the revision of ``database``, if there is one.

    Raises:
        ConfigurationError: A newer Prefect has migrated it.
    """
    for revision in _revisions(database):
        if not _is_known(revision):
            raise ConfigurationError(
                f"The Prefect database {str(database)!r} has the revision {revision!r}, which "
                f"Prefect {version('prefect')} does not know: a newer Prefect has migrated it. "
                "Install that Prefect, or set PREFECT_HOME to another folder."
            )


def _revisions(database: Path) -> list[str]:
    if not database.is_file():
        return []
    with contextlib.suppress(sqlite3.Error):
        uri = f"{database.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1)) as connection:
            rows = connection.execute("SELECT version_num FROM alembic_version")
            return [str(revision) for (revision,) in rows]
    return []


def _is_known(revision: str) -> bool:
    found = find_spec("prefect")
    places = found.submodule_search_locations or [] if found else []
    files = [file for place in places for file in Path(place, MIGRATIONS).glob("*.py")]
    return not files or any(revision in file.read_text(encoding="utf-8") for file in files)
