"""The states of all sources, for people and for alerts: SQL and rules, and nothing of HTTP.

One query finds the states of all sources, and the sources of a page. The rest (runs, ledgers,
reasons) is read for the sources of the page alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic_core import from_json

from ladon_storage.models import EMPTY_WATERMARK, HONEST_SKEW, RUN_LEASE, WatermarkStatus
from ladon_storage.server.dialect import Connection, Dialect
from ladon_storage.server.rows import folded, from_microseconds, to_length, to_microseconds

LAST_RUNS = 20
"""The runs of a source that a page shows."""
_LINES = 20 * LAST_RUNS
"""The lines of history in which runs are looked for: a run that renews its lease has many."""


class State(StrEnum):
    """The state of a source, the worst first."""

    FUTURE = "in the future"
    HELD = "held by a dead run"
    FAILED = "failed"
    STALE = "stale"
    REFILLED = "sink refilled"
    NEVER = "never collected"
    RUNNING = "running"
    OK = "ok"

    @property
    def is_wrong(self) -> bool:
        """Whether an operator should look at the source."""
        return self not in (State.RUNNING, State.OK)


class SourceState(NamedTuple):
    """The timestamps of a source, and the state that follows from them.

    Args:
        source_id: The source.
        last_success: Its watermark; ``None``: never collected.
        last_run: The time of the last write of a run.
        status: What that run wrote.
        lease: How long a run that is running holds the source after its last write.
        limit: The greatest age that is no fault, where one is configured.
        state: The state.
    """

    source_id: str
    last_success: datetime | None
    last_run: datetime
    status: str
    lease: timedelta
    limit: timedelta | None
    state: State

    def age(self, now: datetime) -> timedelta | None:
        """Return how far the watermark is behind; negative: it is in the future."""
        return None if self.last_success is None else now - self.last_success


class Order(StrEnum):
    """The orders of a list of sources."""

    WORST = "worst"
    NAME = "name"
    OLDEST = "oldest"
    LATEST_RUN = "latest run"


class Listing(NamedTuple):
    """Which sources a page has.

    Args:
        limit: The most sources.
        offset: The sources before the page.
        search: A part of their names, in any case of any script; empty: all.
        prefix: The beginning of their names; empty: all.
        state: Their state; ``None``: any.
        after: The name that they come after.
        order: Their order.
    """

    limit: int
    offset: int = 0
    search: str = ""
    prefix: str = ""
    state: State | None = None
    after: str = ""
    order: Order = Order.WORST


class RunRecord(NamedTuple):
    """One ended run of a source, from the history.

    Args:
        ended_at: When its outcome was written.
        outcome: ``success`` or ``failed``.
        records: The records that it collected.
        seconds: From its beginning to its outcome; ``None``: the beginning is not known.
        run_id: The run.
    """

    ended_at: datetime
    outcome: str
    records: int
    seconds: float | None
    run_id: str | None


class Details(NamedTuple):
    """What a page shows of one source besides its state."""

    error: str | None
    records: int
    run_id: str | None
    ledger: Mapping[str, Any]
    runs: Sequence[RunRecord]
    began_at: datetime | None
    """When the run began that holds the source; ``None``: none does."""
    failures: int
    """The failed runs since the last success; at most as many as are shown."""


NO_DETAILS = Details(None, 0, None, {}, (), None, 0)


class Overview(NamedTuple):
    """The sources of a page, and how many there are.

    Args:
        numbers: The sources in each state, of those whose names the page is about.
        found: The sources that the page was chosen from.
        sources: The sources of the page, each with its details.
    """

    numbers: Mapping[State, int]
    found: int
    sources: Sequence[tuple[SourceState, Details]]


_STATES = tuple(State)
_FOUND = """
    WITH found AS (
        SELECT source_id, last_run_timestamp, status, age,
            ledger LIKE :refilled AS is_refilled,
            coalesce(lease_microseconds, :lease) AS lease,
            nullif(last_successful_timestamp, :empty) AS success
        FROM watermarks LEFT JOIN {limits} USING (source_id)
        WHERE source_id > :after
            AND (:prefix = '' OR substr(source_id, 1, length(:prefix)) = :prefix)
            AND (:search = '' OR {matches})
    ), judged AS (
        SELECT source_id, success, last_run_timestamp, status, lease, age,
            CASE
                WHEN success > :now + :skew THEN 0
                WHEN status = 'running' AND last_run_timestamp + lease < :now THEN 1
                WHEN status = 'failed' THEN 2
                WHEN :now - success > age THEN 3
                WHEN status = 'running' THEN 6
                WHEN success IS NULL THEN 5
                WHEN is_refilled THEN 4
                ELSE 7
            END AS state
        FROM found
    )
