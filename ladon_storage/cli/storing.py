"""The storage of a verb that runs without Prefect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ladon_storage.cli.choosing import settings_of
from ladon_storage.collection.sharing import CheckedStorage
from ladon_storage.connect import check_health, share_hosts_of, shared_client
from ladon_storage.project.project import Project


async def checked_storage(
    project: Project | None, named: Callable[[str], Awaitable[str]]
) -> CheckedStorage:
    """Return the storage, which was healthy just now, with the circuit that all runs share.

    Args:
        project: The file, which may name the storage.
        named: Returns the watermark's text for a failure.

    Raises:
        ConfigurationError: The settings make no sense.
        StorageUnhealthyError: It is unhealthy, in production.
    """
    settings = (await settings_of(project)).with_shared_circuit()
    share_hosts_of(settings)
    await check_health(settings)
    return CheckedStorage(shared_client(settings), named)
