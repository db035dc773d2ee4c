"""One contract: of the mock, a file, the embedded service, and one that knows nothing else."""

from __future__ import annotations

import inspect
import json
import math
import pickle
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ladon_storage import (
    MockStorageClient,
    Precondition,
    StorageResponseError,
    StorageServiceClient,
    Watermark,
    WatermarkConflictError,
    WatermarkInFutureError,
    WatermarkUpdate,
)
from ladon_storage.embedded import EmbeddedStorage
from ladon_storage.models import (
    EMPTY_WATERMARK,
    HONEST_SKEW,
    age_seconds,
    collected_up_to,
    is_ahead,
)
from ladon_storage.testing.clock import FakeClock
from tests.base_service import base_service
from tests.service import embedded_service

Client = StorageServiceClient | EmbeddedStorage | MockStorageClient

JANUARY = datetime(2024, 1, 1, 12, tzinfo=UTC)
FEBRUARY = datetime(2024, 2, 1, 12, tzinfo=UTC)
SERVICE_TIME = "2026-01-01T00:00:00+00:00"
STRANGE = [
    "a/b", "/", "//", "a b", "100%", "%2F", "%", "a?b=c&d#e", "a;b:c@d", "...", "..a", "~-._",
    "überwachung", "脅威", "🦊", "a\\b", '"kev"', "'", "<kev>", "a+b", "{x}", "x" * 255,
]  # fmt: skip


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["mock", "file", "embedded", "base"])
async def client(
    request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock
) -> AsyncIterator[Client]:
    """Hand out each client of the contract in turn."""
    if request.param == "mock":
        yield MockStorageClient(clock=clock.now)
        return
    if request.param == "file":
        async with EmbeddedStorage(tmp_path / "watermarks.db", clock=clock.now) as in_file:
            yield in_file
        return
    service = (
        embedded_service(tmp_path / "watermarks.db", now=clock.now)
        if request.param == "embedded"
        else base_service(clock.now)
    )
    async with service as address, StorageServiceClient(address) as made:
        yield made


@pytest.fixture
def _far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be on a machine whose own time is not UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "IST-5:30")
        time.tzset()
        yield
    time.tzset()


extended = pytest.mark.parametrize("client", ["mock", "file", "embedded"], indirect=True)
"""Marks what goes beyond the base contract."""


async def test_source_never_collected_is_none(client: Client) -> None:
    """There is no watermark before the first write, and reading makes none."""
    for _ in range(2):
        assert await client.get_watermark("kev") is None
    await client.update_watermark("kev", JANUARY)
    assert await client.get_watermark("another") is None


async def test_write_returns_what_a_read_returns(client: Client) -> None:
    """What a write says is stored is stored, field for field."""
    written = await client.update_watermark("kev", JANUARY)
    read = await client.get_watermark("kev")
    assert read == written
    assert {"run_id": None, **dict(written)} == {
        "source_id": "kev",
        "last_successful_timestamp": "2024-01-01T12:00:00+00:00",
        "last_run_timestamp": SERVICE_TIME,
        "status": "success",
        "error_message": None,
        "records_collected": 0,
        "run_id": None,
    }


@extended
async def test_first_write_is_refused_if_another_run_was_faster(client: Client) -> None:
    """A source that was never collected is fenced too, and the refusal names the run."""
    assert await client.get_watermark("kev") is None
    write: dict[str, Any] = {"timestamp": JANUARY, "status": "running", "if_none_match": True}
    stored = await client.update_watermark("kev", run_id="run-1", **write)
    assert stored.run_id == "run-1"
    with pytest.raises(WatermarkConflictError, match="run 'run-1' was faster") as caught:
        await client.update_watermark("kev", run_id="run-2", **write)
    conflict(caught, 412)
    assert await client.get_watermark("kev") == stored


async def test_success_moves_the_watermark(client: Client, clock: FakeClock) -> None:
    """Each success stands in place of the one before it, at the service's time."""
    await client.update_watermark("kev", JANUARY)
    clock.advance(60)
    stored = await client.update_watermark("kev", FEBRUARY, "success")
    assert stored.last_successful_timestamp == FEBRUARY
    assert stored.last_run_timestamp == clock.now()
    same = await client.update_watermark("kev", FEBRUARY)
    assert same.last_successful_timestamp == FEBRUARY


