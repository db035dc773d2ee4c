"""Every error that this package raises on purpose, in one tree.

::

    LadonStorageError
    ├── ConfigurationError (ValueError)      a setting is missing or makes no sense
    ├── CircuitStoreError                    the store of the circuits does not answer
    ├── StorageError                         the Storage Service
    │   ├── CircuitOpenError (RuntimeError)      not called: its circuit is open
    │   │   └── CircuitUndecidedError                not called: unproven calls are in flight
    │   ├── PoolTimeoutError (TimeoutError)      not called: no free slot in the client's pool
    │   ├── StorageUnhealthyError (RuntimeError) the service is not fit for a production run
    │   ├── StorageConnectionError               no response arrived, or only a part of it
    │   │   └── StorageTimeoutError (TimeoutError)
    │   ├── InvalidResponseError                 a response that breaks the contract
    │   └── StorageResponseError                 an error response; has the status
    │       ├── WatermarkConflictError               409 or 412: another run was faster
    │       └── WatermarkInFutureError               422: no watermark can be there yet
    ├── CollectionError                      the source or the sink
    │   ├── SourceBusyError                      another run holds the source
    │   ├── SourceError                          the source failed or changed its shape
    │   └── SinkError                            the sink refused a write
    └── ServiceError                         inside the embedded Storage Service
        ├── RequestError                         a request that it cannot accept; has the status
        └── DatabaseError                        its database did not read or write

Each class carries its facts as fields. Its text names the subject, the fact and the next step. No
error holds a token or a password: not in its text, its fields or the chain of its causes. Its text
may quote a feed, and goes to tracebacks and logs: it is one line that no terminal acts on.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus, urlsplit

_BREAKS = re.compile(r"[\n\r\t]+")


def escaped(text: str) -> str:
    r"""Return a text with escapes in place of what is not printable.

    >>> escaped("kev\x1b[2J and\n2026 INFO a forged line")
    'kev\\x1b[2J and\\n2026 INFO a forged line'
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def visible(text: str) -> str:
    r"""Return a text as one line without secrets, with escapes in place of what is not printable.

    >>> visible("kev\x1b[2J and\n  2026 INFO a forged line")
    'kev\\x1b[2J and 2026 INFO a forged line'
    """
    text = without_secrets(text)
    if text.isprintable():
        return text
    return escaped(" ".join(part.strip() for part in _BREAKS.split(text)).strip())


_MASK = "**********"
_BASIC = re.compile(r"(?i:basic)((?: |%20)+)([A-Za-z0-9+/]{8,}={0,2})")

_SAFE = "!$'()*,;:@/?"
"""What addresses in their usual form do not encode in a query."""

_PERCENT = re.compile("%[0-9A-F]{2}")

_secrets: set[str] = set()

_SHORTEST_SECRET = 6
"""Characters of a text that is replaced: of a shorter one, other texts have it by chance."""


def keep_secret(secret: str) -> None:
    """Let `without_secrets` replace a secret from now on, in this process."""
    try:
        password = urlsplit(secret).password or ""  # of an address
    except ValueError:
        password = ""
    for each in (secret, password):
        if len(each) >= _SHORTEST_SECRET and each.strip("*"):
            _secrets.update(encodings_of(each))
            _longest_first.cache_clear()


@cache
def _longest_first() -> tuple[str, ...]:
    return tuple(sorted(_secrets, key=len, reverse=True))


def without_secrets(text: str) -> str:
    """Return a text without the secrets that this process has looked up."""
    if "asic" in text or "ASIC" in text:
        text = _BASIC.sub(_without_password, text)
    return redacted(text, _longest_first())


def _without_password(header: re.Match[str]) -> str:
    """Return the credentials of an HTTP header, masked where they have a secret that is known."""
    try:
        said = b64decode(header[2]).decode()
    except ValueError:
        return header[0]
    return header[0] if said == redacted(said, _longest_first()) else f"Basic{header[1]}{_MASK}"


