"""One HTTP request of a source, and its answer: the use of secrets, and aiohttp's errors.

- Keys are sent to the host that they are for and to no other, whatever a redirect or a feed says.
  The same holds for configured headers.
- An address appears in messages without user, password, query, fragment and keys, and no text of an
  answer appears unmasked. If there is anything to hide, the original error is not chained, since it
  may carry all of it.
- A body in memory never exceeds its limit, never blocks the event loop for longer than a step, and
  is complete: neither its length nor its encoding shows that something is missing. One that has
  neither ends where the connection does: its JSON shows whether it was cut. An answer that is not
  needed is not read.
"""

from __future__ import annotations

import asyncio
import io
import ssl
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from ladon_storage.client.masking import Redactor
from ladon_storage.client.tls_failures import tls_failure
from ladon_storage.errors import SourceError
from ladon_storage.sources.http.decompression import (
    DecompressionError,
    Decompressor,
    UnknownEncodingError,
)
from ladon_storage.sources.http.proxies import passwords, proxy_of, with_sent_credentials
from ladon_storage.sources.http.retry_after import date_of
from ladon_storage.sources.http.urls import (
    as_written,
    is_same_host,
    redact_url,
    with_parameters,
)
from ladon_storage.sources.json.documents import off_loop
from ladon_storage.sources.json.ends import lacks_end
from ladon_storage.sources.problems import with_step

OK = (200, 201, 203, 204)
"""The accepted statuses: also created, changed by a proxy on its way, or without a document."""

_CHUNK_BYTES = 2**16
_BLANK_BYTES = 64
_LONGEST_PROBLEM = 200
_LONGEST_SHOWN = 1_000
"""Characters of the longest address in a message."""
_DATE_STEP = timedelta(seconds=1)
_MAX_DATE_AHEAD = timedelta(days=1)
_MAY_LEAVE = frozenset({"accept"})
_NETWORK = "check the address and the network"
_TOO_LONG, _TOO_MANY = "Got more than", "Too many headers"

Parameters = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """The secrets of a source's requests.

    Args:
        origin: The address whose host they are for; no other gets them.
        headers: Headers that hold secrets; sent with each request.
        params: Parameters of the query that hold secrets; sent with each request.
        redact: Secrets that addresses contain in other ways.
    """

    origin: str
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    redact: Collection[str] = ()

    @property
    def secrets(self) -> list[str]:
        """All secrets, which must not be shown."""
        return [*self.headers.values(), *self.params.values(), *self.redact]


_NO_CREDENTIALS = Credentials("")


@dataclass(frozen=True, slots=True, repr=False)
class Route:
    """The way that the requests of one source take.

    Args:
        proxy: The proxy, with its credentials in its address; ``None``: the environment's.
        tls: The ``ssl`` argument of aiohttp.
        redirects_to: Other hosts, or hosts and ports, to which redirects are followed.
    """

    proxy: URL | None = None
    tls: ssl.SSLContext | bool = True
    redirects_to: Collection[str] = ()

    def proxy_to(self, url: URL) -> URL | None:
        """Return the proxy to an address, if there is one."""
        return self.proxy or proxy_of(url)

    def allows(self, url: URL) -> bool:
        """Return whether a redirect to an address of another site was allowed."""
        host = f"[{url.host}]" if ":" in (url.host or "") else url.host
        named = {f"{host}:{url.port}"} | ({str(host)} if url.is_default_port() else set())
        return not named.isdisjoint(self.redirects_to)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """The complete answer of a source.

    Args:
        url: The final address; it may hold secrets.
        status: The HTTP status.
        headers: Its headers; names are case-insensitive.
        body: Its bytes, unpacked.
        states_end: Whether a length, chunks or a compressed stream show that it is complete.
    """

    url: URL
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    states_end: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether there is no document: status 204, or a body of nothing but blanks."""
        return len(self.body) <= _BLANK_BYTES and not self.body.strip()

    def __repr__(self) -> str:
        return f"<HttpResponse {self.status}, {len(self.body)} bytes>"


@dataclass(frozen=True, slots=True, repr=False)
class Request:
    """A request; an answer with another status than those of ``accept`` has no body."""

    method: str
    url: URL
    body: object
    headers: Mapping[str, str]
    accept: Collection[int]
    has_left: bool = False
    """Whether a redirect led it to another site, which gets neither keys nor these headers."""

    @property
    def sent_headers(self) -> Mapping[str, str]:
        """The headers that its site gets."""
        if not self.has_left:
            return self.headers
        return {name: text for name, text in self.headers.items() if name.lower() in _MAY_LEAVE}


class UnreachableError(SourceError):
    """Raised when a source's host could not be reached at all."""


