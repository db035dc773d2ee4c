"""The one place where sources speak HTTP, and where aiohttp's errors become ours.

- What can be repeated is repeated here and nowhere above: a connection that failed, a timeout, a
  body that was cut off on its way, and the statuses that ask for it. `Retry-After` is honoured.
- A document that arrived whole and is not JSON is not asked for again: it was published like that.
- An address appears in messages without user, password, query and fragment. Where it has any of
  them, the original error is not chained, since it may carry the whole address.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, NoReturn

import aiohttp
import stamina
from pydantic import AfterValidator
from yarl import URL

from ladon_storage.errors import SourceError
from ladon_storage.models import to_utc

logger = logging.getLogger(__name__)

MAX_DOCUMENT_BYTES = 256 * 2**20
"""Bytes of a whole document, unpacked: a hundred times what the largest feed here publishes."""

ATTEMPTS = 5
RETRY_SECONDS = 600.0
"""When this is over, an attempt that fails is the last one."""

MAX_RETRY_AFTER_SECONDS = 120.0

# The total ends an answer that trickles in for ever, which no timeout of a single read does.
_TIMEOUT = aiohttp.ClientTimeout(total=300, sock_connect=30, sock_read=60)
_REPEATABLE_STATUSES = frozenset({408, 425, 429})
_CHUNK_BYTES = 2**16


def check_url(value: str) -> str:
    """Return ``value`` if it is an http or https address with a host.

    Raises:
        ValueError: It is not.
    """
    try:
        url = URL(value)
        usable = url.scheme in ("http", "https") and bool(url.host)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("should be an address such as https://feeds.example.org/recent.json")
    return value


HttpUrl = Annotated[str, AfterValidator(check_url)]
"""An http or https address, kept as it was written."""


def shown(url: str) -> str:
    """Return ``url`` without what may be secret.

    >>> shown("https://me:secret@feeds.example.org/recent?key=secret#top")
    'https://feeds.example.org/recent'
    """
    return str(URL(url).with_user(None).with_query(None).with_fragment(None))


class SourceHttp:
    """Make the requests of one source, and repeat those that can be repeated.

    Args:
        source_id: The source, as errors name it.
        session: The connections; it belongs to `source_http`, which closes it.
        max_bytes: The largest body that is accepted, unpacked.
    """

    def __init__(
        self, source_id: str, session: aiohttp.ClientSession, max_bytes: int = MAX_DOCUMENT_BYTES
    ) -> None:
        self._source_id = source_id
        self._session = session
        self._max_bytes = max_bytes

    async def get_json(self, url: str) -> Any:
        """Return the JSON document at ``url``.

        Raises:
            SourceError: It did not arrive, or is not JSON.
        """
        body = await self.get(url)
        try:
            return json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        # Raised outside of the handler: the parser's error holds the whole document.
        raise SourceError(
            f"The document of source {self._source_id!r} at {shown(url)} is not JSON, after "
            f"{len(body)} bytes that arrived whole: {problem}; nothing of it was stored, see what "
            "the source publishes.",
            self._source_id,
        )

    async def get(self, url: str) -> bytes:
        """Return the body at ``url``.

        Raises:
            SourceError: It did not arrive, also not when asked for again where that makes sense.
        """
        async for attempt in stamina.retry_context(
            on=_wait_before_retry,
            attempts=ATTEMPTS,
            timeout=RETRY_SECONDS,
            wait_initial=0.5,
            wait_max=30.0,
            wait_jitter=1.0,
        ):
            with attempt:
                try:
                    return await self._get_once(url)
                except SourceError as error:
                    if error.transient:
                        logger.warning(
                            "%s (attempt %d of %d)",
                            error,
                            attempt.num,
                            ATTEMPTS,
                            extra={"source_id": self._source_id},
                        )
                    raise
        raise AssertionError("stamina ends with a result or an error")

    async def _get_once(self, url: str) -> bytes:
        try:
            async with self._session.get(url) as response:
                if response.status != 200:
                    self._refuse_status(response, url)
                return await self._body(response, url)
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            failure = self._translated(error, url)
            cause = error if shown(url) == url else None
        raise failure from cause

    async def _body(self, response: aiohttp.ClientResponse, url: str) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > self._max_bytes:
                raise SourceError(
                    f"Source {self._source_id!r} sends more than {self._max_bytes} bytes from "
                    f"{shown(url)}; see what it publishes.",
                    self._source_id,
                )
        return bytes(body)

    def _refuse_status(self, response: aiohttp.ClientResponse, url: str) -> NoReturn:
        transient = response.status >= 500 or response.status in _REPEATABLE_STATUSES
        step = "try again later" if transient else "check its address and what it requires"
        raise SourceError(
            f"Source {self._source_id!r} answered {response.status} from {shown(url)}; {step}.",
            self._source_id,
            transient=transient,
            retry_after=_retry_after(response.headers.get("Retry-After"), datetime.now(UTC)),
        )

    def _translated(self, error: aiohttp.ClientError | OSError, url: str) -> SourceError:
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
            problem, transient = "answered something that is not HTTP, or redirects nowhere", False
        return SourceError(
            f"Source {self._source_id!r} {problem} ({type(error).__name__}) at {shown(url)}; "
            "check the address and the network.",
            self._source_id,
            transient=transient,
        )


@asynccontextmanager
async def source_http(
    source_id: str, *, max_bytes: int = MAX_DOCUMENT_BYTES
) -> AsyncIterator[SourceHttp]:
    """Give the HTTP of one source for the time of one run."""
    async with aiohttp.ClientSession(
        timeout=_TIMEOUT, headers={"User-Agent": "ladon-storage", "Accept": "application/json"}
    ) as session:
        yield SourceHttp(source_id, session, max_bytes)


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
