"""Resume collections exactly where durable data ends, with LADON's Storage Service and Prefect 3.

This is the client's part, which does not import Prefect. The tasks are in `ladon_storage.tasks`,
the blocks in `ladon_storage.blocks`, the settings in `ladon_storage.settings`.
"""

from importlib.metadata import version

from ladon_storage.breaker import CircuitBreaker, CircuitChange, CircuitState
from ladon_storage.client import StorageServiceClient
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
from ladon_storage.mock import MockStorageClient
from ladon_storage.models import Watermark, WatermarkStatus

__version__ = version("ladon-storage")

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