class ProxyFailedError(SourceError):
    """Raised when the proxy failed or refused the request, which says nothing about the host."""


class HttpTransport:
    """The single requests of a source, with errors of this package.

    Args:
        source_id: The source, as errors name it.
        session: The connections.
        max_bytes: The largest body that is accepted, unpacked.
        credentials: The secrets; ``None``: the source needs none.
        route: Proxy, certificates and redirects.
    """

    def __init__(
        self,
        source_id: str,
        session: aiohttp.ClientSession,
        max_bytes: int,
        credentials: Credentials | None,
        route: Route | None = None,
    ) -> None:
        self._source_id = source_id
        self._session = session
        self._max_bytes = max_bytes
        self._credentials = credentials
        self.route = route or Route()
        self._proxies: dict[URL, URL | None] = {}
        proxy = self.route.proxy
        of_proxy = [] if proxy is None or proxy.password is None else [proxy.password]
        self._mask = Redactor([*(credentials or _NO_CREDENTIALS).secrets, *of_proxy, *passwords()])
        self.asked_at: datetime | None = None
        """The source's own time at its first request; ``None``: it states none."""

    def masked(self, text: str) -> str:
        """Return a text without this source's secrets, in any encoding."""
        return self._mask.of(text)

    def clean(self, error: BaseException) -> None:
        """Remove this source's secrets from an error and its chained errors."""
        self._mask.clean(error)

    def redact_url(self, url: str | URL) -> str:
        """Return an address without secrets, including this source's keys."""
        sent = str(url)
        hidden = self.masked(sent)
        try:
            # Masked first: a part of a secret may be in the fragment, which is cut off.
            text = self.masked(redact_url(url if hidden == sent else hidden))
        except ValueError:
            text = "an address that is none without its secrets"
        return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"

    def check_host(self, request: Request) -> None:
        """Raise a `SourceError` if the keys are not for the requested host."""
        if (
            self._credentials is not None
            and not request.has_left
            and not self._is_home(request.url)
        ):
            raise SourceError(
                f"Source {self._source_id!r} leads from "
                f"{self.redact_url(self._credentials.origin)} to "
                f"{self.redact_url(request.url)}, another host, which must not receive its key "
                "and was not requested. Set the address to that host if it is the right one.",
                self._source_id,
            )

    def _is_home(self, url: URL) -> bool:
        return self._credentials is not None and is_same_host(self._credentials.origin, url)

    async def send(self, request: Request) -> HttpResponse:
        """Return the answer, whatever its status.

        Raises:
            SourceError: No complete answer arrived; ``transient`` says whether the host failed.
        """
        keys = (
            self._credentials
            if self._credentials is not None and self._is_home(request.url)
            else _NO_CREDENTIALS
        )
        proxy = self._proxy_to(request.url)
        began = time.monotonic()
        try:
            async with self._session.request(
                request.method,
                address(request.url, keys.params),
                json=request.body,
                headers={**request.sent_headers, **keys.headers},
                allow_redirects=False,
                proxy=proxy,
                ssl=self.route.tls,
            ) as response:
                self._note_clock(response, time.monotonic() - began)
                wanted = response.status in request.accept
                if not wanted:
                    return HttpResponse(request.url, response.status, response.headers, b"")
                return await self._read(response, request.url)
        # A TimeoutError is an OSError; a host that is no valid name raises a UnicodeError.
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            failure = self._translated(error, request.url, proxy)
            hides = self._mask or proxy is not None or redact_url(request.url) != str(request.url)
            cause = None if hides else error
        raise failure from cause

    def _proxy_to(self, url: URL) -> URL | None:
        """Return the proxy to an address: once for a host, since the environment is large."""
        site = url.origin()
        if site not in self._proxies:
            proxy = self.route.proxy_to(url)
            self._proxies[site] = None if proxy is None else with_sent_credentials(proxy)
        return self._proxies[site]

    def _note_clock(self, response: aiohttp.ClientResponse, seconds: float) -> None:
        """Keep the source's own time of its first request: a `Date` is that of the answer."""
        if self.asked_at is not None or response.status >= 300:
            return
        date = date_of(response.headers)
        now = datetime.now(UTC)
        if date is None or date - now > _MAX_DATE_AHEAD:
            return
        # A `Date` has no fractions. If the local clock agrees with its second, it supplies those.
        took = timedelta(seconds=seconds)
        agrees = date <= now < date + _DATE_STEP + took
        self.asked_at = (min(now, date + _DATE_STEP) if agrees else date) - took

    async def _read(self, response: aiohttp.ClientResponse, url: URL) -> HttpResponse:
        has_end, body = await self._body(response, url)
        chunks = response.headers.get("Transfer-Encoding", "").lower()
        states_end = has_end or "Content-Length" in response.headers or "chunked" in chunks
        is_open = not states_end and response.status < 300
        if is_open and await off_loop(len(body), lacks_end, body):
            raise self.error(url, "cut its answer off", _NETWORK, transient=True)
        return HttpResponse(url, response.status, response.headers, body, states_end)

    async def _body(self, response: aiohttp.ClientResponse, url: URL) -> tuple[bool, bytes]:
        """Return whether the body has an end of its own, and its bytes."""
        # It returns its content without copying it.
        body = io.BytesIO()
        packed = 0
        try:
            unpacker = Decompressor(response.headers.get("Content-Encoding", ""))
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                packed += len(chunk)
                if packed > self._max_bytes:
                    raise self._too_large(url)
                await self._write(body, unpacker.unpacked(chunk), url)
            await self._write(body, unpacker.finish(), url)
        except DecompressionError as error:
            problem = self.masked(str(error))[:_LONGEST_PROBLEM]
            transient = not isinstance(error, UnknownEncodingError)
        else:
            return unpacker.is_over, body.getvalue()
        raise self.error(url, problem, "check what it answers", transient=transient)

    async def _write(self, body: io.BytesIO, steps: Iterable[bytes], url: URL) -> None:
        for step in steps:
            body.write(step)
            if body.tell() > self._max_bytes:
                raise self._too_large(url)
            if body.tell() >= _CHUNK_BYTES:
                await asyncio.sleep(0)

    def _too_large(self, url: URL) -> SourceError:
        return SourceError(
            f"Source {self._source_id!r} sends more than {self._max_bytes} bytes from "
            f"{self.redact_url(url)}. Check what it publishes, or raise max_bytes of its "
            "connection.",
            self._source_id,
        )

    def _translated(
        self, error: aiohttp.ClientError | OSError | UnicodeError, url: URL, proxy: URL | None
    ) -> SourceError:
        """Return an error without the original's own text, which may hold the address."""
        problem, step, transient = _described(error)
        kind: type[SourceError] = SourceError
        if isinstance(error, aiohttp.ClientHttpProxyError) or _is_unreachable(error):
            kind = UnreachableError if proxy is None else ProxyFailedError
        if proxy is not None:
            problem += f" through the proxy {self.redact_url(proxy)}"
        problem = f"{problem} ({type(error).__name__})"
        return self.error(
            url, problem, step, transient=transient, kind=kind if transient else SourceError
        )

    def error(
        self,
        url: str | URL,
        problem: str,
        step: str,
        *,
        transient: bool = False,
        kind: type[SourceError] = SourceError,
    ) -> SourceError:
        """Return the error for a problem at an address, with the next step."""
        problem = f"Source {self._source_id!r} {problem} at {self.redact_url(url)}"
        return kind(self.masked(with_step(problem, step)), self._source_id, transient=transient)


