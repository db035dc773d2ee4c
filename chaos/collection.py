"""A collection that is killed, and tells each of its steps.

It is the real one. Around the collection's storage, source and sink lie wrappers that tell the
harness what was done and what is next, and that kill their own process where the plan says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

import stamina

from chaos.feed import PAGE, Manner
from ladon_storage import StorageServiceClient, Watermark
from ladon_storage.collection import extraction as passage
from ladon_storage.collection.protocols import KnownContent, Limits, Position, WriteResult, utc_now
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.collection.run import run
from ladon_storage.errors import LadonStorageError
from ladon_storage.models import UNCONDITIONAL, Precondition, WatermarkUpdate
from ladon_storage.sinks import SqlSink
from ladon_storage.sources.http.client import source_http
from ladon_storage.sources.rest.pagination import (
    NextLinkPagination,
    OffsetPagination,
    PageNumberPagination,
    Pagination,
)
from ladon_storage.sources.rest.source import RestApi, TimeParameter
from ladon_storage.testing.judging.ticking_feed import OVERLAP

SOURCE = "chaos"
LEASE = timedelta(milliseconds=150)

FAULTS = ("drop-page", "late-page", "drop-old", "believe-order", "skip-return")
"""Errors that a sink or a source may be given on purpose: the harness must notice each."""


@dataclass(frozen=True)
class Moment:
    """Name an instant of a run: before or after the ``nth`` call of ``point``."""

    point: str
    nth: int
    when: str


@dataclass(frozen=True)
class Job:
    """Say what one process collects, and where it ends; its clock is ``ahead`` of the others'."""

    run_id: str
    service: int
    feed: int
    database: Path
    keep: Any
    manner: Manner
    checkpoints: bool
    ahead: timedelta = timedelta(0)
    end: Moment | None = None
    fault: str | None = None


class Teller:
    """Tell the harness each step, and kill this process at the step that the plan names."""

    def __init__(self, pipe: int, end: Moment | None) -> None:
        self._pipe = pipe
        self._end = end
        self._calls: Counter[str] = Counter()

    def say(self, **facts: object) -> None:
        """Tell facts."""
        os.write(self._pipe, json.dumps(facts).encode() + b"\n")

    def at(self, point: str, when: str) -> int:
        """Tell where the run is, and return how often it was there before."""
        nth = self._calls[f"{point} {when}"]
        self._calls[f"{point} {when}"] += 1
        self.say(at=f"{when} {point}", nth=nth)
        if self._end == Moment(point, nth, when):
            os.kill(os.getpid(), signal.SIGKILL)
        return nth


class ToldStorage:
    """Be the client, and tell what it does."""

    def __init__(self, inner: StorageServiceClient, teller: Teller) -> None:
        self._inner = inner
        self._teller = teller

    async def health_check(self) -> bool:
        """Ask the service."""
        self._teller.at("health", "before")
        return await self._inner.health_check()

    async def get_watermark(self, source_id: str) -> Watermark | None:
        """Ask the service."""
        found = await self._inner.get_watermark(source_id)
        self._teller.at("get", "after")
        return found

    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = UNCONDITIONAL
    ) -> Watermark:
        """Ask the service, and tell what it answered for."""
        self._teller.at(str(update.status), "before")
        stored = await self._inner.put_watermark(source_id, update, precondition)
        self._teller.say(stored=int((stored.etag or "0").strip('"')))
        self._teller.at(str(update.status), "after")
        return stored


class ToldSink:
    """Be the sink, tell what it does, and do it wrong if that is wanted."""

    def __init__(self, inner: SqlSink, teller: Teller, fault: str | None) -> None:
        self._inner = inner
        self._teller = teller
        self._fault = fault
        self._late: Page | None = None

    async def __aenter__(self) -> Self:
        self._teller.at("open", "before")
        await self._inner.__aenter__()
        self._teller.at("open", "after")
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._teller.at("close", "before")
        if self._late is not None:
            await self._inner.write(SOURCE, self._late)
        await self._inner.__aexit__(None, None, None)

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult | int:
        """Make a page durable, unless it is to be forgotten."""
        nth = self._teller.at("write", "before")
        claimed = len(page.records)
        if self._fault == "drop-page" and nth == 1:
            page = Page()
        if self._fault == "late-page" and len(page):
            page, self._late = self._late or Page(), page
        written = await self._inner.write(source_id, page, run_id=run_id, position=position)
        self._teller.at("write", "after")
        return claimed if self._late else written

    async def position(self, source_id: str) -> Position | None:
        """Ask the sink."""
        found = await self._inner.position(source_id)
        self._teller.at("position", "after")
        return found

    async def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        """Ask the sink."""
        return await self._inner.mark_removed(source_id, listed_ids, max_share)

    async def lacking(self, source_id: str, listed: Mapping[str, datetime]) -> set[str]:
        """Ask the sink."""
        return await self._inner.lacking(source_id, listed)

    async def revert(self, source_id: str, records: Sequence[Record], *, run_id: str = "") -> int:
        """Make versions current again, unless that is to be forgotten."""
        self._teller.at("revert", "before")
        if self._fault == "skip-return":
            return 0
        count = await self._inner.revert(source_id, records, run_id=run_id)
        self._teller.at("revert", "after")
        return count


