"""HTTP of sources, their hosts and keys, against a real server that misbehaves as feeds do."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiolimiter import AsyncLimiter
from yarl import URL

from ladon_storage.circuit.breaker import CircuitBreaker, CircuitState
from ladon_storage.client.retry_after import retry_after
from ladon_storage.collection.credentials import resolve_secret, secret_lookup
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.sources.fields import MAX_ANSWER_BYTES, Connection, Rate
from ladon_storage.sources.http import connections, hosts, sending
from ladon_storage.sources.http.client import Credentials, source_http
from ladon_storage.sources.http.hosts import circuit_of, host_circuit_of, host_of
from ladon_storage.sources.http.retry_after import MAX_RETRY_AFTER_SECONDS
from ladon_storage.sources.http.transport import Route
from ladon_storage.sources.http.urls import is_same_host
from ladon_storage.testing.clock import FakeClock
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.raw_server import RawServer, Reply

NOW = datetime(2026, 1, 1, tzinfo=UTC)


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


async def fetch(url: str, max_bytes: int = MAX_ANSWER_BYTES) -> object:
    async with source_http("feed", max_bytes=max_bytes) as client:
        return await client.get_json(url)


async def failure(url: str, max_bytes: int = MAX_ANSWER_BYTES) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await fetch(url, max_bytes)
    assert caught.value.source_id == "feed"
    return caught.value


@pytest.mark.usefixtures("no_waiting")
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


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("status", [202, 205, 206, 304, 400, 401, 403, 404, 410, 418])
async def test_other_statuses_fail_at_once(status: int) -> None:
    """A refusal is not asked again."""
    async with FeedServer(Answer(status=status), Answer.of({})) as feed:
        error = await failure(feed.url)

    assert len(feed.requests) == 1
    assert not error.transient
    assert f"'feed' answered {status}" in str(error)


@pytest.mark.usefixtures("no_waiting")
async def test_repeating_ends() -> None:
    """A feed that stays down fails the run after a fixed number of attempts."""
    async with FeedServer(*[Answer(status=503)] * 9) as feed:
        error = await failure(feed.url)

    assert len(feed.requests) == sending.ATTEMPTS
    assert error.transient


@pytest.mark.usefixtures("no_waiting")
async def test_each_repetition_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    """An operator sees in the message alone that a feed is shaky, and how."""
    async with FeedServer(Answer(status=503), Answer.of({})) as feed:
        await fetch(feed.url)

    [logged] = [each for each in caplog.records if each.name == sending.__name__]
    assert "'feed' answered 503" in logged.getMessage()
    assert f"attempt 1 of {sending.ATTEMPTS}" in logged.getMessage()


async def test_waits_grow_and_are_spread(waits: list[float]) -> None:
    """Attempts move apart, with a jitter so that clients do not come back together."""
    async with FeedServer(*[Answer(status=500)] * sending.ATTEMPTS) as feed:
        await failure(feed.url)

    assert len(waits) == sending.ATTEMPTS - 1
    for wait, least in zip(waits, [0.5, 1, 2, 4], strict=True):
        assert least <= wait <= least + 1


async def test_retry_after_is_honoured_and_capped(waits: list[float]) -> None:
    """The source says when to come back, within reason."""
    answers = [Answer(status=429, headers={"Retry-After": value}) for value in ("2", "86400")]
    async with FeedServer(*answers, Answer.of({"a": 1})) as feed:
        assert await fetch(feed.url) == {"a": 1}

    assert waits == [2, MAX_RETRY_AFTER_SECONDS]


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
        ("9" * 400, MAX_RETRY_AFTER_SECONDS),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30),
        ("Thu, 01 Jan 2026 00:00:30 -0000", 30),
        ("Wed, 31 Dec 2025 23:59:59 GMT", None),
        ("Fri, 01 Jan 2027 00:00:00 GMT", MAX_RETRY_AFTER_SECONDS),
        ("²", None),
    ],
)
def test_retry_after_is_read_in_every_form(value: str | None, seconds: float | None) -> None:
    """Seconds or a date; what is neither, or past, leaves the wait to us."""
    assert retry_after(value, NOW, MAX_RETRY_AFTER_SECONDS) == seconds


@pytest.mark.usefixtures("no_waiting")
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


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("head", ["HTTP/1.0 200 OK", "HTTP/1.1 200 OK\r\nConnection: close"])
async def test_document_without_a_length_that_was_cut_is_asked_for_again(head: str) -> None:
    """An answer that ends with its connection is whole only if it has the end of its JSON."""
    start = head.encode() + b"\r\n\r\n"
    script = [Reply(start + body, "close") for body in (b'{"a": [', b'{"a": []}')]
    async with RawServer(*script) as server:
        assert await fetch(server.url) == {"a": []}

    assert len(server.requests) == 2


@pytest.mark.usefixtures("no_waiting")
async def test_document_without_a_length_that_is_always_cut_counts_for_its_path() -> None:
    """The error says that it was cut, as where a length shows it."""
    async with RawServer(Reply(b'HTTP/1.0 200 OK\r\n\r\n{"a": 1', "close")) as server:
        error = await failure(server.url)

    assert len(server.requests) == sending.ATTEMPTS
    assert error.transient
    assert "cut its answer off" in str(error)
    assert circuit_of(URL(server.url)).failure_count == sending.ATTEMPTS


@pytest.mark.usefixtures("no_waiting")
async def test_document_without_a_length_that_is_no_json_is_not_called_complete() -> None:
    """Nothing shows that, and nothing shows that it was cut."""
    async with RawServer(Reply(b"HTTP/1.0 200 OK\r\n\r\n<html>", "close")) as server:
        error = await failure(server.url)

    assert len(server.requests) == 1
    assert "is not JSON, after 6 bytes whose end nothing states" in str(error)


@pytest.mark.usefixtures("no_waiting")
async def test_document_above_the_limit_is_refused_while_it_arrives() -> None:
    """The limit counts unpacked bytes, and nothing much beyond it is kept."""
    async with FeedServer(Answer(b"[]"), Answer(b"[" + b" " * 2**20 + b"]")) as feed:
        assert await fetch(feed.url, max_bytes=2) == []
        error = await failure(feed.url, max_bytes=1_000)

    assert "sends more than 1000 bytes" in str(error)
    assert not error.transient


@pytest.mark.usefixtures("no_waiting")
async def test_answer_that_stalls_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed that stops in the middle is given up, and asked again."""
    monkeypatch.setattr(connections, "_TIMEOUT", aiohttp.ClientTimeout(total=5, sock_read=0.05))
    stalled = Answer(b'{"a": 1}', stall_at=1)
    async with FeedServer(stalled, play=lambda _: Answer.of({"a": 1})) as feed:
        assert await fetch(feed.url) == {"a": 1}

    assert len(feed.requests) >= 2  # a busy machine may be too slow once more


