"""Records of a large document, which are parsed whenever they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from operator import itemgetter
from typing import Any, overload

from ladon_storage.sources.json.reader import Reader, Run, items_of, runs_of
from ladon_storage.sources.json.spooled import SpooledBody


class Many:
    """Records that are parsed at each reading; two are equal if their bytes are."""

    def __init__(self, body: bytes | SpooledBody, start: int, end: int, count: int) -> None:
        self._body = body
        self._start = start
        self._end = end
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Many) and self._sent() == other._sent()

    def __hash__(self) -> int:
        return hash((self._count, self._end - self._start))

    def digest(self) -> bytes:
        """Return the digest of these records, as they were sent."""
        return blake2b(self._sent(), digest_size=16).digest()

    def runs(self) -> Iterator[Run]:
        """Yield the items and their keys, some at a time, of a few hundred KiB or one by itself."""
        return runs_of(Reader(self._body, self._start))

    def _sent(self) -> memoryview | bytes:
        if isinstance(self._body, SpooledBody):
            return self._body[self._start : self._end]
        return memoryview(self._body)[self._start : self._end]

    def _pairs(self) -> Iterator[tuple[str, Any]]:
        return items_of(Reader(self._body, self._start))


class ManyItems(Many, Sequence[Any]):
    """A list of many records."""

    def __iter__(self) -> Iterator[Any]:
        return map(itemgetter(1), self._pairs())  # which holds no item while it is used

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Return the item at an index, or the items in a range, by reading everything before it."""
        wanted = range(self._count)[index]
        if isinstance(wanted, int):
            return next(islice(self, wanted, None))
        return [item for number, item in enumerate(self) if number in wanted]


class ManyKeyed(Many, Mapping[str, Any]):
    """An object of many records, keyed by their ids."""

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self._pairs())

    def __getitem__(self, key: str) -> Any:
        """Return the value of a key, by reading all: of duplicates the last one counts."""
        found = [item for each, item in self._pairs() if each == key]
        if not found:
            raise KeyError(key)
        return found[-1]

    def items(self) -> Any:
        """Return the keys and records, each read once."""
        return self._pairs()
