"""The engine that collection flows run: sources yield pages of records, sinks make them durable.

It runs in a plain event loop and knows no Prefect, no client and no server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladon_storage.lazy import offer

if TYPE_CHECKING:
    from ladon_storage.collection.protocols import (
        Gap,
        KnownContent,
        Limits,
        Position,
        Sink,
        Source,
        SupportsHistory,
        SupportsLookup,
        SupportsPosition,
        SupportsRemoval,
        SupportsReversion,
        WatermarkStore,
        WriteResult,
    )
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
    "ExtractCallable",
    "Gap",
    "KnownContent",
    "Limits",
    "Page",
    "Position",
    "Record",
    "Reject",
    "Report",
    "Sink",
    "Source",
    "SupportsHistory",
    "SupportsLookup",
    "SupportsPosition",
    "SupportsRemoval",
    "SupportsReversion",
    "WatermarkStore",
    "WriteResult",
    "extract",
    "joined_id",
    "paged",
    "run",
]

offer(
    __name__,
    {
        "protocols": (
            "Gap",
            "KnownContent",
            "Limits",
            "Position",
            "Sink",
            "Source",
            "SupportsHistory",
            "SupportsLookup",
            "SupportsPosition",
            "SupportsRemoval",
            "SupportsReversion",
            "WatermarkStore",
            "WriteResult",
        ),
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