@pytest.mark.parametrize("status", ["failed", "running"])
async def test_other_statuses_keep_the_last_success(client: Client, status: str) -> None:
    """Neither a failure nor a beginning moves the watermark, wherever their timestamps lie."""
    first = await client.update_watermark("kev", JANUARY, status)
    assert first.last_successful_timestamp is None
    await client.update_watermark("kev", JANUARY)
    for timestamp in (FEBRUARY, JANUARY - timedelta(days=1)):
        stored = await client.update_watermark("kev", timestamp, status)
        assert (stored.status, stored.last_successful_timestamp) == (status, JANUARY)
    assert await client.get_watermark("kev") == stored


async def test_error_message_stays_until_the_next_write(client: Client) -> None:
    """The last run's error is the only one."""
    failed = await client.update_watermark("kev", JANUARY, "failed", "the feed is gone\n\0 ✗")
    assert failed.error_message == "the feed is gone\n\0 ✗"
    assert await client.get_watermark("kev") == failed
    succeeded = await client.update_watermark("kev", JANUARY)
    assert succeeded.error_message is None


async def test_error_message_that_cannot_be_stored_is_cut_and_replaced(client: Client) -> None:
    """A failure is recorded, whatever the error's text is."""
    text = "\udcff" + "x" * 100_000
    failed = await client.update_watermark("kev", JANUARY, "failed", text)
    assert failed.error_message == "?" + "x" * 16_383


@pytest.mark.usefixtures("_far_from_utc")
@pytest.mark.parametrize(
    ("timestamp", "stored"),
    [
        (datetime(2024, 1, 1, 12), "2024-01-01T12:00:00+00:00"),  # noqa: DTZ001 - the point
        (datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30))),
         "2024-01-01T06:30:00+00:00"),
        (datetime(2024, 1, 1, 12, 0, 0, 999_999, UTC), "2024-01-01T12:00:00.999999+00:00"),
        (datetime(1, 1, 1, microsecond=1, tzinfo=UTC), "0001-01-01T00:00:00.000001+00:00"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
    ],
    ids=["naive", "offset", "microseconds", "first", "last"],
)  # fmt: skip
async def test_timestamp_is_utc_and_exact(client: Client, timestamp: datetime, stored: str) -> None:
    """A naive timestamp is read as UTC, another is shifted to it, and no microsecond is lost."""
    written = await client.update_watermark("kev", timestamp)
    assert written["last_successful_timestamp"] == stored
    assert written.last_successful_timestamp == datetime.fromisoformat(stored)
    assert await client.get_watermark("kev") == written


async def test_strange_source_ids_are_different_sources(client: Client) -> None:
    """A source's name is one path segment, whatever is in it, and comes back as it went."""
    for number, source_id in enumerate(STRANGE):
        written = await client.update_watermark(source_id, JANUARY + timedelta(days=number))
        assert written.source_id == source_id
    for number, source_id in enumerate(STRANGE):
        watermark = await client.get_watermark(source_id)
        assert watermark is not None
        assert watermark.source_id == source_id
        assert watermark.last_successful_timestamp == JANUARY + timedelta(days=number)


@pytest.mark.parametrize(
    "source_id",
    ["", ".", "..", "x" * 256, "a\nb", "a\0", "\x7f", "\udcff", " ", "kev ", "\u3000kev", "u\u0308",
     "\u202ekev", "ke\u200bv", "\ufeffkev", "a\u2028b", "\u3164", "kev\ufe0f", "k\u034fev"],
)  # fmt: skip
async def test_source_id_that_no_path_can_carry_is_refused(client: Client, source_id: str) -> None:
    """A name that no path carries, or that looks like another, is an error before any request."""
    with pytest.raises(ValueError, match="source_id"):
        await client.get_watermark(source_id)
    with pytest.raises(ValueError, match="source_id"):
        await client.update_watermark(source_id, JANUARY)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"timestamp": "2024-01-01T12:00:00+00:00"}, TypeError),
        ({"timestamp": 1704110400}, TypeError),
        ({"timestamp": None}, TypeError),
        ({"timestamp": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))}, ValueError),
        ({"status": "done"}, ValueError),
        ({"status": "Success"}, ValueError),
        ({"status": ""}, ValueError),
        ({"records_collected": -1}, ValueError),
        ({"records_collected": 2**53 + 1}, ValueError),
        ({"run_id": "x" * 256}, ValueError),
    ],
)
async def test_argument_that_makes_no_sense_writes_nothing(
    client: Client, arguments: dict[str, Any], error: type[Exception]
) -> None:
    """A mistake of the caller's is told at once, and is nobody's failure."""
    with pytest.raises(error):
        await client.update_watermark("kev", **{"timestamp": JANUARY, **arguments})
    assert await client.get_watermark("kev") is None
    assert client.circuit_breaker.failure_count == 0


