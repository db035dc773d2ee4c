"""The one place that translates aiohttp's errors and the service's refusals into this package's."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import aiohttp
from aiohttp import hdrs

from ladon_storage.client.pool import MAX_HEADER_BYTES
from ladon_storage.client.redaction import Address, redact_url
from ladon_storage.client.responses import object_of
from ladon_storage.client.retry_after import retry_after as wait_of
from ladon_storage.client.tls_failures import tls_failure
from ladon_storage.errors import (
    CircuitOpenError,
    InvalidResponseError,
    PoolTimeoutError,
    StorageConnectionError,
    StorageError,
    StorageResponseError,
    StorageTimeoutError,
    WatermarkConflictError,
    WatermarkInFutureError,
)
from ladon_storage.values import instant_of

MAX_RETRY_AFTER_SECONDS = 300.0

_PLACES = (
    "The token is that of STORAGE_SERVICE_TOKEN or, beside a url in ladon.toml, the one that token "
    "under [storage] names."
)

_TOO_LONG = "Got more than"
"""The beginning of aiohttp's text about a header beyond `MAX_HEADER_BYTES`."""


def is_failure(error: BaseException) -> bool:
    """Return whether an error is evidence that the service is failing."""
    if isinstance(error, StorageResponseError):
        return error.status >= 500
    return isinstance(error, StorageConnectionError | InvalidResponseError)


def refusal(
    address: Address, status: int, headers: Mapping[str, str], method: str, body: bytes
) -> StorageError:
    """Return the error of a refusal, with the service's own sentence in it."""
    said = address.excerpt(body)
    if status in (409, 412):
        return WatermarkConflictError(
            said or f"The {method} was refused: another run was faster; read it again.", status
        )
    if status == 422 and said and (object_of(body) or {}).get("field") == "timestamp":
        # Of a PUT's timestamp nothing else can be wrong: it was checked before it was sent.
        return WatermarkInFutureError(said, status)
    location = headers.get(hdrs.LOCATION)
    if status < 400 and location is not None:
        place = address.redact(redact_url(location))
        said = f"it redirects to {place}; set that address."
    if status == 401:  # the service cannot know where this client has its token from
        said = f"{said.rstrip('.')}. {_PLACES}" if said else _PLACES
    # By the clock that sent the timestamp.
    now = instant_of(headers.get(hdrs.DATE)) or datetime.now(UTC)
    retry_after = wait_of(headers.get(hdrs.RETRY_AFTER), now, MAX_RETRY_AFTER_SECONDS)
    return StorageResponseError(
        f"{address.place} answered {status} to {method}: {said or _next_step(status)}",
        status,
        retry_after,
    )


def translated(
    address: Address, error: aiohttp.ClientError | OSError, method: str, timeout: float
) -> StorageError:
    """Return this package's error for one of aiohttp; the order of the tests decides."""
    place = address.place
    if isinstance(error, TimeoutError):
        return StorageTimeoutError(
            f"{place} did not answer {method} within {timeout:g} s; see whether it is "
            "overloaded, or raise the timeout."
        )
    if told := tls_failure(error):
        reason, step = told
        failure = StorageConnectionError(
            f"{place} could not be reached by TLS: {reason} ({type(error).__name__}); {step}."
        )
        failure.transient = False
        return failure
    if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError):
        return StorageConnectionError(
            f"{place} could not be reached, or hung up during {method} "
            f"({type(error).__name__}); see whether it runs."
        )
    # Among them ClientResponseError: aiohttp's own 400 for what is not HTTP.
    is_long = isinstance(error, aiohttp.ClientResponseError) and error.message.startswith(_TOO_LONG)
    what = (
        f"a header of more than {MAX_HEADER_BYTES} bytes"
        if is_long
        else "something that is not HTTP"
    )
    return InvalidResponseError(
        f"{place} answered {method} with {what} ({type(error).__name__}); see what answers there."
    )


def _next_step(status: int) -> str:
    if status == 403:
        return "check the token."
    return "try again later." if status >= 500 or status == 429 else "check its address."


def error_type(error: Exception) -> str:
    """Return the error's label in metrics and logs."""
    if isinstance(error, CircuitOpenError):
        return "circuit_breaker_open"
    if isinstance(error, StorageResponseError):
        return "http_error"
    if isinstance(error, StorageConnectionError | PoolTimeoutError):
        return "client_error"
    return "unexpected_error"


def log_fields(
    source_id: str | None, error_type: str, status: int | None, request_id: str | None
) -> dict[str, Any]:
    """Return the fields of a log record about a failure."""
    facts = {
        "source_id": source_id,
        "error_type": error_type,
        "status": status,
        "request_id": request_id,
    }
    return {name: value for name, value in facts.items() if value is not None}
