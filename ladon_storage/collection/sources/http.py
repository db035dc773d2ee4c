"""The one place where sources speak HTTP, and where aiohttp's errors become ours.

- What can be repeated is repeated here and nowhere above: a connection that failed, a timeout, a
  body that was cut off on its way, and the statuses that ask for it. `Retry-After` is honoured. A
  POST is repeated only where its caller says that it asks and changes nothing.
- A throttled answer says nothing against the host: it is waited for, and no circuit counts it.
- A document that arrived whole and is not JSON is not asked for again: it was published like that.
- An address appears in messages without user, password, query, fragment and hidden texts. Where
  there is anything to hide, the original error is not chained, since it may carry all of it.
- Keys go to the host that they are for and to no other, whatever a redirect or a feed says.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import quote

import aiohttp
import stamina
from multidict import CIMultiDictProxy
from yarl import URL

from ladon_storage.collection.sources.addresses import check_url, is_same_host, shown
from ladon_storage.collection.sources.fields import Rate
from ladon_storage.collection.sources.hosts import admitted, circuit_of, host_of
from ladon_storage.errors import CircuitOpenError, SourceError
from ladon_storage.models import to_utc

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
_CHUNK_BYTES = 2**16


Parameters = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """Be the secrets of a source's requests.

    Args:
        home: The address whose host they are for; no other gets them.
        headers: Headers that hold secrets; sent with each request.
        params: Parameters of the query that hold secrets; sent with each request.
        hidden: Secrets that addresses hold otherwise.
    """

    home: str
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    hidden: Collection[str] = ()


_NO_KEYS = Keys("")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Be what a source answered, whole.

    Args:
        url: Where it came from in the end; it may hold what must not be shown.
        status: The HTTP status.
        headers: Its headers; names are told apart without regard to case.
        body: Its bytes, unpacked.
    """

    url: URL
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    def __repr__(self) -> str:
        return f"<HttpAnswer {self.status}, {len(self.body)} bytes>"


@dataclass(frozen=True, slots=True, repr=False)
class _Request:
    method: str
    url: URL
    body: object
    headers: Mapping[str, str]
    accept: Collection[int]


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
        self._session = session
        self._max_bytes = max_bytes
        self._keys = keys
        self._hidden = _hidden(keys)
        self._rate = rate
        self._throttled = frozenset({429, *throttled})

    def shown(self, url: str | URL) -> str:
        """Return an address without what may be secret, this source's keys included."""
        text = shown(url)
        for each in self._hidden:
            text = text.replace(each, "***")
        return text

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
            return json.loads(answer.body, parse_constant=_refuse_constant)
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
        request = _Request("GET", _address(url, params), None, headers or {}, accept)
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
        request = _Request("POST", _address(url, params), body, headers or {}, accept)
        return await self._repeated(request, ATTEMPTS if is_query else 1)

    async def _repeated(self, request: _Request, attempts: int) -> HttpAnswer:
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

    async def _attempted(self, request: _Request) -> HttpAnswer:
        """Make a request and follow where it leads; each host on the way is asked as itself."""
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._judged(request)
            if answer.status in request.accept:
                return answer
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or location is None:
                self._refuse_status(answer)
            request = self._redirected(request, location)
        raise self._error(request.url, "redirects nowhere", "check the address")

    async def _judged(self, request: _Request) -> HttpAnswer:
        """Make one request if the host's circuit admits it, and tell the circuit how it went."""
        self._refuse_foreign_host(request.url)
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
            answer = await self._exchanged(request)
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

    async def _exchanged(self, request: _Request) -> HttpAnswer:
        keys = self._keys or _NO_KEYS
        try:
            async with self._session.request(
                request.method,
                _address(request.url, keys.params),
                json=request.body,
                headers={**request.headers, **keys.headers},
                allow_redirects=False,
            ) as response:
                wanted = response.status in request.accept
                body = await self._body(response, request.url) if wanted else b""
                return HttpAnswer(request.url, response.status, response.headers, body)
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            failure = self._translated(error, request.url)
            hides = self._hidden or shown(request.url) != str(request.url)
            cause = None if hides else error
        raise failure from cause

    async def _body(self, response: aiohttp.ClientResponse, url: URL) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > self._max_bytes:
                raise SourceError(
                    f"Source {self._source_id!r} sends more than {self._max_bytes} bytes from "
                    f"{self.shown(url)}; see what it publishes.",
                    self._source_id,
                )
        return bytes(body)

    def _redirected(self, request: _Request, location: str) -> _Request:
        try:
            target = request.url.join(URL(location))
            check_url(str(target))
        except ValueError:
            target = None
        if target is None or request.method != "GET":
            raise self._error(request.url, "redirects nowhere", "check the address") from None
        if target.user is None and target.origin() == request.url.origin():
            target = target.with_user(request.url.user).with_password(request.url.password)
        return _Request("GET", target, None, request.headers, request.accept)

    def _refuse_foreign_host(self, url: URL) -> None:
        if self._keys is not None and not is_same_host(self._keys.home, url):
            raise SourceError(
                f"Source {self._source_id!r} leads from {self.shown(self._keys.home)} to "
                f"{self.shown(url)}, another host, which must not get its key and was not asked; "
                "set the address to that host, if it is the right one.",
                self._source_id,
            )

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

    def _translated(self, error: aiohttp.ClientError | OSError, url: URL) -> SourceError:
        """Say what happened without the error's own text, which may hold the address."""
        if isinstance(error, aiohttp.ClientSSLError):
            problem, transient = "is not trusted: its certificate or TLS was refused", False
        elif isinstance(error, TimeoutError):
            problem, transient = "did not answer in time", True
        elif isinstance(error, aiohttp.ClientPayloadError):
            problem, transient = "cut its answer off", True
        elif isinstance(error, aiohttp.ClientConnectionError | OSError):
            problem, transient = "could not be reached, or hung up", True
        else:
            problem, transient = "answered something that is not HTTP", False
        problem = f"{problem} ({type(error).__name__})"
        return self._error(url, problem, "check the address and the network", transient=transient)

    def _error(self, url: URL, problem: str, step: str, *, transient: bool = False) -> SourceError:
        return SourceError(
            f"Source {self._source_id!r} {problem} at {self.shown(url)}; {step}.",
            self._source_id,
            transient=transient,
        )


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
    async with aiohttp.ClientSession(
        timeout=_TIMEOUT, headers={"User-Agent": "ladon-storage", "Accept": "application/json"}
    ) as session:
        yield SourceHttp(source_id, session, max_bytes, keys=keys, rate=rate, throttled=throttled)


def _hidden(keys: Keys | None) -> frozenset[str]:
    if keys is None:
        return frozenset()
    secrets = [
        each for each in (*keys.headers.values(), *keys.params.values(), *keys.hidden) if each
    ]
    return frozenset(secrets + [quote(each, safe="") for each in secrets])


def _address(url: str | URL, params: Parameters | None) -> URL:
    return URL(url).update_query(params) if params else URL(url)


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


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
