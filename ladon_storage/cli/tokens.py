"""``ladon-storage tokens``: the tokens of a Storage Service, in its database."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ladon_storage.cli import FAILED
from ladon_storage.cli.databases import Database, database_of
from ladon_storage.cli.options import check_text
from ladon_storage.cli.output import (
    Json,
    is_output_closed,
    note,
    print_json,
    print_table,
)
from ladon_storage.errors import ConfigurationError

if TYPE_CHECKING:
    from ladon_storage.server.dialect import Connection

Name = Annotated[
    str, Parameter(help="Name of the token, as the history shows it.", validator=check_text)
]


def add(
    name: Name,
    /,
    *,
    database: Database = None,
    read_only: Annotated[bool, Parameter(help="It may only read.")] = False,
    prefix: Annotated[
        str,
        Parameter(help="It is for sources whose names begin with this.", validator=check_text),
    ] = "",
) -> int:
    """Make a token and print it."""
    from ladon_storage.server.access import add_token, revoke_token

    if not name.isprintable() or not 1 <= len(name) <= 64:
        raise ConfigurationError("A token's name has 1 to 64 visible characters; choose another.")
    if is_output_closed():
        raise ConfigurationError("A token is printed only once, and standard output is closed.")
    file = database_of(database)
    is_new = isinstance(file, Path) and not file.exists()
    with _opened(database, make=True) as connection:
        token = add_token(connection, name, datetime.now(UTC), read_only=read_only, prefix=prefix)
        try:
            sys.stdout.write(f"{token}\n")  # itself: a reader that has gone is an error here
            sys.stdout.flush()
        except OSError as error:
            revoke_token(connection, name)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            note(
                f"ladon-storage: The token cannot be printed ({error.strerror}), and is revoked. "
                "Make it again."
            )
            return FAILED
    if is_new:
        note(f"{str(file)!r} is a new database: only a service over it knows the token.")
    return 0


def listed(*, database: Database = None, json: Json = False) -> None:
    """List the tokens of a service by name."""
    from ladon_storage.server.access import stored_tokens
    from ladon_storage.values import seen

    with _opened(database) as connection:
        tokens = stored_tokens(connection)
    if json:
        print_json([each._asdict() | {"created_at": str(each.created_at)} for each in tokens])
        return
    rows = [
        (
            # One that looks like another is from before such names were refused.
            each.name if each.name == seen(each.name) else ascii(each.name),
            "read" if each.read_only else "read and write",
            each.prefix or "all",
            f"{each.created_at:%Y-%m-%d %H:%M}",
        )
        for each in tokens
    ]
    print_table(("name", "may", "sources", "made (UTC)"), rows)


def revoke(name: Name, /, *, database: Database = None) -> int:
    """Delete a token."""
    from ladon_storage.server.access import look_alikes, revoke_token, stored_tokens

    with _opened(database) as connection:
        was_there = revoke_token(connection, name)
        alike = look_alikes(connection, name)
        is_last = not stored_tokens(connection)
    for other in alike:
        note(f"ladon-storage: Token {other!a} looks the same, and still works.")
    if not was_there:
        note(f"ladon-storage: There is no token {name!r}.")
        return 1
    if is_last:
        note(
            "ladon-storage: That was the last token. A service started without one is now open "
            "to this machine on a loopback address, and answers 401 on any other."
        )
    return 0


@contextmanager
def _opened(database: str | None, *, make: bool = False) -> Iterator[Connection]:
    found = database_of(database)
    if isinstance(found, Path):
        from ladon_storage.server.database import open_database

        if not make and not found.is_file():
            raise ConfigurationError(f"There is no database {str(found)!r}; name the service's.")
        connection = open_database(found)
        try:
            yield connection
        finally:
            connection.close()
    else:
        from ladon_storage.server.postgresql_schema import opened

        with opened(found) as adapted:
            yield adapted
