"""APIs that answer as a test says, proposals of them, and the records that a run collects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from ladon_storage.collection.protocols import Source
from ladon_storage.collection.run import run
from ladon_storage.probing import Guess, guess
from ladon_storage.testing.doubles import MemorySink, ScriptedStorage
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.probing.api_shapes import COUNT, answer, iso

Play = Callable[[str, Asked], Answer]
SECRET = "k3y-9f8e7d6c5b4a39281706f5e4d3c2b1a0"


@asynccontextmanager
async def served(play: Play) -> AsyncIterator[FeedServer]:
    async with FeedServer() as feed:
        base = feed.at("")
        feed.play = lambda asked: play(base, asked)
        yield feed


def always(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Play:
    """Return an API that answers the same, whatever it is asked."""
    return lambda _, __: answer(document, status, headers)


async def proposed(play: Play, path: str = "items", **asks: Any) -> Guess:
    async with served(play) as feed:
        found = await guess(feed.at(path), **asks)
        assert len(feed.requests) == found.requests
        return found


async def collected(source: Source) -> list[str]:
    """Return the ids that a whole run of the engine stores."""
    sink, storage = MemorySink(), ScriptedStorage(now=lambda: datetime.now(UTC))
    await run(source, sink, storage, run_id="run-1")
    return sink.ids


def rows(count: int = COUNT, **fields: Any) -> list[dict[str, Any]]:
    """Return records whose fields are values, or made of their number."""
    return [
        {name: value(number) if callable(value) else value for name, value in fields.items()}
        for number in range(1, count + 1)
    ]


ROWS = rows(id=int, updated_at=iso)
NUMBERS_OF_SEVEN = ["1", "2", "3", "4", "5", "6", "7"]
NUMBERS = sorted(str(each["id"]) for each in ROWS)


def numbered(first: int, **more: Any) -> Play:
    """Return an API whose pages have numbers from ``first`` on."""

    def play(_: str, asked: Asked) -> Answer:
        number = int(asked.query.get("page", first)) - first
        return answer({"items": ROWS[number * 10 : number * 10 + 10], **more})

    return play
