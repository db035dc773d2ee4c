"""A TCP proxy that cuts, holds and refuses: the network between a service and its database."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

from tests.waiting import accepted_begin

_BLOCK = 2**16


class CutProxy:
    """A proxy on a free port of loopback.

    Args:
        url: The address of the server behind it.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._behind = parts.hostname or "", parts.port or 0
        self._url = parts
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.refuses = False
        self.cut_at: bytes | None = None
        """A text in a request; the answer to it is lost with its connection."""
        self.left = 0
        """The bytes of that answer which are let through."""
        self.sent = asyncio.Event()
        """Whether such a request has gone on to the server."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await accepted_begin()
        self._server.close()
        self.cut()
        for each in self._tasks:
            each.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """The address of the server by way of the proxy."""
        port = self._server.sockets[0].getsockname()[1]
        user = self._url.netloc.rpartition("@")[0]
        return self._url._replace(netloc=f"{user}@127.0.0.1:{port}").geturl()

    def cut(self) -> None:
        """Cut every connection, as a network that fails."""
        for each in list(self._writers):
            with suppress(OSError):
                each.transport.abort()

    def hold(self) -> None:
        """Let nothing through, as a network or a server that hangs."""
        self._open.clear()

    def release(self) -> None:
        """Let everything through again."""
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        if self.refuses:
            writer.transport.abort()
            return
        pair = {writer}
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._behind)
            pair.add(far_writer)
            self._writers |= pair
            ends: list[int] = []
            await asyncio.gather(
                self._copy(reader, far_writer, ends, is_answer=False),
                self._copy(far_reader, writer, ends, is_answer=True),
            )
        finally:
            self._writers -= pair
            for each in pair:
                each.transport.abort()

    async def _copy(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: list[int],
        *,
        is_answer: bool,
    ) -> None:
        with suppress(OSError):
            while block := await reader.read(_BLOCK):
                await self._open.wait()
                if is_answer and ends:
                    writer.write(block[: ends[0]])
                    with suppress(OSError):
                        await writer.drain()
                        writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
                    break
                if not is_answer and self.cut_at is not None and self.cut_at in block:
                    ends.append(self.left)
                    self.cut_at = None
                    self.sent.set()
                writer.write(block)
                await writer.drain()
        writer.transport.abort()
