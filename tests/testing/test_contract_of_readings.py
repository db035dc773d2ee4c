"""The contract of sources finds readings that lose records: by a date, a page, an answer, a state.

Each wrong source stands beside a right one of the same API, which keeps the contract.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from ladon_storage.collection import Page, Record, Reject
from ladon_storage.testing import Answer, Asked, SourceContract, SourceFeed

ONCE = "test_answer_that_is_broken_once_loses_nothing"
PAGES = "test_every_item_of_several_pages_is_read"
START = "test_items_at_the_start_are_read_again"
STATE = "test_next_run_reads_what_a_failed_one_did_not_store"
SIZE = 20


class Tickets:
    """A source that reads pages of an API to the last one, from a date on."""

    source_id, overlap = "tickets", timedelta(minutes=5)

    def __init__(self, feed: Any) -> None:
        self.feed = feed

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        query = self.query(start)
        async with aiohttp.ClientSession(raise_for_status=True) as http:
            number, last = 0, 1
            while number < last:
                number += 1
                document = await self.asked(http, query | {"page": str(number)})
                yield page_of(document["tickets"])
                last = self.last(document)

    def query(self, start: datetime | None) -> dict[str, str]:
        return {"since": f"{start.astimezone(UTC):%Y-%m-%d}"} if start else {}

    async def asked(self, http: aiohttp.ClientSession, query: dict[str, str]) -> Any:
        async with http.get(self.feed.url, params=query) as response:
            return await response.json()

    def last(self, document: Any) -> int:
        return int(document["pages"])


def page_of(items: list[Any]) -> Page:
    """Return the page of these items."""
    page = Page()
    for item in items:
        try:
            time = datetime.fromisoformat(item["updated_at"])
            page.records.append(Record.of(item["id"], time, item))
        except (KeyError, TypeError, ValueError) as error:
            page.rejects.append(Reject.of(repr(error), item))
    return page


class PagesOfTickets(SourceContract):
    """An API with pages of twenty, from a date on."""

    kind: type[Any] = Tickets

    def new_source(self, feed: SourceFeed) -> Any:
        return self.kind(feed)

    def item(self, record_id: str, time: datetime, value: str) -> object:
        return {"id": record_id, "updated_at": time.isoformat(), "title": value}

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        since = request.query.get("since", "")
        found = [each for each in items if each.get("updated_at", "~")[:10] >= since]
        end = SIZE * int(request.query["page"])
        return Answer.of({"tickets": found[end - SIZE : end], "pages": -(-len(found) // SIZE)})


class LocalDate(Tickets):
    """It asks for the date that this machine has."""

    def query(self, start: datetime | None) -> dict[str, str]:
        return {"since": f"{start.astimezone():%Y-%m-%d}"} if start else {}


class FirstPage(Tickets):
    """It does not look at the number of pages."""

    def last(self, document: Any) -> int:
        return 1


class Again(Tickets):
    """It asks once more where an answer is broken."""

    async def asked(self, http: aiohttp.ClientSession, query: dict[str, str]) -> Any:
        try:
            return await self.checked(http, query)
        except (aiohttp.ClientError, ValueError):
            return await self.checked(http, query)

    async def checked(self, http: aiohttp.ClientSession, query: dict[str, str]) -> Any:
        document = await super().asked(http, query)
        if not isinstance(document, dict) or not document.get("tickets"):
            raise ValueError("no tickets")
        return document


class Skipping(Again):
    """It goes on behind a page whose answer is broken, and raises at the second one."""

    failed = 0

    async def asked(self, http: aiohttp.ClientSession, query: dict[str, str]) -> Any:
        try:
            return await self.checked(http, query)
        except (aiohttp.ClientError, ValueError):
            self.failed += 1
            if self.failed > 1:
                raise
            return {"tickets": [], "pages": int(query["page"]) + 1}


class Delta:
    """A source that asks for what is new since the token of the start that it goes on from."""

    source_id, overlap = "tickets", timedelta(0)

    def __init__(self, feed: Any) -> None:
        self.feed = feed

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        token = self.token(start)
        async with (
            aiohttp.ClientSession(raise_for_status=True) as http,
            http.get(self.feed.url, params={"delta": token} if token else {}) as response,
        ):
            document = await response.json(content_type=None)
        page = page_of(document["tickets"])
        newest = max([each.timestamp for each in page.records], default=start)
        self.keep(newest, document["delta"])
        yield page

    def token(self, start: datetime | None) -> str | None:
        """Return that of the latest time that is durable; ``None``: all is read."""
        known = [time for time in tokens(self) if start and time and time <= start]
        return tokens(self)[max(known)] if known else None

    def keep(self, newest: datetime | None, token: str) -> None:
        tokens(self).setdefault(newest, token)


def tokens(source: Any) -> dict[Any, str]:
    """Return the tokens of a feed, which outlive the source as a file does."""
    kept: dict[Any, str] = vars(source.feed).setdefault("kept", {})
    return kept


class DeltaTickets(PagesOfTickets):
    """An API that answers a token with what it has since it gave the token."""

    kind = Delta

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        given = vars(self).setdefault("given", [[]])
        known = given[int(request.query.get("delta", 0))]
        given.append(list(items))
        new = [each for each in items if each not in known]
        return Answer.of({"tickets": new, "delta": str(len(given) - 1)})


class Hasty(Delta):
    """It goes on from what was read last, durable or not."""

    def token(self, start: datetime | None) -> str | None:
        return tokens(self).get("last") if start else None

    def keep(self, newest: datetime | None, token: str) -> None:
        tokens(self)["last"] = token


class Loading(Hasty):
    """It loads its token when it is made, and so only a new one has lost something."""

    def __init__(self, feed: Any) -> None:
        super().__init__(feed)
        self.loaded = tokens(self).get("last")

    def token(self, start: datetime | None) -> str | None:
        return self.loaded if start else None


def contract_of(kind: type[Any]) -> Any:
    """Return the contract of a source of a kind."""
    api = DeltaTickets if issubclass(kind, Delta) else PagesOfTickets
    return type(f"{kind.__name__}Tickets", (api,), {"kind": kind})()


@pytest.mark.parametrize(
    ("kind", "rule", "said"),
    [
        (LocalDate, START, "as UTC"),
        (FirstPage, PAGES, "81 of 101 items were not read.*until the API has no more"),
        (Skipping, ONCE, "20 of 101 items were left out.*Ask for the same page again"),
        (Hasty, STATE, "the same source did not read again.*Go on from `start`"),
        (Loading, STATE, "a new source did not read again"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_source_that_loses_records_fails_and_is_told_why(
    kind: type[Any], rule: str, said: str
) -> None:
    """The test of that rule says what was lost, and what to do."""
    with pytest.raises((AssertionError, pytest.fail.Exception), match=said):
        getattr(contract_of(kind), rule)()


@pytest.mark.parametrize("kind", [Tickets, Again, Delta], ids=lambda kind: kind.__name__)
def test_source_that_loses_nothing_keeps_the_contract(kind: type[Any]) -> None:
    """One that asks again, and one whose token belongs to a start, as those without either."""
    for rule in (START, PAGES, ONCE, STATE, "test_runs_collect_every_item_once"):
        getattr(contract_of(kind), rule)()
    contract_of(kind).test_page_without_a_usable_item_is_no_end()
    contract_of(kind).test_broken_answer_in_the_middle_is_an_error("an error")


class Ending(Tickets):
    """It ends at a page of which it can use nothing."""

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        async for page in super().pages(start, until):
            if not page.records:
                return
            yield page


class Ordered(Tickets):
    """It declares an order that its pages have not."""

    ordered = True


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (Ending, "test_page_without_a_usable_item_is_no_end"),
        (Ordered, "test_declared_order_is_kept"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_rule_of_pages_holds_where_pages_are_large(kind: type[Any], rule: str) -> None:
    """More items than one page has are tried."""
    with pytest.raises(AssertionError):
        getattr(contract_of(kind), rule)()


def test_list_that_has_no_more_is_read_whole() -> None:
    """An API may list its newest items alone, as its test says; and may refuse a long list."""

    class Newest(Tickets):
        pass

    class Refusing(FirstPage):
        def last(self, document: Any) -> int:
            if document["pages"] > 1:
                raise ValueError("more than one page")
            return 1

    contract = contract_of(Newest)
    contract.answer = lambda _, items: Answer.of({"tickets": items[-50:], "pages": 1})
    contract.most = 50
    getattr(contract, PAGES)()
    getattr(contract_of(Refusing), PAGES)()


@pytest.mark.parametrize("ids", ["abcdefghijklmnopqrst".__getitem__, lambda n: f"{n % 20}"])
def test_ids_of_a_test_may_be_few(ids: Callable[[int], str]) -> None:
    """A test whose `record_id` has no hundred ids is not asked for more."""
    contract = contract_of(Tickets)
    contract.record_id = ids
    getattr(contract, PAGES)()
