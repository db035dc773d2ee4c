"""The flow of `ladon_storage.flows.circuit`, as `prefect.yaml` names them."""

from ladon_storage.flows.circuit import (
    probe_storage,
)

__all__ = [
    "probe_storage",
]