def encodings_of(*secrets: str) -> tuple[str, ...]:
    r"""Return secrets in each encoding in which a text may repeat them, the longest first.

    >>> encodings_of("p/w d")
    ('p%2Fw%20d', 'p%2fw%20d', 'p%2Fw+d', 'p%2fw+d', 'p/w%20d', 'p\\/w d', 'p/w d', 'p/w+d')
    """
    encodings = {each for secret in secrets for each in _encodings(secret) if each}
    return tuple(sorted(encodings, key=lambda each: (-len(each), each)))


def _encodings(secret: str) -> Iterator[str]:
    from html import escape  # only where there are secrets: it takes a millisecond

    yield from (secret, " ".join(secret.split()))
    for quoted in (quote, quote_plus):
        for safe in ("", "/", _SAFE):
            percent = quoted(secret, safe=safe)
            yield percent
            yield _PERCENT.sub(lambda found: found[0].lower(), percent)
    escaped_once = json.dumps(secret)[1:-1]
    yield from (escaped_once, json.dumps(escaped_once)[1:-1], escaped_once.replace("/", "\\/"))
    yield from (repr(secret)[1:-1], repr(secret.encode(errors="replace"))[2:-1])
    yield from (escape(secret), escape(secret, quote=False))


def redacted(text: str, encodings: Iterable[str]) -> str:
    """Return a text without secrets, which are given in all encodings, the longest first.

    >>> redacted("GET /?key=p%2Fw failed", encodings_of("p/w"))
    'GET /?key=********** failed'
    """
    for encoding in encodings:
        text = text.replace(encoding, _MASK)
    return text


def told(error: object) -> str:
    """Return the text of an error, or of what stands for one, without secrets.

    Where its class fails to return it, that is said instead.
    """
    try:
        return without_secrets(str(error))
    except Exception as failure:
        return f"its text cannot be shown ({type(failure).__name__})"


class LadonStorageError(Exception):
    """The base class of every error of this package."""

    def __str__(self) -> str:
        return visible(super().__str__())


class ConfigurationError(LadonStorageError, ValueError):
    """Raised when a setting is missing or makes no sense; the text says what to set."""


class CircuitStoreError(LadonStorageError):
    """Raised when a store cannot keep a circuit's record; the circuit continues without it."""


class StorageError(LadonStorageError):
    """The base class of every error of the Storage Service's client.

    ``transient`` says whether the same request may succeed a little later by itself. Retries depend
    on this field alone.
    """

    transient: bool = False


class CircuitOpenError(StorageError, RuntimeError):
    """Raised when a call is rejected without being made, because its circuit is open.

    A rejection must cost next to nothing. The text is composed when it is read, and the fields are
    the arguments, because a constructor would double the cost of raising the error.

    Args:
        name: The service that the circuit protects.
        retry_after: Seconds until the circuit admits a probe. While a probe is in flight, an upper
            bound: the seconds until its lease ends.
    """

    args: tuple[str, float]

    if TYPE_CHECKING:

        def __init__(self, name: str, retry_after: float) -> None: ...

    @property
    def name(self) -> str:
        """The service that the circuit protects."""
        return self.args[0]

    @property
    def retry_after(self) -> float:
        """Seconds until the circuit admits a probe, or an upper bound of them."""
        return self.args[1]

    def __str__(self) -> str:
        return visible(
            f"The circuit of {self.name} is open; it admits a probe in {self.retry_after:.1f} s; "
            "try again then."
        )


class CircuitUndecidedError(CircuitOpenError):
    """Raised while as many unproven calls are in flight as the failure threshold allows.

    It is not known yet whether the service works. A caller that can wait does so until one of those
    calls ends, as `CircuitBreaker.admit` does. ``retry_after`` is an upper bound of that wait.
    """

    def __str__(self) -> str:
        return visible(
            f"As many calls of {self.name} are in flight as may fail before its circuit "
            "opens. Try again when one of them has ended."
        )


class PoolTimeoutError(StorageError, TimeoutError):
    """Raised when no connection of the client's own pool becomes free in time.

    The error says nothing about the service, and does not count towards its circuit.
    """

    transient = True


