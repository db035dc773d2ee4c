"""The client of LADON's Storage Service, the only place that translates aiohttp's errors.

- A request takes a slot of the pool first and the circuit's permit second: waiting for a slot is no
  evidence about the service, and must not hold a probe's place.
- The status is judged before the body is parsed. 5xx, no response, and a response that breaks the
  contract count as failures; another 4xx counts as nothing. The service's own 404 on GET is a
  normal response. A gateway's 404, which means that the service is gone, is a failure.
- No request is retried here. A caller that retries depends on ``StorageError.transient``.
- The additions to the base contract are used only after a response of the service had an ``ETag``.
- No secret leaves: the base URL is kept without credentials, and aiohttp's errors, which carry the
  request's headers, are stripped of them before they are chained.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import re
import ssl
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDict, CIMultiDictProxy
from pydantic import ValidationError
from pydantic_core import from_json, to_json
from yarl import URL

from ladon_storage.circuit.breaker import CircuitBreaker, CircuitChange, CircuitState
from ladon_storage.client import metrics, tracing
from ladon_storage.client.keywords import KeywordUpdate
from ladon_storage.client.pool import FilePath, Pool, SessionPools, tls_context
from ladon_storage.errors import (
    CircuitOpenError,
    CircuitUndecidedError,
    ConfigurationError,
    InvalidResponseError,
    PoolTimeoutError,
    StorageConnectionError,
    StorageError,
    StorageResponseError,
    StorageTimeoutError,
    StorageUnhealthyError,
    WatermarkConflictError,
    WatermarkInFutureError,
)
from ladon_storage.models import (
    BASE_FIELDS,
    SERVICE_TIME,
    UNCONDITIONAL,
    HistoryPage,
    Precondition,
    Watermark,
    WatermarkUpdate,
    check_source_id,
    instant_of,
)

logger = logging.getLogger(__name__)

API_PATH = "api/v1/watermarks"
LONGEST_EXCERPT = 300
LONGEST_ERROR_BODY = 16_384
# A refusal has arrived; its text is worth no longer wait than this.
ERROR_BODY_SECONDS = 1.0
MAX_RETRY_AFTER_SECONDS = 300.0

NO_VERSION = '"0"'
"""The embedded service's tag for a source without a version."""

_NO_ROUTE = re.compile(
    r"no route|route not found|no such route|cannot get |requested url|upstream|backend|bucket|"
    r"proxy|deployed|application|\bdns\b|\bhost\b|\bservices? \""
)
_NOT_FOUND = (
    "",
    "not found",
    "404",
    "404 not found",
    "not_found",
    "notfound",
    "resource not found",
)
_ABOUT_IT = re.compile(r"watermark|collected|\bsources?(\b|_id)")
_ROUTE = re.compile(r"\S*/?watermarks/\S*")
_BESIDE = re.compile("path|instance|type|timestamp|method|ur[il]|.*id")
"""The fields of a JSON error that do not describe the fault."""
_ADDITIONS = frozenset(WatermarkUpdate.model_fields) - BASE_FIELDS

T = TypeVar("T")

_DISTRUST = (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch, ssl.SSLError)


class _Response(NamedTuple):
    status: int
    etag: str | None
    body: bytes
    date: str | None


