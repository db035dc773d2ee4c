"""A real HTTP feed on a free port of loopback that gives scripted answers, or those of an API."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from yarl import URL

from ladon_storage.sources.http.hosts import circuit_of, host_circuit_of


@dataclass(frozen=True)
class Answer:
    """One answer of a feed.

    Args:
        body: Its bytes.
        status: Its status.
        headers: Its headers.
        cut_at: The number of bytes after which the connection breaks.
        stall_at: The number of bytes after which nothing more comes.
    """

    body: bytes = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    stall_at: int | None = None

    @classmethod
    def of(cls, document: object) -> Answer:
        """Return the answer with this document as JSON."""
        headers = {"Content-Type": "application/json"}
        return cls(json.dumps(document).encode(), headers=headers)


@dataclass(frozen=True)
class Asked:
    """One request as it arrived; ``body`` is its JSON, or ``None``."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


Play = Callable[[Asked], Answer]


class FeedServer:
    """A feed that gives the answers of its script in turn; then those of ``play``, or 410.

    Args:
        script: The first answers.
        tls: Makes it speak TLS.
        play: Returns the answer of a request.
    """

    def __init__(
        self, *script: Answer, tls: ssl.SSLContext | None = None, play: Play | None = None
    ) -> None:
        self.script = deque(script)
        self.play = play
        self.requests: list[str] = []
        self.asks: list[Asked] = []
        self.asked = asyncio.Event()
        self._tls = tls
        self._leaving = asyncio.Event()
        # A handler that stalls ends with the connection, or when the server leaves.
        self._runner = web.AppRunner(
            self._application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        self._port = 0

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self._port = self._runner.addresses[0][1]
        # The port may have been another test's feed, which failed.
        for circuit in (circuit_of(URL(self.url)), host_circuit_of(URL(self.url))):
            circuit.reset()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leaving.set()
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """The address of the feed."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}/feed.json"

    def _application(self) -> web.Application:
        application = web.Application()
        for path in ("/feed.json", "/{path:api/.*}"):
            application.router.add_route("*", path, self._answer)
        return application

    def at(self, path: str) -> str:
        """Return the address of a path below ``/api/``."""
        return f"{self.url.removesuffix('feed.json')}api/{path}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        body = await request.json() if request.can_read_body else None
        self.asks.append(Asked(request.method, request.path, request.query, request.headers, body))
        self.asked.set()
        if self.script:
            answer = self.script.popleft()
        elif self.play is not None:
            answer = self.play(self.asks[-1])
        else:
            return web.Response(status=410, text="the script is over")
        if answer.cut_at is None and answer.stall_at is None:
            return web.Response(body=answer.body, status=answer.status, headers=answer.headers)
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        response.content_length = len(answer.body)
        await response.prepare(request)
        await response.write(answer.body[: answer.cut_at or answer.stall_at])
        if answer.stall_at is not None:
            await self._leaving.wait()
        if request.transport is not None:
            request.transport.close()
        return response
