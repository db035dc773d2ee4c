"""The metrics of a run, kept in a Pushgateway after its process ends.

A flow run is a process of its own, which no Prometheus scrapes in time. With
`PUSHGATEWAY_VARIABLE` set, its metrics replace those of the run before it in the same group.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from functools import partial
from urllib.parse import unquote, urlsplit

from prometheus_client import REGISTRY, CollectorRegistry, Metric, push_to_gateway
from prometheus_client.exposition import basic_auth_handler, default_handler
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

    A push that fails is logged, and no error: the run has stored everything by then. A
    ``user:password@`` in the gateway's address becomes basic authentication.

    Args:
        instance: The group in the gateway, such as the source: its next run replaces them.
    """
    gateway = os.environ.get(PUSHGATEWAY_VARIABLE, "").strip()
    if not gateway:
        return False
    try:
        await asyncio.to_thread(_push, gateway, instance)
    except Exception as error:  # also of http.client, and of a collector of this process
        # Its text may have the address, which may hold a password.
        logger.warning(
            "The metrics could not be pushed (%s). See whether %s names a Pushgateway.",
            type(error).__name__,
            PUSHGATEWAY_VARIABLE,
        )
        return False
    return True


def _push(gateway: str, instance: str) -> None:
    if not gateway.lower().startswith(("http://", "https://")):
        gateway = f"http://{gateway}"
    parts = urlsplit(gateway)
    credentials, at, host = parts.netloc.rpartition("@")
    user, _, password = map(unquote, credentials.partition(":"))
    registry = CollectorRegistry()
    registry.register(_Ours())
    push_to_gateway(
        parts._replace(netloc=host).geturl(),
        JOB,
        registry,
        grouping_key={"instance": instance},
        timeout=PUSH_SECONDS,
        handler=partial(basic_auth_handler, username=user, password=password)
        if at
        else default_handler,
    )
