"""A small HTTP proxy that tunnels by CONNECT, for tests of connections that must go through one."""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from contextlib import suppress
from typing import Self

from tests.waiting import accepted_begin

_BLOCK = 2**16


class ConnectProxy:
    """A proxy on a free port of loopback, which lets only one user through.

    Args:
        port: The port to which every tunnel leads, whatever host is named.
        user: The user and password, as ``user:password``; empty: any.
        tls: The proxy's certificate; ``None``: it is spoken to without encryption.
        cuts: After how many bytes of a response each tunnel ends, one number for each tunnel.
    """

    def __init__(
        self,
        port: int,
        *,
        user: str = "",
        tls: ssl.SSLContext | None = None,
        cuts: tuple[int, ...] = (),
    ) -> None:
        self._port = port
        self._user = user
        self._tls = tls
        self._cuts = list(cuts)
        self._tasks: set[asyncio.Task[None]] = set()
        self.tunnels: list[str] = []
        self.refused = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        await accepted_begin()
        self._server.close()
        for each in self._tasks:
            each.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """Its address, without a user."""
        scheme = "https" if self._tls else "http"
        return f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._tunnel(reader, writer)
        await _close(writer)

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        proof = f"Basic {b64encode(self._user.encode()).decode()}"
        if self._user and f"Proxy-Authorization: {proof}" not in head:
            self.refused += 1
            writer.write(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
            return
        self.tunnels.append(head.split()[1])
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        cut = self._cuts.pop(0) if self._cuts else -1
        sending = asyncio.create_task(_copy(reader, far_writer, -1))
        try:
            await _copy(far_reader, writer, cut)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await _close(far_writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int) -> None:
    while left and (block := await reader.read(_BLOCK if left < 0 else min(left, _BLOCK))):
        left -= len(block) if left > 0 else 0
        writer.write(block)
        await writer.drain()
