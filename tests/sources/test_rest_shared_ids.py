"""Records of an API that differ and have one id: the path of the id leads to something else."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest

from ladon_storage.errors import SourceError
from ladon_storage.sources import RestApi, source_from
from ladon_storage.sources.rest import shared_ids
from ladon_storage.testing.doubles import at
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer


def row(number: int, kind: str, minute: int = 0) -> dict[str, Any]:
    return {"kind": kind, "number": number, "at": at(minute).isoformat()}


async def read(rows: list[Any], size: int, **fields: Any) -> int:
    """Read what an API has in pages of a size, by their kind as the id."""
    pages = [rows[first : first + size] for first in range(0, len(rows), size)]
    async with FeedServer(*map(Answer.of, [*pages, [], [], []])) as feed:
        described = {"kind": "rest", "source_id": "feed", "url": feed.url, "timestamps": ["at"]}
        source = source_from({"id": "kind", "paging": {"kind": "page"}, **described, **fields})
        assert isinstance(source, RestApi)
        return sum([len(page.records) async for page in source.pages(None, None)])


@pytest.mark.parametrize("size", [4, 50])
async def test_id_that_all_records_share_fails(size: int) -> None:
    """Each would replace the one before it, and one record would be left of all."""
    rows = [row(number, "indicator", number // 5) for number in range(23)]

    with pytest.raises(SourceError, match=r"has the same id, at 'kind', in all \d+ records"):
        await read(rows, size)


async def test_few_ids_of_many_records_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """They may be what they are said to be, and nobody knows."""
    assert await read([row(number, "ab"[number % 2]) for number in range(23)], 50) == 23
    assert "has 2 ids, at 'kind', in 23 records that differ" in caplog.text


@pytest.mark.parametrize(
    ("rows", "is_told"),
    [
        ([row(number, "a", number) for number in range(23)], True),
        ([row(number, "abc"[number % 3], number) for number in range(23)], False),
        ([row(0, "a")] * 23, False),
        ([row(number, "a") for number in range(9)], False),
        ([row(number, str(number)) for number in range(23)], False),
    ],
    ids=["versions of one", "versions of three", "one again and again", "few", "each its own"],
)
async def test_versions_and_repetitions_are_no_shared_ids(
    rows: list[Any], is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Versions differ in their times; the same content again is no other record."""
    caplog.set_level(logging.WARNING)

    assert await read(rows, 50, overlap=timedelta(0)) == len(rows)
    assert ("records that differ" in caplog.text) == is_told


@pytest.mark.parametrize("size", [1, 50])
@pytest.mark.parametrize("ids", [(1, "1"), ("-7", 5, -7), (10**30, str(10**30))])
async def test_number_and_text_of_one_id_fail(ids: tuple[Any, ...], size: int) -> None:
    """Both are stored under one id, where one would replace the other."""
    rows = [{"id": each, "at": at(0).isoformat()} for each in ids]
    source: dict[str, Any] = {"kind": "rest", "source_id": "feed", "timestamps": ["at"]}

    def play(asked: Asked) -> Answer:
        first = (int(asked.query["page"]) - 1) * size
        return Answer.of(rows[max(first, 0) : max(first + size, 0)])

    async with FeedServer(play=play) as feed:
        made = source_from({**source, "url": feed.url, "paging": {"kind": "page"}})
        with pytest.raises(
            SourceError, match=r"as the number .* and as the text .* one id. Set id to several"
        ):
            _ = [page async for page in made.pages(None, None)]


async def test_number_and_text_that_are_other_ids_are_read() -> None:
    """Different digits are different ids, and several paths tell the kinds apart."""
    rows = [{"id": each, "at": at(0).isoformat()} for each in (1, "01", "2", 3, "a", None)]
    assert await read(rows, 50, id="id") == 5
    rows = [{"id": each, "at": at(0).isoformat()} for each in (1, "1")]
    assert await read(rows, 50, id=["id", "at"]) == 2


@pytest.mark.parametrize("size", [1, 2, 50])
@pytest.mark.parametrize(
    ("found", "is_told"),
    [((1, 2, 3, "4"), True), (("a", "b", 1, 2, "c", 3), False), (("1", "2", "3", "4"), False)],
    ids=["both", "only numbers have digits", "texts"],
)
async def test_numbers_and_texts_beyond_those_that_are_remembered_are_told(
    found: tuple[Any, ...],
    is_told: bool,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run that cannot compare them all says so, and is not failed for ids that may differ."""
    monkeypatch.setattr(shared_ids, "MOST_DIGITS", 2)
    rows = [{"id": each, "at": at(n).isoformat()} for n, each in enumerate(found)]
    kinds = shared_ids.IdKinds("id")
    for first in range(0, len(rows), size):
        kinds.note_all(rows[first : first + size])
    assert (bool(kinds.doubt), kinds.problem) == (is_told, None)
    assert await read(rows, 50, id="id") == len(rows)
    assert ("may be one id unnoticed" in caplog.text) == is_told
