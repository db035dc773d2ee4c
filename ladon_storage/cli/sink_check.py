"""The place of a sink as ``source check`` sees it: nothing is made there, and nothing written."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ladon_storage.errors import SinkError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

SECONDS = 5
"""The longest time for a database to accept a connection."""

_FILES = ("sqlite", "duckdb")


async def check_place(address: str) -> bool:
    """Refuse a database that cannot be reached; return whether there was one to ask.

    Args:
        address: The sink's address, as a run has it.

    Raises:
        ConfigurationError: The address is none of a sink.
        SinkError: The database does not accept a connection or every text, or its file cannot be
            written.
    """
    from ladon_storage import databases
    from ladon_storage.sinks import sink_from

    scheme = address.partition(":")[0].lower()
    if scheme not in (*_FILES, "postgresql"):
        return False  # an object storage is tried by a run, which writes there
    sink_from({"url": address})  # one that a secret holds was not looked at before
    url = databases.parsed(address)
    if scheme in _FILES:
        _check_file(Path(url.database or ""))
    else:
        await asyncio.to_thread(_check_server, url)
    return True


def _check_file(file: Path) -> None:
    file = file.absolute()
    parent = file.parent
    if not parent.is_dir():
        raise SinkError(f"The folder {str(parent)!r} of the sink does not exist. Make it.")
    if file.is_dir():
        raise SinkError(f"The sink {str(file)!r} is a folder. Name a file.")
    if not os.access(file if file.exists() else parent, os.W_OK):
        raise SinkError(f"The sink {str(file)!r} cannot be written. Give this user the right.")


def _check_server(url: URL) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    from ladon_storage import databases
    from ladon_storage.sinks.sql.errors import describe
    from ladon_storage.sinks.sql.postgresql import check_encoding

    arguments = databases.arguments_beside(url.query, databases.POSTGRESQL)
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            poolclass=NullPool,
            hide_parameters=True,
            connect_args={**arguments, "connect_timeout": SECONDS},
        )
        with engine.connect() as connection:
            check_encoding(connection.connection.dbapi_connection)
    except SQLAlchemyError as error:
        problem, step, cause = describe(error)
        shown = databases.shown_address(url)
        raise SinkError(f"The sink {shown} cannot be reached: {problem}. {step}.") from cause
