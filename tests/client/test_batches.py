"""Calls that share requests: as good as calls alone, whatever the service does with a batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ladon_storage import (
    CircuitBreaker,
    CircuitState,
    InvalidResponseError,
    MockStorageClient,
    Precondition,
    StorageConnectionError,
    StorageError,
    StorageResponseError,
    StorageServiceClient,
    WatermarkConflictError,
    WatermarkUpdate,
)
from ladon_storage.client.batches import GATHER_SECONDS, MOST_CALLS, BatchedStorage
from ladon_storage.client.responses import Response
from ladon_storage.models import BATCH
from ladon_storage.testing.clock import FakeClock
from tests.base_service import base_service
from tests.service import embedded_service

JANUARY = datetime(2024, 1, 1, 12, tzinfo=UTC)
NAMES = [f"source-{number}" for number in range(4)]
SUCCESS = WatermarkUpdate.of(JANUARY, "success", run_id="run")

Answers = Callable[[list[dict[str, Any]]], web.StreamResponse | None]
"""Another service's answer to a batch, of the right ones; ``None``: the connection is cut."""


@dataclass
class Foreign:
    """A service of another program that takes batches in its own way."""

    url: str = ""
    answers: Answers = lambda right: web.json_response({"answers": right})
    refuses: int | None = None
    held: asyncio.Event | None = None
    requests: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    store: MockStorageClient = field(
        default_factory=lambda: MockStorageClient(clock=FakeClock().now)
    )

    async def read(self, request: web.Request) -> web.Response:
        """Answer a read, and show that there are batches."""
        self.requests.append("GET")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        for _ in range(25):  # the others arrive meanwhile
            await asyncio.sleep(0)
        status, etag, body = await self._read(request.match_info["name"])
        self.at_once -= 1
        headers = {"ETag": etag, BATCH: "50"}
        return web.json_response(body, status=status, headers=headers)

    async def history(self, _: web.Request) -> web.Response:
        """Answer with a history that has nothing in it any more."""
        return web.json_response({"changes": [], "next": None})

    async def write(self, request: web.Request) -> web.Response:
        """Answer a write."""
        self.requests.append("PUT")
        headers = request.headers
        condition = Precondition(headers.get("If-Match"), "If-None-Match" in headers)
        status, etag, body = await self._write(
            request.match_info["name"], await request.json(), condition
        )
        return web.json_response(body, status=status, headers={"ETag": etag})

    async def batch(self, request: web.Request) -> web.StreamResponse:
        """Do what a batch asks for, and answer it in the service's own way."""
        self.requests.append("POST")
        if self.held is not None:
            await self.held.wait()
        if self.refuses is not None:
            return web.Response(status=self.refuses, headers={"Location": "/"})
        right = []
        for each in (await request.json())["requests"]:
            name, update = each["source_id"], each.get("update")
            condition = Precondition(each.get("if_match"), each.get("if_none_match", False))
            status, etag, body = await (
                self._read(name) if update is None else self._write(name, update, condition)
            )
            right.append({"source_id": name, "status": status, "etag": etag, "body": body})
        answer = self.answers(right)
        if answer is None:
            assert request.transport
            request.transport.abort()
            return web.Response()
        return answer

    async def _read(self, name: str) -> tuple[int, str, dict[str, Any]]:
        found = await self.store.get_watermark(name)
        if found is None:
            return 404, '"0"', {"error": f"Source {name!r} was never collected."}
        return 200, found.etag or "", found.model_dump(mode="json")

    async def _write(
        self, name: str, update: dict[str, Any], condition: Precondition
    ) -> tuple[int, str, dict[str, Any]]:
        try:
            written = WatermarkUpdate.model_validate(update)
            stored = await self.store.put_watermark(name, written, condition)
        except WatermarkConflictError as error:
            return error.status, "", {"error": str(error)}
        return 200, stored.etag or "", stored.model_dump(mode="json")


@asynccontextmanager
async def foreign() -> AsyncIterator[tuple[Foreign, StorageServiceClient]]:
    """Hand out a service of another program, and a client that knows of its batches."""
    service = Foreign()
    application = web.Application()
    path = "/api/v1/watermarks"
    application.router.add_post(path, service.batch)
    application.router.add_get(path + "/{name}", service.read)
    application.router.add_put(path + "/{name}", service.write)
    application.router.add_get(path + "/{name}/history", service.history)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        service.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with StorageServiceClient(service.url) as client:
            await client.put_watermark(NAMES[0], SUCCESS)
            await client.get_watermark(NAMES[0])
            service.requests.clear()
            yield service, client
    finally:
        await runner.cleanup()


