"""The source that is MISP: an instance that is searched, and a feed that a manifest lists."""

from __future__ import annotations

import json
import sqlite3
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import stamina

from ladon_storage.collection.protocols import Limits
from ladon_storage.collection.records import Page
from ladon_storage.collection.run import run
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.sinks import SqlSink
from ladon_storage.sinks.sql.tables import Keep
from ladon_storage.sources import misp_feed, source_from
from ladon_storage.sources.misp import Misp
from ladon_storage.testing import SourceContract, SourceFeed
from ladon_storage.testing.clock import FakeClock
from ladon_storage.testing.doubles import BEGIN, MemorySink, RememberingSink, ScriptedStorage, at
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.recordings import members
from tests.tables import table

KEY = "kEy-0123456789"
BASE = int(BEGIN.timestamp())


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def event(number: int, minutes: float, info: str = "a") -> dict[str, Any]:
    timestamp = str(int(BASE + minutes * 60))
    return {"Event": {"uuid": uuid(number), "timestamp": timestamp, "info": info, "Attribute": []}}


async def read(source: Misp, start: datetime | None = None, until: datetime | None = None) -> Any:
    return [page async for page in source.pages(start, until)]


def ids(pages: list[Page]) -> list[str]:
    return [each.record_id for page in pages for each in page.records]


class Instance:
    """Answer restSearch as MISP does: `timestamp` is inclusive, and pages are by id.

    A step of ``between`` happens before each answer.
    """

    def __init__(self, *events: dict[str, Any]) -> None:
        self.events = list(events)
        self.between: list[Callable[[], None] | Answer] = []

    def __call__(self, asked: Asked) -> Answer:
        if asked.headers.get("Authorization") != KEY:
            return Answer(b'{"name": "Authentication failed."}', 403)
        if asked.method != "POST" or not asked.path.endswith("/api/misp/events/restSearch"):
            return Answer(status=404)
        step = self.between.pop(0) if self.between else None
        if isinstance(step, Answer):
            return step
        if step is not None:
            step()
        body = asked.body
        assert body["returnFormat"] == "json"
        assert body["order"] == "Event.id asc"
        first, last = "0", "99999999999"
        if isinstance(body.get("timestamp"), list):
            first, last = body["timestamp"]
        elif "timestamp" in body:
            first = body["timestamp"]
        found = [
            each
            for each in self.events
            if int(first) <= int(each["Event"].get("timestamp") or first) <= int(last)
        ]
        skipped = (body["page"] - 1) * body["limit"]
        return Answer.of({"response": found[skipped : skipped + body["limit"]]})


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISP_KEY", KEY)


def instance_at(server: FeedServer, **fields: Any) -> Misp:
    return Misp(url=server.at("misp"), key="MISP_KEY", **{"page_size": 2, **fields})


# An instance.


async def test_events_are_read_until_a_page_is_empty() -> None:
    """A full last page says nothing; the filter is Unix seconds as text, and inclusive.

    Each page is asked for again behind the next one, and the first one at the end.
    """
    instance = Instance(*(event(n, n) for n in range(6)))
    async with FeedServer(play=instance) as server:
        pages = await read(instance_at(server), at(2), at(5))
        asked = [each.body for each in server.asks]

    assert ids(pages) == [uuid(2), uuid(3), uuid(4), uuid(5)]
    assert {tuple(each["timestamp"]) for each in asked} == {(str(BASE + 120), str(BASE + 300))}
    assert [each["page"] for each in asked] == [1, 2, 1, 3, 2, 1]
    record = pages[0].records[0]
    assert (record.timestamp, json.loads(record.payload)) == (at(2), event(2, 2))


@pytest.mark.parametrize(
    ("start", "until", "expected"),
    [
        (None, None, None),
        (at(0) + timedelta(microseconds=1), None, str(BASE)),
        (None, at(0) + timedelta(microseconds=1), ["0", str(BASE + 1)]),
    ],
)
async def test_filter_is_wider_than_the_range(
    start: datetime | None, until: datetime | None, expected: Any
) -> None:
    """It counts in seconds."""
    async with FeedServer(play=Instance()) as server:
        await read(instance_at(server), start, until)

    assert server.asks[0].body.get("timestamp") == expected


