"""Take all figures, one script after another, or those of the scripts that are named.

Each script's figures are kept in a folder that git ignores, from which `benchmarks.page` writes the
page.
"""

from __future__ import annotations

import argparse
import asyncio
from importlib import import_module

from benchmarks.measuring import Record, progress, tables

MINUTES = {
    "breaker": 0.5,
    "circuit": 0.5,
    "client": 1,
    "service": 2.5,
    "postgresql_service": 4,
    "feed": 10,
    "growth": 3,
    "ten_million": 2,
    "document": 4,
    "nothing_new": 1,
    "many": 6,
    "windows": 2,
    "startup": 3,
}


async def take(script: str, *, quick: bool) -> None:
    """Run a script, and keep what it found."""
    tables.record_of_script = Record()
    await import_module(f"benchmarks.{script}").main(quick=quick)
    tables.record_of_script.save(script, quick=quick)


async def main() -> None:
    """Run the scripts."""
    parser = argparse.ArgumentParser(description="Take figures, and keep them for the page.")
    parser.add_argument("scripts", nargs="*", help=f"some of {', '.join(MINUTES)}")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: no figures")
    asked = parser.parse_args()
    if unknown := set(asked.scripts) - set(MINUTES):
        parser.error(f"there is no script {', '.join(sorted(unknown))}")
    for script in asked.scripts or MINUTES:
        minutes = "" if asked.quick else f": about {MINUTES[script]:g} min"
        progress.print(f"{script}{minutes}")
        await take(script, quick=asked.quick)


if __name__ == "__main__":
    asyncio.run(main())
