"""One process that runs against a sink which has records already: a few new ones, or none.

``new`` measures the first run of the process on that sink, after one on an empty sink that imports
what is imported late. ``nothing`` is the median of 15 runs, each with everything made again, with a
client of the service.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.contender import Usage
from benchmarks.contenders.ours import Ours
from benchmarks.feeds import FEEDS, time_of

RUNS = 15
_FEED = FEEDS["six"]


async def _new(ours: Ours, server: str, first: int, count: int) -> dict[str, float]:
    await ours.knows(datetime.fromisoformat(time_of(first - 1)))
    start = Usage()
    report = await ours.run(f"{server}/six?first={first}&count={count}", _FEED)
    figures = start.until_now()
    if report.records_written != count:
        raise SystemExit(f"{report.records_written} records were new, not {count}")
    return figures


async def nothing(ours: Ours, service: str, url: str) -> int:
    """Run with a client of the service, and return how many records were new."""
    from ladon_storage import StorageServiceClient

    async with StorageServiceClient(service) as client:
        ours.storage = client  # type: ignore[assignment]
        report = await ours.run(url, _FEED)
    return int(report.records_written)


def main() -> None:
    """Run once, or often: the sink, its setting, its folder, and what to ask."""
    sink, keep, place, what, *addresses = sys.argv[1:]
    folder = Path(place)
    if what == "new":
        server, first, count = addresses
        with TemporaryDirectory() as other:
            Ours(Path(other), sink, keep).collect(f"{server}/six?count=10", _FEED)
        print(
            json.dumps(asyncio.run(_new(Ours(folder, sink, keep), server, int(first), int(count))))
        )
        return
    service, url = addresses
    asyncio.run(nothing(Ours(folder, sink, keep), service, url))
    taken = []
    for _ in range(RUNS):
        start = Usage()
        if asyncio.run(nothing(Ours(folder, sink, keep), service, url)):
            raise SystemExit("a record was new: this is no figure")
        taken.append(start.until_now())
    kinds = ("seconds", "cpu")
    print(json.dumps({kind: median(each[kind] for each in taken) for kind in kinds}))


if __name__ == "__main__":
    main()