class FeedSource:
    """Read the feed as it is at one tick, page by page."""

    source_id = SOURCE
    overlap = OVERLAP

    def __init__(self, job: Job, teller: Teller) -> None:
        self.ordered = self.order_guaranteed = job.manner.ordered
        self._delivers_all = job.manner.delivers_all
        self._url = f"http://127.0.0.1:{job.feed}/records"
        self._teller = teller

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield what one tick of the feed shows."""
        asked: dict[str, str | int] = {"page": 0}
        if start is not None and not self._delivers_all:
            asked["start"] = start.isoformat()
        more = True
        async with source_http(SOURCE) as http:
            while more:
                self._teller.at("read", "before")
                body = json.loads((await http.get(self._url, params=asked)).body)
                self._teller.at("read", "after")
                asked |= {"tick": body["tick"], "page": int(asked["page"]) + 1}
                more = body["more"]
                yield _page(body["items"], http.asked_at)
        self._teller.say(tick=asked["tick"])


class ListSource:
    """Read the feed as a list by the source that is made for that, and tell its pages."""

    def __init__(self, job: Job, teller: Teller) -> None:
        manner = job.manner
        self._inner = RestApi(
            source_id=SOURCE,
            url=f"http://127.0.0.1:{job.feed}/list",
            records="items",
            timestamps=("at",),
            since=None if manner.delivers_all else TimeParameter(parameter="start"),
            paging=_paging(manner),
            ordered=manner.ordered,
            overlap=OVERLAP,
        )
        self._teller = teller

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def pages(
        self, start: datetime | None, until: datetime | None, *known: KnownContent
    ) -> AsyncIterator[Page]:
        """Yield its pages."""
        async with aclosing(self._inner.pages(start, until, *known)) as pages:  # type: ignore[type-var]
            self._teller.at("read", "before")
            async for page in pages:
                self._teller.at("read", "after")
                yield page
                self._teller.at("read", "before")


def _paging(manner: Manner) -> Pagination:
    total = "total" if manner.has_total and manner.cap == PAGE else ""
    if manner.paging == "next":
        return NextLinkPagination(total=total)
    if manner.paging == "offset":
        return OffsetPagination(page_size=PAGE, total=total)
    return PageNumberPagination(first_number=0, size_parameter="limit", page_size=PAGE, total=total)


class FaultySource:
    """Be a source that does something wrong on purpose."""

    def __init__(self, inner: FeedSource | ListSource, fault: str) -> None:
        self._inner = inner
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        if name == "order_guaranteed" and self._fault == "believe-order":
            return True
        return getattr(self._inner, name)

    async def pages(
        self, start: datetime | None, until: datetime | None, *known: KnownContent
    ) -> AsyncIterator[Page]:
        """Yield the pages, without what is older than was asked for if that is the fault."""
        async for page in self._inner.pages(start, until, *known):
            kept = page.records
            if self._fault == "drop-old" and start is not None:
                kept = [each for each in kept if each.timestamp >= start]
            yield replace(page, records=kept)


def _page(items: list[dict[str, str]], asked_at: datetime | None) -> Page:
    page = Page(asked_at=asked_at)
    for item in items:
        if "id" in item:
            when = datetime.fromisoformat(item["at"])
            page.records.append(Record.of(item["id"], when, item))
        else:
            page.rejects.append(Reject.of("no id", item))
    return page


def collect(job: Job, pipe: int) -> None:
    """Collect once, and tell how it ended."""
    teller = Teller(pipe, job.end)
    stamina.set_testing(True, attempts=5, cap=True)
    if job.checkpoints:
        passage.CHECKPOINT_SECONDS = 0.0
    asyncio.run(_collect(job, teller))


async def _collect(job: Job, teller: Teller) -> None:
    sink = SqlSink(f"sqlite:///{job.database}", keep=job.keep)
    kind = FeedSource if job.manner.paging == "pinned" else ListSource
    source: Any = kind(job, teller)
    if job.fault is not None:
        source = FaultySource(source, job.fault)
    async with StorageServiceClient(f"http://127.0.0.1:{job.service}", timeout=10) as client:
        try:
            await run(
                source,
                ToldSink(sink, teller, job.fault),
                ToldStorage(client, teller),
                run_id=job.run_id,
                limits=Limits(lease=LEASE),
                clock=lambda: utc_now() + job.ahead,
            )
        except LadonStorageError as error:
            teller.say(end=type(error).__name__, text=str(error))
        else:
            teller.say(end="success")
