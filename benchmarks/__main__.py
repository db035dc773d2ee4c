"""Take all figures, one script after another."""

from __future__ import annotations

import asyncio

from benchmarks import breaker, client, collection, service
from benchmarks.measuring import is_quick, progress


async def main(*, quick: bool) -> None:
    """Run every script."""
    for script, minutes in ((breaker, 0.5), (client, 1), (service, 2.5), (collection, 5)):
        progress.print(f"{script.__name__}: about {minutes:g} min")
        await script.main(quick=quick)


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Take all figures.")))
