"""The only HTTP client of the sources: retries, redirects, waits and counts.

- Retries happen here and nowhere above: after a failed connection, a timeout, a body that was cut
  off in transit, and the statuses that call for it. `Retry-After` is honoured. A POST is retried
  only if its caller declares it idempotent.
- A throttled response says nothing against the host: it is waited for, and no circuit counts it.
- A document that arrived whole and is not JSON is not requested again: it was published like that.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import aiohttp
import stamina
from yarl import URL

from ladon_storage.client.pool import tls_context
from ladon_storage.collection.credentials import resolve_secret
from ladon_storage.errors import CircuitOpenError, SourceError
from ladon_storage.sources.fields import MAX_ANSWER_BYTES, Connection, Rate
from ladon_storage.sources.http.decompression import ACCEPTED
from ladon_storage.sources.http.hosts import Admission, host_of, wait_for_rate_limit
from ladon_storage.sources.http.observing import observer
from ladon_storage.sources.http.redirects import redirected
from ladon_storage.sources.http.retry_after import (
    MAX_RETRY_AFTER_SECONDS,
    has_no_requests_left,
    wait_of,
)
from ladon_storage.sources.http.retry_after import retry_after as _retry_after
from ladon_storage.sources.http.transport import (
    OK,
    Credentials,
    HttpResponse,
    HttpTransport,
    Parameters,
    Request,
    Route,
    UnreachableError,
    address,
)
from ladon_storage.sources.http.urls import with_query
from ladon_storage.sources.json.documents import (
    Document,
    TooMuchError,
    parse,
    read_document,
)
from ladon_storage.sources.json.unique_keys import DuplicateKeyError

__all__ = [
    "MAX_RETRY_AFTER_SECONDS",
    "OK",
    "Credentials",
    "HttpResponse",
    "SourceHttp",
    "_retry_after",
    "shared_connections",
    "source_http",
]

logger = logging.getLogger(__name__)

MAX_DOCUMENT_BYTES = MAX_ANSWER_BYTES

ATTEMPTS = 5
RETRY_SECONDS = 600.0
"""The time after which a failed attempt is the last one."""

MAX_REDIRECTS = 10

MAX_HEADER_BYTES = 2**16
"""Bytes of one header: a policy or a cursor in it is longer than aiohttp's default."""

# The total ends an answer that trickles in for ever, which no timeout of a single read does.
_TIMEOUT = aiohttp.ClientTimeout(total=300, sock_connect=30, sock_read=60)
_REPEATABLE_STATUSES = frozenset({408, 425, 429})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LONGEST = 10_000
"""Characters of a text that are examined before it is cut."""

_LONGEST_PROBLEM = 200
"""Characters of a document's problem that a message quotes."""

_REASONS = (
    "query_status",
    "error",
    "errors",
    "error_code",
    "error_message",
    "title",
    "message",
    "detail",
    "description",
)
"""The places where APIs give the reason of a refusal inside of a successful answer."""


