"""The storage that the verbs of ``ladon-storage watermarks`` read and change.

- It is what the file says, or the environment, or ``ladon.db`` here; ``--storage`` goes before all.
- Additions to the base contract are used where the storage has shown them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ladon_storage.client.client import StorageServiceClient
from ladon_storage.collection.credentials import holds_secret
from ladon_storage.connect import new_client
from ladon_storage.embedded import EmbeddedStorage, file_of
from ladon_storage.errors import ConfigurationError, InvalidResponseError
from ladon_storage.models import (
    RUN_LEASE,
    Watermark,
    WatermarkStatus,
    age_seconds,
)
from ladon_storage.project.project import Project
from ladon_storage.settings import VARIABLES, StorageSettings
from ladon_storage.values import check_source_id

MISSING, REFUSED, NOT_OFFERED = 3, 4, 5
"""The exit codes that only verbs of watermarks have."""

Storage = StorageServiceClient | EmbeddedStorage

_PAGE, SMALL_PAGE = 100, 8
"""A page of small watermarks, and one of the largest that fits into a response."""


async def opened(file: Path | None, address: str | None, *, make: bool = False) -> Storage:
    """Return the storage, which answered its health check.

    Args:
        file: The file with the storage's settings; ``None``: the one here, if any.
        address: The storage, instead of what the file or the environment says.
        make: Whether a storage's file that is not there is made.

    Raises:
        ConfigurationError: There is none that lasts, its settings make no sense, or its file is
            not there.
        StorageUnhealthyError: It does not answer.
    """
    from ladon_storage.cli.choosing import load_project, settings_of

    settings = of_address(address) if address else await settings_of(load_project(file))
    if not settings.url:
        raise ConfigurationError(
            "Watermarks are kept in the memory of each process. Set STORAGE_SERVICE_URL, or give "
            "--storage."
        )
    if settings.is_file and not make and not (path := file_of(settings.url)).exists():
        raise ConfigurationError(
            f"There are no watermarks: the file {str(path)!r} is not there, and the first run "
            "makes it. Run it where they are kept, or give --storage."
        )
    strict = settings.model_copy(update={"environment": "production"})
    client = new_client(strict)
    assert isinstance(client, StorageServiceClient | EmbeddedStorage)  # noqa: S101 - it has a URL
    try:
        await client.health_check()
    except BaseException:
        await client.close()
        raise
    return client


def of_address(address: str) -> StorageSettings:
    """Return the settings of an address from the command line.

    Raises:
        ConfigurationError: It is none, or has a password in it.
    """
    if holds_secret(address):
        raise ConfigurationError(
            "The storage's address has a password or a token in it, and every user of this host "
            "sees a command line. Set STORAGE_SERVICE_TOKEN, or STORAGE_SERVICE_URL."
        )
    given = {**os.environ, VARIABLES["url"]: address, VARIABLES["environment"]: "production"}
    return StorageSettings.from_environment(given)


def checked_id(source_id: str) -> str:
    """Return a text that can name a source.

    Raises:
        ConfigurationError: It cannot.
    """
    try:
        return check_source_id(source_id)
    except ValueError as error:
        raise ConfigurationError(f"{source_id[:100]!r} names no watermark: {error}.") from None


def now_of(watermark: Watermark) -> datetime:
    """Return the storage's time of its response, or this host's where the response has none."""
    return watermark.answered_at or datetime.now(UTC)


def held_until(watermark: Watermark | None, now: datetime) -> datetime | None:
    """Return the end of the lease with which a run holds the source; ``None``: no run holds it."""
    if watermark is None or watermark.status != WatermarkStatus.RUNNING:
        return None
    if watermark.last_run_timestamp is None:
        return None
    seconds = watermark.lease_seconds
    lease = RUN_LEASE if seconds is None else timedelta(seconds=seconds)
    until = watermark.last_run_timestamp + lease
    return until if until > now else None


DEAD = "held by a dead run"
"""The state of a source whose run did not end, as the status page has it."""


def state(watermark: Watermark, now: datetime) -> str:
    """Return the outcome of the last run, or that it did not end."""
    if watermark.status == WatermarkStatus.RUNNING and held_until(watermark, now) is None:
        return DEAD
    return str(watermark.status)


class Filters:
    """The watermarks that a user asked for.

    Args:
        prefix: The beginning of their names.
        status: The outcome of their last runs.
        older_than: Hours since their last success; those without one, or in the future, are older.
    """

    def __init__(
        self,
        prefix: str = "",
        status: WatermarkStatus | None = None,
        older_than: float | None = None,
        *,
        stale: bool = False,
    ) -> None:
        if older_than is not None and not 0 <= older_than < 1e7:
            raise ConfigurationError(f"--older-than is {older_than:g}. Set it to 0 or more hours.")
        self.prefix, self.status, self.stale = prefix, status, stale
        self.seconds = None if older_than is None else int(older_than * 3600)

    def admit(self, watermark: Watermark, now: datetime) -> bool:
        """Return whether a watermark is one of them."""
        success = watermark.last_successful_timestamp
        return (
            watermark.source_id.startswith(self.prefix)
            and (self.status is None or watermark.status == self.status)
            and (self.seconds is None or age_seconds(success, now) > self.seconds)
            and (not self.stale or state(watermark, now) == DEAD)
        )


async def listed(
    client: Storage, filters: Filters, project: Project | None
) -> AsyncIterator[tuple[Watermark, datetime]]:
    """Yield the watermarks by their names, each with the storage's time.

    From a service without a list, those of the file's sources.

    Raises:
        NotListedError: The service has no list, and there is no file.
        StorageError: The storage could not be read.
    """
    after, limit, now = None, _PAGE, None
    while True:
        try:
            page = await client.list_watermarks(
                status=filters.status,
                older_than_seconds=filters.seconds,
                stale=True if filters.stale else None,
                prefix=filters.prefix,
                limit=limit,
                after=after,
            )
        except InvalidResponseError:
            if limit == SMALL_PAGE:
                raise
            limit = SMALL_PAGE  # long messages and ledgers make a page larger than a response
            continue
        if page is None:
            break
        for each in page.watermarks:
            if now is None:  # a list does not give the storage's time
                first = await client.get_watermark(each.source_id)
                now = now_of(first or each)
            yield each, now
        after = page.next
        if after is None:
            return
    if project is None:
        raise NotListedError
    for source_id in sorted({project.source(name).source_id for name in project.sources}):
        found = await client.get_watermark(source_id)
        if found is not None and filters.admit(found, now_of(found)):
            yield found, now_of(found)


class NotListedError(Exception):
    """Raised when neither the service nor a file names the watermarks."""


StorageAddress = Annotated[
    str | None,
    Parameter(
        name="--storage",
        help="Address of the storage, instead of what the file or STORAGE_SERVICE_URL says: "
        "http://host:8080 or sqlite:///ladon.db. Its token is in STORAGE_SERVICE_TOKEN.",
    ),
]
