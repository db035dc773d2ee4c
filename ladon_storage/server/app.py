"""The service's routes: from a checked request to the store, and from its result to JSON.

- Every route but ``OPEN_ROUTES`` asks `access` first, before it reveals whether it exists.
- A label of a metric is a route, a method or a status, never a text that a client chose.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import NamedTuple

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST

from ladon_storage.errors import (
    DatabaseError,
    RequestError,
    WatermarkConflictError,
    WatermarkInFutureError,
)
from ladon_storage.models import (
    BATCH,
    REQUEST_ID,
    SERVICE_TIME,
    Precondition,
    WatermarkDelete,
    WatermarkReset,
    WatermarkUpdate,
)
from ladon_storage.server import requests
from ladon_storage.server.access import Access, Token, check_allowed
from ladon_storage.server.batches import MAX_REQUESTS, Batch, BatchRequest
from ladon_storage.server.logs import request_id, request_id_of
from ladon_storage.server.metrics import MAX_SOURCES, ServiceMetrics
from ladon_storage.server.openapi import document
from ladon_storage.server.overview import Listing, Order
from ladon_storage.server.pages import PAGES, SIGN_IN, SIGN_OUT, SOURCES, STYLE, Pages, to_sign_in
from ladon_storage.server.responses import Health, Reply, answer, problem
from ladon_storage.server.store import WatermarkDatabase

logger = logging.getLogger(__name__)

HEALTH, METRICS, DOCUMENT = "/health", "/metrics", "/openapi.json"
LOGO = "/logo.svg"  # of the blocks in Prefect's UI, which takes only the URL of a picture
OPEN_ROUTES = frozenset({HEALTH, DOCUMENT, LOGO, STYLE})
_SIGN_IN_ROUTES = frozenset({SIGN_IN, SIGN_OUT})

# Says that there are versions, so that a client knows before its first write that it may send
# If-None-Match, and that a 404 without it is not this service's. No version is 0.
_NO_VERSION = '"0"'

# Says that there are batches; on what a client reads, before it writes.
_HAS_BATCHES = {BATCH: str(MAX_REQUESTS)}

_LOGO = Path(__file__).with_name("logo.svg").read_bytes()

_token: ContextVar[Token] = ContextVar("token")
"""The token of the request that is answered."""

WATERMARKS = "/api/v1/watermarks"
# Any segment: an invalid name must be a 400 with its reason. A 404 means never collected.
WATERMARK = WATERMARKS + "/{source_id:[^/]*}"
_BELOW, _CANONICAL = WATERMARKS + "/", WATERMARKS + "/{source_id}"

Answering = Callable[[web.Request, Handler, str], Awaitable[web.StreamResponse]]
"""What surrounds a handler; the text is its route."""


class Routes:
    """The handlers of the routes, over a store.

    Args:
        store: The watermarks.
        metrics: The content of ``/metrics``.
        access: The rules of requests, of which the service's description depends.
    """

    def __init__(self, store: WatermarkDatabase, metrics: ServiceMetrics, access: Access) -> None:
        self._store = store
        self._metrics = metrics
        self._access = access

    def table(self) -> list[web.RouteDef]:
        """Return every route of the service."""
        # The router tries these in turn, and nearly every request is for the first two.
        return [
            web.get(WATERMARK, self.get),
            web.put(WATERMARK, self.put),
            web.delete(WATERMARK, self.delete),
            web.get(WATERMARKS, self.page),
            web.post(WATERMARKS, self.batch),
            web.post(WATERMARK + "/reset", self.reset),
            web.post(WATERMARK + "/delete", self.delete_with_reason),
            web.get(WATERMARK + "/history", self.history),
            web.get(HEALTH, self.health),
            web.get(METRICS, self.metrics),
            web.get(DOCUMENT, self.document),
            web.get(LOGO, self.logo),
        ]

    async def page(self, request: web.Request) -> web.Response:
        """List watermarks, a page at a time."""
        query = requests.query(request, requests.ListQuery)
        return answer(
            await self._store.page(
                status=query.status,
                older_than_seconds=query.older_than_seconds,
                stale=query.stale,
                prefix=query.prefix,
                limit=query.limit,
                after=query.after or "",
            )
        )

    async def get(self, request: web.Request) -> web.Response:
        """Read a watermark."""
        reply = await self._read(requests.source_id(request))
        return reply.response(_HAS_BATCHES)

    async def put(self, request: web.Request) -> web.Response:
        """Store the outcome of a run."""
        source_id, precondition = requests.source_id(request), requests.precondition(request)
        update = await requests.body(request, WatermarkUpdate)
        return (await self._write(source_id, update, precondition, _actor(request))).response()

    async def batch(self, request: web.Request) -> web.Response:
        """Read and write several watermarks, each with an answer of its own."""
        batch = await requests.body(request, Batch)
        answers = await asyncio.gather(*(self._one(request, each) for each in batch.requests))
        return Reply(b'{"answers":[%b]}' % b",".join(answers)).response()

    async def _one(self, request: web.Request, asked: BatchRequest) -> bytes:
        source_id = asked.source_id
        try:
            check_allowed(_token.get(), asked.method, source_id)
            if asked.update is None:
                reply = await self._read(source_id)
            else:
                actor, precondition = _actor(request), asked.precondition
                reply = await self._write(source_id, asked.update, precondition, actor)
        except Exception as error:
            reply = _refusal(request, error, source_id)
        return reply.in_batch(source_id)

    async def _read(self, source_id: str) -> Reply:
        found = await self._store.read(source_id)
        if found is None:
            return _never_collected(source_id)
        body, etag = found
        return Reply(body, etag=etag)

    async def _write(
        self,
        source_id: str,
        update: WatermarkUpdate,
        precondition: Precondition,
        actor: str | None,
    ) -> Reply:
        try:
            stored, created = await self._store.put(source_id, update, precondition, actor=actor)
        except WatermarkConflictError:
            if await self._store.get(source_id) is not None:
                self._metrics.conflict(source_id)
            raise
        return Reply.of(stored, 201 if created else 200, stored.etag)

    async def reset(self, request: web.Request) -> web.Response:
        """Move a watermark to any timestamp, or make one with ``If-None-Match: *``."""
        source_id, precondition = requests.source_id(request), requests.precondition(request)
        reset = await requests.body(request, WatermarkReset)
        watermark = await self._store.reset(source_id, reset, precondition, actor=_actor(request))
        if watermark is None:
            return _never_collected(source_id).response()
        return answer(watermark, etag=watermark.etag)

    async def delete(self, request: web.Request) -> web.Response:
        """Forget a watermark."""
        source_id = requests.source_id(request)
        precondition = Precondition(requests.if_match(request))
        if not await self._store.delete(source_id, precondition, actor=_actor(request)):
            return _never_collected(source_id).response()
        return web.Response(status=204)

    async def delete_with_reason(self, request: web.Request) -> web.Response:
        """Forget a watermark, and record the reason."""
        source_id = requests.source_id(request)
        precondition = Precondition(requests.if_match(request))
        deletion = await requests.body(request, WatermarkDelete)
        was_there = await self._store.delete(
            source_id,
            precondition,
            actor=deletion.actor or request.remote,
            reason=deletion.reason,
        )
        if not was_there:
            return _never_collected(source_id).response()
        return web.Response(status=204)

    async def history(self, request: web.Request) -> web.Response:
        """List the changes of a watermark, a page at a time."""
        source_id = requests.source_id(request)
        query = requests.query(request, requests.HistoryQuery)
        return answer(
            await self._store.history(
                source_id, moved=query.moved, limit=query.limit, before=query.before
            )
        )

    async def health(self, request: web.Request) -> web.Response:
        """Check whether the database reads and writes."""
        try:
            await self._store.check()
        except DatabaseError as error:
            logger.error("Unhealthy: %s", error)  # noqa: TRY400 - the database logged its fault
            return answer(Health(status="unhealthy"), 503)
        return Reply.of(Health(status="healthy"), etag=_NO_VERSION).response(_HAS_BATCHES)

    async def metrics(self, request: web.Request) -> web.Response:
        """Show the metrics."""
        query = requests.query(request, requests.MetricsQuery)
        listing = Listing(MAX_SOURCES)
        if query.sources == "all":
            listing = Listing(query.limit, after=query.after or "", order=Order.NAME)
        found = await self._store.overview(listing)
        text = await asyncio.to_thread(
            self._metrics.text, found, self._store.now(), self._store.lost_changes
        )
        return web.Response(body=text, headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})

    async def document(self, request: web.Request) -> web.Response:
        """Describe the service."""
        body = await asyncio.to_thread(document, asks_token=not self._access.is_open)
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: "application/json"})

    async def logo(self, request: web.Request) -> web.Response:
        """Show the project's logo."""
        return web.Response(body=_LOGO, headers={hdrs.CONTENT_TYPE: "image/svg+xml"})


