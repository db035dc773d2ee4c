"""Several calls of a client in one request, where the service takes batches.

- Calls gather while the batch before is in flight, and after it for as long as each moment brings
  another one. So batches grow with the load.
- A service shows by a header of what was read that it takes batches. A call that is alone is a
  request of its own, as is every call of a service that has not shown it.
- A batch that is refused as a whole has stored nothing, and its calls are made alone. After any
  other failure only its reads are: whether a write is stored is then not known, and it raises.
- The batch that fails is the last one of its client. The service works without them.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic_core import to_json
from yarl import URL

from ladon_storage.client.failures import refusal
from ladon_storage.client.pool import Pool
from ladon_storage.client.redaction import Address
from ladon_storage.client.responses import Response, answers_of
from ladon_storage.client.transport import Transport
from ladon_storage.errors import (
    CircuitOpenError,
    PoolTimeoutError,
    StorageError,
    StorageResponseError,
    StorageTimeoutError,
)
from ladon_storage.models import UNCONDITIONAL, Precondition, Watermark, WatermarkUpdate
from ladon_storage.values import check_source_id

if TYPE_CHECKING:
    from ladon_storage.client.client import StorageServiceClient

MOST_CALLS = 10
"""The most calls of one batch: their watermarks with the longest ledgers fit into a response."""

GATHER_SECONDS = 0.002
"""The time for which a call waits for another: a request saved is worth more to both sides.

Ten of them are the longest wait, as a batch is full then.
"""

Outcome = Watermark | StorageError | None
"""What became of one call of a batch."""


class BatchCall(NamedTuple):
    """One call of a batch: the write of ``update``, or a read where there is none."""

    source_id: str
    update: WatermarkUpdate | None = None
    precondition: Precondition = UNCONDITIONAL

    @property
    def method(self) -> str:
        """The method of the same call alone."""
        return "GET" if self.update is None else "PUT"

    def to_json(self) -> bytes:
        """Return the call as a request of a batch."""
        fields: dict[str, object] = {"source_id": self.source_id}
        if self.update is None:
            return to_json(fields)
        if self.precondition.if_match is not None:
            fields["if_match"] = self.precondition.if_match
        if self.precondition.if_none_match:
            fields["if_none_match"] = True
        update = self.update.__pydantic_serializer__.to_json(self.update, exclude_none=True)
        return b'%b,"update":%b}' % (to_json(fields)[:-1], update)


class BatchRequests:
    """The part of the Storage Service's client that makes several calls in one request."""

    if TYPE_CHECKING:
        _address: Address
        _transport: Transport
        _watermarks: str

        async def _read_watermark(
            self, answer: Response, source_id: str, pool: Pool
        ) -> Watermark | None: ...

    most_calls = 1
    """The most calls that the service takes in one request, as far as it has shown."""
    _has_failed = False

    async def call_in_batch(self, calls: Sequence[BatchCall]) -> list[Outcome]:
        """Make several calls of different sources in one request, and return the outcome of each.

        Raises:
            CircuitOpenError: The service was not called, since it keeps failing.
            StorageError: The service did not answer, or not as to a batch.
        """

        async def read(answer: Response, _: str, pool: Pool) -> list[Outcome]:
            answers = answers_of(answer, [each.source_id for each in calls])
            return [
                await self._outcome(call, each, pool)
                for call, each in zip(calls, answers, strict=True)
            ]

        named = f"{calls[0].source_id} and {len(calls) - 1} more"
        url = URL(self._watermarks.rstrip("/"), encoded=True)
        body = b'{"requests":[%b]}' % b",".join([each.to_json() for each in calls])
        headers = {"Content-Type": "application/json"}
        try:
            outcomes = await self._transport.call("POST", named, url, read, body, headers)
        except (CircuitOpenError, PoolTimeoutError):  # the service does not know of it
            raise
        except StorageError:
            self._has_failed, self.most_calls = True, 1
            raise
        for call, outcome in zip(calls, outcomes, strict=True):
            if isinstance(outcome, StorageError):
                self._transport.note_failure(call.method, call.source_id, None, outcome)
        return outcomes

    async def _outcome(self, call: BatchCall, answer: Response, pool: Pool) -> Outcome:
        try:
            is_missing = answer.status == 404 and call.update is None
            if answer.status >= 300 and not is_missing:
                return refusal(self._address, answer.status, {}, call.method, answer.body)
            return await self._read_watermark(answer, call.source_id, pool)
        except StorageError as error:
            return error

    def _note_batches(self, answer: Response) -> None:
        """Note whether the service takes batches."""
        told = answer.batch
        if told is not None and not self._has_failed:
            is_number = told.isascii() and told.isdecimal() and len(told) < 10
            self.most_calls = min(max(int(told), 1), MOST_CALLS) if is_number else 1