async def test_event_that_changes_while_paging_pushes_out_none() -> None:
    """Pages are by id, so that the others stay where they are; it comes again as it is now."""
    instance = Instance(*(event(n, n) for n in range(6)))
    instance.between = [lambda: None, lambda: instance.events.__setitem__(0, event(0, 50, "b"))]
    sink, storage = MemorySink(), ScriptedStorage()
    async with FeedServer(play=instance) as server:
        source = instance_at(server)
        await run(source, sink, storage, run_id="1", clock=lambda: at(60))
        await run(source, sink, storage, run_id="2", clock=lambda: at(60))

    assert sink.ids == [uuid(0), *(uuid(n) for n in range(6))]
    assert storage.stored["misp"].last_successful_timestamp == at(50)


async def test_synced_event_with_an_old_timestamp_is_found_by_the_overlap() -> None:
    """It is collected once, and the watermark stays; one beyond the overlap needs a backfill."""
    instance = Instance(event(1, 3_000))
    sink, storage = MemorySink(), ScriptedStorage(now=lambda: at(3_000))
    async with FeedServer(play=instance) as server:
        source = instance_at(server)
        for _ in range(2):
            await run(source, sink, storage, run_id="1", clock=lambda: at(3_000))
            instance.events = [event(2, 1_600), event(3, 1_500), event(1, 3_000)]
        assert sink.ids == [uuid(1), uuid(2)]
        await run(source, sink, storage, run_id="3", since=at(0), until=at(1_600))

    assert sink.ids == [uuid(1), uuid(2), uuid(3)]
    assert storage.stored["misp"].last_successful_timestamp == at(3_000)


async def test_throttled_instance_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is asked for again, and nothing is lost."""
    instance = Instance(*(event(n, n) for n in range(3)))
    instance.between = [lambda: None, Answer(status=429), Answer(status=503)]
    stamina.set_testing(True, attempts=3, cap=True)
    try:
        async with FeedServer(play=instance) as server:
            pages = await read(instance_at(server))
    finally:
        stamina.set_testing(False)

    assert ids(pages) == [uuid(0), uuid(1), uuid(2)]


async def test_unusable_events_are_rejected_and_the_rest_goes_on() -> None:
    """Without a uuid or with an impossible timestamp they are quarantined with the reason."""
    bad = [{"Event": {"uuid": uuid(7), "timestamp": "x"}}, {"Event": {"timestamp": "1"}}, 7, {}]
    found = [*bad, event(1, 1)]
    async with FeedServer(
        play=lambda asked: Answer.of({"response": found if asked.body["page"] == 1 else []})
    ) as server:
        pages = await read(instance_at(server))

    assert ids(pages) == [uuid(1)]
    assert [each.record_id for page in pages for each in page.rejects] == [
        uuid(7),
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    "document",
    [{"errors": "You do not have permission"}, {"response": {"Event": []}}, [], {"response": None}],
)
async def test_answer_of_another_structure_fails(document: Any) -> None:
    """It is no empty page, which would be a silent success."""
    async with FeedServer(Answer.of(document)) as server:
        with pytest.raises(SourceError, match="does not have a list at 'response'"):
            await read(instance_at(server))


async def test_instance_that_ignores_the_page_does_not_loop() -> None:
    """The same page again is an error."""
    async with FeedServer(play=lambda _: Answer.of({"response": [event(1, 1)]})) as server:
        with pytest.raises(SourceError, match="the same page again"):
            await read(instance_at(server))
    assert len(server.asks) == 3


@pytest.mark.parametrize(
    ("first", "stated", "is_whole"),
    [(range(7), "7", True), (range(7), "9", False), (range(3), "7", False), (range(3), "3", False)],
)
async def test_instance_that_ignores_the_limit_is_whole_where_it_says_so(
    first: range, stated: str, is_whole: bool
) -> None:
    """All that is stated came, and more than was asked for; else the same page proves nothing."""
    page = json.dumps({"response": [event(n, n) for n in first]}).encode()
    answer = Answer(page, headers={"X-Result-Count": stated})
    async with FeedServer(play=lambda _: answer) as server:
        source = instance_at(server, page_size=3)
        if is_whole:
            assert ids(await read(source)) == [uuid(n) for n in first]
        else:
            with pytest.raises(SourceError):
                await read(source)


async def test_instance_that_gives_fewer_than_it_counts_fails() -> None:
    """An empty second page is no end where more are stated."""

    def broken(asked: Asked) -> Answer:
        found = [event(n, n) for n in range(3)] if asked.body["page"] == 1 else []
        body = json.dumps({"response": found}).encode()
        return Answer(body, headers={"X-Result-Count": "7"})

    async with FeedServer(play=broken) as server:
        with pytest.raises(SourceError, match="states 7 items"):
            await read(instance_at(server, page_size=3))


async def test_event_that_is_deleted_meanwhile_pulls_none_out() -> None:
    """Those behind it move up by one, onto a page that was read already."""
    instance = Instance(*(event(n, n) for n in range(6)))
    instance.between = [lambda: None, lambda: instance.events.__delitem__(0)]
    async with FeedServer(play=instance) as server:
        pages = await read(instance_at(server))

    assert sorted(ids(pages)) == [uuid(n) for n in range(6)]


async def test_error_inside_of_an_answer_fails() -> None:
    """An empty list beside an error is no end."""
    answer = Answer.of({"response": [], "errors": ["Invalid filter"]})
    async with FeedServer(play=lambda _: answer) as server:
        with pytest.raises(SourceError, match=r"\['Invalid filter'\] at 'errors'"):
            await read(instance_at(server))


async def test_key_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is refused is not shown."""
    monkeypatch.setenv("MISP_KEY", "wrong-key-SECRET")
    async with FeedServer(play=Instance()) as server:
        with pytest.raises(SourceError, match="answered 403") as caught:
            await read(instance_at(server))
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


