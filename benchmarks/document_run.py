"""One collection of one large document: its peak memory, and how long it held the event loop.

A collection of ten records comes before it, which imports what is imported late.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.contender import Usage
from benchmarks.contenders.ours import Ours
from benchmarks.feeds import FEEDS

TICK = 0.005


async def _longest_hold() -> float:
    """Return, when it is cancelled, by how much the loop was late at its latest."""
    longest, before = 0.0, time.perf_counter()
    try:
        while True:
            await asyncio.sleep(TICK)
            now = time.perf_counter()
            longest, before = max(longest, now - before - TICK), now
    except asyncio.CancelledError:
        return longest


async def _collect(shape: str, url: str, folder: Path) -> dict[str, Any]:
    with TemporaryDirectory() as other:
        server, _, _ = url.partition("/document/")
        await Ours(Path(other), "SQLite", "latest").run(f"{server}/six?count=10", FEEDS["six"])
    ticking = asyncio.create_task(_longest_hold())
    await asyncio.sleep(2 * TICK)
    settings = {"records": "", "paging": {"kind": "none"}, "records_keyed_by_id": shape == "object"}
    start = Usage()
    report = await Ours(folder, "SQLite", "latest").run(url, FEEDS["six"], **settings)
    figures = start.until_now()
    ticking.cancel()
    return {**figures, "hold": await ticking, "records": report.records_written}


def main() -> None:
    """Collect once: the shape, the address of the document, and a folder."""
    shape, url, folder = sys.argv[1:]
    print(json.dumps(asyncio.run(_collect(shape, url, Path(folder)))))


if __name__ == "__main__":
    main()
