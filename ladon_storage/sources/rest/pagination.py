"""The kinds of pagination: how one page of a JSON API leads to the next, by settings.

- The next request is chosen here. `fetching` and `completion` decide whether an end is one, and
  whether the list moved.
- A page without a new record ends nothing: new records may come after it.
- Nothing here raises anything but a `ValueError`, whose text becomes part of a sentence about the
  API.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from ladon_storage.collection.json_values import Number, payload_text
from ladon_storage.sources.fields import SETTINGS
from ladon_storage.sources.http.urls import LONGEST_ADDRESS
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.counting import counts, counts_along, moved
from ladon_storage.sources.rest.links import hides_next, link_target, next_in
from ladon_storage.sources.rest.names import LONGEST_SIGN
from ladon_storage.sources.rest.page import PageRequest, PageResponse
from ladon_storage.sources.rest.page_metadata import declared_value, promised_at
from ladon_storage.sources.rest.vocabulary import NOWHERE

Location = Literal["query", "body"]


def _placed(location: Location, **values: Any) -> dict[str, Any]:
    return {location: values}


class _Pagination(BaseModel):
    """Any kind of pagination."""

    model_config = SETTINGS

    total: str = Field(
        "",
        title="Total path",
        description="Path of the number of items on all pages, or the header that states it. If "
        "empty, a total in a usual place is found, and can only contradict the end of "
        "a list.",
    )
    only_declared: bool = Field(
        False,
        title="Declared paths only",
        description="Only declared paths decide where a list ends; other totals, next links and "
        "cursors are ignored. The report marks the end as declared.",
    )


class _ShiftingPagination(_Pagination):
    """Pages of a list that may shift while it is read."""

    stable: bool = Field(
        False,
        title="Stable list",
        description="The list does not change while it is read, except at its end, so pages are "
        "not checked for shifts. The report marks the end as declared.",
    )


class SinglePage(_Pagination):
    """A single document."""

    model_config = ConfigDict(**SETTINGS, title="One document")

    kind: Literal["none"] = Field(
        "none", title="Kind", description="A single document without further pages."
    )

    def first_request(self) -> PageRequest:
        """Return the only page."""
        return PageRequest()

    def next_request(self, step: PageRequest, got: PageResponse) -> None:
        """Return nothing: no page follows."""


class _CountedPagination(_ShiftingPagination, ABC):
    """Pages that are found by counting."""

    location: Location = Field(
        "query",
        title="Location",
        description="Part of the request that carries the parameters: query or body.",
    )
    end: Literal["empty", "short", "total", "repeat"] = Field(
        "empty",
        title="Ends with",
        description="Sign of the end: an empty page, the total that each page states, or the last "
        "page once more. short means the same as empty, because a short page proves "
        "nothing.",
    )
    end_status: tuple[int, ...] = Field(
        (),
        title="End statuses",
        description="HTTP statuses that mean that a page lies beyond the end, such as 404.",
    )

    @property
    @abstractmethod
    def requested_size(self) -> int | None:
        """The number of items requested for a page; ``None``: the source's default."""

    @model_validator(mode="after")
    def _check_end(self) -> Self:
        if self.end == "total" and not self.total:
            raise ValueError("end is 'total', which requires the path of the total; set total")
        if self.end == "short" and not self.requested_size:
            raise ValueError("end is 'short', which requires a page size; set page_size")
        return self


class PageNumberPagination(_CountedPagination):
    """Numbered pages."""

    model_config = ConfigDict(**SETTINGS, title="Page numbers")

    kind: Literal["page"] = Field("page", title="Kind", description="Pages are numbered.")
    parameter: str = Field(
        "page", title="Page parameter", description="Name of the parameter for the page number."
    )
    first_number: int = Field(1, ge=0, title="First page", description="Number of the first page.")
    size_parameter: str = Field(
        "",
        title="Size parameter",
        description="Name of the parameter for the page size. If empty, no size is sent.",
    )
    page_size: Annotated[int, Field(ge=1, title="Number")] | None = Field(
        None, title="Page size", description="Items requested per page."
    )

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.size_parameter and self.page_size is None:
            raise ValueError("size_parameter requires a page size; set page_size")
        return self

    @property
    def requested_size(self) -> int | None:
        """The number of items requested for a page."""
        return self.page_size

    def first_request(self) -> PageRequest:
        """Return the first page."""
        return self.numbered(self.first_number)

    def next_request(self, step: PageRequest, got: PageResponse) -> PageRequest | None:
        """Return the page after ``step``; ``None`` after an empty one."""
        return self.numbered(step.number + 1) if got.count else None

    def numbered(self, number: int) -> PageRequest:
        """Return the request for the page with a number."""
        values = {self.parameter: number}
        if self.size_parameter and self.page_size:
            values[self.size_parameter] = self.page_size
        return PageRequest(
            **_placed(self.location, **values), number=number, is_counted=not self.stable
        )


