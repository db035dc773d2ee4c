"""One request of a source, and its answer: where secrets go, and where aiohttp's errors end.

- Keys go to the host that they are for and to no other, whatever a redirect or a feed says.
- An address appears in messages without user, password, query, fragment and keys. Where there is
  anything to hide, the original error is not chained, since it may carry all of it.
- A body is never larger than its limit in memory, and an answer that nobody wants is not read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from ladon_storage.collection.sources.addresses import is_same_host, shown
from ladon_storage.errors import SourceError

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
class Request:
    """Be what is asked for; an answer with another status than those of ``accept`` has no body."""

    method: str
    url: URL
    body: object
    headers: Mapping[str, str]
    accept: Collection[int]


class Exchange:
    """Make single requests, and say in our words what came of them.

    Args:
        source_id: The source, as errors name it.
        session: The connections.
        max_bytes: The largest body that is accepted, unpacked.
        keys: The secrets; ``None``: it needs none.
    """

    def __init__(
        self, source_id: str, session: aiohttp.ClientSession, max_bytes: int, keys: Keys | None
    ) -> None:
        self._source_id = source_id
        self._session = session
        self._max_bytes = max_bytes
        self._keys = keys
        self._hidden = _hidden(keys)

    def shown(self, url: str | URL) -> str:
        """Return an address without what may be secret, this source's keys included."""
        text = shown(url)
        for each in self._hidden:
            text = text.replace(each, "***")
        return text

    def check_host(self, url: URL) -> None:
        """Raise a `SourceError` if the keys are not for the host of ``url``."""
        if self._keys is not None and not is_same_host(self._keys.home, url):
            raise SourceError(
                f"Source {self._source_id!r} leads from {self.shown(self._keys.home)} to "
                f"{self.shown(url)}, another host, which must not get its key and was not asked; "
                "set the address to that host, if it is the right one.",
                self._source_id,
            )

    async def make(self, request: Request) -> HttpAnswer:
        """Return the answer, whatever its status.

        Raises:
            SourceError: None arrived whole; ``transient`` says whether the host failed.
        """
        keys = self._keys or _NO_KEYS
        try:
            async with self._session.request(
                request.method,
                address(request.url, keys.params),
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
        return self.error(url, problem, "check the address and the network", transient=transient)

    def error(self, url: URL, problem: str, step: str, *, transient: bool = False) -> SourceError:
        """Return the error that says what is wrong at an address, and what to do."""
        return SourceError(
            f"Source {self._source_id!r} {problem} at {self.shown(url)}; {step}.",
            self._source_id,
            transient=transient,
        )


def _hidden(keys: Keys | None) -> frozenset[str]:
    if keys is None:
        return frozenset()
    secrets = [
        each for each in (*keys.headers.values(), *keys.params.values(), *keys.hidden) if each
    ]
    return frozenset(secrets + [quote(each, safe="") for each in secrets])


def address(url: str | URL, params: Parameters | None) -> URL:
    """Return ``url`` with ``params``, which replace what it says of the same names."""
    return URL(url).update_query(params) if params else URL(url)
