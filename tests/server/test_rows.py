"""A read's JSON, which is made without the model."""

from __future__ import annotations

import pytest

from ladon_storage.models import EMPTY_WATERMARK, Watermark, WatermarkStatus
from ladon_storage.server.responses import answer
from ladon_storage.server.rows import to_answer, to_microseconds, to_watermark

EMPTY = to_microseconds(EMPTY_WATERMARK)
LEDGER = '{"pages":2,"größe":1.5,"gap":null,"by":{"a":[1]}}'


@pytest.mark.parametrize(
    "row",
    [
        (
            "kev",
            7,
            1_700_000_000_000_001,
            1_700_000_000_000_000,
            "success",
            None,
            3,
            None,
            None,
            None,
        ),
        ('größe "x"', 1, None, -1, "failed", "a\n\\ \u2028", 0, "run", None, LEDGER),
        ("held", 2**40, EMPTY, 0, "running", None, 0, "run", 90_500_000, None),
        ("both", 3, 0, 0, "running", "", 0, "", 60_000_000, "{}"),
    ],
)
def test_answer_of_a_row_is_that_of_its_model(row: tuple[object, ...]) -> None:
    """A read says byte for byte what the model says, and so what the answer of a write says."""
    watermark = to_watermark(row)
    body, etag = to_answer(row)
    assert body == answer(watermark).body
    assert etag == watermark.etag


def test_watermark_of_a_row_is_that_of_the_checked_model() -> None:
    """A row that is not checked again makes the same watermark as fields that are."""
    row = ("kev", 7, 1, 2, "running", "text", 3, "run", 90_500_000, LEDGER)
    made = to_watermark(row)
    checked = Watermark.tagged('"7"', **{name: made[name] for name in made.keys()})  # noqa: SIM118
    assert (made, made.etag, made.model_fields_set) == (
        checked, checked.etag, checked.model_fields_set
    )  # fmt: skip
    assert isinstance(made.status, WatermarkStatus)
    assert answer(made).body == answer(checked).body
    assert made.model_copy() == made