async def reads(storage: BatchedStorage) -> list[Any]:
    made = (storage.get_watermark(name) for name in NAMES)
    return await asyncio.gather(*made, return_exceptions=True)


async def writes(storage: BatchedStorage, update: WatermarkUpdate = SUCCESS) -> list[Any]:
    made = (storage.put_watermark(name, update) for name in NAMES)
    return await asyncio.gather(*made, return_exceptions=True)


def states(found: list[Any]) -> list[str | None]:
    return [each and each.status for each in found]


async def test_calls_of_the_same_moment_are_one_request(tmp_path: Path) -> None:
    """They return what they would return alone, with tags that the next writes carry."""
    service = embedded_service(tmp_path / "w.db", now=FakeClock().now)
    async with service as url, StorageServiceClient(url) as client:
        storage = BatchedStorage(client)
        assert await storage.get_watermark("kev") is None  # shows that there are batches
        sent: list[str] = []
        call = client._transport.call

        async def noted(method: str, *given: Any, **more: Any) -> Any:
            sent.append(method)
            return await call(method, *given, **more)

        client._transport.call = noted  # type: ignore[method-assign]
        assert await reads(storage) == [None] * 4
        stored = await writes(storage)
        found = await reads(storage)
        assert sent == ["POST"] * 3
        assert found == stored == [await client.get_watermark(name) for name in NAMES]
        assert [each.etag for each in found] == [each.etag for each in stored]
        assert all(each.answered_at for each in found)
        other = WatermarkUpdate.of(JANUARY, "success", run_id="other")
        outcomes = await asyncio.gather(
            storage.put_watermark(NAMES[1], other, Precondition(found[1].etag)),
            storage.put_watermark(NAMES[2], other, Precondition('"999"')),
            storage.put_watermark(NAMES[3], other, Precondition(if_none_match=True)),
            return_exceptions=True,
        )
        assert [getattr(each, "status", None) for each in outcomes] == ["success", 412, 412]


async def test_service_without_batches_gets_the_base_contract_only() -> None:
    """The stand-in fails whatever it does not know; each call is a request of its own."""
    async with base_service(FakeClock().now) as url, StorageServiceClient(url) as client:
        storage = BatchedStorage(client)
        await client.health_check()
        assert await reads(storage) == [None] * 4
        assert states(await writes(storage)) == ["success"] * 4
        assert states(await reads(storage)) == ["success"] * 4


@pytest.mark.parametrize("told", ["many", "-1", "", "0", "1", "9" * 5_000])
async def test_number_that_is_none_means_no_batches(told: str) -> None:
    """A header that says something else is no promise."""
    async with foreign() as (service, client):
        client.most_calls = 1
        client._note_batches(Response(200, None, b"", None, told))
        await reads(BatchedStorage(client))
        assert service.requests == ["GET"] * 4


WRONG: dict[str, Answers] = {
    "fewer": lambda right: web.json_response({"answers": right[:-1]}),
    "more": lambda right: web.json_response({"answers": [*right, right[0]]}),
    "none": lambda _: web.json_response({"answers": []}),
    "another source": lambda right: web.json_response(
        {"answers": [*right[:-1], {**right[-1], "source_id": "other"}]}
    ),
    "another order": lambda right: web.json_response({"answers": right[::-1]}),
    "one twice": lambda right: web.json_response({"answers": [right[0], *right[:-1]]}),
    "no names": lambda right: web.json_response(
        {"answers": [{**each, "source_id": None} for each in right]}
    ),
    "no status": lambda right: web.json_response(
        {"answers": [{**each, "status": "200"} for each in right]}
    ),
    "a tag that is no header": lambda right: web.json_response(
        {"answers": [{**each, "etag": '"1"\r\nX: y'} for each in right]}
    ),
    "a list": lambda right: web.json_response(right),
    "a text": lambda _: web.Response(text="done"),
    "nothing": lambda _: web.Response(status=204),
    "multi-status": lambda right: web.json_response({"answers": right}, status=207),
    "too much": lambda _: web.Response(body=b'{"answers": "' + b"x" * 2**20 + b'"}'),
}


@pytest.mark.parametrize("answers", WRONG.values(), ids=WRONG.keys())
async def test_wrong_answer_to_a_batch_is_believed_in_no_part(answers: Answers) -> None:
    """Reads are made again alone; a write may be stored, and raises. No further batch is sent."""
    async with foreign() as (service, client):
        service.answers, storage = answers, BatchedStorage(client)
        assert states(await reads(storage)) == ["success", None, None, None]
        assert service.requests == ["POST", *["GET"] * 4]
        assert states(await writes(storage)) == ["success"] * 4
        assert "POST" not in service.requests[1:]
    async with foreign() as (service, client):
        service.answers, storage = answers, BatchedStorage(client)
        failed = await writes(storage)
        assert [type(each) for each in failed] == [InvalidResponseError] * 4
        assert client.circuit_breaker.failure_count == 1
        assert service.requests == ["POST"]
        assert states(await reads(storage)) == ["success"] * 4
        assert service.requests == ["POST", *["GET"] * 4]


