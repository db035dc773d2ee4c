"""HTTP of sources, against a real server that misbehaves as feeds do."""

from __future__ import annotations

import asyncio
import ssl
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime

import aiohttp
import pytest
import stamina
import trustme

from ladon_storage.collection.sources import http
from ladon_storage.collection.sources.http import _retry_after, source_http
from ladon_storage.errors import SourceError
from tests.feed_server import Answer, FeedServer

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    """Repeat as often as in earnest, without the waiting in between."""
    with stamina.set_testing(True, attempts=http.ATTEMPTS):
        yield


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note how long stamina would sleep, without sleeping."""
    waited: list[float] = []
    pause = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:  # aiohttp sleeps too, for no time
            waited.append(seconds)
        await pause(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waited


async def fetch(url: str, max_bytes: int = http.MAX_DOCUMENT_BYTES) -> object:
    async with source_http("feed", max_bytes=max_bytes) as client:
        return await client.get_json(url)


async def failure(url: str, max_bytes: int = http.MAX_DOCUMENT_BYTES) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await fetch(url, max_bytes)
    assert caught.value.source_id == "feed"
    return caught.value


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize(
    "answer",
    [
        *(Answer(status=status) for status in (408, 425, 429, 500, 502, 503, 504)),
        Answer(b'{"a": 1}', cut_at=4),
    ],
    ids=lambda answer: f"status {answer.status}" if answer.status != 200 else "a cut body",
)
async def test_what_can_be_repeated_is_repeated(answer: Answer) -> None:
    """A fault that passes is not seen outside."""
    async with FeedServer(answer, answer, Answer.of({"a": 1})) as feed:
        assert await fetch(feed.url) == {"a": 1}

    assert len(feed.requests) == 3


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 410, 418])
async def test_other_statuses_fail_at_once(status: int) -> None:
    """A refusal is not asked again."""
    async with FeedServer(Answer(status=status), Answer.of({})) as feed:
        error = await failure(feed.url)

    assert len(feed.requests) == 1
    assert not error.transient
    assert f"'feed' answered {status}" in str(error)


@pytest.mark.usefixtures("_no_waiting")
async def test_repeating_ends() -> None:
    """A feed that stays down fails the run after a fixed number of attempts."""
    async with FeedServer(*[Answer(status=503)] * 9) as feed:
        error = await failure(feed.url)

    assert len(feed.requests) == http.ATTEMPTS
    assert error.transient


@pytest.mark.usefixtures("_no_waiting")
async def test_each_repetition_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    """An operator sees in the message alone that a feed is shaky, and how."""
    async with FeedServer(Answer(status=503), Answer.of({})) as feed:
        await fetch(feed.url)

    [logged] = [each for each in caplog.records if each.name == http.__name__]
    assert "'feed' answered 503" in logged.getMessage()
    assert f"attempt 1 of {http.ATTEMPTS}" in logged.getMessage()


async def test_waits_grow_and_are_spread(waits: list[float]) -> None:
    """Attempts move apart, with a jitter so that clients do not come back together."""
    async with FeedServer(*[Answer(status=500)] * http.ATTEMPTS) as feed:
        await failure(feed.url)

    assert len(waits) == http.ATTEMPTS - 1
    for wait, least in zip(waits, [0.5, 1, 2, 4], strict=True):
        assert least <= wait <= least + 1


async def test_retry_after_is_honoured_and_capped(waits: list[float]) -> None:
    """The source says when to come back, within reason."""
    answers = [Answer(status=429, headers={"Retry-After": value}) for value in ("2", "86400")]
    async with FeedServer(*answers, Answer.of({"a": 1})) as feed:
        assert await fetch(feed.url) == {"a": 1}

    assert waits == [2, http.MAX_RETRY_AFTER_SECONDS]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7),
        (" 7 ", 7),
        ("0", None),
        ("-7", None),
        ("soon", None),
        ("", None),
        ("1.5", None),
        ("9" * 400, http.MAX_RETRY_AFTER_SECONDS),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30),
        ("Thu, 01 Jan 2026 00:00:30 -0000", 30),
        ("Wed, 31 Dec 2025 23:59:59 GMT", None),
        ("Fri, 01 Jan 2027 00:00:00 GMT", http.MAX_RETRY_AFTER_SECONDS),
        ("²", None),
    ],
)
def test_retry_after_is_read_in_every_form(value: str | None, seconds: float | None) -> None:
    """Seconds or a date; what is neither, or past, leaves the wait to us."""
    assert _retry_after(value, NOW) == seconds


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize(
    "body",
    [b"", b'{"a": 1', b"<html>", b'{"a": NaN}', b'{"a": -Infinity}', b"\xff\xfe{", b"[" * 200_000],
    ids=["empty", "cut off", "html", "NaN", "Infinity", "not text", "nested"],
)
async def test_whole_document_that_is_not_json_is_not_asked_for_again(body: bytes) -> None:
    """What was published broken stays broken; the error says how much arrived."""
    async with FeedServer(Answer(body), Answer.of({})) as feed:
        error = await failure(feed.url)

    assert len(feed.requests) == 1
    assert not error.transient
    assert f"is not JSON, after {len(body)} bytes" in str(error)
    assert error.__context__ is None  # the parser's error would keep the document in memory


@pytest.mark.usefixtures("_no_waiting")
async def test_document_above_the_limit_is_refused_while_it_arrives() -> None:
    """The limit counts unpacked bytes, and nothing much beyond it is kept."""
    async with FeedServer(Answer(b"[]"), Answer(b"[" + b" " * 2**20 + b"]")) as feed:
        assert await fetch(feed.url, max_bytes=2) == []
        error = await failure(feed.url, max_bytes=1_000)

    assert "sends more than 1000 bytes" in str(error)
    assert not error.transient


@pytest.mark.usefixtures("_no_waiting")
async def test_answer_that_stalls_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed that stops in the middle is given up, and asked again."""
    monkeypatch.setattr(http, "_TIMEOUT", aiohttp.ClientTimeout(total=5, sock_read=0.05))
    async with FeedServer(Answer(b'{"a": 1}', stall_at=1), Answer.of({"a": 1})) as feed:
        assert await fetch(feed.url) == {"a": 1}

    assert len(feed.requests) == 2


