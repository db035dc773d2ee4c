"""Resume collections exactly where durable data ends, with LADON's Storage Service and Prefect 3.

This is the client's part, which does not import Prefect. The tasks are in `ladon_storage.tasks`,
the blocks in `ladon_storage.blocks`, the settings in `ladon_storage.settings`.

A name is imported at its first use: the command's help needs none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ladon_storage.lazy import offer

if TYPE_CHECKING:
    from ladon_storage.circuit.breaker import CircuitBreaker, CircuitChange, CircuitState
    from ladon_storage.client.client import StorageServiceClient
    from ladon_storage.client.mock import MockStorageClient
    from ladon_storage.errors import (
        CircuitOpenError,
        CollectionError,
        ConfigurationError,
        InvalidResponseError,
        LadonStorageError,
        PoolTimeoutError,
        SinkError,
        SourceBusyError,
        SourceError,
        StorageConnectionError,
        StorageError,
        StorageResponseError,
        StorageTimeoutError,
        StorageUnhealthyError,
        WatermarkConflictError,
        WatermarkInFutureError,
    )
    from ladon_storage.models import Precondition, Watermark, WatermarkStatus, WatermarkUpdate

    __version__: str

__all__ = [
    "CircuitBreaker",
    "CircuitChange",
    "CircuitOpenError",
    "CircuitState",
    "CollectionError",
    "ConfigurationError",
    "InvalidResponseError",
    "LadonStorageError",
    "MockStorageClient",
    "PoolTimeoutError",
    "Precondition",
    "SinkError",
    "SourceBusyError",
    "SourceError",
    "StorageConnectionError",
    "StorageError",
    "StorageResponseError",
    "StorageServiceClient",
    "StorageTimeoutError",
    "StorageUnhealthyError",
    "Watermark",
    "WatermarkConflictError",
    "WatermarkInFutureError",
    "WatermarkStatus",
    "WatermarkUpdate",
    "__version__",
]

offer(
    __name__,
    {
        "circuit.breaker": ("CircuitBreaker", "CircuitChange", "CircuitState"),
        "client.client": ("StorageServiceClient",),
        "client.mock": ("MockStorageClient",),
        "errors": (
            "CircuitOpenError",
            "CollectionError",
            "ConfigurationError",
            "InvalidResponseError",
            "LadonStorageError",
            "PoolTimeoutError",
            "SinkError",
            "SourceBusyError",
            "SourceError",
            "StorageConnectionError",
            "StorageError",
            "StorageResponseError",
            "StorageTimeoutError",
            "StorageUnhealthyError",
            "WatermarkConflictError",
            "WatermarkInFutureError",
        ),
        "models": ("Precondition", "Watermark", "WatermarkStatus", "WatermarkUpdate"),
    },
)


def __getattr__(name: str) -> Any:
    """Return the version, which is read at its first use."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    found = globals()[name] = version("ladon-storage")
    return found
