"""Collect CISA's live catalogue into SQLite, and once more, through the same flow.

Needs the internet, and no key. Watermarks and records stay in ``.demo/kev/``, so that tomorrow's
call goes on where today's ended. Exits with 1 if a run failed.
"""

from __future__ import annotations

import asyncio
import sys

from rich.console import Console
from rich.table import Table

from demo.stage import PROJECT, StorageService, prefect_server, run_flow

console = Console()


async def main(source: dict[str, str]) -> int:
    """Collect ``source`` twice, show what came, and return the exit code."""
    folder = PROJECT / ".demo" / "kev"
    folder.mkdir(parents=True, exist_ok=True)
    sink = folder / "kev.db"
    shown = Table(title=f"In {sink.relative_to(PROJECT)}", title_justify="left")
    for heading in ("run", "ended", "records read", "new or changed", "watermark before", "after"):
        shown.add_column(heading)
    service = StorageService(folder)
    failures = []
    with console.status("Starting a Prefect server of its own (15 to 30 s) …") as status:
        async with prefect_server(folder) as api:
            await service.start()
            try:
                for number in ("1", "2"):
                    status.update(f"Run {number}: collecting the catalogue …")
                    run = await run_flow(folder, api, service.url, source, sink, keep="latest")
                    report = run.report or {}
                    shown.add_row(
                        number,
                        run.ended,
                        str(report.get("records_read", "")),
                        str(report.get("records_written", "")),
                        str(report.get("watermark_before") or "never collected"),
                        str(report.get("watermark_after", "")),
                    )
                    if run.why:
                        failures.append(run.why)
            finally:
                await service.stop()
    console.print(shown)
    for why in failures:
        console.print(why, highlight=False, soft_wrap=True)
    return 1 if failures else 0


if __name__ == "__main__":
    # Another address for a mirror, or for a test without the internet.
    sys.exit(asyncio.run(main({"kind": "kev"} | ({"url": sys.argv[1]} if sys.argv[1:] else {}))))
