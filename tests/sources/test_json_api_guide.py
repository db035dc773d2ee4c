"""The examples of the guide to JSON APIs, each against a server of the shape that it is for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ladon_storage import MockStorageClient
from ladon_storage.collection import run
from ladon_storage.project import Project
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.documents import ROOT, blocks
from tests.tables import table

PAGE = ROOT / "docs" / "how-to" / "json-api.md"
HOST = "https://api.example.com/"
SIZE, COUNT = 2, 5
EXAMPLES = [block.text for block in blocks(PAGE) if block.language == "toml"]


def day(number: int) -> str:
    """Return the time of a record."""
    return f"2024-01-{number:02}T00:00:00Z"


def rows(**fields: Callable[[int], Any]) -> list[dict[str, Any]]:
    """Return records with an id and the given fields, each made from the number of its record."""
    return [
        {"id": number, **{name: make(number) for name, make in fields.items()}}
        for number in range(1, COUNT + 1)
    ]


def cut(first: int, items: list[Any], size: int = SIZE) -> list[Any]:
    """Return a page."""
    return items[first : first + size]


def numbered(asked: Asked) -> Answer:
    """Return a page by number, of the size that the service allows at most."""
    items = rows(updated_at=day, time=day)
    page = cut((int(asked.query["page"]) - 1) * SIZE, items)
    if asked.path.endswith("audit"):
        return Answer.of(page)
    assert asked.query["per_page"] == "100"
    return Answer.of({"alerts": page, "meta": {"total": COUNT}})


def skipped(asked: Asked) -> Answer:
    """Return a page by offset."""
    page = cut(int(asked.query["startAt"]), rows(updated=day))
    assert asked.query["maxResults"]
    return Answer.of({"issues": page, "total": COUNT})


def pointed(asked: Asked) -> Answer:
    """Return a page by an opaque cursor."""
    first = ["", "b", "c"].index(asked.query.get("cursor", "")) * SIZE
    following = {2: "b", 4: "c"}.get(first + SIZE)
    messages = cut(first, rows(sent_at=day))
    return Answer.of({"messages": messages, "meta": {"next_cursor": following}})


def after_the_last(asked: Asked) -> Answer:
    """Return the page after an item."""
    first = int(asked.query.get("starting_after", 0))
    data = cut(first, rows(created=lambda number: 1_704_067_200 + number))
    return Answer.of({"data": data, "has_more": first + SIZE < COUNT})


def linked(asked: Asked) -> Answer:
    """Return a page with the address of the next one, in the document and in the header."""
    first = int(asked.query.get("after", 0))
    following = f"{asked.path}?after={first + SIZE}" if first + SIZE < COUNT else None
    if asked.path.endswith("repositories"):
        header = {"Link": f'<{following}>; rel="next"'} if following else {}
        return Answer(json.dumps(cut(first, rows(pushed_at=day))).encode(), headers=header)
    results = cut(first, rows(modified=day))
    return Answer.of({"results": results, "next": following, "count": COUNT})


def searched(asked: Asked) -> Answer:
    """Return a page of a search, from the sort values of the last hit on."""
    assert (asked.method, asked.body["size"]) == ("POST", 100)
    first = asked.body.get("search_after", [0])[0]
    hits = [
        {"_id": f"{each['id']}", "_source": {"@timestamp": each["at"]}, "sort": [each["id"]]}
        for each in cut(first, rows(at=day))
    ]
    return Answer.of({"hits": {"hits": hits}})


def keyed(header: str, value: str) -> Callable[[Asked], Answer]:
    """Return an API that answers only to a key."""

    def play(asked: Asked) -> Answer:
        given = asked.headers.get(header) or asked.query.get(header)
        return Answer.of(rows(updated_at=day)) if given == value else Answer(status=401)

    return play


def ranged(asked: Asked) -> Answer:
    """Return what is in the range, whose end is a day; the first run asks for all there is."""
    assert len(asked.query.get("updated_until", "2024-01-01")) == len("2024-01-01")
    since = asked.query.get("updated_since", "")
    return Answer.of([each for each in rows(updated_at=day) if each["updated_at"] >= since])


def whole(document: Any) -> Callable[[Asked], Answer]:
    """Return an API of one document."""
    return lambda _asked: Answer.of(document)


APIS: dict[str, Callable[[Asked], Answer]] = {
    "earthquakes": whole(
        {"features": rows(properties=lambda number: {"updated": 1_704_067_200_000 + number})}
    ),
    "alerts": numbered,
    "tickets": skipped,
    "messages": pointed,
    "events": after_the_last,
    "indicators": linked,
    "repositories": linked,
    "cases": keyed("Authorization", "Bearer s3cret"),
    "reports": keyed("X-Api-Key", "s3cret"),
    "hosts": keyed("apikey", "s3cret"),
    "logs": searched,
    "incidents": ranged,
    "domains": whole(rows(seen=day)),
    "sightings": whole(
        rows(seen=day, sensor=lambda number: {"name": f"s{number % 2}"}, indicator=str)
    ),
    "lines": whole([{"time": day(number)} for number in range(1, COUNT + 1)]),
    "malware": whole({"families": {f"f{n}": {"updated": day(n)} for n in range(1, COUNT + 1)}}),
    "notices": whole(
        rows(
            changed=lambda number: 1_704_067_200 + number if number % 2 else "01.01.1970 00:00",
            published=lambda number: f"{number:02}.01.2024 12:30",
        )
    ),
    "reputation": whole(rows(updated_at=day, queried_at=day)),
    "blocklist": whole(rows(added=day)),
    "audit": numbered,
}


def names(text: str) -> list[str]:
    """Return the names of an example's sources."""
    return [line[9:-1] for line in text.splitlines() if line.startswith("[sources.")]


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: names(text)[0])
async def test_example_collects_every_record(text: str, tmp_path: Path) -> None:
    """Each source of the guide reads its list to the end, and nothing twice."""

    def play(asked: Asked) -> Answer:
        return APIS[name](asked)

    secrets = dict.fromkeys(("CASES_TOKEN", "REPORTS_KEY", "HOSTS_KEY"), "s3cret")
    async with FeedServer(play=play) as feed:
        file = tmp_path / "ladon.toml"
        sink = f'[sinks.records]\nurl = "sqlite:///{tmp_path}/records.db"\n'
        file.write_text(sink + text.replace(HOST, feed.at("")), encoding="utf-8")
        project = Project.load(file)
        for name in project.sources:
            storage = MockStorageClient()
            with mock.patch.dict(os.environ, secrets):
                first, second = [
                    await run(project.source(name), project.sink("records"), storage, run_id=run_id)
                    for run_id in ("first", "second")
                ]
            assert (first.records_new, first.records_quarantined) == (COUNT, 0), name
            assert second.records_written == 0, name
    assert len(table(tmp_path / "records.db", "record_id")) == COUNT * len(project.sources)


def test_every_kind_of_paging_has_an_example() -> None:
    """No kind of paging is without one, and no API here without its example."""
    text = "\n".join(EXAMPLES)
    for kind in ("page", "offset", "cursor", "next", "link"):
        assert f'paging.kind = "{kind}"' in text
    assert {name for each in EXAMPLES for name in names(each) if "." not in name} == set(APIS)
