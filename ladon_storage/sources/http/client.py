"""The only HTTP client of the sources: requests, and the documents in their answers.

- A document that arrived whole and is not JSON is not requested again: it was published like that.
- Errors, and texts of answers in them, are without the source's secrets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import aiohttp
from yarl import URL

from ladon_storage.errors import SourceError
from ladon_storage.sources.fields import MAX_ANSWER_BYTES, Connection, Rate
from ladon_storage.sources.http.connections import open_session, route_of, shared_connections
from ladon_storage.sources.http.sending import RequestSender
from ladon_storage.sources.http.transport import (
    OK,
    Credentials,
    HttpResponse,
    HttpTransport,
    Parameters,
    Request,
    Route,
    address,
)
from ladon_storage.sources.json.bounds import TooMuchError
from ladon_storage.sources.json.documents import (
    Document,
    parse,
    read_document,
)
from ladon_storage.sources.json.unique_keys import DuplicateKeyError
from ladon_storage.sources.problems import with_step

__all__ = [
    "OK",
    "Credentials",
    "HttpResponse",
    "SourceHttp",
    "shared_connections",
    "source_http",
]


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
        max_bytes: int = MAX_ANSWER_BYTES,
        *,
        credentials: Credentials | None = None,
        rate: Rate | None = None,
        throttle_statuses: Collection[int] = (),
        route: Route | None = None,
    ) -> None:
        self._source_id = source_id
        self._transport = HttpTransport(source_id, session, max_bytes, credentials, route)
        self._sender = RequestSender(source_id, self._transport, rate, throttle_statuses)

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
        reasons = [
            f"{name} {self.quoted(document[name])}"
            for name in _REASONS
            if document.get(name) not in (None, "", [], {})
        ]
        return f"; it says {', '.join(reasons[:3])}" if reasons else ""

    def clean(self, error: BaseException) -> None:
        """Remove this source's secrets from an error and its chained errors."""
        self._transport.clean(error)

    def error(self, problem: str, step: str, *, transient: bool = False) -> SourceError:
        """Return a `SourceError` of the source with a masked text: a problem, and the next step."""
        return SourceError(
            self.masked(with_step(problem, step)), self._source_id, transient=transient
        )

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
                f"Source {self._source_id!r} answered 204 from {self.redact_url(answer.url)} "
                "without a document. Check what it publishes.",
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
        arrived = "that arrived completely" if answer.states_end else "whose end nothing states"
        return self.error(
            f"The document of source {self._source_id!r} at {self.redact_url(answer.url)} "
            f"{what}, after {len(answer.body)} bytes {arrived}: {why}",
            "nothing of it was stored; check what the source publishes",
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
        return await self._sender.send(request, idempotent=idempotent)

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
        return await self._sender.send(request, idempotent=idempotent)

    def _address(self, url: str | URL, params: Parameters | None) -> URL:
        try:
            return address(url, params)
        except ValueError:
            pass
        # Neither chained nor shown: an invalid address may have a secret anywhere.
        raise SourceError(
            f"Source {self._source_id!r} leads to an invalid address. Check its settings "
            "and its answers.",
            self._source_id,
        )


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
    route = await route_of(source_id, connection)
    async with open_session(connection) as session:
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


def _unparsed(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is not JSON: it is nested too deeply"
    if isinstance(error, DuplicateKeyError):
        return f"is ambiguous: {error}"
    return f"{'is too much' if isinstance(error, TooMuchError) else 'is not JSON'}: {error}"
