"""``ladon-storage backfill``, ``reconcile`` and ``freshness``, without Prefect."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import pytest

from ladon_storage.embedded import EmbeddedStorage
from ladon_storage.models import WatermarkStatus
from ladon_storage.testing.doubles import at
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.cli.called import Command
from tests.cli.feeds import catalogue, project


async def test_backfill_resumes_after_its_last_window(ladon: Command) -> None:
    """The same range again reads nothing, and the watermark of the source stays."""
    range_ = ("2024-01-01", "2024-01-03")
    async with FeedServer(play=lambda asked: catalogue(1, 2, 9)) as feed:
        ladon.write("ladon.toml", project(feed))
        first = await ladon.later("backfill", "kev", *range_, "--json")
        asked = len(feed.requests)
        second = await ladon.later("backfill", "kev", *range_)
        assert len(feed.requests) == asked == 2
    assert first.code == second.code == 0
    assert (first.json["windows"], first.json["records_written"]) == (2, 2)
    assert first.json["records_skipped"] == 2  # what came on the 9th, in each window
    assert re.search(r"windows +2, 2 of them by an earlier backfill", second.out)
    assert (await ladon.later("watermarks", "show", "kev")).code == 3


async def test_record_that_went_back_is_told_until_a_run_from_before_it(ladon: Command) -> None:
    """Both commands count it and say what to do, and what they say makes it current."""
    rows = [("1", "2024-01-05", "new"), ("2", "2024-02-01", "x")]
    with closing(sqlite3.connect("app.db")) as app, app:
        app.execute("CREATE TABLE log (id TEXT PRIMARY KEY, updated_at TEXT, note TEXT)")
        app.executemany("INSERT INTO log VALUES (?, ?, ?)", rows)
    ladon.write(
        "ladon.toml",
        '[storage]\nurl = "sqlite:///ladon.db"\n[sinks.records]\nurl = "sqlite:///records.db"\n'
        '[sources.log]\nkind = "sql"\nurl = "sqlite:///app.db"\ntable = "log"\n',
    )
    assert (await ladon.later("collect", "log")).code == 0
    with closing(sqlite3.connect("app.db")) as app, app:
        app.execute(
            "UPDATE log SET updated_at = '2024-01-03T12:00:00', note = 'old' WHERE id = '1'"
        )

    found = await ladon.later("reconcile", "log")
    backfill = await ladon.later("backfill", "log", "2024-01-02", "2024-01-05")
    for each in (found, backfill):
        assert re.search(r"older than in the sink +1\n", each.out)
        assert "reset the watermark to before 2024-01-03T12:00:00+00:00 and collect" in each.err
    assert found.out.rstrip().endswith("id\n1")
    reset = await ladon.later("watermarks", "reset", "log", "2024-01-02", "--reason", "put back")
    assert reset.code == 0
    assert (await ladon.later("collect", "log")).code == 0
    found = await ladon.later("reconcile", "log", "--json")
    assert (found.json["superseded"], found.json["superseded_ids"]) == (0, [])


async def test_first_collection_by_windows_goes_over_into_collect(ladon: Command) -> None:
    """Several windows are read at once, and the regular command goes on where they end."""
    source = (
        '[storage]\nurl = "sqlite:///ladon.db"\n[sinks.records]\nurl = "sqlite:///records.db"\n'
        '[sources.log]\nkind = "rest"\nurl = "{url}"\nrecords = "items"\nid = "id"\n'
        'timestamps = ["at"]\noverlap = 1\nsince.parameter = "since"\nuntil.parameter = "until"\n'
    )

    def play(asked: Asked) -> Answer:
        since, until = (asked.query.get(each, "2024-01-30")[:10] for each in ("since", "until"))
        days = [f"2024-01-{number:02}" for number in range(1, 20)]
        items = [{"id": each, "at": f"{each}T12:00:00Z"} for each in days if since <= each < until]
        return Answer.of({"items": items})

    async with FeedServer(play=play) as feed:
        ladon.write("ladon.toml", source.format(url=feed.url))
        past = ("log", "2024-01-01", "2024-01-13", "--workers", "4")
        first = await ladon.later("backfill", *past, "--first-collection", "--json")
        again = await ladon.later("backfill", *past, "--first-collection")
        after = await ladon.later("collect", "log", "--json")
        plain = await ladon.later("backfill", *past)
    assert first.code == 0, first.err
    assert (first.json["windows"], first.json["records_new"]) == (12, 12)
    assert again.code == 2
    assert "is collected already" in again.sentence
    [report] = after.json
    assert report["watermark_before"] == "2024-01-12T12:00:00Z"
    assert (report["records_new"], report["watermark_after"]) == (7, "2024-01-19T12:00:00Z")
    assert re.search(r"windows +12, 12 of them by an earlier backfill", plain.out)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["2024-01-01", "2024-01-02", "--workers", "0"], "--workers is 0. Set it to 1 to 64"),
        (["2024-01-02", "2024-01-01"], "is empty"),
        (["2024-01-01", "later"], "UNTIL is no time"),
        (["2024-01-01T00:00:00", "2024-01-02"], "SINCE has no UTC offset"),
        (["2024-01-01", "2024-01-02", "--window-hours", "0"], "--window-hours"),
        (["2024-01-01", "2024-01-02", "--window-hours", "nan"], "--window-hours"),
        (["2024-01-01", "2024-01-02", "--window-hours", "1e300"], "less than 1,000,000"),
        (["2024-01-01", "2024-01-02", "--window-hours", "1e-7"], "more than 100,000 windows"),
    ],
)
def test_backfill_of_no_range_is_refused(
    ladon: Command, arguments: list[str], expected: str
) -> None:
    """One sentence, and exit code 2."""
    sink = ("--sink", "sqlite:///records.db")
    called = ladon("backfill", "kev", *arguments, *sink)
    assert called.code == 2
    assert expected in called.err.splitlines()[-1]


async def test_reconciliation_finds_what_was_missed(ladon: Command) -> None:
    """What is in the source and not in the sink is stored, counted and named."""
    answers = [catalogue(1, 5), catalogue(1, 2, 5)]
    async with FeedServer(*answers) as feed:
        ladon.write("ladon.toml", project(feed))
        assert (await ladon.later("collect", "kev")).code == 0
        called = await ladon.later("reconcile", "kev")
    assert called.code == 0
    assert re.search(r"missed +1 of 3", called.out)
    assert "CVE-2024-0002" in called.out


def test_reconciliation_of_what_was_never_collected_is_refused(ladon: Command) -> None:
    """The sentence says what to do first."""
    called = ladon("reconcile", "kev", "--sink", "sqlite:///records.db")
    assert called.code == 2
    assert "collect it first" in called.err


async def test_freshness_takes_limits_from_the_file_and_says_why_the_last_run_failed(
    ladon: Command,
) -> None:
    """Stale sources exit with 1, and the reason of the last failure stands beside."""
    async with FeedServer(catalogue(1)) as feed:
        ladon.write("ladon.toml", project(feed, "freshness.max_age_hours = 48\n"))
    async with EmbeddedStorage(ladon.folder / "ladon.db") as storage:
        await storage.update_watermark("kev", at(1))
        await storage.update_watermark(
            "kev", at(2), WatermarkStatus.FAILED, error_message="SourceError: the key is wrong"
        )
    called = await ladon.later("freshness")
    assert called.code == 1
    assert called.out.splitlines()[1].split()[:2] == ["kev", "stale"]
    assert "SourceError: the key is wrong" in called.out
    assert "its last run failed: SourceError: the key is wrong" in called.err
    data = await ladon.later("freshness", "kev=1e9", "nothing=1", "--json")
    assert data.code == 1
    assert [each["verdict"] for each in data.json] == ["fresh", "never collected"]
    assert (await ladon.later("freshness", "kev=1e9")).code == 0


@pytest.mark.parametrize("name", ["kev", "kev=", "kev=soon", "=3", "kev=-1", "kev=nan", "kev=inf"])
def test_freshness_without_a_limit_is_refused(ladon: Command, name: str) -> None:
    """A check that checks nothing must not be green."""
    called = ladon("freshness", name)
    assert (called.code, called.out) == (2, "")
    assert "kev=48" in called.sentence
    assert ladon("freshness").code == 2


@pytest.mark.parametrize("name", ["", "a" * 300])
def test_name_that_no_watermark_has_is_refused(ladon: Command, name: str) -> None:
    """It is a usage error, not a question to the storage."""
    called = ladon("watermarks", "show", name)
    assert called.code == 2
    assert "names no watermark" in called.sentence
