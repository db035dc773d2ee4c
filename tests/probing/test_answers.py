"""Answers of which no source can be made, samples, and bounds."""

from __future__ import annotations

import json
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.errors import ConfigurationError
from ladon_storage.probing import guess, guessing
from ladon_storage.testing.feed_server import Answer
from tests.probing.api_shapes import COUNT, iso, uuid
from tests.probing.asking import (
    ROWS,
    Play,
    always,
    proposed,
    rows,
)

NONE: dict[str, tuple[Play, str]] = {
    "HTML": (lambda _, __: Answer(b"<!DOCTYPE html><p>Sign in</p>"), "is a page of HTML"),
    "XML": (lambda _, __: Answer(b"<?xml version='1.0'?><rss/>"), "is XML"),
    "CSV": (lambda _, __: Answer(b"id,name,at\n1,a,2024-01-01\n"), "looks like CSV"),
    "JSON lines": (lambda _, __: Answer(b'{"id": 1}\n{"id": 2}\n'), "JSON document in each line"),
    "nothing": (lambda _, __: Answer(b""), "is empty"),
    "cut JSON": (lambda _, __: Answer(b'{"items": [{"id": 1'), "is not valid"),
    "no number": (lambda _, __: Answer(b'[{"id": 1, "at": "2024-01-01", "x": NaN}]'), "not valid"),
    "keys with dots": (always({"a.b": {"c.d": ROWS}}), "no list of records"),
    "collections of TAXII": (
        always({"collections": [{"id": uuid(1), "title": "a", "can_read": True}]}),
        "not of a collection",
    ),
    "a redirect": (lambda _, __: Answer(b"", 302, {"Location": "https://a.example.org/"}), "site"),
    "a link that is none": (
        always({"items": ROWS[:10], "next": "http://[::1"}),
        "no way to the next page",
    ),
    "a header that is none": (
        always(ROWS[:10], headers={"Link": '<http://[::1>; rel="next"'}),
        "no way to the next page",
    ),
    "deep JSON": (lambda _, __: Answer(b"[" * 100_000), "is "),
    "no records": (always({"items": []}), "The list at 'items' is empty"),
    "an empty list": (always([]), "is empty"),
    "no list": (always({"version": 1, "name": "api"}), "no list of records"),
    "texts": (always(["a", "b"]), "list of str values"),
    "records without a time": (always(rows(id=int, name="a")), "have no time in any field"),
    "a list for each day": (
        always({"days": {f"2024-01-0{day}": rows(3, id=int, at=iso) for day in range(1, 8)}}),
        "The records are in 7 lists",
    ),
    "lists in a list": (always([rows(3, id=int, at=iso)] * 2), "The records are in 2 lists"),
    "a missing page": (always({}, 404), "answered 404"),
    "a refusal": (always({"message": "since is required"}, 400), "'since is required'"),
    "another method": (always({}, 405), "another method"),
    "a null": (always(None), "no list of records"),
    "a number": (always(7), "no list of records"),
}


@pytest.mark.parametrize("name", NONE)
async def test_answer_of_which_no_source_can_be_made_is_explained(name: str) -> None:
    """No source is proposed, and the problem says what the answer is."""
    play, problem = NONE[name]
    found = await proposed(play)
    assert problem in str(found.problem)
    assert found.settings == {}
    assert found.toml == ""
    with pytest.raises(ConfigurationError, match="No source is proposed"):
        found.source()


async def test_pages_that_no_request_leads_to_are_no_source() -> None:
    """A first page alone is not proposed where the API says that there are more."""
    found = await proposed(always({"items": ROWS[:10], "total": COUNT}))
    assert "states 23 records at 'total'" in str(found.problem)
    assert found.requests == 4
    assert not found.settings


async def test_scroll_without_sorting_is_said_not_to_work() -> None:
    """The pages of a scroll have another address, which a source cannot ask."""
    hits = [{"_id": str(each["id"]), "_source": each} for each in ROWS[:10]]
    total = {"value": COUNT, "relation": "eq"}
    document = {"_scroll_id": "abc", "hits": {"total": total, "hits": hits}}
    found = await proposed(always(document))
    assert "a scroll has an address of its own" in str(found.problem)