async def test_watermark_answers_like_the_dictionary_it_was(client: Client) -> None:
    """Code that was written for a plain client's dictionary goes on."""
    await client.update_watermark("kev", JANUARY, "failed", "boom")
    watermark = await client.get_watermark("kev")
    assert watermark is not None
    assert watermark["status"] == "failed"
    assert watermark["last_successful_timestamp"] is None
    assert watermark.get("error_message") == "boom"
    assert watermark.get("nothing") is None
    assert watermark.get("nothing", 7) == 7
    assert "status" in watermark
    assert "nothing" not in watermark
    assert json.loads(json.dumps(dict(watermark)))["last_run_timestamp"] == SERVICE_TIME
    with pytest.raises(KeyError):
        watermark["nothing"]


async def test_watermark_is_frozen(client: Client) -> None:
    """Nobody moves a watermark by accident."""
    watermark = await client.update_watermark("kev", JANUARY)
    with pytest.raises(ValidationError, match="frozen"):
        watermark.last_successful_timestamp = FEBRUARY  # type: ignore[misc]


async def test_health_check_is_true_and_close_keeps_what_is_stored(client: Client) -> None:
    """A client can be closed and used again, and its circuit stays closed."""
    async with client as entered:
        assert entered is client
        assert await client.health_check() is True
        written = await client.update_watermark("kev", JANUARY)
    assert await client.get_watermark("kev") == written
    assert client.circuit_breaker.state == "closed"
    await client.close()


@pytest.mark.parametrize("client", ["base"], indirect=True)
async def test_service_without_etag_gets_the_base_contract_only(client: Client) -> None:
    """What a service did not show that it knows is not sent; that one refuses it."""
    more: dict[str, Any] = {"records_collected": 7, "run_id": "run-1"}
    first = await client.update_watermark("kev", JANUARY, **more)
    assert first.etag is None
    read = await client.get_watermark("kev")
    assert read is not None
    assert read.etag is None
    with pytest.raises(StorageResponseError):  # not dropped: the write would be unfenced
        await client.update_watermark("kev", FEBRUARY, if_match='"1"', **more)
    back = await client.update_watermark("kev", JANUARY, if_match=read.etag, **more)
    assert back.last_successful_timestamp == JANUARY


@extended
async def test_records_and_tag_are_kept_where_they_are_known(client: Client) -> None:
    """Each write has a tag of its own, and the number of records is that of the last run."""
    first = await client.update_watermark("kev", JANUARY)
    counted = await client.update_watermark("kev", JANUARY, records_collected=7, run_id="run-1")
    assert counted.records_collected == 7
    failed = await client.update_watermark("kev", JANUARY, "failed")
    assert failed.records_collected == 7
    none = await client.update_watermark("kev", FEBRUARY, records_collected=0)
    assert none.records_collected == 0
    tags = {first.etag, counted.etag, failed.etag, none.etag}
    assert None not in tags
    assert len(tags) == 4
    assert await client.get_watermark("kev") == none


def conflict(caught: pytest.ExceptionInfo[WatermarkConflictError], status: int) -> None:
    assert caught.value.status == status
    assert not caught.value.transient
    assert "'kev'" in str(caught.value)


@extended
async def test_write_of_another_version_conflicts(client: Client) -> None:
    """Whoever read before another run wrote does not write over it, and is no failure."""
    with pytest.raises(WatermarkConflictError) as caught:
        await client.update_watermark("kev", JANUARY, if_match='"7"')
    conflict(caught, 412)
    assert await client.get_watermark("kev") is None

    read = await client.update_watermark("kev", JANUARY)
    other = await client.update_watermark("kev", FEBRUARY, if_match=read.etag)
    for status in ("success", "failed", "running"):
        with pytest.raises(WatermarkConflictError) as caught:
            await client.update_watermark("kev", FEBRUARY, status, if_match=read.etag)
        conflict(caught, 412)
    assert await client.get_watermark("kev") == other
    assert client.circuit_breaker.failure_count == 0