class _Waiting(NamedTuple):
    """A call that waits for its batch."""

    call: BatchCall
    answered: asyncio.Future[Watermark | None]


class BatchedStorage:
    """A service's storage whose concurrent calls share requests; for one event loop.

    Args:
        client: The client of the service.
    """

    def __init__(self, client: StorageServiceClient) -> None:
        self.health_check = client.health_check
        self.watermark_history = client.watermark_history
        self._client = client
        self._waiting: deque[_Waiting] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def get_watermark(self, source_id: str) -> Watermark | None:
        """Return the watermark of ``source_id``, or ``None`` if it was never collected."""
        return await self._call(BatchCall(source_id))

    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = UNCONDITIONAL
    ) -> Watermark:
        """Write the outcome of a run, and return the stored watermark."""
        stored = await self._call(BatchCall(source_id, update, precondition))
        assert stored is not None  # noqa: S101 - only a GET's 404 is None
        return stored

    async def _call(self, call: BatchCall) -> Watermark | None:
        check_source_id(call.source_id)
        if self._client.most_calls == 1:
            return await self._alone(call)
        answered: asyncio.Future[Watermark | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(call, answered))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        return await answered

    async def _alone(self, call: BatchCall) -> Watermark | None:
        if call.update is None:
            return await self._client.get_watermark(call.source_id)
        return await self._client.put_watermark(call.source_id, call.update, call.precondition)

    async def _send(self) -> None:
        try:
            while self._waiting:
                gathered = 0
                while gathered < len(self._waiting) < self._client.most_calls:
                    gathered = len(self._waiting)
                    await asyncio.sleep(GATHER_SECONDS)
                if batch := self._next():
                    await self._make(batch)
        finally:
            self._sending = None
            while self._waiting:  # where the loop ends
                self._waiting.popleft().answered.cancel()

    def _next(self) -> list[_Waiting]:
        """Return the next calls: each of another source, and none that its caller gave up.

        Without batches they are all that wait, as they would be if they had never waited.
        """
        batch: dict[str, _Waiting] = {}
        later = []
        most = self._client.most_calls
        while self._waiting and (most == 1 or len(batch) < most):
            each = self._waiting.popleft()
            if each.call.source_id in batch:
                later.append(each)
            elif not each.answered.done():
                batch[each.call.source_id] = each
        self._waiting.extendleft(reversed(later))
        return list(batch.values())

    async def _make(self, batch: list[_Waiting]) -> None:
        if len(batch) == 1 or self._client.most_calls == 1:
            await self._make_alone(batch)
            return
        try:
            outcomes = await self._client.call_in_batch([each.call for each in batch])
        except Exception as error:
            again = []
            for each in batch:
                if not _may_be_repeated(each.call, error):
                    _settle(each, _copied(error))
                elif not each.answered.done():  # its caller may have given it up meanwhile
                    again.append(each)
            await self._make_alone(again)
        except BaseException:
            for each in batch:
                each.answered.cancel()
            raise
        else:
            for each, outcome in zip(batch, outcomes, strict=True):
                _settle(each, outcome)

    async def _make_alone(self, batch: list[_Waiting]) -> None:
        async def make(each: _Waiting) -> None:
            try:
                outcome: Watermark | Exception | None = await self._alone(each.call)
            except Exception as error:
                outcome = error
            except BaseException:
                each.answered.cancel()
                raise
            _settle(each, outcome)

        await asyncio.gather(*map(make, batch))


def _settle(waiting: _Waiting, outcome: Watermark | Exception | None) -> None:
    if waiting.answered.done():  # its caller was cancelled
        return
    if isinstance(outcome, Exception):
        waiting.answered.set_exception(outcome)
    else:
        waiting.answered.set_result(outcome)


def _may_be_repeated(call: BatchCall, error: Exception) -> bool:
    """Return whether a call of a failed batch is made alone: it is not stored, or only reads."""
    if isinstance(error, CircuitOpenError | PoolTimeoutError | StorageTimeoutError):
        return False
    is_refused = isinstance(error, StorageResponseError) and (
        error.status == 501 or (error.status < 500 and not error.transient)
    )
    return is_refused or call.update is None


def _copied(error: Exception) -> Exception:
    """Return an error for one of several calls, each of which may add notes to its own."""
    if not isinstance(error, StorageError):
        return error
    made = copy.copy(error)
    made.__cause__ = error.__cause__
    return made
