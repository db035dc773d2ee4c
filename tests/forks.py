"""Processes that begin as forks of one that has imported Prefect or the flows, which takes seconds.

A run of this module listens at a path: each connection is one process, from the line that describes
it to the line with its exit code. A fork runs its code as a script and ends as a process does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Fork:
    """A process that ends at the latest with its block."""

    def __init__(self, pid: int, folder: Path, reader: asyncio.StreamReader) -> None:
        self.returncode: int | None = None
        self._pid = pid
        self._folder = folder
        self._reader = reader

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._pid, number)

    async def communicate(self) -> tuple[str, str]:
        """Wait for its end, and return what it printed and what it logged."""
        self.returncode = int(await self._reader.readline())
        return (self._folder / "stdout").read_text(), (self._folder / "stderr").read_text()


class Forks:
    """A process that has imported a module, at the path where it is asked to fork."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @asynccontextmanager
    async def run(
        self, code: str, *arguments: str, folder: Path, **environment: str
    ) -> AsyncIterator[Fork]:
        """Run Python code with arguments, as `python -c` does, no longer than the block."""
        reader, writer = await asyncio.open_unix_connection(self._path)
        asked = {
            "code": code,
            "arguments": arguments,
            "folder": str(folder),
            "environment": {**os.environ, **environment},
        }
        writer.write(json.dumps(asked).encode() + b"\n")
        fork = Fork(int(await reader.readline()), folder, reader)
        try:
            yield fork
        finally:
            if fork.returncode is None:
                fork.send_signal(signal.SIGKILL)
                await fork.communicate()
            writer.close()
            await writer.wait_closed()


@contextmanager
def forking(module: str = "ladon_storage.flows.collect", **environment: str) -> Iterator[Forks]:
    """Import ``module`` in a process, with the settings of Prefect that all of its forks have."""
    with tempfile.TemporaryDirectory(prefix="ladon-forks-") as folder:
        path = Path(folder, "s")
        with subprocess.Popen(
            [sys.executable, "-m", "tests.forks", path, module],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            try:
                yield Forks(path)
            finally:
                process.kill()


def _asked(path: str) -> dict[str, Any]:
    """Fork for each connection, and return in a fork what it is to run."""
    keepers = list[int]()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        connection, _ = listening.accept()
        while keeper := os.fork():
            connection.close()
            keepers.append(keeper)
            connection, _ = listening.accept()
            keepers = [each for each in keepers if not os.waitpid(each, os.WNOHANG)[0]]
    with connection, connection.makefile("rw") as lines:
        asked: dict[str, Any] = json.loads(lines.readline())
        if fork := os.fork():
            print(fork, file=lines, flush=True)
            _, status = os.waitpid(fork, 0)
            print(os.waitstatus_to_exitcode(status), file=lines, flush=True)
            os._exit(0)
    return asked


def _become(asked: dict[str, Any]) -> str:
    """Take on the environment and the outputs of a process, and return its code."""
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["-c", *asked["arguments"]]
    # What started the tests may ignore them, as nohup does.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with open(f"{asked['folder']}/{name}", "wb") as file:
            os.dup2(file.fileno(), descriptor)
    return str(asked["code"])


if __name__ == "__main__":
    import_module(sys.argv[2])
    # At the top of the module, where code ends as a script does.
    exec(compile(_become(_asked(sys.argv[1])), "<string>", "exec"), {"__name__": "__main__"})
