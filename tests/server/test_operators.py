"""What operators do with watermarks: list, reset with a reason, delete, and read who did what."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ladon_storage.testing.clock import FakeClock
from tests.service import Caller, calling, embedded_service, path, success

JANUARY = "2024-01-01T12:00:00+00:00"
FEBRUARY = "2024-02-01T12:00:00+00:00"
LIST = "/api/v1/watermarks"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def call(service_database: Path | str, clock: FakeClock) -> AsyncIterator[Caller]:
    service = embedded_service(service_database, now=clock.now)
    async with service as address, calling(address) as caller:
        yield caller


async def listed(call: Caller, query: str = "") -> list[str]:
    answer = await call("GET", LIST + query)
    assert answer.status == 200
    return [watermark["source_id"] for watermark in answer.json["watermarks"]]


async def test_reset_moves_a_watermark_back(call: Caller) -> None:
    """An operator's reset goes where no success may, and leaves the last run's outcome alone."""
    await call("PUT", path("kev"), success(FEBRUARY, records_collected=5))
    failed = {"timestamp": FEBRUARY, "status": "failed", "error_message": "timed out"}
    before = await call("PUT", path("kev"), failed)
    reset = await call("POST", path("kev", "/reset"), {"timestamp": JANUARY, "reason": "bad feed"})
    assert reset.status == 200
    assert reset.json == {**before.json, "last_successful_timestamp": JANUARY}
    assert reset.etag != before.etag
    assert (await call("GET", path("kev"))).etag == reset.etag


async def test_reset_with_if_none_match_makes_the_first_watermark(call: Caller) -> None:
    """An operator may seed a source that was never collected, with a reason, and only then."""
    seed = {"timestamp": JANUARY, "reason": "from the old collector", "actor": "ops@example"}
    first = {"headers": {"If-None-Match": "*"}}
    made = await call("POST", path("kev", "/reset"), seed, **first)
    assert made.status == 200
    assert made.json["last_successful_timestamp"] == JANUARY
    assert (await call("POST", path("kev", "/reset"), seed, **first)).status == 412
    mistyped = {**seed, "timestamp": "2062-01-01T00:00:00Z"}
    assert (await call("POST", path("nvd", "/reset"), mistyped, **first)).status == 422
    [change] = (await call("GET", path("kev", "/history"))).json["changes"]
    assert (change["action"], change["reason"]) == ("reset", seed["reason"])
    assert (change["from_timestamp"], change["to_timestamp"]) == (None, JANUARY)


async def test_deletion_with_a_reason_is_recorded_with_it(call: Caller) -> None:
    """The history says who deleted a watermark, and why; without a reason nothing is deleted."""
    etag = (await call("PUT", path("kev"), success(FEBRUARY))).etag
    body = {"reason": "no longer collected", "actor": "ops@example"}
    assert (await call("POST", path("kev", "/delete"), {"reason": " "})).status == 422
    other = {"headers": {"If-Match": '"99"'}}
    assert (await call("POST", path("kev", "/delete"), body, **other)).status == 412
    assert (await call("GET", path("kev"))).etag == etag
    assert (await call("POST", path("kev", "/delete"), body)).status == 204
    assert (await call("POST", path("kev", "/delete"), body)).status == 404
    change = (await call("GET", path("kev", "/history"))).json["changes"][0]
    assert (change["action"], change["reason"]) == ("delete", body["reason"])
    assert change["actor"] == body["actor"]


async def test_reset_into_the_future_is_refused(call: Caller) -> None:
    """A mistyped year moves nothing; a day ahead is as far as a reset goes."""
    before = await call("PUT", path("kev"), success(FEBRUARY))
    mistyped = {"timestamp": "2062-01-01T00:00:00Z", "reason": "test"}
    answer = await call("POST", path("kev", "/reset"), mistyped)
    assert (answer.status, answer.json["field"]) == (422, "timestamp")
    assert "2062-01-01" in answer.json["error"]
    assert (await call("GET", path("kev"))).etag == before.etag
    answer = await call("POST", path("kve", "/reset"), mistyped)
    assert answer.status == 404
    day = {"timestamp": "2026-01-02T00:00:00Z", "reason": "test"}
    assert (await call("POST", path("kev", "/reset"), day)).status == 200


@pytest.mark.parametrize("reason", [None, "", "   ", "x" * 1025, 5])
async def test_reset_needs_a_reason(call: Caller, reason: object) -> None:
    """A reset that does not say why is refused, and moves nothing."""
    await call("PUT", path("kev"), success(FEBRUARY))
    answer = await call("POST", path("kev", "/reset"), {"timestamp": JANUARY, "reason": reason})
    assert (answer.status, answer.json["field"]) == (422, "reason")
    assert (await call("GET", path("kev"))).json["last_successful_timestamp"] == FEBRUARY


async def test_reset_and_delete_of_nothing_are_404(call: Caller) -> None:
    """A misspelt source is not created by a reset, nor is its deletion confirmed."""
    body = {"timestamp": JANUARY, "reason": "test"}
    assert (await call("POST", path("kve", "/reset"), body)).status == 404
    assert (await call("DELETE", path("kve"))).status == 404
    assert await listed(call) == []


async def test_reset_and_delete_honour_if_match(call: Caller) -> None:
    """An operator who acts on what was shown does not act on what a run wrote since."""
    old = {"If-Match": (await call("PUT", path("kev"), success(JANUARY))).etag}
    new = {"If-Match": (await call("PUT", path("kev"), success(FEBRUARY))).etag}
    body = {"timestamp": JANUARY, "reason": "test"}
    assert (await call("POST", path("kev", "/reset"), body, headers=old)).status == 412
    assert (await call("DELETE", path("kev"), headers=old)).status == 412
    assert (await call("DELETE", path("kev"), headers=new)).status == 204


async def test_delete_forgets_the_watermark_and_not_its_history(call: Caller) -> None:
    """A deleted source was never collected, its history stays, and its versions do not return."""
    created = await call("PUT", path("kev"), success(FEBRUARY))
    deleted = await call("DELETE", path("kev"))
    assert (deleted.status, deleted.text) == (204, "")
    assert (await call("GET", path("kev"))).status == 404
    again = await call("PUT", path("kev"), success(JANUARY))
    assert again.status == 201
    assert again.etag != created.etag
    history = (await call("GET", path("kev", "/history"))).json["changes"]
    assert [change["action"] for change in history] == ["put", "delete", "put"]


async def test_history_tells_who_when_from_to_and_which_run(call: Caller, clock: FakeClock) -> None:
    """Every change is recorded with its circumstances, the latest first; a refused one is not."""
    await call("PUT", path("kev"), success(JANUARY, run_id="run-1", records_collected=3))
    clock.advance(60)
    failed = {"timestamp": FEBRUARY, "status": "failed", "error_message": "cut off"}
    await call("PUT", path("kev"), failed)
    await call("PUT", path("kev"), success("2023-01-01T00:00:00Z"))
    reset = {"timestamp": FEBRUARY, "reason": " skip the outage ", "actor": "ops@example"}
    etag = (await call("POST", path("kev", "/reset"), reset)).etag
    changes = (await call("GET", path("kev", "/history"))).json["changes"]
    common = {"source_id": "kev", "error_message": None, "reason": None, "run_id": None}
    assert changes == [
        {
            **common, "version": int(etag.strip('"')), "at": "2026-01-01T00:01:00+00:00",
            "action": "reset", "actor": "ops@example", "status": "failed", "timestamp": FEBRUARY,
            "from_timestamp": JANUARY, "to_timestamp": FEBRUARY, "records_collected": 3,
            "error_message": "cut off", "reason": "skip the outage",
        },
        {
            **common, "version": 2, "at": "2026-01-01T00:01:00+00:00", "action": "put",
            "actor": "127.0.0.1", "status": "failed", "timestamp": FEBRUARY,
            "from_timestamp": JANUARY, "to_timestamp": JANUARY, "records_collected": 3,
            "error_message": "cut off",
        },
        {
            **common, "version": 1, "at": "2026-01-01T00:00:00+00:00", "action": "put",
            "actor": "127.0.0.1", "status": "success", "timestamp": JANUARY,
            "from_timestamp": None, "to_timestamp": JANUARY, "records_collected": 3,
            "run_id": "run-1",
        },
    ]  # fmt: skip


async def test_history_is_paged_by_version(call: Caller) -> None:
    """Following ``next`` gives every change once, also while new ones are made."""
    for minute in range(5):
        await call("PUT", path("kev"), success(f"2024-01-01T00:0{minute}:00Z"))
        await call("PUT", path("other"), success(JANUARY))
    seen: list[str] = []
    query = "?limit=2"
    while True:
        page = (await call("GET", path("kev", "/history" + query))).json
        seen += [change["timestamp"][14:16] for change in page["changes"]]
        if page["next"] is None:
            break
        await call("PUT", path("kev"), success("2024-01-02T00:00:00Z"))
        query = f"?limit=2&before={page['next']}"
    assert seen == ["04", "03", "02", "01", "00"]


async def test_list_is_paged_in_place_while_rows_change(call: Caller) -> None:
    """Following ``next`` gives each source that stays exactly once, whatever comes and goes."""
    for name in ("b", "d", "f/1", "h", "ß"):
        await call("PUT", path(name), success(JANUARY))
    first = (await call("GET", LIST + "?limit=2")).json
    assert [watermark["source_id"] for watermark in first["watermarks"]] == ["b", "d"]
    await call("PUT", path("a"), success(JANUARY))
    await call("PUT", path("b"), success(FEBRUARY))
    await call("DELETE", path("d"))
    await call("PUT", path("g"), success(JANUARY))
    assert await listed(call, f"?limit=10&after={first['next']}") == ["f/1", "g", "h", "ß"]
    assert (await call("GET", LIST + "?limit=6")).json["next"] is None


async def test_list_filters_by_status_and_by_age(call: Caller, clock: FakeClock) -> None:
    """The filters are exact: of that status, and without a success for longer than so many seconds.

    A source that never succeeded is older than any age.
    """
    await call("PUT", path("fresh"), success("2025-12-31T23:59:00Z"))
    await call("PUT", path("edge"), success("2025-12-31T23:00:00Z"))
    await call("PUT", path("stale"), success("2025-12-31T22:59:59.999999Z"))
    await call("PUT", path("never"), {"timestamp": JANUARY, "status": "failed"})
    assert await listed(call, "?status=failed") == ["never"]
    assert await listed(call, "?status=success") == ["edge", "fresh", "stale"]
    assert await listed(call, "?older_than_seconds=3600") == ["never", "stale"]
    assert await listed(call, "?older_than_seconds=3600&status=success") == ["stale"]
    assert await listed(call, f"?older_than_seconds={10**11}") == ["never"]


async def test_watermark_in_the_future_is_old(call: Caller, clock: FakeClock) -> None:
    """A negative age is no fresh one: whoever lists what is behind sees it, but for a minute."""
    await call("PUT", path("ahead"), success("2026-01-01T00:01:00.000001Z"))
    await call("PUT", path("skewed"), success("2026-01-01T00:01:00Z"))
    assert await listed(call, "?older_than_seconds=3600") == ["ahead"]
    clock.advance(1)
    assert await listed(call, "?older_than_seconds=3600") == []


async def test_source_that_had_nothing_is_shown_as_never_collected(call: Caller) -> None:
    """The contract's timestamp for it is the year 1; a list and a history do not show that."""
    put = await call("PUT", path("kev"), success("0001-01-01T00:00:00Z"))
    assert put.json["last_successful_timestamp"] == "0001-01-01T00:00:00+00:00"
    await call("PUT", path("kev"), success(JANUARY))
    await call("PUT", path("new"), success("0001-01-01T00:00:00Z"))
    page, history = await call("GET", LIST), await call("GET", path("kev", "/history"))
    shown = {each["source_id"]: each for each in page.json["watermarks"]}
    assert shown["new"]["last_successful_timestamp"] is None
    assert "0001-01-01" not in page.text + history.text
    assert [change["to_timestamp"] for change in history.json["changes"]] == [JANUARY, None]
    assert await listed(call, f"?older_than_seconds={10**9}") == ["new"]