"""
"""Each source with its state, as the number of it; the numbers are those of `State`."""

_NUMBERS = "SELECT state, count(*) FROM judged GROUP BY state"
_PAGES = {
    order: f"SELECT * FROM judged WHERE :state = -1 OR state = :state ORDER BY {columns} "  # noqa: S608
    "LIMIT :limit OFFSET :offset"
    for order, columns in {
        Order.WORST: "state, success NULLS FIRST, source_id",
        Order.NAME: "source_id",
        Order.OLDEST: "success NULLS FIRST, source_id",
        Order.LATEST_RUN: "last_run_timestamp DESC, source_id",
    }.items()
}


def overview(
    connection: Connection,
    dialect: Dialect,
    now: datetime,
    limits: Mapping[str, timedelta],
    listing: Listing,
) -> Overview:
    """Return a page of sources with their states.

    Args:
        connection: A connection to the database, which keeps the limits.
        dialect: What the database says differently.
        now: The service's time.
        limits: The greatest age of a source that is no fault, by its name.
        listing: Which sources the page has.
    """
    found = _FOUND.format(limits=dialect.limits, matches=dialect.matches)
    values: dict[str, Any] = {
        "now": to_microseconds(now),
        "skew": to_length(HONEST_SKEW),
        "lease": to_length(RUN_LEASE),
        "empty": to_microseconds(EMPTY_WATERMARK),
        "refilled": '%"sink_behind":{%',
        "search": folded(listing.search),
        "prefix": listing.prefix,
        "after": listing.after,
        "state": -1 if listing.state is None else _STATES.index(listing.state),
        "limit": listing.limit,
        "offset": listing.offset,
        **dialect.keep_limits(connection, limits),
    }
    counted = dict(connection.execute(found + _NUMBERS, values).fetchall())
    numbers = {state: counted.get(number, 0) for number, state in enumerate(_STATES)}
    rows = connection.execute(found + _PAGES[listing.order], values).fetchall()
    sources = [_source(*row) for row in rows]
    return Overview(
        numbers,
        sum(numbers.values()) if listing.state is None else numbers[listing.state],
        [(each, details(connection, each.source_id)) for each in sources],
    )


def source_state(
    connection: Connection,
    dialect: Dialect,
    now: datetime,
    limits: Mapping[str, timedelta],
    source_id: str,
) -> tuple[SourceState, Details] | None:
    """Return one source with its state; ``None``: never collected."""
    listing = Listing(1, prefix=source_id, order=Order.NAME)
    found = overview(connection, dialect, now, limits, listing)
    return next((each for each in found.sources if each[0].source_id == source_id), None)


def _source(
    source_id: str,
    success: int | None,
    last_run: int,
    status: str,
    lease: int,
    age: int | None,
    state: int,
) -> SourceState:
    return SourceState(
        source_id,
        from_microseconds(success),
        from_microseconds(last_run),
        status,
        timedelta(microseconds=lease),
        None if age is None else timedelta(microseconds=age),
        _STATES[state],
    )


def amount(ledger: Mapping[str, Any], name: str) -> float | None:
    """Return a number of a ledger; ``None``: it is missing, or no count and no duration.

    A ledger is a writer's own: one with a number that nothing can show leaves the others visible.

    >>> amount({"pages": 3}, "pages"), amount({"pages": 10**400}, "pages"), amount({}, "pages")
    (3.0, None, None)
    """
    value = ledger.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) <= _MOST else None


_MOST = 10**13
"""More than any run's records, and seconds that a `timedelta` still holds."""


def details(connection: Connection, source_id: str) -> Details:
    """Return what a page shows of one source; empty where it was deleted meanwhile."""
    row = connection.execute(
        "SELECT status, error_message, records_collected, run_id, ledger FROM watermarks "
        "WHERE source_id = ?",
        (source_id,),
    ).fetchone()
    if row is None:
        return NO_DETAILS
    status, error, records, run_id, ledger = row
    runs, began = _runs(connection, source_id)
    failures = next(
        (number for number, run in enumerate(runs) if run.outcome != "failed"), len(runs)
    )
    return Details(
        error,
        records,
        run_id,
        from_json(ledger) if ledger else {},
        runs,
        from_microseconds(began.get(run_id)) if status == WatermarkStatus.RUNNING else None,
        failures,
    )


def _runs(connection: Connection, source_id: str) -> tuple[list[RunRecord], dict[str, int]]:
    """Return the last ended runs, the latest first, and when each run began."""
    began: dict[str, int] = {}
    ended: dict[str, tuple[int, str, int]] = {}
    lines = connection.execute(
        "SELECT at, status, coalesce(records_collected, 0), coalesce(run_id, '#' || version) "
        "FROM history WHERE source_id = ? AND action = 'put' ORDER BY version DESC LIMIT ?",
        (source_id, _LINES),
    )
    # Closed before its end, or its snapshot would be held.
    with closing(lines):
        for at, status, records, run in lines:
            if status == WatermarkStatus.RUNNING:
                began[run] = at
            else:
                # The latest write of a run is its outcome; the ones before it are checkpoints.
                ended.setdefault(run, (at, status, records))
            if len(ended) > LAST_RUNS:
                break
    runs = [
        RunRecord(
            from_microseconds(at),
            status,
            records,
            (at - began[run]) / 1_000_000 if run in began else None,
            None if run.startswith("#") else run,
        )
        for run, (at, status, records) in list(ended.items())[:LAST_RUNS]
    ]
    return runs, began
