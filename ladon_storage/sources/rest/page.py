"""The request for one page of a list, and the page as it arrived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from ladon_storage.sources.http.client import HttpResponse
from ladon_storage.sources.http.urls import normalized


@dataclass(frozen=True)
class PageRequest:
    """The request for one page.

    Args:
        url: Its own address; ``None``: the source's address.
        query: Parameters that are added to the address.
        body: Values that are put into the body, by their dotted paths.
        number: The page's number or offset; for a linked page, how many items came before.
        index: How many pages came before a linked page.
        size: How many items are requested, where items are skipped.
        is_counted: Whether it is found by counting, so that it shifts when the list does.
        is_once: Whether the request moves the cursor, so that it must not be repeated.
    """

    url: URL | None = None
    query: Mapping[str, str | int] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    index: int = 0
    size: int = 0
    is_counted: bool = False
    is_once: bool = False

    @property
    def place(self) -> str:
        """The identity of the request among the requests of a list."""
        url = None if self.url is None else normalized(self.url)
        return repr((str(url), self.query, self.body))


@dataclass(frozen=True)
class PageResponse:
    """A page as it arrived: the answer, its document, and its items.

    ``items`` is a list, or an object whose keys are the ids.
    """

    answer: HttpResponse
    document: Any
    items: Any

    @property
    def count(self) -> int:
        """The number of its items."""
        return len(self.items)
