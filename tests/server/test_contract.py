"""The embedded service speaks the base contract, and its additions, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from ladon_storage.testing.clock import FakeClock
from tests.service import Answer, Caller, calling, embedded_service, path, success

JANUARY = "2024-01-01T12:00:00+00:00"
FEBRUARY = "2024-02-01T12:00:00+00:00"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def call(service_database: Path | str, clock: FakeClock) -> AsyncIterator[Caller]:
    service = embedded_service(service_database, now=clock.now)
    async with service as address, calling(address) as caller:
        yield caller


async def test_source_never_collected_is_404(call: Caller) -> None:
    """A missing watermark is 404 with a sentence, and the tag of a version that never matches."""
    answer = await call("GET", path("kev"))
    assert answer.status == 404
    assert answer.json == {"error": "Source 'kev' was never collected.", "field": "source_id"}
    assert answer.etag == '"0"'
    assert (await put_if(call, answer.etag)).status == 412


async def test_first_write_is_created_and_the_next_replaces(call: Caller) -> None:
    """The first write answers 201 and a later one 200, each with the stored watermark."""
    first = await call("PUT", path("kev"), success(JANUARY, records_collected=7))
    second = await call("PUT", path("kev"), success(FEBRUARY))
    assert (first.status, second.status) == (201, 200)
    assert first.json == {
        "source_id": "kev",
        "last_successful_timestamp": JANUARY,
        "last_run_timestamp": "2026-01-01T00:00:00+00:00",
        "status": "success",
        "error_message": None,
        "records_collected": 7,
        "run_id": None,
    }
    read = await call("GET", path("kev"))
    assert read.status == 200
    assert read.json == second.json
    assert read.json["last_successful_timestamp"] == FEBRUARY


@pytest.mark.parametrize("status", ["failed", "running"])
async def test_only_a_success_moves_the_watermark(call: Caller, status: str) -> None:
    """A failed or running report is stored, and the last success stays where it was."""
    await call("PUT", path("kev"), success(JANUARY))
    report = {"timestamp": FEBRUARY, "status": status, "error_message": "timed out"}
    answer = await call("PUT", path("kev"), report)
    assert answer.status == 200
    assert answer.json["status"] == status
    assert answer.json["error_message"] == "timed out"
    assert answer.json["last_successful_timestamp"] == JANUARY


async def test_failure_before_any_success_has_no_success(call: Caller) -> None:
    """A source that only failed is known, and still has nothing that was collected."""
    answer = await call("PUT", path("kev"), {"timestamp": JANUARY, "status": "failed"})
    assert answer.status == 201
    assert answer.json["last_successful_timestamp"] is None


async def test_success_older_than_the_stored_one_is_409(call: Caller) -> None:
    """A success never moves the watermark back, and one at the same instant is accepted."""
    await call("PUT", path("kev"), success(FEBRUARY))
    back = await call("PUT", path("kev"), success(JANUARY))
    assert back.status == 409
    assert back.json["field"] == "timestamp"
    assert "reset" in back.json["error"]
    same = await call("PUT", path("kev"), success("2024-02-01T14:00:00+02:00"))
    assert same.status == 200


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"ledger": {"text": "x" * 16_384}}, "ledger"),
        ({"ledger": json.loads('{"a":' * 32 + "{}" + "}" * 32)}, "ledger"),
        ({"ledger": [1]}, "ledger"),
        ({"ledger": "pages"}, "ledger"),
        ({"lease_seconds": 0}, "lease_seconds"),
        ({"lease_seconds": 1e10}, "lease_seconds"),
        ({"lease_seconds": "soon"}, "lease_seconds"),
    ],
)
async def test_addition_that_makes_no_sense_is_refused(
    call: Caller, more: dict[str, object], field: str
) -> None:
    """A ledger is a JSON object of 16 KiB and 32 levels at most, and a lease some seconds."""
    answer = await call("PUT", path("kev"), success(JANUARY, **more))
    assert (answer.status, answer.json["field"]) == (422, field)
    assert (await call("GET", path("kev"))).status == 404


async def test_success_in_the_future_is_refused_with_the_reason(call: Caller) -> None:
    """What a run could only have from a wrong clock moves nothing, and says what to correct."""
    answer = await call("PUT", path("kev"), success("2026-01-02T00:00:00.000001Z"))
    assert (answer.status, answer.json["field"]) == (422, "timestamp")
    assert "service's time, 2026-01-01T00:00:00+00:00; correct" in answer.json["error"]
    assert (await call("GET", path("kev"))).status == 404


async def test_answers_are_dated_by_the_clock_that_dates_watermarks(
    call: Caller, clock: FakeClock
) -> None:
    """Who judges how old a record is has both instants from one clock."""
    for seconds in (0.0, 0.9, 61.0):
        clock.seconds = seconds
        put = await call("PUT", path("kev"), success(JANUARY))
        read, none = await call("GET", path("kev")), await call("GET", path("none"))
        told = {parsedate_to_datetime(each.headers["Date"]) for each in (put, read, none)}
        assert told == {clock.now().replace(microsecond=0)}
        assert len(read.headers.getall("Date")) == 1


async def test_health_says_that_there_are_versions(call: Caller) -> None:
    """A client that asks for it knows whose 404 means *never collected*, before it reads one."""
    none = await call("GET", path("kev"))
    assert (await call("GET", "/health")).etag == none.etag == '"0"'


async def test_timestamps_keep_microseconds_and_become_utc(call: Caller) -> None:
    """An offset is shifted, a naive one is UTC, and digits beyond microseconds are cut off."""
    for sent, stored in [
        ("2024-01-02T21:59:38.123456+05:30", "2024-01-02T16:29:38.123456+00:00"),
        ("2024-01-03T00:00:00", "2024-01-03T00:00:00+00:00"),
        ("2024-01-03T00:00:00.9999999Z", "2024-01-03T00:00:00.999999+00:00"),
        ("2026-01-01T23:59:59.999999Z", "2026-01-01T23:59:59.999999+00:00"),
    ]:
        await call("PUT", path("kev"), success(sent))
        read = await call("GET", path("kev"))
        assert read.json["last_successful_timestamp"] == stored


@pytest.mark.parametrize(
    "source_id",
    [
        "a/b",
        "a b",
        "a%2Fb",
        "ä/ß€😀",
        "{x}",
        "%",
        "?q=1#f",
        "a+b",
        "x" * 255,
        "...",
        "reset",
        "é" * 99,
    ],
)
async def test_any_source_id_is_one_path_segment(call: Caller, source_id: str) -> None:
    """Whatever a source is called, percent-encoded it is written, read and listed as itself."""
    put = await call("PUT", path(source_id), success(JANUARY))
    assert put.status == 201
    assert put.json["source_id"] == source_id
    assert (await call("GET", path(source_id))).json == put.json
    page = await call("GET", "/api/v1/watermarks")
    assert [watermark["source_id"] for watermark in page.json["watermarks"]] == [source_id]


async def test_health_is_healthy(call: Caller) -> None:
    """A service whose database answers says so, in the base contract's words."""
    answer = await call("GET", "/health")
    assert (answer.status, answer.text) == (200, '{"status":"healthy"}')