class InFlight:
    """The number of requests in flight, for which the service waits before it ends."""

    def __init__(self) -> None:
        self._count = 0
        self._none: asyncio.Event | None = None

    @property
    def ending(self) -> bool:
        """Whether each connection ends with its next response."""
        return self._none is not None

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if self._none is not None and not self._count:
            self._none.set()

    async def end(self, timeout_seconds: float) -> None:
        """Wait until no request is in flight, and no longer than ``timeout_seconds``."""
        self._none = asyncio.Event()
        if not self._count:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._none.wait()


def create_service(
    store: WatermarkDatabase,
    *,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    is_local: bool = True,
    prefect_url: str | None = None,
    in_flight: InFlight | None = None,
    metrics: ServiceMetrics | None = None,
) -> Service:
    """Return the service over a store, which stays its caller's to close.

    Args:
        store: The watermarks.
        token: The operator's token, which ``Authorization: Bearer`` must carry; ``None`` requires
            none, unless the store has tokens or others reach the service.
        allowed_hosts: The names that ``Host`` may have besides those of loopback, without a token.
        is_local: Whether only this machine reaches the service.
        prefect_url: The address of Prefect's UI, for links from the status page to runs.
        in_flight: The counter of requests in flight.
        metrics: The content of ``/metrics``.
    """
    metrics = metrics or ServiceMetrics()
    access = Access(token, store, allowed_hosts, is_local=is_local)
    answering = _answering(metrics, access, in_flight or InFlight(), store.now)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        return await answering(request, handler, resource.canonical if resource else "none")

    app = web.Application(middlewares=[middleware], client_max_size=requests.MAX_BODY_BYTES)
    routes = Routes(store, metrics, access)
    app.add_routes(routes.table())
    app.add_routes(Pages(store, access, prefect_url).table())
    return Service(app, answering, {"GET": routes.get, "PUT": routes.put}, routes.batch)


AnyHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Service(NamedTuple):
    """The service's application, and its way past the router.

    Args:
        app: The application, which answers every request.
        answering: What surrounds each handler.
        handlers: The handlers of a watermark, by their methods.
        batch: The handler of a batch of them.
    """

    app: web.Application
    answering: Answering
    handlers: Mapping[str, Handler]
    batch: Handler

    def straight(self, otherwise: AnyHandler) -> AnyHandler:
        """Return a handler of all requests, in which watermarks have no need of the router.

        Nearly every request reads or writes a watermark, and finding its route would cost as much
        as reading it.

        Args:
            otherwise: The application's own handler.
        """
        answering, handlers, batch = self.answering, self.handlers, self.batch

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            assert isinstance(request, web.Request)  # noqa: S101 - the application makes no others
            path = request.rel_url.raw_path
            handler = handlers.get(request.method)
            if hdrs.EXPECT in request.headers:
                return await otherwise(request)
            if handler is None and path == WATERMARKS and request.method == "POST":
                return await answering(request, batch, WATERMARKS)
            if handler is None or not path.startswith(_BELOW) or "/" in path[len(_BELOW) :]:
                return await otherwise(request)
            return await answering(request, handler, _CANONICAL)

        return handle


def _answering(
    metrics: ServiceMetrics,
    access: Access,
    in_flight: InFlight,
    now: Callable[[], datetime],
) -> Answering:
    """Return what surrounds every handler: the access, the errors, the time, the metrics."""
    date = _dates()

    async def allowed(request: web.Request, handler: Handler, route: str) -> web.StreamResponse:
        if route in OPEN_ROUTES:
            return await handler(request)
        is_open = access.is_open
        access.check_origin(request, is_open=is_open)
        if route in _SIGN_IN_ROUTES:
            return await handler(request)
        token = access.of(request, is_open=is_open, is_page=route in PAGES)
        if token is None and route in PAGES:
            return to_sign_in(request)
        if token is None:
            response = problem("Send the service's token: Authorization: Bearer ….", 401)
            response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
            return response
        _token.set(token)
        if route != SOURCES and (token.read_only or token.prefix):
            _check_allowed(request, route, token)
        return await handler(request)

    async def answering(request: web.Request, handler: Handler, route: str) -> web.StreamResponse:
        started = time.perf_counter()
        request_id.set(request_id_of(request.headers.get(REQUEST_ID)))
        status = 500
        try:
            with in_flight:
                try:
                    response = await allowed(request, handler, route)
                except web.HTTPException:
                    raise
                except Exception as error:
                    response = _refusal(request, error).response()
            status = response.status
            # By the clock that dates watermarks, so that a client can compare the two.
            present = now()
            headers = response.headers
            headers[hdrs.DATE] = date(present)
            headers[SERVICE_TIME] = present.isoformat()
        except web.HTTPException as error:
            status = error.status
            raise
        finally:
            metrics.observe(request.method, route, status, time.perf_counter() - started)
        if in_flight.ending:
            response.force_close()
        return response

    return answering


