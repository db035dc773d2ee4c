"""A list by its pages, as a walk asks for them: what it needs of the API, and of a page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ladon_storage.errors import SourceError
from ladon_storage.sources.rest.pagination import PageRequest, PageResponse, Pagination

KEY_END = "\0"
"""What is behind the id in a key, before what tells its version."""


class PagedApi(Protocol):
    """What a walk asks of the source that it goes through."""

    @property
    def source_id(self) -> str:
        """The stable name."""
        ...

    @property
    def paging(self) -> Pagination:
        """How one page leads to the next."""
        ...

    @property
    def records(self) -> str:
        """The path of the items."""
        ...

    async def page(
        self, step: PageRequest, *, accept: Collection[int], may_be_empty: bool
    ) -> PageResponse:
        """Return a page; one with a status of ``accept``, or an empty body, has no items."""
        ...

    async def nothing(self, step: PageRequest) -> PageResponse | None:
        """Return a page of a range that has nothing yet; ``None`` where no range was asked."""
        ...

    async def keys(self, items: Any) -> list[str]:
        """Return what tells each item at its version from others: its id, `KEY_END`, its times."""
        ...

    def is_round(self, count: int) -> bool:
        """Tell whether just so many items came as a parameter asks for at most."""
        ...

    def refusal(self, got: PageResponse) -> SourceError:
        """Return the error that says that the status of an answer is none to go on from."""
        ...

    def error(self, problem: str, *, transient: bool = False) -> SourceError:
        """Return the error that says what is wrong with the API."""
        ...


class MovedError(Exception):
    """The list changed so that something may have been skipped; its text says how that shows."""


class SeenRecords:
    """What was delivered in one reading, of which each record counts once.

    Args:
        most: How many ids are held; what comes when there are more is not told apart.

    Attributes:
        is_exact: Whether every record could be told from the others.
        has_repeated: Whether an id came twice.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._versions: dict[int, int] = {}
        self._others: set[int] = set()
        self.is_exact = True
        self.has_repeated = False

    def add(self, keys: Iterable[str]) -> None:
        """Add what was delivered, by its keys."""
        for key in keys:
            record, version = hash(key.partition(KEY_END)[0]), hash(key)
            if record in self._versions:
                self.has_repeated = True
                if self._versions[record] == version:
                    continue
                if len(self._others) < self._most:
                    self._others.add(version)
                else:
                    self.is_exact = False
            elif len(self._versions) < self._most:
                self._versions[record] = version
            else:
                self.is_exact = False

    def has(self, key: str) -> bool:
        """Tell whether a record came, at any version, as far as ids are held."""
        return hash(key.partition(KEY_END)[0]) in self._versions

    @property
    def records(self) -> int:
        """How many ids came."""
        return len(self._versions)

    @property
    def versions(self) -> int:
        """How many versions of records came."""
        return len(self._versions) + len(self._others)


@dataclass(frozen=True)
class ListPage:
    """A page, how it was asked for, and what tells its items."""

    request: PageRequest
    response: PageResponse
    keys: Sequence[str]

    @property
    def ids(self) -> list[str]:
        """What tells its items, whatever their version."""
        return [key.partition(KEY_END)[0] for key in self.keys]

    @property
    def begins_where_asked(self) -> bool:
        """Tell whether its first id is the place it was asked for by, so that it did not shift."""
        place = str(self.request.number)
        values = map(str, (*self.request.query.values(), *self.request.body.values()))
        return bool(self.keys) and self.ids[0] == place and place in values

    def without(self, known: Iterable[str]) -> PageResponse:
        """Return it without the items that are known."""
        known = frozenset(known)
        return self.only([index for index, key in enumerate(self.keys) if key not in known])

    def only(self, indexes: Collection[int]) -> PageResponse:
        """Return it with the items at these indexes alone."""
        if len(indexes) == len(self.keys):
            return self.response
        items, wanted = self.response.items, frozenset(indexes)
        pairs = enumerate(items.items() if isinstance(items, Mapping) else items)
        left = [each for index, each in pairs if index in wanted]
        return replace(self.response, items=dict(left) if isinstance(items, Mapping) else left)

    def goes_on_in(self, coming: ListPage) -> bool:
        """Tell whether a page begins with what was pushed there from this one, and goes on."""
        is_within = {*coming.keys} <= {*self.keys}
        return bool(coming.keys) and coming.keys[0] in self.keys and not is_within

    def holds(self, first: ListPage, ahead: int) -> bool:
        """Tell whether it still has what it had, but for what items ``ahead`` pushed off it."""
        ids = set(self.ids)
        return all(each in ids for each in first.ids[: max(len(self.keys) - ahead, 0)])