class OffsetPagination(_CountedPagination):
    """Pages by offset: a page begins after the items that arrived, whatever was requested."""

    model_config = ConfigDict(**SETTINGS, title="Offsets")

    kind: Literal["offset"] = Field("offset", title="Kind", description="Pages start at an offset.")
    parameter: str = Field(
        "offset", title="Offset parameter", description="Name of the parameter for the offset."
    )
    size_parameter: str = Field(
        "limit", title="Size parameter", description="Name of the parameter for the page size."
    )
    page_size: int = Field(
        100,
        ge=1,
        title="Page size",
        description="Items requested per page.",
        validation_alias=AliasChoices("page_size", "limit"),
    )

    @property
    def requested_size(self) -> int | None:
        """The number of items requested for a page."""
        return self.page_size

    too_large: tuple[int, ...] = Field(
        (),
        title="Page-too-large statuses",
        description="HTTP statuses by which the API refuses a page as too large. The page size is "
        "then halved, down to 100 items.",
    )

    def first_request(self) -> PageRequest:
        """Return the first page."""
        return self.skipping(0, self.page_size)

    def next_request(self, step: PageRequest, got: PageResponse) -> PageRequest | None:
        """Return the page after ``step``; ``None`` after an empty one."""
        return self.skipping(step.number + got.count, self.page_size) if got.count else None

    def skipping(self, offset: int, limit: int) -> PageRequest:
        """Return the request for ``limit`` items after the first ``offset`` ones."""
        values = {self.parameter: offset}
        if self.size_parameter:
            values[self.size_parameter] = limit
        placed = _placed(self.location, **values)
        return PageRequest(**placed, number=offset, size=limit, is_counted=not self.stable)


_MORE = Field(
    "",
    title="Has more path",
    description="Path of the flag that says whether more pages follow, or of its opposite "
    "under a name such as isLast. If empty, there is none.",
)


def _followed(got: PageResponse, path: str, more: str) -> Any:
    """Return the link or cursor to the next page, or ``None`` at the end.

    Raises:
        ValueError: The page says that there are more, but not where.
    """
    document = got.document
    following: Any = declared_value(got.answer, document, path)
    if isinstance(following, dict) and "href" in following:
        is_none = not following["href"] or _is_nowhere(following["href"])
        following = None if is_none else following
    is_of_item = "-1" in path.split(".")
    if is_of_item and following is None and _has_item(document, path):
        raise ValueError(
            f"has a last item without a value at {path!r}, so nothing leads on from it"
        )
    # Position 0 is a list's beginning, not its continuation; an item may well have a 0.
    ends = ("",) if is_of_item else ("", "0", 0)
    if following in ([], {}) or following is False or following in ends:
        following = None
    if not is_of_item and (following == -1 or _is_nowhere(following)):
        following = None
    promised = promised_at(document, more) if more else None
    if promised is False:
        return None
    if _is_too_long(following):
        raise ValueError(f"has more than {LONGEST_ADDRESS} characters at {path!r}")
    if promised and following is None:
        raise ValueError(f"says at {more!r} that there are more, and nothing at {path!r}")
    return following


def _is_nowhere(following: object) -> bool:
    return isinstance(following, str) and following[:LONGEST_SIGN].strip().lower() in NOWHERE


def _has_item(document: object, path: str) -> bool:
    """Return whether a page has an item at the part of a path up to ``-1``."""
    names = path.split(".")
    above = ".".join(names[: names.index("-1") + 1])
    return value_at(document, above) is not None


def _is_too_long(following: object) -> bool:
    if isinstance(following, str | Number):
        return len(str(following)) > LONGEST_ADDRESS
    try:
        is_scalar = not isinstance(following, dict | list)
        return not is_scalar and len(payload_text(following)) > LONGEST_ADDRESS
    except RecursionError:
        return True


class _LinkedPagination(_ShiftingPagination, ABC):
    """Pages that contain the address of the next one."""

    keep_host: bool = Field(
        False,
        title="Keep host",
        description="Request next pages from the configured host, whatever host their links name. "
        "For services behind a gateway.",
    )

    def first_request(self) -> PageRequest:
        """Return the first page."""
        return PageRequest()

    def next_request(self, step: PageRequest, got: PageResponse) -> PageRequest | None:
        """Return the page after ``step``, or ``None`` after the last.

        Raises:
            ValueError: The next page's address is invalid, or not to be found.
        """
        link = self._link(got)
        if link is None:
            return None
        target = link_target(got.answer, link, keep_host=self.keep_host)
        number, index = step.number + got.count, step.index + 1
        here = got.answer.url
        is_counted = any(
            counts(name, value, number, index)
            or counts_along(
                here.query.get(name, ""), value, (step.number, number), (step.index, index)
            )
            for name, value in moved(here, target)
        )
        return PageRequest(
            url=target, number=number, index=index, is_counted=is_counted and not self.stable
        )

    @abstractmethod
    def _link(self, got: PageResponse) -> object:
        """Return the address of the next page; ``None``: there is none."""