async def test_get_and_put_show_the_same_etag(call: Caller) -> None:
    """The version tag is quoted, changes with each write, and reading shows the last one."""
    first = await call("PUT", path("kev"), success(JANUARY))
    second = await call("PUT", path("kev"), success(FEBRUARY))
    read = await call("GET", path("kev"))
    assert first.etag != second.etag == read.etag
    assert read.etag.startswith('"')
    assert read.etag.endswith('"')


async def put_if(call: Caller, if_match: str, **more: object) -> Answer:
    body = {**success(FEBRUARY), **more}
    return await call("PUT", path("kev"), body, headers={"If-Match": if_match})


async def test_if_match_admits_only_the_version_that_is_stored(call: Caller) -> None:
    """A write against an older version is 412, and changes nothing."""
    old = (await call("PUT", path("kev"), success(JANUARY))).etag
    new = await put_if(call, old)
    assert new.status == 200
    refused = await put_if(call, old)
    assert refused.status == 412
    assert refused.json["field"] == "If-Match"
    assert "read it again" in refused.json["error"]
    assert (await call("GET", path("kev"))).etag == new.etag


async def test_refusal_names_the_run_that_was_faster(call: Caller) -> None:
    """Whoever is refused learns which run wrote what it would have replaced."""
    first = await call("PUT", path("kev"), success(JANUARY, run_id="run-1"))
    await call("PUT", path("kev"), success(FEBRUARY, run_id="run-2"))
    refused = await put_if(call, first.etag, run_id="run-1")
    assert refused.status == 412
    assert "run 'run-2' was faster" in refused.json["error"]
    created = {"If-None-Match": "*"}
    refused = await call("PUT", path("kev"), success(FEBRUARY, run_id="run-1"), headers=created)
    assert "run 'run-2' was faster" in refused.json["error"]


async def test_if_match_takes_a_list_and_a_star(call: Caller) -> None:
    """One matching tag of a list is enough, and ``*`` matches whatever is stored."""
    etag = (await call("PUT", path("kev"), success(JANUARY))).etag
    listed = await put_if(call, f'"999", {etag}')
    assert listed.status == 200
    assert (await put_if(call, f"{listed.etag},W/{listed.etag}")).status == 200
    assert (await put_if(call, "*")).status == 200


@pytest.mark.parametrize("if_match", ["*", '"1"', '"1", "2"'])
async def test_if_match_without_a_watermark_is_412(call: Caller, if_match: str) -> None:
    """A writer that read a watermark does not create one that was deleted since."""
    assert (await put_if(call, if_match)).status == 412
    assert (await call("GET", path("kev"))).status == 404


async def test_weak_tag_never_matches(call: Caller) -> None:
    """A tag that an intermediary weakened is no proof that nothing changed."""
    etag = (await call("PUT", path("kev"), success(JANUARY))).etag
    assert (await put_if(call, f"W/{etag}")).status == 412