async def test_filters_are_sent() -> None:
    """What else an instance can be asked for goes into the body as it is."""
    async with FeedServer(play=Instance()) as server:
        await read(instance_at(server, filters={"tags": ["apt"], "published": True}))

    assert server.asks[0].body["tags"] == ["apt"]
    assert server.asks[0].body["published"] is True


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "an instance requires a key"),
        ({"key": "K", "filters": {"page": 2, "tags": "x"}}, "filters must not contain page"),
        ({"via": "feed", "filters": {"tags": "x"}}, "a feed takes no filters"),
        ({"key": "K", "page_size": 0}, "page_size"),
        ({"key": "K", "from": "2024-01-01"}, "from: There is no such field"),
    ],
)
def test_wrong_setting_is_named(fields: dict[str, Any], message: str) -> None:
    """It is refused before anything is asked."""
    with pytest.raises(ConfigurationError, match=message):
        source_from({"kind": "misp", "url": "https://misp.example.org", **fields})


# A feed.


class Files:
    """Serve a feed's manifest and the files that there are."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.manifest: dict[str, Any] = {}
        self.files: dict[str, Answer] = {}
        for each in events:
            self.add(each)

    def add(self, document: dict[str, Any]) -> None:
        content = document["Event"]
        self.manifest[content["uuid"]] = {"timestamp": int(content["timestamp"]), "info": "x"}
        self.files[content["uuid"]] = Answer.of(document)

    def __call__(self, asked: Asked) -> Answer:
        name = asked.path.removeprefix("/api/feed/").removesuffix(".json")
        if name == "manifest":
            return Answer.of(self.manifest)
        return self.files.get(name, Answer(status=404))


def feed_at(server: FeedServer, path: str = "feed/", **fields: Any) -> Misp:
    return Misp(via="feed", url=server.at(path), **fields)


@pytest.mark.parametrize("path", ["feed", "feed/", "feed/manifest.json"])
async def test_backfill_of_a_feed_reads_the_events_in_its_range(path: str) -> None:
    """The oldest come first; what is listed besides is named, and so not taken for removed."""
    files = Files(*(event(n, 10 - n) for n in range(5)))
    async with FeedServer(play=files) as server:
        pages = await read(feed_at(server, path), at(7), at(10))
        asked = [each.path.rpartition("/")[2] for each in server.asks]

    assert ids(pages) == [uuid(3), uuid(2), uuid(1)]
    assert [each for page in pages for each in page.listed] == [uuid(0), uuid(4)]
    assert asked == ["manifest.json", *(f"{each}.json" for each in ids(pages))]
    assert json.loads(pages[1].records[0].payload) == event(3, 7)


async def test_feed_is_read_a_page_of_events_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are large: what is held is a page, and a run that is cut off goes on behind it."""
    monkeypatch.setattr(misp_feed, "PAGE_EVENTS", 2)
    files = Files(*(event(n, n) for n in range(5)))
    sink, storage = RememberingSink(), ScriptedStorage()
    files.files[uuid(3)] = Answer(status=401)
    async with FeedServer(play=files) as server:
        source = feed_at(server, overlap=timedelta(0))
        with pytest.raises(SourceError, match="answered 401"):
            await run(source, sink, storage, run_id="1", clock=lambda: at(60))
        files.add(event(3, 3))
        report = await run(source, sink, storage, run_id="2", clock=lambda: at(60))

    assert report.start == at(1)
    assert sink.ids == [uuid(n) for n in range(5)]


