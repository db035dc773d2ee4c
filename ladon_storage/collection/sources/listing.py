"""A list by its pages, as a walk asks for them: what it needs of the API, and of a page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ladon_storage.collection.sources.paging import Got, Paging, Step
from ladon_storage.errors import SourceError

KEY_END = "\0"
"""What is behind the id in a key, before what tells its version."""


class Api(Protocol):
    """What a walk asks of the source that it goes through."""

    @property
    def source_id(self) -> str:
        """The stable name."""
        ...

    @property
    def paging(self) -> Paging:
        """How one page leads to the next."""
        ...

    @property
    def records(self) -> str:
        """The path of the items."""
        ...

    async def page(self, step: Step, *, accept: Collection[int], may_be_empty: bool) -> Got:
        """Return a page; one with a status of ``accept``, or an empty body, has no items."""
        ...

    async def keys(self, items: Any) -> list[str]:
        """Return what tells each item at its version from others: its id, `KEY_END`, its times."""
        ...

    def is_round(self, count: int) -> bool:
        """Tell whether just so many items came as a parameter asks for at most."""
        ...

    def refusal(self, got: Got) -> SourceError:
        """Return the error that says that the status of an answer is none to go on from."""
        ...

    def error(self, problem: str, *, transient: bool = False) -> SourceError:
        """Return the error that says what is wrong with the API."""
        ...


class MovedError(Exception):
    """The list changed so that something may have been skipped."""


@dataclass(frozen=True)
class ListPage:
    """A page, how it was asked for, and what tells its items."""

    step: Step
    got: Got
    keys: Sequence[str]

    @property
    def ids(self) -> list[str]:
        """What tells its items, whatever their version."""
        return [key.partition(KEY_END)[0] for key in self.keys]

    def without(self, known: Iterable[str]) -> Got:
        """Return it without the items that are known."""
        known = frozenset(known)
        return self.only([index for index, key in enumerate(self.keys) if key not in known])

    def only(self, indexes: Collection[int]) -> Got:
        """Return it with the items at these indexes alone."""
        if len(indexes) == len(self.keys):
            return self.got
        items, wanted = self.got.items, frozenset(indexes)
        pairs = enumerate(items.items() if isinstance(items, Mapping) else items)
        left = [each for index, each in pairs if index in wanted]
        return replace(self.got, items=dict(left) if isinstance(items, Mapping) else left)

    def goes_on_in(self, coming: ListPage) -> bool:
        """Tell whether a page begins with what was pushed there from this one, and goes on."""
        is_within = {*coming.keys} <= {*self.keys}
        return bool(coming.keys) and coming.keys[0] in self.keys and not is_within

    def holds(self, first: ListPage, ahead: int) -> bool:
        """Tell whether it still has what it had, but for what items ``ahead`` pushed off it."""
        ids = set(self.ids)
        return all(each in ids for each in first.ids[: max(len(self.keys) - ahead, 0)])