async def test_round_number_of_records_is_doubted() -> None:
    """As many records as a limit could be are not said to be all."""
    found = await proposed(always(ROWS[:20]))
    assert "paging" not in found.settings
    assert any("20 records are all there is" in each for each in found.unsure)


@pytest.mark.parametrize(
    ("headers", "body", "text"),
    [
        ({"WWW-Authenticate": "Bearer realm=x"}, {}, 'auth_prefix to "Bearer "'),
        ({"WWW-Authenticate": "Basic realm=x"}, {}, 'auth_prefix to "Basic "'),
        ({}, {"error": "Missing header X-Api-Key"}, "key_header to X-Api-Key"),
        ({}, {"error": "unauthorized"}, "key_header"),
    ],
)
@pytest.mark.parametrize("status", [401, 403])
async def test_refusal_says_which_fields_hold_the_key(
    status: int, headers: dict[str, str], body: dict[str, str], text: str
) -> None:
    """The problem names the fields that hold a key, and that a source has its name alone."""
    found = await proposed(always(body, status, headers))
    assert text in str(found.problem)
    assert "secret" in str(found.problem)


async def test_sample_is_read_without_a_request(tmp_path: Path) -> None:
    """A file is enough for the fields; what only requests would show is left open."""
    sample = tmp_path / "sample.json"
    sample.write_text(json.dumps({"items": ROWS, "next_cursor": "abc"}))
    found = await guess(sample=sample)
    assert found.requests == 0
    assert found.settings["records"] == "items"
    assert found.settings["paging"]["parameter"] == "cursor"
    assert any("a sample was read" in each for each in found.unsure)
    assert any("set url" in each for each in found.notes)


async def test_sample_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    """A missing file is a configuration error that names it."""
    with pytest.raises(ConfigurationError, match=r"missing\.json"):
        await guess("https://example.org/", sample=tmp_path / "missing.json")


async def test_texts_of_an_answer_do_not_leave_their_comment() -> None:
    """Names of fields may hold line ends and quotes, and the table is still TOML."""
    evil = 'id"\n[sources.evil]\nkind = "kev"\n#'
    items = [{evil: uuid(number), "up\ndated": iso(number)} for number in range(9)]
    found = await guess(sample=json.dumps(items).encode())
    described = tomllib.loads(found.toml)["sources"]
    assert list(described) == [found.name]
    assert described[found.name] == found.settings


async def test_large_answer_is_read_in_bounded_time() -> None:
    """Fifty thousand records are no reason for a proposal to take long."""
    items = [{"id": number, "updated": iso(number % 500)} for number in range(50_000)]
    began = time.monotonic()
    found = await guess("https://example.org/items", sample=json.dumps({"data": items}).encode())
    assert found.settings["id"] == "id"
    assert time.monotonic() - began < 10


async def test_answer_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would fill the memory is not read, and the next step is said."""
    monkeypatch.setattr(guessing, "MAX_ANSWER_BYTES", 1_000)
    found = await proposed(always({"items": ROWS}))
    assert "larger than 1000 bytes" in str(found.problem)
    assert "sample" in str(found.problem)


@pytest.mark.parametrize(
    "asks", [{"method": "PUT"}, {"headers": {"X-A": "a\nb"}}, {"key": "NOT_SET_KEY"}]
)
async def test_question_that_cannot_be_asked_is_a_configuration_error(asks: dict[str, Any]) -> None:
    """What a person gave wrong is refused before anything is asked."""
    with pytest.raises(ConfigurationError):
        await guess("http://127.0.0.1:1/items", **asks)


async def test_unreachable_host_is_reported_at_once() -> None:
    """Nothing is asked again and again while a person waits."""
    began = time.monotonic()
    found = await guess("http://127.0.0.1:1/items")
    assert "could not be reached" in str(found.problem)
    assert time.monotonic() - began < 5
