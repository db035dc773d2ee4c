"""The ids and versions of one source in a Delta table, in memory that does not grow with it.

- A source of up to `HELD_ROWS` rows is held as columns. Beyond that the files are queried, but only
  for ids that may exist: a Bloom filter excludes nearly every new id.
- If a row was replaced, both rows may be found; the later one is valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ladon_storage.collection.protocols import Position
from ladon_storage.sinks.delta.table import ManagedTable

INDEX_COLUMNS = ("record_id", "version", "record_timestamp")
ORDER = ("returned_at", "record_timestamp", "collected_at")
"""The order of a record's versions, of which the greatest is current; null is the least."""

VERSION_KEYS = (*INDEX_COLUMNS, "collected_at", "returned_at")
"""The columns of a look-up if all versions are kept."""

HELD_ROWS = 100_000
FILTER_AFTER = 4
"""The number of pages looked up in the files before a filter is worth reading all ids."""

_BATCHES = 256
_BITS = 2**28
_PROBES = 4


class BloomFilter:
    """A Bloom filter of 32 MiB: a text may have been added, or certainly was not.

    With a million texts it is wrong about one new text in 20 millions, with ten million about one
    in 2,700. Each error costs only a look into the files.
    """

    def __init__(self) -> None:
        self._bits = bytearray(_BITS // 8)

    def add(self, texts: Iterable[str]) -> None:
        """Add texts."""
        bits, mask = self._bits, _BITS - 1
        for text in texts:
            place = hash(text)
            step = (place >> 32) | 1
            for _ in range(_PROBES):
                place &= mask
                bits[place >> 3] |= 1 << (place & 7)
                place += step

    def maybe(self, texts: Iterable[str]) -> list[str]:
        """Return the texts that may have been added."""
        bits, mask = self._bits, _BITS - 1
        found = []
        for text in texts:
            place = hash(text)
            step = (place >> 32) | 1
            for _ in range(_PROBES):
                place &= mask
                if not bits[place >> 3] & 1 << (place & 7):
                    break
                place += step
            else:
                found.append(text)
        return found


class SourceIndex:
    """The known ids and versions of a source in a table.

    Args:
        table: The table.
        source_id: The source.
        keys: The columns that are known.
    """

    def __init__(
        self, table: ManagedTable, source_id: str, keys: Sequence[str] = INDEX_COLUMNS
    ) -> None:
        self.number: int | None = None
        """The number of the source's last commit, once it was read: the knowledge is valid as long
        as it is."""
        self.seen_at = table.version
        """The table's version at which this was known to be true."""
        self.numbers: dict[str, int] | None = None
        """The numbers of the position, once they were read."""
        self.position: Position | None = None
        self.is_position_held = True
        """Whether these are the table's last numbers; they are not after it was restored."""
        self.count = 0
        """The number of rows, once ids were looked up."""
        self._marked: set[str] | None = None
        self._table = table
        self._source_id = source_id
        self._keys = keys
        self._held: list[pa.RecordBatch] | None = None
        self._filter: BloomFilter | None = None
        self._pages = 0
        self._rows: int | None = None

    @property
    def is_read(self) -> bool:
        """Whether ids were looked up."""
        return self._rows is not None

    @property
    def marked(self) -> set[str]:
        """The ids that are marked as removed; code that changes marks must update them."""
        if self._marked is None:
            files = [each for each in self._table.files(self._source_id) if each.may_have_marks]
            self._marked = set()
            for batch in self._table.read(files, ("record_id", "removed_at")):
                gone = batch["record_id"].filter(pc.is_valid(batch["removed_at"]))
                self._marked.update(gone.to_pylist())
        return self._marked

    def find(self, ids: Sequence[str]) -> pa.Table:
        """Return the keys of the rows that have one of the ids, the later ones last."""
        if self._rows is None:
            files = self._table.files(self._source_id)
            self._rows = self.count = self._table.count(self._source_id)
            if self._rows <= HELD_ROWS:
                self._held = list(self._table.read(files, self._keys))
        if self._held is not None:
            held = pa.Table.from_batches(self._held, self._table.schema_of(self._keys))
            return held.filter(pc.is_in(held["record_id"], pa.array(ids, pa.string())))
        self._pages += 1
        if self._filter is None and self._pages > FILTER_AFTER:
            self._filter = BloomFilter()
            for batch in self._table.read(self._table.files(self._source_id), INDEX_COLUMNS[:1]):
                self._filter.add(batch["record_id"].to_pylist())
        asked = sorted(self._filter.maybe(ids) if self._filter else ids)
        if not asked:
            return self._table.schema_of(self._keys).empty_table()
        files = self._table.files(self._source_id)
        files = [each for each in files if each.may_hold(asked[0], asked[-1])]
        return self._table.load(files, self._keys, asked)

    def find_places(self, ids: Sequence[str]) -> pa.Table:
        """Return the same with the columns that determine a record's current version.

        Few pages need it, and after the first all later pages do it as cheaply.
        """
        if self._keys != VERSION_KEYS:
            self._keys = VERSION_KEYS
            if self._held is not None:
                self._held = list(
                    self._table.read(self._table.files(self._source_id), VERSION_KEYS)
                )
        return self.find(ids)

    def add(self, rows: pa.Table) -> None:
        """Note rows that were looked up, and are committed now."""
        if self._rows is None:
            return
        keys = rows.select(self._keys)
        self._rows += keys.num_rows
        if self._held is not None:
            self._held += keys.to_batches()
            if len(self._held) > _BATCHES:
                held = pa.Table.from_batches(self._held)
                self._held = held.combine_chunks().to_batches()
            if self._rows <= HELD_ROWS:
                return
            self._filter = BloomFilter()
            while self._held:  # each released at once, so that both are never in memory completely
                self._filter.add(self._held.pop()["record_id"].to_pylist())
            self._held = None
        elif self._filter is not None:
            self._filter.add(keys["record_id"].to_pylist())
