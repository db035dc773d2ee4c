"""A server on a free port of loopback whose answers are bytes: also those no library would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from ladon_storage import StorageServiceClient
from ladon_storage.client.pool import Pool
from tests.waiting import accepted_begin

End = Literal["stay", "close", "reset", "stall"]


@dataclass(frozen=True)
class Reply:
    """Be the bytes that answer one request, and what becomes of the connection then.

    ``stay`` waits for the next request, ``close`` hangs up in order, ``reset`` does not, ``stall``
    says nothing more. ``pause`` is the seconds between one byte and the next, from byte
    ``pause_from`` on.
    """

    data: bytes = b""
    end: End = "stay"
    pause: float | None = None
    pause_from: int = 0


def http(
    status: int = 200,
    body: bytes = b"",
    *headers: str,
    length: int | None = None,
    end: End = "stay",
) -> Reply:
    """Return a reply that is well-formed but for what ``headers`` and ``length`` make wrong."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}"]
    return Reply("\r\n".join([*lines, *headers, "", ""]).encode() + body, end)


def watermark(source_id: str = "kev", *headers: str, **fields: object) -> Reply:
    """Return the answer with a watermark of ``source_id``."""
    document = {"source_id": source_id, "status": "success", **fields}
    return http(200, json.dumps(document).encode(), *headers)


class RawServer:
    """Give the replies one after another, to whatever connection asks; the last again and again.

    Args:
        script: The replies; a callable makes one of the request's bytes.
        tls: Makes it speak TLS.
        host: Its address.
        port: Its port; any free one unless given.
    """

    def __init__(
        self,
        *script: Reply | Callable[[bytes], Reply],
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
    ) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._script = list(script)
        self._tls = tls
        self._host, self._port = host, port or 0
        self._arrived: asyncio.Queue[bytes] = asyncio.Queue()
        self._leaving = asyncio.Event()
        self._changed = asyncio.Condition()
        self._under_way: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    @property
    def url(self) -> str:
        """Its address."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._serve, self._host, self._port, ssl=self._tls
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await accepted_begin()
        self._server.close()
        self.hang_up()
        for writer in self._under_way.values():
            writer.transport.abort()
        await asyncio.gather(*self._under_way)

    async def request(self) -> bytes:
        """Wait for the next request that arrives whole, and return its bytes."""
        return await asyncio.wait_for(self._arrived.get(), 10)

    def hang_up(self) -> None:
        """Close the connections that stall, and stall no more."""
        self._leaving.set()

    async def left(self) -> None:
        """Wait until no connection is open."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: not self._under_way)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._under_way[task] = writer
        self.connections += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._answer(reader, writer):
                    pass
        finally:
            writer.close()
            del self._under_way[task]
            async with self._changed:
                self._changed.notify_all()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request, and tell whether the connection stays."""
        request = await reader.readuntil(b"\r\n\r\n")
        if length := re.search(rb"(?i)content-length: (\d+)", request):
            request += await reader.readexactly(int(length[1]))
        made = self._script[min(len(self.requests), len(self._script) - 1)]
        self.requests.append(request)
        self._arrived.put_nowait(request)
        reply = made(request) if callable(made) else made
        at_once = len(reply.data) if reply.pause is None else reply.pause_from
        writer.write(reply.data[:at_once])
        await writer.drain()
        for byte in reply.data[at_once:]:
            await asyncio.sleep(reply.pause or 0)
            if writer.is_closing():
                return False
            writer.write(bytes([byte]))
        if reply.end == "stall":
            await self._leaving.wait()
        elif reply.end == "reset":
            # A socket that does not linger says goodbye with a reset.
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        return reply.end == "stay"


@asynccontextmanager
async def served(
    *script: Reply | Callable[[bytes], Reply], tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[tuple[StorageServiceClient, RawServer]]:
    """Hand out a client with these options, and the server of these replies that it asks."""
    async with (
        RawServer(*script, tls=tls) as server,
        StorageServiceClient(server.url, **{"timeout": 10, **options}) as client,
    ):
        yield client, server


async def slot_of(client: StorageServiceClient) -> Pool:
    """Take one of the places for requests of a client, as another caller does."""
    return await client._pools.take(1)