def _is_unreachable(error: Exception) -> bool:
    """Return whether no connection was made: to the host, or to the proxy if there is one."""
    return isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)


def _described(error: aiohttp.ClientError | OSError | UnicodeError) -> tuple[str, str, bool]:
    """Return the problem, the next step, and whether the same request may succeed later."""
    step = _NETWORK
    if isinstance(error, UnicodeError):
        return "has an invalid host name", "check the address", False
    if told := tls_failure(error):
        return f"could not be reached by TLS: {told[0]}", told[1], False
    if isinstance(error, aiohttp.ClientHttpProxyError):
        problem = f"was refused by the proxy with status {error.status}"
        return problem, "check the proxy and what it requires", error.status >= 500
    if isinstance(error, TimeoutError):
        return "did not answer in time", step, True
    if isinstance(error, aiohttp.ClientPayloadError):
        return "cut its answer off", step, True
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return "could not be reached, or closed the connection", step, True
    if isinstance(error, aiohttp.ClientResponseError):
        if error.message.startswith(_TOO_LONG):
            return (
                "answered with a header that is too long, beyond 64 KiB,",
                "check its headers",
                False,
            )
        if error.message.startswith(_TOO_MANY):
            return "answered with too many headers", "check its headers", False
    return "did not answer in HTTP", step, False


def address(url: str | URL, params: Parameters | None) -> URL:
    """Return ``url`` with ``params``, which replace parameters of the same names."""
    return with_parameters(url if isinstance(url, URL) else as_written(url), params or {})
