"""The engine that collection flows run: sources yield pages of records, sinks make them durable.

It runs in a plain event loop and knows no Prefect, no client and no server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladon_storage.lazy import offer

if TYPE_CHECKING:
    from ladon_storage.collection.credentials import resolve_secret
    from ladon_storage.collection.json_values import Number, parse_json
    from ladon_storage.collection.ledger import Counts, Gap
    from ladon_storage.collection.protocols import (
        KnownContent,
        Limits,
        Position,
        Run,
        Sink,
        Source,
        SupportsCount,
        SupportsHistory,
        SupportsLookup,
        SupportsPosition,
        SupportsRemoval,
        SupportsReversion,
        WatermarkStore,
        WriteResult,
    )
    from ladon_storage.collection.ranges import TimeRange
    from ladon_storage.collection.records import (
        Completeness,
        Page,
        Record,
        Reject,
        joined_id,
        paged,
    )
    from ladon_storage.collection.run import ExtractCallable, Report, extract, run

__all__ = [
    "Completeness",
    "Counts",
    "ExtractCallable",
    "Gap",
    "KnownContent",
    "Limits",
    "Number",
    "Page",
    "Position",
    "Record",
    "Reject",
    "Report",
    "Run",
    "Sink",
    "Source",
    "SupportsCount",
    "SupportsHistory",
    "SupportsLookup",
    "SupportsPosition",
    "SupportsRemoval",
    "SupportsReversion",
    "TimeRange",
    "WatermarkStore",
    "WriteResult",
    "extract",
    "joined_id",
    "paged",
    "parse_json",
    "resolve_secret",
    "run",
]

offer(
    __name__,
    {
        "credentials": ("resolve_secret",),
        "json_values": ("Number", "parse_json"),
        "ledger": ("Counts", "Gap"),
        "protocols": (
            "KnownContent",
            "Limits",
            "Position",
            "Run",
            "Sink",
            "Source",
            "SupportsCount",
            "SupportsHistory",
            "SupportsLookup",
            "SupportsPosition",
            "SupportsRemoval",
            "SupportsReversion",
            "WatermarkStore",
            "WriteResult",
        ),
        "ranges": ("TimeRange",),
        "records": (
            "Completeness",
            "Page",
            "Record",
            "Reject",
            "joined_id",
            "paged",
        ),
        "run": (
            "ExtractCallable",
            "Report",
            "extract",
            "run",
        ),
    },
)
