"""What services say instead of records, inside of an answer that is a success."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ladon_storage.collection.run import run
from ladon_storage.errors import SourceError
from ladon_storage.sources import source_from
from ladon_storage.testing.doubles import MemorySink, ScriptedStorage
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.sources.rest_lists import ROWS, answer, cut, ids_of, refused
from tests.sources.test_rest import api, row

KEY = "SECRET-KEY"


def told(**fields: Any) -> dict[str, Any]:
    """Return a refusal that echoes the key."""
    return {name: f"{value} {KEY}" for name, value in fields.items()}


@pytest.mark.parametrize(
    ("settings", "document", "says"),
    [
        ({"kind": "kev"}, told(error="maintenance"), "maintenance"),
        ({"kind": "kev"}, {"count": f"1 {KEY}", "vulnerabilities": [{}]}, "states '1 "),
        ({"kind": "threatfox"}, told(query_status="unknown_auth_key"), "unknown_auth_key"),
        (
            {"kind": "threatfox", "via": "api", "key": "FEED_KEY"},
            told(query_status="unknown_auth_key"),
            "unknown_auth_key",
        ),
        (
            {"kind": "urlhaus", "via": "api", "key": "FEED_KEY"},
            told(query_status="unknown_auth_key"),
            "unknown_auth_key",
        ),
        (
            {"kind": "otx", "key": "FEED_KEY"},
            told(detail="Authentication required"),
            "Authentication",
        ),
        ({"kind": "nvd"}, told(message="Invalid apiKey."), "Invalid apiKey"),
        (
            {"kind": "misp", "via": "feed"},
            {"saved": False, "name": "Failed", "errors": [f"no access {KEY}"]},
            "no access",
        ),
        (
            {"kind": "misp", "via": "restsearch", "key": "FEED_KEY"},
            {"saved": False, "name": "Failed", "errors": [f"no access {KEY}"]},
            "no access",
        ),
        (
            {"kind": "taxii"},
            told(title="Forbidden", error_code="403", http_status="403"),
            "Forbidden",
        ),
        ({"kind": "taxii"}, told(message="rate limit"), "rate limit"),
    ],
    ids=lambda value: f"{value['kind']}" if isinstance(value, dict) and "kind" in value else "",
)
async def test_refusal_inside_of_a_success_fails_the_run_and_says_why(
    settings: dict[str, Any],
    document: Any,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A refusal with status 200 is no collection, and no key that it echoes comes out."""
    monkeypatch.setenv("FEED_KEY", KEY)
    storage, sink = ScriptedStorage(), MemorySink()
    answer = Answer(json.dumps(document).encode())
    async with FeedServer(play=lambda _: answer) as feed:
        with_key = {"key": "FEED_KEY"} if settings["kind"] not in ("kev", "taxii") else {}
        source = source_from({**with_key, **settings, "url": feed.at("v1")})
        with pytest.raises(SourceError) as caught:
            await run(source, sink, storage, run_id="1")

    assert says in str(caught.value)
    assert sink.rows == {}
    assert [each["status"] for each in storage.updates][-1] == "failed"
    if with_key or "key" in settings:
        shown = str(caught.value) + caplog.text + repr(storage.updates)
        assert KEY not in shown