def test_every_timeout_is_set() -> None:
    """Connecting, each read and the whole answer are all bounded: a trickle ends as well."""
    assert all(
        (
            connections._TIMEOUT.total,
            connections._TIMEOUT.sock_connect,
            connections._TIMEOUT.sock_read,
        )
    )


@pytest.mark.usefixtures("no_waiting")
async def test_refused_connection_is_ours_with_its_cause() -> None:
    """The error of aiohttp stays chained behind ours where it holds nothing secret."""
    async with FeedServer() as feed:
        url = feed.url
    error = await failure(url)

    assert error.transient
    assert "could not be reached" in str(error)
    assert isinstance(error.__cause__, aiohttp.ClientConnectorError)


@pytest.mark.usefixtures("no_waiting")
async def test_untrusted_certificate_fails_at_once() -> None:
    """Who is not whom the address names does not become so by asking again."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with FeedServer(Answer.of({}), tls=context) as feed:
        error = await failure(feed.url)

    assert "of an unknown authority" in str(error)
    assert not error.transient
    assert feed.requests == []


@pytest.mark.usefixtures("no_waiting")
async def test_endless_redirect_is_ours() -> None:
    """A feed that redirects in a circle fails once, with an error of ours."""
    hop = Answer(status=302, headers={"Location": "/feed.json"})
    async with FeedServer(*[hop] * 20) as feed:
        error = await failure(feed.url)

    assert "redirects nowhere" in str(error)
    assert not error.transient


@pytest.mark.usefixtures("no_waiting")
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


@pytest.mark.usefixtures("no_waiting")
async def test_refused_connection_shows_nothing_of_the_address() -> None:
    """An error of the connection is not chained where the address hides something."""
    async with FeedServer() as feed:
        url = feed.url + "?key=SECRET"
    error = await failure(url)

    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.usefixtures("no_waiting")
async def test_cancelling_is_not_repeated() -> None:
    """A cancelled request ends at once, and is no error of the source."""
    async with FeedServer(Answer(b"{}", stall_at=1), Answer.of({})) as feed:
        fetching = asyncio.create_task(fetch(feed.url))
        await asyncio.wait_for(feed.asked.wait(), 5)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching

    assert len(feed.requests) == 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Let the circuits of a test go by a clock that only it moves."""
    clock = FakeClock()

    def made(*args: Any, **options: Any) -> CircuitBreaker:
        return CircuitBreaker(*args, clock=clock, **options)

    monkeypatch.setattr(hosts, "CircuitBreaker", made)
    return clock


