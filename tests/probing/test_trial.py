"""Trials of a source: a page or two, and what a run would meet."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection.protocols import Limits
from ladon_storage.collection.records import Page, Record
from ladon_storage.errors import ConfigurationError
from ladon_storage.probing import guess, try_source
from ladon_storage.sources import RestApi, source_from
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.probing.api_shapes import COUNT, SHAPES, answer, instant, iso
from tests.probing.asking import (
    ROWS,
    always,
    numbered,
    rows,
    served,
)

TRIED = [
    "github",
    "stripe",
    "slack",
    "graph",
    "okta",
    "nvd",
    "kev",
    "geojson",
    "drf",
    "elasticsearch scroll",
    "taxii",
    "ckan",
    "keyed",
]


@pytest.mark.parametrize("name", TRIED)
async def test_trial_of_a_shape_has_records_and_the_next_request_within_two_seconds(
    name: str,
) -> None:
    """A trial reads a page or two, and tells what a run would do next."""
    shape = SHAPES[name]
    async with served(shape.play) as feed:
        source = (await guess(feed.at(shape.path), **shape.asks)).source()
        before = len(feed.requests)
        trial = await try_source(source, records=3)
        assert trial.ok
        assert trial.error is None
        assert len(feed.requests) - before == len(trial.requests) <= 4
    assert trial.seconds < 2
    assert len(trial.records) == 3
    assert {each.record_id for each in trial.records} <= {*shape.ids}
    assert json.loads(trial.records[0].payload)
    assert trial.is_finished == (trial.next_request is None)
    assert trial.delivered >= (COUNT if trial.is_finished else 19)


def api(feed: FeedServer, **fields: Any) -> RestApi:
    described = {"kind": "rest", "source_id": "feed", "url": feed.at("items"), "records": "items"}
    source = source_from({**described, "timestamps": ["updated_at"], **fields})
    assert isinstance(source, RestApi)
    return source


async def test_trial_tells_the_next_request_and_does_not_make_it() -> None:
    """The request for the third page is known, with its parameters, and not made."""
    async with served(numbered(1, total=COUNT)) as feed:
        trial = await try_source(api(feed, paging={"kind": "page"}, params={"q": "a"}))
        assert not any("page=3" in each for each in feed.requests)
    assert trial.next_request is not None
    assert trial.next_request.url.endswith("/items?q=a&page=3")
    assert trial.paging == "The reading goes on by page numbers in 'page'."
    assert trial.total == COUNT
    assert trial.delivered == 20


async def test_trial_of_one_document_ends_with_it() -> None:
    """What is all there is says how that is known."""
    async with served(always({"items": ROWS})) as feed:
        trial = await try_source(api(feed))
    assert trial.is_finished
    assert trial.completeness == "whole document"
    assert trial.paging == "The reading ends here: one document is all there is."


WARNINGS: dict[str, tuple[list[Any], str]] = {
    "times in the future": (
        rows(id=int, updated_at=lambda n: f"2999-01-{n:02}T00:00:00Z"),
        "All times are in the future",
    ),
    "equal times": (rows(id=int, updated_at=iso(1)), "All 23 times are equal"),
    "shared ids": (
        rows(id=lambda n: n // 2, updated_at=iso(1), value=int),
        "ids belong to several different records",
    ),
    "no times": (rows(id=int), "All 23 items are rejected, most for: updated_at: missing"),
    "some rejects": (
        rows(id=int, updated_at=lambda n: iso(n) if n % 3 else "soon"),
        "7 of 23 items are rejected",
    ),
    "no record": ([], "No record came"),
}


@pytest.mark.parametrize("name", WARNINGS)
async def test_trial_warns_of_what_a_run_would_meet(name: str) -> None:
    """Doubtful times, ids and rejects are said before anything is collected."""
    items, text = WARNINGS[name]
    async with served(always({"items": items})) as feed:
        trial = await try_source(api(feed))
    assert any(text in each for each in trial.warnings), trial.warnings


@pytest.mark.parametrize(
    ("share", "rule"),
    [
        (0.0, "a run fails at the first of them."),
        (0.025, "a run fails where more than 10 are, and more than 2.5% of all."),
        (0.9, None),
    ],
)
async def test_trial_warns_of_rejects_by_the_limits_of_the_run(
    share: float, rule: str | None
) -> None:
    """A share that is declared is the one that the run fails by, and so is the skew."""
    items, _ = WARNINGS["some rejects"]
    limits = Limits(quarantine_share=share, future_skew=timedelta(days=400_000))
    future, _ = WARNINGS["times in the future"]
    async with served(always({"items": items})) as feed:
        trial = await try_source(api(feed), limits=limits)
    found = [each for each in trial.warnings if "are rejected" in each]
    assert found == ([f"7 of 23 items are rejected: {rule}"] if rule else [])
    async with served(always({"items": future})) as feed:
        trial = await try_source(api(feed), limits=limits)
    assert not any("in the future" in each for each in trial.warnings)


async def test_trial_keeps_rejects_with_their_reasons() -> None:
    """What would go into the quarantine is part of the result, as it came."""
    async with served(always({"items": [*ROWS[:4], {"id": 9}, 7]})) as feed:
        trial = await try_source(api(feed))
    assert (trial.delivered, trial.rejected) == (6, 2)
    assert [each.raw for each in trial.rejects] == ['{"id":9}', "7"]
    assert trial.rejects[0].record_id == "9"
    assert "missing" in trial.rejects[0].reason


async def test_trial_warns_of_an_order_that_is_declared_and_wrong() -> None:
    """A source that is declared as ordered, and comes newest first, is said to be."""

    def play(_: str, asked: Asked) -> Answer:
        number = int(asked.query.get("page", 1))
        return answer({"items": ROWS[::-1][number * 10 - 10 : number * 10]})

    async with served(play) as feed:
        trial = await try_source(api(feed, paging={"kind": "page"}, ordered=True))
    assert any("declared as ordered" in each for each in trial.warnings)
    assert any("no total" in each for each in trial.warnings)
    assert any("declared in since" in each for each in trial.warnings)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (answer({}, 503), "answered 503"),
        (answer({}, 429, {"Retry-After": "300"}), "answered 429"),
        (answer({"rows": []}), "does not have a list at 'items'"),
        (Answer(b"<html>"), "is not JSON"),
        (Answer(b"{}", cut_at=1), "cut its answer off"),
    ],
)
async def test_trial_of_a_failing_source_is_a_result_at_once(script: Answer, text: str) -> None:
    """A failure is not waited for and repeated, and the requests tell what was answered."""
    began = time.monotonic()
    async with FeedServer(script) as feed:
        trial = await try_source(api(feed))
    assert text in str(trial.error)
    assert not trial.ok
    assert len(trial.requests) == 1
    assert time.monotonic() - began < 5


async def test_trial_without_its_secret_says_which_one() -> None:
    """A key that is not set is a result that names it."""
    async with served(always({"items": ROWS})) as feed:
        trial = await try_source(api(feed, key="NOT_SET_KEY"))
    assert "NOT_SET_KEY" in str(trial.error)
    assert trial.requests == ()


async def test_trial_of_no_source_is_a_configuration_error() -> None:
    """What describes no source is refused as everywhere."""
    with pytest.raises(ConfigurationError, match="kind should be one of"):
        await try_source({"kind": "kve"})


async def test_trial_of_a_table_ends_after_a_few_pages(tmp_path: Path) -> None:
    """A source that asks no HTTP is tried as well, and not read to its end."""
    with closing(sqlite3.connect(tmp_path / "t.db")) as database, database:
        database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, updated_at TEXT)")
        values = [(number, iso(number)) for number in range(5_000)]
        database.executemany("INSERT INTO t VALUES (?, ?)", values)
    url = f"sqlite:///{tmp_path / 't.db'}"
    trial = await try_source({"kind": "sql", "source_id": "t", "url": url, "table": "t"})
    assert trial.ok
    assert trial.delivered == 3_000
    assert trial.paging == "The reading goes on: there is more than the trial reads."


class Endless:
    """A source of one's own that never ends, and asks no HTTP."""

    source_id = "endless"
    overlap = None

    def __init__(self) -> None:
        self.closed = False

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        try:
            for number in range(10**9):
                yield Page([Record.of(str(number), instant(number), {"n": number})])
        finally:
            self.closed = True


async def test_trial_of_an_own_endless_source_ends_and_closes_it() -> None:
    """A source without HTTP is tried by its pages, and left in order."""
    source = Endless()
    trial = await try_source(source)
    assert trial.ok
    assert trial.kind == "Endless"
    assert not trial.is_finished
    assert source.closed
    assert trial.delivered == 3


async def test_trial_ends_where_the_next_page_does_not_come() -> None:
    """A page that lets wait is not waited for, once another one came."""
    pages: Iterator[Answer] = iter(
        [answer({"items": ROWS[:10], "total": COUNT}), Answer(b"{}", stall_at=1)]
    )
    async with served(lambda _, __: next(pages)) as feed:
        trial = await try_source(api(feed, paging={"kind": "page"}))
    assert trial.error is None
    assert trial.delivered == 10
    assert trial.next_request is not None
    assert trial.next_request.url.endswith("?page=2")
    assert trial.seconds < 2