@extended
async def test_success_that_goes_back_conflicts(client: Client) -> None:
    """A run does not move a watermark back, by not one microsecond."""
    stored = await client.update_watermark("kev", FEBRUARY)
    for tag in (None, stored.etag):
        with pytest.raises(WatermarkConflictError) as caught:
            await client.update_watermark("kev", FEBRUARY - timedelta(microseconds=1), if_match=tag)
        conflict(caught, 409)
    assert await client.get_watermark("kev") == stored


@extended
@pytest.mark.parametrize("ahead", [timedelta(microseconds=1), HONEST_SKEW], ids=str)
async def test_success_of_an_honest_clock_does_not_go_back(
    client: Client, clock: FakeClock, ahead: timedelta
) -> None:
    """A writer's clock may be ahead of the service's; who has read it may put it right."""
    stored = await client.update_watermark("kev", clock.now() + ahead)
    for tag in (None, "*"):
        with pytest.raises(WatermarkConflictError) as caught:
            await client.update_watermark("kev", JANUARY, if_match=tag)
        conflict(caught, 409)
    assert await client.get_watermark("kev") == stored
    right = await client.update_watermark("kev", JANUARY, if_match=stored.etag)
    assert right.last_successful_timestamp == JANUARY
    await client.update_watermark("kev", clock.now() + HONEST_SKEW + timedelta(microseconds=1))
    assert (await client.update_watermark("kev", JANUARY)).last_successful_timestamp == JANUARY


@extended
async def test_replay_of_the_same_write_is_the_same_write(client: Client) -> None:
    """A run that lost the answer may write again what it outdated itself; nothing changes."""
    read = await client.update_watermark("kev", JANUARY)
    write: dict[str, Any] = {"timestamp": FEBRUARY, "if_match": read.etag, "run_id": "run-1"}
    written = await client.update_watermark("kev", **write)
    assert await client.update_watermark("kev", **write) == written
    assert await client.get_watermark("kev") == written


@extended
@pytest.mark.parametrize(
    "changed",
    [
        {"run_id": "run-2"},
        {"run_id": None},
        {"timestamp": FEBRUARY + timedelta(days=1)},
        {"status": "failed"},
    ],
    ids=["another run", "no run", "another timestamp", "another status"],
)
async def test_replay_of_another_write_conflicts(client: Client, changed: dict[str, Any]) -> None:
    """Only the very same write of the same run is a replay."""
    read = await client.update_watermark("kev", JANUARY)
    write: dict[str, Any] = {"timestamp": FEBRUARY, "if_match": read.etag, "run_id": "run-1"}
    written = await client.update_watermark("kev", **write)
    with pytest.raises(WatermarkConflictError) as caught:
        await client.update_watermark("kev", **{**write, **changed})
    conflict(caught, 412)
    assert await client.get_watermark("kev") == written


@extended
@pytest.mark.parametrize(
    "ahead", [timedelta(days=1, microseconds=1), timedelta(days=36_500)], ids=["a day", "a century"]
)
async def test_success_in_the_future_is_refused(
    client: Client, clock: FakeClock, ahead: timedelta
) -> None:
    """No success is more than a day ahead of the service, whoever believes what a source says."""
    stored = await client.update_watermark("kev", clock.now() + timedelta(days=1))
    for source_id in ("kev", "new"):
        with pytest.raises(WatermarkInFutureError, match="day after the service's time") as caught:
            await client.update_watermark(source_id, clock.now() + ahead)
        assert (caught.value.status, caught.value.transient) == (422, False)
    assert await client.get_watermark("kev") == stored
    assert await client.get_watermark("new") is None
    assert client.circuit_breaker.failure_count == 0
    for status in ("running", "failed"):  # which move nothing
        await client.update_watermark("kev", clock.now() + ahead, status)


