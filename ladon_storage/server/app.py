"""The service's routes: from a checked request to the store, and from its result to JSON.

- With a token, every route but ``OPEN_ROUTES`` requires it, before it reveals whether it exists.
- A label of a metric is a route, a method or a status, never a text that a client chose.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CONTENT_TYPE_LATEST

from ladon_storage.errors import (
    DatabaseError,
    RequestError,
    WatermarkConflictError,
    WatermarkInFutureError,
)
from ladon_storage.models import SERVICE_TIME, Precondition, WatermarkReset, WatermarkUpdate
from ladon_storage.server import requests
from ladon_storage.server.metrics import ServiceMetrics
from ladon_storage.server.openapi import document
from ladon_storage.server.responses import Health, answer, problem
from ladon_storage.server.store import WatermarkDatabase

logger = logging.getLogger(__name__)

HEALTH, METRICS, DOCUMENT = "/health", "/metrics", "/openapi.json"
LOGO = "/logo.svg"  # of the blocks in Prefect's UI, which takes only the URL of a picture
OPEN_ROUTES = frozenset({HEALTH, DOCUMENT, LOGO})

# Says that there are versions, so that a client knows before its first write that it may send
# If-None-Match, and that a 404 without it is not this service's. No version is 0.
_NO_VERSION = '"0"'

_LOGO = Path(__file__).with_name("logo.svg").read_bytes()

WATERMARKS = "/api/v1/watermarks"
# Any segment: an invalid name must be a 400 with its reason. A 404 means never collected.
WATERMARK = WATERMARKS + "/{source_id:[^/]*}"


class Routes:
    """The handlers of the routes, over a store.

    Args:
        store: The watermarks.
        metrics: The content of ``/metrics``.
        document: The content of ``/openapi.json``.
    """

    def __init__(self, store: WatermarkDatabase, metrics: ServiceMetrics, document: bytes) -> None:
        self._store = store
        self._metrics = metrics
        self._document = document

    def table(self) -> list[web.RouteDef]:
        """Return every route of the service."""
        # The router tries these in turn, and nearly every request is for the first two.
        return [
            web.get(WATERMARK, self.get),
            web.put(WATERMARK, self.put),
            web.delete(WATERMARK, self.delete),
            web.get(WATERMARKS, self.page),
            web.post(WATERMARK + "/reset", self.reset),
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
                limit=query.limit,
                after=query.after or "",
            )
        )

    async def get(self, request: web.Request) -> web.Response:
        """Read a watermark."""
        source_id = requests.source_id(request)
        watermark = self._store.get(source_id)
        if watermark is None:
            return _never_collected(source_id)
        return answer(watermark, etag=watermark.etag)

    async def put(self, request: web.Request) -> web.Response:
        """Store the outcome of a run."""
        source_id, precondition = requests.source_id(request), requests.precondition(request)
        update = await requests.body(request, WatermarkUpdate)
        stored, created = await self._store.put(
            source_id, update, precondition, actor=request.remote
        )
        return answer(stored, 201 if created else 200, etag=stored.etag)

    async def reset(self, request: web.Request) -> web.Response:
        """Move a watermark to any timestamp."""
        source_id = requests.source_id(request)
        precondition = Precondition(requests.if_match(request))
        reset = await requests.body(request, WatermarkReset)
        watermark = await self._store.reset(source_id, reset, precondition, actor=request.remote)
        if watermark is None:
            return _never_collected(source_id)
        return answer(watermark, etag=watermark.etag)

    async def delete(self, request: web.Request) -> web.Response:
        """Forget a watermark."""
        source_id = requests.source_id(request)
        precondition = Precondition(requests.if_match(request))
        if not await self._store.delete(source_id, precondition, actor=request.remote):
            return _never_collected(source_id)
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
        return answer(Health(status="healthy"), etag=_NO_VERSION)

    async def metrics(self, request: web.Request) -> web.Response:
        """Show the metrics."""
        ages = await self._store.ages()
        text = await asyncio.to_thread(self._metrics.text, ages, self._store.now())
        return web.Response(body=text, headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})

    async def document(self, request: web.Request) -> web.Response:
        """Describe the service."""
        return web.Response(body=self._document, headers={hdrs.CONTENT_TYPE: "application/json"})

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


def create_app(
    store: WatermarkDatabase, *, token: str | None = None, in_flight: InFlight | None = None
) -> web.Application:
    """Return the service over a store, which stays its caller's to close.

    Args:
        store: The watermarks.
        token: The token that ``Authorization: Bearer`` must carry; ``None`` requires none.
        in_flight: The counter of requests in flight.
    """
    metrics = ServiceMetrics()
    answering = _answering(metrics, token, in_flight or InFlight(), store.now)
    app = web.Application(middlewares=[answering], client_max_size=requests.MAX_BODY_BYTES)
    app.add_routes(Routes(store, metrics, document()).table())
    return app


def _answering(
    metrics: ServiceMetrics,
    token: str | None,
    in_flight: InFlight,
    now: Callable[[], datetime],
) -> Middleware:
    """Return the middleware of every route: the token, the errors, the time, the metrics."""
    expected = None if token is None else token.encode()
    date = _dates(now)

    @web.middleware
    async def answering(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        resource = request.match_info.route.resource
        route = resource.canonical if resource else "none"
        status = 500
        try:
            if expected is None or route in OPEN_ROUTES or _authorized(request, expected):
                with in_flight:
                    response = await _answered(request, handler)
            else:
                response = problem("Send the service's token: Authorization: Bearer ….", 401)
                response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
            status = response.status
            # By the clock that dates watermarks, so that a client can compare the two.
            response.headers[hdrs.DATE] = date()
            response.headers[SERVICE_TIME] = now().isoformat()
        except web.HTTPException as error:
            status = error.status
            raise
        finally:
            metrics.observe(request.method, route, status, time.perf_counter() - started)
        if in_flight.ending:
            response.force_close()
        return response

    return answering


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RequestError as error:
        return problem(error.message, error.status, error.field)
    except WatermarkConflictError as error:
        field = "timestamp" if error.status == 409 else "If-Match"
        return problem(error.message, error.status, field)
    except WatermarkInFutureError as error:
        return problem(error.message, error.status, "timestamp")
    except DatabaseError as error:
        logger.error("%s %r: %s", request.method, request.path, error)  # noqa: TRY400
        return problem(str(error), 503)
    except web.HTTPException:
        raise
    except Exception:
        logger.exception("%s %r failed", request.method, request.path)
        return problem("The service failed, and logged why.", 500)


def _dates(now: Callable[[], datetime]) -> Callable[[], str]:
    """Return a function that gives the time as an HTTP date, formatted once a second."""
    second, text = datetime.min.replace(tzinfo=UTC), ""

    def date() -> str:
        nonlocal second, text
        if (present := now().replace(microsecond=0)) != second:
            second, text = present, format_datetime(present, usegmt=True)
        return text

    return date


def _authorized(request: web.Request, expected: bytes) -> bool:
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    # Bytes: compare_digest() refuses text beyond ASCII, and a header may hold any byte.
    given = token.strip().encode("utf-8", "surrogateescape")
    return hmac.compare_digest(given, expected) and scheme.lower() == "bearer"


def _never_collected(source_id: str) -> web.Response:
    answer = problem(f"Source {source_id!r} was never collected.", 404, "source_id")
    answer.headers[hdrs.ETAG] = _NO_VERSION
    return answer