def circuit(feed: FeedServer) -> CircuitBreaker:
    return circuit_of(URL(feed.url))


@pytest.mark.usefixtures("no_waiting")
async def test_host_that_keeps_failing_is_not_asked_again(clock: FakeClock) -> None:
    """What one run learnt of a host, the next one of any source knows; a probe finds out more."""
    async with FeedServer(*[Answer(status=500)] * hosts.CIRCUIT_FAILURES, Answer.of(1)) as feed:
        await failure(feed.url)
        async with source_http("another") as client:
            with pytest.raises(SourceError) as caught:
                await client.get_json(feed.url)
        assert len(feed.requests) == hosts.CIRCUIT_FAILURES
        assert f"the circuit of {host_of(URL(feed.url))} is open" in str(caught.value)
        assert "Try again in 60.0 s" in str(caught.value)
        assert (caught.value.transient, caught.value.retry_after) == (False, 60)

        clock.advance(hosts.CIRCUIT_SECONDS)
        assert await fetch(feed.url) == 1
        assert circuit(feed).state is CircuitState.CLOSED


@pytest.mark.usefixtures("no_waiting")
async def test_probe_that_fails_ends_the_run(clock: FakeClock) -> None:
    """A host that is still down gets one request from a run, not five."""
    async with FeedServer(*[Answer(status=500)] * 9) as feed:
        await failure(feed.url)
        clock.advance(hosts.CIRCUIT_SECONDS)
        error = await failure(feed.url)

    assert len(feed.requests) == hosts.CIRCUIT_FAILURES + 1
    assert "is open" in str(error)


@pytest.mark.usefixtures("no_waiting")
async def test_each_host_has_its_own_circuit(clock: FakeClock) -> None:
    """That one host is down says nothing about another."""
    async with FeedServer(*[Answer(status=500)] * 5) as down, FeedServer(Answer.of(1)) as feed:
        await failure(down.url)

        assert circuit(down).state is CircuitState.OPEN
        assert await fetch(feed.url) == 1


@pytest.mark.usefixtures("no_waiting", "clock")
@pytest.mark.parametrize(
    "answer",
    [Answer(status=500), Answer(status=408), Answer(b"{}", cut_at=1)],
    ids=["500", "408", "cut"],
)
async def test_path_that_fails_keeps_nobody_from_its_host(answer: Answer) -> None:
    """One feed of a host that fails closes itself and no other, whatever its query."""
    async with FeedServer(*[answer] * 5, play=lambda _: Answer.of(1)) as feed:
        await failure(feed.at("broken?page=1"))

        assert "is open" in str(await failure(feed.at("broken?page=2")))
        assert await fetch(feed.at("sound")) == 1
        assert host_circuit_of(URL(feed.url)).failure_count == 0


@pytest.mark.usefixtures("no_waiting", "clock")
async def test_host_that_cannot_be_reached_is_noticed_by_all_its_feeds() -> None:
    """Where nothing listens, each further feed would only wait."""
    async with FeedServer() as feed:
        url, other = feed.url, feed.at("other")
    await failure(url)
    error = await failure(other)

    assert "is open after repeated failures" in str(error)
    assert host_circuit_of(URL(url)).state is CircuitState.OPEN