@extended
async def test_watermark_in_the_future_can_be_put_right(client: Client, clock: FakeClock) -> None:
    """A success replaces what cannot be, and the history says so."""
    await client.update_watermark("kev", clock.now() + timedelta(hours=2))
    right = await client.update_watermark("kev", clock.now() - timedelta(hours=1))
    assert right.last_successful_timestamp == clock.now() - timedelta(hours=1)
    history = await client.watermark_history("kev", moved=True, limit=1)
    assert history is not None
    assert history.changes[0].from_timestamp == clock.now() + timedelta(hours=2)


async def test_success_that_found_nothing_reads_as_never_collected(client: Client) -> None:
    """The year 1 is on the wire, since the contract wants a timestamp, and nowhere else."""
    written = await client.update_watermark("kev", EMPTY_WATERMARK)
    read = await client.get_watermark("kev")
    assert read == written
    for watermark in (written, read, pickle.loads(pickle.dumps(read))):
        assert watermark.found_nothing
        assert watermark.last_successful_timestamp is None
        assert watermark["last_successful_timestamp"] is None
        assert collected_up_to(watermark) is None
        assert "0001" not in repr(watermark)
    running = await client.update_watermark("kev", JANUARY, "running")
    assert running.last_successful_timestamp is None
    collected = await client.update_watermark("kev", JANUARY)
    assert (collected.found_nothing, collected_up_to(collected)) == (False, JANUARY)


async def test_answer_has_the_services_time(client: Client, clock: FakeClock) -> None:
    """It comes with each answer, and is no part of what is stored: neither compared nor shown."""
    clock.advance(3600)
    written = await client.update_watermark("kev", JANUARY)
    if isinstance(client, MockStorageClient) or written.etag:
        assert written.answered_at == clock.now()
    else:  # aiohttp dates the base service's answers by its machine's clock
        assert written.answered_at is not None
        assert abs(written.answered_at - datetime.now(UTC)) < timedelta(minutes=1)
    clock.advance(60)
    read = await client.get_watermark("kev")
    assert read is not None
    assert pickle.loads(pickle.dumps(read)).answered_at == read.answered_at
    assert read.model_copy().answered_at == read.answered_at
    assert read == written
    assert "answered" not in f"{read!r}{dict(read)}{read.model_dump_json()}"


@extended
async def test_lease_is_kept_while_the_run_says_running(client: Client) -> None:
    """Others judge the holder by its own lease; an outcome ends it."""
    write: dict[str, Any] = {"timestamp": JANUARY, "lease": timedelta(minutes=7)}
    first = await client.update_watermark("kev", JANUARY)
    running = await client.update_watermark("kev", status="running", if_match=first.etag, **write)
    assert running.lease_seconds == 420
    assert await client.get_watermark("kev") == running
    for status in ("success", "failed"):
        ended = await client.update_watermark("kev", status=status, **write)
        assert ended.lease_seconds is None


@extended
async def test_ledger_is_kept_with_the_watermark_and_its_history(client: Client) -> None:
    """Whatever it holds, it is stored as JSON; `running` tells none, and leaves the last one."""
    first = await client.update_watermark("kev", JANUARY)
    ledger = {
        "pages": 2, "start": JANUARY, "gap": None, "reasons": {"no id \udcff": 3},
        "share": float("nan"), "lag": timedelta(seconds=1),
    }  # fmt: skip
    told = {
        "pages": 2, "start": "2024-01-01T12:00:00Z", "gap": None, "reasons": {"no id ?": 3},
        "share": None, "lag": "PT1S",
    }  # fmt: skip
    stored = await client.update_watermark("kev", JANUARY, if_match=first.etag, ledger=ledger)
    assert stored.ledger == told
    running = await client.update_watermark("kev", JANUARY, "running")
    assert running.ledger == told
    await client.update_watermark("kev", JANUARY, "failed", ledger={"pages": 1})
    history = await client.watermark_history("kev")
    assert history is not None
    assert [change.ledger for change in history.changes] == [{"pages": 1}, None, told, None]