class SourceHttp:
    """The requests of one source, with retries.

    Args:
        source_id: The source, as errors name it.
        session: The connections; it belongs to `source_http`, which closes it.
        max_bytes: The largest body that is accepted, unpacked.
        credentials: The secrets; ``None``: the source needs none.
        rate: The rate of requests that the host accepts.
        throttle_statuses: Statuses by which the host reports too many requests, in addition to 429.
        route: Proxy, certificates and redirects.
    """

    def __init__(
        self,
        source_id: str,
        session: aiohttp.ClientSession,
        max_bytes: int = MAX_DOCUMENT_BYTES,
        *,
        credentials: Credentials | None = None,
        rate: Rate | None = None,
        throttle_statuses: Collection[int] = (),
        route: Route | None = None,
    ) -> None:
        self._source_id = source_id
        self._transport = HttpTransport(source_id, session, max_bytes, credentials, route)
        self._rate = rate
        self._throttle_statuses = frozenset({429, *throttle_statuses})

    def redact_url(self, url: str | URL) -> str:
        """Return an address without secrets, including this source's keys."""
        return self._transport.redact_url(url)

    def masked(self, text: str) -> str:
        """Return a text without this source's secrets, in any encoding.

        Every text that is partly an answer's passes through here before it is cut.
        """
        return self._transport.masked(text)

    def quoted(self, value: object, most: int = 80) -> str:
        """Return a value of an answer for a message: masked, and cut to ``most``."""
        text = self.masked(repr(value)[:_LONGEST])
        return text if len(text) <= most else f"{text[: most - 1]}…"

    def said(self, document: object) -> str:
        """Return an API's own text in place of records, for a message; usually there is none.

        A refusal with status 200 has its reason in one of a few places.
        """
        if not isinstance(document, dict):
            return ""
        told = [
            f"{name} {self.quoted(document[name])}"
            for name in _REASONS
            if document.get(name) not in (None, "", [], {})
        ]
        return f"; it says {', '.join(told[:3])}" if told else ""

    def clean(self, error: BaseException) -> None:
        """Remove this source's secrets from an error and its chained errors."""
        self._transport.clean(error)

    def error(self, problem: str, step: str, *, transient: bool = False) -> SourceError:
        """Return a `SourceError` of the source with a masked text: a problem, and the next step."""
        return SourceError(self.masked(f"{problem}; {step}."), self._source_id, transient=transient)

    @property
    def asked_at(self) -> datetime | None:
        """The source's own time at its first request; ``None``: it states none."""
        return self._transport.asked_at

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

    def parsed(self, answer: HttpResponse) -> Any:
        """Return an answer's JSON; check `HttpResponse.is_empty` first if it may have no document.

        Raises:
            SourceError: It is none.
        """
        if answer.status == 204:
            raise SourceError(
                f"Source {self._source_id!r} answered 204 from {self.redact_url(answer.url)}, "
                "without a "
                "document; see what it publishes.",
                self._source_id,
            )
        try:
            return parse(answer.body)
        except (ValueError, RecursionError) as error:
            problem = _unparsed(error)
        # Raised outside of the handler: the parser's error holds the whole document.
        raise self._refused(answer, problem)

    async def document(self, answer: HttpResponse, path: str) -> Document:
        """Return an answer's JSON apart from the records at a dotted path; it may be large.

        The records are a list or a dictionary, or if there are very many, a sequence or a mapping
        that is parsed while it is read. The event loop is not blocked meanwhile.

        Raises:
            SourceError: It is none, or holds more around its records or in one than is read.
        """
        if answer.status == 204:
            self.parsed(answer)
        try:
            return await read_document(answer.body, path)
        except (ValueError, RecursionError) as error:
            problem = _unparsed(error)
        raise self._refused(answer, problem)

    def _refused(self, answer: HttpResponse, problem: str) -> SourceError:
        problem = "is not JSON: it is empty" if answer.is_empty else problem
        what, _, why = self.masked(problem).partition(": ")
        why = why if len(why) <= _LONGEST_PROBLEM else f"{why[:_LONGEST_PROBLEM]}…"
        return self.error(
            f"The document of source {self._source_id!r} at {self.redact_url(answer.url)} {what}, "
            "after "
            f"{len(answer.body)} bytes that arrived whole: {why}; nothing of it was stored",
            "see what the source publishes",
        )

    async def get(
        self,
        url: str | URL,
        *,
        params: Parameters | None = None,
        headers: Mapping[str, str] | None = None,
        accept: Collection[int] = OK,
        idempotent: bool = True,
    ) -> HttpResponse:
        """Return the answer at ``url``; ``params`` replace query parameters of the same names.

        A request that is not idempotent is made once, as its answer may differ each time.

        Raises:
            SourceError: It did not arrive, even after retries where those make sense, or has none
                of the statuses of ``accept``.
        """
        request = Request("GET", self._address(url, params), None, headers or {}, accept)
        return await self._send_with_retries(request, ATTEMPTS if idempotent else 1)

    async def post(
        self,
        url: str | URL,
        body: object,
        *,
        idempotent: bool,
        params: Parameters | None = None,
        headers: Mapping[str, str] | None = None,
        accept: Collection[int] = OK,
    ) -> HttpResponse:
        """Return the answer to a JSON ``body``; an ``idempotent`` request changes nothing there.

        Raises:
            SourceError: As for `get`; a request that is not idempotent is made once.
        """
        request = Request("POST", self._address(url, params), body, headers or {}, accept)
        return await self._send_with_retries(request, ATTEMPTS if idempotent else 1)

    def _address(self, url: str | URL, params: Parameters | None) -> URL:
        try:
            return address(url, params)
        except ValueError:
            pass
        # Neither chained nor shown: an invalid address may have a secret anywhere.
        raise SourceError(
            f"Source {self._source_id!r} leads to an address that is none; see how it is set up, "
            "and what it answers.",
            self._source_id,
        )

    async def _send_with_retries(self, request: Request, attempts: int) -> HttpResponse:
        attempts = attempts if observer() is None else 1
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
                    return await self._send_following_redirects(request)
                except SourceError as error:
                    if error.transient and observer() is None:
                        logger.warning(
                            "%s (attempt %d of %d)",
                            error,
                            attempt.num,
                            attempts,
                            extra={"source_id": self._source_id},
                        )
                    raise
        raise AssertionError("stamina ends with a result or an error")

    async def _send_following_redirects(self, request: Request) -> HttpResponse:
        """Make a request and follow its redirects; each host on the way is called as itself."""
        origin = request.url
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._send_through_circuit(request)
            if answer.status in request.accept:
                return answer
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or location is None:
                self._refuse_status(answer)
            request = redirected(self._transport, request, location, origin)
        raise self._transport.error(request.url, "redirects nowhere", "check the address")

    async def _send_through_circuit(self, request: Request) -> HttpResponse:
        """Make one request if the circuits admit it, and report its outcome to them."""
        self._transport.check_host(request)
        if (watching := observer()) is not None:
            body = None if request.body is None else self.masked(json.dumps(request.body))
            watching.asking(request.method, self.masked(with_query(request.url)), body)
        await wait_for_rate_limit(request.url, self._rate)
        try:
            admission = Admission.to(request.url)
        except CircuitOpenError as error:
            raise SourceError(
                f"Source {self._source_id!r} was not asked: the circuit of "
                f"{host_of(request.url)} is open after repeated failures{_of_path(error)}; try "
                f"again in {error.retry_after:.1f} s.",
                self._source_id,
                retry_after=error.retry_after,
            ) from None
        try:
            answer = await self._transport.send(request)
        except UnreachableError:
            admission.unreachable()
            raise
        except SourceError as error:
            (admission.unanswered if error.transient else admission.released)()
            raise
        except BaseException:
            admission.released()
            raise
        if self._is_throttled(answer):
            admission.released()
        elif answer.status >= 500 or answer.status == 408:
            admission.failed()
        else:
            admission.succeeded()
        if watching is not None:
            watching.answered(answer)
        return answer

    def _is_throttled(self, answer: HttpResponse) -> bool:
        if answer.status in self._throttle_statuses:
            return True
        if answer.status == 403:
            return "Retry-After" in answer.headers or has_no_requests_left(answer.headers)
        return answer.status == 503 and "Retry-After" in answer.headers

    def _refuse_status(self, answer: HttpResponse) -> NoReturn:
        throttled = self._is_throttled(answer)
        transient = throttled or answer.status >= 500 or answer.status in _REPEATABLE_STATUSES
        wait = wait_of(answer.headers, throttled=throttled)
        if wait is None and throttled and self._rate is not None:
            wait = min(self._rate.seconds, MAX_RETRY_AFTER_SECONDS)
        raise SourceError(
            f"Source {self._source_id!r} answered {answer.status} from "
            f"{self.redact_url(answer.url)}; "
            f"{_step(answer.status, transient=transient)}.",
            self._source_id,
            transient=transient,
            retry_after=wait,
        )


