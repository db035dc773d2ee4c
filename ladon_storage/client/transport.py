"""One request of the client: its slot, its permit, its response, and the note of its outcome.

- A request takes a slot of the pool first and the circuit's permit second: waiting for a slot is no
  evidence about the service, and must not hold a probe's place.
- 5xx, no response, and a response that breaks the contract count as failures; another 4xx counts as
  nothing.
- No request is retried here. A caller that retries depends on ``StorageError.transient``. aiohttp
  alone sends a GET or a PUT again, once, where a kept connection was closed: a server that drops
  idle ones would otherwise fail runs. A write that had arrived then meets itself: the embedded
  service knows it by its ``run_id``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp
from aiohttp import hdrs
from yarl import URL

from ladon_storage.circuit.breaker import CircuitBreaker
from ladon_storage.client import metrics, tracing
from ladon_storage.client.failures import error_type, is_failure, log_fields, refusal, translated
from ladon_storage.client.pool import Pool, SessionPools
from ladon_storage.client.redaction import Address
from ladon_storage.client.responses import Response, tag_of, unpacked
from ladon_storage.errors import (
    CircuitUndecidedError,
    InvalidResponseError,
    StorageError,
    StorageTimeoutError,
)
from ladon_storage.models import BATCH, REQUEST_ID, SERVICE_TIME

logger = logging.getLogger("ladon_storage.client.client")  # one name for what a client logs

API_PATH = "api/v1/watermarks"
LONGEST_ERROR_BODY = 16_384
# A refusal has arrived; its text is worth no longer wait than this.
ERROR_BODY_SECONDS = 1.0

T = TypeVar("T")


def new_request_id() -> str:
    """Return an id for one request, which the service logs with what it did."""
    return secrets.token_hex(8)


class Transport:
    """The requests of a client, through its pools and its circuit.

    Args:
        address: The service.
        pools: The connections.
        circuit_breaker: The circuit.
        timeout: Seconds of a request, and of a wait for a slot.
        max_response_bytes: Bytes of the largest response that is read, decompressed.
    """

    def __init__(
        self,
        address: Address,
        pools: SessionPools,
        circuit_breaker: CircuitBreaker,
        timeout: float,
        max_response_bytes: int,
    ) -> None:
        self._address = address
        self._pools = pools
        self._circuit_breaker = circuit_breaker
        self._timeout = timeout
        self._max_response_bytes = max_response_bytes
        self._health = URL(f"{address.url}/health")

    async def call(
        self,
        method: str,
        source_id: str,
        url: URL,
        read: Callable[[Response, str, Pool], Awaitable[T]],
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> T:
        """Make one request when the pool and the circuit admit it, and note its outcome.

        Where ``read`` returns a list, that is of the outcomes of a batch: a failure in it counts
        as the failure of a request does.
        """
        breaker, request_id = self._circuit_breaker, None
        try:
            pool = self._pools.take_free()
            if pool is None:
                breaker.check()  # A call that would be rejected does not wait for a slot.
                pool = await self._pools.take(self._timeout)
            try:
                try:
                    permit = breaker.acquire()
                except CircuitUndecidedError:  # only where processes share the circuit
                    permit = await breaker.admit()
                try:
                    request_id = new_request_id()
                    headers = {**(headers or {}), REQUEST_ID: request_id}
                    answer = await self.send(pool, method, url, body, headers)
                    result = await read(answer, source_id, pool)
                except BaseException as error:
                    if is_failure(error) and not pool.session.closed:
                        breaker.failure(permit)
                    else:
                        breaker.release(permit)
                    raise
                failed = sum(map(is_failure, result)) if isinstance(result, list) else 0
                for _ in range(failed):
                    breaker.failure(permit)
                if not failed:
                    breaker.success(permit)
            finally:
                pool.give()
        except Exception as error:
            self.note_failure(method, source_id, request_id, error)
            raise
        metrics.count_request(method, answer.status)
        return result

    async def ask_health(self, request_id: str) -> Response:
        """Make a health check, whatever the state of the circuit."""
        pool = await self._pools.take(self._timeout)
        try:
            return await self.health(pool, request_id)
        finally:
            pool.give()

    async def health(self, pool: Pool, request_id: str) -> Response:
        """Ask the service for its health, in a slot that was taken."""
        return await self.send(pool, "GET", self._health, headers={REQUEST_ID: request_id})

    async def probe_health(self, request_id: str) -> Response:
        """Make a health check through the circuit; a success does not count."""
        permit = await self._circuit_breaker.admit()
        try:
            answer = await self.ask_health(request_id)
        except BaseException as error:
            if is_failure(error):
                self._circuit_breaker.failure(permit)
            else:
                self._circuit_breaker.release(permit)
            raise
        self._circuit_breaker.release(permit)
        return answer

    async def send(
        self,
        pool: Pool,
        method: str,
        url: URL,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Response:
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
    ) -> Response:
        started = time.perf_counter()
        try:
            # Not `async with`: aiohttp enters two contexts of its own around this same release.
            response = await pool.session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            )
            pool.has_answered()
            try:
                status, told = response.status, response.headers
                if 200 <= status < 300:
                    content = await self._read(response, self._max_response_bytes)
                elif status == 404 and method == "GET":
                    content = await self._read_soon(response)
                else:
                    said = await self._error_text(response)
                    raise refusal(self._address, status, told, method, said)
                # A gateway may write a `Date` of its own, by a clock that is wrong.
                date = told.get(SERVICE_TIME) or told.get(hdrs.DATE)
                etag = tag_of(told.get(hdrs.ETAG))
                return Response(status, etag, content, date, told.get(BATCH))
            finally:
                response.release()
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, StorageError):
                raise
            pool.forget_addresses()
            failure = translated(self._address, error, method, self._timeout)
            # An error of the system quotes nothing of the request or of its answer.
            cause = error if isinstance(error, OSError) or not self._address.secrets else None
        finally:
            metrics.observe_latency(time.perf_counter() - started)
        raise failure from cause

    async def _read_soon(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the body of a 404: *never collected* must arrive completely, and soon."""
        try:
            async with asyncio.timeout(ERROR_BODY_SECONDS):
                return await self._read(response, self._max_response_bytes)
        except TimeoutError:
            raise StorageTimeoutError(
                f"{self._address.place} answered 404, and did not say all of it "
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
            whole = unpacked(body, encoding, limit)
            if whole is None:
                raise InvalidResponseError(
                    f"{self._address.place} answered in {self._address.redact(encoding)[:50]!r}, "
                    "from which it cannot be unpacked; see what answers there."
                )
            body = whole
        if len(body) > limit:
            raise InvalidResponseError(
                f"{self._address.place} answered more than {limit} bytes; see what answers there.",
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

    def note_failure(
        self, method: str, source_id: str, request_id: str | None, error: Exception
    ) -> None:
        """Count and log a failed request, or one of a batch."""
        status = getattr(error, "status", None)
        label = error_type(error)
        metrics.count_request(method, status, label)
        logger.log(
            logging.WARNING if label == "circuit_breaker_open" else logging.ERROR,
            "%s watermark %r failed (%s%s): %s",
            method,
            source_id,
            label,
            f", request {request_id}" if request_id else "",
            error,
            exc_info=True,
            extra=log_fields(source_id, label, status, request_id),
        )
