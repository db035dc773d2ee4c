"""The database of a Storage Service, as a flag or the environment names it."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ladon_storage.errors import ConfigurationError

DATABASE_VARIABLE = "STORAGE_SERVICE_DATABASE"

Database = Annotated[
    str | None,
    Parameter(
        help="The service's file, or its database in PostgreSQL as postgresql://user@host/name; "
        f"goes before {DATABASE_VARIABLE}."
    ),
]


def database_of(given: str | None) -> Path | str:
    """Return the file, or the address in PostgreSQL, of a flag or of the environment.

    Raises:
        ConfigurationError: There is none, it is neither, its driver is not installed, or a flag
            has a password in it.
    """
    from ladon_storage.collection.credentials import holds_secret

    text = (os.environ.get(DATABASE_VARIABLE, "") if given is None else given).strip()
    if not text:
        raise ConfigurationError(
            f"There is no database; set --database or {DATABASE_VARIABLE}. "
            'See "ladon-storage --help".'
        )
    scheme, mark, rest = text.partition("://")
    # Not a file of that name: an address without its slashes, and what libpq takes.
    is_other = re.match(r"[A-Za-z][\w+.-]*:|\w+\s*=", text) is not None
    if not is_other:
        return Path(text)
    if given is not None and holds_secret(text):
        raise ConfigurationError(
            "The database's address has a password in it, and a command line is in every list of "
            f"processes; put the address into {DATABASE_VARIABLE}, or the password into PGPASSWORD "
            "or PostgreSQL's password file."
        )
    kind = scheme.lower().partition("+")[0] if mark else ""
    server, _, name = rest.partition("?")[0].partition("/")
    # Not read as a name or a host, which errors show: it is the end of a password.
    is_clear = server.count("@") <= 1 and "@" not in name
    if kind in ("postgresql", "postgres") and is_clear:
        if find_spec("psycopg") is None:
            raise ConfigurationError(
                "A database in PostgreSQL requires psycopg. Install ladon-storage[postgresql]."
            )
        return text
    if kind == "sqlite":
        from ladon_storage.embedded import file_of

        return file_of(text)
    # Not repeated: it may have a password in a form of its own.
    raise ConfigurationError(
        "The database should be a file, or an address such as postgresql://user@host/database. "
        "Write @ and / of a password as %40 and %2F, and a file whose name has a colon or an "
        "equals sign as ./NAME."
    )
