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
