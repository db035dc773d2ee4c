"""The contract of sinks, put together of its parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from ladon_storage.collection.protocols import Sink
from ladon_storage.testing.contracts.sink_counts import CountRules
from ladon_storage.testing.contracts.sink_crashes import CrashRules
from ladon_storage.testing.contracts.sink_lookups import LookupRules
from ladon_storage.testing.contracts.sink_positions import PositionRules
from ladon_storage.testing.contracts.sink_records import QuarantineRules, RecordRules
from ladon_storage.testing.contracts.sink_removal import RemovalRules
from ladon_storage.testing.contracts.sink_reversions import ReversionRules
from ladon_storage.testing.contracts.sink_rivals import RivalRules
from ladon_storage.testing.places import SinkPlace


class SinkContract(
    RecordRules,
    QuarantineRules,
    PositionRules,
    RemovalRules,
    ReversionRules,
    LookupRules,
    CountRules,
    CrashRules,
    RivalRules,
):
    """What the engine relies on of a sink, as tests of pytest.

    Derive a test class, and return an empty place from `new_place`. The tests of what a sink need
    not support (positions, removal, reversion, lookup, counts) are skipped where it has not the
    methods.

    The example is a whole test module:

    .. code-block:: python

        class TestMySink(SinkContract):
            def new_place(self, folder: Path) -> SinkPlace:
                file = folder / "records.db"
                return SinkPlace(lambda: MySink(file), lambda: rows_of(file), keep="latest")
    """

    def new_place(self, folder: Path) -> SinkPlace:
        """Return an empty place; its files may be in ``folder``."""
        raise NotImplementedError(f"{type(self).__name__} needs a method new_place(folder)")

    @pytest.fixture
    def place(self, tmp_path: Path) -> SinkPlace:
        """Return the empty place of a test; override it where a place needs fixtures."""
        return self.new_place(tmp_path)

    def test_sink_has_the_methods_of_a_sink(self, place: SinkPlace) -> None:
        """It can be entered and left, and written to."""
        assert isinstance(place.make(), Sink)