class StorageServiceClient(KeywordUpdate):
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
        url, authorization, self._secrets = _address(base_url, token)
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
        self._max_response_bytes = max_response_bytes
        # None before the first response that could show it.
        self._extended: bool | None = None
        # Whether any response ever showed it: then a 404 of another form is not the service's.
        self._has_shown_more = False
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
                "headers": {**authorization, "Accept-Encoding": "identity"},
                "auto_decompress": False,
            },
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
            "The certificate of the Storage Service at %s is not verified; anybody between here "
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
        return await self._exchange("GET", source_id, url)

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
        if not self._extended:
            return None
        query = {"limit": str(limit)}
        query |= {"moved": "true"} if moved else {}
        query |= {} if before is None else {"before": str(before)}
        return await self._call("GET", source_id, (url / "history").with_query(query), _history)

    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = UNCONDITIONAL
    ) -> Watermark:
        """Write the outcome of a run, and return the stored watermark.

        A service that has sent no ``ETag`` gets only the base contract's fields, and no
        precondition.

        Raises:
            ValueError: ``source_id`` cannot name a source.
            WatermarkConflictError: Another run, or a later success, was faster.
            WatermarkInFutureError: It is a success far ahead of the service's clock.
            CircuitOpenError: The service was not called, since it keeps failing.
            StorageError: The service did not answer, or not with a watermark.
        """
        if_match = precondition.if_match
        # Before the first response, a tag can only be one that the service gave to another client.
        extended = if_match is not None if self._extended is None else self._extended
        body = update.model_dump_json(
            exclude_none=True, exclude=None if extended else set(_ADDITIONS)
        )
        headers = {"Content-Type": "application/json"}
        if extended and if_match is not None:
            headers["If-Match"] = if_match
        if extended and precondition.if_none_match:
            headers["If-None-Match"] = "*"
        url = _url(self._watermarks, check_source_id(source_id))
        stored = await self._exchange("PUT", source_id, url, body.encode(), headers)
        assert stored is not None  # noqa: S101 - only a GET's 404 is None
        return stored

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
        try:
            answer = await (self._probe_health() if through_circuit else self._ask_health())
            status = answer.status
            problem = _unhealthy(answer)
            if problem is None and answer.etag == NO_VERSION:
                self._has_shown_more = True
        except Exception as error:
            status, problem = getattr(error, "status", None), error
        if problem is None:
            metrics.count_request("GET", status)
            return True
        metrics.count_request("GET", status, "health_check_failed")
        place = f"The Storage Service at {self.base_url}"
        text = f"{place} is unhealthy: {str(problem).replace(place, 'it')}"
        unhealthy = StorageUnhealthyError(text, status)
        if isinstance(problem, Exception):
            unhealthy.__cause__ = problem
        if isinstance(problem, CircuitOpenError):
            unhealthy.transient = False
        logger.log(
            logging.ERROR if self._is_production else logging.WARNING,
            "%s (health_check_failed)",
            text,
            exc_info=unhealthy,
            extra=_extra(None, "health_check_failed", status),
        )
        if self._is_production:
            raise unhealthy
        return False

    async def _ask_health(self) -> _Response:
        pool = await self._pools.take(self.timeout)
        try:
            return await self._send(pool, "GET", URL(f"{self.base_url}/health"))
        finally:
            pool.give()

    async def _probe_health(self) -> _Response:
        permit = await self.circuit_breaker.admit()
        try:
            answer = await self._ask_health()
        except BaseException as error:
            if _is_failure(error):
                self.circuit_breaker.failure(permit)
            else:
                self.circuit_breaker.release(permit)
            raise
        self.circuit_breaker.release(permit)
        return answer

    async def _exchange(
        self,
        method: str,
        source_id: str,
        url: URL,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Watermark | None:
        """Read or write a watermark, and note whether the service has the additions."""
        watermark = await self._call(method, source_id, url, _watermark, body, headers)
        if watermark is not None:
            self._extended = watermark.etag is not None
            self._has_shown_more |= self._extended
        return watermark

    async def _call(
        self,
        method: str,
        source_id: str,
        url: URL,
        read: Callable[[_Response, str], T],
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> T | None:
        """Make one request when the pool and the circuit admit it, and note its outcome."""
        breaker = self.circuit_breaker
        try:
            pool = self._pools.take_free()
            if pool is None:
                breaker.check()  # A call that would be rejected does not wait for a slot.
                pool = await self._pools.take(self.timeout)
            try:
                try:
                    permit = breaker.acquire()
                except CircuitUndecidedError:  # only where processes share the circuit
                    permit = await breaker.admit()
                try:
                    answer = await self._send(pool, method, url, body, headers)
                    if answer.status == 404:
                        await self._believe(answer, source_id, pool)
                        result = None
                    else:
                        result = read(answer, source_id)
                except BaseException as error:
                    if _is_failure(error) and not pool.session.closed:
                        breaker.failure(permit)
                    else:
                        breaker.release(permit)
                    raise
                breaker.success(permit)
            finally:
                pool.give()
        except Exception as error:
            self._note_failure(method, source_id, error)
            raise
        metrics.count_request(method, answer.status)
        return result

    async def _believe(self, answer: _Response, source_id: str, pool: Pool) -> None:
        """Return if a 404 says that the source was never collected.

        Raises:
            InvalidResponseError: The 404 is a gateway's, which means that there is no service.
        """
        fields = _object(answer.body)
        if _is_own(fields, answer.etag):
            self._extended = self._has_shown_more = True
            return
        if self._has_shown_more:
            problem = "not in the service's own words"
        elif fields is None:
            if not answer.body.strip():
                return  # All that the base contract asks for.
            problem = "in no words of a service"
        elif _names_a_route(fields):
            problem = "in the words of a gateway"
        elif _says_nothing(fields):
            if await self._is_there(pool):
                return
            problem = "and to its health check too"
        elif _is_about(fields, source_id):
            return
        else:
            problem = "in words about something else"
        said = self._excerpt(answer.body)
        error = InvalidResponseError(
            f"The Storage Service at {self.base_url} answered 404 to GET, {problem}"
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
            answer = await self._send(pool, "GET", URL(f"{self.base_url}/health"))
        except StorageError:
            return True
        return answer.status != 404 and answer.etag != NO_VERSION

    async def _send(
        self,
        pool: Pool,
        method: str,
        url: URL,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> _Response:
        """Return a response of 2xx, or the 404 of a GET; raise this package's error otherwise."""
        tracer = tracing.tracer()
        if tracer is None:
            return await self._ask(pool, method, url, body, headers)
        with tracing.request_span(tracer, method, url, API_PATH) as span:
            answer = await self._ask(pool, method, url, body, headers)
            span.set_attribute("http.response.status_code", answer.status)
        return answer

    async def _ask(
        self,
        pool: Pool,
        method: str,
        url: URL,
        body: bytes | None,
        headers: dict[str, str] | None,
    ) -> _Response:
        started = time.perf_counter()
        try:
            # Not `async with`: aiohttp enters two contexts of its own around this same release.
            response = await pool.session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            )
            pool.has_answered()
            try:
                status = response.status
                if 200 <= status < 300:
                    content = await self._read(response, self._max_response_bytes)
                elif status == 404 and method == "GET":
                    content = await self._read_soon(response)
                else:
                    raise self._refusal(response, method, await self._error_text(response))
                told = response.headers
                # A gateway may write a `Date` of its own, by a clock that is wrong.
                date = told.get(SERVICE_TIME) or told.get(hdrs.DATE)
                return _Response(status, told.get(hdrs.ETAG), content, date)
            finally:
                response.release()
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, StorageError):
                raise
            raise self._translated(error, method) from _redacted(error)
        finally:
            metrics.observe_latency(time.perf_counter() - started)

    async def _read_soon(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the body of a 404: *never collected* must arrive completely, and soon."""
        try:
            async with asyncio.timeout(ERROR_BODY_SECONDS):
                return await self._read(response, self._max_response_bytes)
        except TimeoutError:
            raise StorageTimeoutError(
                f"The Storage Service at {self.base_url} answered 404, and did not say all of it "
                f"within {ERROR_BODY_SECONDS:g} s; see what answers there."
            ) from None

    async def _read(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        """Return the decompressed body; never hold more than ``limit`` bytes of it, and a chunk."""
        content = response.content
        # Nearly always it came with the headers, and there is nothing to wait for.
        body = content.read_nowait() if content.is_eof() else await content.readany()
        if not content.at_eof():
            chunks, size = [body], len(body)
            while size <= limit and (chunk := await content.readany()):
                chunks.append(chunk)
                size += len(chunk)
            body = b"".join(chunks)
        encoding = response.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
        if encoding != "identity" and len(body) <= limit:
            body = _unpacked(body, encoding, limit)
        if len(body) > limit:
            raise InvalidResponseError(
                f"The Storage Service at {self.base_url} answered more than {limit} bytes; see "
                "what answers there.",
                response.status,
            )
        return body

    async def _error_text(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the service's text of an error.

        The status stays the same if the text does not arrive.
        """
        body = b""
        try:
            if response.status >= 500:
                # Only the part that came with the headers: a failing service is not worth a wait.
                body = response.content.read_nowait(LONGEST_ERROR_BODY)
            else:
                async with asyncio.timeout(ERROR_BODY_SECONDS):
                    body = await response.content.read(LONGEST_ERROR_BODY)
        except (aiohttp.ClientError, OSError):
            pass
        return body

    def _excerpt(self, body: bytes) -> str:
        """Return a response's text on one line, without the client's secrets."""
        # Redacted before it is cut: the beginning of a secret must not appear either.
        return self._without_secrets(_one_line(body))[:LONGEST_EXCERPT]

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "**********")
        return text

    def _refusal(self, response: aiohttp.ClientResponse, method: str, body: bytes) -> StorageError:
        """Return the error of a refusal, with the service's own sentence in it."""
        status, said = response.status, self._excerpt(body)
        if status in (409, 412):
            return WatermarkConflictError(
                said or f"The {method} was refused: another run was faster; read it again.", status
            )
        if status == 422 and said and (_object(body) or {}).get("field") == "timestamp":
            # Of a PUT's timestamp nothing else can be wrong: it was checked before it was sent.
            return WatermarkInFutureError(said, status)
        location = response.headers.get(hdrs.LOCATION)
        if status < 400 and location is not None:
            place = self._without_secrets(_redact_url(location))[:LONGEST_EXCERPT]
            said = f"it redirects to {place}; set that address."
        # By the clock that sent the timestamp.
        now = instant_of(response.headers.get(hdrs.DATE)) or datetime.now(UTC)
        retry_after = _retry_after(response.headers.get(hdrs.RETRY_AFTER), now)
        return StorageResponseError(
            f"The Storage Service at {self.base_url} answered {status} to {method}: "
            f"{said or _next_step(status)}",
            status,
            retry_after,
        )

    def _translated(self, error: aiohttp.ClientError | OSError, method: str) -> StorageError:
        """Return this package's error for one of aiohttp; the order of the tests decides."""
        place = f"The Storage Service at {self.base_url}"
        if isinstance(error, TimeoutError):
            return StorageTimeoutError(
                f"{place} did not answer {method} within {self.timeout:g} s; see whether it is "
                "overloaded, or raise the timeout."
            )
        # An alert that comes after the handshake, such as TLS 1.3's for a client's certificate, is
        # in the cause of what aiohttp raises.
        if isinstance(error, _DISTRUST) or isinstance(error.__cause__, ssl.SSLError):
            failure = StorageConnectionError(
                f"{place} and this client do not trust each other ({type(error).__name__}); check "
                "ca_file, client_cert and the name in its certificate."
            )
            failure.transient = False
            return failure
        if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError):
            return StorageConnectionError(
                f"{place} could not be reached, or hung up during {method} "
                f"({type(error).__name__}); see whether it runs."
            )
        # Among them ClientResponseError: aiohttp's own 400 for what is not HTTP.
        return InvalidResponseError(
            f"{place} answered {method} with something that is not HTTP ({type(error).__name__}); "
            "see what answers there."
        )

    def _note_failure(self, method: str, source_id: str, error: Exception) -> None:
        status = getattr(error, "status", None)
        error_type = _error_type(error)
        metrics.count_request(method, status, error_type)
        logger.log(
            logging.WARNING if error_type == "circuit_breaker_open" else logging.ERROR,
            "%s watermark %r failed (%s): %s",
            method,
            source_id,
            error_type,
            error,
            exc_info=True,
            extra=_extra(source_id, error_type, status),
        )


def _address(base_url: str, token: str | None) -> tuple[URL, dict[str, str], tuple[str, ...]]:
    """Return the URL without credentials, the header made from them, and the secrets to redact."""
    try:
        url = URL(base_url.strip())
        usable = url.scheme in ("http", "https") and url.host and not url.query and not url.fragment
        user, password = url.user or "", url.password or ""
    except (ValueError, AttributeError):
        usable = False
    if not usable or ":" in user:
        # The text itself may hold a password.
        raise ConfigurationError(
            "The address of the Storage Service should look like https://storage.example:8000; "
            "set it without a query or fragment."
        )
    bare = url.with_user(None)
    bare = bare.with_path(bare.raw_path.rstrip("/"), encoded=True)
    if token is not None and (user or password):
        raise ConfigurationError(
            f"The address of the Storage Service at {bare} has a user, and there is a token; "
            "set one of them."
        )
    if token is not None:
        if not token.strip() or not token.isascii() or not token.isprintable():
            raise ConfigurationError(
                "The token of the Storage Service should be visible ASCII characters; set another."
            )
        return bare, {"Authorization": f"Bearer {token}"}, _secret_encodings(token)
    if user or password:
        basic = base64.b64encode(f"{user}:{password}".encode()).decode()
        return bare, {"Authorization": f"Basic {basic}"}, _secret_encodings(basic, password)
    return bare, {}, ()


@lru_cache(maxsize=1024)
def _url(watermarks: str, source_id: str) -> URL:
    return URL(watermarks + quote(source_id, safe=""), encoded=True)


def _secret_encodings(*secrets: str) -> tuple[str, ...]:
    """Return secrets in each encoding in which a service may repeat them, the longest first."""
    shapes = {
        shape
        for secret in secrets
        for shape in (secret, quote(secret, safe=""), quote(secret), " ".join(secret.split()))
        if shape
    }
    return tuple(sorted(shapes, key=len, reverse=True))


def _is_failure(error: BaseException) -> bool:
    """Return whether an error is evidence that the service is failing."""
    if isinstance(error, StorageResponseError):
        return error.status >= 500
    return isinstance(error, StorageConnectionError | InvalidResponseError)


def _watermark(answer: _Response, source_id: str) -> Watermark:
    """Return the watermark of a 2xx.

    Raises:
        InvalidResponseError: It is none.
    """
    try:
        return _checked(answer, source_id)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem = f"has a wrong {'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        problem = str(error)
    raise InvalidResponseError(
        f"The Storage Service's answer {answer.status} for watermark {source_id!r} {problem}; see "
        "what answers at its address.",
        answer.status,
    )


def _checked(answer: _Response, source_id: str) -> Watermark:
    if answer.status not in (200, 201):
        raise ValueError("is not one of the contract's")
    try:
        watermark = Watermark.from_answer(answer.body, answer.etag, answer.date)
    except ValidationError:
        try:
            fields = from_json(answer.body)
        except ValueError:
            raise ValueError("is not JSON") from None
        if not isinstance(fields, dict):
            raise ValueError("is no JSON object") from None
        if "source_id" in fields:
            raise
        fields["source_id"] = source_id
        watermark = Watermark.from_answer(to_json(fields), answer.etag, answer.date)
    if watermark.source_id != source_id:
        raise ValueError("is of another source")
    if watermark.model_fields_set.isdisjoint(("status", "last_successful_timestamp")):
        raise ValueError("has neither status nor last_successful_timestamp")
    return watermark


def _history(answer: _Response, source_id: str) -> HistoryPage:
    """Return the page of a 2xx.

    Raises:
        InvalidResponseError: It is none, or of another source.
    """
    try:
        page = HistoryPage.model_validate_json(answer.body)
        if all(change.source_id == source_id for change in page.changes):
            return page
    except ValidationError:
        pass
    raise InvalidResponseError(
        f"The Storage Service's answer {answer.status} for the history of watermark {source_id!r} "
        "is none; see what answers at its address.",
        answer.status,
    )


def _object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a body, if the body is one."""
    try:
        fields = from_json(body)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _is_own(fields: dict[str, Any] | None, etag: str | None) -> bool:
    """Return whether a 404 is the embedded service's *never collected*.

    A tag alone is no proof: a gateway may serve a page with one.
    """
    return fields is not None and (etag == NO_VERSION or fields.get("field") == "source_id")


def _said_in(value: object, name: str = "") -> list[str]:
    """Return the words of a JSON value, without the requested route."""
    if isinstance(value, dict):
        return [said for key, each in value.items() for said in _said_in(each, key)]
    if isinstance(value, list):
        return [said for each in value for said in _said_in(each, name)]
    if not isinstance(value, str) or (name != "source_id" and _BESIDE.fullmatch(name.lower())):
        return []
    return [_ROUTE.sub("", value.lower()).strip(" .!")]


def _names_a_route(fields: dict[str, Any]) -> bool:
    return any(_NO_ROUTE.search(said) for said in _said_in(fields))


def _is_about(fields: dict[str, Any], source_id: str) -> bool:
    """Return whether a 404 is about the watermark, and not about something else that is missing."""
    named = re.compile(rf"(?<!\w){re.escape(source_id.lower())}(?!\w)")
    return any(_ABOUT_IT.search(said) or named.search(said) for said in _said_in(fields))


def _says_nothing(fields: dict[str, Any]) -> bool:
    """Return whether a 404 says no more than its status, as both a service and a gateway may."""
    return all(said in _NOT_FOUND for said in _said_in(fields))


def _unhealthy(answer: _Response) -> str | None:
    """Return the reason why a response is not a healthy service's, or ``None``."""
    if answer.status != 200:
        return f"it answered {answer.status} to its health check."
    try:
        fields = from_json(answer.body)
    except ValueError:
        return "its health check is not JSON; see what answers there."
    if isinstance(fields, dict) and fields.get("status") == "healthy":
        return None
    return "it does not say that it is healthy."


def _unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """Return at most ``limit`` bytes and one more of the decompressed ``body``.

    Raises:
        InvalidResponseError: The body cannot be decompressed.
    """
    windows = {"gzip": 31, "x-gzip": 31, "deflate": 15}
    try:
        return zlib.decompressobj(windows[encoding]).decompress(body, limit + 1)
    except (KeyError, zlib.error):
        raise InvalidResponseError(
            f"The Storage Service's answer cannot be unpacked from {encoding[:50]!r}; see what "
            "answers at its address."
        ) from None


def _one_line(body: bytes) -> str:
    """Return the service's text of an error on one line: JSON's ``error``, or the body as it is."""
    text = body.decode("utf-8", "replace")
    try:
        fields = from_json(body)
        text = str(fields["error"]) if isinstance(fields, dict) and "error" in fields else text
    except ValueError:
        pass
    # Unprintable characters could write lines, or control a terminal, in a log.
    visible = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(visible.split())


def _next_step(status: int) -> str:
    if status in (401, 403):
        return "check the token."
    return "try again later." if status >= 500 or status == 429 else "check its address."


def _redact_url(location: str) -> str:
    """Return a URL without the parts that may be secret."""
    try:
        return str(URL(location).with_query(None).with_fragment(None).with_user(None))
    except ValueError:
        return "another place"


def _retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds of a ``Retry-After``, capped; ``None`` where it says nothing usable."""
    if value is None:
        return None
    if value.strip().isdecimal():
        seconds = float(value)
    elif instant := instant_of(value):
        seconds = (instant - now).total_seconds()
    else:
        return None
    return min(seconds, MAX_RETRY_AFTER_SECONDS) if seconds > 0 else None


def _redacted(error: BaseException) -> BaseException:
    """Return aiohttp's error without the request's headers, which carry the credentials."""
    if isinstance(error, aiohttp.ClientResponseError):
        info = error.request_info
        bare = aiohttp.RequestInfo(
            info.url, info.method, CIMultiDictProxy(CIMultiDict()), info.real_url
        )
        error.request_info, error.history, error.args = bare, (), (bare, ())
    return error


def _error_type(error: Exception) -> str:
    if isinstance(error, CircuitOpenError):
        return "circuit_breaker_open"
    if isinstance(error, StorageResponseError):
        return "http_error"
    if isinstance(error, StorageConnectionError | PoolTimeoutError):
        return "client_error"
    return "unexpected_error"


def _extra(source_id: str | None, error_type: str, status: int | None) -> dict[str, Any]:
    facts = {"source_id": source_id, "error_type": error_type, "status": status}
    return {name: value for name, value in facts.items() if value is not None}


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
