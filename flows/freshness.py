"""The flow of `ladon_storage.flows.freshness`, as `prefect.yaml` names them."""

from ladon_storage.flows.freshness import (
    check_freshness,
)

__all__ = [
    "check_freshness",
]