async def test_list_finds_runs_that_died(call: Caller, clock: FakeClock) -> None:
    """A run that says running and was not heard of for its lease is stale: it was killed."""
    for name in ("killed", "alive"):
        await call("PUT", path(name), {"timestamp": JANUARY, "status": "running"})
    await call("PUT", path("done"), success(JANUARY))
    clock.advance(40)
    await call("PUT", path("alive"), {"timestamp": JANUARY, "status": "running"})
    clock.advance(21)
    assert await listed(call, "?stale=true") == ["killed"]
    assert await listed(call, "?stale=false") == ["alive", "done"]
    assert await listed(call, "?stale=true&status=success") == []


async def test_run_is_stale_by_its_own_lease(call: Caller, clock: FakeClock) -> None:
    """A run that said how long it holds its source is given that long."""
    for name, lease in (("short", 10), ("long", 100)):
        body = {"timestamp": JANUARY, "status": "running", "lease_seconds": lease}
        await call("PUT", path(name), body)
    clock.advance(11)
    assert await listed(call, "?stale=true") == ["short"]
    clock.advance(90)
    assert await listed(call, "?stale=true") == ["long", "short"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=ten", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("status=done", "status"),
        ("older_than_seconds=-1", "older_than_seconds"),
        ("older_than_seconds=nan", "older_than_seconds"),
        ("after=%00", "after"),
        ("after=", "after"),
        ("staus=failed", "staus"),
        ("limit=1&limit=2", "limit"),
    ],
)
async def test_wrong_query_is_400_and_names_the_parameter(
    call: Caller, query: str, field: str
) -> None:
    """A filter that cannot be understood is refused: ignored, it would list everything."""
    answer = await call("GET", f"{LIST}?{query}")
    assert (answer.status, answer.json["field"]) == (400, field)


@pytest.mark.parametrize("before", ["0", "-1", str(2**63), "x", "1.5"])
async def test_wrong_history_cursor_is_400(call: Caller, before: str) -> None:
    """A cursor that no page gave is refused."""
    answer = await call("GET", path("kev", f"/history?before={before}"))
    assert (answer.status, answer.json["field"]) == (400, "before")


async def test_every_change_is_one_line_of_the_log(
    call: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has each change and each refused one alone, and a name cannot forge a line of it."""
    caplog.set_level(logging.INFO, "ladon_storage")
    source_id = "kev INFO Watermark 'x': deleted"
    await call("PUT", path(source_id), success(FEBRUARY, run_id="run-1\nINFO forged"))
    await call("PUT", path(source_id), success(JANUARY))
    await call("GET", path(source_id))
    await call("POST", path(source_id, "/reset"), {"timestamp": JANUARY, "reason": "test"})
    await call("DELETE", path(source_id))
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("ladon_storage")]
    assert len(lines) == 4
    assert [line.startswith("PUT refused") for line in lines] == [False, True, False, False]
    assert all(len(line.splitlines()) == 1 for line in lines)
