"""Where the records are, and which of their fields are times and ids."""

from __future__ import annotations

from typing import Any

import pytest

from ladon_storage.probing import guess
from ladon_storage.testing.feed_server import Answer, Asked
from tests.probing.api_shapes import COUNT, answer, instant, iso, uuid
from tests.probing.asking import (
    ROWS,
    always,
    collected,
    proposed,
    rows,
    served,
)

TIMES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "updated before created": (
        rows(id=int, created_at=iso, updated_at=iso, expires_at="2099-01-01T00:00:00Z"),
        {"timestamps": ["updated_at"]},
    ),
    "another one where it is missing": (
        rows(id=int, created=iso, modified=lambda n: iso(n) if n % 2 else None),
        {"timestamps": ["modified", "created"]},
    ),
    "its own before its author's": (
        rows(id=int, posted=iso, author={"id": 1, "updated_at": iso(1)}),
        {"timestamps": ["posted"]},
    ),
    "seconds": (
        rows(id=int, time=lambda n: int(instant(n).timestamp())),
        {"timestamps": ["time"], "timestamp_format": "seconds"},
    ),
    "milliseconds as text": (
        rows(id=int, time=lambda n: str(int(instant(n).timestamp() * 1000))),
        {"timestamps": ["time"], "timestamp_format": "milliseconds"},
    ),
    "nanoseconds": (
        rows(id=int, timestamp=lambda n: int(instant(n).timestamp()) * 10**9),
        {"timestamps": ["timestamp"], "timestamp_format": "nanoseconds"},
    ),
    "an id as long as a count": (
        rows(id=lambda n: 1_700_000_000 + n, day=lambda n: instant(n).strftime("%Y-%m-%d")),
        {"timestamps": ["day"], "id": "id"},
    ),
    "day before month": (
        rows(id=int, when=lambda n: instant(n).strftime("%d/%m/%Y %H:%M")),
        {"timestamps": ["when"], "timestamp_format": "%d/%m/%Y %H:%M"},
    ),
    "month before day": (
        rows(id=int, when=lambda n: instant(n + 90).strftime("%m/%d/%Y")),
        {"timestamps": ["when"], "timestamp_format": "%m/%d/%Y"},
    ),
    "a zero for none": (
        rows(
            id=int,
            created=lambda n: int(instant(n).timestamp()),
            updated=lambda n: 0 if n % 2 else int(instant(n).timestamp()),
        ),
        {"timestamps": ["updated", "created"], "no_time": [0]},
    ),
    "RFC 2822": (
        rows(id=int, pubDate=lambda n: instant(n).strftime("%a, %d %b %Y %H:%M:%S GMT")),
        {"timestamps": ["pubDate"]},
    ),
}


@pytest.mark.parametrize("name", TIMES)
async def test_time_that_says_how_new_a_record_is_is_chosen(name: str) -> None:
    """Times are found by value and name, in any form; what changes with a record comes first."""
    items, expected = TIMES[name]
    async with served(always(items)) as feed:
        found = await guess(feed.at("items"))
        assert {field: found.settings.get(field) for field in expected} == expected, found.toml
        assert len(await collected(found.source())) == COUNT


