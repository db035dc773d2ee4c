"""Proposals for twenty shapes of APIs, and the kinds of services that are recognised."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from ladon_storage.probing import guess
from ladon_storage.sources import source_from
from ladon_storage.testing.feed_server import Answer, Asked
from tests.probing.api_shapes import SHAPES, Shape, answer, instant
from tests.probing.asking import (
    NUMBERS,
    SECRET,
    collected,
    proposed,
    rows,
    served,
)


@pytest.mark.parametrize("name", SHAPES)
async def test_proposal_collects_all_records_of_a_shape(name: str) -> None:
    """The table that is proposed for a known shape reads all of its pages, after four requests."""
    shape: Shape = SHAPES[name]
    async with served(shape.play) as feed:
        found = await guess(feed.at(shape.path), **shape.asks)
        assert len(feed.requests) == found.requests <= 4
        described = tomllib.loads(found.toml)["sources"][found.name]
        assert described == found.settings
        assert await collected(source_from(described)) == sorted(shape.ids), found.toml


KINDS = {"nvd": "nvd", "kev": "kev", "otx": "otx", "misp": "misp", "taxii": "taxii"}


@pytest.mark.parametrize("name", SHAPES)
async def test_proposal_names_the_kind_of_a_known_service(name: str) -> None:
    """A service that has a kind of its own is recognised by its answer; others are `rest`."""
    shape = SHAPES[name]
    found = await proposed(shape.play, shape.path, **shape.asks)
    assert found.settings["kind"] == KINDS.get(name, "rest")


async def test_kind_that_needs_a_key_is_not_proposed_without_one() -> None:
    """What was read without a key stays readable without."""
    async with served(SHAPES["otx"].play) as feed:
        found = await guess(feed.at(SHAPES["otx"].path))
        assert found.settings["kind"] == "rest"
        assert "key" not in found.settings
        assert await collected(found.source()) == sorted(SHAPES["otx"].ids)


def _threatfox(_: str, asked: Asked) -> Answer:
    if asked.body != {"query": "get_iocs", "days": 7}:
        return answer({"query_status": "illegal_days", "data": "none"})
    data = rows(id=str, ioc="192.0.2.1:80", first_seen=lambda n: f"{instant(n):%F %T} UTC")
    return answer({"query_status": "ok", "data": data})


ABUSE_CH: list[tuple[dict[str, Any], str]] = [
    ({}, "rest"),
    ({"headers": {"Auth-Key": SECRET}}, "threatfox"),
    ({"key": "FEED_KEY", "key_header": "Auth-Key"}, "threatfox"),
]


@pytest.mark.parametrize(("asks", "kind"), ABUSE_CH)
async def test_api_that_takes_a_question_is_asked_it(
    asks: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body makes a POST, and is a setting of the source where no kind knows the API."""
    async with served(_threatfox) as feed:
        found = await guess(feed.at("v1/"), body={"query": "get_iocs", "days": 7}, **asks)
        assert found.settings["kind"] == kind
        monkeypatch.setenv(found.settings.get("key", "NO_KEY"), SECRET)
        assert await collected(found.source()) == NUMBERS, found.toml


@pytest.mark.parametrize("path", ["root/collections/91a7b528/", "root/collections/91a7b528"])
async def test_taxii_collection_is_recognised_by_its_own_address(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of a collection is enough, and a user in it is one of the source."""

    def play(base: str, asked: Asked) -> Answer:
        if "Basic" not in asked.headers.get("Authorization", ""):
            return answer({}, 401)
        if not asked.path.endswith("/objects/"):
            media = {"Content-Type": "application/taxii+json;version=2.1"}
            return answer({"id": "91a7b528", "title": "a", "can_read": True}, headers=media)
        return SHAPES["taxii"].play(base, asked)

    async with served(play) as feed:
        found = await guess(feed.at(path).replace("://", f"://reader:{SECRET}@"))
        assert found.settings["kind"] == "taxii"
        assert found.settings["user"] == "reader"
        assert SECRET not in found.model_dump_json()
        monkeypatch.setenv(found.settings["key"], SECRET)
        assert await collected(found.source()) == sorted(SHAPES["taxii"].ids)


async def test_misp_instance_without_a_key_is_paged_in_its_body() -> None:
    """A page and a limit in the body are the paging of the body."""
    shape = SHAPES["misp"]
    async with served(shape.play) as feed:
        found = await guess(feed.at(shape.path), body=shape.asks["body"])
        assert found.settings["kind"] == "rest"
        assert found.settings["body"] == {"returnFormat": "json"}
        assert found.settings["paging"]["location"] == "body"
        assert await collected(found.source()) == NUMBERS, found.toml
