"""Keys of an API: used, named, and repeated nowhere."""

from __future__ import annotations

from typing import Any

import pytest

from ladon_storage.errors import ConfigurationError
from ladon_storage.probing import guess, try_source
from ladon_storage.testing.feed_server import Answer, Asked
from tests.probing.api_shapes import COUNT, answer, instant
from tests.probing.asking import (
    NUMBERS,
    ROWS,
    SECRET,
    Play,
    always,
    collected,
    proposed,
    served,
)


def _needs(place: str) -> Play:
    def play(_: str, asked: Asked) -> Answer:
        given = {
            "query": asked.query.get("api_key"),
            "header": asked.headers.get("X-Api-Key"),
            "bearer": asked.headers.get("Authorization", "").removeprefix("Bearer "),
        }[place]
        if given != SECRET:
            return answer({"error": "no key"}, 401)
        first = int(asked.query.get("offset", 0))
        return answer({"items": ROWS[first : first + 10], "offset": first, "total": COUNT})

    return play


@pytest.mark.parametrize(
    ("place", "path", "asks"),
    [
        ("query", f"items?api_key={SECRET}&offset=0", {}),
        ("header", "items", {"headers": {"X-Api-Key": SECRET}}),
        ("bearer", "items", {"headers": {"Authorization": f"Bearer {SECRET}"}}),
        ("header", "items", {"key": "FEED_KEY", "key_header": "X-Api-Key"}),
        ("query", "items", {"key": "FEED_KEY", "key_param": "api_key"}),
    ],
)
async def test_key_is_used_and_returned_nowhere(
    place: str, path: str, asks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that comes with an address or a header becomes the name of a secret."""
    async with served(_needs(place)) as feed:
        found = await guess(feed.at(path), **asks)
        assert SECRET not in found.model_dump_json() + repr(found)
        monkeypatch.setenv(found.settings["key"], SECRET)
        assert await collected(found.source()) == NUMBERS, found.toml
        trial = await try_source(found.source())
        assert trial.ok
        assert SECRET not in trial.model_dump_json()


@pytest.mark.parametrize(
    "url",
    [
        f"http://127.0.0.1:1/items?token={SECRET}",
        f"http://127.0.0.1:1/items?appid={SECRET}",
        f"http://user:{SECRET}@127.0.0.1:1/items",
        f"http://127.0.0.1:1/items#{SECRET}",
        f"http://127.0.0.1:1/items?a={SECRET}&key={SECRET}",
        f"ftp://127.0.0.1/items?token={SECRET}",
        f"//{SECRET}",
    ],
)
async def test_key_of_an_address_is_in_no_message(url: str) -> None:
    """An error names no key that the address had."""
    try:
        text = (await guess(url)).model_dump_json()
    except ConfigurationError as error:
        text = f"{error} {error.__cause__} {error.__context__}"
    assert SECRET not in text


async def test_key_in_the_path_of_a_dump_is_taken_out_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kind that takes a key in its path has a place for it there."""
    part = "0123456789abcdef" * 3
    lines = "".join(
        f'"{n}","{instant(n):%F %T}","http://192.0.2.1/{n}","online","","a","b","c","d"\r\n'
        for n in range(COUNT, 0, -1)
    )
    dump = "id,dateadded,url,url_status,last_online,threat,tags,urlhaus_link,reporter\r\n" + lines

    def play(_: str, asked: Asked) -> Answer:
        return Answer(dump.encode()) if f"/{part}/" in asked.path else answer({}, 403)

    async with served(play) as feed:
        found = await guess(feed.at(f"exports/{part}/csv_online/"))
        assert found.settings["kind"] == "urlhaus"
        assert part not in found.model_dump_json()
        monkeypatch.setenv(found.settings["key"], part)
        assert await collected(found.source()) == NUMBERS


async def test_key_that_an_answer_repeats_is_masked() -> None:
    """A refusal that repeats the key is reported without it."""
    play = always({"message": f"the key {SECRET} is not valid"}, 400)
    found = await proposed(play, f"items?api_key={SECRET}")
    assert "is not valid" in str(found.problem)
    assert SECRET not in found.model_dump_json()
