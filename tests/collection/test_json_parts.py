"""The encoding of very large values in parts: the same text, and no long step."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ladon_storage.collection import json_parts
from ladon_storage.collection.json_parts import by_parts
from ladon_storage.collection.json_values import as_anything, parse_json
from ladon_storage.collection.records import Record
from ladon_storage.testing.doubles import at

WIDE = {f"k{n * 7919 % 1000}é\x7f": n / 2 for n in range(1000)}
VALUES = {
    "object": WIDE,
    "list": [*range(1000)],
    "rows": [{"b": n, "a": [n, str(n)]} for n in range(300)],
    "inside": {"z": {"y": [1, {"x": WIDE}, [], {}]}, "a": "b", "": [*range(500)]},
    "tuple": {"a": ("b",) * 500},
    "keys": {str(n) * 2: {"c": None, "b": True} for n in range(400)},
    "texts": ['",:{}[]\\', "\ud800"] * 200,
    "nothing": {"a": {}, "b": [], "c": ""},
}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_parts, "PART_VALUES", 10)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("in_order", [False, True])
def test_text_of_the_parts_is_that_of_the_whole(name: str, in_order: bool) -> None:
    """A stored version is a hash of it."""
    encode = json.JSONEncoder(separators=(",", ":"), sort_keys=in_order).encode
    assert by_parts(encode, in_order=in_order)(VALUES[name]) == encode(VALUES[name])


@pytest.mark.parametrize("name", VALUES)
def test_no_part_has_many_values(name: str) -> None:
    """The interpreter is held for one part at a time."""
    sizes: list[int] = []

    def encode(value: Any) -> str:
        text = json.dumps(value, separators=(",", ":"))
        sizes.append(text.count(",") + text.count("[") + text.count("{"))
        return text

    by_parts(encode)(VALUES[name] if name != "texts" else ["a"] * 400)
    assert max(sizes) <= 2 * json_parts.PART_VALUES


def test_large_record_has_the_version_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With numbers whose digits are kept, and texts that only ``json`` escapes."""
    value = parse_json(json.dumps([WIDE, "\x7f"])[:-1] + ",0.10,1e400]")
    small = Record.of("1", at(1), {"a": value})
    rejected = as_anything(value)
    monkeypatch.setattr(json_parts, "PART_VALUES", 10**6)
    assert Record.of("1", at(1), {"a": value}) == small
    assert as_anything(value) == rejected