def _refusal(request: web.Request, error: Exception, source_id: str | None = None) -> Reply:
    """Return the reply to a request that failed, and log what its sender did not cause."""
    about = {"source_id": source_id or _source_of(request)}
    match error:
        case RequestError():
            return Reply.refusing(error.message, error.status, error.field)
        case WatermarkConflictError():
            logger.info("%s refused: %s", request.method, error, extra=about)
            field = "timestamp" if error.status == 409 else "If-Match"
            return Reply.refusing(error.message, error.status, field)
        case WatermarkInFutureError():
            logger.info("%s refused: %s", request.method, error, extra=about)
            return Reply.refusing(error.message, error.status, "timestamp")
        case DatabaseError():
            logger.error("%s %r: %s", request.method, request.path, error, extra=about)
            return Reply.refusing(str(error), 503)
    logger.error("%s %r failed", request.method, request.path, exc_info=error, extra=about)
    return Reply.refusing("The service failed, and logged why.", 500)


def _source_of(request: web.Request) -> str | None:
    place = 4 if request.path.startswith(WATERMARKS) else 2
    try:
        return requests.source_id(request, place)
    except (RequestError, IndexError):
        return None


def _dates() -> Callable[[datetime], str]:
    """Return a function that gives a time as an HTTP date, formatted once a second."""
    second, text = datetime.min.replace(tzinfo=UTC), ""

    def date(present: datetime) -> str:
        nonlocal second, text
        if (present := present.replace(microsecond=0)) != second:
            second, text = present, format_datetime(present, usegmt=True)
        return text

    return date


def _check_allowed(request: web.Request, route: str, token: Token) -> None:
    """Check that a limited token may ask for this; a list of its prefix is about its sources."""
    if route == WATERMARKS and request.method == "POST":
        return  # each request of a batch is checked
    if "{source_id}" in route:
        place = 4 if route.startswith(WATERMARKS) else 2
        check_allowed(token, request.method, requests.source_id(request, place))
    else:
        check_allowed(token, request.method, request.query.get("prefix", ""))


def _actor(request: web.Request) -> str | None:
    """Return the author of a change: the client's address, with its token's name if it has one."""
    name = _token.get().name
    return f"{name} {request.remote}" if name else request.remote


def _never_collected(source_id: str) -> Reply:
    reply = Reply.refusing(f"Source {source_id!r} was never collected.", 404, "source_id")
    return reply._replace(etag=_NO_VERSION)
