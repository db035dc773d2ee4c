"""Every error that this package raises on purpose, in one tree.

::

    LadonStorageError
    ├── ConfigurationError (ValueError)      a setting is missing or makes no sense
    ├── CircuitStoreError                    where circuits are kept does not answer
    ├── StorageError                         the Storage Service
    │   ├── CircuitOpenError (RuntimeError)      not asked: its circuit is open
    │   │   └── CircuitUndecidedError                or about to open, or not; others find out
    │   ├── PoolTimeoutError (TimeoutError)      not asked: no free slot in our own pool
    │   ├── StorageUnhealthyError (RuntimeError) it is not fit for a production run
    │   ├── StorageConnectionError               no answer arrived, or only a part of it
    │   │   └── StorageTimeoutError (TimeoutError)
    │   ├── InvalidResponseError                 an answer that breaks the contract
    │   └── StorageResponseError                 an answer that says no; has the status
    │       ├── WatermarkConflictError               409 or 412: another run was faster
    │       └── WatermarkInFutureError               422: no watermark can be there yet
    ├── CollectionError                      the source or the sink
    │   ├── SourceBusyError                      another run holds the source
    │   ├── SourceError                          the source failed or changed its shape
    │   └── SinkError                            the sink refused a write
    └── ServiceError                         inside the embedded Storage Service
        ├── RequestError                         a request that it cannot accept; has the status
        └── DatabaseError                        its database did not read or write

Each class carries its facts as fields, and its text is one sentence with the next step. No error
holds a token or a password, neither in its text nor in its fields nor in the chain behind it.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING


class LadonStorageError(Exception):
    """Be the base of every error of this package."""


class ConfigurationError(LadonStorageError, ValueError):
    """Say which setting is missing or makes no sense, and what to set."""


class CircuitStoreError(LadonStorageError):
    """Say that a circuit's record could not be read or kept; the circuit goes on without it."""


class StorageError(LadonStorageError):
    """Be the base of every error of the Storage Service's client.

    ``transient`` says whether the same request may succeed a little later without anybody's help.
    Retries go by it, and by nothing else.
    """

    transient: bool = False


class CircuitOpenError(StorageError, RuntimeError):
    """Say that a call was rejected without being made, because its circuit is open.

    A rejection must cost next to nothing: the text is composed when it is read, and the fields are
    the arguments, because a constructor of its own would double what raising it costs.

    Args:
        name: What the circuit protects.
        retry_after: Seconds until the circuit admits a probe. While one is under way: until its
            lease ends, so that it is an upper bound.
    """

    args: tuple[str, float]

    if TYPE_CHECKING:

        def __init__(self, name: str, retry_after: float) -> None: ...

    @property
    def name(self) -> str:
        """What the circuit protects."""
        return self.args[0]

    @property
    def retry_after(self) -> float:
        """Seconds until the circuit admits a probe, or an upper bound of them."""
        return self.args[1]

    def __str__(self) -> str:
        return (
            f"The circuit of {self.name} is open; it admits a probe in {self.retry_after:.1f} s; "
            "try again then."
        )


class CircuitUndecidedError(CircuitOpenError):
    """Say that as many calls are under way as may fail before the circuit opens.

    Nobody knows yet whether the service works. Who can wait, waits until one of them ends, as
    `CircuitBreaker.admit` does; ``retry_after`` is an upper bound of that.
    """

    def __str__(self) -> str:
        return (
            f"As many calls of {self.name} are under way as may fail before its circuit opens; "
            "try again when one of them has ended."
        )


class PoolTimeoutError(StorageError, TimeoutError):
    """Say that no connection of the client's own pool became free in time.

    It says nothing about the service, and does not count towards its circuit.
    """

    transient = True


class StorageUnhealthyError(StorageError, RuntimeError):
    """Say that the Storage Service failed its health check in production.

    Args:
        message: The whole sentence.
        status: The HTTP status of the answer, or ``None`` when none arrived.
    """

    transient = True

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message, status)
        self.message = message
        self.status = status

    def __str__(self) -> str:
        return self.message


class StorageConnectionError(StorageError):
    """Say that no answer arrived, or only a part of one."""

    transient = True


class StorageTimeoutError(StorageConnectionError, TimeoutError):
    """Say that the Storage Service did not answer within the client's timeout."""


class InvalidResponseError(StorageError):
    """Say that an answer breaks the contract: not JSON, too large, or of another shape.

    Args:
        message: The whole sentence.
        status: The HTTP status of the answer, where there is one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message, status)
        self.message = message
        self.status = status

    def __str__(self) -> str:
        return self.message


class StorageResponseError(StorageError):
    """Say that the Storage Service answered with an error status.

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
        return self.message


class WatermarkConflictError(StorageResponseError):
    """Say that a watermark was not written, because another run or a later success was faster."""


class WatermarkInFutureError(StorageResponseError):
    """Say that a watermark was not moved, because it would be far in the service's future."""


class CollectionError(LadonStorageError):
    """Be the base of every error of a collection's source and sink.

    Args:
        message: The whole sentence.
        source_id: The source that was being collected, where it is known.
    """

    def __init__(self, message: str, source_id: str | None = None) -> None:
        super().__init__(message, source_id)
        self.message = message
        self.source_id = source_id

    def __str__(self) -> str:
        return self.message


class SourceError(CollectionError):
    """Say that a source did not answer, or answered something that cannot be collected.

    Args:
        message: The whole sentence.
        source_id: The source.
        transient: Whether the same request may succeed a little later without anybody's help.
        retry_after: Seconds that the source asked to wait, capped; ``None`` where it said nothing.
    """

    def __init__(
        self,
        message: str,
        source_id: str | None = None,
        *,
        transient: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, source_id)
        self.transient = transient
        self.retry_after = retry_after


class SourceBusyError(CollectionError):
    """Say that another run holds the source, and until when it does.

    Args:
        message: The whole sentence.
        source_id: The source.
        run_id: The run that holds it, where the service tells.
        until: When its lease ends, unless it renews it.
    """

    def __init__(
        self, message: str, source_id: str, run_id: str | None = None, until: datetime | None = None
    ) -> None:
        super().__init__(message, source_id)
        self.run_id = run_id
        self.until = until


class SinkError(CollectionError):
    """Say that a sink could not make records durable."""


class ServiceError(LadonStorageError):
    """Be the base of every error inside the embedded Storage Service."""


class RequestError(ServiceError):
    """Say which part of a request the embedded service cannot accept, and why.

    Args:
        message: The whole sentence.
        status: The HTTP status of the answer, a 4xx.
        field: The field, parameter or header that is wrong, where it is one.
    """

    def __init__(self, message: str, status: int, field: str | None = None) -> None:
        super().__init__(message, status, field)
        self.message = message
        self.status = status
        self.field = field

    def __str__(self) -> str:
        return self.message


class DatabaseError(ServiceError):
    """Say that the embedded service's database did not read or write; nothing was acknowledged."""
