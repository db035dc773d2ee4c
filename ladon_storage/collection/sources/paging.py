"""How one page of a JSON API leads to the next, and when there is none.

- Every way of paging ends for a reason that was declared. What looks like an end and is none, or
  like a next page and is the same one, is an error: silence would lose records, or never end.
- A page without a single new record ends nothing: what is new may come after it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from yarl import URL

from ladon_storage.collection.content import Number
from ladon_storage.collection.sources.fields import SETTINGS
from ladon_storage.collection.sources.http import HttpAnswer
from ladon_storage.collection.sources.items import value_at

Where = Literal["query", "body"]


@dataclass(frozen=True)
class Step:
    """Say how one page is asked for.

    Args:
        url: Its own address; ``None``: the source's.
        query: Parameters that are added to the address.
        body: Values that are put into the body, by their dotted paths.
        number: The page's number, or its offset.
        read: Items on the pages before it.
    """

    url: URL | None = None
    query: Mapping[str, str | int] = field(default_factory=dict)
    body: Mapping[str, str | int] = field(default_factory=dict)
    number: int = 0
    read: int = 0


@dataclass(frozen=True)
class Got:
    """Be a page as it arrived: the answer, its document, and the items in it.

    ``items`` is a list, or an object whose keys are the ids.
    """

    answer: HttpAnswer
    document: Any
    items: Any

    @property
    def count(self) -> int:
        """How many items it has."""
        return len(self.items)


def _placed(where: Where, **values: Any) -> dict[str, Any]:
    return {where: values}


class NoPaging(BaseModel):
    """Read one document."""

    model_config = ConfigDict(**SETTINGS, title="One document")

    kind: Literal["none"] = Field("none", title="Kind", description="There is only one page.")

    def first(self) -> Step:
        """Return the only page."""
        return Step()

    def after(self, step: Step, got: Got) -> None:
        """Return nothing: no page follows."""


class _Counted(BaseModel, ABC):
    """Page by counting; ends as it is declared to."""

    model_config = SETTINGS

    where: Where = Field(
        "query", title="Place", description="Whether the parameters are in the query or the body."
    )
    end: Literal["empty", "short", "total"] = Field(
        "empty",
        title="Ends with",
        description="The first page that is empty, or that has fewer items than asked for, or the "
        "total that each page states.",
    )
    total: str = Field(
        "",
        title="Path of the total",
        description="Where a page says how many items there are on all pages.",
    )

    @property
    @abstractmethod
    def asked(self) -> int | None:
        """How many items a page is asked to have; ``None``: as many as the source likes."""

    @model_validator(mode="after")
    def _check_end(self) -> Self:
        if self.end == "total" and not self.total:
            raise ValueError("a reading that ends with the total needs the path of the total")
        if self.end == "short" and not self.asked:
            raise ValueError("a reading that ends with a short page needs the size of a page")
        return self

    def _is_last(self, step: Step, got: Got) -> bool:
        if self.end == "empty":
            return got.count == 0
        if self.end == "short":
            return got.count < (self.asked or 0)
        total = value_at(got.document, self.total)
        if isinstance(total, bool) or not isinstance(total, int):
            raise ValueError(f"says no total at {self.total!r}")
        read = step.read + got.count
        if got.count == 0 and read < total:
            raise ValueError(f"says that there are {total} items, and gives none after {read}")
        return read >= total


class PageNumbers(_Counted):
    """Page by the number of the page."""

    model_config = ConfigDict(**SETTINGS, title="Page numbers")

    kind: Literal["page"] = Field("page", title="Kind", description="Pages have numbers.")
    parameter: str = Field("page", title="Parameter", description="What the page number is called.")
    first_number: int = Field(
        1, ge=0, title="First page", description="The number of the first page."
    )
    size_parameter: str = Field(
        "", title="Size parameter", description="What the size of a page is called; empty: unsaid."
    )
    size: Annotated[int, Field(ge=1, title="Number")] | None = Field(
        None, title="Size", description="How many items a page is asked to have."
    )

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.size_parameter and self.size is None:
            raise ValueError("a parameter for the size of a page needs the size")
        return self

    @property
    def asked(self) -> int | None:
        """How many items a page is asked to have."""
        return self.size

    def first(self) -> Step:
        """Return the first page."""
        return self._numbered(self.first_number, 0)

    def after(self, step: Step, got: Got) -> Step | None:
        """Return the page after ``step``, or ``None`` after the last."""
        if self._is_last(step, got):
            return None
        return self._numbered(step.number + 1, step.read + got.count)

    def _numbered(self, number: int, read: int) -> Step:
        values = {self.parameter: number}
        if self.size_parameter and self.size:
            values[self.size_parameter] = self.size
        return Step(**_placed(self.where, **values), number=number, read=read)


class Offsets(_Counted):
    """Page by how many items are skipped: as many as arrived, whatever was asked for."""

    model_config = ConfigDict(**SETTINGS, title="Offsets")

    kind: Literal["offset"] = Field("offset", title="Kind", description="Items are skipped.")
    parameter: str = Field("offset", title="Parameter", description="What the offset is called.")
    limit_parameter: str = Field(
        "limit", title="Limit parameter", description="What the size of a page is called."
    )
    limit: int = Field(
        100, ge=1, title="Limit", description="How many items a page is asked to have."
    )

    @property
    def asked(self) -> int | None:
        """How many items a page is asked to have."""
        return self.limit

    def first(self) -> Step:
        """Return the first page."""
        return self._skipping(0)

    def after(self, step: Step, got: Got) -> Step | None:
        """Return the page after ``step``, or ``None`` after the last."""
        return None if self._is_last(step, got) else self._skipping(step.number + got.count)

    def _skipping(self, offset: int) -> Step:
        values = {self.parameter: offset}
        if self.limit_parameter:
            values[self.limit_parameter] = self.limit
        return Step(**_placed(self.where, **values), number=offset, read=offset)


_MORE = Field(
    "",
    title="Path of more",
    description="Where a page says whether there are more; empty: it does not.",
)


def _followed(document: object, path: str, more: str) -> Any:
    """Return what leads on, or ``None`` at the end.

    Raises:
        ValueError: The page says that there are more, and not where.
    """
    following = value_at(document, path)
    following = None if following in ("", False) else following
    promised = value_at(document, more) if more else None
    if promised is not None and not promised:
        return None
    if promised and following is None:
        raise ValueError(f"says at {more!r} that there are more, and nothing at {path!r}")
    return following


class NextLink(BaseModel):
    """Follow the address of the next page, as each page has it."""

    model_config = ConfigDict(**SETTINGS, title="Next link")

    kind: Literal["next"] = Field("next", title="Kind", description="A page has the next address.")
    path: str = Field(
        "next", min_length=1, title="Path", description="Where the address of the next page is."
    )
    more: str = _MORE

    def first(self) -> Step:
        """Return the first page."""
        return Step()

    def after(self, step: Step, got: Got) -> Step | None:
        """Return the page after ``step``, or ``None`` after the last."""
        link = _followed(got.document, self.path, self.more)
        return None if link is None else _linked(got.answer, link, step.read + got.count)


class Cursor(BaseModel):
    """Hand back the cursor that each page gives."""

    model_config = ConfigDict(**SETTINGS, title="Cursor")

    kind: Literal["cursor"] = Field("cursor", title="Kind", description="A page has a cursor.")
    path: str = Field(
        "next_cursor", min_length=1, title="Path", description="Where the cursor of a page is."
    )
    parameter: str = Field("cursor", title="Parameter", description="What the cursor is called.")
    where: Where = Field(
        "query", title="Place", description="Whether the cursor is in the query or the body."
    )
    more: str = _MORE

    def first(self) -> Step:
        """Return the first page."""
        return Step()

    def after(self, step: Step, got: Got) -> Step | None:
        """Return the page after ``step``, or ``None`` after the last."""
        cursor = _followed(got.document, self.path, self.more)
        if cursor is None:
            return None
        if isinstance(cursor, Number) and cursor.is_whole:
            cursor = cursor.text if self.where == "query" else int(cursor.text)
        if isinstance(cursor, bool) or not isinstance(cursor, str | int):
            raise ValueError(f"has no cursor at {self.path!r}, but a {type(cursor).__name__}")
        return Step(**_placed(self.where, **{self.parameter: cursor}), read=step.read + got.count)


class LinkHeader(BaseModel):
    """Follow the header ``Link: <address>; rel="next"``."""

    model_config = ConfigDict(**SETTINGS, title="Link header")

    kind: Literal["link"] = Field(
        "link", title="Kind", description="The header Link has the next address."
    )

    def first(self) -> Step:
        """Return the first page."""
        return Step()

    def after(self, step: Step, got: Got) -> Step | None:
        """Return the page after ``step``, or ``None`` after the last."""
        link = next_in(got.answer.headers.getall("Link", []))
        return None if link is None else _linked(got.answer, link, step.read + got.count)


Paging = Annotated[
    NoPaging | PageNumbers | Offsets | NextLink | Cursor | LinkHeader, Field(discriminator="kind")
]
"""Any way of paging, told by its ``kind``."""

_PARAMETER = re.compile(r";\s*([^\s=;,]+)\s*(?:=\s*(?:\"([^\"]*)\"|([^\";,\s]*)))?")
_LINK = re.compile(r"<([^>]*)>((?:\s*;\s*[^\s=;,]+\s*(?:=\s*(?:\"[^\"]*\"|[^\";,\s]*))?)*)")


def next_in(headers: list[str]) -> str | None:
    """Return the address of the next page in the values of `Link` headers.

    >>> next_in(['<https://example.org/?page=1>; rel="prev", </?page=3>; title="a, b"; rel=next'])
    '/?page=3'
    """
    for value in headers:
        for target, parameters in _LINK.findall(value):
            for name, quoted, plain in _PARAMETER.findall(parameters):
                if name.lower() == "rel" and "next" in (quoted or plain).lower().split():
                    return str(target)
    return None


def _linked(answer: HttpAnswer, link: object, read: int) -> Step:
    try:
        if not isinstance(link, str):
            raise ValueError  # noqa: TRY301 - the same to the reader
        target = answer.url.join(URL(link))
    except ValueError:
        raise ValueError("leads to a next page that is no address") from None
    # Services behind a proxy that speaks TLS for them often call themselves http.
    if target.scheme == "http" and answer.url.scheme == "https" and target.host == answer.url.host:
        target = target.with_scheme("https")
    return Step(url=target, read=read)
