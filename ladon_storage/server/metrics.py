"""The service's Prometheus instruments: requests when they end, sources when they are scraped.

- A label is a route, a method, a status or the name of a stored source. It is never a client's text
  under which nothing is stored.
- A scrape stays small: it has the numbers of sources by state, and each of up to `MAX_SOURCES`
  sources. Where there are more, these are the ones in the worst states, and then the oldest.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import accumulate
from typing import NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ladon_storage.models import age_seconds
from ladon_storage.server.connections import Reason
from ladon_storage.server.overview import Details, Overview, SourceState, State, amount

MAX_SOURCES = 400
"""The most sources of one scrape."""
MAX_NAME_BYTES = 24_000
"""The most bytes of their names together: each is on some twenty lines."""


class Scraped(NamedTuple):
    """One source of a scrape."""

    state: SourceState
    details: Details


_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ServiceMetrics:
    """The counts and durations of requests, in a separate registry for each service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = _Requests()
        self._registry.register(self._requests)
        self._closed = Counter(
            "storage_service_connections_closed",
            "Connections that the service closed or could not accept.",
            ("reason",),
            registry=self._registry,
        )
        # From 0 on: a rate does not see the first count of a series.
        for reason in get_args(Reason):
            self._closed.labels(reason)
        self._conflicts: Tally[str] = Tally()

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request.

        Args:
            method: Its method; one that no route takes is counted as ``other``.
            route: The pattern of its route, not its path.
            status: The status of the response.
            seconds: The duration.
        """
        self._requests.add(method if method in _METHODS else "other", route, status, seconds)

    def closed(self, reason: str) -> None:
        """Count one connection that the service closed or could not accept."""
        self._closed.labels(reason).inc()

    def conflict(self, source_id: str) -> None:
        """Count a write of a stored source that was refused: another run was faster."""
        self._conflicts[source_id] += 1

    def text(self, overview: Overview, now: datetime, lost_changes: int = 0) -> bytes:
        """Return everything in Prometheus's text format.

        Args:
            overview: The numbers of sources, and the sources that are listed one by one.
            now: The timestamp that ages are counted to.
            lost_changes: The acknowledged changes that the database was found to lack.
        """
        sources = CollectorRegistry()
        sources.register(_Sources(overview, self._conflicts, now))
        sources.register(_Lost(lost_changes))
        return generate_latest(self._registry) + generate_latest(sources)


class _Durations:
    """The durations of the requests of one method to one route."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.seconds = 0.0


class _Requests(Collector):
    """The counts and durations of requests, for one thread.

    The client's own instruments take a lock for each number, and look at each bucket.
    """

    def __init__(self) -> None:
        self._began = time.time()
        self._counts: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self._durations: defaultdict[tuple[str, str], _Durations] = defaultdict(_Durations)

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._counts[method, route, status] += 1
        durations = self._durations[method, route]
        durations.counts[bisect_left(_BUCKETS, seconds)] += 1
        durations.seconds += seconds

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "storage_service_requests", "Requests answered.", labels=["method", "route", "status"]
        )
        # Copies, in one step each: the event loop counts on meanwhile.
        for (method, route, status), count in list(self._counts.items()):
            requests.add_metric([method, route, str(status)], count, created=self._began)
        yield requests
        latency = HistogramMetricFamily(
            "storage_service_latency_seconds",
            "Time from a request's headers to its answer.",
            labels=["method", "route"],
        )
        for labels, durations in list(self._durations.items()):
            sums = accumulate(list(durations.counts))
            buckets = zip([*map(str, _BUCKETS), "+Inf"], sums, strict=True)
            latency.add_metric(list(labels), list(buckets), durations.seconds)
        yield latency


class _Sources(Collector):
    def __init__(self, overview: Overview, conflicts: Tally[str], now: datetime) -> None:
        self._numbers = overview.numbers
        self._scraped = _fitting(Scraped(*each) for each in overview.sources)
        self._conflicts = conflicts
        self._now = now

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        by_state = GaugeMetricFamily(
            "storage_service_sources", "Sources by state.", labels=["state"]
        )
        for state in State:
            by_state.add_metric([state], self._numbers[state])
        yield by_state
        yield GaugeMetricFamily(
            "storage_service_sources_listed",
            "Sources of this scrape; where there are more, the worst and the oldest.",
            value=len(self._scraped),
        )
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(f"storage_service_{name}", text, labels=["source_id"])
            for each in self._scraped:
                if (number := value(each, self._now)) is not None:
                    gauge.add_metric([each.state.source_id], number)
            yield gauge
        state_of = GaugeMetricFamily(
            "storage_service_source_state",
            "1 for the state that a source has.",
            labels=["source_id", "state"],
        )
        outcome_of = GaugeMetricFamily(
            "storage_service_last_outcome",
            "1 for the outcome of a source's last run.",
            labels=["source_id", "outcome"],
        )
        conflicts = CounterMetricFamily(
            "storage_service_conflicts",
            "Writes of a source that were refused, since another run was faster.",
            labels=["source_id"],
        )
        for each in self._scraped:
            source_id = each.state.source_id
            state_of.add_metric([source_id, each.state.state], 1)
            if each.details.runs:
                outcome_of.add_metric([source_id, each.details.runs[0].outcome], 1)
            conflicts.add_metric([source_id], self._conflicts[source_id])
        yield from (state_of, outcome_of, conflicts)


