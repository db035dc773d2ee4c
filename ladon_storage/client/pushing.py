"""The metrics of a run, kept in a Pushgateway after its process ends.

A flow run is a process of its own, which no Prometheus scrapes in time. With
`PUSHGATEWAY_VARIABLE` set, its metrics replace those of the run before it in the same group.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Metric, push_to_gateway
from prometheus_client.registry import Collector

import ladon_storage.client.metrics  # noqa: F401 - registers what is pushed

logger = logging.getLogger(__name__)

PUSHGATEWAY_VARIABLE = "LADON_PUSHGATEWAY_URL"
JOB = "ladon-run"
PUSH_SECONDS = 5.0
"""The longest time for a push: the metrics are not worth a longer wait at a run's end."""


class _Ours(Collector):
    """The metrics of this package alone, and not those of the process."""

    def collect(self) -> Iterable[Metric]:
        return (
            metric
            for metric in REGISTRY.collect()
            if metric.name.startswith(("storage_client_", "ladon_"))
        )


async def push_metrics(instance: str) -> bool:
    """Push the metrics of this process, if a Pushgateway is configured; return whether it has them.

    A gateway that does not answer is logged, and no error.

    Args:
        instance: The group in the gateway, such as the source: its next run replaces them.
    """
    gateway = os.environ.get(PUSHGATEWAY_VARIABLE, "").strip()
    if not gateway:
        return False
    registry = CollectorRegistry()
    registry.register(_Ours())

    def push() -> None:
        push_to_gateway(
            gateway, JOB, registry, grouping_key={"instance": instance}, timeout=PUSH_SECONDS
        )

    try:
        await asyncio.to_thread(push)
    except (OSError, ValueError) as error:  # urllib's are OSErrors
        # Its address may hold a password.
        logger.warning(
            "The metrics could not be pushed (%s). See whether %s names a Pushgateway.",
            type(error).__name__,
            PUSHGATEWAY_VARIABLE,
        )
        return False
    return True
