"""Ten million records into Delta beside a million: whether memory stays flat."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.growth import fill
from benchmarks.measuring import describe, is_quick, table, tables, verdict
from benchmarks.processes import feeds

MEMORY_GROWTH = 1.25


async def main(*, quick: bool) -> None:
    """Fill Delta twice, once each, and print the peaks."""
    describe("ladon-storage", "deltalake", "pyarrow")
    sizes = (1_000, 3_000) if quick else (1_000_000, 10_000_000)
    shows = table("Into Delta, one run each", ("records",), ("MiB above imports", "seconds", "CPU"))
    peaks = []
    async with feeds() as server:
        for records in sizes:
            with TemporaryDirectory() as folder:
                found = await fill("Delta", server, records, Path(folder))
            peaks.append(found["mebibytes"])
            figures = (f"{found[each]:,.1f}" for each in ("mebibytes", "seconds", "cpu"))
            shows.add_row(f"{records:,}", *figures)
    tables.print(shows)
    what = f"Delta: peak memory, {sizes[1]:,} beside {sizes[0]:,}"
    verdict(what, [peaks[1] / peaks[0]], MEMORY_GROWTH, at_most=True)


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Measure the memory of ten million records into Delta.")))
