"""The flow of `ladon_storage.flows.reconcile`, as `prefect.yaml` names them."""

from ladon_storage.flows.reconcile import (
    reconcile,
)

__all__ = [
    "reconcile",
]
