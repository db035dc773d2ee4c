"""Ask one server as fast as it answers, over many connections, in a process of its own.

Each connection has a source of its own and writes its watermark, reads it, or does both in turn,
the next request when the answer has arrived. A write is conditional where it is asked for as
``CAS``: at the version of the answer before. It speaks just enough HTTP for that, so that it costs
far less than the server which it loads. Anything but a success ends it with a fault.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import cycle

WARM_UP_SECONDS = 0.2


Requests = Generator[bytes, str]
"""Requests, each of which may depend on the version tag of the answer before."""


def request(
    method: str, path: str, fields: dict[str, object] | None = None, if_match: str = ""
) -> bytes:
    """Return a request on the wire, with ``fields`` as JSON if there are any."""
    body = b"" if fields is None else json.dumps(fields).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
    if if_match:
        head += f"If-Match: {if_match}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


def watermarks(number: int, methods: Sequence[str]) -> Requests:
    """Write a watermark of the Storage Service's, and then ask for it by these methods in turn."""
    path = f"/api/v1/watermarks/source-{number}"
    read = request("GET", path)

    def write(if_match: str = "") -> bytes:
        return request("PUT", path, {"timestamp": now(), "status": "success"}, if_match)

    etag = yield write()
    for method in cycle(methods):
        if method == "CAS" and not etag:
            raise RuntimeError("an answer has no version tag, so the next write has no condition")
        etag = yield read if method == "GET" else write(etag if method == "CAS" else "")


def cpu_seconds(process_id: int) -> float:
    """Return the CPU time that a process has used, in user and kernel mode."""
    # The kernel's number of another process's clock, as clock_getcpuclockid(3) makes it.
    return time.clock_gettime(~process_id << 3 | 2)


def now() -> str:
    """Return the present as services write it."""
    return datetime.now(UTC).isoformat()


class Connection:
    """Send one request after another, and count the answers."""

    def __init__(self, port: int, requests: Requests) -> None:
        self.answers = 0
        self.seconds: list[float] = []
        self._requests = requests
        self._received = b""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._send(next(requests))

    def receive(self) -> None:
        """Send the next request when the answer is whole.

        Raises:
            RuntimeError: It is no success, or the server hung up, which should keep the connection.
        """
        data = self.socket.recv(65_536)
        if not data:
            raise RuntimeError("the server hung up")
        received = self._received = self._received + data
        head, end, body = received.partition(b"\r\n\r\n")
        if not end:
            return
        status, length = received[9:12], _content_length(head)
        if status not in (b"200", b"201") or length is None:
            raise RuntimeError(received[:500].decode(errors="replace"))
        if len(body) < length:
            return
        self._received = b""
        self.answers += 1
        self.seconds.append(time.perf_counter() - self._sent)
        self._send(self._requests.send(_etag(head)))

    def _send(self, request: bytes) -> None:
        self._sent = time.perf_counter()
        self.socket.sendall(request)


def _etag(head: bytes) -> str:
    found = _header(head, b"etag")
    return "" if found is None else found.decode()


def _content_length(head: bytes) -> int | None:
    found = _header(head, b"content-length")
    return None if found is None else int(found)


def _header(head: bytes, name: bytes) -> bytes | None:
    # The case of both is kept: a version tag in lower case would be another one.
    place = head.lower().find(b"\r\n%b:" % name)
    return None if place < 0 else head[place + 3 + len(name) :].partition(b"\r\n")[0].strip()


def ask(connections: Sequence[Connection], seconds: float) -> None:
    """Ask over all connections for a while.

    One thread and no event loop: on a machine with few processors, what asks takes the time of what
    is measured.
    """
    end = time.perf_counter() + seconds
    with selectors.DefaultSelector() as ready:
        for each in connections:
            ready.register(each.socket, selectors.EVENT_READ, each)
        while (left := end - time.perf_counter()) > 0:
            for key, _ in ready.select(left):
                key.data.receive()


def main(
    ports: Sequence[int],
    connections: int,
    seconds: float,
    methods: Sequence[str] = ("GET", "PUT"),
    server: int | None = None,
) -> None:
    """Load the server for a while, and print what it did as JSON.

    Args:
        ports: The ports of servers on loopback, which share the connections.
        connections: How many ask at once.
        seconds: How long.
        methods: What each connection asks in turn.
        server: The server's process, whose CPU time a request is printed as well.
    """
    with ExitStack() as stack:
        made = []
        for number in range(connections):
            each = Connection(ports[number % len(ports)], watermarks(number, methods))
            stack.enter_context(each.socket)
            made.append(each)
        ask(made, WARM_UP_SECONDS)
        answers = sum(each.answers for each in made)
        for each in made:
            each.seconds.clear()
        cpu, started = time.process_time(), time.perf_counter()
        of_server = 0.0 if server is None else cpu_seconds(server)
        ask(made, seconds)
        lasted = time.perf_counter() - started
        answers = sum(each.answers for each in made) - answers
        slow = sorted(seconds for each in made for seconds in each.seconds)
        found = {
            "per_second": answers / lasted,
            "own_cpu": (time.process_time() - cpu) / lasted,
            "p99_milliseconds": slow[len(slow) * 99 // 100] * 1000 if slow else 0.0,
        }
        if server is not None:
            found["server_cpu_microseconds"] = (cpu_seconds(server) - of_server) / answers * 1e6
        print(json.dumps(found))


if __name__ == "__main__":
    ports, connections, seconds, *more = sys.argv[1:]
    methods = more[0].split(",") if more else ("GET", "PUT")
    server = int(more[1]) if len(more) > 1 else None
    listening = [int(each) for each in ports.split(",")]
    main(listening, int(connections), float(seconds), methods, server)
