"""What is killed beside collections: a service over a file, or replicas over PostgreSQL.

Each counts its writes, and dies in the middle of the one that the plan names.

- Replicas stand behind nginx, which gives a request whose replica died to another one.
- One of them is killed every few seconds, whatever else is killed, and is started again.
"""

from __future__ import annotations

import http.client
import json
import mmap
import os
import random
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from chaos.collection import SOURCE
from ladon_storage import cli
from ladon_storage.cli.databases import DATABASE_VARIABLE
from ladon_storage.server.store import WatermarkDatabase
from ladon_storage.testing.processes import START_SECONDS, Child, Nursery

KILL_SECONDS = 5.0
"""The time between two kills of replicas that no plan names."""
HISTORY = (
    "SELECT version, from_timestamp, to_timestamp FROM {history} WHERE source_id = '{source}' "
    "ORDER BY version"
)

Line = tuple[int, Any, Any]


class Fuse:
    """Kill a service at the ``nth`` of its writes from now, before or after it is durable."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)

    def set(self, nth: int, when: str) -> None:
        """Light it; ``nth`` counts from 1, and 0 puts it out."""
        self._memory[:16] = struct.pack("qq", nth, when == "after")

    @property
    def is_out(self) -> bool:
        """Whether it is not lit, or has burnt down."""
        return bool(struct.unpack("qq", self._memory[:16])[0] == 0)

    def burn(self, when: str) -> None:
        """Count a write before it is made, and end the process where that is due."""
        left, after = struct.unpack("qq", self._memory[:16])
        if left == 1 and bool(after) == (when == "after"):
            self.set(0, "")
            os.kill(os.getpid(), signal.SIGKILL)
        if left and when == "after":
            self.set(left - 1, "after" if after else "before")


class Service(Protocol):
    """The service of a world."""

    fuse: Fuse

    @property
    def port(self) -> int:
        """Where it answers."""
        ...

    def has_burnt(self) -> bool:
        """Tell whether the fuse that was lit has killed it."""
        ...

    def kill(self) -> None:
        """Kill it."""
        ...

    def start(self) -> None:
        """Start it, if it was killed, and wait until it answers."""
        ...

    def restart(self, draw: random.Random | None) -> bool:
        """Kill and start it; tell whether it was killed once more while it started."""
        ...

    def history(self) -> list[Line]:
        """Return the lines of the source's history: version, watermark before and after."""
        ...

    def close(self) -> None:
        """End it with its world."""
        ...


def serve(database: str, port: int, fuse: Fuse, pipe: int) -> None:
    """Run ``ladon-storage serve``, which prints its address into ``pipe``.

    Args:
        database: The file; empty: what the environment names.
        port: Where it listens; 0: anywhere.
        fuse: What kills it in a write.
        pipe: The standard output of it.
    """
    os.dup2(pipe, 1)
    put = WatermarkDatabase.put

    async def counted(self: WatermarkDatabase, *arguments: Any, **options: Any) -> Any:
        fuse.burn("before")
        answer = await put(self, *arguments, **options)
        fuse.burn("after")
        return answer

    WatermarkDatabase.put = counted  # type: ignore[method-assign]
    named = ["--database", database] if database else []
    cli.main(["serve", *named, "--port", str(port)])


class OneService:
    """A service over a file in the folder of its world."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        self.fuse = Fuse()
        self._file = folder / "service.db"
        self._log = folder / "service.log"
        self._nursery = nursery
        self._port = 0
        self._child = self._started()

    def _started(self) -> Child:
        work = partial(serve, str(self._file), self._port, self.fuse)
        return self._nursery.fork(work, self._log)

    @property
    def port(self) -> int:
        """Where it answers."""
        if not self._port:
            self._port = int(self._child.line().rpartition(":")[2])
        return self._port

    def has_burnt(self) -> bool:
        """Tell whether the fuse that was lit has killed it."""
        if self.fuse.is_out:
            self._child.wait()
        return self.fuse.is_out

    def kill(self) -> None:
        """Kill it."""
        self._child.kill()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._child = self._started()
        self._child.line()

    def restart(self, draw: random.Random | None) -> bool:
        """Kill and start it; tell whether it was killed once more while it started."""
        assert self.port
        self.kill()
        again = draw is not None and draw.random() < 0.3
        if draw is not None and again:
            starting = self._started()
            time.sleep(draw.random() * 0.02)
            starting.kill()
        self.start()
        return again

    def history(self) -> list[Line]:
        """Return the lines of the source's history."""
        with closing(sqlite3.connect(self._file)) as database:
            return database.execute(HISTORY.format(history="history", source=SOURCE)).fetchall()

    def close(self) -> None:
        """Kill it."""
        self.kill()