async def test_event_that_the_manifest_drops_is_marked_removed(tmp_path: Path) -> None:
    """It stays in the sink with a mark, which it loses when it is listed again."""
    files = Files(*(event(n, n) for n in range(4)))
    storage = ScriptedStorage()
    path = tmp_path / "records.db"

    async def collected() -> Any:
        sink = SqlSink(f"sqlite:///{path}")
        return await run(
            feed_at(server), sink, storage, run_id="r", clock=lambda: at(60), limits=Limits()
        )

    def marked() -> list[str]:
        return [row[0] for row in table(path, "record_id, removed_at") if row[1] is not None]

    async with FeedServer(play=files) as server:
        await collected()
        entry = files.manifest.pop(uuid(1))
        assert (await collected()).records_removed == 1
        assert marked() == [uuid(1)]
        files.manifest[uuid(1)] = entry
        assert (await collected()).records_removed == 0

    assert marked() == []
    assert len(table(path)) == 4


async def test_file_that_is_missing_for_ever_is_quarantined_once() -> None:
    """The rest goes on, run after run, and what is listed is not taken for removed."""
    files = Files(*(event(n, n) for n in range(4)))
    sink, storage = RememberingSink(), ScriptedStorage()
    async with FeedServer(play=files) as server:
        await run(feed_at(server), sink, storage, run_id="1", clock=lambda: at(60))
        del files.files[uuid(2)]
        files.manifest[uuid(2)]["timestamp"] += 60
        for run_id in ("2", "3"):
            report = await run(feed_at(server), sink, storage, run_id=run_id, clock=lambda: at(60))

    assert [reason for _, reason, _ in sink.rejects] == [
        "its file, which the manifest lists, answered 404"
    ]
    assert (report.records_quarantined, report.records_removed, sink.removed) == (1, 0, set())
    assert sink.ids == [uuid(n) for n in range(4)]


@dataclass
class Sunk:
    """What a sink knows: the ids that it lacks."""

    lacks: set[str]
    document: str | None = None
    must_reach: datetime | None = None

    async def lacking(self, listed: Mapping[str, datetime]) -> set[str]:
        return self.lacks & listed.keys()

    async def ahead(self, listed: Mapping[str, datetime]) -> set[str]:
        return set()