class StorageUnhealthyError(StorageError, RuntimeError):
    """Raised when the Storage Service fails its health check in production.

    Args:
        message: The whole sentence.
        status: The HTTP status of the response, or ``None`` when none arrived.
    """

    transient = True

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message, status)
        self.message = message
        self.status = status

    def __str__(self) -> str:
        return visible(self.message)


class StorageConnectionError(StorageError):
    """Raised when no response arrives, or only a part of one."""

    transient = True


class StorageTimeoutError(StorageConnectionError, TimeoutError):
    """Raised when the Storage Service does not answer within the client's timeout."""


class InvalidResponseError(StorageError):
    """Raised when a response breaks the contract: not JSON, too large, or of another shape.

    Args:
        message: The whole sentence.
        status: The HTTP status of the response, where there is one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message, status)
        self.message = message
        self.status = status

    def __str__(self) -> str:
        return visible(self.message)


class StorageResponseError(StorageError):
    """Raised when the Storage Service answers with an error status.

    Args:
        message: The whole sentence.
        status: The HTTP status.
        retry_after: Seconds that the service asked to wait, capped; ``None`` where it said nothing.
    """

    def __init__(self, message: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(message, status, retry_after)
        self.message = message
        self.status = status
        self.retry_after = retry_after
        self.transient = status >= 500 or status in (408, 425, 429)

    def __str__(self) -> str:
        return visible(self.message)


class WatermarkConflictError(StorageResponseError):
    """Raised when a watermark is not written, because another run or a later success was faster."""


class WatermarkInFutureError(StorageResponseError):
    """Raised when a watermark is not moved, because it would be far in the service's future."""


class CollectionError(LadonStorageError):
    """The base class of every error of a collection's source and sink.

    Args:
        message: The whole sentence.
        source_id: The source that was being collected, where it is known.
    """

    def __init__(self, message: str, source_id: str | None = None) -> None:
        super().__init__(message, source_id)
        self.message = message
        self.source_id = source_id

    def __str__(self) -> str:
        return visible(self.message)


class SourceError(CollectionError):
    """Raised when a source does not answer, or its response cannot be collected.

    Args:
        message: The whole sentence.
        source_id: The source.
        transient: Whether the same request may succeed a little later by itself.
        retry_after: Seconds that the source asked to wait, capped; ``None`` where it said nothing.
        refutes: Whether the source is not what its settings declare, such as its ids or its order.
            Then the position that the run wrote on its way does not count: it was made under them.
    """

    def __init__(
        self,
        message: str,
        source_id: str | None = None,
        *,
        transient: bool = False,
        retry_after: float | None = None,
        refutes: bool = False,
    ) -> None:
        super().__init__(message, source_id)
        self.transient = transient
        self.retry_after = retry_after
        self.refutes = refutes


class SourceBusyError(CollectionError):
    """Raised when another run holds the source's lease; the text says until when.

    Args:
        message: The whole sentence.
        source_id: The source.
        run_id: The run that holds the lease, where the service names it.
        until: The end of the lease, unless that run renews it.
    """

    def __init__(
        self, message: str, source_id: str, run_id: str | None = None, until: datetime | None = None
    ) -> None:
        super().__init__(message, source_id)
        self.run_id = run_id
        self.until = until


class SinkError(CollectionError):
    """Raised when a sink cannot make records durable."""


class ServiceError(LadonStorageError):
    """The base class of every error inside the embedded Storage Service."""


class RequestError(ServiceError):
    """Raised when the embedded service cannot accept a request; the text says which part, and why.

    Args:
        message: The whole sentence.
        status: The HTTP status of the response, a 4xx.
        field: The wrong field, parameter or header, where the fault is in one.
    """

    def __init__(self, message: str, status: int, field: str | None = None) -> None:
        super().__init__(message, status, field)
        self.message = message
        self.status = status
        self.field = field

    def __str__(self) -> str:
        return visible(self.message)


class DatabaseError(ServiceError):
    """Raised when the embedded service's database fails; nothing was acknowledged."""
