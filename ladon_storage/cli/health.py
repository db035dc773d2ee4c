"""``ladon-storage health``: whether a Storage Service is healthy, for the probe of a container.

It imports nothing but the standard library, since a probe runs every few seconds.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from http.client import HTTPException
from typing import Annotated
from urllib.parse import unquote, urlsplit

from cyclopts import Parameter

from ladon_storage.cli.options import check_above_zero
from ladon_storage.cli.output import note, print_text
from ladon_storage.errors import ConfigurationError

_DEFAULT = "http://127.0.0.1:8080"
_LONGEST = 65536


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
    except ValueError:  # a bracket without its other one
        parts = urlsplit("")
    has_user = parts.username is not None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.query
        or parts.fragment
        or (is_given and has_user)
    ):
        raise ConfigurationError(
            "The address of the Storage Service cannot be used; write it as https://host:8080, "
            "without a user and a query."
        )
    check_above_zero("--timeout", timeout)
    headers = {"Authorization": _basic(parts.username or "", parts.password or "")}
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    problem = _problem(f"{address}/health", headers if has_user else {}, timeout)
    if problem:
        note(f"The Storage Service at {address} is not healthy: {problem}.")
        return 1
    print_text("healthy")
    return 0


def _basic(user: str, password: str) -> str:
    pair = f"{unquote(user)}:{unquote(password)}"
    return f"Basic {b64encode(pair.encode()).decode()}"


def _problem(url: str, headers: Mapping[str, str], timeout: float) -> str | None:
    # Without the proxies of the environment: a probe asks its own host.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        request = urllib.request.Request(url)  # noqa: S310 - checked above
        for name, value in headers.items():  # which another host, after a redirect, does not get
            request.add_unredirected_header(name, value)
        with opener.open(request, timeout=timeout) as answer:
            found = json.loads(answer.read(_LONGEST))
    except urllib.error.HTTPError as error:
        return f"it answers {error.code}"
    except (OSError, HTTPException) as error:
        return f"it cannot be reached ({getattr(error, 'reason', error)})"
    except ValueError:
        return "its answer is no JSON"
    if not isinstance(found, dict) or found.get("status") != "healthy":
        return "it says so itself"
    return None
