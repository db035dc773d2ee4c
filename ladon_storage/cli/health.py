"""``ladon-storage health``: whether a Storage Service is healthy, for the probe of a container.

- A probe runs every few seconds: it imports neither the client nor what the client needs, and asks
  in the same way. Informational answers are skipped, and a redirect is no healthy service.
- One deadline is for all of it, from the name server to the last byte.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping
from contextlib import closing
from http.client import (
    CONTINUE,
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    InvalidURL,
)
from threading import Thread
from typing import Annotated
from urllib.parse import quote, unquote, urlsplit

from cyclopts import Parameter

from ladon_storage.cli.options import check_above_zero
from ladon_storage.cli.output import note, print_text
from ladon_storage.errors import ConfigurationError

_DEFAULT = "http://127.0.0.1:8080"
_LONGEST = 2**20
_CONNECTIONS = {"http": HTTPConnection, "https": HTTPSConnection}


class _Answer(HTTPResponse):
    """The first answer that is not informational; of these the standard library knows one."""

    def _read_status(self) -> tuple[str, int, str]:
        told: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
        return (told[0], CONTINUE, told[2]) if CONTINUE < told[1] < 200 else told


def health(
    address: Annotated[
        str | None,
        Parameter(help=f"The service; by default STORAGE_SERVICE_URL, or {_DEFAULT}."),
    ] = None,
    /,
    *,
    timeout: Annotated[float, Parameter(help="Seconds within which it should answer.")] = 4,
) -> int:
    """Ask a Storage Service whether it is healthy."""
    is_given = address is not None
    address = address or os.environ.get("STORAGE_SERVICE_URL") or _DEFAULT
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:  # a bracket without its other one, or a password with a slash
        parts, port = urlsplit(""), None
    has_user = parts.username is not None
    if (
        parts.scheme not in _CONNECTIONS
        or not parts.hostname
        or parts.query
        or parts.fragment
        or "@" in parts.path  # the end of a password with a slash
        or (is_given and has_user)
    ):
        raise ConfigurationError(
            "The address of the Storage Service cannot be used; write it as https://host:8080, "
            "without a user and a query."
        )
    check_above_zero("--timeout", timeout)
    headers = {"Authorization": _basic(parts.username or "", parts.password or "")}
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    connection = _CONNECTIONS[parts.scheme](parts.hostname, port, timeout=timeout)
    connection.response_class = _Answer
    path = quote(f"{parts.path.rstrip('/')}/health", safe="/%")
    found: list[str | None] = []

    def ask() -> None:
        found.append(_problem(connection, path, headers if has_user else {}))

    # A thread, because a name server or a byte now and then keeps no timeout of a socket.
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout)
    problem = found[0] if found else f"it does not answer within {timeout:g} s"
    if problem:
        note(f"The Storage Service at {address} is not healthy: {problem}.")
        return 1
    print_text("healthy")
    return 0


def _basic(user: str, password: str) -> str:
    pair = f"{unquote(user)}:{unquote(password)}"
    return f"Basic {b64encode(pair.encode()).decode()}"


def _problem(connection: HTTPConnection, path: str, headers: Mapping[str, str]) -> str | None:
    from pydantic_core import from_json  # the client's own parser

    try:
        with closing(connection):
            connection.request("GET", path, headers=headers)
            with connection.getresponse() as answer:
                status, body = answer.status, answer.read(_LONGEST)
    except (OSError, InvalidURL, UnicodeError) as error:  # the last two are of its host's name
        return f"it cannot be reached ({error})"
    except HTTPException:
        return "its answer is no HTTP"
    if status != 200:
        return f"it answers {status}"
    try:
        told = from_json(body)
    except ValueError:
        return "its answer is no JSON"
    if not isinstance(told, dict) or told.get("status") != "healthy":
        return "it says so itself"
    return None
