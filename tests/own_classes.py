"""Classes of one's own, as a user writes them, for tests that name them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Self

from pydantic import BaseModel

from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Page
from ladon_storage.testing.doubles import record


class Tickets(BaseModel):
    """A source as a pydantic model."""

    kind: Literal["tickets"] = "tickets"
    source_id: str
    project: str
    page_size: int = 10

    @property
    def overlap(self) -> timedelta:
        return timedelta(0)

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        yield Page(records=[record(f"{self.project}-{number}", number) for number in (1, 2)])


@dataclass
class TicketsData:
    """A source as a dataclass."""

    source_id: str
    project: str = "x"
    overlap: timedelta | None = None

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        yield Page(records=[record("1", 1)])


class TicketsPlain:
    """A source as a plain class, whose name is its own."""

    source_id = "plain-tickets"
    overlap = None

    def __init__(self, project: str = "x") -> None:
        if project == "broken":
            raise ValueError("project is broken")
        self.project = project

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        yield Page(records=[record("1", 1)])


class TicketsOfAny(TicketsPlain):
    """A source that takes any field."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.fields = fields


class WithoutId:
    """No source: it has no name."""

    overlap = None

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        yield Page(records=[])


class WithOverlapOfSeconds(TicketsPlain):
    """No source: its overlap is a number."""

    overlap = 60  # type: ignore[assignment]


class WithCoroutine:
    """No source: its pages are no generator."""

    source_id = "coroutine"
    overlap = None

    async def pages(self, start: datetime | None, until: datetime | None) -> list[Page]:
        return []


MADE: list[str] = []


class Dangerous:
    """No source, and it must not be made to find that out."""

    def __init__(self, **fields: Any) -> None:
        MADE.append("dangerous")


class Memory:
    """A sink as a plain class."""

    def __init__(self, name: str, url: str = "") -> None:
        self.name = name
        self.url = url
        self.pages: list[Page] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult:
        self.pages.append(page)
        return WriteResult(new=page.records)


NOT_A_CLASS = 7


class TicketsUndescribed(BaseModel):
    source_id: str
    overlap: timedelta = timedelta(0)

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        yield Page(records=[record("1", 1)])
