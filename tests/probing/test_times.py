"""The fields that show how new a record is, found in records alone."""

from __future__ import annotations

from typing import Any

import pytest

from ladon_storage.probing.times import find_times
from tests.probing.api_shapes import iso
from tests.probing.asking import always, proposed, rows


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


@pytest.mark.parametrize(
    ("parameter", "changing", "is_open"),
    [
        ("created_after", "updated_at", True),
        ("created[gte]", "updated_at", True),
        ("updated_after", "updated_at", False),
        ("since", "updated_at", False),
        ("created_after", "created_at", False),
    ],
)
async def test_start_by_the_creation_of_records_that_change_is_an_open_question(
    parameter: str, changing: str, is_open: bool
) -> None:
    """An update of a record that was made before the start might never be collected."""
    times: dict[str, Any] = {"created_at": iso, changing: iso}
    found = await proposed(always(rows(id=int, **times)), f"items?{parameter}=2024-01-01")
    assert found.settings["since"]["parameter"] == parameter
    question = f"whether {parameter} also finds a record whose {changing} changed: "
    assert any(each.startswith(question) for each in found.unsure) == is_open