def test_circuits_of_paths_are_bounded_and_what_is_open_stays(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feed of a million files makes no million circuits, and pushes no outage out."""
    monkeypatch.setattr(hosts, "MAX_CIRCUITS", 10)
    down = circuit_of(URL("http://feed.example/down"))
    down.trip()
    for number in range(100):
        circuit_of(URL(f"http://feed.example/{number}?a=1"))

    assert len(hosts._circuits) == 10
    assert circuit_of(URL("http://feed.example/down?b=2")) is down
    assert circuit_of(URL("http://feed.example/99")) is circuit_of(URL("http://feed.example/99"))


@pytest.mark.usefixtures("no_waiting", "clock")
@pytest.mark.parametrize(
    ("answer", "failures"),
    [
        (Answer(status=500), 1),
        (Answer(status=503), 1),
        (Answer(status=408), 1),
        (Answer(b"{}", cut_at=1), 1),
        (Answer(status=429), 0),
        (Answer(status=503, headers={"Retry-After": "2"}), 0),
        (Answer(status=403), 0),
        (Answer(status=425), 0),
    ],
    ids=["500", "503", "408", "cut", "429", "503 with Retry-After", "403", "425"],
)
async def test_only_failures_count_against_a_host(answer: Answer, failures: int) -> None:
    """Outages count, and being asked to wait does not."""
    async with FeedServer(*[answer] * 2) as feed:
        async with source_http("feed", throttle_statuses={403}) as client:
            with pytest.raises(SourceError):
                await client.post(feed.url, {}, idempotent=False)

        assert circuit(feed).failure_count == failures


@pytest.mark.usefixtures("no_waiting", "clock")
@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=429),
        Answer(status=503, headers={"Retry-After": "2"}),
        Answer(status=403),
    ],
    ids=["429", "503", "403"],
)
async def test_throttling_never_opens_a_circuit(answer: Answer) -> None:
    """However often a host asks to wait, it is there; it closes no circuit either."""
    async with FeedServer(*[answer] * 4 * sending.ATTEMPTS) as feed:
        circuit(feed).failure(circuit(feed).acquire())
        async with source_http("feed", throttle_statuses={403}) as client:
            for _ in range(4):
                with pytest.raises(SourceError) as caught:
                    await client.get(feed.url)
                assert caught.value.transient

        assert circuit(feed).state is CircuitState.CLOSED
        assert circuit(feed).failure_count == 1
        assert len(feed.requests) == 4 * sending.ATTEMPTS


@pytest.mark.usefixtures("no_waiting")
async def test_throttled_probe_is_no_verdict(clock: FakeClock) -> None:
    """A host that is back and busy is asked again, at once if it likes."""
    script = [*[Answer(status=500)] * 5, Answer(status=429), Answer(status=429), Answer.of(1)]
    async with FeedServer(*script) as feed:
        await failure(feed.url)
        clock.advance(hosts.CIRCUIT_SECONDS)

        assert await fetch(feed.url) == 1
        assert circuit(feed).state is CircuitState.CLOSED


@pytest.mark.usefixtures("no_waiting")
async def test_cancelled_probe_is_given_back(clock: FakeClock) -> None:
    """Who gives up asking says nothing about the host, and keeps nobody from asking it."""
    script = [*[Answer(status=500)] * 5, Answer(b"{}", stall_at=1), Answer.of(1)]
    async with FeedServer(*script) as feed:
        await failure(feed.url)
        clock.advance(hosts.CIRCUIT_SECONDS)
        feed.asked.clear()
        fetching = asyncio.create_task(fetch(feed.url))
        await asyncio.wait_for(feed.asked.wait(), 5)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching

        assert await fetch(feed.url) == 1


@pytest.mark.usefixtures("no_waiting", "clock")
async def test_refusal_shows_that_a_host_works() -> None:
    """A 404 between failures is no failure, but an answer."""
    down, gone = Answer(status=500), Answer(status=404)
    async with FeedServer(down, down, down, down, gone) as feed:
        await failure(feed.url)

        assert circuit(feed).failure_count == 0


@pytest.mark.usefixtures("no_waiting")
async def test_change_of_a_circuit_is_logged(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator sees when a host was given up, and why."""
    async with FeedServer(*[Answer(status=500)] * 5) as feed:
        await failure(feed.url)

    [logged] = [each.getMessage() for each in caplog.records if each.name == hosts.__name__]
    assert f"{host_of(URL(feed.url))} went from closed to open: 5 consecutive failures" in logged


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(("is_query", "requests"), [(True, 2), (False, 1)])
async def test_post_is_repeated_only_if_it_asks(is_query: bool, requests: int) -> None:
    """What may change something is sent once."""
    async with (
        FeedServer(Answer(status=500), Answer.of({"a": 1})) as feed,
        source_http("feed") as client,
    ):
        try:
            answer = await client.post(feed.url, {"q": 1}, idempotent=is_query, params={"p": "a+b"})
        except SourceError:
            assert not is_query
        else:
            assert client.parsed(answer) == {"a": 1}

    assert len(feed.asks) == requests
    assert [each.body for each in feed.asks] == [{"q": 1}] * requests
    assert feed.requests[0].endswith("?p=a%2Bb")


async def test_answer_has_what_was_asked_for() -> None:
    """Status and headers are there for who needs them; a status that is accepted is no error."""
    async with (
        FeedServer(Answer(b"gone", status=404, headers={"X-Last": "7"})) as feed,
        source_http("feed") as client,
    ):
        answer = await client.get(
            feed.url + "?a=1&b=2",
            params={"b": 3},
            headers={"X-First": "1"},
            accept=(200, 404),
        )

    assert (answer.status, answer.headers["x-last"], answer.body) == (404, "7", b"gone")
    assert feed.requests == ["/feed.json?a=1&b=3"]
    assert feed.asks[0].headers["X-First"] == "1"
    assert repr(answer) == "<HttpResponse 404, 4 bytes>"


@pytest.mark.parametrize(
    "query",
    ["c=caf%E9", "q=%EF%F0%e8&all", "type=a;limit=0", "a=b%20c&d=e+f%2f%7E", "c=caf%C3%A9&&x=&x="],
)
async def test_query_is_sent_as_it_was_written_also_with_parameters(query: str) -> None:
    """A service may read another charset or separator: decoded and encoded, it is another query."""
    async with FeedServer(redirect(f"/api/x?{query}"), Answer.of(1), Answer.of(1)) as feed:
        keys = Credentials(feed.url, params={"token": "SECRET"})
        async with source_http("feed", credentials=keys) as client:
            assert await client.get_json(f"{feed.url}?{query}", params={"since": "ü"}) == 1
            assert await client.get_json(f"{feed.url}?n=1&{query}&n=2", params={"n": 3}) == 1

    assert feed.requests == [
        f"/feed.json?{query}&since=%C3%BC&token=SECRET",
        f"/api/x?{query}&token=SECRET",
        f"/feed.json?n=3&{query}&token=SECRET",
    ]


def redirect(to: str, status: int = 302) -> Answer:
    return Answer(status=status, headers={"Location": to})


async def test_redirect_on_the_same_host_keeps_the_key() -> None:
    """A feed that moved on its host is followed, with what it requires."""
    async with FeedServer(redirect("/api/moved"), Answer.of(1)) as feed:
        keys = Credentials(feed.url, {"Auth-Key": "SECRET"}, {"token": "SECRET"})
        async with source_http("feed", credentials=keys) as client:
            assert await client.get_json(feed.url) == 1

    assert [each.headers["Auth-Key"] for each in feed.asks] == ["SECRET"] * 2
    assert feed.requests == ["/feed.json?token=SECRET", "/api/moved?token=SECRET"]


@pytest.mark.parametrize("asked", ["/api/v1/x", "/api/v1/x/"])
@pytest.mark.parametrize("to", ["/api/v1/x/", "/api/v1/x", "/api/v1/x#top", "/api/v1/x?"])
async def test_redirect_that_loses_the_query_is_not_followed(asked: str, to: str) -> None:
    """The answer would be that to another request: of other records, or always the first page."""
    async with FeedServer(redirect(to, 301), Answer.of(1)) as feed, source_http("feed") as client:
        to_itself = feed.at("").removesuffix("/api/") + asked
        with pytest.raises(SourceError, match="without the request's 'kind', 'page'") as caught:
            await client.get_json(to_itself, params={"kind": "a", "page": 2, "first": 1})

    assert len(feed.requests) == 1
    assert "set the address to the target" in str(caught.value).lower()
    assert not caught.value.transient


@pytest.mark.parametrize(
    ("params", "to"),
    [
        ({"kind": "a", "page": "2"}, "/api/x/?kind=a&page=2"),
        ({"kind": "a"}, "/api/x/?type=a"),
        ({"id": "5"}, "/api/files/5.json"),
        ({"id": "5"}, "/api/x?signature=5"),
        ({"page": "1", "offset": "0", "q": ""}, "/api/x"),
        ({}, "/api/x/"),
    ],
)
async def test_redirect_may_change_the_query(params: dict[str, str], to: str) -> None:
    """To the address of a download, to a signed one, or to one without the first page."""
    async with FeedServer(redirect(to), Answer.of(1)) as feed, source_http("feed") as client:
        assert await client.get_json(feed.at("x"), params=params) == 1

    assert feed.requests[1] == to


async def test_redirect_to_another_site_may_lose_the_query() -> None:
    """Where it was allowed: a copy there may have no parameters."""
    async with FeedServer(Answer.of(1)) as other, FeedServer(redirect(other.url)) as feed:
        allowed = Connection(redirects_to=(host_of(URL(other.url)),))
        async with source_http("feed", connection=allowed) as client:
            assert await client.get_json(feed.url, params={"kind": "a"}) == 1


@pytest.mark.parametrize("leads", ["redirect", "request"])
async def test_key_is_sent_to_no_other_host(leads: str) -> None:
    """Neither a redirect nor an address in a feed makes us give a key away."""
    async with FeedServer(Answer.of(1)) as other, FeedServer(redirect(other.url)) as feed:
        keys = Credentials(feed.url, {"Auth-Key": "SECRET"})
        async with source_http("feed", credentials=keys) as client:
            with pytest.raises(SourceError) as caught:
                await client.get_json(feed.url if leads == "redirect" else other.url)

    assert other.requests == []
    assert "another host, which must not receive its key" in str(caught.value)
    assert other.url in str(caught.value)


async def test_redirect_to_another_host_is_followed_if_allowed_without_what_is_configured() -> None:
    """Neither user nor headers nor keys go along; what kind of answer is wanted does."""
    async with FeedServer(Answer.of(1)) as other, FeedServer(redirect(other.url, 301)) as feed:
        allowed = Connection(redirects_to=(host_of(URL(other.url)),))
        keys = Credentials(feed.url, {"Auth-Key": "SECRET"}, {"token": "SECRET"})
        async with source_http("feed", credentials=keys, connection=allowed) as client:
            answer = await client.get(
                feed.url.replace("://", "://me:SECRET@"),
                headers={"X-Tenant": "SECRET", "Accept": "text/csv"},
            )

    assert client.parsed(answer) == 1
    assert {"Authorization", "X-Tenant", "Auth-Key"} <= set(feed.asks[0].headers)
    assert other.asks[0].headers["Accept"] == "text/csv"
    assert "SECRET" not in repr(other.asks[0])


async def test_redirect_back_from_another_site_comes_with_all_that_is_configured() -> None:
    """Home is asked as it was before: without its headers another tenant's records may answer."""
    async with FeedServer() as other, FeedServer(redirect(other.url), Answer.of(1)) as feed:
        other.script.extend([redirect("/api/check"), redirect(feed.at("back"))])
        allowed = Connection(redirects_to=(host_of(URL(other.url)),))
        keys = Credentials(feed.url, {"Auth-Key": "SECRET"})
        async with source_http("feed", credentials=keys, connection=allowed) as client:
            await client.get(
                feed.url.replace("://", "://me:SECRET@"), headers={"X-Tenant": "SECRET"}
            )

    first, back = feed.asks
    for name in ("Authorization", "X-Tenant", "Auth-Key"):
        assert first.headers[name] == back.headers[name]
    assert len(other.asks) == 2
    assert "SECRET" not in repr(other.asks)


async def test_redirect_to_another_site_is_not_followed() -> None:
    """A feed leads us into no other host or port of the network unless that was allowed."""
    async with FeedServer(Answer.of(1)) as other, FeedServer(redirect(other.url)) as feed:
        error = await failure(feed.url)

    assert other.requests == []
    assert f"redirects to {other.url}, another site" in str(error)
    assert "redirects_to" in str(error)
    assert not error.transient


async def test_redirect_from_an_encrypted_address_to_a_plain_one_is_not_followed() -> None:
    """What was asked for over TLS is answered over TLS, also where the host is allowed."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with authority.cert_pem.tempfile() as ca_file:
        async with (
            FeedServer(Answer.of(1)) as other,
            FeedServer(redirect(other.url), tls=context) as feed,
        ):
            allowed = Connection(ca_file=Path(ca_file), redirects_to=(host_of(URL(other.url)),))
            async with source_http("feed", connection=allowed) as client:
                with pytest.raises(SourceError, match="which is not encrypted"):
                    await client.get(feed.url)

    assert other.requests == []


@pytest.mark.parametrize(
    ("site", "url", "allowed"),
    [
        ("mirror.example.org", "https://mirror.example.org/a", True),
        ("Mirror.Example.org", "http://mirror.example.org/a", True),
        ("mirror.example.org", "https://mirror.example.org:8443/a", False),
        ("mirror.example.org:8443", "https://mirror.example.org:8443/a", True),
        ("mirror.example.org:8443", "https://mirror.example.org/a", False),
        ("mirror.example.org", "https://a.mirror.example.org/", False),
        ("example.org", "https://www.example.org/", False),
        ("[::1]:8080", "http://[::1]:8080/", True),
    ],
)
def test_allowed_site_is_a_host_and_its_usual_port_or_the_named_one(
    site: str, url: str, allowed: bool
) -> None:
    """What was allowed is what was written, and nothing beside it."""
    assert Route(redirects_to=Connection(redirects_to=(site,)).redirects_to).allows(URL(url)) is (
        allowed
    )


async def test_post_is_not_redirected() -> None:
    """Nobody knows whether the body is meant for the other place."""
    async with (
        FeedServer(redirect("/api/moved", 307), Answer.of(1)) as feed,
        source_http("feed") as client,
    ):
        with pytest.raises(SourceError, match="redirects a POST to"):
            await client.post(feed.url, {}, idempotent=True)

    assert len(feed.requests) == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.org/x", "https://a.org:443/y", True),
        ("https://a.org", "https://a.org:8443", False),
        ("https://a.org", "https://b.org", False),
        ("https://a.org", "https://a.org.b.org", False),
        ("http://a.org:8080", "https://a.org", False),
        ("https://me@a.org", "https://a.org", True),
        ("https://A.org", "https://a.org", True),
    ],
)
def test_host_is_the_same_by_scheme_name_and_port(one: str, other: str, same: bool) -> None:
    """Keys are told to who is the same in all three, or better in the first."""
    assert is_same_host(one, other) is same


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=404),
        Answer(status=503),
        Answer(b"{"),
        Answer(b"{}", cut_at=1),
        redirect("/api/SEC%2FRET"),
        redirect("https://example.invalid/SEC%2FRET?token=SEC/RET"),
        Answer(b"x" * 2_000),
    ],
    ids=["404", "503", "not JSON", "cut", "circle", "elsewhere", "large"],
)
async def test_key_is_in_no_error_and_no_log(
    answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    """A key in a header, a parameter or a path is in no error, no chain behind it, and no log."""
    caplog.set_level(logging.DEBUG)
    async with FeedServer(*[answer] * 20) as feed:
        url = feed.at("SEC%2FRET/recent.csv")
        keys = Credentials(feed.url, {"Auth-Key": "SEC/RET"}, {"token": "SEC/RET"}, ["SEC/RET"])
        async with source_http("feed", max_bytes=1_000, credentials=keys) as client:
            with pytest.raises(SourceError) as caught:
                await client.get_json(url)

    error = caught.value
    hidden = re.compile("SEC(/|%2F)RET")
    assert feed.asks[0].headers["Auth-Key"] == "SEC/RET"
    assert not hidden.search("".join(traceback.format_exception(error)))
    assert not hidden.search(repr([error.__cause__, error.__context__, vars(error)]))
    assert not hidden.search(caplog.text)
    assert "SEC" not in repr(keys) + repr(client)


@pytest.mark.usefixtures("no_waiting")
async def test_refused_connection_with_a_key_is_not_chained() -> None:
    """What aiohttp keeps of a request stays out of our errors."""
    async with FeedServer() as feed:
        url = feed.url
    async with source_http("feed", credentials=Credentials(url, {"Auth-Key": "SECRET"})) as client:
        with pytest.raises(SourceError) as caught:
            await client.get(url)

    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


class _Loop:
    """Be a loop for a limiter whose time passes at once."""

    def __init__(self, waits: list[float]) -> None:
        self.now = 0.0
        self.waits = waits

    def time(self) -> float:
        return self.now

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def call_soon(self, callback: Callable[..., object], *args: object) -> asyncio.Handle:
        return asyncio.get_running_loop().call_soon(callback, *args)

    def call_at(self, when: float, callback: Callable[..., object]) -> asyncio.Handle:
        self.waits.append(when - self.now)
        self.now = when
        return asyncio.get_running_loop().call_soon(callback)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note how long limiters wait, without waiting."""
    waited: list[float] = []

    class Limiter(AsyncLimiter):
        def __init__(self, requests: float, seconds: float) -> None:
            super().__init__(requests, seconds)
            self._event_loop: Any = _Loop(waited)

    monkeypatch.setattr(hosts, "AsyncLimiter", Limiter)
    return waited


async def test_requests_keep_the_rate_of_their_host(pauses: list[float]) -> None:
    """Requests of all runs together stay below the rate in any window, and lose no time below."""
    rate = Rate(requests=5, seconds=30)
    async with FeedServer(*[Answer.of(1)] * 5, play=lambda _: Answer.of(2)) as feed:
        for source_id in ("one", "other"):
            async with source_http(source_id, rate=rate) as client:
                for _ in range(3):
                    await client.get_json(feed.url)
        assert pauses == pytest.approx([6] * 5)

        async with source_http("faster", rate=Rate(requests=50, seconds=30)) as client:
            await client.get_json(feed.url)
        assert len(pauses) == 5

    assert len(feed.requests) == 7


@pytest.mark.usefixtures("no_waiting")
async def test_retries_keep_the_rate_too(pauses: list[float]) -> None:
    """An attempt is a request."""
    async with (
        FeedServer(Answer(status=500), Answer.of(1)) as feed,
        source_http("feed", rate=Rate(requests=1, seconds=10)) as client,
    ):
        await client.get_json(feed.url)

    assert pauses == [10]


@pytest.mark.usefixtures("pauses")
async def test_throttled_without_a_hint_waits_for_the_window_to_pass(waits: list[float]) -> None:
    """A host that does not say when to come back is asked when its own window is over."""
    async with FeedServer(Answer(status=403), Answer(status=429), Answer.of(1)) as feed:
        rate = Rate(requests=5, seconds=30)
        async with source_http("feed", rate=rate, throttle_statuses={403}) as client:
            await client.get_json(feed.url)

    assert [wait for wait in waits if wait >= 1] == [30, 30]


def test_limiters_of_closed_loops_are_let_go(pauses: list[float]) -> None:
    """Each run may have a loop of its own; what its limiters hold goes with it."""
    rate = Rate(requests=5, seconds=30)
    for _ in range(3):
        asyncio.run(hosts.wait_for_rate_limit(URL("http://example.invalid/"), rate))

    assert sum(loop.is_closed() for loop in hosts._limiters) <= 1
    assert pauses == []


async def test_secret_is_found_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anything else a name is that of an environment variable."""
    monkeypatch.setenv("FEED_KEY", " s3cret\n")

    assert await resolve_secret("FEED_KEY", "feed") == "s3cret"


async def test_secret_is_looked_up_first_where_a_lookup_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lookup comes before the environment, in tasks too, and ends with its block."""
    monkeypatch.setenv("FEED_KEY", "environment")
    monkeypatch.setenv("OTHER", "environment")

    async def lookup(name: str) -> str | None:
        return {"FEED_KEY": "vault"}.get(name)

    with secret_lookup(lookup):
        assert await asyncio.create_task(resolve_secret("FEED_KEY", "feed")) == "vault"
        assert await resolve_secret("OTHER", "feed") == "environment"
    assert await resolve_secret("FEED_KEY", "feed") == "environment"


@pytest.mark.parametrize("value", [None, "", " \n"])
async def test_missing_secret_says_what_to_set(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the block or the variable, and the source that needs it."""
    monkeypatch.delenv("FEED_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("FEED_KEY", value)

    with pytest.raises(ConfigurationError) as caught:
        await resolve_secret("FEED_KEY", "feed")

    assert "'FEED_KEY' of source 'feed' is not set" in str(caught.value)
    assert "environment variable FEED_KEY" in str(caught.value)


@pytest.mark.parametrize("value", ["SEC\nRET", "SÉCRET", "SEC\x7fRET"])
async def test_secret_that_no_header_carries_is_refused_unshown(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key with a line break would put a header of its own into a request."""
    monkeypatch.setenv("FEED_KEY", value)

    with pytest.raises(ConfigurationError, match="other characters") as caught:
        await resolve_secret("FEED_KEY", "feed")

    assert "RET" not in str(caught.value)