class NextLinkPagination(_LinkedPagination):
    """Pages that contain the address of the next one in their document, or in a header."""

    model_config = ConfigDict(**SETTINGS, title="Next link")

    kind: Literal["next"] = Field(
        "next", title="Kind", description="Each page contains the URL of the next one."
    )
    path: str = Field(
        "next",
        min_length=1,
        title="Next link path",
        description="Path of the next page's URL, or the header that contains it.",
    )
    more: str = _MORE

    def _link(self, got: PageResponse) -> object:
        return _followed(got, self.path, self.more)


class LinkHeaderPagination(_LinkedPagination):
    """Pages that contain the address of the next one in ``Link: <address>; rel="next"``."""

    model_config = ConfigDict(**SETTINGS, title="Link header")

    kind: Literal["link"] = Field(
        "link", title="Kind", description="The Link header contains the URL of the next page."
    )

    def _link(self, got: PageResponse) -> object:
        headers = got.answer.headers.getall("Link", [])
        link = next_in(headers, got.answer.url)
        if link is None and hides_next(headers):
            raise ValueError("has a next page in its header Link, and not as an address in <>")
        return link


class CursorPagination(_ShiftingPagination):
    """Pages that contain a cursor, which is sent back for the next one.

    A cursor that is a list is joined by commas in the query, and is itself in the body.
    """

    model_config = ConfigDict(**SETTINGS, title="Cursor")

    kind: Literal["cursor"] = Field(
        "cursor", title="Kind", description="Each page contains a cursor for the next one."
    )
    path: str = Field(
        "next_cursor",
        min_length=1,
        title="Cursor path",
        description="Path of the cursor, such as hits.hits.-1.sort for a value of the last item, "
        "or the header that contains it.",
    )
    parameter: str = Field(
        "cursor", title="Cursor parameter", description="Name of the parameter for the cursor."
    )
    location: Location = Field(
        "query",
        title="Location",
        description="Part of the request that carries the cursor: query or body.",
    )
    more: str = _MORE

    def first_request(self) -> PageRequest:
        """Return the first page."""
        return PageRequest()

    def next_request(self, step: PageRequest, got: PageResponse) -> PageRequest | None:
        """Return the page after ``step``, or ``None`` after the last.

        Raises:
            ValueError: The value at the cursor's place is no cursor.
        """
        cursor = _followed(got, self.path, self.more)
        if cursor is None:
            return None
        request = self.requesting(cursor)
        sent = {**request.query, **request.body}[self.parameter]
        number, index = step.number + got.count, step.index + 1
        here = {**step.query, **step.body}.get(self.parameter, "")
        is_counted = counts(self.parameter, sent, number, index) or counts_along(
            here, sent, (step.number, number), (step.index, index)
        )
        is_counted = is_counted and not self.stable
        return replace(request, number=number, index=index, is_counted=is_counted)

    def is_zero(self, got: PageResponse) -> bool:
        """Return whether a page has the cursor 0, and does not say that it is the last one."""
        cursor = declared_value(got.answer, got.document, self.path)
        is_over = self.more and promised_at(got.document, self.more) is False
        return not is_over and not isinstance(cursor, bool) and cursor in (0, "0")

    def requesting(self, cursor: object) -> PageRequest:
        """Return the request for the page behind a cursor.

        Raises:
            ValueError: It is no cursor.
        """
        value = _in_query(cursor, self.path) if self.location == "query" else _in_body(cursor)
        return PageRequest(**_placed(self.location, **{self.parameter: value}))


def _in_query(cursor: object, path: str) -> str | int:
    parts = cursor if isinstance(cursor, list) else [cursor]
    kinds = str | int | float | Number
    if any(isinstance(each, bool) or not isinstance(each, kinds) for each in parts):
        raise ValueError(f"has a {type(cursor).__name__} at {path!r} instead of a cursor")
    return cursor if isinstance(cursor, str | int) else ",".join(map(str, parts))


def _in_body(cursor: object) -> object:
    """Return a cursor as JSON has it; a `Number` that is left is sent with its own digits."""
    if isinstance(cursor, Number) and cursor.is_whole:
        return int(cursor.text)
    if isinstance(cursor, list):
        return [_in_body(each) for each in cursor]
    if isinstance(cursor, dict):
        return {key: _in_body(each) for key, each in cursor.items()}
    return cursor


Pagination = Annotated[
    SinglePage
    | PageNumberPagination
    | OffsetPagination
    | NextLinkPagination
    | CursorPagination
    | LinkHeaderPagination,
    Field(discriminator="kind"),
]
"""Any kind of pagination, identified by its ``kind``."""


def leads_on(paging: Pagination) -> bool:
    """Return whether each page says itself which one is next, by a link or a cursor."""
    return isinstance(paging, NextLinkPagination | CursorPagination | LinkHeaderPagination)
