"""How the processes of ``ladon-storage up`` end when it is killed."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from pathlib import Path

import pytest

from ladon_storage.cli.local import ended, started
from ladon_storage.cli.up import held
from ladon_storage.errors import ConfigurationError

PART = ("part", "http.server", "--bind", "127.0.0.1", "0")
STEP_SECONDS = 60
"""A bound far beyond what a busy machine takes; no test waits for it."""

UP = f"""
import asyncio, pathlib, sys
from ladon_storage.cli.local import started
from ladon_storage.cli.up import held

async def main():
    with held(pathlib.Path(sys.argv[1])) as lock:
        part = await started(*{PART!r}, lock=lock)
        print(part.pid, flush=True)
        await part.wait()

asyncio.run(main())
"""

@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends them")
async def test_parts_of_up_end_when_it_is_killed(tmp_path: Path) -> None:
    """Nothing collects on in a stack that nobody has, and the next start is not refused."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", UP, str(tmp_path), stdout=PIPE, stderr=DEVNULL
    )
    assert process.stdout is not None
    part = int(await process.stdout.readline())
    process.kill()
    try:
        async with asyncio.timeout(STEP_SECONDS):
            await process.stdout.read()  # the part has its other end, too
            with (tmp_path / "lock").open() as lock:
                await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
    finally:
        await process.wait()
        with suppress(ProcessLookupError):
            os.kill(part, signal.SIGKILL)


async def test_part_that_goes_on_is_named_and_refuses_the_next_up(tmp_path: Path) -> None:
    """Two servers over one database would take each other's runs, whoever started the first."""
    with held(tmp_path) as lock:
        part = await started(*PART, stdout=DEVNULL, stderr=DEVNULL, lock=lock)
    try:
        with pytest.raises(ConfigurationError, match=rf"part \({part.pid}\)"), held(tmp_path):
            pass
    finally:
        await ended(part)
    with held(tmp_path):
        pass
