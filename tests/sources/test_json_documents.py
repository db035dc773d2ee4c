"""Large and hostile documents: bounded in values, memory and the time that they hold the loop."""

from __future__ import annotations

import asyncio
import errno
import gc
import gzip
import json
import os
import random
import threading
import time
import weakref
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection import records
from ladon_storage.collection.json_values import parse_json
from ladon_storage.collection.protocols import KnownContent
from ladon_storage.collection.records import Page, Reject
from ladon_storage.errors import SourceError
from ladon_storage.sources import Kev, RestApi, ThreatFox, UrlHaus, urlhaus
from ladon_storage.sources.http.client import source_http
from ladon_storage.sources.json import bounds, reader, spooled
from ladon_storage.sources.json.bounds import TooMuchError
from ladon_storage.sources.json.documents import (
    Document,
    document_digest,
    in_turns,
    is_keyed,
    is_list,
    parse,
    read_document,
)
from ladon_storage.sources.json.ends import lacks_end
from ladon_storage.sources.json.exact import parse_compact
from ladon_storage.sources.json.items import ItemReader, value_at
from ladon_storage.sources.json.many import ManyItems, ManyKeyed
from ladon_storage.sources.json.scan import Scan
from ladon_storage.sources.json.spooled import SpooledBody
from ladon_storage.sources.json.unique_keys import DuplicateKeyError
from ladon_storage.sources.timestamps import any_timestamps
from ladon_storage.testing.doubles import record
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.forks import Forks, forking

ROOT = Path(__file__).resolve().parent.parent.parent