class _Lost(Collector):
    def __init__(self, changes: int) -> None:
        self._changes = changes

    def collect(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily(
            "storage_service_lost_changes",
            "Acknowledged changes that the database was found to lack, as after a failover.",
            value=self._changes,
        )


def _fitting(sources: Iterable[Scraped]) -> list[Scraped]:
    """Return as many sources as keep a scrape small, whatever their names."""
    fitting: list[Scraped] = []
    characters = 0
    for each in sources:
        characters += len(each.state.source_id.encode())
        if fitting and characters > MAX_NAME_BYTES:
            break
        fitting.append(each)
    return fitting


def _is_in(state: State) -> Callable[[Scraped, datetime], float]:
    return lambda each, _: float(each.state.state is state)


def _ledger(name: str) -> Callable[[Scraped, datetime], float | None]:
    return lambda each, _: amount(each.details.ledger, name)


def _has(name: str) -> Callable[[Scraped, datetime], float | None]:
    def value(each: Scraped, _: datetime) -> float | None:
        ledger = each.details.ledger
        return float(bool(ledger.get(name))) if ledger else None

    return value


def _ahead_seconds(each: Scraped, now: datetime) -> float:
    age = each.state.age(now)
    return 0.0 if age is None else max(0.0, -age.total_seconds())


def _limit_seconds(each: Scraped, _: datetime) -> float | None:
    limit = each.state.limit
    return None if limit is None else limit.total_seconds()


_GAUGES: tuple[tuple[str, str, Callable[[Scraped, datetime], float | None]], ...] = (
    (
        "watermark_age_seconds",
        "Time since a source's watermark; infinite where it is missing or in the future.",
        lambda each, now: age_seconds(each.state.last_success, now),
    ),
    (
        "watermark_age_limit_seconds",
        "The greatest age of a source's watermark that is no fault.",
        _limit_seconds,
    ),
    (
        "watermark_in_future",
        "1 where a source's watermark is in the future: it, or the service's clock, is wrong.",
        _is_in(State.FUTURE),
    ),
    (
        "watermark_ahead_seconds",
        "Time by which a source's watermark is in the future.",
        _ahead_seconds,
    ),
    (
        "never_collected",
        "1 where nothing of a source was ever collected.",
        lambda each, _: float(each.state.last_success is None),
    ),
    (
        "last_run_age_seconds",
        "Time since the last write of a source's run.",
        lambda each, now: (now - each.state.last_run).total_seconds(),
    ),
    (
        "run_stale",
        "1 where a source's run does not end: it says running, and was not heard of.",
        _is_in(State.HELD),
    ),
    (
        "running_seconds",
        "Time since the beginning of the run that holds a source; 0 where none does.",
        lambda each, now: (now - (each.details.began_at or now)).total_seconds(),
    ),
    (
        "failures_in_a_row",
        "Runs of a source that failed since its last success; at most 20 are counted.",
        lambda each, _: each.details.failures,
    ),
    (
        "last_run_records",
        "Records that a source's last run collected.",
        lambda each, _: each.details.records,
    ),
    (
        "last_run_seconds",
        "Duration of a source's last run.",
        lambda each, _: each.details.runs[0].seconds if each.details.runs else None,
    ),
    (
        "last_run_delivered",
        "Items that a source delivered to its last run.",
        _ledger("records_delivered"),
    ),
    (
        "last_run_quarantined",
        "Items of a source's last run that could not be used.",
        _ledger("records_quarantined"),
    ),
    (
        "last_run_gap",
        "1 where a source no longer had records that its last run asked for.",
        _has("gap"),
    ),
    (
        "last_run_sink_behind",
        "1 where the sink lacked records that the watermark covers when a source's last run began.",
        _has("sink_behind"),
    ),
    (
        "lateness_seconds",
        "Time within which 99 % of a source's records are seen after their own time.",
        _ledger("lateness_p99_seconds"),
    ),
    (
        "last_run_behind_seconds",
        "Distance of the oldest new record of a source's last run behind the watermark.",
        _ledger("behind_seconds"),
    ),
    (
        "overlap_seconds",
        "Time before the watermark that a source's runs read again.",
        _ledger("overlap_seconds"),
    ),
)
"""Each gauge of a source: its name, its help, and its value; ``None``: the source has none."""
