"""The client of LADON's Storage Service: its contract, by the requests of `transport`.

- The service's own 404 on GET is a normal response. A gateway's 404, which means that the service
  is gone, is a failure.
- The additions to the base contract are used only after a response of the service had a version as
  its ``ETag``: a framework may tag any service's responses by their content. From then on they are:
  a gateway or a cache may drop the tag of one response.
- A version that the caller gives is always sent. Without it a write would be unfenced unnoticed.
- No secret leaves: see `redaction`.
"""

from __future__ import annotations

import contextlib
import logging
import math
from functools import lru_cache
from types import TracebackType
from typing import Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from ladon_storage.circuit.breaker import CircuitBreaker, CircuitChange, CircuitState
from ladon_storage.client import metrics
from ladon_storage.client.batches import BatchRequests
from ladon_storage.client.failures import log_fields
from ladon_storage.client.keywords import KeywordUpdate
from ladon_storage.client.operating import OperatorRequests
from ladon_storage.client.pool import FilePath, Pool, SessionPools, tls_context
from ladon_storage.client.redaction import address_of
from ladon_storage.client.responses import (
    NO_VERSION,
    Response,
    acknowledged,
    history_of,
    is_about,
    is_own,
    is_version,
    names_a_route,
    object_of,
    says_nothing,
    unhealthy,
    watermark_of,
)
from ladon_storage.client.transport import API_PATH, Transport, new_request_id
from ladon_storage.errors import (
    CircuitOpenError,
    ConfigurationError,
    InvalidResponseError,
    StorageConnectionError,
    StorageError,
    StorageResponseError,
    StorageUnhealthyError,
)
from ladon_storage.models import (
    BASE_FIELDS,
    REQUEST_ID,
    UNCONDITIONAL,
    HistoryPage,
    Precondition,
    Watermark,
    WatermarkUpdate,
)
from ladon_storage.values import check_source_id

logger = logging.getLogger(__name__)

_ADDITIONS = frozenset(WatermarkUpdate.model_fields) - BASE_FIELDS