@pytest.mark.parametrize("kind", ["nvd", "otx"])
async def test_source_without_settings_of_an_api_names_none(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next step of an error is one that its reader can take."""
    monkeypatch.setenv("FEED_KEY", KEY)
    document = {"results": [], "vulnerabilities": [], "totalResults": 0, "error": "shard 3 is down"}
    async with FeedServer(Answer.of(document)) as feed:
        source = source_from({"kind": kind, "key": "FEED_KEY", "url": feed.at("v1")})
        with pytest.raises(SourceError, match="shard 3 is down") as caught:
            await run(source, MemorySink(), ScriptedStorage(), run_id="1")

    assert "expected_values" not in str(caught.value)
    assert "Check whether the API has changed" in str(caught.value)


IN_PLACE: list[dict[str, Any]] = [
    {"error": "timeout"},
    {"error": {"code": 1}},
    {"errors": [{"message": "backend 3 is down"}]},
    {"message": "rate limit", "code": 429},
    {"status": "error"},
]


@pytest.mark.parametrize("failure", IN_PLACE, ids=json.dumps)
@pytest.mark.parametrize("is_keyed", [True, False])
async def test_failure_in_place_of_records_is_no_page(
    failure: dict[str, Any], is_keyed: bool
) -> None:
    """One unusable item among many would be in the quarantine, and its page missing."""

    def failing(asked: Asked) -> Answer:
        rows = cut(asked, 3)
        is_second = asked.query["page"] == "2"
        if not is_keyed:
            return answer([failure] if is_second else rows)
        keyed = {str(each["id"]): each for each in rows}
        return Answer.of(failure if is_second else keyed)

    settings = {"records": "", "records_keyed_by_id": True} if is_keyed else {}
    async with FeedServer(play=failing) as feed:
        assert "which looks like a failure" in await refused(
            feed, paging={"kind": "page"}, **settings
        )


async def test_item_with_an_id_is_no_failure() -> None:
    """A record may well be about an error, and one without a time is an unusable item."""
    rows = [{"id": "x", "error": "boom", "status": 500}, *ROWS[:2]]
    for items in (rows, rows[:1]):
        async with FeedServer(play=lambda _, items=items: answer(items)) as feed:  # type: ignore[misc]
            assert await ids_of(feed) == [str(each["id"]) for each in items[1:]]


SIGNS: list[dict[str, Any]] = [
    *({"meta": {"status": 500}}, {"meta": {"errors": ["x"]}}, {"metadata": {"error": "x"}}),
    *({"responseHeader": {"status": 0, "partialResults": True}}, {"status": {"code": 503}}),
    *({"result": {"error": "x"}}, {"info": {"error": "x"}}, {"response": {"status": "error"}}),
    *({"errcode": 40001}, {"errMsg": "boom"}, {"err": "boom"}, {"retcode": 1}, {"rc": -1}),
    *({"response_code": -1}, {"stat": "fail"}, {"returnCode": "FAIL"}, {"code": "-2", "rc": 2}),
    *(
        {"status": "RESOURCE_EXHAUSTED"},
        {"status": "rate_limit_exceeded"},
        {"state": "ERR_TIMEOUT"},
    ),
    *({"failed": True}, {"authenticated": False}, {"throttled": 1}, {"terminated_early": True}),
    *({"@odata.error": {"code": "x"}}, {"stackTrace": "at x"}, {"ExceptionMessage": "boom"}),
    *({"problems": ["boom"]}, {"Fehler": "kaputt"}, {"erreur": "panne"}, {"failures": ["x"]}),
    *({"failedShards": 1}, {"failed_sources": ["x"]}, {"missing_partitions": [3]}),
    *({"messages": [{"severity": "ERROR", "text": "x"}]}, {"httpStatusCode": 503}),
    *({"warnings": ["1 of 5 shards failed"]}, {"warning": "Some data sources are unavailable"}),
    *(
        {"errors": [{"key": "x", "count": 1, "message": "x"}]},
        {"errors": {"buckets": [{"message": "x"}]}},
    ),
    *({"error": {"error": "x", "success": "no"}}, {"messages": {"error": "x"}}),
    *({"message": "Die Liste ist unvollständig"}, {"notice": "results may be incomplete"}),
    *({"messages": [{"type": "FATAL", "text": "x"}]}, {"messages": {"error": ["x"]}}),
    *({"outcome": {"issue": [{"severity": "error"}]}}, {"issue": [{"severity": "fatal"}]}),
    *({"quota": {"exceeded": True}}, {"quotaExceeded": "true"}, {"preview": True}),
    *({"unreachable": ["us-east1"]}, {"UnprocessedKeys": {"table": {"Keys": [1]}}}),
    *(
        {"failedAccounts": [{"accountId": "1", "errorCode": "DENIED"}]},
        {"_clusters": {"skipped": 1}},
    ),
    *({"fail": [{"errors": [{"code": "x"}]}]}, {"state": "GATHERING RESULTS"}),
    *({"status": "No timeout, failed"}, {"status": "not throttled: access denied"}),
    *({"status": "3 ok, 2 failed"}, {"status": "success: 3, failed: 2"}),
    # Without an id and a time of their own, or as errors, they may be about the answer.
    *({"alerts": [{"severity": "critical", "message": "x"}]}, {"problems": [{"title": "x"}]}),
    *({"alerts": [{"id": 1, "level": "error", "message": "x"}]}, {"alerts": [{"level": "fatal"}]}),
    *({"errors": [{"id": 1, "title": "x"}]}, {"errors": [{"id": 1, "time": 1e9, "message": "x"}]}),
    *(
        {"alerts": [{"id": 1, "at": "2024-01-01", "message": "Results are incomplete"}]},
        {"messages": [{"id": "E1", "title": "Shard 3 timed out, partial results"}]},
    ),
    *(
        {"failures": [{"id": "", "at": "2024-01-01"}]},
        {"problems": [{"id": 1, "at": "2024-01-01"}, {}]},
    ),
    *(
        {"passed": "yes", "failed": 2},
        {"errors": {"count": 1}},
        {"errors": {"total": 0, "x": ["y"]}},
    ),
]
REFUSALS = [
    *("Please log in", "You must sign in", "Account suspended", "Access blocked", "Not authorized"),
    *("You do not have permission", "Internal exception", "Please try again later", "Bad request"),
    *("API key required", "API key is missing", "Subscription required", "Captcha required"),
    *("Feed disabled", "Upgrade your plan", "Trial ended", "This API version was retired"),
    *("Zugriff verweigert", "Interner Fehler", "Une erreur est survenue", "Acceso denegado"),
    *("Errore interno", "Erro interno", "Błąd serwera", "Внутренняя ошибка", "内部错误"),
    *("エラーが発生しました", "서버 오류", "Interne fout"),
    *("No access: permission denied", "No results: the backend timed out", "Error: no results"),
    *("No data, an error occurred", "0 results (error)", "No results because a backend failed"),
    *("No error handler found: request failed", "Loaded 0, 10 failed", "Could not log in"),
    *("API v1 is deprecated", "The endpoint is deprecated and no longer answers"),
    *("errors: 12", "3 failures", "Error: none of the backends responded", "Failed: 3"),
    *("No results and rate limit exceeded", "No data available temporarily", "failed: 0 results"),
]
FINE: list[dict[str, Any]] = [
    *({"message": "No records found"}, {"message": "no errors"}, {"message": "Keine Fehler"}),
    *({"message": "Keine Treffer"}, {"message": "IOC not found"}, {"msg": "无错误"}),
    *({"error": None}, {"errors": []}, {"errcode": 0}, {"errMsg": "ok"}, {"rc": 0}, {"stat": "ok"}),
    *({"resultCode": "0000"}, {"returnCode": "SUCCESS"}, {"status": "NO_ERROR"}, {"failures": {}}),
    *({"meta": {"status": 200, "errors": [], "code": 0}}, {"responseHeader": {"status": 0}}),
    *({"failed": 0}, {"failedShards": 0}, {"messages": [{"level": "info", "text": "x"}]}),
    *({"status": {"error_code": 0, "error_message": None}}, {"description": "Feed of errors"}),
    *({"status": "failover"}, {"warnings": []}, {"message": "All servers are online"}),
    *({"alerts": {"critical": 3}}, {"messages": {"error": "Fehler", "empty": "Keine Treffer"}}),
    *({"alerts": [{"id": 1, "severity": "critical", "title": "Host timed out"}]}, {"alerts": 3}),
    *({"messages": [{"id": 1, "type": "error", "text": "x", "time": "2024-01-01T00:00:00Z"}]},),
    *({"problems": [{"eventid": "1", "clock": "1700000000", "name": "CPU"}]}, {"problems": 0}),
    *({"failed_jobs": [{"id": 1, "error": "x", "finished_at": "2024-01-01 10:00"}]},),
    *({"exceptions": [{"id": "x", "rule": "allow"}]}, {"errors": {"total": 0, "limit": 100}}),
    *({"fail": []}, {"state": "DONE GATHERING RESULTS"}, {"skipped": [{"path": "x"}]}),
    *({"failed": 2, "passed": 7}, {"summary": {"failed": 2}}, {"error": "-"}, {"unreachable": []}),
    *({"outcome": {"issue": [{"severity": "information"}]}}, {"issue": {"title": "Build failed"}}),
    *({"quota": {"exceeded": False, "remaining": 0}}, {"_clusters": {"failed": 0, "skipped": 0}}),
    *({"status": each} for each in ("not failed", "3 ok, 0 failed", "none failed", "error-free")),
    *({"status": each} for each in ("no timeout", "done without failure", "success: 3, failed: 0")),
    *(
        {"message": each}
        for each in ("0 results, none failed", "Processed 0, failed: 0", "error-free")
    ),
    *({"message": each} for each in ("No failed login events found", "Nothing is blocked")),
    *({"message": each} for each in ("No results for query 'failed login'", "0 shards timed out")),
    *({"message": each} for each in ("No new alerts since your last sign-in", "오류 없음")),
    *({"message": each} for each in ("No expired or blocked keys", "エラーはありません")),
    *({"status": each} for each in ("default", "errors: 0", "failed=0", "Errors: none")),
    *({"status": each} for each in ("not rate limited", "never failed", "not unavailable")),
    *({"error": each} for each in ("No errors found", "Not an error", "None found", "0 errors")),
    *(
        {"error_code": each}
        for each in ("0x00000000", "0.0", "ERR_NONE", "ERR_OK", "NO_ERR", "nil")
    ),
    *({"message": each} for each in ("failed (0)", "error count: 0", "Failed logins: none")),
    *(
        {"warnings": ["Parameter 'x' is deprecated"]},
        {"faults": [{"dn": "x", "severity": "major"}]},
    ),
    {"problems": [{"id": 1, "clock": 1_700_000_000, "message": "2 shards unavailable"}]},
    *({"errors": [{"key": "timeout", "doc_count": 3}]}, {"failures": {"buckets": []}}),
    *({"message": each} for each in ("This is not a partial result", "Results truncated: false")),
]


async def test_sign_of_a_failure_counts_wherever_services_put_it() -> None:
    """Next to records and to none: what came may be what there was before the failure."""
    made = [Answer()]
    async with FeedServer(play=lambda _: made[0]) as feed:
        for sign in SIGNS:
            for rows in ([], ROWS):
                made[0] = Answer.of({"rows": rows, **sign})
                assert "looks like a failure" in await refused(feed), sign


async def test_message_that_refuses_is_heard_in_several_languages() -> None:
    """An empty list next to it is no feed without news."""
    made = [Answer()]
    async with FeedServer(play=lambda _: made[0]) as feed:
        for text in REFUSALS:
            for name in ("message", "statusMessage"):
                made[0] = Answer.of({"rows": [], name: text})
                assert "looks like a failure" in await refused(feed), text


async def test_answer_that_says_that_all_is_well_is_read() -> None:
    """Most answers have places for failures, and nothing in them."""
    made = [Answer()]
    async with FeedServer(play=lambda _: made[0]) as feed:
        for sign in FINE:
            for rows in ([], ROWS):
                made[0] = Answer.of({"rows": rows, **sign})
                assert len(await ids_of(feed)) == len(rows), sign


@pytest.mark.parametrize("name", ["failed", "hasMore", "next", "total"])
async def test_sign_counts_at_each_level_around_the_records(name: str) -> None:
    """An answer may state it next to them, at its top, or anywhere between."""
    made = [Answer()]
    async with FeedServer(play=lambda _: made[0]) as feed:
        for level in range(-1, 4):
            inner: dict[str, Any] = {"rows": []}
            for depth, key in enumerate(("problems", "b", "a", "")):
                inner |= {name: 1 if name == "total" else "true"} if depth == level else {}
                inner = {key: inner} if key else inner
            made[0] = Answer.of(inner)
            if level < 0:  # problems that are the records are no sign of one
                assert await ids_of(feed, records="a.b.problems.rows") == []
            else:
                assert name in await refused(feed, records="a.b.problems.rows"), level


FAILURES: list[dict[str, Any]] = [
    {"ok": False},
    {"success": False},
    {"success": "false"},
    {"status": "error"},
    {"status": "Failed"},
    {"status": 500},
    {"code": 401},
    {"statusCode": "503"},
    {"result": "failure"},
    {"state": "failed"},
    {"error": "busy"},
    {"error": {"code": 401}},
    {"errors": ["a shard is down"]},
    {"errors": [{}]},
    {"fault": {"x": 1}},
    {"exception": "x"},
    {"is_error": True},
    {"error_code": 12},
    {"errorMessage": "busy"},
    {"timed_out": True},
    {"_shards": {"total": 5, "failed": 2}},
    {"partial": True},
    {"is_partial_result": True},
    {"status": "10 errors"},
    {"status": "Partial failure, without errors"},
    {"status": "Failed: no error"},
    {"status": "Timed out, no errors"},
    {"errmsg": "request not ok"},
    {"errmsg": "unsuccessful"},
    {"errmsg": "partial success"},
]
NO_FAILURES: list[dict[str, Any]] = [
    {"ok": True, "success": "true", "status": "ok", "code": 200, "statusCode": "200"},
    {"error": None, "errors": [], "error_code": 0, "error_message": ""},
    {"error": False, "errors": 0, "fault": {}, "errno": "0"},
    {"error": {"code": 0, "message": ""}, "status": "success", "code": 1000},
    {"error": "none", "partial": False, "timed_out": False, "message": "done"},
    {"_shards": {"total": 5, "failed": 0}, "state": "active", "detail": "seven rows"},
    {"status": "Completed without errors", "state": "0 errors", "statusText": "OK - no errors"},
    {"errors": "No errors", "errmsg": "成功", "errorMessage": "Request processed successfully"},
    {"errmsg": "operation successful", "errorCode": "SUCCESS", "error_text": "Request OK"},
]


@pytest.mark.parametrize("records_optional", [False, True])
@pytest.mark.parametrize("sign", FAILURES)
async def test_failure_beside_the_records_fails_the_run(
    sign: dict[str, Any], records_optional: bool
) -> None:
    """Whatever the status, and whether or not there is a list: what came may be a part."""
    records: list[dict[str, Any]] = [{"rows": [row(1)]}, {"rows": []}, {}]
    for rows in records:
        async with FeedServer(Answer.of({**rows, **sign})) as feed:
            with pytest.raises(SourceError):
                _ = [
                    page
                    async for page in api(feed, records_optional=records_optional).pages(None, None)
                ]


@pytest.mark.parametrize(
    "sign",
    [
        {"error": "backend timed out"},
        {"errors": ["shard 3 failed"]},
        {"success": False},
        {"message": "results were truncated"},
    ],
)
async def test_failure_among_keyed_records_fails_the_run(sign: dict[str, Any]) -> None:
    """A value that can be no record is a sign, where records have their ids as names."""
    keyed = {"7": {"at": "2024-01-01", "first_seen_utc": "2024-01-01"}, **sign}
    listed = {"7a4e2f52-0000-4000-8000-000000000000": {"timestamp": 1_700_000_000}, **sign}
    settings: list[tuple[dict[str, Any], Any]] = [
        ({"records": "rows", "records_keyed_by_id": True}, {"rows": keyed}),
        ({"records": "", "records_keyed_by_id": True}, keyed),
        ({"kind": "threatfox"}, keyed),
        ({"kind": "misp", "via": "feed"}, listed),
    ]
    for fields, document in settings:
        async with FeedServer(*[Answer.of(document)] * 2) as feed:
            source = source_from({"url": feed.at(""), **fields}) if "kind" in fields else None
            with pytest.raises(SourceError, match="at '"):
                _ = [page async for page in (source or api(feed, **fields)).pages(None, None)]


async def test_object_without_a_time_under_the_name_of_an_error_fails_the_run() -> None:
    """It would be one quarantined record next to those that came before the failure."""
    document = {"7": {"at": "2024-01-01"}, "error": {"code": 500, "message": "shard lost"}}
    settings = {"records": "rows", "records_keyed_by_id": True}
    async with FeedServer(play=lambda _: Answer.of({"rows": document})) as feed:
        assert "at 'rows.error'" in await refused(feed, **settings)
        assert await ids_of(feed, **settings, expected_values={"rows.error": []}) == ["7"]


async def test_sign_among_keyed_records_may_be_declared_as_right() -> None:
    """By the path that the error names."""
    document = {"rows": {"7": {"at": "2024-01-01"}, "error": "old"}}
    settings = {"records": "rows", "records_keyed_by_id": True}
    async with FeedServer(Answer.of(document), Answer.of(document)) as feed:
        assert "at 'rows.error'" in await refused(feed, **settings)
        expected = {"rows.error": ["old"]}
        assert await ids_of(feed, **settings, expected_values=expected) == ["7"]


async def test_record_whose_id_is_a_sign_is_a_record() -> None:
    """An object is no message, whatever its id; nor is a state that is well."""
    document = {"error": {"at": "2024-01-01"}, "failed": [{"at": "2024-01-01"}], "status": "ok"}
    async with FeedServer(Answer.of(document)) as feed:
        source = api(feed, records="", records_keyed_by_id=True)
        [page] = [page async for page in source.pages(None, None)]

    assert [each.record_id for each in page.records] == ["error", "failed"]


@pytest.mark.parametrize("sign", NO_FAILURES)
async def test_word_of_success_is_no_failure(sign: dict[str, Any]) -> None:
    """What many answers have that are all right."""
    async with FeedServer(Answer.of({"rows": [row(1)], **sign})) as feed:
        assert [page async for page in api(feed).pages(None, None)]


@pytest.mark.parametrize(
    "said",
    [
        {"message": "API rate limit exceeded"},
        {"state": "In progress"},
        {"status": "PROCESSING"},
        {"msg": "Quota reached"},
        {"warnings": [{"code": 7, "message": "Shard 3: access denied"}]},
        {"reason": "Service temporarily unavailable"},
        {"message": "Invalid API key"},
        {"Message": "Too many requests"},
    ],
)
async def test_message_that_refuses_is_a_failure_where_there_are_no_records(
    said: dict[str, Any],
) -> None:
    """A refusal with status 200 and an empty list is no list without records."""
    async with FeedServer(Answer.of({"rows": [], **said})) as feed:
        with pytest.raises(SourceError, match="looks like a failure"):
            _ = [page async for page in api(feed).pages(None, None)]
    async with FeedServer(Answer.of({"rows": [row(1)], **said})) as feed:
        assert [page async for page in api(feed).pages(None, None)]


@pytest.mark.parametrize(
    "said",
    [
        {"warnings": ["Shard 3: timed out"]},
        {"warnings": [{"code": "TIMEOUT", "message": "shard 3 timed out"}]},
        {"message": "Results were truncated to 1"},
        {"notice": "The result set is incomplete"},
        {"message": "Partial response"},
        {"message": "Only the first 1,000 are shown."},
        {"message": "Limited to 1,000 records"},
        {"message": "More results are available"},
    ],
)
async def test_message_that_records_are_missing_is_a_failure(said: dict[str, Any]) -> None:
    """Next to a list it says that there is more; `expected_values` declares it as right."""
    async with FeedServer(Answer.of({"rows": [row(1)], **said})) as feed:
        with pytest.raises(SourceError, match="looks like a failure"):
            _ = [page async for page in api(feed).pages(None, None)]


@pytest.mark.parametrize(
    "said",
    [
        {"message": "Limited to 100 requests a day"},
        {"message": "1 result. Records before 2020 may be incomplete."},
        {"warnings": ["The field 'cut' is deprecated", {"text": None}]},
        {"notice": "No partial matches, no timeouts"},
    ],
)
async def test_message_of_something_else_is_none_next_to_records(said: dict[str, Any]) -> None:
    """What it says is not of the list."""
    async with FeedServer(Answer.of({"rows": [row(1)], **said})) as feed:
        assert [page async for page in api(feed).pages(None, None)]


@pytest.mark.parametrize(
    "said",
    [
        {"message": "No results found"},
        {"message": "OK"},
        {"message": "0 errors"},
        {"info": {"message": "no error", "limit": 10}},
        {"description": "Domains whose registration expired, and failed logins"},
        {"note": None, "warning": ""},
    ],
)
async def test_message_without_a_refusal_is_none(said: dict[str, Any]) -> None:
    """Many answers say in words that there is nothing."""
    async with FeedServer(Answer.of({"rows": [], **said})) as feed:
        assert [page async for page in api(feed).pages(None, None)]


async def test_failure_that_is_declared_as_right_is_none() -> None:
    """What an API always says is expected of it."""
    async with FeedServer(Answer.of({"rows": [row(1)], "code": 500})) as feed:
        source = api(feed, expected_values={"code": [500]})
        assert [page async for page in source.pages(None, None)]


@pytest.mark.parametrize(
    "said",
    [
        {"alerts": [{"severity": "critical", "message": "Malware on a host"}]},
        {"failed": 2, "succeeded": 10},
        {"errors": {"4xx": 10, "5xx": 2}},
        {"message": "12 of 500 queries of your quota are used"},
        {"authenticated": False},
        {},
    ],
)
async def test_place_where_any_value_is_declared_as_right_is_not_examined(
    said: dict[str, Any],
) -> None:
    """A list, an object or a text that changes cannot be declared by its value."""
    async with FeedServer(Answer.of({"rows": [], **said}), Answer.of({"rows": [], **said})) as feed:
        declared: dict[str, list[Any]] = {name: [] for name in said or ["errors"]}
        assert await ids_of(feed, expected_values=declared) == []
        if said:
            assert "in expected_values if it is right, with [] for any" in await refused(feed)


async def test_list_that_is_elsewhere_is_not_lacking() -> None:
    """A wrong path of the records is no answer without a list."""
    async with FeedServer(Answer.of({"data": {"items": [row(1)]}})) as feed:
        with pytest.raises(SourceError, match=r"at 'rows', and has one at 'data\.items'"):
            _ = [page async for page in api(feed, records_optional=True).pages(None, None)]


async def test_answer_without_a_list_has_no_records_where_declared() -> None:
    """Other lists, and a sentence, are no records."""
    document = {"message": "no results", "links": [{"rel": "self"}], "tags": ["a"]}
    async with FeedServer(Answer.of(document)) as feed:
        pages = [page async for page in api(feed, records_optional=True).pages(None, None)]
    assert not any(page.records for page in pages)


UNFINISHED: list[dict[str, Any]] = [
    *({"status": each} for each in ("running", "PENDING", "In queue", "Not ready", "Scheduled")),
    *({"state": each} for each in ("queued", "JOB_STATE_RUNNING", "EVENTS_RUNNING", "PARSING")),
    *({"status": {"state": "WAITING"}}, {"query_status": "started"}, {"meta": {"state": "busy"}}),
    *({"job_status": "failed"}, {"dispatchState": "FINALIZING", "id": "1"}),
    *({"status": "EXECUTE", "progress": 46, "id": 7}, {"id": 7, "status": "in progress"}),
    {"status": "running", "took": 3, "total": 0, "job_id": 7, "has_more": False, "message": "x"},
    {"state": "queued", "rows_count": 0, "limit": 10, "requestId": "x", "timestamp": "2024-01-01"},
]


@pytest.mark.parametrize("said", UNFINISHED, ids=json.dumps)
async def test_empty_list_of_a_query_that_still_runs_is_no_end(said: dict[str, Any]) -> None:
    """It has no records yet; next to some, it may be the state of what they belong to."""
    async with FeedServer(Answer.of({"rows": [], **said}), Answer.of(said)) as feed:
        assert "which looks like a failure" in await refused(feed)
        assert "which looks like a failure" in await refused(feed, records_optional=True)
    async with FeedServer(Answer.of({"rows": [row(1)], **said})) as feed:
        assert await ids_of(feed) == ["1"]


@pytest.mark.parametrize(
    "said",
    [
        *({"id": 7, "status": "pending"}, {"name": "Sandworm", "state": "running"}),
        *({"id": 7, "status": {"state": "waiting"}}, {"uuid": "7", "status": "on hold"}),
        *({"incident_id": "7", "status": "pending"}, {"number": "INC0010", "state": "Pending"}),
        *({"key": "OPS-1", "status": "Waiting"}, {"maintenanceId": "m", "status": "SCHEDULED"}),
        *({"hostname": "web1", "state": "running"}, {"email": "a@b", "status": "pending"}),
        *({"info": {"version": "1", "status": "running"}}, {"hostname": "x", "status": "blocked"}),
        *(
            {"status": "active"},
            {"state": "open"},
            {"status": "done"},
            {"query_status": "finished"},
        ),
    ],
    ids=json.dumps,
)
async def test_state_of_an_object_without_records_is_its_own(said: dict[str, Any]) -> None:
    """An incident may be pending for years, and have no comments."""
    async with FeedServer(Answer.of({"rows": [], **said}), Answer.of(said)) as feed:
        assert await ids_of(feed) == []
        assert await ids_of(feed, records_optional=True) == []


async def test_state_that_repeats_the_request_is_no_sign() -> None:
    """An API repeats its filters, and nothing is pending just now."""
    document = {"status": "pending", "state": "queued", "rows": []}
    async with FeedServer(*[Answer.of(document)] * 2) as feed:
        url = f"{feed.url}?state=queued"
        assert await ids_of(feed, url=url, params={"status": "pending"}) == []
        assert "'queued' at 'state'" in await refused(feed, params={"status": "pending"})


@pytest.mark.parametrize(
    "state",
    [
        *("user_blacklisted", "unknown_auth_key", "no_api_key", "http_post_expected"),
        *("illegal_hash", "api_key_not_found", "Wrong key", "not entitled", "no_credits"),
        *(
            "no_access_to_data",
            "no_hash_provided",
            "illegal_search_term",
            "noApiKey",
            "KEY_EXPIRED",
        ),
        *("user unknown", "no quota left", "missing token", "Login required", "no_user"),
        *("Your request was denied by the operator", "Überlastet, Fehler"),
    ],
)
async def test_state_of_an_answer_without_its_list_that_has_a_word_of_refusal_refuses(
    state: str,
) -> None:
    """The API says why it has no list, in a word of its own."""
    documents: list[dict[str, Any]] = [
        {"query_status": state},
        {"status": state, "rows": None},
        {"meta": {"status": state}},
    ]
    async with FeedServer(*[Answer.of(each) for each in documents * 2]) as feed:
        for _ in documents:
            assert "which looks like a failure" in await refused(feed, records_optional=True)
        for document in documents:
            place = "meta.status" if "meta" in document else next(iter(document))
            declared = {place: [state]}
            assert await ids_of(feed, records_optional=True, expected_values=declared) == []


@pytest.mark.parametrize(
    "state",
    [
        *("ok", "OK", "success", "Succeeded", "completed", "COMPLETE", "200 OK", "ready", "true"),
        *("no_results", "no_result", "ZERO_RESULTS", "No data found", "hash_not_found", "empty"),
        *("none", "NOT_FOUND", "No new IOCs", "unchanged", "up to date", "204", "not modified"),
        *("Nothing new", "no recent events", "Nothing has been reported since yesterday", "成功"),
        *("keine Daten", "", "query was successful", "Job completed", "no_match", "empty_result"),
        *("no_tickets", "No users found", "no domain found", "no events available"),
        *("NOERROR", "No error", "SUCCEED", "Processed successfully", "no_history", "clean", "Y"),
        *("Non existing", "not_listed", "not changed", "No updates since", "no report", "OK (0)"),
        *("Nenhum resultado", "n/a", "accepted", "created", "not blacklisted", "error_free"),
        *("no_user_activity", "no api calls", "Login successful", "no expired keys", "non-blocked"),
    ],
)
async def test_state_of_success_or_of_no_results_is_an_answer_without_records(state: str) -> None:
    """In the words of the APIs that leave the list out."""
    documents: list[dict[str, Any]] = [{"query_status": state}, {"status": state}]
    async with FeedServer(*[Answer.of(each) for each in documents]) as feed:
        for _ in documents:
            assert await ids_of(feed, records_optional=True) == []
