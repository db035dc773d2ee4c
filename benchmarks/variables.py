"""Keep watermarks in Prefect Variables, as a flow would that has nothing else, in its own process.

Each of many tasks has a Variable of its own, and writes and reads it in turn.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from prefect.variables import Variable

from benchmarks.load import WARM_UP_SECONDS, now


async def main(connections: int, seconds: float) -> None:
    """Write and read for a while, and print how often as JSON."""
    operations = 0

    async def worker(number: int) -> None:
        nonlocal operations
        name = f"source_{number}"
        while True:
            await Variable.aset(name, {"timestamp": now(), "status": "success"}, overwrite=True)
            operations += 1
            await Variable.aget(name)
            operations += 1

    workers = [asyncio.create_task(worker(number)) for number in range(connections)]

    async def wait(bound: float) -> None:
        done, _ = await asyncio.wait(workers, timeout=bound, return_when=asyncio.FIRST_EXCEPTION)
        for failed in done:
            failed.result()

    await wait(WARM_UP_SECONDS)
    before, cpu, started = operations, time.process_time(), time.perf_counter()
    await wait(seconds)
    lasted = time.perf_counter() - started
    done, spent = operations - before, time.process_time() - cpu
    for each in workers:
        each.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    print(json.dumps({"per_second": done / lasted, "own_cpu": spent / lasted}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
