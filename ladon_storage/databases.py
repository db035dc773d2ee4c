"""The connection to a database, and the errors of its driver, as sources and sinks share them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

CONNECT_SECONDS = 10
"""The time in which a server must accept a connection."""

SILENT_SECONDS = 60
"""The time after which unacknowledged data marks a connection as lost."""

POSTGRESQL = {
    "connect_timeout": CONNECT_SECONDS,
    "tcp_user_timeout": SILENT_SECONDS * 1000,
    "keepalives_idle": SILENT_SECONDS,
    "application_name": "ladon-storage",
    "client_encoding": "UTF8",
}
"""The arguments of psycopg.

Without an encoding here a role, a database or the environment may set one that lacks characters.
"""


def parsed(address: str) -> URL:
    """Return an address whose database is percent-decoded, which SQLAlchemy 2.0 leaves undone.

    Raises:
        ArgumentError: It is none.
        ValueError: Its port is no number.
    """
    from sqlalchemy.engine import make_url

    url = make_url(address)
    is_decoded = make_url("sqlite:///%25").database == "%"
    return url if is_decoded or url.database is None else url.set(database=unquote(url.database))


def escaped(path: Path) -> str:
    """Return a path as an address has it, in which a ``%`` begins a code and a ``?`` the options.

    >>> escaped(Path("/srv/100%/records.db"))
    '/srv/100%25/records.db'
    """
    return str(path).replace("%", "%25").replace("?", "%3F")


def shown_address(url: URL) -> str:
    """Return an address without its password, which may also be a parameter of its query."""
    return url.render_as_string(hide_password=True).partition("?")[0]


def arguments_beside(query: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that an address does not have in its query, which has priority.

    SQLAlchemy would pass the parameters of the address to the driver, and these over them.
    """
    return {name: each for name, each in arguments.items() if name not in query}


def driver_error(error: Exception) -> tuple[str | int | None, str]:
    """Return the code of a driver's error, and its first sentence, without details.

    A database may repeat the content of a row in the details of its error.
    """
    original = getattr(error, "orig", None) or error
    code = getattr(original, "sqlstate", None) or getattr(original, "sqlite_errorname", None)
    text = getattr(getattr(original, "diag", None), "message_primary", None) or str(original)
    numbered = original.args[:2]
    if numbered and isinstance(numbered[0], int):  # of MySQL drivers
        code, text = numbered[0], str(numbered[-1])
    return code, text.strip().partition("\n")[0] or type(original).__name__