async def test_feed_is_asked_for_what_the_sink_lacks_however_old() -> None:
    """An event that was published late under an old time is read; the others are only named."""
    files = Files(*(event(n, n) for n in range(5)))
    async with FeedServer(play=files) as server:
        source = feed_at(server)
        known = Sunk({uuid(3), uuid(0)})
        pages = [page async for page in source.pages(at(4), None, known)]

    assert source.uses_known
    assert ids(pages) == [uuid(0), uuid(3)]
    assert [each for page in pages for each in page.listed] == [uuid(1), uuid(2), uuid(4)]
    assert (pages[0].total, pages[-1].completeness) == (5, "whole document")


@pytest.mark.parametrize("keep", ["latest", "all"])
async def test_event_that_goes_back_is_what_the_feed_says(tmp_path: Path, keep: Keep) -> None:
    """As one that was published by mistake, and then as it had been."""
    files, storage = Files(event(0, 9)), ScriptedStorage()
    async with FeedServer(play=files) as server:
        for n, info, requests in ((5, "a", 3), (3, "b", 2), (3, "b", 1), (5, "a", 2), (5, "a", 1)):
            files.add(event(1, n, info))
            asked = len(server.asks)
            sink = SqlSink(f"sqlite:///{tmp_path}/records.db", keep=keep)
            await run(feed_at(server), sink, storage, run_id="r", clock=lambda: at(60))
            assert len(server.asks) - asked == requests
            where = "AND replaced_at IS NULL" if keep == "all" else ""
            with closing(sqlite3.connect(tmp_path / "records.db")) as database:
                query = f"SELECT payload FROM records WHERE record_id = '{uuid(1)}' {where}"
                [(payload,)] = database.execute(query)
            assert json.loads(payload)["Event"]["info"] == info


async def test_events_before_the_first_collection_are_not_requested(tmp_path: Path) -> None:
    """The sink lacks them for ever, and no run would store them."""
    files, storage = Files(*(event(n, n) for n in range(5))), ScriptedStorage()
    limits = Limits(initial_lookback=timedelta(minutes=3))
    async with FeedServer(play=files) as server:
        for run_id, new in (("one", 3), ("two", 0)):
            requested = len(server.asks)
            sink = SqlSink(f"sqlite:///{tmp_path}/records.db")
            source = feed_at(server)
            report = await run(
                source, sink, storage, run_id=run_id, limits=limits, clock=lambda: at(5)
            )
            assert (report.records_new, len(server.asks) - requested) == (new, 1 + new)


@pytest.mark.parametrize("status", [403, 404, 410, 451])
async def test_missing_event_does_not_stop_the_others(status: int) -> None:
    """Object stores answer 403 for what is not there."""
    files = Files(*(event(n, n) for n in range(3)))
    files.files[uuid(0)] = Answer(status=status)
    async with FeedServer(play=files) as server:
        pages = await read(feed_at(server))

    assert ids(pages) == [uuid(1), uuid(2)]
    [reject] = [each for page in pages for each in page.rejects]
    assert reject.reason == f"its file, which the manifest lists, answered {status}"


@pytest.mark.parametrize("others_are_refused", [True, False])
async def test_feed_whose_files_are_all_refused_fails(others_are_refused: bool) -> None:
    """Where each asked event is refused, one that was read before tells whether the key is."""
    files = Files(*(event(n, n) for n in range(3)))
    for n in range(3) if others_are_refused else [2]:
        files.files[uuid(n)] = Answer(status=403)
    async with FeedServer(play=files) as server:
        read_now = feed_at(server).pages(None, None, Sunk({uuid(2)}))
        if others_are_refused:
            with pytest.raises(SourceError, match="every requested file was refused"):
                [page async for page in read_now]
        else:
            assert [each.record_id for page in [p async for p in read_now] for each in page.rejects]


