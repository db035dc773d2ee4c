"""The flow of `ladon_storage.flows.backfill`, as `prefect.yaml` names them."""

from ladon_storage.flows.backfill import (
    backfill,
)

__all__ = [
    "backfill",
]
