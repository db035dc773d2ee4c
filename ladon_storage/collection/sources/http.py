"""The one place where sources speak HTTP: what is repeated, followed, waited for and counted.

- What can be repeated is repeated here and nowhere above: a connection that failed, a timeout, a
  body that was cut off on its way, and the statuses that ask for it. `Retry-After` is honoured. A
  POST is repeated only where its caller says that it asks and changes nothing.
- A throttled answer says nothing against the host: it is waited for, and no circuit counts it.
- A document that arrived whole and is not JSON is not asked for again: it was published like that.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import aiohttp
import stamina
from yarl import URL

from ladon_storage.collection.content import parse_json
from ladon_storage.collection.sources.addresses import check_url
from ladon_storage.collection.sources.exchange import (
    Exchange,
    HttpAnswer,
    Keys,
    Parameters,
    Request,
    address,
)
from ladon_storage.collection.sources.fields import Rate
from ladon_storage.collection.sources.hosts import admitted, circuit_of, host_of
from ladon_storage.errors import CircuitOpenError, SourceError
from ladon_storage.models import to_utc

__all__ = ["HttpAnswer", "Keys", "SourceHttp", "shared_connections", "source_http"]

logger = logging.getLogger(__name__)

MAX_DOCUMENT_BYTES = 256 * 2**20
"""Bytes of a whole document, unpacked: a hundred times what the largest feed here publishes."""

ATTEMPTS = 5
RETRY_SECONDS = 600.0
"""When this is over, an attempt that fails is the last one."""

MAX_RETRY_AFTER_SECONDS = 120.0
MAX_REDIRECTS = 10

# The total ends an answer that trickles in for ever, which no timeout of a single read does.
_TIMEOUT = aiohttp.ClientTimeout(total=300, sock_connect=30, sock_read=60)
_REPEATABLE_STATUSES = frozenset({408, 425, 429})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class SourceHttp:
    """Make the requests of one source, and repeat those that can be repeated.

    Args:
        source_id: The source, as errors name it.
        session: The connections; it belongs to `source_http`, which closes it.
        max_bytes: The largest body that is accepted, unpacked.
        keys: The secrets; ``None``: it needs none.
        rate: How many requests the host takes.
        throttled: Statuses by which the host says that they were too many, beside 429.
    """

    def __init__(
        self,
        source_id: str,
        session: aiohttp.ClientSession,
        max_bytes: int = MAX_DOCUMENT_BYTES,
        *,
        keys: Keys | None = None,
        rate: Rate | None = None,
        throttled: Collection[int] = (),
    ) -> None:
        self._source_id = source_id
        self._exchange = Exchange(source_id, session, max_bytes, keys)
        self._rate = rate
        self._throttled = frozenset({429, *throttled})

    def shown(self, url: str | URL) -> str:
        """Return an address without what may be secret, this source's keys included."""
        return self._exchange.shown(url)

    async def get_json(
        self,
        url: str | URL,
        *,
        params: Parameters | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Return the JSON document at ``url``.

        Raises:
            SourceError: It did not arrive, or is not JSON.
        """
        return self.parsed(await self.get(url, params=params, headers=headers))

    def parsed(self, answer: HttpAnswer) -> Any:
        """Return an answer's JSON.

        Raises:
            SourceError: It is none.
        """
        try:
            return parse_json(answer.body)
        except (ValueError, RecursionError) as error:
            problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        # Raised outside of the handler: the parser's error holds the whole document.
        raise SourceError(
            f"The document of source {self._source_id!r} at {self.shown(answer.url)} is not JSON, "
            f"after {len(answer.body)} bytes that arrived whole: {problem}; nothing of it was "
            "stored, see what the source publishes.",
            self._source_id,
        )

    async def get(
        self,
        url: str | URL,
        *,
        params: Parameters | None = None,
        headers: Mapping[str, str] | None = None,
        accept: Collection[int] = (200,),
    ) -> HttpAnswer:
        """Return the answer at ``url``; ``params`` replace what its query says of the same names.

        Raises:
            SourceError: It did not arrive, also not when asked for again where that makes sense, or
                has none of the statuses of ``accept``.
        """
        request = Request("GET", address(url, params), None, headers or {}, accept)
        return await self._repeated(request, ATTEMPTS)

    async def post(
        self,
        url: str | URL,
        body: object,
        *,
        is_query: bool,
        params: Parameters | None = None,
        headers: Mapping[str, str] | None = None,
        accept: Collection[int] = (200,),
    ) -> HttpAnswer:
        """Return the answer to a JSON ``body``; one that ``is_query`` changes nothing there.

        Raises:
            SourceError: As for `get`; what is no query is asked once.
        """
        request = Request("POST", address(url, params), body, headers or {}, accept)
        return await self._repeated(request, ATTEMPTS if is_query else 1)

    async def _repeated(self, request: Request, attempts: int) -> HttpAnswer:
        async for attempt in stamina.retry_context(
            on=_wait_before_retry,
            attempts=attempts,
            timeout=RETRY_SECONDS,
            wait_initial=0.5,
            wait_max=30.0,
            wait_jitter=1.0,
        ):
            with attempt:
                try:
                    return await self._attempted(request)
                except SourceError as error:
                    if error.transient:
                        logger.warning(
                            "%s (attempt %d of %d)",
                            error,
                            attempt.num,
                            attempts,
                            extra={"source_id": self._source_id},
                        )
                    raise
        raise AssertionError("stamina ends with a result or an error")

    async def _attempted(self, request: Request) -> HttpAnswer:
        """Make a request and follow where it leads; each host on the way is asked as itself."""
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._judged(request)
            if answer.status in request.accept:
                return answer
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or location is None:
                self._refuse_status(answer)
            request = self._redirected(request, location)
        raise self._exchange.error(request.url, "redirects nowhere", "check the address")

    async def _judged(self, request: Request) -> HttpAnswer:
        """Make one request if the host's circuit admits it, and tell the circuit how it went."""
        self._exchange.check_host(request.url)
        circuit = circuit_of(request.url)
        await admitted(request.url, self._rate)
        try:
            permit = circuit.acquire()
        except CircuitOpenError as error:
            raise SourceError(
                f"Source {self._source_id!r} was not asked: the circuit of "
                f"{host_of(request.url)} is open after repeated failures; try again in "
                f"{error.retry_after:.1f} s.",
                self._source_id,
                retry_after=error.retry_after,
            ) from None
        try:
            answer = await self._exchange.make(request)
        except SourceError as error:
            (circuit.failure if error.transient else circuit.release)(permit)
            raise
        except BaseException:
            circuit.release(permit)
            raise
        if self._is_throttled(answer):
            circuit.release(permit)
        elif answer.status >= 500 or answer.status == 408:
            circuit.failure(permit)
        else:
            circuit.success(permit)
        return answer

    def _redirected(self, request: Request, location: str) -> Request:
        try:
            target = request.url.join(URL(location))
            check_url(str(target))
        except ValueError:
            target = None
        if target is None or request.method != "GET":
            raise self._exchange.error(
                request.url, "redirects nowhere", "check the address"
            ) from None
        if target.user is None and target.origin() == request.url.origin():
            target = target.with_user(request.url.user).with_password(request.url.password)
        return Request("GET", target, None, request.headers, request.accept)

    def _is_throttled(self, answer: HttpAnswer) -> bool:
        return answer.status in self._throttled or (
            answer.status == 503 and "Retry-After" in answer.headers
        )

    def _refuse_status(self, answer: HttpAnswer) -> NoReturn:
        throttled = self._is_throttled(answer)
        transient = throttled or answer.status >= 500 or answer.status in _REPEATABLE_STATUSES
        step = "try again later" if transient else "check its address and what it requires"
        wait = _retry_after(answer.headers.get("Retry-After"), datetime.now(UTC))
        if wait is None and throttled and self._rate is not None:
            wait = min(self._rate.seconds, MAX_RETRY_AFTER_SECONDS)
        raise SourceError(
            f"Source {self._source_id!r} answered {answer.status} from {self.shown(answer.url)}; "
            f"{step}.",
            self._source_id,
            transient=transient,
            retry_after=wait,
        )


_shared: ContextVar[aiohttp.BaseConnector | None] = ContextVar("_shared", default=None)


@asynccontextmanager
async def shared_connections() -> AsyncIterator[None]:
    """Let the runs in this context share connections to the same hosts, but nothing else.

    Opening one for each of a thousand runs takes as long as what they ask.
    """
    async with aiohttp.TCPConnector() as connector:
        token = _shared.set(connector)
        try:
            yield
        finally:
            _shared.reset(token)


@asynccontextmanager
async def source_http(
    source_id: str,
    *,
    max_bytes: int = MAX_DOCUMENT_BYTES,
    keys: Keys | None = None,
    rate: Rate | None = None,
    throttled: Collection[int] = (),
) -> AsyncIterator[SourceHttp]:
    """Give the HTTP of one source for the time of one run; the arguments are `SourceHttp`'s."""
    shared = _shared.get()
    async with aiohttp.ClientSession(
        timeout=_TIMEOUT,
        headers={"User-Agent": "ladon-storage", "Accept": "application/json"},
        connector=shared,
        connector_owner=shared is None,
    ) as session:
        yield SourceHttp(source_id, session, max_bytes, keys=keys, rate=rate, throttled=throttled)


def _wait_before_retry(error: Exception) -> bool | float:
    """Tell stamina whether to repeat, and in how many seconds if the source said so."""
    if not isinstance(error, SourceError) or not error.transient:
        return False
    return error.retry_after or True


def _retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds of a `Retry-After`, a number or a date; ``None`` for nothing usable."""
    if value is None:
        return None
    if value.strip().isdecimal():
        seconds = float(value)
    else:
        try:
            seconds = (to_utc(parsedate_to_datetime(value)) - now).total_seconds()
        except ValueError:
            return None
    return min(seconds, MAX_RETRY_AFTER_SECONDS) if seconds > 0 else None
