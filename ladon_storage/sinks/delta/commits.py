"""The numbered commits of sources to a Delta table, and what is known of each source.

- A commit has a number within its source: the version that it makes if no other comes first. A
  writer depends on the number before. Cached knowledge of a source is discarded when another writer
  has committed a number, or changed rows without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from ladon_storage.collection.protocols import Position
from ladon_storage.sinks.delta.history import History, rows_name
from ladon_storage.sinks.delta.index import SourceIndex
from ladon_storage.sinks.delta.positions import changed, numbers_of, position_of
from ladon_storage.sinks.delta.rewrite import Action
from ladon_storage.sinks.delta.table import ManagedTable


class SourceCommits:
    """The commits of all sources to the records.

    Args:
        records: The table of records.
        history: The changes of other writers.
    """

    def __init__(self, records: ManagedTable, history: History) -> None:
        self._records = records
        self._history = history
        self._known: dict[str, SourceIndex] = {}

    def forget(self) -> None:
        """Discard what is known of all sources."""
        self._known.clear()

    def commit(
        self,
        source_id: str,
        actions: Sequence[Action],
        position: Mapping[str, int] | None = None,
        *,
        added: int = 0,
    ) -> None:
        """Commit to the records, as the next number of the source."""
        table, known = self._records, self.known_of(source_id)
        before = table.version
        self.position_of(source_id)
        held = known.numbers or {}
        numbers = {**held, **(position or {})}
        # A position from before the restoration would be valid again with this number.
        names = changed(numbers, held) if known.is_position_held else dict(numbers)
        number = names[page_name(source_id)] = self._history.numbered(before)
        if known.is_read:
            names[rows_name(source_id)] = known.count + added
        try:
            table.commit(actions, names)
        except CommitFailedError:
            if not self._is_there(source_id, actions):
                raise
        known.number, known.count = number, known.count + added
        if position is not None:
            known.position = position_of(numbers.get, source_id)
        known.numbers, known.is_position_held = numbers, True
        if table.version == before + 1:  # else another writer may have committed since
            known.seen_at = table.version
            self._history.skip()

    def _is_there(self, source_id: str, actions: Sequence[Action]) -> bool:
        """Return whether the commit that refused this one is itself, repeated by the library.

        An object storage may keep a commit and lose its answer.
        """
        self._records.refresh()
        written = {each.path for each in actions if isinstance(each, AddAction)}
        return any(each.path in written for each in self._records.files(source_id))

    def known_of(self, source_id: str) -> SourceIndex:
        """Return what is known of a source, read again if it may be outdated."""
        table, known = self._records, self._known.get(source_id)
        if known is not None and known.seen_at != table.version:
            if known.number is not None and known.number == self.number_of(source_id):
                known.seen_at = table.version
            else:
                known = None
        if known is None:
            known = self._known[source_id] = SourceIndex(table, source_id)
        return known

    def number_of(self, source_id: str) -> int:
        """Return the number of a source's last commit; 0: there is none."""
        return self._records.transaction(page_name(source_id)) or 0

    def position_of(self, source_id: str) -> Position | None:
        """Return the stored position of a source, if it is valid."""
        known = self.known_of(source_id)
        if known.numbers is None:
            look_up, known.is_position_held = self._history.position_numbers(page_name(source_id))
            if self._history.has_lost_rows(source_id):
                known.position, known.is_position_held = None, False
            else:
                known.position = position_of(look_up, source_id)
            known.numbers = numbers_of(known.position, source_id)
        return known.position


def page_name(source_id: str) -> str:
    """Return the name of the number of a source's commits."""
    # The kind comes first: a source may have any name.
    return f"ladon-page:{source_id}"
