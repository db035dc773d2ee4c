"""The flow of `ladon_storage.flows.collect_many`, as `prefect.yaml` names them."""

from ladon_storage.flows.collect_many import (
    collect_many,
)

__all__ = [
    "collect_many",
]
