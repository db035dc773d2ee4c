"""The flows of `ladon_storage.flows.collect`, as `prefect.yaml` names them; made at first use."""

from ladon_storage.flows.collect import (
    __getattr__,
    collect,
)

__all__ = [
    "__getattr__",
    "collect",
]
