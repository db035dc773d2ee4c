"""Take all figures, one script after another."""

from __future__ import annotations

import asyncio

from benchmarks import breaker, circuit, client, collection, many, service, startup
from benchmarks.measuring import is_quick, progress


async def main(*, quick: bool) -> None:
    """Run every script."""
    scripts = (
        (breaker, 0.5),
        (circuit, 0.5),
        (client, 1),
        (service, 2.5),
        (collection, 5),
        (many, 6),
        (startup, 1),
    )
    for script, minutes in scripts:
        progress.print(f"{script.__name__}: about {minutes:g} min")
        await script.main(quick=quick)


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Take all figures.")))
