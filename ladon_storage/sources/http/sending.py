"""One request of a source: retries, around redirects, around circuits and waits.

- Retries happen here and nowhere above: after a failed connection, a timeout, a body that was cut
  off in transit, and the statuses that call for it. `Retry-After` is honoured. A POST is retried
  only if its caller declares it idempotent.
- A throttled response says nothing against the host: it is waited for, and no circuit counts it.
- A proxy that fails says nothing about the host, which others reach in other ways: the same.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import NoReturn

import stamina

from ladon_storage.collection.json_values import as_sent
from ladon_storage.errors import CircuitOpenError, SourceError
from ladon_storage.sources.fields import Rate
from ladon_storage.sources.http.hosts import Admission, host_of, wait_for_rate_limit
from ladon_storage.sources.http.observing import observer
from ladon_storage.sources.http.redirects import redirected
from ladon_storage.sources.http.retry_after import (
    MAX_RETRY_AFTER_SECONDS,
    has_no_requests_left,
    wait_of,
)
from ladon_storage.sources.http.transport import (
    HttpResponse,
    HttpTransport,
    ProxyFailedError,
    Request,
    UnreachableError,
)
from ladon_storage.sources.http.urls import with_query
from ladon_storage.sources.problems import with_step

logger = logging.getLogger(__name__)

ATTEMPTS = 5
RETRY_SECONDS = 600.0
"""The time after which a failed attempt is the last one."""

MAX_REDIRECTS = 10

_REPEATABLE_STATUSES = frozenset({408, 425, 429})
_OF_A_PROXY = 407
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class RequestSender:
    """The requests of one source on their way to its host.

    Args:
        source_id: The source, as errors name it.
        transport: The connections and secrets.
        rate: The rate of requests that the host accepts.
        throttle_statuses: Statuses by which the host reports too many requests, in addition to 429.
    """

    def __init__(
        self,
        source_id: str,
        transport: HttpTransport,
        rate: Rate | None,
        throttle_statuses: Collection[int],
    ) -> None:
        self._source_id = source_id
        self._transport = transport
        self._rate = rate
        self._throttle_statuses = frozenset({429, *throttle_statuses})

    async def send(self, request: Request, *, idempotent: bool) -> HttpResponse:
        """Return the answer to a request; one that is not idempotent is made once.

        Raises:
            SourceError: It did not arrive, or has none of the statuses that the request accepts.
        """
        failed: SourceError | None = None
        try:
            return await self._send_following_redirects(request)
        except SourceError as error:
            failed = error
        attempts = ATTEMPTS if idempotent and observer() is None else 1
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
                    if failed is not None:  # the first attempt, which was made without retries
                        raise failed
                    return await self._send_following_redirects(request)
                except SourceError as error:
                    failed = None
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
            body = None if request.body is None else self._transport.masked(as_sent(request.body))
            watching.asking(request.method, self._transport.masked(with_query(request.url)), body)
        await wait_for_rate_limit(request.url, self._rate)
        try:
            admission = await Admission.to(request.url)
        except CircuitOpenError as error:
            raise SourceError(
                f"Source {self._source_id!r} was not requested: the circuit of "
                f"{host_of(request.url)} is open after repeated failures{_of_path(error)}. Try "
                f"again in {error.retry_after:.1f} s.",
                self._source_id,
                retry_after=error.retry_after,
            ) from None
        try:
            answer = await self._transport.send(request)
        except UnreachableError:
            admission.unreachable()
            raise
        except ProxyFailedError:
            admission.released()
            raise
        except SourceError as error:
            (admission.unanswered if error.transient else admission.released)()
            raise
        except BaseException:
            admission.released()
            raise
        if self._is_throttled(answer) or answer.status == _OF_A_PROXY:
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
            with_step(
                f"Source {self._source_id!r} answered {answer.status} from "
                f"{self._transport.redact_url(answer.url)}",
                _step(answer.status, transient=transient),
            ),
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
        return "the answer is a partial document, which was not requested; check the server"
    if status == _OF_A_PROXY:
        return "check the proxy, and its user and password"
    return "check the address and what the API requires"


def _wait_before_retry(error: Exception) -> bool | float:
    """Return whether stamina retries, or in how many seconds if the source stated it."""
    if not isinstance(error, SourceError) or not error.transient:
        return False
    return error.retry_after or True
