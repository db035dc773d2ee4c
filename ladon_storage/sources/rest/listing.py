"""A list and its pages, as `fetching` needs them: the API's protocol and a page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Protocol

from ladon_storage.errors import SourceError
from ladon_storage.sources.rest.page import PageRequest, PageResponse
from ladon_storage.sources.rest.pagination import Pagination

KEY_END = "\0"
"""The separator between the id in a key and the parts that identify its version."""


class PagedApi(Protocol):
    """The source as its page fetcher sees it."""

    @property
    def source_id(self) -> str:
        """The stable name."""
        ...

    @property
    def paging(self) -> Pagination:
        """The pagination."""
        ...

    @property
    def records(self) -> str:
        """The path of the items."""
        ...

    @property
    def timestamps(self) -> Sequence[str]:
        """The paths of an item's times."""
        ...

    @property
    def limits(self) -> Mapping[str, int]:
        """The parameters of each request that limit the items of a page, with their values."""
        ...

    @property
    def has_settings(self) -> bool:
        """Whether the source has the settings of a JSON API, which an error may name."""
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
        """Return a key for each item at its version: its id, `KEY_END`, its times."""
        ...

    def is_round(self, count: int) -> bool:
        """Return whether a page has exactly as many items as a parameter requests at most."""
        ...

    def refusal(self, got: PageResponse) -> SourceError:
        """Return the error for an answer whose status does not allow reading to continue."""
        ...

    def error(self, problem: str, step: str = "", *, transient: bool = False) -> SourceError:
        """Return the error for a problem of the API, with the next step if it is a special one."""
        ...


class Keys(list[str]):
    """The keys of a page's items, with their ids where these are at hand.

    Args:
        keys: The keys.
        ids: What is before `KEY_END` in each of them.
    """

    def __init__(self, keys: Iterable[str], ids: list[str] | None = None) -> None:
        super().__init__(keys)
        self.ids = ids


class MovedError(Exception):
    """Raised when a list changed so that records may have been skipped; the text says how."""


class SeenRecords:
    """The records of one reading, each of which counts once.

    Args:
        most: The number of ids that are held; records beyond that are not distinguished.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._versions: dict[int, int] = {}
        self._others: set[int] = set()
        self._pages: list[tuple[list[int], list[int]]] = []
        """The hashes of pages in which no id is looked up yet: most lists need it at their end."""
        self._waiting = 0
        self._is_exact = True
        self._has_repeated = False

    def add(self, keys: Iterable[str], ids: Iterable[str] | None = None) -> list[int]:
        """Add what was delivered, by its keys, and return their hashes.

        ``ids`` is what is before `KEY_END` in each key, where it is at hand.
        """
        keys = list(keys)
        hashes = list(map(hash, keys))
        self._pages.append((list(map(hash, _ids_of(keys) if ids is None else ids)), hashes))
        self._waiting += len(keys)
        if len(self._versions) + self._waiting > self._most:
            self._look_up()
        return hashes

    def leave_out(self) -> None:
        """Note that records came that are not added."""
        self._is_exact = False

    def has(self, key: str) -> bool:
        """Return whether a record came, at any version, among the ids that are held."""
        self._look_up()
        return hash(key.partition(KEY_END)[0]) in self._versions

    @property
    def is_exact(self) -> bool:
        """Whether every record could be distinguished from the others."""
        self._look_up()
        return self._is_exact

    @property
    def has_repeated(self) -> bool:
        """Whether an id came twice."""
        self._look_up()
        return self._has_repeated

    @property
    def records(self) -> int:
        """The number of ids that came."""
        self._look_up()
        return len(self._versions)

    @property
    def versions(self) -> int:
        """The number of versions that came."""
        self._look_up()
        return len(self._versions) + len(self._others)

    def _look_up(self) -> None:
        """Let the records of the waiting pages be found."""
        pages, self._pages, self._waiting = self._pages, [], 0
        records = list(chain.from_iterable(each for each, _ in pages))
        hashes = chain.from_iterable(each for _, each in pages)
        came = dict(zip(records, hashes, strict=True))
        if len(came) == len(records) and self._versions.keys().isdisjoint(records):
            room = self._most - len(self._versions)
            self._is_exact = self._is_exact and len(records) <= room
            self._versions.update(islice(came.items(), max(room, 0)))
            return
        for each in pages:
            self._add_each(*each)

    def _add_each(self, records: list[int], hashes: list[int]) -> None:
        for record, version in zip(records, hashes, strict=True):
            if record in self._versions:
                self._has_repeated = True
                if self._versions[record] == version:
                    continue
                if len(self._others) < self._most:
                    self._others.add(version)
                else:
                    self._is_exact = False
            elif len(self._versions) < self._most:
                self._versions[record] = version
            else:
                self._is_exact = False


@dataclass(frozen=True)
class ListPage:
    """A page, its request, the keys of its items, and their ids where these are at hand."""

    request: PageRequest
    response: PageResponse
    keys: Sequence[str]
    known_ids: list[str] | None = None

    @property
    def ids(self) -> list[str]:
        """The keys of its items without their versions."""
        return _ids_of(self.keys) if self.known_ids is None else self.known_ids

    @property
    def last_id(self) -> str:
        """The key of its last item without the version."""
        return self.keys[-1].partition(KEY_END)[0]

    def follows(self, before: ListPage) -> bool:
        """Return whether it is requested by an id and begins with the next one: it did not shift.

        A cursor that is the number of items that came may be an offset. Where it is an id as well,
        in a list in the order of its ids, no record was between two pages if no id is.
        """
        place = self.request.number
        values = map(str, (*self.request.query.values(), *self.request.body.values()))
        if not self.keys or str(place) not in values:
            return False
        ids = before.last_id, self.ids[0]
        return ids in ((str(place - 1), str(place)), (str(place), str(place + 1)))

    def without(self, known: Iterable[str]) -> PageResponse:
        """Return the page without the known items."""
        known = frozenset(known)
        return self.only([index for index, key in enumerate(self.keys) if key not in known])

    def only(self, indexes: Collection[int]) -> PageResponse:
        """Return the page with the items at these indexes alone."""
        if len(indexes) == len(self.keys):
            return self.response
        items, wanted = self.response.items, frozenset(indexes)
        pairs = enumerate(items.items() if isinstance(items, Mapping) else items)
        left = [each for index, each in pairs if index in wanted]
        return replace(self.response, items=dict(left) if isinstance(items, Mapping) else left)

    def goes_on_in(self, coming: ListPage) -> bool:
        """Return whether a page begins with items pushed off this one, and continues."""
        is_within = {*coming.keys} <= {*self.keys}
        return bool(coming.keys) and coming.keys[0] in self.keys and not is_within

    def holds(self, first: ListPage, ahead: int) -> bool:
        """Return whether it still has its items, except those that ``ahead`` pushed off it."""
        ids = set(self.ids)
        return all(each in ids for each in first.ids[: max(len(self.keys) - ahead, 0)])


def _ids_of(keys: Iterable[str]) -> list[str]:
    return [key.partition(KEY_END)[0] for key in keys]
