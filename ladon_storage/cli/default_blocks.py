"""The blocks called ``default``, where flows find the Storage Service and the sink unasked.

A user's change of them in the UI stays. Only the port of a service of this host may differ from the
last time, and is corrected.
"""

from __future__ import annotations

import asyncio
import sys

from pydantic import SecretStr

from ladon_storage.blocks import RecordSink, StorageService
from ladon_storage.tasks import DEFAULT_BLOCK

LOOPBACK = "http://127.0.0.1:"


async def save(service: str, sink: str) -> None:
    """Save a block for ``service`` and one for ``sink``, both addresses, where there are none."""
    for kind in (StorageService, RecordSink):  # the logo is at another address with the service
        await kind.register_type_and_schema()
    try:
        storage = await StorageService.aload(DEFAULT_BLOCK)
    except ValueError:
        storage = None
    if storage is None:
        await StorageService(url=service).save(DEFAULT_BLOCK)
    elif storage.url != service and (storage.url or "").startswith(LOOPBACK):
        moved = storage.model_copy(update={"url": service})
        await moved.save(DEFAULT_BLOCK, overwrite=True)
    try:
        await RecordSink.aload(DEFAULT_BLOCK)
    except ValueError:
        await RecordSink(url=SecretStr(sink)).save(DEFAULT_BLOCK)


if __name__ == "__main__":
    asyncio.run(save(*sys.argv[1:]))
