"""The client of the Storage Service, its connections, metrics and mock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladon_storage.lazy import offer

if TYPE_CHECKING:
    from ladon_storage.client.client import StorageServiceClient
    from ladon_storage.client.mock import MockStorageClient

__all__ = [
    "MockStorageClient",
    "StorageServiceClient",
]

offer(
    __name__,
    {
        "client": ("StorageServiceClient",),
        "mock": ("MockStorageClient",),
    },
)
