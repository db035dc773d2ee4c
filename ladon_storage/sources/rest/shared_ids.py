"""The checks for different records with one id.

The path of the id may be wrong, or an API has a number and a text of the same digits as ids.

A sink keeps one record of an id, or its versions. If the path is that of a kind or of a state,
hundreds of records silently become one. Versions of a record differ in their times, too, so the
check counts the contents of one id at one time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from ladon_storage.collection.json_values import Number
from ladon_storage.collection.records import Columns, Item, Record
from ladon_storage.sources.json.items import getter, value_at, values_at

_LONGEST_ID = 40

FEWEST = 10
"""The least number of contents from which their ids are judged."""

MOST = 10_000
"""The number of contents of one run that are examined."""

MOST_DIGITS = 100_000
"""The number of ids of digits that are remembered, as numbers or as texts."""


class IdKinds:
    """The ids of digits of a run, each as a number or as a text, which is the same stored id.

    >>> kinds = IdKinds("id")
    >>> _ = [kinds.note({"id": each}) for each in (1, 2, "1")]
    >>> kinds.problem
    "has an id at 'id' as the number 1 and as the text '1'"
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._get = getter(path)
        self._are_numbers: dict[int, bool] = {}
        self._alike: list[list[str]] = []
        """The ids of digits of pages until another kind comes: most runs look none of them up."""
        self._count = 0
        self._kinds: set[bool] = set()
        self._has_more = False
        self.problem: str | None = None

    def note(self, item: object) -> object:
        """Note the id of an item, and return the item."""
        value = self._get(item) if isinstance(item, dict) else value_at(item, self._path)
        if type(value) is str and value[:1] > "9":  # neither a digit of ASCII nor a minus
            return item if not value[0].isdecimal() else self._note(item, value)
        return self._note(item, value)

    def note_all(self, items: Sequence[object]) -> None:
        """Note the ids of items, those that are all texts or all numbers at once."""
        if self._note_alike(items):
            return
        for item in items:
            self.note(item)

    def _note_alike(self, items: Sequence[object]) -> bool:
        """Return whether the ids are noted: all are of the only kind that came so far."""
        if set(map(type, items)) != {dict}:
            return False
        values = values_at(items, self._path)
        kinds = set(map(type, values))
        if len(kinds) != 1 or not kinds <= {str, int}:
            return False
        is_number = kinds == {int}
        texts: list[str] = list(map(str, values)) if is_number else values
        digits = list(filter(str.isdecimal, texts))
        if "\n-" in "\n".join(["", *texts]):
            digits += [each for each in texts if each[:1] == "-" and each[1:].isdecimal()]
        if not digits:
            return True
        if self._kinds | {is_number} != {is_number}:
            return False
        self._kinds.add(is_number)
        if self._count >= MOST_DIGITS and self._alike:
            self._look_up()  # of which some may be the same
        room = MOST_DIGITS - self._count
        self._has_more = self._has_more or len(digits) > room
        if room > 0:
            self._alike.append(digits[:room])
            self._count += min(len(digits), room)
        return True

    def _note(self, item: object, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | str | Number):
            return item
        text = str(value)
        if not text.removeprefix("-").isdecimal():
            return item
        place, is_number = hash(text), not isinstance(value, str)
        self._look_up()
        self._kinds.add(is_number)
        if len(self._are_numbers) < MOST_DIGITS:
            was_number = self._are_numbers.setdefault(place, is_number)
        else:
            self._has_more = self._has_more or place not in self._are_numbers
            was_number = self._are_numbers.get(place, is_number)
        if was_number is not is_number:
            number = text if len(text) <= _LONGEST_ID else f"{text[:_LONGEST_ID]}…"
            self.problem = (
                f"has an id at {self._path!r} as the number {number} and as the text {number!r}"
            )
        return item

    @property
    def doubt(self) -> str | None:
        """The doubt if numbers and texts came, and not all of them could be compared."""
        if self._has_more and len(self._kinds) > 1:
            return (
                f"has ids at {self._path!r} as numbers and as texts of digits, more than "
                f"{MOST_DIGITS:,} together, so a number and a text may be one id unnoticed. Set id "
                "to several paths, whose values keep their kinds, if they are others"
            )
        return None

    def _look_up(self) -> None:
        """Let the ids of earlier pages be found, which are all of the one kind that came."""
        for digits in self._alike:
            self._are_numbers.update(dict.fromkeys(map(hash, digits), *self._kinds))
        self._alike.clear()
        self._count = len(self._are_numbers)


class SharedIds:
    """The ids, times and contents of the first records of a run.

    >>> from datetime import UTC
    >>> moment = datetime(2024, 1, 1, tzinfo=UTC)
    >>> shared = SharedIds("kind")
    >>> _ = list(shared.seen(Record.of("a", moment, {"n": n}) for n in range(20)))
    >>> shared.problem
    "has the same id, at 'kind', in all 20 records, which differ"
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._ids: set[str] = set()
        self._places: set[tuple[str, datetime]] = set()
        self._contents: set[str] = set()
        self._pages: list[tuple[list[str], list[datetime], list[str]]] = []
        """Pages that are read only if their ids are few: those of most sources are not."""
        self._unread = 0

    def seen(self, items: Iterable[Item]) -> Iterator[Item]:
        """Note each record, and yield it."""
        remaining = iter(items)
        # Nothing is examined of any item after them.
        if len(self._contents) < MOST:
            for item in remaining:
                if isinstance(item, Record):
                    self._ids.add(item.record_id)
                    self._places.add((item.record_id, item.timestamp))
                    self._contents.add(item.version)
                yield item
                if len(self._contents) >= MOST:
                    break
        yield from remaining

    def note_all(self, records: Sequence[Record]) -> None:
        """Note the records of a page together."""
        if len(self._contents) + self._unread >= MOST:
            self._read()  # of which some may be the same
        if len(self._contents) + self._unread < MOST and len(records):
            columns = Columns.of(records)
            self._ids.update(columns.ids)
            self._pages.append((columns.ids, columns.timestamps, columns.versions))
            self._unread += len(columns)

    @property
    def problem(self) -> str | None:
        """The problem if all records have one id."""
        if len(self._ids) == 1 and self._share_places:
            count = len(self._contents)
            return f"has the same id, at {self._path!r}, in all {count} records, which differ"
        return None

    @property
    def doubt(self) -> str | None:
        """The doubt if many records share few ids."""
        if self._share_places or (len(self._ids) == 1 and len(self._contents) >= FEWEST):
            return f"has {len(self._ids)} ids, at {self._path!r}, in {len(self._contents)} records"
        return None

    @property
    def _share_places(self) -> bool:
        if 2 * len(self._ids) >= len(self._contents) + self._unread:
            return False  # there are no fewer places, and no more contents
        self._read()
        contents = len(self._contents)
        return contents >= FEWEST and 2 * len(self._places) < contents

    def _read(self) -> None:
        """Add the places and the contents of the pages."""
        for ids, times, versions in self._pages:
            self._places.update(zip(ids, times, strict=True))
            self._contents.update(versions)
        self._pages.clear()
        self._unread = 0
