"""Feeds that the command's tests collect: a catalogue of vulnerabilities, and its fields."""

from __future__ import annotations

import json
from typing import Any

from ladon_storage.testing.feed_server import Answer, FeedServer


def catalogue(*numbers: int) -> Answer:
    """Return a catalogue with an entry for each number, the day of the month in which it came."""
    entries = [
        {"cveID": f"CVE-2024-{number:04}", "dateAdded": f"2024-01-{number:02}"}
        for number in numbers
    ]
    return Answer.of({"count": len(entries), "vulnerabilities": entries})


def kev(feed: FeedServer) -> str:
    """Return the source of a feed's catalogue, as a command line has it."""
    return json.dumps(fields(feed))


def fields(feed: FeedServer) -> dict[str, Any]:
    """Return the source of a feed's catalogue."""
    return {"kind": "kev", "url": feed.url}


def project(feed: FeedServer, more: str = "") -> str:
    """Return a ladon.toml with the catalogue as the source kev."""
    return (
        '[storage]\nurl = "sqlite:///ladon.db"\n'
        '[sinks.records]\nurl = "sqlite:///records.db"\n'
        f'[sources.kev]\nkind = "kev"\nurl = "{feed.url}"\n{more}'
    )


OWN = """
from datetime import UTC, datetime
from pydantic import BaseModel
from ladon_storage.collection.records import Page, Record


class Own(BaseModel):
    source_id: str = "own"
    overlap: None = None

    async def pages(self, start, until):
        yield Page(records=[Record.of("1", datetime(2024, 1, 1, tzinfo=UTC), {"title": "one"})])


class Slow(Own):
    async def pages(self, start, until):
        import asyncio
        await asyncio.sleep(0.5)
        async for page in super().pages(start, until):
            yield page


class Broken(Own):
    source_id: str = "broken"

    async def pages(self, start, until):
        yield Page()
        {}["missing"]


class Lost(Own):
    async def pages(self, start, until):
        import asyncio
        yield Page()
        raise asyncio.CancelledError


class Quits(Own):
    async def pages(self, start, until):
        import sys
        yield Page()
        sys.exit()


class Mute(Own):
    async def pages(self, start, until):
        class Nameless(Exception):
            def __str__(self):
                raise RuntimeError

        yield Page()
        raise Nameless


class Stuck(Own):
    source_id: str = "stuck"

    async def pages(self, start, until):
        import asyncio
        yield Page(records=[Record.of("1", datetime(2024, 1, 1, tzinfo=UTC), {"title": "one"})])
        yield Page(records=[Record.of("2", datetime(2024, 1, 1, tzinfo=UTC), {"title": "two"})])
        print("reading", flush=True)
        await asyncio.Event().wait()
"""
"""A module with sources of one's own: one that works, some with a mistake, one without an end."""
