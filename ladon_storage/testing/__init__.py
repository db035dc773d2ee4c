"""The contracts of sources and sinks as test classes of pytest, and the doubles for such tests.

The contracts need pytest, which ``ladon-storage[testing]`` installs. A name is imported at its
first use: nothing else of this package imports pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladon_storage.lazy import offer

if TYPE_CHECKING:
    from ladon_storage.testing.clock import FakeClock
    from ladon_storage.testing.contracts.sinks import SinkContract
    from ladon_storage.testing.contracts.sources import SourceContract, SourceFeed
    from ladon_storage.testing.doubles import (
        LatestSink,
        MemorySink,
        RememberingSink,
        ScriptedSource,
        ScriptedStorage,
        at,
        record,
    )
    from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
    from ladon_storage.testing.judging.judge import Collector, Finding, Verdict, judge
    from ladon_storage.testing.places import SinkPlace, SinkRow

__all__ = [
    "Answer",
    "Asked",
    "Collector",
    "FakeClock",
    "FeedServer",
    "Finding",
    "LatestSink",
    "MemorySink",
    "RememberingSink",
    "ScriptedSource",
    "ScriptedStorage",
    "SinkContract",
    "SinkPlace",
    "SinkRow",
    "SourceContract",
    "SourceFeed",
    "Verdict",
    "at",
    "judge",
    "record",
]

offer(
    __name__,
    {
        "clock": ("FakeClock",),
        "contracts.sinks": ("SinkContract",),
        "contracts.sources": ("SourceContract", "SourceFeed"),
        "doubles": (
            "LatestSink",
            "MemorySink",
            "RememberingSink",
            "ScriptedSource",
            "ScriptedStorage",
            "at",
            "record",
        ),
        "feed_server": ("Answer", "Asked", "FeedServer"),
        "judging.judge": ("Collector", "Finding", "Verdict", "judge"),
        "places": ("SinkPlace", "SinkRow"),
    },
)
