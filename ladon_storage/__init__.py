"""Resume collections exactly where durable data ends, with LADON's Storage Service and Prefect 3.

This is the client's part, which does not import Prefect. The tasks are in `ladon_storage.tasks`,
the blocks in `ladon_storage.blocks`, the settings in `ladon_storage.settings`.

A name is imported at its first use: the command's help needs none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    from ladon_storage.models import Watermark, WatermarkStatus

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
    "__version__",
]

_MODULES = {
    **dict.fromkeys(("CircuitBreaker", "CircuitChange", "CircuitState"), "circuit.breaker"),
    "StorageServiceClient": "client.client",
    "MockStorageClient": "client.mock",
    **dict.fromkeys(("Watermark", "WatermarkStatus"), "models"),
}
"""The module of each name that is not an error."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("ladon-storage")
    else:
        module = import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
        found = getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
