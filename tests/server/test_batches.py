"""Several requests of watermarks in one: each is answered as it would be alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.errors import DatabaseError
from ladon_storage.models import BATCH
from ladon_storage.server.batches import MAX_REQUESTS
from ladon_storage.server.store import WatermarkDatabase
from ladon_storage.testing.clock import FakeClock
from tests.server.test_tokens import added, bearer
from tests.service import Answer, Caller, calling, embedded_service, path, success

LIST = "/api/v1/watermarks"
JANUARY = "2024-01-01T12:00:00+00:00"
FEBRUARY = "2024-02-01T12:00:00+00:00"


@pytest.fixture
async def call(service_database: Path | str) -> AsyncIterator[Caller]:
    service = embedded_service(service_database, now=FakeClock().now)
    async with service as address, calling(address) as caller:
        yield caller


async def batch(call: Caller, *asked: dict[str, Any], **options: Any) -> Answer:
    return await call("POST", LIST, {"requests": list(asked)}, **options)


async def statuses(call: Caller, *asked: dict[str, Any], **options: Any) -> list[int]:
    answer = await batch(call, *asked, **options)
    assert answer.status == 200
    answers = answer.json["answers"]
    assert [each["source_id"] for each in answers] == [each["source_id"] for each in asked]
    return [each["status"] for each in answers]


async def test_reads_show_that_batches_are_taken(call: Caller) -> None:
    """A client knows it from what it reads, before it writes anything."""
    await call("PUT", path("kev"), success(JANUARY))
    for asked in (path("kev"), path("none"), "/health"):
        assert (await call("GET", asked)).headers[BATCH] == str(MAX_REQUESTS)


async def test_each_request_is_answered_as_it_would_be_alone(call: Caller) -> None:
    """Status, tag and body of a read and of a write are those of the same request alone."""
    stored = await call("PUT", path("kev"), success(JANUARY, ledger={"pages": 2}))
    answer = await batch(
        call,
        {"source_id": "kev"},
        {"source_id": "none"},
        {"source_id": "new/ü", "update": success(JANUARY, run_id="run"), "if_none_match": True},
    )
    assert answer.status == 200
    read, none, new = answer.json["answers"]
    alone = await call("GET", path("kev"))
    assert read == {
        "source_id": "kev", "status": 200, "etag": stored.etag, "body": alone.json
    }  # fmt: skip
    alone = await call("GET", path("none"))
    assert none == {"source_id": "none", "status": 404, "etag": '"0"', "body": alone.json}
    alone = await call("GET", path("new/ü"))
    assert new == {"source_id": "new/ü", "status": 201, "etag": alone.etag, "body": alone.json}


async def test_each_write_has_its_own_precondition_and_outcome(call: Caller) -> None:
    """A refused write neither stores anything nor keeps the others from being stored."""
    etags = {}
    for name in ("held", "free", "later", "there"):
        etags[name] = (await call("PUT", path(name), success(FEBRUARY))).etag
    await call("PUT", path("held"), success(FEBRUARY))
    january, february = success(JANUARY), success(FEBRUARY, run_id="run")
    asked: list[dict[str, Any]] = [
        {"source_id": "held", "update": february, "if_match": etags["held"]},
        {"source_id": "free", "update": february, "if_match": etags["free"]},
        {"source_id": "later", "update": january},
        {"source_id": "there", "update": february, "if_none_match": True},
        {"source_id": "ahead", "update": success("2026-01-03T00:00:00Z")},
        {"source_id": "new", "update": february},
    ]
    assert await statuses(call, *asked) == [412, 200, 409, 412, 422, 201]
    runs = [(await call("GET", path(each["source_id"]))).json.get("run_id") for each in asked]
    assert runs == [None, "run", None, None, None, "run"]


async def test_repeated_write_of_a_batch_is_the_same_write(call: Caller) -> None:
    """A batch whose answer was lost may come again, or its writes alone."""
    await call("PUT", path("kev"), success(JANUARY))
    etag = (await call("GET", path("kev"))).etag
    write = {"source_id": "kev", "update": success(FEBRUARY, run_id="run"), "if_match": etag}
    first, second = await batch(call, write), await batch(call, write)
    assert first.json == second.json
    alone = await call("PUT", path("kev"), write["update"], headers={"If-Match": etag})
    assert (alone.status, alone.json) == (200, first.json["answers"][0]["body"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"source_id": "."},
        {"source_id": "kev", "if-match": '"1"'},
        {"source_id": "kev", "if_match": "1"},
        {"source_id": "kev", "if_none_match": 1},
        {"source_id": "kev", "if_none_match": "yes"},
        {"source_id": "kev", "update": {"status": "success"}},
        {"source_id": "kev", "update": {"timestamp": JANUARY, "status": "done"}},
        {"update": success(JANUARY)},
        "kev",
    ],
)
async def test_malformed_part_refuses_the_whole_batch(call: Caller, wrong: Any) -> None:
    """Nothing of such a batch is stored."""
    answer = await batch(call, {"source_id": "new", "update": success(JANUARY)}, wrong)
    assert (answer.status, answer.json["field"]) == (422, "requests")
    assert (await call("GET", path("new"))).status == 404


@pytest.mark.parametrize("count", [0, MAX_REQUESTS + 1])
async def test_number_of_requests_is_bounded(call: Caller, count: int) -> None:
    """A batch has one request or more, and no more than the service shows."""
    asked = [{"source_id": f"source-{number}"} for number in range(count)]
    assert (await batch(call, *asked)).status == 422
    if count:
        assert await statuses(call, *asked[1:]) == [404] * MAX_REQUESTS


async def test_request_that_the_database_fails_is_503_alone(
    call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that is not stored says so, and the others have their own answers."""
    put = WatermarkDatabase.put

    async def failing(store: WatermarkDatabase, source_id: str, *given: Any, **more: Any) -> Any:
        if source_id == "bad":
            raise DatabaseError("The disk is full; try again later.")
        if source_id == "worse":
            raise RuntimeError("a fault")
        return await put(store, source_id, *given, **more)

    monkeypatch.setattr(WatermarkDatabase, "put", failing)
    update = success(JANUARY)
    names = ("good", "bad", "worse", "fine")
    asked = [{"source_id": name, "update": update} for name in names]
    assert await statuses(call, *asked) == [201, 503, 500, 201]


async def test_limited_token_is_judged_for_each_request(tmp_path: Path) -> None:
    """A token for some sources, or for reading, does as much in a batch as without one."""
    database = tmp_path / "w.db"
    some, reader = added(database, "some", prefix="a-"), added(database, "r", read_only=True)
    update = success(JANUARY)
    asked: list[dict[str, Any]] = [
        {"source_id": "a-1", "update": update},
        {"source_id": "b-1", "update": update},
        {"source_id": "b-2"},
    ]
    async with embedded_service(database) as address, calling(address) as call:
        assert (await batch(call, *asked)).status == 401
        assert await statuses(call, *asked, headers=bearer(some)) == [201, 403, 403]
        assert await statuses(call, *asked, headers=bearer(reader)) == [403, 403, 404]
