"""A server between a flow run and Prefect's, which stalls or goes away on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from yarl import URL


class Away:
    """A port of loopback that passes everything on to a server, until it is told not to.

    Args:
        address: The address of the API behind it.
    """

    def __init__(self, address: str) -> None:
        self._behind = URL(address)
        self._passes = asyncio.Event()
        self._passes.set()
        self._serving: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._serves: set[asyncio.Task[None]] = set()
        self.url = ""

    def stall(self) -> None:
        """Answer nothing more, and keep every connection, as a process that is stopped does."""
        self._passes.clear()

    def go_on(self) -> None:
        """Pass on what waited."""
        self._passes.set()

    def die(self) -> None:
        """Cut every connection, and take no new one, as a process that was killed does."""
        if self._serving is not None:
            self._serving.close()
        for each in self._ends:
            each.transport.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Away]:
        """Serve, and end with every connection."""
        self._serving = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._serving.sockets[0].getsockname()[1]
        self.url = str(self._behind.with_port(port))
        try:
            yield self
        finally:
            self.die()
            for each in self._serves:
                each.cancel()
            if self._serves:
                await asyncio.wait(self._serves, timeout=5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of its own: asyncio's own for a connection calls it an error to be cancelled.
        self._ends.add(writer)
        serving = asyncio.create_task(self._pass_both(reader, writer))
        self._serves.add(serving)
        serving.add_done_callback(self._serves.discard)

    async def _pass_both(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await self._passes.wait()
            behind, there = await asyncio.open_connection(self._behind.host, self._behind.port)
            self._ends.add(there)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, there))
                both.create_task(self._pass(behind, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self._passes.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