class Untold:
    """A value whose class fails to return its text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@extended
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"\xff", r"b'\xff'"),
        (Path("\udcff"), "?"),
        (Untold(), "its text cannot be shown (RuntimeError)"),
        ({Untold(): [b"text"]}, {"its text cannot be shown (RuntimeError)": ["text"]}),
        (10**5_000, "its text cannot be shown (ValueError)"),
    ],
    ids=["bytes", "path", "object", "key", "number"],
)
async def test_value_without_a_form_in_json_keeps_no_outcome_from_being_written(
    client: Client, value: object, told: object
) -> None:
    """A custom storage or source may put anything into a ledger."""
    first = await client.update_watermark("kev", JANUARY)
    ledger = {"pages": 7, "value": value}
    stored = await client.update_watermark("kev", JANUARY, if_match=first.etag, ledger=ledger)
    assert stored.ledger == {"pages": 7, "value": told}


@extended
async def test_ledger_that_is_too_large_keeps_its_numbers(client: Client) -> None:
    """An outcome is written whatever the run would tell of it."""
    first = await client.update_watermark("kev", JANUARY)
    ledger = {"reasons": {str(n): "x" * 100 for n in range(1000)}, "text": "x" * 300, "pages": 7}
    stored = await client.update_watermark("kev", JANUARY, if_match=first.etag, ledger=ledger)
    assert stored.ledger == {"cut": True, "pages": 7}
    many = {f"count {n}": n for n in range(9_999)}
    stored = await client.update_watermark("kev", JANUARY, ledger=many)
    assert stored.ledger is not None
    assert 900 < len(stored.ledger) < 1_000


@extended
async def test_ledger_without_an_end_is_cut(client: Client) -> None:
    """An outcome is written with a ledger that is nested too deep, or contains itself."""
    first = await client.update_watermark("kev", JANUARY)
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    endless: dict[str, Any] = {"pages": 7, "deep": deep}
    endless |= {"again": endless, "beside": [endless]}
    stored = await client.update_watermark("kev", JANUARY, if_match=first.etag, ledger=endless)
    assert stored.ledger is not None
    told: Any = stored.ledger.pop("deep")
    assert stored.ledger == {"pages": 7, "again": "…", "beside": ["…"]}
    for _ in range(31):
        [told] = told
    assert told == "…"


@extended
async def test_history_is_paged_and_can_be_of_what_moved(client: Client) -> None:
    """The latest change is first; a page says where the next one begins."""
    for day in range(3):
        await client.update_watermark("kev", JANUARY + timedelta(days=day))
        await client.update_watermark("kev", JANUARY, "running")
    await client.update_watermark("another", JANUARY)
    page = await client.watermark_history("kev", moved=True, limit=2)
    assert page is not None
    moved = [change.to_timestamp for change in page.changes]
    assert moved == [JANUARY + timedelta(days=2), JANUARY + timedelta(days=1)]
    rest = await client.watermark_history("kev", moved=True, limit=2, before=page.next)
    assert rest is not None
    assert ([change.to_timestamp for change in rest.changes], rest.next) == ([JANUARY], None)
    every = await client.watermark_history("kev")
    assert every is not None
    assert [str(change.status) for change in every.changes] == ["running", "success"] * 3


@pytest.mark.parametrize("client", ["base"], indirect=True)
async def test_base_service_is_not_asked_for_a_history(client: Client) -> None:
    """What a service did not show is not asked for: this one fails at any other path."""
    await client.update_watermark("kev", JANUARY, ledger={"pages": 1}, lease=timedelta(1))
    assert await client.watermark_history("kev") is None


@pytest.mark.parametrize(
    "name",
    [
        "get_watermark", "update_watermark", "watermark_history", "health_check", "close",
        "__aexit__",
    ],
)  # fmt: skip
@pytest.mark.parametrize("other", [MockStorageClient, EmbeddedStorage])
def test_others_have_the_clients_signature(name: str, other: type) -> None:
    """A caller of one can call the other."""
    ours, theirs = (getattr(each, name) for each in (other, StorageServiceClient))
    assert inspect.signature(ours) == inspect.signature(theirs)


def test_watermark_of_few_or_unknown_fields_is_kept_as_it_came() -> None:
    """Fields may be missing and unknown ones may come; the first are not made up."""
    watermark = Watermark.from_answer(b'{"source_id": "kev", "status": "paused", "new": [1]}', None)
    assert dict(watermark) == {"source_id": "kev", "status": "paused", "new": [1]}
    assert watermark.records_collected is None
    with pytest.raises(KeyError):
        watermark["records_collected"]


@pytest.mark.parametrize(
    ("ahead", "age", "wrong"),
    [
        (timedelta(hours=-1), 3600.0, False),
        (timedelta(0), 0.0, False),
        (timedelta(minutes=1), 0.0, False),
        (timedelta(minutes=1, microseconds=1), math.inf, True),
        (timedelta(days=9), math.inf, True),
    ],
    ids=str,
)
def test_watermark_in_the_future_is_never_fresh(ahead: timedelta, age: float, wrong: bool) -> None:
    """Two honest clocks may differ by a minute; beyond it the watermark has no age."""
    assert age_seconds(JANUARY + ahead, JANUARY) == age
    assert is_ahead(JANUARY + ahead, JANUARY) is wrong


@pytest.mark.parametrize("success", [None, EMPTY_WATERMARK])
def test_source_that_was_never_collected_is_infinitely_old(success: datetime | None) -> None:
    """To whoever reads, a source that had nothing yet was never collected."""
    assert age_seconds(success, JANUARY) == math.inf
    assert collected_up_to(Watermark(source_id="kev", last_successful_timestamp=success)) is None
    assert collected_up_to(None) is None


@pytest.mark.parametrize("date", ["yesterday", "", "Fri, 31 Dec 9999 23:59:59 -2359"])
def test_time_that_cannot_be_read_is_none(date: str) -> None:
    """A service whose clock is not understood is one that does not tell its time."""
    watermark = Watermark.from_answer(b'{"source_id": "kev"}', None, date)
    assert watermark.answered_at is None


@pytest.mark.parametrize("ledger", [[1], "text", 5, ()])
def test_ledger_that_is_no_mapping_is_refused(ledger: Any) -> None:
    """Stored, it would end each later run of its source."""
    with pytest.raises(ValueError, match="ledger"):
        WatermarkUpdate.of(JANUARY, "success", ledger=ledger)


async def test_write_by_values_is_the_write_by_arguments(client: Client) -> None:
    """Both ways store the same fields, whatever the service knows beyond the base contract."""
    update = WatermarkUpdate.of(JANUARY, "success", run_id="R", records_collected=2)
    for source_id in ("values", "arguments"):
        assert await client.get_watermark(source_id) is None
    one = await client.put_watermark("values", update, Precondition.unchanged(None))
    other = await client.update_watermark(
        "arguments", JANUARY, "success", if_none_match=True, run_id="R", records_collected=2
    )
    left_out = {"source_id", "last_run_timestamp"}
    assert one.model_dump(exclude=left_out) == other.model_dump(exclude=left_out)


async def test_write_is_refused_where_another_came_since_the_reading(client: Client) -> None:
    """`Precondition.unchanged` is the reading that a write depends on, also of no watermark."""
    update = WatermarkUpdate.of(JANUARY, "success")
    read = await client.get_watermark("kev")
    stored = await client.put_watermark("kev", update, Precondition.unchanged(read))
    if stored.etag is None:  # nothing to compare: the service takes both
        await client.put_watermark("kev", update, Precondition.unchanged(stored))
        return
    with pytest.raises(WatermarkConflictError):
        await client.put_watermark("kev", update, Precondition.unchanged(read))
    again = await client.put_watermark("kev", update, Precondition.unchanged(stored))
    with pytest.raises(WatermarkConflictError):
        await client.put_watermark("kev", update, Precondition.unchanged(stored))
    assert again.etag != stored.etag


@pytest.mark.parametrize(
    ("if_match", "etag", "is_admitted"),
    [
        (None, None, True),
        (None, '"1"', True),
        ("*", '"1"', True),
        ("*", None, False),
        ('"1"', '"1"', True),
        ('"1"', '"11"', False),
        ('"1"', None, False),
        ('"1", "2"', '"2"', True),
        ('"1", "2"', '"1", "2"', True),
        ('W/"1"', '"1"', False),
        ('"a, b"', '"b"', False),
        ("bare", "bare", True),
    ],
)
def test_if_match_admits_what_rfc_9110_says(
    if_match: str | None, etag: str | None, is_admitted: bool
) -> None:
    """A list names alternatives, a star any version that is stored, and a weak tag none."""
    assert Precondition(if_match).admits(etag) is is_admitted


def test_error_that_replaces_another_is_cut_as_the_first() -> None:
    """The text of a signal or a traceback never keeps an outcome from being written."""
    update = WatermarkUpdate.of(JANUARY, "failed", "boom").with_error("\udc80" * 20_000)
    assert update.error_message == "?" * 16_384