PATHS = ["", "a", "a.b", "a.0", "c.a.b", "0"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every document be a large one, and its window end within whatever there is."""
    monkeypatch.setattr(bounds, "AT_ONCE_BYTES", 1)
    monkeypatch.setattr(bounds, "IN_THREAD_BYTES", 0)
    monkeypatch.setattr(reader, "_WINDOW_BYTES", 20)


def held(items: Any) -> Any:
    if isinstance(items, ManyItems):
        assert len(list(items)) == len(items)
        return list(items)
    return dict(items.items()) if isinstance(items, ManyKeyed) else items


def made(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random()
    if depth > 3 or kind < 0.4:
        return chance.choice(
            [1, -1.5e3, 0.5, True, None, "a", 'é☃😀,[{"\\ ', "", 12345678901234, "x" * 30]
        )
    if kind < 0.7:
        return [made(chance, depth + 1) for _ in range(chance.randrange(5))]
    names = ["a", "b", "a.b", "c", "0"]
    return {chance.choice(names): made(chance, depth + 1) for _ in range(chance.randrange(5))}


def texts(seed: int) -> Iterator[bytes]:
    """Yield a document, and what becomes of it by accident."""
    chance = random.Random(seed)
    document = made(chance)
    body = json.dumps(
        document, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, 1])
    ).encode()
    yield body
    place = chance.randrange(len(body) + 1)
    added = chance.choice([b"", b",", b"]", b'"', b"1", b"\xff", b"NaN"])
    yield body[:place] + added + body[place + chance.randrange(3) :]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("seed", range(60))
async def test_large_document_is_read_as_a_small_one(
    seed: int, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is sent: the same records at the same paths, or an error where that is one."""

    def few(_: object) -> bool:
        return keeps

    monkeypatch.setattr(Scan, "_has_few_values", few)
    for body in texts(seed):
        if len(body.strip()) < 2:
            continue
        try:
            whole = parse_json(body)
        except ValueError:
            with pytest.raises(ValueError, match=r"."):
                await read_document(body, "a")
            continue
        for path in PATHS:
            found = await read_document(body, path)
            assert repr(held(found.items)) == repr(value_at(whole, path))


def test_each_part_of_a_document_lacks_its_end_and_the_document_has_it() -> None:
    """Wherever a list or object was cut, also in a text with brackets, its last bracket is gone."""
    for seed in range(100):
        text = json.dumps([made(random.Random(seed))], ensure_ascii=False).encode()
        assert all(lacks_end(text[:kept]) for kept in range(1, len(text)))
        assert not lacks_end(text)
        assert lacks_end("\ufeff\n".encode() + text[:-1])


@pytest.mark.parametrize("text", ["", " ", "<html>[", "1", '"[', "[]]", "id,[{"])
def test_text_that_is_no_list_and_no_object_lacks_no_end(text: str) -> None:
    """Of another format nothing is known here."""
    assert not lacks_end(text.encode())
    assert not lacks_end("[".encode("utf-16"))


@pytest.mark.parametrize("is_large", [True, False])
@pytest.mark.parametrize(
    ("text", "path", "key"),
    [
        ('{"items": [{"a": 1}], "more": true, "items": []}', "items", "items"),
        ('{"more": true, "items": [], "more": false}', "items", "more"),
        ('{"data": {"items": [1], "items" : [2]}}', "data.items", "items"),
        ('{"data": {"items": [1]}, "data": {"items": [2]}}', "data.items", "data"),
        ('{ "1" : {"a": 1} ,\n"2":{}, "\\u0031" :{"a": 2}}', "", "1"),
        ('{"data": {"1": {}, "2": {}, "1": {}}}', "data", "1"),
        ('{"a.b": {"1": {}, "1": {}}}', "a.b", "1"),
    ],
)
async def test_key_that_is_there_twice_around_records_is_refused(
    is_large: bool, text: str, path: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parser keeps the last of two, and the records of the other would be lost in silence."""
    if is_large:
        monkeypatch.setattr(bounds, "AT_ONCE_BYTES", 1)
        monkeypatch.setattr(bounds, "IN_THREAD_BYTES", 0)
    with pytest.raises(DuplicateKeyError, match=f"the key '{key}' occurs twice"):
        await read_document(text.encode(), path)


@pytest.mark.parametrize("is_large", [True, False])
async def test_key_that_is_there_twice_in_a_record_is_not_looked_for(
    is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every parser has it, the last one counts: to find it would be to parse it twice."""
    if is_large:
        monkeypatch.setattr(bounds, "AT_ONCE_BYTES", 1)
        monkeypatch.setattr(bounds, "IN_THREAD_BYTES", 0)
    found = await read_document(b'{"items": [{"a": 1, "a": 2}], "n": {"b": 1, "b": 2}}', "items")

    assert (found.items, found.envelope["n"]) == ([{"a": 2}], {"b": 2})


async def test_document_with_a_key_twice_fails_and_says_so() -> None:
    """It is JSON, and says two things."""
    told = r"is ambiguous, after 26 bytes .* 'items' occurs twice"
    async with (
        FeedServer(Answer(b'{"items": [], "items": []}')) as feed,
        source_http("feed") as http,
    ):
        with pytest.raises(SourceError, match=told):
            await http.document(await http.get(feed.url), "items")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ('{"total": 2, "data": {"items": [{"a": 0.10}, 2], "next": "n"}}', "data.items"),
        ('{"a.b": [1], "a": {"b": [2]}}', "a.b"),
        ('{"a": {"b": [2]}}', "a.b"),
        ('[{"a": 1}, {"a": -0}]', ""),
        ('{"7": {"a": 1}, "8": {"a": 1e400}}', ""),
        ('[[], {"a": [1]}]', "1.a"),
        ('{"a": null}', "a"),
        ('{"a": "text"}', "a.b"),
        ("\ufeff[1]", ""),
    ],
)
async def test_document_is_the_same_in_one_step_and_by_windows(
    body: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of a document decides how it is parsed, and nothing else."""
    monkeypatch.setattr(bounds, "AT_ONCE_BYTES", 1)
    in_one_step = await read_document(body.encode(), path)
    monkeypatch.setattr(bounds, "IN_THREAD_BYTES", 0)
    by_windows = await read_document(body.encode(), path)

    assert repr(in_one_step) == repr(by_windows)


@pytest.mark.parametrize("body", ['{"items": [1, 2}', '{"items": [', '{"items": [1]} x', "[NaN]"])
async def test_fault_of_a_document_is_the_same_in_one_step(
    body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place of the fault is its byte, whichever way found it."""
    monkeypatch.setattr(bounds, "AT_ONCE_BYTES", 1)
    faults = []
    for size in (bounds.IN_THREAD_BYTES, 0):
        monkeypatch.setattr(bounds, "IN_THREAD_BYTES", size)
        with pytest.raises(ValueError, match=r"at byte|not JSON") as found:
            await read_document(body.encode(), "items")
        faults.append(str(found.value))

    assert faults[0] == faults[1]


@pytest.mark.parametrize("body", ['{"a": [], "a": [1]}', '{"b": 1, "b": 2, "a": [1]}'])
async def test_key_that_is_there_twice_is_found_in_one_step(
    body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document that says two things is refused at every size."""
    monkeypatch.setattr(bounds, "AT_ONCE_BYTES", 1)
    with pytest.raises(DuplicateKeyError, match="occurs twice"):
        await read_document(body.encode(), "a")


def outcome(body: bytes) -> str:
    """Return the items of a large document, or what is wrong with it."""
    try:
        _, items = Scan(body, 0).read("a")
        return repr(list(items.items()) if is_keyed(items) else list(items))
    except (ValueError, RecursionError) as error:
        return str(error)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(20))
def test_items_are_the_same_in_runs_and_one_by_one(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guessed end of an item is never a wrong one, and a fault has the same place."""
    chance = random.Random(seed)
    monkeypatch.setattr(Scan, "_has_few_values", lambda _: False)
    tricky = ["},{", '"},"', "]}", "é", "\ud800", 0.10, 1e22, {"b": [{}, {}]}, [{"c": 1}, {"c": 2}]]
    items = [{"n": n, "t": chance.choice([*tricky, *range(40)])} for n in range(80)]
    keyed = {str(n) + "},{": each for n, each in enumerate(items)}
    runs: list[object] = []

    def parsed(*sent: Any) -> Any:
        runs.append(found := parse_compact(*sent))
        return found

    for content in (items, keyed):
        body = json.dumps({"a": content, "z": 1}, separators=(",", ":")).encode()
        place = chance.randrange(len(body))
        broken = body[:place] + chance.choice([b"}", b"]", b",", b'"', b""]) + body[place + 1 :]
        for sent in (body, broken, body.replace(b'"n":7', b'"n":7.50')):
            monkeypatch.setattr(reader, "_WINDOW_BYTES", chance.choice([60, 200, 1_000]))
            monkeypatch.setattr(reader, "parse_compact", parsed)
            found = outcome(sent)
            monkeypatch.setattr(reader, "parse_compact", lambda *_: None)
            assert found == outcome(sent)
    assert any(runs)


@pytest.mark.usefixtures("small")
def test_items_that_are_read_one_by_one_are_no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists within lists are not searched again and again while they are made."""
    collects: list[bool] = []
    value = reader.Reader.value

    def noted(self: reader.Reader) -> Any:
        collects.append(gc.isenabled())
        return value(self)

    monkeypatch.setattr(reader.Reader, "value", noted)
    for body in (b"[[[]], [[]]]", b'{"1": [[]], "2": [[]]}'):
        list(reader.runs_of(reader.Reader(body, 0)))

    assert set(collects) == {False}
    assert gc.isenabled()


async def test_large_document_in_a_file_is_read_as_one_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is read a part at a time, as often as needed; a file that lost bytes is an error."""
    monkeypatch.setattr(Scan, "_has_few_values", lambda _: False)
    items = [{"n": n, "text": "x" * 1_000} for n in range(2_000)]
    sent = json.dumps(items, separators=(",", ":")).encode()
    body = SpooledBody.of(sent)
    assert isinstance(body, SpooledBody)
    assert (len(body), body[:9], body[5], bytes(body)) == (len(sent), sent[:9], sent[5], sent)
    found, other = [(await read_document(each, "")).items for each in (body, sent)]
    assert isinstance(found, ManyItems)

    for _ in range(2):
        assert [each for _, run in found.runs() for each in run] == items
    assert found == other
    assert found.digest() == other.digest()
    os.truncate(body._file.fileno(), 9)
    with pytest.raises(OSError, match="lost bytes"):
        body[:]


def test_document_stays_in_memory_where_no_file_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk, or a container without one, costs memory and nothing else."""

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spooled, "TemporaryFile", full)
    assert SpooledBody.of(b"[1]") == b"[1]"


@pytest.mark.usefixtures("small")
async def test_envelope_is_all_but_the_records() -> None:
    """What is beside the records is there; in their place is nothing."""
    body = json.dumps({"total": 2, "data": {"items": [1, 2], "next": "n"}}).encode()
    found = await read_document(body, "data.items")

    assert found == Document({"total": 2, "data": {"items": [], "next": "n"}}, [1, 2])


@pytest.mark.usefixtures("small")
async def test_records_that_are_many_can_be_read_again_and_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are counted, indexed and told apart without being held."""
    monkeypatch.setattr(bounds, "MAX_VALUES", 20)
    body = json.dumps({"a": [{"id": number} for number in range(50)]}).encode()
    items = (await read_document(body, "a")).items
    again = (await read_document(b" " + body, "a")).items
    keyed = (await read_document(json.dumps({str(n): n for n in range(50)}).encode(), "")).items

    assert is_list(items)
    assert len(items) == 50
    assert [each["id"] for each in items] == list(range(50)) == [each["id"] for each in items]
    assert items[-1] == {"id": 49}
    assert items[1:3] == [{"id": 1}, {"id": 2}]
    assert items == again
    assert isinstance(items, ManyItems)
    assert items.digest() == again.digest()
    assert items != (await read_document(body.replace(b"49", b"48"), "a")).items
    assert is_keyed(keyed)
    assert (len(keyed), keyed["49"], list(keyed)[:2]) == (50, 49, ["0", "1"])
    with pytest.raises(KeyError):
        keyed["50"]


async def test_byte_order_marks_and_other_encodings_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A document in another encoding is the same document."""
    monkeypatch.setattr(bounds, "AT_ONCE_BYTES", 1)
    monkeypatch.setattr(bounds, "IN_THREAD_BYTES", 0)
    text = '[{"a": "é😀"}]'
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert (await read_document(text.encode(encoding), "")).items == [{"a": "é😀"}]


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * 20_000 + b"[]]",
        b'{"records": [[' + b"0," * 20_000 + b"0]]}",
        b'{"around": [' + b"0," * 20_000 + b'0], "records": []}',
        b'{"around": "' + b"x" * 500_000 + b'", "records": []}',
        b"{" + b",".join(b'"%d":0' % number for number in range(20_000)) + b"}",
    ],
    ids=["lists", "one record", "around", "long text", "keys around"],
)
async def test_more_values_than_are_held_are_refused(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document within the limit of bytes that would fill the memory ends the run instead."""
    monkeypatch.setattr(bounds, "AT_ONCE_BYTES", 10_000)
    monkeypatch.setattr(bounds, "IN_THREAD_BYTES", 0)
    monkeypatch.setattr(reader, "_WINDOW_BYTES", 5_000)
    monkeypatch.setattr(bounds, "MAX_VALUES", 10_000)
    monkeypatch.setattr(bounds, "MAX_ITEM_BYTES", 200_000)
    with pytest.raises(TooMuchError):
        await read_document(body, "records")
    with pytest.raises(TooMuchError):
        parse(body)


@pytest.mark.parametrize("letter", ["x", "é", "\U0001f600"])
@pytest.mark.parametrize("path", ["", "a", "b"], ids=["in a list", "at a path", "around"])
async def test_record_is_as_long_as_is_said(
    letter: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is bounded are the bytes of one record, wherever a window of the document ends."""
    monkeypatch.setattr(bounds, "AT_ONCE_BYTES", 10_000)
    monkeypatch.setattr(bounds, "IN_THREAD_BYTES", 0)
    monkeypatch.setattr(reader, "_WINDOW_BYTES", 5_000)
    monkeypatch.setattr(bounds, "MAX_ITEM_BYTES", 100_000)
    width = len(letter.encode())
    around = '[{}, "z"]' if not path else '{{"a": [{}, "z"], "c": 1}}'

    def body(size: int) -> bytes:
        return around.format(json.dumps(letter * (size // width), ensure_ascii=False)).encode()

    assert await read_document(body(99_000), path)
    with pytest.raises(TooMuchError, match="has over 100000 bytes"):
        await read_document(body(101_000), path)
    with pytest.raises(TooMuchError, match="has over 100000 bytes"):
        parse(body(101_000))


async def test_commas_in_texts_are_no_values() -> None:
    """What counts is what becomes an object, and not what a long text is made of."""
    body = b'[{"a": "' + b'a,[{\\"' * 600_000 + b'"}]'

    assert len(parse(body)[0]["a"]) == 5 * 600_000
    assert len((await read_document(body, "")).items) == 1


async def test_error_of_a_large_document_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator can look at the place; nothing of the document is in the message."""
    monkeypatch.setattr(bounds, "AT_ONCE_BYTES", 1)
    monkeypatch.setattr(bounds, "IN_THREAD_BYTES", 0)
    async with (
        FeedServer(Answer(b'[{"a": 1}, {"SECRET" 2}]')) as feed,
        source_http("feed") as client,
    ):
        with pytest.raises(SourceError) as caught:
            await client.document(await client.get(feed.url), "")

    assert "is not JSON, after 24 bytes" in str(caught.value)
    assert "at byte" in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__context__ is None


HOSTILE = {
    "lists": "b'[],'",
    "objects": "b'{\"a\":0},'",
    "long integers": "b'9' * 4000 + b','",
    "numbers": "b'0.12345678901234567890,'",
    "wide texts": "b'{\"a\":\"' + '\\U0001f600'.encode() * 1000 + b'\"},'",
    "nested": "b'[' * 400 + b']' * 400 + b','",
}

MEASURED = """
import asyncio, sys, time
from ladon_storage.collection.garbage import objects_set_aside
from ladon_storage.sources.json import bounds, documents

unit, size = {unit}, {size}
body = b'{{"records":[' + (unit * (size // len(unit)))[:-1] + b"]}}"
bounds.MAX_ITEMS = 100_000
longest = 0.0

async def beat():
    global longest
    while True:
        began = time.thread_time()
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - began)

async def main():
    beating = asyncio.create_task(beat())
    await asyncio.sleep(0)
    try:
        document = await documents.read_document(body, "records")
        for number, _ in enumerate(document.items):
            if number % 100 == 0:
                await asyncio.sleep(0)
    except bounds.TooMuchError:
        pass
    beating.cancel()

with objects_set_aside():  # as in a run
    asyncio.run(main())
# Of this program alone: what getrusage tells begins with what its parent had.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(longest, int(peak.split()[1]) // 1024)
"""


def test_page_of_large_records_is_cut_before_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand records of a megabyte are no transaction of a gigabyte."""
    monkeypatch.setattr(records, "PAGE_CHARACTERS", 250)
    items = [Reject("", "x" * 100) for _ in range(5)] + [record("1", 0, "x" * 300)] * 2

    assert [len(page) for page in records.paged(items, 4)] == [3, 3, 1]


@pytest.fixture(scope="module")
def parsing() -> Iterator[Forks]:
    """Import the parser once for the processes that are measured."""
    with forking("ladon_storage.sources.json.documents") as forks:
        yield forks


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_document_takes_little_and_holds_nothing(
    name: str, parsing: Forks, tmp_path: Path
) -> None:
    """Made to explode, it takes hardly more than its bytes, and everything else goes on.

    Processor time is measured: how long a machine that is busy takes for it says nothing.
    """
    size = bounds.IN_THREAD_BYTES + 2**20
    script = MEASURED.format(unit=HOSTILE[name], size=size)
    async with parsing.run(script, folder=tmp_path) as process:
        output, log = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, log
    longest, mebibytes = map(float, output.split())

    assert longest < 1
    assert mebibytes < 500


async def test_record_of_very_many_values_holds_no_loop() -> None:
    """One record is one step of the parser, which takes a second for a million of numbers."""
    numbers = ",".join(map(str, range(1_000_000, 1_300_000)))
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0)
    began = time.process_time()
    document = await read_document(f'{{"a": [{{"b": [{numbers}]}}]}}'.encode(), "a")
    took = time.process_time() - began
    await asyncio.sleep(0)
    beating.cancel()

    assert len(document.items[0]["b"]) == 300_000
    assert longest < took / 10


async def test_cancelled_reading_leaves_no_thread_that_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that was told to end is not held up by the rest of a large document."""
    begun, ended, outcome = threading.Event(), threading.Event(), []
    read = Scan.read

    def noted(scan: Scan, path: str) -> tuple[Any, Any]:
        begun.set()
        try:
            return read(scan, path)
        except BaseException as error:
            outcome.append(type(error))
            raise
        finally:
            ended.set()

    monkeypatch.setattr(Scan, "read", noted)
    reading = asyncio.create_task(read_document(b"[" + b'{"a":1},' * 1_000_000 + b"0]", ""))
    assert await asyncio.to_thread(begun.wait, 30)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    assert await asyncio.to_thread(ended.wait, 30)
    assert outcome == [asyncio.CancelledError]


async def test_unpacking_does_not_hold_the_loop() -> None:
    """A body that unpacks to a thousand times as much leaves others their turn meanwhile."""
    body = gzip.compress(b"0" * 2**25)
    turns = 0

    async def beat() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with (
        FeedServer(Answer(body, headers={"Content-Encoding": "gzip"})) as feed,
        source_http("feed") as client,
    ):
        beating = asyncio.create_task(beat())
        await client.get(feed.url)
        beating.cancel()

    assert turns > 2**25 / 2**20


class Sink:
    """What a sink knows: the digest of a document, or none."""

    def __init__(self, document: str | None) -> None:
        self.document = document
        self.must_reach = None

    async def lacking(self, listed: Any) -> set[str]:
        return set(listed)

    async def ahead(self, listed: Any) -> set[str]:
        return set()


async def read(source: Any, known: KnownContent | None, until: Any = None) -> list[Page]:
    return [page async for page in source.pages(None, until, known)]


DUMP = b"# id,dateadded,url\n" + b'"1","2024-01-01 00:00:00","http://a"\n'
CATALOGUE = json.dumps(
    {"count": 1, "vulnerabilities": [{"cveID": "CVE-1", "dateAdded": "2024-01-01"}]}
).encode()
EXPORT = json.dumps({"7": [{"first_seen_utc": "2024-01-01 00:00:00"}]}).encode()


@pytest.mark.parametrize(("kind", "body"), [(Kev, CATALOGUE), (ThreatFox, EXPORT), (UrlHaus, DUMP)])
async def test_document_that_the_sink_has_is_not_read_again(kind: Any, body: bytes) -> None:
    """Nothing new costs one request; a change of a byte or of a setting is read."""
    play = [Answer(body)] * 5 + [Answer(body + b"\n")]
    async with FeedServer(*play) as feed:
        source = kind(url=feed.url)
        [page] = await read(source, Sink(None))
        digest = page.document
        assert digest is not None
        assert len(digest) == 30
        assert (len(page), page.completeness) == (1, "whole document")

        [known] = await read(source, Sink(digest))
        assert (known.unchanged, len(known), known.document) == (True, 0, digest)
        assert known.asked_at is not None
        assert known.completeness == "whole document"

        [other] = await read(kind(url=feed.url, source_id="other"), Sink(digest))
        [backfill] = await read(source, Sink(digest), page.records[0].timestamp)
        [unknown] = await read(source, None)
        [changed] = await read(source, Sink(digest))

    assert [len(each) for each in (other, backfill, unknown, changed)] == [1, 1, 1, 1]
    assert backfill.document is None
    assert changed.document not in (None, digest)


def test_digest_tells_settings_and_no_connection() -> None:
    """The same document by another way is the same; with other settings it is another one."""
    one = Kev(url="https://feed.example/kev.json")
    proxied = Kev.model_validate({**one.model_dump(), "connection": {"timeout": 5}})
    other = Kev(url="https://feed.example/kev.json", source_id="other")

    assert document_digest(one, b"{}") == document_digest(proxied, b"{}")
    assert document_digest(one, b"{}") != document_digest(other, b"{}")
    assert document_digest(one, b"{}") != document_digest(one, b"{ }")


def test_digest_of_a_large_document_is_quick() -> None:
    """It may hold the loop for no longer than anything else."""
    body = bytes(64 * 2**20)
    began = time.thread_time()
    document_digest(Kev(), body)

    assert time.thread_time() - began < 0.5


def api(url: str, **more: Any) -> RestApi:
    return RestApi(source_id="feed", url=url, timestamps=("at",), **more)


def item(number: int) -> dict[str, Any]:
    return {"id": number, "at": "2024-01-01T00:00:00Z"}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("most", [10_000, 20])
@pytest.mark.parametrize("keyed", [False, True])
async def test_api_with_a_large_document_is_collected_whole(
    most: int, keyed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its records are held or not: all come, and the total beside them is compared."""
    monkeypatch.setattr(bounds, "MAX_VALUES", most)
    found: Any = [item(number) for number in range(2_500)]
    if keyed:
        found = {str(each["id"]): each for each in found}
    body = {"total": 2_500, "data": {"items": found}}
    async with FeedServer(Answer.of(body), Answer.of(body | {"total": 2_501})) as feed:
        source = api(feed.url, records="data.items", records_keyed_by_id=keyed)
        pages = await read(source, None)
        with pytest.raises(SourceError, match=r"2501 items at .*, and returned 2500"):
            await read(source, None)

    assert [len(page) for page in pages] == [1_000, 1_000, 500]
    assert [each.record_id for page in pages for each in page.records] == [
        str(number) for number in range(2_500)
    ]


@pytest.mark.usefixtures("small")
async def test_pages_of_an_api_may_be_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list in pages of which each is too much to be held ends where it ends."""
    monkeypatch.setattr(bounds, "MAX_VALUES", 20)
    pages = [[item(number) for number in range(first, first + 50)] for first in (0, 50)]

    def play(asked: Asked) -> Answer:
        number = int(asked.query["page"])
        return Answer.of(pages[number - 1] if number <= len(pages) else [])

    async with FeedServer(play=play) as feed:
        found = await read(api(feed.url, paging={"kind": "page"}), None)

    ids = {each.record_id for page in found for each in page.records}
    assert ids == {str(number) for number in range(100)}


async def test_one_document_of_an_api_that_the_sink_has_is_not_read_again() -> None:
    """An API that lists everything is as cheap as an export while nothing changes."""
    body = json.dumps([item(1)]).encode()
    async with FeedServer(play=lambda _: Answer(body)) as feed:
        [page] = await read(api(feed.url), Sink(None))
        [known] = await read(api(feed.url), Sink(page.document))
        [other] = await read(api(feed.url, zone="Europe/Berlin"), Sink(page.document))
        [paged] = await read(api(feed.url, since={"parameter": "since"}), Sink(page.document))

    assert page.document is not None
    assert (known.unchanged, len(known), known.completeness) == (True, 0, "whole document")
    assert len(other) == 1
    assert (len(paged), paged.document) == (1, None)


async def test_large_document_is_made_into_pages_beside_the_loop() -> None:
    """What takes long is done in a thread; what is small is not worth one."""
    here = threading.current_thread()
    threads = [
        [thread async for thread in in_turns(iter_threads(2), size)]
        for size in (bounds.AT_ONCE_BYTES, bounds.AT_ONCE_BYTES + 1)
    ]

    assert threads[0] == [here, here]
    assert len(threads[1]) == 2
    assert here not in threads[1]


def iter_threads(count: int) -> Iterator[threading.Thread]:
    for _ in range(count):
        yield threading.current_thread()


async def test_dump_in_parts_is_read_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a part ends makes no difference, also next to a row of several lines."""
    rows = [
        f'"{number}","2024-01-01 00:00:00","http://a/\U0001f600\n{number}"\n'
        for number in range(99)
    ]
    body = ("# id,dateadded,url\n" + "".join(rows)).encode()
    found = []
    for size in (2**24, 30, 77, 500):
        monkeypatch.setattr(urlhaus, "_BLOCK_BYTES", size)
        async with FeedServer(Answer(body)) as feed:
            pages = await read(UrlHaus(url=feed.url), None)
        assert [each for page in pages for each in page.rejects] == []
        found.append([each.version for page in pages for each in page.records])

    assert len(found[0]) == 99
    assert all(each == found[0] for each in found)


async def test_dump_without_rows_is_refused_before_it_is_a_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A line of all that an answer may have would be four times as much as a text."""
    monkeypatch.setattr(urlhaus, "_BLOCK_BYTES", 100)
    body = DUMP + b"x" * 1_000 + b"\n"
    async with FeedServer(Answer(body)) as feed:
        with pytest.raises(SourceError, match="in which no row begins"):
            await read(UrlHaus(url=feed.url), None)


@pytest.mark.parametrize(
    ("source", "document"),
    [
        (Kev, {"count": 1, "vulnerabilities": [{"cveID": "a", "dateAdded": "2024-01-01"}]}),
        (
            lambda url: RestApi(
                source_id="f",
                url=url,
                records="a",
                id="i",
                timestamps=["t"],
                paging={"kind": "page"},
            ),
            {"a": [{"i": "1", "t": "2024-01-01"}], "total": 1},
        ),
    ],
)
async def test_records_of_a_large_document_are_looked_at_in_a_thread(
    source: Any, document: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are compared, and digests made, where they do not hold the event loop."""
    monkeypatch.setattr(bounds, "AT_ONCE_BYTES", 1)
    monkeypatch.setattr(bounds, "IN_THREAD_BYTES", 0)
    loop, threads = threading.get_ident(), set[int]()
    found = ItemReader.record_id

    def record_id(self: ItemReader, item: object) -> str | None:
        threads.add(threading.get_ident())
        return found(self, item)

    monkeypatch.setattr(ItemReader, "record_id", record_id)
    async with FeedServer(play=lambda _: Answer.of(document)) as feed:
        made = source(url=feed.url)
        assert sum([len(page) async for page in made.pages(None, None)]) == 1
    assert threads
    assert loop not in threads


class _Held(dict[str, Any]):
    """An item that says when it is gone."""


@pytest.mark.parametrize("is_keyed", [False, True])
def test_item_is_gone_once_its_record_is_made(is_keyed: bool) -> None:
    """Of a large record, its parsed form is not held while its text is written."""
    made: list[weakref.ref[_Held]] = []

    def items() -> Iterator[tuple[str, Any]]:
        for name in "ab":
            item = _Held(i=name, t="2024-01-01")
            made.append(weakref.ref(item))
            pair = (name, item)
            del item
            yield pair
            del pair

    class Keyed(dict[str, Any]):
        def items(self) -> Any:
            return items()

    rules = ItemReader("i", ("t",), any_timestamps())
    listed = map(itemgetter(1), items())
    records_made = rules.read_keyed(Keyed()) if is_keyed else rules.read(listed)
    first, second = next(records_made), next(records_made)
    assert [each.record_id for each in (first, second)] == ["a", "b"]
    assert made[0]() is None