async def test_unusable_files_and_entries_are_rejected_with_their_uuid() -> None:
    """No name is asked for that is no UUID, and one broken file fails no run."""
    files = Files(event(1, 1), event(2, 2), event(3, 3), event(4, 4))
    files.files[uuid(2)] = Answer(b'{"Event": ')
    files.files[uuid(3)] = Answer.of(event(1, 3))
    files.files[uuid(4)] = Answer.of([])
    files.manifest |= {"../secret": {"timestamp": 1}, uuid(5): {"timestamp": "x"}, uuid(6): 7}
    async with FeedServer(play=files) as server:
        pages = await read(feed_at(server))
        asked = [each.path for each in server.asks]

    assert ids(pages) == [uuid(1)]
    rejects = {each.record_id: each.reason for page in pages for each in page.rejects}
    assert sorted(map(str, rejects)) == ["../secret", *map(uuid, range(2, 7))]
    assert rejects["../secret"] == "the manifest lists it under a name that is not a UUID"
    assert "is not JSON" in rejects[uuid(2)]
    assert rejects[uuid(3)] == "Event.uuid: is not the one that the manifest lists"
    assert rejects[uuid(5)].startswith("timestamp: should be a count from 1970 on")
    assert not [path for path in asked if "secret" in path]


async def test_uuid_is_the_same_in_any_case() -> None:
    """The manifest names an event in capital letters, and its file in small ones."""
    named = f"{uuid(1)[:-1]}a"
    files, listed = Files({"Event": {**event(1, 1)["Event"], "uuid": named}}), named.upper()
    files.files[listed], files.manifest = files.files[named], {listed: files.manifest[named]}
    async with FeedServer(play=files) as server:
        assert ids(await read(feed_at(server))) == [listed]


async def test_event_is_as_new_as_the_manifest_says() -> None:
    """A file that changed behind the manifest must not move the watermark beyond the others."""
    files = Files(event(1, 1))
    files.files[uuid(1)] = Answer.of(event(1, 30))
    async with FeedServer(play=files) as server:
        (_, page, _) = await read(feed_at(server))

    assert [each.timestamp for each in page.records] == [at(1)]


