"""The contracts find what breaks them: each rule, with a sink or a source that breaks it."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Set
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ladon_storage.collection import Page, Position, Record, Reject
from ladon_storage.errors import SourceError
from ladon_storage.testing import (
    Answer,
    Asked,
    SinkContract,
    SinkPlace,
    SinkRow,
    SourceContract,
    SourceFeed,
    crashes,
)
from ladon_storage.testing.contracts import sources
from ladon_storage.testing.contracts.sink_records import Written, is_beyond
from ladon_storage.testing.contracts.source_answers import BROKEN
from ladon_storage.testing.contracts.sources import EAST, WEST
from tests.documents import ROOT
from tests.sinks import own_sink
from tests.sinks.own_sink import OwnSink
from tests.tables import refusing


def place_of(folder: Path, kind: type[OwnSink]) -> SinkPlace:
    """Return a place of a sink of one's own."""
    path = folder / "own.db"

    def ask(statement: str) -> list[Any]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(statement).fetchall()

    def read() -> list[SinkRow]:
        return [
            SinkRow(source, record_id, version, datetime.fromisoformat(at), json.loads(payload))
            for source, record_id, version, at, payload in ask(
                "SELECT source, id, version, at, payload FROM record"
            )
        ]

    return SinkPlace(lambda: kind(str(path)), read, unwritable=lambda: refusing(ask, "record"))


class TornSink(OwnSink):
    """A sink that commits each record by itself."""

    def _insert(self, source_id: str, each: Record) -> bool:
        stored = super()._insert(source_id, each)
        self._opened().execute("COMMIT")
        self._opened().execute("BEGIN IMMEDIATE")
        return stored


class RepeatingSink(OwnSink):
    """A sink that remembers in memory what it has, and so repeats it after a kill."""

    def _open(self) -> sqlite3.Connection:
        self.known: set[tuple[str, str, str]] = set()
        connection = super()._open()
        connection.execute("CREATE TABLE IF NOT EXISTS appended (source, id, version, at, payload)")
        return connection

    def _insert(self, source_id: str, each: Record) -> bool:
        key = (source_id, each.record_id, each.version)
        row = (*key, each.timestamp.isoformat(), each.payload)
        self._opened().execute("INSERT INTO appended VALUES (?, ?, ?, ?, ?)", row)
        return super()._insert(source_id, each)


def appended_place(folder: Path, kind: type[OwnSink] = RepeatingSink) -> SinkPlace:
    """Return the place of a sink that appends."""
    place = place_of(folder, kind)

    def read() -> list[SinkRow]:
        with closing(sqlite3.connect(folder / "own.db")) as connection:
            rows = connection.execute("SELECT source, id, version, at, payload FROM appended")
            return [
                SinkRow(source, record_id, version, datetime.fromisoformat(at), json.loads(payload))
                for source, record_id, version, at, payload in rows
            ]

    return SinkPlace(place.make, read)


class ForgetfulSink(OwnSink):
    """A sink that writes its position before its records."""

    def _write(self, source_id: str, page: Page, run_id: str, position: Position | None) -> Any:
        super()._write(source_id, Page(), run_id, position)
        return super()._write(source_id, page, run_id, None)


class RacingSink(OwnSink):
    """A sink that looks for what it has, and then appends the others: no key, and no lock."""

    def _open(self) -> sqlite3.Connection:
        connection = super()._open()
        connection.execute("CREATE TABLE IF NOT EXISTS appended (source, id, version, at, payload)")
        return connection

    def _write(self, source_id: str, page: Page, run_id: str, position: Position | None) -> Any:
        known = set(self._opened().execute("SELECT id, version FROM appended"))
        new = [each for each in page.records if (each.record_id, each.version) not in known]
        self._opened().executemany(
            "INSERT INTO appended VALUES (?, ?, ?, ?, ?)",
            [(source_id, *columns_of(each)) for each in new],
        )
        return len(new)


def columns_of(record: Record) -> tuple[str, ...]:
    """Return the columns of a record."""
    return record.record_id, record.version, record.timestamp.isoformat(), record.payload