async def test_batch_that_is_cut_off_leaves_writes_unknown_and_reads_repeated() -> None:
    """Each failed call has an error of its own, to which its run may add notes."""
    async with foreign() as (service, client):
        service.answers, storage = (lambda _: None), BatchedStorage(client)
        read, written = await asyncio.gather(
            storage.get_watermark(NAMES[0]),
            asyncio.gather(
                *(storage.put_watermark(name, SUCCESS) for name in NAMES[1:]),
                return_exceptions=True,
            ),
        )
        assert read
        assert read.status == "success"
        assert [type(each) for each in written] == [StorageConnectionError] * 3
        assert len({id(each) for each in written}) == 3
        assert service.requests == ["POST", "GET"]


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 405, 409, 413, 415, 422, 501])
async def test_refused_batch_is_made_of_calls_alone(status: int) -> None:
    """Nothing of it is stored, so that even its writes are made, once each."""
    async with foreign() as (service, client):
        service.refuses, storage = status, BatchedStorage(client)
        names = [f"new-{number}" for number in range(3)]
        first = Precondition(if_none_match=True)
        made = (storage.put_watermark(name, SUCCESS, first) for name in names)
        assert states(await asyncio.gather(*made)) == ["success"] * 3
        assert service.requests == ["POST", *["PUT"] * 3]
        assert states(await reads(storage)) == ["success", None, None, None]
        assert service.requests[4:] == ["GET"] * 4


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_batch_that_fails_fails_its_writes(status: int) -> None:
    """Whether they are stored is not known; reads are made again."""
    async with foreign() as (service, client):
        service.answers, storage = (lambda _: web.Response(status=status)), BatchedStorage(client)
        failed = await writes(storage)
        assert [each.status for each in failed] == [status] * 4
        assert all(isinstance(each, StorageResponseError) for each in failed)
        assert client.circuit_breaker.failure_count == (status >= 500)
        assert states(await reads(storage)) == ["success"] * 4


async def test_call_of_a_batch_that_fails_counts_as_a_request_does() -> None:
    """Only that call raises; a service that fails each call of its batches opens the circuit."""

    def failing(names: list[str]) -> Answers:
        def answers(right: list[dict[str, Any]]) -> web.Response:
            for each in right:
                if each["source_id"] in names:
                    each |= {"status": 503, "etag": None, "body": {"error": "The disk is full."}}
            return web.json_response({"answers": right})

        return answers

    async with foreign() as (service, client):
        client.circuit_breaker = client._transport._circuit_breaker = CircuitBreaker(
            failure_threshold=5
        )
        storage = BatchedStorage(client)
        service.answers = failing(NAMES[1:2])
        outcomes = await writes(storage)
        failed = [each for each in outcomes if isinstance(each, StorageError)]
        assert [str(each) for each in failed] == [str(outcomes[1])]
        assert "answered 503 to PUT: The disk is full." in str(failed[0])
        assert client.circuit_breaker.failure_count == 1
        service.answers = failing(NAMES)
        for _ in range(2):
            assert all(isinstance(each, StorageError) for each in await writes(storage))
        assert client.circuit_breaker.state is CircuitState.OPEN
        assert service.requests == ["POST"] * 2


@pytest.mark.parametrize(
    "body", [{"status": "success", "source_id": "other"}, {"source_id": "source-2"}, [], None]
)
async def test_answer_that_is_no_watermark_fails_its_call_alone(body: object) -> None:
    """A watermark of another source, or none, is refused as from a request alone."""

    def answers(right: list[dict[str, Any]]) -> web.Response:
        right[2] |= {"body": body, "status": 200}
        return web.json_response({"answers": right})

    async with foreign() as (service, client):
        service.answers = answers
        found = await reads(BatchedStorage(client))
        assert isinstance(found[2], InvalidResponseError)
        assert states(found[:2] + found[3:]) == ["success", None, None]


async def test_gateways_404_of_a_call_is_not_taken_for_never_collected() -> None:
    """Inside of a batch, too, only the service's own words say that nothing was collected."""

    def answers(right: list[dict[str, Any]]) -> web.Response:
        right[3] |= {"body": {"message": "no Route matched"}, "etag": None}
        return web.json_response({"answers": right})

    async with foreign() as (service, client):
        service.answers = answers
        found = await reads(BatchedStorage(client))
        assert isinstance(found[3], InvalidResponseError)
        assert found[1:3] == [None, None]


