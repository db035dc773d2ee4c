"""The service's Prometheus instruments: requests when they end, ages when they are scraped.

A label is a route, a method, a status or the name of a stored source. It is never a client's text
under which nothing is stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ladon_storage.models import WatermarkStatus, age_seconds, is_ahead

Instants = tuple[str, datetime | None, datetime, str, timedelta]
"""A source's ``source_id``, last success, last run, status, and lease."""

_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ServiceMetrics:
    """The counts and durations of requests, in a separate registry for each service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "storage_service_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._latency = Histogram(
            "storage_service_latency_seconds",
            "Time from a request's headers to its answer.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        # labels() costs more than the rest of an observation; the combinations are few.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request.

        Args:
            method: Its method; one that no route takes is counted as ``other``.
            route: The pattern of its route, not its path.
            status: The status of the response.
            seconds: The duration.
        """
        method = method if method in _METHODS else "other"
        child = self._children.get((method, route, status))
        if child is None:
            child = (
                self._requests.labels(method, route, str(status)),
                self._latency.labels(method, route),
            )
            self._children[method, route, status] = child
        counter, histogram = child
        counter.inc()
        histogram.observe(seconds)

    def text(self, sources: Iterable[Instants], now: datetime) -> bytes:
        """Return everything in Prometheus's text format.

        Args:
            sources: Each source's timestamps. The age of a source without a success is infinite, so
                an alert on the age sees it. So is the age of a watermark in the future.
            now: The timestamp that ages are counted to.
        """
        ages = CollectorRegistry()
        ages.register(_Ages(sources, now))
        return generate_latest(self._registry) + generate_latest(ages)


class _Ages(Collector):
    def __init__(self, sources: Iterable[Instants], now: datetime) -> None:
        self._sources = list(sources)
        self._now = now

    def collect(self) -> Iterable[GaugeMetricFamily]:
        watermark = GaugeMetricFamily(
            "storage_service_watermark_age_seconds",
            "Time since a source's watermark; infinite where it is missing or in the future.",
            labels=["source_id"],
        )
        in_future = GaugeMetricFamily(
            "storage_service_watermark_in_future",
            "1 where a source's watermark is in the future: it, or the service's clock, is wrong.",
            labels=["source_id"],
        )
        run = GaugeMetricFamily(
            "storage_service_last_run_age_seconds",
            "Time since a source's last run reported its outcome.",
            labels=["source_id"],
        )
        stale = GaugeMetricFamily(
            "storage_service_run_stale",
            "1 where a source's run does not end: it says running, and was not heard of.",
            labels=["source_id"],
        )
        for source_id, succeeded, ran, status, lease in self._sources:
            watermark.add_metric([source_id], age_seconds(succeeded, self._now))
            in_future.add_metric([source_id], float(is_ahead(succeeded, self._now)))
            run.add_metric([source_id], (self._now - ran).total_seconds())
            is_stale = status == WatermarkStatus.RUNNING and self._now - ran > lease
            stale.add_metric([source_id], float(is_stale))
        return watermark, in_future, run, stale
