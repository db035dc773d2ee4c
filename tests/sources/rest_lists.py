"""A list of seven items, behind whatever pages and signs a test puts in front of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ladon_storage.collection.records import Page
from ladon_storage.errors import SourceError
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.sources.test_rest import api, row

ROWS = [row(number) for number in range(7)]
IDS = [str(number) for number in range(7)]


def answer(
    rows: list[Any], headers: dict[str, str] | None = None, status: int = 200, **more: Any
) -> Answer:
    return Answer(json.dumps({"rows": rows, **more}).encode(), status, headers or {})


def cut(asked: Asked, size: int, rows: list[Any] = ROWS) -> list[Any]:
    """Return the rows of a page that is asked for by number or offset."""
    if "page" in asked.query:
        first = (int(asked.query["page"]) - 1) * size
    else:
        first, size = int(asked.query["offset"]), min(size, int(asked.query["limit"]))
    return rows[first : first + size]


async def pages_of(feed: FeedServer, **fields: Any) -> list[Page]:
    return [page async for page in api(feed, **fields).pages(None, None)]


async def ids_of(feed: FeedServer, **fields: Any) -> list[str]:
    return [each.record_id for page in await pages_of(feed, **fields) for each in page.records]


async def refused(feed: FeedServer, **fields: Any) -> str:
    with pytest.raises(SourceError) as caught:
        await pages_of(feed, **fields)
    return str(caught.value)