async def test_calls_of_one_source_are_never_in_one_batch() -> None:
    """Each is made, in the order in which they came."""
    async with foreign() as (service, client):
        storage = BatchedStorage(client)
        updates = [WatermarkUpdate.of(JANUARY, "failed", f"{number}") for number in range(3)]
        stored = await asyncio.gather(
            storage.get_watermark(NAMES[1]),
            *(storage.put_watermark(NAMES[0], update) for update in updates),
        )
        assert [each and each.error_message for each in stored] == [None, "0", "1", "2"]
        assert service.requests == ["POST", "PUT", "PUT"]


async def test_cancelled_call_leaves_the_others_of_its_batch_alone() -> None:
    """One that was given up before it was sent is not sent."""
    async with foreign() as (service, client):
        storage = BatchedStorage(client)
        calls = [asyncio.create_task(storage.put_watermark(name, SUCCESS)) for name in NAMES]
        await asyncio.sleep(0)
        calls[1].cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(done.pop(1), asyncio.CancelledError)
        assert states(done) == ["success"] * 3
        assert await service.store.get_watermark(NAMES[1]) is None


async def test_call_given_up_during_a_refused_batch_is_not_made_alone() -> None:
    """A write that its caller has given up must not come after what the caller does next."""
    async with foreign() as (service, client):
        service.refuses, storage = 405, BatchedStorage(client)
        service.held = asyncio.Event()
        calls = [asyncio.create_task(storage.put_watermark(name, SUCCESS)) for name in NAMES]
        while not service.requests:
            await asyncio.sleep(0)
        calls[1].cancel()
        service.held.set()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(done.pop(1), asyncio.CancelledError)
        assert states(done) == ["success"] * 3
        assert service.requests == ["POST", *["PUT"] * 3]


async def test_calls_behind_a_refused_batch_do_not_wait_for_each_other() -> None:
    """Once there are no batches, all that wait are made at once, as calls alone are."""
    async with foreign() as (service, client):
        service.refuses, storage = 405, BatchedStorage(client)
        await asyncio.gather(*(storage.get_watermark(f"{number}") for number in range(25)))
        assert service.requests == ["POST", *["GET"] * 25]
        assert service.most_at_once > MOST_CALLS


async def test_watermarks_of_a_batch_show_the_additions_of_the_service() -> None:
    """A client that has read in batches alone asks for the history, as one that read alone does."""
    async with foreign() as (service, knowing):
        for name in NAMES:
            await knowing.put_watermark(name, SUCCESS)
        async with StorageServiceClient(service.url) as client:
            client.most_calls = MOST_CALLS  # the health check has shown it
            service.requests.clear()
            assert states(await reads(BatchedStorage(client))) == ["success"] * 4
            assert service.requests == ["POST"]
            page = await client.watermark_history(NAMES[0])
            assert page is not None
            assert page.changes == []


async def test_batch_has_a_bounded_number_of_calls() -> None:
    """So that the watermarks with the longest ledgers fit into one answer."""
    sizes: list[int] = []

    def answers(right: list[dict[str, Any]]) -> web.Response:
        sizes.append(len(right))
        return web.json_response({"answers": right})

    async with foreign() as (service, client):
        service.answers = answers
        storage = BatchedStorage(client)
        await asyncio.gather(*(storage.get_watermark(f"{number}") for number in range(25)))
        assert sizes == [MOST_CALLS, MOST_CALLS, 5]


async def test_calls_that_come_one_after_another_share_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch waits for as long as each moment brings another call, and no longer."""
    pause, moments, calls = asyncio.sleep, 0, list[asyncio.Task[Any]]()
    async with foreign() as (service, client):
        storage = BatchedStorage(client)

        def ask() -> None:
            calls.append(asyncio.create_task(storage.get_watermark(f"{len(calls)}")))

        async def moment(seconds: float) -> None:
            nonlocal moments
            moments += seconds == GATHER_SECONDS
            if seconds == GATHER_SECONDS and moments <= 2:
                ask()
            await pause(0)

        monkeypatch.setattr(asyncio, "sleep", moment)
        ask()
        await calls[0]
        await asyncio.gather(*calls)
        assert (service.requests, len(calls), moments) == (["POST"], 3, 3)


async def test_name_that_no_path_can_carry_is_refused_before_its_batch() -> None:
    """It fails its own call alone."""
    async with foreign() as (_, client):
        storage = BatchedStorage(client)
        with pytest.raises(ValueError, match="source_id"):
            await storage.get_watermark("..")
