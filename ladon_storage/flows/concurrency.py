"""An optional queue, in which runs of one source wait for each other instead of failing.

Off unless ``LADON_SOURCE_CONCURRENCY=queue``: the lease on the watermark keeps runs apart anyway,
and a Prefect slot can leak. Prefect's server loses leases at a restart, unless it keeps them in
files; the slot of a run that was killed just before is then never released.

- The slot guarantees nothing. If Prefect cannot give it, renew its lease or release it, the run
  continues: the watermark decides.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from prefect import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import AcquireConcurrencySlotTimeoutError, concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from ladon_storage.collection.standby import WhenBusy
from ladon_storage.collection.summaries import one_line
from ladon_storage.errors import SourceBusyError
from ladon_storage.flows.artifacts import artifact_key, best_effort

logger = logging.getLogger("ladon_storage.flows")

CONCURRENCY_VARIABLE = "LADON_SOURCE_CONCURRENCY"
LEASE_SECONDS = 60  # the least that Prefect takes
WAIT_SECONDS = 3_600.0


def limit_name(source_id: str) -> str:
    """Return the name of a source's limit.

    >>> limit_name("kev")
    'ladon-source-kev'
    """
    return artifact_key(source_id).replace("collection-", "ladon-source-", 1)


@asynccontextmanager
async def source_slot(
    source_id: str, seconds: float = WAIT_SECONDS, *, when_busy: WhenBusy = "fail"
) -> AsyncIterator[None]:
    """Hold the source's slot if the queue is on, after waiting for other runs of the source.

    A run that waits for the lease, or skips the source, needs no slot.

    Raises:
        SourceBusyError: The slot was not free within ``seconds``.
    """
    asked = os.environ.get(CONCURRENCY_VARIABLE, "")
    if asked not in ("", "queue"):
        logger.warning(
            "%s is %r, which is off; 'queue' lets runs of one source wait for each other.",
            CONCURRENCY_VARIABLE,
            asked[:100],
        )
    if asked != "queue" or when_busy != "fail":
        yield
        return
    name = limit_name(source_id)
    slot = concurrency(
        name,
        occupy=1,
        timeout_seconds=seconds,
        lease_duration=LEASE_SECONDS,
        strict=True,
        raise_on_lease_renewal_failure=False,
    )
    held = AsyncExitStack()
    try:
        await _create_if_missing(name)
        await held.enter_async_context(slot)
    except AcquireConcurrencySlotTimeoutError:
        raise SourceBusyError(
            f"Source {source_id!r} was not free within {seconds:.0f} s. If no run of it is "
            f"active, release its slot: prefect gcl update {name} --active-slots 0.",
            source_id,
        ) from None
    except Exception as error:  # whatever Prefect's API says
        logger.warning("Prefect could not give a slot of %s: %s", name, one_line(error))
    try:
        yield
    finally:
        async with best_effort(f"release the slot of {name}"):
            await held.aclose()


async def _create_if_missing(name: str) -> None:
    async with get_client() as client:
        try:
            await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # another run was faster
                await client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=name, limit=1)
                )
