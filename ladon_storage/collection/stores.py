"""Storages that take the fields of a write as arguments, as the seed's client did."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import Any

from ladon_storage.collection.protocols import WatermarkStore
from ladon_storage.models import UNCONDITIONAL, Precondition, Watermark, WatermarkUpdate


def watermark_store(storage: WatermarkStore) -> WatermarkStore:
    """Return the storage itself, or its adapter where ``update_watermark`` is its own write."""
    return _ByArguments(storage) if _is_written_by_arguments(storage) else storage


def _is_written_by_arguments(storage: WatermarkStore) -> bool:
    """Return whether ``update_watermark`` is what a storage defines, or overrides, itself.

    A subclass of a client that overrides it alone would be passed over otherwise.
    """
    for names in (getattr(storage, "__dict__", {}), *map(vars, type(storage).__mro__)):
        if "put_watermark" in names:
            return False
        if "update_watermark" in names:
            return True
    return not hasattr(storage, "put_watermark")


class _ByArguments:
    """A storage that is written by the arguments which its ``update_watermark`` takes.

    Args:
        storage: The storage; ``lease`` and ``ledger`` are left out where it does not know them.
    """

    def __init__(self, storage: Any) -> None:
        self.health_check = storage.health_check
        self.get_watermark = storage.get_watermark
        if hasattr(storage, "watermark_history"):
            self.watermark_history = storage.watermark_history
        self._update = storage.update_watermark
        parameters = inspect.signature(self._update).parameters
        takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        self._known = {"lease", "ledger"} if takes_any else set(parameters)

    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = UNCONDITIONAL
    ) -> Watermark:
        """Write the watermark and return the stored one."""
        seconds = update.lease_seconds
        more = {
            "lease": None if seconds is None else timedelta(seconds=seconds),
            "ledger": update.ledger,
        }
        stored: Watermark = await self._update(
            source_id,
            update.timestamp,
            update.status,
            update.error_message,
            if_match=precondition.if_match,
            if_none_match=precondition.if_none_match,
            records_collected=update.records_collected,
            run_id=update.run_id,
            **{name: value for name, value in more.items() if name in self._known},
        )
        return stored
