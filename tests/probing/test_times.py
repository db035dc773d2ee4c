"""The fields that show how new a record is, found in records alone."""

from __future__ import annotations

import pytest

from ladon_storage.probing.times import find_times


@pytest.mark.parametrize(
    "text",
    ["", "never", "N/A", "?", "0000-00-00 00:00:00", "-0001-11-30 00:00:00", "01/01/0001 00:00:00"],
)
def test_text_that_a_source_reads_as_no_time_is_no_reason_against_its_field(text: str) -> None:
    """Half of the records were never updated, and the others show what the field is."""
    items = [
        {"id": n, "updated": f"2024-01-{n + 1:02} 10:00:00" if n % 2 else text} for n in range(10)
    ]
    found = find_times(items)
    assert (found.paths, found.missing, found.no_time) == (("updated",), 5, ())