async def test_file_older_than_listed_is_asked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache may serve the file as it was: that is not the version that the manifest lists."""
    files = Files(event(1, 1), event(2, 2), event(3, 3))
    files.files[uuid(2)] = Answer.of(event(2, 0.5))
    sink, storage = (
        SqlSink(url=f"sqlite:///{tmp_path}/records.db", keep="latest"),
        ScriptedStorage(),
    )
    reports = []
    async with FeedServer(play=files) as server:
        for number, served in enumerate([0.5, 0.5, 2, 2]):
            files.files[uuid(2)] = Answer.of(event(2, served))
            report = await run(
                feed_at(server), sink, storage, run_id=str(number), clock=lambda: at(60)
            )
            reports.append((report.records_new, report.records_changed, report.records_removed))
        asked = [each.path for each in server.asks if uuid(2) in each.path]

    assert reports == [(3, 0, 0), (0, 0, 0), (0, 1, 0), (0, 0, 0)]
    assert len(asked) == 3
    assert storage.stored["misp"].last_successful_timestamp == at(3)
    assert "come in order" not in caplog.text
    assert caplog.text.count("has 1 files that are older than its manifest lists them") == 2


async def test_file_older_than_listed_replaces_nothing(tmp_path: Path) -> None:
    """What the sink has of the event is newer, and stays current until the listed one comes."""
    files = Files(event(1, 5))
    sink, storage = (
        SqlSink(url=f"sqlite:///{tmp_path}/records.db", keep="latest"),
        ScriptedStorage(),
    )
    changes = []
    async with FeedServer(play=files) as server:
        for number, (listed, served) in enumerate([(5, 5), (9, 2), (9, 9)]):
            files.add(event(1, listed))
            files.files[uuid(1)] = Answer.of(event(1, served))
            report = await run(
                feed_at(server), sink, storage, run_id=str(number), clock=lambda: at(60)
            )
            changes.append(report.records_written)

    assert changes == [1, 0, 1]


@pytest.mark.parametrize("document", [{}, [], None, "x"])
async def test_manifest_that_is_empty_or_none_fails(document: Any) -> None:
    """It removes nothing, and the watermark stays."""
    sink, storage = RememberingSink(), ScriptedStorage()
    async with FeedServer(Answer.of(document)) as server:
        with pytest.raises(SourceError, match="not an object of events, or is empty"):
            await run(feed_at(server, ""), sink, storage, run_id="1", clock=lambda: at(60))
    assert storage.stored["misp"].last_successful_timestamp is None


async def test_manifest_that_lost_most_of_its_events_fails() -> None:
    """It was cut off, not cleaned up."""
    files = Files(*(event(n, n) for n in range(10)))
    sink, storage = RememberingSink(), ScriptedStorage()
    async with FeedServer(play=files) as server:
        await run(feed_at(server), sink, storage, run_id="1", clock=lambda: at(60))
        files.manifest = {uuid(9): files.manifest[uuid(9)]}
        with pytest.raises(SourceError, match="9 of its 10 records"):
            await run(feed_at(server), sink, storage, run_id="2", clock=lambda: at(60))
    assert sink.removed == set()


async def test_key_of_a_feed_stays_on_its_host() -> None:
    """A feed that redirects elsewhere does not get it."""
    async with FeedServer() as server, FeedServer() as other:
        server.script.append(Answer(status=302, headers={"Location": other.at("manifest.json")}))
        with pytest.raises(SourceError, match="another host"):
            await read(feed_at(server, key="MISP_KEY"))
        assert server.asks[0].headers["Authorization"] == KEY
        assert other.asks == []


@pytest.mark.recordings
async def test_recorded_feed_replays_with_nothing_lost(tmp_path: Path) -> None:
    """27 manifests of two years: each event once, three marked removed, the missing file named."""
    manifests, recorded = [], {}
    for name, content in members("misp_feed/infoblox_misp_feed.tar.xz"):
        document = json.loads(content)
        if name.startswith("manifests/"):
            manifests.append((name, document))
        elif "manifest" not in name:
            recorded[document["Event"]["uuid"]] = document
    manifests.sort(key=lambda each: each[0])
    listed = {uuid for _, manifest in manifests for uuid in manifest}
    # The events are those of the end; what was removed before was there, until it was removed.
    missing = manifests[-1][1].keys() - recorded.keys()
    files, storage = Files(), ScriptedStorage(now=lambda: datetime.now(UTC))
    files.files = {
        each: Answer.of(recorded.get(each, {"Event": {"uuid": each}})) for each in listed
    }
    gone = min(missing)
    del files.files[gone]
    path = tmp_path / "records.db"
    removed = 0
    async with FeedServer(play=files) as server:
        for name, manifest in manifests:
            files.manifest = manifest
            day = datetime.strptime(name.split("_")[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            clock = FakeClock(day)
            report = await run(
                feed_at(server),
                SqlSink(f"sqlite:///{path}"),
                storage,
                run_id=name,
                clock=clock.now,
            )
            removed += report.records_removed

    assert len(manifests) == 27
    rows = table(path, "record_id, removed_at")
    assert [row[0] for row in rows] == sorted(listed - {gone})
    assert {row[0] for row in rows if row[1]} == listed - manifests[-1][1].keys()
    assert removed == 3
    with closing(sqlite3.connect(path)) as connection:
        raw = connection.execute("SELECT raw FROM records_quarantine").fetchall()
    assert [list(json.loads(each[0])) for each in raw] == [[gone]]


class TestContract(SourceContract):
    """The events of an instance keep the contract of sources."""

    step = timedelta(seconds=1)
    begin = SourceContract.begin.replace(microsecond=0)

    def unusable(self) -> object:
        return {"Event": {"uuid": uuid(9), "info": "no time"}}

    def new_source(self, feed: SourceFeed) -> Misp:
        return instance_at(feed)

    def record_id(self, number: int) -> str:
        return uuid(number)

    def item(self, record_id: str, time: datetime, value: str) -> object:
        timestamp = str(int(time.timestamp()))
        return {"Event": {"uuid": record_id, "timestamp": timestamp, "info": value}}

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        return Instance(*items)(request)