class StorageServiceClient(KeywordUpdate, OperatorRequests, BatchRequests):
    """A client that reads and writes watermarks, and stops calling a service that keeps failing.

    Any number of tasks, event loops and threads may share one client. Each loop gets its own pool,
    which is made at the first request and closed by `close` or with its loop.

    Args:
        base_url: URL of the service; ``user:password@`` becomes basic authentication.
        timeout: Seconds for one request, and for waiting for a free slot of the pool.
        verify_ssl: Whether the service's certificate is checked.
        environment: In ``production`` an unhealthy service raises, elsewhere it does not.
        max_connections: The most requests in flight at once on one event loop.
        max_connections_per_host: The same for one host; the smaller of both holds.
        token: Bearer token.
        circuit_breaker: The circuit; one that opens after 5 failures for 60 s unless given.
        ca_file: Certificates of a private authority (PEM).
        client_cert: Certificate that the client presents (PEM).
        client_key: Key of ``client_cert`` (PEM), where it is in a separate file.
        allow_unverified_ssl: Allow ``verify_ssl=False`` for https in production.
        max_response_bytes: Bytes of the largest response that is read, decompressed.

    Raises:
        ConfigurationError: The arguments make no sense together, or a file cannot be used.

    Example:
        ```python
        async with StorageServiceClient("http://storage:8000") as client:
            watermark = await client.get_watermark("kev")
        ```
    """

    def __init__(
        self,
        base_url: str,
        timeout: float = 30,
        verify_ssl: bool = True,
        environment: str = "production",
        max_connections: int = 100,
        max_connections_per_host: int = 30,
        *,
        token: str | None = None,
        circuit_breaker: CircuitBreaker | None = None,
        ca_file: FilePath | None = None,
        client_cert: FilePath | None = None,
        client_key: FilePath | None = None,
        allow_unverified_ssl: bool = False,
        max_response_bytes: int = 2**20,
    ) -> None:
        self._address = address_of(base_url, token)
        url = self._address.url
        if not (math.isfinite(timeout) and timeout > 0):
            raise ConfigurationError(f"timeout should be above 0 seconds, not {timeout}.")
        if max_connections < 1 or max_connections_per_host < 1 or max_response_bytes < 1:
            raise ConfigurationError(
                "max_connections, max_connections_per_host and max_response_bytes should be 1 or "
                f"more, not {max_connections}, {max_connections_per_host} and {max_response_bytes}."
            )
        self.base_url = str(url)
        self.timeout = timeout
        self.verify_ssl = verify_ssl
        self.environment = environment
        self.max_connections = max_connections
        self.max_connections_per_host = max_connections_per_host
        self.circuit_breaker = circuit_breaker or CircuitBreaker()
        self._watermarks = f"{self.base_url}/{API_PATH}/"
        # Whether any response showed them: then a 404 of another form is not the service's.
        # None before the first one that could.
        self._shown_additions: bool | None = None
        if not verify_ssl:
            self._refuse_or_warn(url, allowed=allow_unverified_ssl)
        self._pools = SessionPools(
            max_connections,
            max_connections_per_host,
            tls_context(
                verify=verify_ssl,
                ca_file=ca_file,
                client_cert=client_cert,
                client_key=client_key,
            ),
            {
                "timeout": aiohttp.ClientTimeout(total=timeout),
                "headers": {**self._address.headers, "Accept-Encoding": "identity"},
                "auto_decompress": False,
            },
        )
        self._transport = Transport(
            self._address, self._pools, self.circuit_breaker, timeout, max_response_bytes
        )
        if metrics.watch_circuit(self.circuit_breaker):  # clients may share one
            self.circuit_breaker.add_listener(_circuit_changed)

    def __repr__(self) -> str:
        return f"<StorageServiceClient of {self.base_url}, circuit {self.circuit_breaker.state}>"

    @property
    def _is_production(self) -> bool:
        return self.environment.strip().lower() == "production"

    def _refuse_or_warn(self, url: URL, *, allowed: bool) -> None:
        if url.scheme == "https" and self._is_production and not allowed:
            raise ConfigurationError(
                f"verify_ssl=False is refused for {url} in production; set ca_file for a private "
                "authority, or allow it with allow_unverified_ssl=True."
            )
        logger.warning(
            "The certificate of the Storage Service at %s is not verified; anyone between here "
            "and there can read and change watermarks.",
            url,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections of the running event loop; the next request makes new ones."""
        await self._pools.close()

    async def get_watermark(self, source_id: str) -> Watermark | None:
        """Return the watermark of ``source_id``, or ``None`` if it was never collected.

        ``None`` is the service's own 404 and nothing else. Every failure to read a watermark
        raises, and so does a gateway's 404.

        Raises:
            ValueError: ``source_id`` cannot name a source.
            CircuitOpenError: The service was not called, since it keeps failing.
            StorageError: The service did not answer, or not with a watermark.
        """
        url = _url(self._watermarks, check_source_id(source_id))
        return await self._transport.call("GET", source_id, url, self._read_watermark)

    async def watermark_history(
        self, source_id: str, *, moved: bool = False, limit: int = 100, before: int | None = None
    ) -> HistoryPage | None:
        """Return a page of the changes of a watermark, the latest first.

        Args:
            source_id: The source.
            moved: Only the changes that moved or deleted the watermark.
            limit: The most changes of the page.
            before: ``next`` of the page before.

        Returns:
            The page, or ``None`` from a service that keeps no history.

        Raises:
            ValueError: ``source_id`` cannot name a source.
            CircuitOpenError: The service was not called, since it keeps failing.
            StorageError: The service did not answer, or not with a history.
        """
        url = _url(self._watermarks, check_source_id(source_id))
        if not self.has_additions:
            return None
        query = {"limit": str(limit)}
        query |= {"moved": "true"} if moved else {}
        query |= {} if before is None else {"before": str(before)}
        url = (url / "history").with_query(query)
        return await self._transport.call("GET", source_id, url, self._read_history)

    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = UNCONDITIONAL
    ) -> Watermark:
        """Write the outcome of a run, and return the stored watermark.

        A service that has sent no version as ``ETag`` gets only the base contract's fields, and no
        precondition but an ``if_match``.

        Raises:
            ValueError: ``source_id`` cannot name a source.
            WatermarkConflictError: Another run, or a later success, was faster.
            WatermarkInFutureError: It is a success far ahead of the service's clock.
            CircuitOpenError: The service was not called, since it keeps failing.
            StorageError: The service did not answer, or not with a watermark.
        """
        if_match = precondition.if_match
        # Before the first response, a tag can only be one that the service gave to another client.
        extended = self._shown_additions
        if extended is None and if_match is not None:
            extended = if_match == "*" or is_version(if_match.partition(",")[0])
        body = update.model_dump_json(
            exclude_none=True, exclude=None if extended else set(_ADDITIONS)
        )
        headers = {"Content-Type": "application/json"}
        if if_match is not None:
            headers["If-Match"] = if_match
        if extended and precondition.if_none_match:
            headers["If-None-Match"] = "*"
        url = _url(self._watermarks, check_source_id(source_id))
        return await self._transport.call(
            "PUT", source_id, url, self._read_stored, body.encode(), headers
        )

    async def health_check(self, *, through_circuit: bool = False) -> bool:
        """Return whether the service is healthy, whatever the state of its circuit.

        Args:
            through_circuit: Make the check a call like any other: the service is not called while
                the circuit is open, and a failed check counts. A successful check does not count: a
                service that reports itself healthy may still fail at its work.

        Raises:
            StorageUnhealthyError: The service is unhealthy or unreachable, in production.
        """
        status: int | None = None
        problem: Exception | str | None
        request_id = new_request_id()
        try:
            answer = await (
                self._transport.probe_health(request_id)
                if through_circuit
                else self._transport.ask_health(request_id)
            )
            status = answer.status
            problem = unhealthy(answer)
            self._note_batches(answer)
            if problem is None and answer.etag == NO_VERSION:
                self._shown_additions = True
        except Exception as error:
            status, problem = getattr(error, "status", None), error
        if problem is None:
            metrics.count_request("GET", status)
            return True
        metrics.count_request("GET", status, "health_check_failed")
        place = self._address.place
        text = f"{place} is unhealthy: {str(problem).replace(place, 'it')}"
        failure = StorageUnhealthyError(text, status)
        if isinstance(problem, Exception):
            failure.__cause__ = problem
        if isinstance(problem, CircuitOpenError):
            failure.transient = False
        logger.log(
            logging.ERROR if self._is_production else logging.WARNING,
            "%s (health_check_failed, request %s)",
            text,
            request_id,
            exc_info=failure,
            extra=log_fields(None, "health_check_failed", status, request_id),
        )
        if self._is_production:
            raise failure
        return False

    async def _read_watermark(
        self, answer: Response, source_id: str, pool: Pool
    ) -> Watermark | None:
        """Return the watermark of a response, and note whether the service has the additions."""
        self._note_batches(answer)
        if answer.status == 404:
            await self._believe(answer, source_id, pool)
            return None
        watermark = watermark_of(answer, source_id)
        self._shown_additions = self.has_additions or is_version(watermark.etag)
        return watermark

    async def _read_stored(self, answer: Response, source_id: str, pool: Pool) -> Watermark:
        """Return the watermark of the response to a write.

        A base service may answer no more than a status, and a stub always does. The service is
        believed unless a stub answers a read, too: a copy that is behind, or a service that keeps
        no run before its end, has no watermark yet.
        """
        stored = None if self.has_additions else acknowledged(answer, source_id)
        if stored is None:
            watermark = await self._read_watermark(answer, source_id, pool)
            assert watermark is not None  # noqa: S101 - only a GET's 404 is None
            return watermark
        url, headers = _url(self._watermarks, source_id), {REQUEST_ID: new_request_id()}
        with contextlib.suppress(StorageConnectionError, StorageResponseError):
            read = await self._transport.send(pool, "GET", url, headers=headers)
            await self._read_watermark(read, source_id, pool)
        return stored

    async def _read_history(
        self, answer: Response, source_id: str, pool: Pool
    ) -> HistoryPage | None:
        if answer.status == 404:
            await self._believe(answer, source_id, pool)
            return None
        return history_of(answer, source_id)

    async def _believe(self, answer: Response, source_id: str, pool: Pool) -> None:
        """Return if a 404 says that the source was never collected.

        Raises:
            InvalidResponseError: The 404 is a gateway's, which means that there is no service.
        """
        fields = object_of(answer.body)
        if is_own(fields, answer.etag):
            self._shown_additions = True
            return
        if self.has_additions:
            problem = "not in the service's own words"
        elif fields is None:
            if not answer.body.strip():
                return  # All that the base contract asks for.
            problem = "in no words of a service"
        elif names_a_route(fields):
            problem = "in the words of a gateway"
        elif says_nothing(fields):
            if await self._is_there(pool):
                return
            problem = "and to its health check too"
        elif is_about(fields, source_id):
            return
        else:
            problem = "in words about something else"
        said = self._address.excerpt(answer.body)
        error = InvalidResponseError(
            f"{self._address.place} answered 404 to GET, {problem}"
            f"{f' ({said})' if said else ''}: that is not taken for a source that was never "
            "collected; see what answers there.",
            404,
        )
        error.transient = True  # as long as a service is restarted, its gateway says 404
        raise error

    async def _is_there(self, pool: Pool) -> bool:
        """Return whether a service that answers *not found* has the base contract's other routes.

        Without a response to that question, the first 404 stands.
        """
        try:
            answer = await self._transport.health(pool, new_request_id())
        except StorageError:
            return True
        return answer.status != 404 and answer.etag != NO_VERSION


@lru_cache(maxsize=1024)
def _url(watermarks: str, source_id: str) -> URL:
    return URL(watermarks + quote(source_id, safe=""), encoded=True)


def _circuit_changed(change: CircuitChange) -> None:
    metrics.count_change(change)
    logger.log(
        logging.WARNING if change.after is CircuitState.OPEN else logging.INFO,
        "The circuit of %s went from %s to %s: %s",
        change.name,
        change.before,
        change.after,
        change.reason,
    )