def _of_path(error: CircuitOpenError) -> str:
    return " of this path" if "a path of" in str(error) else ""


def _step(status: int, *, transient: bool) -> str:
    if transient:
        return "try again later"
    if status == 206:
        return "that is a part of its document, which was not asked for: see what is wrong with it"
    if status == 407:
        return "check the proxy, and its user and password"
    return "check its address and what it requires"


_shared: ContextVar[aiohttp.BaseConnector | None] = ContextVar("_shared", default=None)


@asynccontextmanager
async def shared_connections() -> AsyncIterator[None]:
    """Let the runs in this context share connections to the same hosts, but nothing else.

    Opening a connection for each of a thousand runs takes as long as their requests.
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
    max_bytes: int | None = None,
    credentials: Credentials | None = None,
    rate: Rate | None = None,
    throttle_statuses: Collection[int] = (),
    connection: Connection | None = None,
) -> AsyncIterator[SourceHttp]:
    """Open the HTTP client of one source for one run; the arguments are those of `SourceHttp`.

    Errors inside the context are raised without the source's secrets, whatever their origin.

    Raises:
        ConfigurationError: The connection names a file or a secret that cannot be used.
    """
    connection = connection or Connection()
    route = await _route(source_id, connection)
    shared = _shared.get()
    async with aiohttp.ClientSession(
        timeout=_timeout(connection),
        headers={
            "User-Agent": "ladon-storage",
            "Accept": "application/json",
            "Accept-Encoding": ACCEPTED,
        },
        auto_decompress=False,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        connector=shared,
        connector_owner=shared is None,
    ) as session:
        http = SourceHttp(
            source_id,
            session,
            connection.max_bytes if max_bytes is None else max_bytes,
            credentials=credentials,
            rate=rate,
            throttle_statuses=throttle_statuses,
            route=route,
        )
        try:
            yield http
        except Exception as error:
            http.clean(error)
            raise


async def _route(source_id: str, connection: Connection) -> Route:
    tls = tls_context(
        verify=True,
        ca_file=connection.ca_file,
        client_cert=connection.client_cert,
        client_key=connection.client_key,
    )
    proxy = None
    if connection.proxy is not None:
        proxy = URL(connection.proxy)
        if connection.proxy_user:
            proxy = proxy.with_user(connection.proxy_user)
        if connection.proxy_password is not None:
            proxy = proxy.with_password(await resolve_secret(connection.proxy_password, source_id))
    return Route(proxy, tls, connection.redirects_to)


def _timeout(connection: Connection) -> aiohttp.ClientTimeout:
    seconds = connection.timeout
    if seconds is None:
        return _TIMEOUT
    return aiohttp.ClientTimeout(total=seconds, sock_connect=min(30.0, seconds), sock_read=seconds)


def _wait_before_retry(error: Exception) -> bool | float:
    """Return whether stamina retries, or in how many seconds if the source stated it."""
    if not isinstance(error, SourceError) or not error.transient:
        return False
    return error.retry_after or True


def _unparsed(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is not JSON: it is nested too deeply"
    if isinstance(error, DuplicateKeyError):
        return f"is ambiguous: {error}"
    return f"{'is too much' if isinstance(error, TooMuchError) else 'is not JSON'}: {error}"