@pytest.mark.parametrize("if_match", ["7", "", '"7', '"7" "8"', '*, "7"', 'w/"7"', "\xff"])
async def test_malformed_if_match_is_400(call: Caller, if_match: str) -> None:
    """A header that is no tag is refused, rather than taken for one that matches nothing."""
    answer = await put_if(call, if_match)
    assert (answer.status, answer.json["field"]) == (400, "If-Match")


async def test_if_none_match_admits_only_the_first_write(call: Caller) -> None:
    """``If-None-Match: *`` creates, and is 412 where there is a watermark."""
    nothing = {"If-None-Match": "*"}
    first = await call("PUT", path("kev"), success(JANUARY), headers=nothing)
    second = await call("PUT", path("kev"), success(FEBRUARY), headers=nothing)
    assert (first.status, second.status) == (201, 412)
    other = await call("PUT", path("kev"), success(JANUARY), headers={"If-None-Match": '"1"'})
    assert (other.status, other.json["field"]) == (400, "If-None-Match")


async def test_concurrent_writers_of_one_version_have_one_winner(call: Caller) -> None:
    """Of many runs that read the same version, exactly one writes; the others get 412."""
    etag = (await call("PUT", path("kev"), success(JANUARY))).etag
    answers = await asyncio.gather(*(put_if(call, etag, run_id=f"run-{n}") for n in range(20)))
    assert sorted(answer.status for answer in answers) == [200] + [412] * 19
    winner = next(answer for answer in answers if answer.status == 200)
    assert (await call("GET", path("kev"))).etag == winner.etag


async def test_replayed_write_is_answered_with_what_it_stored(call: Caller) -> None:
    """A write that is sent again because its answer was lost succeeds, and is stored once."""
    etag = (await call("PUT", path("kev"), success(JANUARY))).etag
    stored = await put_if(call, etag, run_id="run-1")
    replayed = await put_if(call, etag, run_id="run-1")
    assert (replayed.status, replayed.etag, replayed.json) == (200, stored.etag, stored.json)
    history = await call("GET", path("kev", "/history"))
    assert len(history.json["changes"]) == 2


async def test_replayed_first_write_is_answered_with_what_it_stored(call: Caller) -> None:
    """The same holds for a first write under ``If-None-Match: *``."""
    nothing = {"If-None-Match": "*"}
    body = success(JANUARY, run_id="run-1")
    stored = await call("PUT", path("kev"), body, headers=nothing)
    replayed = await call("PUT", path("kev"), body, headers=nothing)
    assert (replayed.status, replayed.etag) == (200, stored.etag)


@pytest.mark.parametrize(
    "other",
    [
        {"run_id": "run-2"},
        {"run_id": None},
        {"run_id": "run-1", "status": "failed"},
        {"run_id": "run-1", "timestamp": "2024-03-01T00:00:00Z"},
    ],
)
async def test_write_that_differs_is_no_replay(call: Caller, other: dict[str, object]) -> None:
    """Another run, status or timestamp against an old version stays a conflict."""
    etag = (await call("PUT", path("kev"), success(JANUARY))).etag
    await put_if(call, etag, run_id="run-1")
    assert (await put_if(call, etag, **other)).status == 412


async def test_write_after_a_reset_is_no_replay(call: Caller) -> None:
    """A run's write that comes again after an operator's reset does not undo or confirm it."""
    etag = (await call("PUT", path("kev"), success(JANUARY))).etag
    await put_if(call, etag, run_id="run-1")
    await call("POST", path("kev", "/reset"), {"timestamp": FEBRUARY, "reason": "test"})
    assert (await put_if(call, etag, run_id="run-1")).status == 412


async def test_unknown_fields_are_ignored(call: Caller) -> None:
    """A later client may say more than this service understands."""
    answer = await call("PUT", path("kev"), success(JANUARY, colour="blue"))
    assert answer.status == 201


async def test_error_of_a_write_names_the_field(call: Caller) -> None:
    """A wrong field is 422 with its name and a sentence, and nothing is stored."""
    for body, field in [
        ({"status": "success"}, "timestamp"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"timestamp": 1704110400}, "timestamp"),
        (success(JANUARY, status="done"), "status"),
        (success(JANUARY, error_message=5), "error_message"),
        (success(JANUARY, records_collected=-1), "records_collected"),
        (success(JANUARY, records_collected=10**30), "records_collected"),
        (success(JANUARY, run_id="x" * 256), "run_id"),
        ([], None),
    ]:
        answer = await call("PUT", path("kev"), body)
        assert (answer.status, answer.json["field"]) == (422, field), body
        assert answer.json["error"].endswith(".")
    assert (await call("GET", path("kev"))).status == 404


async def test_unknown_route_and_method_are_json(call: Caller) -> None:
    """404 and 405 have the same shape as every other error, and 405 says what is allowed."""
    unknown = await call("GET", "/api/v2/watermarks")
    assert (unknown.status, set(unknown.json)) == (404, {"error", "field"})
    method = await call("POST", path("kev"), success(JANUARY))
    assert (method.status, set(method.json)) == (405, {"error", "field"})
    assert set(method.headers["Allow"].split(",")) == {"DELETE", "GET", "HEAD", "PUT"}
