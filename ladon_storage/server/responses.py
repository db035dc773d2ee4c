"""The service's responses: JSON from the models, and every error as ``{"error", "field"}``.

All responses pass through ``Protocol``, even those that aiohttp makes before a route is known: for
bytes that are no HTTP, a method that no route takes, an expectation it cannot meet.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel
from pydantic_core import to_json

from ladon_storage.models import REQUEST_ID
from ladon_storage.server.connections import Connections, Wait
from ladon_storage.server.logs import request_id, request_id_of
from ladon_storage.server.requests import MAX_BODY_BYTES

logger = logging.getLogger(__name__)

_JSON = "application/json"
_NO_HEADERS: Mapping[str, str] = {}

_SENTENCES = {
    404: "There is no such route; GET /openapi.json lists all of them.",
    405: "This route does not take the method; its Allow header lists those that it takes.",
    413: f"The body is larger than {MAX_BODY_BYTES} bytes; send less.",
    417: "The expectation cannot be met; send the request without its Expect header.",
    500: "The service failed, and logged why; the request can be sent again.",
}


class Problem(BaseModel):
    """The body of every error response: a sentence, and the wrong field."""

    error: str
    field: str | None = None


class Health(BaseModel):
    """The body of a health check's response."""

    status: Literal["healthy", "unhealthy"]


class Reply(NamedTuple):
    """The JSON of a response with its status, and its version tag if any."""

    body: bytes
    status: int = 200
    etag: str | None = None

    @classmethod
    def of(cls, model: BaseModel, status: int = 200, etag: str | None = None) -> Reply:
        """Return the set fields of a model."""
        # `model_dump_json` calls this and makes a text of it: all set fields, null or not.
        body = model.__pydantic_serializer__.to_json(model, exclude_unset=True)
        return cls(body, status, etag)

    @classmethod
    def refusing(cls, sentence: str, status: int, field: str | None = None) -> Reply:
        """Return a `Problem`."""
        # Not the model's own encoder: a name that a client chose may hold lone surrogates.
        return cls(json.dumps({"error": sentence, "field": field}).encode(), status)

    def response(self, more: Mapping[str, str] = _NO_HEADERS) -> web.Response:
        """Return it as a response of its own, with more headers."""
        headers = {hdrs.CONTENT_TYPE: _JSON, **more}
        if self.etag is not None:
            headers[hdrs.ETAG] = self.etag
        return web.Response(body=self.body, status=self.status, headers=headers)

    def in_batch(self, source_id: str) -> bytes:
        """Return it as one of the answers to a batch."""
        head = to_json({"source_id": source_id, "status": self.status, "etag": self.etag})
        return b'%b,"body":%b}' % (head[:-1], self.body)


def answer(model: BaseModel, status: int = 200, *, etag: str | None = None) -> web.Response:
    """Return a response with the set fields of a model as JSON, and its version tag if any."""
    return Reply.of(model, status, etag).response()


def problem(sentence: str, status: int, field: str | None = None) -> web.Response:
    """Return an error response."""
    return Reply.refusing(sentence, status, field).response()


_UNREADABLE = (web.RequestPayloadError, HttpProcessingError, ConnectionError)


class Protocol(web.RequestHandler):
    """The HTTP of aiohttp, with errors in JSON and without a log of bytes that are no HTTP.

    Args:
        connections: The open connections of the service.
        server: The server whose requests are answered.
        options: Those of aiohttp's handler.
    """

    __slots__ = ("_accepted", "_connections", "address", "since", "waits_for")

    def __init__(self, connections: Connections, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._connections = connections
        self._accepted: asyncio.BaseTransport | None = None
        self.address = ""
        self.waits_for: Wait | None = None
        self.since = 0.0

    def accepted(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, or close the connection where there is none."""
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        self._accepted = transport
        if not self._connections.admit(self):
            self.end()

    def left(self) -> None:
        """Give the place back."""
        self._connections.remove(self)
        self._accepted = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read requests."""
        super().connection_made(transport)
        if self._accepted is None:
            self.accepted(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place back."""
        self.left()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read bytes; the first of another request starts the time for its headers."""
        if self.waits_for == "idle":
            self._connections.wait(self, "headers")
        super().data_received(data)
        if self._messages:
            self.waits_for = None

    def end(self) -> None:
        """Close the connection at once, and drop what was not sent yet."""
        transport = self.transport or self._accepted
        self.force_close()
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log a fault, but not that the rest of a body cannot be read after its answer."""
        if not isinstance(kw.get("exc_info"), _UNREADABLE):
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer bytes that became no request, or a fault below the routes; then disconnect."""
        if status >= 500:
            logger.error("A request failed below its route", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("A part of another answer is sent already")
        said = (message or "").partition("\n")[0].rstrip(": ")
        sentence = _SENTENCES.get(status) or f"The request is not valid HTTP ({said or status})."
        response = problem(sentence, status)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response; an error that aiohttp worded is put into JSON first."""
        if resp.status >= 400 and resp.content_type not in (_JSON, "text/html"):
            worded = problem(_SENTENCES.get(resp.status, f"{resp.reason}."), resp.status)
            if hdrs.ALLOW in resp.headers:
                worded.headers[hdrs.ALLOW] = resp.headers[hdrs.ALLOW]
            resp = worded
        if request.content.exception() is not None:  # aiohttp reads nothing more
            resp.force_close()
        # Not every refusal of aiohttp's has passed the routes.
        resp.headers[REQUEST_ID] = request_id.get("") or request_id_of(
            request.headers.get(REQUEST_ID)
        )
        self._connections.wait(self, "unread")
        finished = await super().finish_response(request, resp, start_time)
        if self._paused:
            await request.writer.drain()
        self.waits_for = None
        if not self._messages:
            self._connections.wait(self, "idle")
        return finished
