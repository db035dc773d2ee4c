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


FAILURES: list[dict[str, Any]] = [
    {"error": "timeout"},
    {"error": {"code": 1}},
    {"errors": [{"message": "backend 3 is down"}]},
    {"message": "rate limit", "code": 429},
    {"status": "error"},
]


@pytest.mark.parametrize("failure", FAILURES, ids=json.dumps)
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
    *({"message": "Die Liste ist unvollständig"}, {"notice": "results may be incomplete"}),
]
REFUSALS = [
    *("Please log in", "You must sign in", "Account suspended", "Access blocked", "Not authorized"),
    *("You do not have permission", "Internal exception", "Please try again later", "Bad request"),
    *("API key required", "API key is missing", "Subscription required", "Captcha required"),
    *("Feed disabled", "Upgrade your plan", "Trial ended", "This API version was retired"),
    *("Zugriff verweigert", "Interner Fehler", "Une erreur est survenue", "Acceso denegado"),
    *("Errore interno", "Erro interno", "Błąd serwera", "Внутренняя ошибка", "内部错误"),
    *("エラーが発生しました", "서버 오류", "Interne fout"),
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