class IdSink(OwnSink):
    """A sink that knows a record by its id alone."""

    def _insert(self, source_id: str, each: Record) -> bool:
        known = "SELECT 1 FROM record WHERE source = ? AND id = ?"
        if self._opened().execute(known, (source_id, each.record_id)).fetchone():
            return False
        return super()._insert(source_id, each)


class FoldingSink(OwnSink):
    """A sink that compares ids without case and spaces at their end, as many collations do."""

    def _insert(self, source_id: str, each: Record) -> bool:
        alike = "SELECT 1 FROM record WHERE source = ? AND lower(rtrim(id)) = lower(rtrim(?))"
        if self._opened().execute(alike, (source_id, each.record_id)).fetchone():
            return False
        return super()._insert(source_id, each)


class BatchSink(OwnSink):
    """A sink that does not look at how many records its database took."""

    def _write(self, source_id: str, page: Page, run_id: str, position: Position | None) -> Any:
        taken = Page(page.records[:1_000], page.rejects)
        return super()._write(source_id, taken, run_id, position)


class SilentSink(OwnSink):
    """A sink that takes an error of its database for nothing new."""

    async def write(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().write(*arguments, **options)
        except Exception:
            return 0


class RefusedSink(OwnSink):
    """A sink that takes a refusal of its database for nothing new, and no other error."""

    async def write(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().write(*arguments, **options)
        except sqlite3.DatabaseError:
            return 0


class HastySink(OwnSink):
    """A sink that knows a record before it is durable."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.known = set[tuple[str, str]]()

    def _write(self, source_id: str, page: Page, run_id: str, position: Position | None) -> Any:
        fresh = [each for each in page.records if (each.record_id, each.version) not in self.known]
        self.known = {(each.record_id, each.version) for each in page.records}
        return super()._write(source_id, Page(fresh), run_id, position)


class RoundingSink(OwnSink):
    """A sink that keeps 15 digits of a number."""

    def _insert(self, source_id: str, each: Record) -> bool:
        rounded = json.dumps(
            json.loads(each.payload, parse_float=lambda n: float(f"{float(n):.15g}"))
        )
        made = Record(each.record_id, each.timestamp, rounded, each.version)
        return super()._insert(source_id, made)


class DoubleSink(OwnSink):
    """A sink that keeps what Python makes of JSON."""

    def _insert(self, source_id: str, each: Record) -> bool:
        parsed = json.dumps(json.loads(each.payload))
        return super()._insert(source_id, replace(each, payload=parsed))


class ShortSink(OwnSink):
    """A sink that cuts ids."""

    def _insert(self, source_id: str, each: Record) -> bool:
        made = Record(each.record_id[:1_000], each.timestamp, each.payload, each.version)
        return super()._insert(source_id, made)


class ShortSourceSink(OwnSink):
    """A sink that cuts names of sources."""

    def _insert(self, source_id: str, each: Record) -> bool:
        return super()._insert(source_id[:64], each)


class FoldingSourceSink(OwnSink):
    """A sink that compares names of sources without case."""

    def _insert(self, source_id: str, each: Record) -> bool:
        return super()._insert(source_id.lower(), each)


class CuttingSink(OwnSink):
    """A sink that keeps seconds."""

    def _insert(self, source_id: str, each: Record) -> bool:
        cut = each.timestamp.replace(microsecond=0)
        return super()._insert(source_id, Record(each.record_id, cut, each.payload, each.version))


class RemovingSink(OwnSink):
    """A sink that takes 29 of 100 for more than 29 %."""

    async def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        rows = self._opened().execute("SELECT DISTINCT id FROM record").fetchall()
        missing = {record_id for (record_id,) in rows} - listed_ids
        if len(missing) > max_share * len(rows):
            raise SourceError("too many", source_id)
        return len(missing)


def fails(test: Callable[..., Any], *arguments: Any) -> None:
    """Check that a test of a contract fails."""
    with pytest.raises((AssertionError, SourceError, pytest.fail.Exception)):
        test(*arguments)


def test_sink_whose_page_can_be_torn_fails_at_some_line(tmp_path: Path) -> None:
    """A kill in the middle of a page leaves a part of it."""
    rule = SinkContract().test_sink_that_is_killed_at_any_line_loses_and_repeats_nothing
    fails(rule, place_of(tmp_path, TornSink), tmp_path)


def test_installed_sink_whose_page_can_be_torn_fails_at_some_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines are counted where packages are installed, and its tests may be there as well."""
    monkeypatch.setattr(crashes, "_INSTALLED", (*crashes._INSTALLED, f"{ROOT}{os.sep}"))
    rule = SinkContract().test_sink_that_is_killed_at_any_line_loses_and_repeats_nothing
    fails(rule, place_of(tmp_path, TornSink), tmp_path)


def test_sink_without_a_line_to_be_killed_at_fails_in_one_sentence(tmp_path: Path) -> None:
    """It has no file of Python, as one that is compiled: that it passed would say nothing."""
    names: dict[str, Any] = {"__name__": "compiled"}
    exec(compile(inspect.getsource(own_sink), "<compiled>", "exec"), names)
    rule = SinkContract().test_sink_that_is_killed_at_any_line_loses_and_repeats_nothing
    with pytest.raises(pytest.fail.Exception, match="No line of the package of OwnSink"):
        rule(place_of(tmp_path, names["OwnSink"]), tmp_path)


def test_sink_that_repeats_after_a_kill_fails(tmp_path: Path) -> None:
    """What it holds in memory alone is gone with the process."""
    contract = SinkContract()
    fails(contract.test_sink_that_is_killed_at_any_line_loses_and_repeats_nothing,
          appended_place(tmp_path), tmp_path)  # fmt: skip


def test_sink_that_looks_and_then_appends_fails(tmp_path: Path) -> None:
    """Without a wait in between, two runs of one event loop do not show it; two processes do."""
    rule = SinkContract().test_page_of_another_process_between_two_lines_of_a_write_is_known
    with pytest.raises(AssertionError, match="twice"):
        rule(appended_place(tmp_path, RacingSink), tmp_path)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (IdSink, "test_versions_are_kept_by_the_rule_of_the_place"),
        (FoldingSink, "test_ids_that_look_alike_are_different_records"),
        (BatchSink, "test_page_may_have_many_records"),
        (SilentSink, "test_write_that_returns_has_stored_its_page"),
        (RefusedSink, "test_write_that_the_place_refuses_is_an_error"),
        (HastySink, "test_write_that_the_place_refuses_is_an_error"),
        (HastySink, "test_page_that_failed_can_be_written_again"),
        (RoundingSink, "test_row_has_what_the_source_gave"),
        (DoubleSink, "test_row_has_what_the_source_gave"),
        (ShortSourceSink, "test_sources_whose_names_look_alike_are_different"),
        (FoldingSourceSink, "test_sources_whose_names_look_alike_are_different"),
        (CuttingSink, "test_instants_keep_their_microseconds_and_far_years"),
        (ForgetfulSink, "test_page_that_fails_leaves_nothing_and_can_be_written_again"),
        (RemovingSink, "test_share_that_may_be_removed_is_not_a_matter_of_rounding"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_sink_that_breaks_a_rule_fails_its_test(
    kind: type[OwnSink], rule: str, tmp_path: Path
) -> None:
    """The test of that rule, and not only one that happens to need it."""
    place = place_of(tmp_path, kind)
    arguments: list[Any] = [place]
    if rule == "test_versions_are_kept_by_the_rule_of_the_place":
        arguments += [[[("1", 1, "a")], [("1", 1, "b")]], "b"]
    fails(getattr(SinkContract(), rule), *arguments)


def test_sink_that_cuts_digits_is_told_so(tmp_path: Path) -> None:
    """The test shows the number that is there, and says what to store."""
    contract: Any = SinkContract()
    with pytest.raises(AssertionError, match=r"1\.2345678901234568e\+16 in the sink.*the text"):
        contract.test_row_has_what_the_source_gave(place_of(tmp_path, DoubleSink))


@pytest.mark.parametrize(
    ("found", "is_right"),
    [
        (Decimal("12345678901234567.890"), True),  # as a numeric type of a database
        (1.2345678901234568e16, True),  # whose parser has no more digits
        (Written("12345678901234567.8"), False),
        (12345678901234568, False),
    ],
)
def test_number_beyond_a_double_is_compared_by_its_value(found: Any, is_right: bool) -> None:
    """As exactly as the parser that a test reads its place with."""
    assert is_beyond(found) is is_right


def test_sink_that_cuts_long_ids_fails(tmp_path: Path) -> None:
    """A column that cuts makes one record of two."""
    rule = SinkContract().test_long_ids_are_stored_whole_or_refused
    fails(rule, place_of(tmp_path, ShortSink), 2_000)


class RefusingSink(OwnSink):
    """A sink that refuses what is too long for it, and is over after a failed write."""

    is_over = False

    async def write(self, source_id: str, page: Page, **options: Any) -> Any:
        if self.is_over or len(source_id) > 250:
            raise OSError("the name is too long")
        self.is_over = True
        for each in page.records:
            if len(each.record_id) > 300:
                raise OSError("the id is too long")
        result = await super().write(source_id, page, **options)
        self.is_over = False
        return result


def test_sink_that_refuses_what_it_cannot_store_keeps_the_contract(tmp_path: Path) -> None:
    """An error loses nothing, and the next sink of the place stores the page."""
    contract: Any = SinkContract()
    contract.test_long_ids_are_stored_whole_or_refused(place_of(tmp_path, RefusingSink), 2_000)
    for rule in (
        "test_sources_whose_names_look_alike_are_different",
        "test_page_that_failed_can_be_written_again",
        "test_write_that_the_place_refuses_is_an_error",
    ):
        folder = tmp_path / rule
        folder.mkdir()
        getattr(contract, rule)(place_of(folder, RefusingSink))


def test_place_that_does_not_become_unwritable_fails(tmp_path: Path) -> None:
    """A write that nothing refused would show nothing."""

    @contextmanager
    def broken() -> Iterator[None]:
        raise OSError("no such table")
        yield

    place = replace(place_of(tmp_path, OwnSink), unwritable=broken)
    fails(SinkContract().test_write_that_the_place_refuses_is_an_error, place)


class Tickets:
    """A source of one's own over HTTP, as the contract wants it."""

    overlap: timedelta | None = timedelta(minutes=5)
    source_id = "tickets"

    def __init__(self, url: str) -> None:
        self._url = url

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        page = Page()
        for item in await self.fetch():
            try:
                time = datetime.fromisoformat(item["updated_at"])
                record = Record.of(item["id"], time, item)
            except KeyError as error:
                page.rejects.append(Reject.of(f"no {error}", item))
                continue
            if self.takes(record, start, until):
                page.records.append(record)
        yield page

    async def fetch(self) -> list[Any]:
        async with (
            aiohttp.ClientSession(raise_for_status=True) as session,
            session.get(self._url) as response,
        ):
            items = await response.json(content_type=None)
        if not isinstance(items, list):
            raise TypeError("no list")
        return items

    def takes(self, record: Record, start: datetime | None, until: datetime | None) -> bool:
        return (not start or record.timestamp >= start) and (not until or record.timestamp < until)


class TestTickets(SourceContract):
    """A right source of one's own keeps the contract."""

    kind: type[Any] = Tickets

    def new_source(self, feed: SourceFeed) -> Any:
        return self.kind(feed.url)

    def item(self, record_id: str, time: datetime, value: str) -> object:
        return {"id": record_id, "updated_at": time.isoformat(), "title": value}


class AfterStart(Tickets):
    """It leaves out what ties with the start."""

    def takes(self, record: Record, start: datetime | None, until: datetime | None) -> bool:
        return (not start or record.timestamp > start) and (not until or record.timestamp < until)


class Lenient(Tickets):
    """It takes a broken answer for an empty list."""

    async def fetch(self) -> list[Any]:
        try:
            return await super().fetch()
        except Exception:
            return []


class Renamed(Tickets):
    """Its name is another one each time."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.source_id = f"tickets-{id(self)}"


class Dated(Tickets):
    """Its content has the time of its reading."""

    async def fetch(self) -> list[Any]:
        items = await super().fetch()
        read_at = asyncio.get_running_loop().time()
        return [{**each, "read_at": read_at} for each in items]


class Ordered(Tickets):
    """It declares an order that it does not have."""

    ordered = True

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        async for page in super().pages(start, until):
            for each in page.records:
                yield Page([each])


class Strict(Tickets):
    """It ends at an item that it cannot use."""

    async def fetch(self) -> list[Any]:
        return [{"id": each["id"], **each} for each in await super().fetch()]


class Snapshot(Tickets):
    """It says that it is read whole, and is not."""

    overlap = None


class Zoned(Tickets):
    """It reads the local time of its items as UTC."""

    async def fetch(self) -> list[Any]:
        items = await super().fetch()
        return [
            {**each, "updated_at": each["updated_at"][:16]} if "id" in each else each
            for each in items
        ]


class Local(Tickets):
    """It makes the local time of this machine of its items' time, which the engine reads as UTC."""

    async def fetch(self) -> list[Any]:
        items = [dict(each) for each in await super().fetch()]
        for each in items:
            time = datetime.fromisoformat(each["updated_at"]).astimezone()
            each["updated_at"] = time.replace(tzinfo=None).isoformat()
        return items


class LocalStart(Tickets):
    """It asks for a range in the local time of this machine, of an API that reads it as UTC."""

    def takes(self, record: Record, start: datetime | None, until: datetime | None) -> bool:
        return super().takes(record, as_asked(start), as_asked(until))


def as_asked(instant: datetime | None) -> datetime | None:
    """Return what an API in UTC makes of the local time of an instant."""
    return instant and instant.astimezone().replace(tzinfo=UTC)


class RoundedUp(Tickets):
    """It makes whole seconds of its items' times, which are later."""

    async def fetch(self) -> list[Any]:
        items = [dict(each) for each in await super().fetch()]
        for each in items:
            if "updated_at" in each:
                each["updated_at"] = up(datetime.fromisoformat(each["updated_at"])).isoformat()
        return items


class RoundedUpStart(Tickets):
    """It asks for a range from the next whole second on."""

    def takes(self, record: Record, start: datetime | None, until: datetime | None) -> bool:
        return super().takes(record, start and up(start), until)


def up(instant: datetime) -> datetime:
    """Return the next whole second."""
    return instant.replace(microsecond=0) + timedelta(seconds=bool(instant.microsecond))


class Paged(Tickets):
    """It asks for pages until one has no rows, and takes an answer without rows for such a page."""

    async def fetch(self) -> list[Any]:
        items: list[Any] = []
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            while True:
                query = {"offset": len(items)}
                async with session.get(self._url, params=query) as response:
                    document = await response.json(content_type=None)
                rows = document.get("rows", []) if items else document["rows"]
                if not rows:
                    return items
                items += rows


class PagesOfTickets(TestTickets):
    """An API with pages, of which the first two have rows."""

    kind = Paged

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        offset = int(request.query.get("offset", 0))
        return Answer.of({"rows": items[offset : offset + 5]})


class Salted(Tickets):
    """Its versions are Python's hashes of its content."""

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        async for page in super().pages(start, until):
            made = [replace(each, version=f"{hash(each.payload)}") for each in page.records]
            yield Page(made, page.rejects)


class SaltedTickets(TestTickets):
    """Another process makes the class by its name."""

    kind = Salted


class Objects(Tickets):
    """It leaves out what is no object."""

    async def fetch(self) -> list[Any]:
        return [each for each in await super().fetch() if isinstance(each, dict)]


class Ending(Tickets):
    """It asks for pages as long as there are more, and takes some other answers for the end.

    ``ends`` returns whether an answer is one of those.
    """

    @staticmethod
    def ends(status: int, body: bytes) -> bool:
        return False

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        async with aiohttp.ClientSession() as session:
            for number in itertools.count():
                get = session.get(self._url, params={"page": number}, allow_redirects=False)
                async with get as response:
                    body = await response.read()
                if self.ends(response.status, body):
                    return
                if response.status != 200:
                    raise OSError(response.status)
                document = json.loads(body)
                page = Page()
                for item in document["rows"]:
                    try:
                        time = datetime.fromisoformat(item["updated_at"])
                        page.records.append(Record.of(item["id"], time, item))
                    except (KeyError, TypeError, ValueError) as error:
                        page.rejects.append(Reject.of(error, item))
                yield page
                if not self.goes_on(document, page):
                    return

    def goes_on(self, document: Any, page: Page) -> bool:
        return bool(document["more"])


class EmptyPage(Ending):
    """It ends at a page of which it can use nothing."""

    def goes_on(self, document: Any, page: Page) -> bool:
        return bool(document["more"] and page.records)


class EndingTickets(TestTickets):
    """An API that says whether there are more pages."""

    kind = Ending

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        first = 2 * int(request.query["page"])
        return Answer.of({"rows": items[first : first + 2], "more": first + 2 < len(items)})


class MissingTickets(EndingTickets):
    """An API that answers a page beyond its last one with 404, and says nothing of more pages."""

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        first = 2 * int(request.query["page"])
        if first and first >= len(items):
            return Answer(b"", 404)
        return Answer.of({"rows": items[first : first + 2], "more": True})


ENDS: dict[str, Callable[[int, bytes], bool]] = {
    "an empty body": lambda _, body: not body,
    "too many requests": lambda status, _: status == 429,
    "a redirect to sign in": lambda status, _: status == 302,
    "not found": lambda status, _: status == 404,
    "a list that is null": lambda _, body: b'"rows": null' in body,
}
"""Answers that a source may take for its end."""


def ending(kind: str, api: type[Any] = EndingTickets) -> Any:
    """Return the contract of a source that takes answers of a kind for its end."""
    contract: Any = api()
    contract.kind = type("Ending", (Ending,), {"ends": staticmethod(ENDS[kind])})
    return contract


@pytest.mark.parametrize("kind", ENDS)
def test_source_that_takes_any_broken_answer_for_its_end_fails(kind: str) -> None:
    """As the only answer, and as that of a later page."""
    contract = ending(kind)
    contract.test_every_item_is_read()
    fails(contract.test_broken_answer_is_an_error, kind)
    fails(contract.test_broken_answer_in_the_middle_is_an_error, kind)


def test_source_that_raises_at_broken_answers_keeps_the_contract() -> None:
    """Each of them, as the only answer and as that of a later page."""
    contract: Any = EndingTickets()
    for kind in BROKEN:
        contract.test_broken_answer_is_an_error(kind)
        contract.test_broken_answer_in_the_middle_is_an_error(kind)
    contract.test_page_without_a_usable_item_is_no_end()


def test_source_may_end_at_what_its_api_ends_with() -> None:
    """An API that answers so itself, as the test plays it, or as the test says."""
    missing = ending("not found", MissingTickets)
    missing.test_every_item_is_read()
    with pytest.raises(pytest.skip.Exception):
        missing.test_broken_answer_in_the_middle_is_an_error("not found")
    fails(missing.test_broken_answer_is_an_error, "not found")
    for kind in ("not found", "a list that is null"):
        contract = ending(kind)
        contract.ends_with = [kind]
        for rule in (
            "test_broken_answer_is_an_error",
            "test_broken_answer_in_the_middle_is_an_error",
        ):
            with pytest.raises(pytest.skip.Exception):
                getattr(contract, rule)(kind)


def test_source_may_wait_until_its_api_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that does not end has not taken a broken answer for the end."""

    class Waiting(Ending):
        async def pages(self, *arguments: Any) -> AsyncIterator[Page]:
            try:
                async for page in super().pages(*arguments):
                    yield page
            except OSError:
                await asyncio.Event().wait()

    monkeypatch.setattr(sources, "PATIENCE_SECONDS", 0.1)
    contract: Any = EndingTickets()
    contract.kind = Waiting
    contract.test_broken_answer_is_an_error("too many requests")
    contract.test_broken_answer_in_the_middle_is_an_error("too many requests")


@pytest.mark.slow
def test_source_whose_versions_are_of_its_process_fails() -> None:
    """Each run would store everything again."""
    contract: Any = SaltedTickets()
    contract.test_reading_again_yields_the_same_versions()
    fails(contract.test_another_process_reads_the_same_versions)


def test_source_that_another_process_cannot_make_is_no_failure() -> None:
    """Its class may be in a function, or need fixtures."""

    class Local(TestTickets):
        pass

    contract: Any = Local()
    with pytest.raises(pytest.skip.Exception, match="cannot read the source"):
        contract.test_another_process_reads_the_same_versions()


def test_source_that_ends_at_a_page_of_rejects_fails() -> None:
    """The pages behind it would be lost."""
    contract: Any = EndingTickets()
    contract.kind = EmptyPage
    fails(contract.test_page_without_a_usable_item_is_no_end)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (Objects, "test_item_that_is_no_object_is_rejected"),
        (LocalStart, "test_items_at_the_start_are_read_again"),
        (LocalStart, "test_runs_collect_every_item_once"),
        (RoundedUp, "test_timestamps_are_those_of_the_items"),
        (RoundedUpStart, "test_items_at_the_start_are_read_again"),
        (Local, "test_timestamps_are_those_of_the_items"),
        (AfterStart, "test_items_at_the_start_are_read_again"),
        (Renamed, "test_source_has_a_stable_name_and_an_overlap"),
        (Dated, "test_reading_again_yields_the_same_versions"),
        (Dated, "test_runs_collect_every_item_once"),
        (Ordered, "test_declared_order_is_kept"),
        (Strict, "test_unusable_item_is_rejected_and_the_others_are_read"),
        (Snapshot, "test_full_snapshot_is_read_whole"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_source_that_breaks_a_rule_fails_its_test(kind: type[Tickets], rule: str) -> None:
    """The test of that rule, and not only one that happens to need it."""
    contract = TestTickets()
    contract.kind = kind
    with pytest.raises((AssertionError, KeyError)):
        getattr(contract, rule)()


@pytest.mark.parametrize("answer", ["an error", "JSON that is cut off", "an error in JSON"])
def test_source_that_takes_a_broken_answer_for_an_empty_one_fails(answer: str) -> None:
    """That would be a green run that lost everything."""
    contract = TestTickets()
    contract.kind = Lenient
    fails(contract.test_broken_answer_is_an_error, answer)


@pytest.mark.parametrize("zone", [EAST, WEST])
def test_source_that_asks_for_a_range_in_local_time_fails(zone: str) -> None:
    """East of UTC the range begins too late, west of it it ends too early."""
    contract = TestTickets()
    contract.kind = LocalStart
    fails(contract.test_range_is_half_open, zone)


def test_source_that_takes_a_broken_answer_for_the_last_page_fails() -> None:
    """That would be a green run that lost the pages behind it."""
    contract: Any = PagesOfTickets()
    contract.test_every_item_is_read()
    fails(contract.test_broken_answer_in_the_middle_is_an_error, "an error in JSON")


def test_source_that_shifts_times_fails() -> None:
    """A time of another zone is another time."""
    contract = TestTickets()
    contract.kind = Zoned
    contract.begin = TestTickets.begin + timedelta(seconds=30)
    fails(contract.test_timestamps_are_those_of_the_items)


@pytest.mark.parametrize("name", ["SinkContract", "SourceContract"])
def test_contract_without_pytest_names_the_extra(name: str) -> None:
    """Whoever installed the package alone reads what to install."""
    code = f"import sys; sys.modules['pytest'] = None; from ladon_storage.testing import {name}"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: The contracts of sinks and sources require pytest. "
        "Install ladon-storage[testing]."
    )