class Replicas:
    """Services over one PostgreSQL, behind a balancer; they outlive their worlds.

    Args:
        folder: Where their logs are.
        nursery: Where processes come from.
        url: The address of the database.
        count: How many there are.
        seed: Which of them is killed.
    """

    def __init__(self, folder: Path, nursery: Nursery, url: str, count: int, seed: str) -> None:
        self.fuse = Fuse()
        self.kills = 0
        """The kills that no plan named."""
        self._url = url
        os.environ[DATABASE_VARIABLE] = url
        self._nursery = nursery
        self._ports = [_free_port() for _ in range(count)]
        self.port = _free_port()
        self._draw = random.Random(seed)
        self._keeper = nursery.fork(
            partial(_keep, folder, self._ports, self.fuse, seed), folder / "replicas.log"
        )
        self._nginx = _balancer(folder, self.port, self._ports)
        self._wait()

    def renew(self) -> None:
        """Forget every source, for the next world."""
        self._execute("DELETE FROM ladon_storage.watermarks")
        self._execute("DELETE FROM ladon_storage.history")

    def has_burnt(self) -> bool:
        """Tell whether the fuse that was lit has killed one of them."""
        return self.fuse.is_out

    def kill(self) -> None:
        """Kill one of them, and leave the others."""
        os.kill(self._keeper.pid, signal.SIGUSR1)

    def start(self) -> None:
        """Wait until the balancer answers: who is killed is started again without being asked."""
        self._wait()

    def restart(self, draw: random.Random | None) -> bool:
        """Kill one of them."""
        if draw is not None:
            self.kill()
        self._wait()
        return False

    def history(self) -> list[Line]:
        """Return the lines of the source's history."""
        found = self._execute(HISTORY.format(history="ladon_storage.history", source=SOURCE))
        return [(int(version), before, after) for version, before, after in found]

    def close(self) -> None:
        """Leave them to the next world."""
        self._keeper.hear(time.monotonic())
        self.kills = sum(each["killed"] == "time" for each in self._keeper.said)

    def end(self) -> None:
        """End them."""
        self._keeper.kill()
        self._nginx.terminate()
        self._nginx.wait(START_SECONDS)

    def _execute(self, query: str) -> list[Any]:
        import psycopg

        with psycopg.connect(self._url, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def _wait(self) -> None:
        """Wait for all of them, so that what is killed next is not the last one."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if not all(map(_answers, self._ports)):
                time.sleep(0.02)
                continue
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                with closing(connection):
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        return
            time.sleep(0.02)
        raise RuntimeError("No replica is healthy; read their log.")


def _keep(folder: Path, ports: list[int], fuse: Fuse, seed: str, pipe: int) -> None:
    """Start a service on each port, and again whenever it died; kill one every few seconds."""
    draw = random.Random(seed)
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
    with Nursery() as nursery:
        children: dict[int, Child] = {}
        due = time.monotonic() + KILL_SECONDS
        while True:
            for number, port in enumerate(ports):
                child = children.get(port)
                if child is None or _has_ended(child):
                    if child is not None:
                        child.wait()
                    log = folder / f"replica-{number}.log"
                    children[port] = nursery.fork(partial(serve, "", port, fuse), log)
            # Not the last one: who kills all of them at once is no test of a balancer.
            is_due = time.monotonic() >= due and all(map(_answers, ports))
            if asked or is_due:
                victim = children.pop(draw.choice(ports))
                victim.kill()
                said = {"killed": "time" if is_due else "plan"}
                os.write(pipe, json.dumps(said).encode() + b"\n")
                if is_due:
                    due = time.monotonic() + KILL_SECONDS
                else:
                    asked.pop()
            time.sleep(0.005)


def _has_ended(child: Child) -> bool:
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, child.pid, options) is not None


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _balancer(folder: Path, port: int, ports: list[int]) -> subprocess.Popen[bytes]:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise SystemExit("The replicas need nginx: install it (apt-get install nginx-light).")
    # A replica that is gone refuses at once, so none is left out for a time.
    servers = "\n".join(f"server 127.0.0.1:{each} max_fails=0;" for each in ports)
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"""
        {"user root;" if os.geteuid() == 0 else ""}
        daemon off;
        worker_processes 1;
        pid {folder}/nginx.pid;
        error_log {folder}/nginx.log;
        events {{ worker_connections 512; }}
        http {{
            access_log off;
            {
            "".join(
                f"{kind}_temp_path {folder}/{kind};"
                for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
        }
            upstream replicas {{ {servers} keepalive 16; }}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://replicas;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_set_header Host localhost;
                    proxy_connect_timeout 2s;
                    proxy_next_upstream error timeout;
                }}
            }}
        }}
        """
    )
    return subprocess.Popen([program, "-p", str(folder), "-c", str(configuration)])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def replicas(folder: Path, nursery: Nursery, count: int, seed: str) -> Iterator[Replicas]:
    """Run a PostgreSQL, services over it, and a balancer before them."""
    from tests.postgres import running

    with running() as server:
        made = Replicas(folder, nursery, server.url(server.database()), count, seed)
        try:
            yield made
        finally:
            made.end()