IDS: dict[str, tuple[list[dict[str, Any]], str | list[str]]] = {
    "the own one": (rows(user_id=1, uuid=uuid, title="a", at=iso), "uuid"),
    "not the one of something else": (rows(parent_id=int, guid=uuid, at=iso), "guid"),
    "two fields": (
        rows(asn=1, ip=lambda n: f"192.0.2.{n // 2}", port=lambda n: 443 + n % 2, at=iso),
        ["ip", "port"],
    ),
    "versions of one record": (
        rows(id=lambda n: n // 2, name=lambda n: f"n{n}", modified=iso),
        "id",
    ),
    "the number of a version": (
        rows(id=lambda n: n // 2, version=lambda n: n % 2, modified=iso),
        "id",
    ),
    "the own one beside a shared one": (
        rows(id=lambda n: n // 2, event_id=uuid, modified=iso),
        "event_id",
    ),
    "the id of something else": (
        rows(camera_id=lambda n: n // 2, time=iso, plate=lambda n: f"P{n}"),
        ["camera_id", "time"],
    ),
    "a number within a type": (
        rows(type=lambda n: "ab"[n % 2], id=lambda n: n // 2, updated_at=iso),
        ["id", "type"],
    ),
    "a time that differs by chance": (rows(at=iso, value=lambda n: [n]), []),
    "a series": (
        rows(station_id=lambda n: n % 2, at=lambda n: iso(n // 2), value=lambda n: [n]),
        ["station_id", "at"],
    ),
    "a message of Slack": (
        rows(user=lambda n: f"U{n % 4}", ts=lambda n: f"{1_700_000_000 + n}.000100"),
        "ts",
    ),
    "the unique part of an id": (
        rows(id=lambda n: {"time": iso(n), "uniqueQualifier": f"{n}"}, actor={"profileId": 1}),
        "id.uniqueQualifier",
    ),
    "nothing": (rows(at=iso(1), value=lambda n: [n]), []),
}


@pytest.mark.parametrize("name", IDS)
async def test_id_is_what_tells_records_apart(name: str) -> None:
    """An id is unique in what came; where no field is, several are, or the content."""
    items, expected = IDS[name]
    async with served(always({"results": items})) as feed:
        found = await guess(feed.at("items"))
        assert found.settings["id"] == expected, found.toml
        assert len(await collected(found.source())) == COUNT


async def test_records_that_share_an_id_are_an_open_question() -> None:
    """Versions of one record and records of one owner look alike, and the proposal says so."""
    items = rows(id=lambda n: n // 2, name=lambda n: f"n{n}", modified=iso)
    found = await proposed(always({"items": items}))
    assert "and differs" not in found.toml
    assert "whether records that share id (22 of 23) are versions of one" in found.unsure


@pytest.mark.parametrize(
    ("name", "is_open"),
    [("camera_id", True), ("deviceUuid", True), ("id", False), ("event_id", False)],
)
async def test_id_that_may_be_of_something_else_is_an_open_question(
    name: str, is_open: bool
) -> None:
    """Each camera may have one record today, and two tomorrow."""
    ids: dict[str, Any] = {name: uuid}
    found = await proposed(always({"items": rows(**ids, time=iso, plate=uuid)}))
    assert found.settings["id"] == name
    assert (f"whether {name} is unique in all records: it is in these" in found.unsure) == is_open


async def test_ids_that_repeat_on_the_second_page_are_no_ids() -> None:
    """What is unique on one page alone is not taken."""
    items = rows(id=lambda n: n % 10, key=uuid, at=iso(1))
    items = [{**each, "id": index % 10} for index, each in enumerate(items)]

    def play(_: str, asked: Asked) -> Answer:
        first = int(asked.query.get("offset", 0))
        return answer({"items": items[first : first + 10], "offset": 0, "total": COUNT})

    found = await proposed(play)
    assert found.settings["id"] == "key", found.toml


async def test_records_are_the_list_with_times_not_the_longest_one() -> None:
    """What stands beside records may be a longer list; what else has times is named."""
    document = {
        "fields": [{"name": str(number)} for number in range(90)],
        "data": {"rows": ROWS, "archive": ROWS[:4]},
    }
    found = await proposed(always(document))
    assert found.settings["records"] == "data.rows"
    assert any("data.archive (4)" in each for each in found.unsure)


async def test_keyed_objects_are_found_where_they_are() -> None:
    """An object of records has its ids as keys, also below a path."""
    document = {"status": "ok", "data": {f"k{each['id']}": each for each in ROWS}}
    async with served(always(document)) as feed:
        found = await guess(feed.at("items"))
        assert found.settings["records_keyed_by_id"] is True
        assert found.settings["records"] == "data"
        assert len(await collected(found.source())) == COUNT


async def test_one_record_only_is_a_source_with_doubts() -> None:
    """One record shows no uniqueness and no paging, and the proposal says so."""
    found = await proposed(always({"items": ROWS[:1]}))
    assert found.settings["id"] == "id"
    assert any("one record only" in each for each in found.unsure)