def test_every_timeout_is_set() -> None:
    """Connecting, each read and the whole answer are all bounded: a trickle ends as well."""
    assert all((http._TIMEOUT.total, http._TIMEOUT.sock_connect, http._TIMEOUT.sock_read))


@pytest.mark.usefixtures("_no_waiting")
async def test_refused_connection_is_ours_with_its_cause() -> None:
    """The error of aiohttp stays chained behind ours where it holds nothing secret."""
    async with FeedServer() as feed:
        url = feed.url
    error = await failure(url)

    assert error.transient
    assert "could not be reached" in str(error)
    assert isinstance(error.__cause__, aiohttp.ClientConnectorError)


@pytest.mark.usefixtures("_no_waiting")
async def test_untrusted_certificate_fails_at_once() -> None:
    """Who is not whom the address names does not become so by asking again."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with FeedServer(Answer.of({}), tls=context) as feed:
        error = await failure(feed.url)

    assert "is not trusted" in str(error)
    assert not error.transient
    assert feed.requests == []


@pytest.mark.usefixtures("_no_waiting")
async def test_endless_redirect_is_ours() -> None:
    """A feed that redirects in a circle fails once, with an error of ours."""
    hop = Answer(status=302, headers={"Location": "/feed.json"})
    async with FeedServer(*[hop] * 20) as feed:
        error = await failure(feed.url)

    assert "redirects nowhere" in str(error)
    assert not error.transient


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=404),
        Answer(status=503),
        Answer(b"{"),
        Answer(b"{}", cut_at=1),
        Answer(status=302, headers={"Location": "/feed.json?key=SECRET"}),
        Answer(status=302, headers={"Location": "ftp://me:SECRET@example.org/"}),
        Answer(b"x" * 2_000),
    ],
    ids=["404", "503", "not JSON", "cut", "circle", "elsewhere", "large"],
)
async def test_no_error_shows_what_the_address_hides(answer: Answer) -> None:
    """User, password, query and fragment of an address are nowhere in the error or its chain."""
    async with FeedServer(*[answer] * 20) as feed:
        url = feed.url.replace("://", "://me:SECRET@") + "?key=SECRET#SECRET"
        error = await failure(url, max_bytes=1_000)

    assert "SECRET" not in "".join(traceback.format_exception(error))
    assert "SECRET" not in repr([error.__cause__, error.__context__, vars(error)])
    assert feed.url in str(error)


@pytest.mark.usefixtures("_no_waiting")
async def test_refused_connection_shows_nothing_of_the_address() -> None:
    """An error of the connection is not chained where the address hides something."""
    async with FeedServer() as feed:
        url = feed.url + "?key=SECRET"
    error = await failure(url)

    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.usefixtures("_no_waiting")
async def test_cancelling_is_not_repeated() -> None:
    """A cancelled request ends at once, and is no error of the source."""
    async with FeedServer(Answer(b"{}", stall_at=1), Answer.of({})) as feed:
        fetching = asyncio.create_task(fetch(feed.url))
        await asyncio.wait_for(feed.asked.wait(), 5)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching

    assert len(feed.requests) == 1
