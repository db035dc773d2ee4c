"""Reading again: what the regular runs missed is found, stored and counted, and nothing moves."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection.backfill import backfill
from ladon_storage.collection.protocols import Limits, SupportsPosition
from ladon_storage.collection.reconciliation import Reconciliation, reconcile
from ladon_storage.collection.records import Page, Reject
from ladon_storage.collection.reversions import NAMED
from ladon_storage.collection.run import MOST_READINGS, run
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.models import EMPTY_WATERMARK
from ladon_storage.sinks import sink_from
from ladon_storage.testing.doubles import ScriptedSource, ScriptedStorage, Step, at, record
from tests.tables import table

OVERLAP = timedelta(minutes=10)


def sink_of(folder: Path, keep: str = "latest") -> Any:
    return sink_from({"url": f"sqlite:///{folder}/records.db", "keep": keep})


async def collected(
    folder: Path,
    *runs: list[Step],
    limits: Limits = Limits(),  # noqa: B008
    keep: str = "latest",
) -> ScriptedStorage:
    """Return the storage after regular runs that were shown these pages."""
    storage = ScriptedStorage(now=lambda: at(1_000))
    for pages in runs:
        await regular(folder, storage, *pages, limits=limits, keep=keep)
    return storage


async def regular(
    folder: Path,
    storage: ScriptedStorage,
    *pages: Step,
    limits: Limits = Limits(),  # noqa: B008
    keep: str = "latest",
) -> None:
    """Collect pages, as a regular run does."""
    source = ScriptedSource(list(pages), overlap=OVERLAP)
    await run(
        source, sink_of(folder, keep), storage,
        run_id="regular", limits=limits, clock=lambda: at(1_000),
    )  # fmt: skip


async def again(
    folder: Path, storage: ScriptedStorage, pages: list[Step], **options: Any
) -> Reconciliation:
    source = ScriptedSource(pages, overlap=OVERLAP)
    return await reconcile(
        source, sink_of(folder), storage, run_id="again", clock=lambda: at(1_000), **options
    )


async def test_missed_record_is_found_stored_and_named(tmp_path: Path) -> None:
    """A record that no regular run was shown, and that none will be, is missed; the rest is not."""
    storage = await collected(tmp_path, [[record("1", 1), record("100", 100)]])
    before = storage.stored["feed"]
    shown = [
        record("1", 1),
        record("2", 2),
        record("95", 95),
        record("100", 100),
        record("101", 101),
    ]
    report = await again(tmp_path, storage, [shown])
    assert (report.missed, report.missed_ids, report.due) == (1, ("2",), 2)
    assert report.rate == 0.5
    assert report.early == 2, "the overlap of the next run has them"
    assert report.horizon == at(90)
    assert [each for (each,) in table(tmp_path / "records.db")] == ["1", "100", "101", "2", "95"]
    assert storage.stored["feed"] == before


async def test_nothing_missed_is_a_rate_of_nothing(tmp_path: Path) -> None:
    """A source whose regular runs had all is told so, also where nothing comes."""
    storage = await collected(tmp_path, [[record("1", 1), record("100", 100)]])
    report = await again(tmp_path, storage, [[record("1", 1)]])
    assert (report.missed, report.changed, report.due, report.rate) == (0, 0, 1, 0.0)
    report = await again(tmp_path, storage, [])
    assert (report.due, report.rate) == (0, 0.0)


async def test_changed_record_is_counted_and_no_missed_one(tmp_path: Path) -> None:
    """A known id with another version has changed since, and is stored in that version."""
    storage = await collected(tmp_path, [[record("1", 1), record("100", 100)]])
    report = await again(tmp_path, storage, [[record("1", 5, "b"), record("100", 100)]])
    assert (report.missed, report.changed, report.changed_ids) == (0, 1, ("1",))


async def test_position_and_watermark_stay_where_they_are(tmp_path: Path) -> None:
    """The next regular run goes on as if there had been no reconciliation."""
    storage = await collected(tmp_path, [[record("1", 1), record("100", 100)]])
    async with sink_of(tmp_path) as sink:
        before = await sink.position("feed")
    await again(tmp_path, storage, [[record("2", 2), record("500", 500)]])
    async with sink_of(tmp_path) as sink:
        assert isinstance(sink, SupportsPosition)
        assert await sink.position("feed") == before
    assert len(storage.updates) == 2, "running and success of the regular run"


async def test_range_selects_what_is_compared(tmp_path: Path) -> None:
    """What lies outside of a range is skipped, and not missed."""
    storage = await collected(tmp_path, [[record("100", 100)]])
    shown: list[Step] = [[record("1", 1), record("20", 20), record("60", 60)]]
    report = await again(tmp_path, storage, shown, since=at(10), until=at(50))
    assert (report.missed_ids, report.ledger.records_skipped) == (("20",), 2)
    with pytest.raises(ConfigurationError, match="is empty"):
        await again(tmp_path, storage, [], since=at(50), until=at(10))


async def test_range_before_the_first_collection_is_refused(tmp_path: Path) -> None:
    """Where nothing was to be collected, a reading would miss nothing whatever the source has."""
    limits = Limits(initial_lookback=timedelta(minutes=10))
    storage = await collected(tmp_path, [[record("100", 100)]], limits=limits)
    with pytest.raises(ConfigurationError, match="nothing was collected"):
        await again(tmp_path, storage, [], until=at(50))


async def test_what_lies_before_the_first_collection_is_not_missed(tmp_path: Path) -> None:
    """The initial lookback left it out on purpose."""
    limits = Limits(initial_lookback=timedelta(minutes=950))
    storage = await collected(tmp_path, [[record("100", 100)]], limits=limits)
    report = await again(tmp_path, storage, [[record("1", 1), record("60", 60)]])
    assert (report.missed_ids, report.ledger.records_skipped) == (("60",), 1)


async def test_origin_is_known_of_a_sink_that_shows_its_methods_when_it_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a secret address the initial lookback left the same records out."""
    limits = Limits(initial_lookback=timedelta(minutes=950))
    storage = await collected(tmp_path, [[record("100", 100)]], limits=limits)
    monkeypatch.setenv("RECORDS", f"sqlite:///{tmp_path}/records.db")
    source = ScriptedSource([[record("1", 1), record("60", 60)]], overlap=OVERLAP)
    sink = sink_from({"url_secret": "RECORDS"})
    report = await reconcile(source, sink, storage, run_id="again", clock=lambda: at(1_000))
    assert (report.missed_ids, report.ledger.records_skipped) == (("60",), 1)


@pytest.mark.parametrize("last", [None, EMPTY_WATERMARK])
async def test_source_that_was_never_collected_is_refused(last: Any, tmp_path: Path) -> None:
    """Without regular runs everything would be missed."""
    storage = ScriptedStorage()
    if last is not None:
        storage.put("feed", status="success", last_successful_timestamp=last)
    with pytest.raises(ConfigurationError, match="never collected"):
        await again(tmp_path, storage, [])


async def test_watermark_in_the_future_blames_nobody(tmp_path: Path) -> None:
    """What is younger than now less the overlap is still to be read, whatever it says."""
    storage = await collected(tmp_path, [[record("100", 100)]])
    storage.put("feed", status="success", last_successful_timestamp=at(100_000))
    report = await again(tmp_path, storage, [[record("995", 995), record("5", 5)]])
    assert (report.missed_ids, report.early) == (("5",), 1)


async def test_long_list_of_missed_records_is_cut(tmp_path: Path) -> None:
    """All are counted and stored, and the first are named."""
    storage = await collected(tmp_path, [[record("100", 100)]])
    pages: list[Step] = [
        [record(f"{page}-{number}", 1) for number in range(80)] for page in range(3)
    ]
    report = await again(tmp_path, storage, pages)
    assert (report.missed, len(report.missed_ids)) == (240, NAMED)


async def test_source_that_fails_fails_the_reconciliation(tmp_path: Path) -> None:
    """What was found until then is stored; the watermark is not touched."""
    storage = await collected(tmp_path, [[record("100", 100)]])
    with pytest.raises(SourceError):
        await again(tmp_path, storage, [[record("2", 2)], SourceError("the feed broke")])
    assert storage.stored["feed"].status == "success"
    assert ("2",) in table(tmp_path / "records.db")


@pytest.mark.parametrize("keep", ["latest", "all"])
@pytest.mark.parametrize("how", ["reconcile", "since", "windows"])
async def test_later_content_of_a_regular_run_meanwhile_stays_current(
    how: str, keep: str, tmp_path: Path
) -> None:
    """An answer from before that run has an earlier content under the same timestamp."""
    later, beside = [record("1", 1, "later")], [record("1", 1), record("2", 2)]
    storage = await collected(tmp_path, [beside], keep=keep)

    async def collect() -> None:
        await regular(tmp_path, storage, later, keep=keep)

    source = ScriptedSource([collect, beside], [later], overlap=OVERLAP)
    if how == "reconcile":
        result = await reconcile(
            source, sink_of(tmp_path, keep), storage, run_id="again", clock=lambda: at(1_000)
        )
        assert (result.missed, result.changed) == (0, 1)
    elif how == "since":
        await run(source, sink_of(tmp_path, keep), storage, run_id="again", since=at(0))
    else:
        await backfill(source, sink_of(tmp_path, keep), storage, at(0), at(60), run_id="again")
    columns = "record_id, payload" + ", replaced_at IS NULL" * (keep == "all")
    current = {row[0]: row[1] for row in table(tmp_path / "records.db", columns) if row[-1]}
    assert sorted(name for name, payload in current.items() if "later" in payload) == ["1"]


async def test_what_a_repeated_reading_stores_is_counted(tmp_path: Path) -> None:
    """Its records are in the numbers of the ledger, and new ones are missed or early as ever."""
    storage = await collected(tmp_path, [[record("1", 1), record("100", 100)]])

    async def collect() -> None:
        await regular(tmp_path, storage, [record("1", 1, "later")])

    second = Page([record("1", 1, "later"), record("2", 2)], [Reject("odd", "x")])
    source = ScriptedSource([collect, [record("1", 1)]], [second], overlap=OVERLAP)
    result = await reconcile(
        source, sink_of(tmp_path), storage, run_id="again", clock=lambda: at(1_000)
    )
    assert (result.due, result.missed, result.changed) == (2, 1, 1)
    assert result.missed_ids == ("2",)
    ledger = result.ledger
    assert (ledger.records_delivered, ledger.records_quarantined) == (4, 1)
    assert (ledger.records_new, ledger.records_changed, ledger.records_known) == (1, 2, 0)


@pytest.mark.parametrize(("seconds", "lease"), [(60, 60), (86_400, 1e15), (86_400, 1e300)])
async def test_run_that_died_is_no_company(tmp_path: Path, seconds: int, lease: float) -> None:
    """Its watermark says running for ever, and nobody stores anything; no lease exceeds a day."""
    now = at(10_000)
    storage = ScriptedStorage(now=lambda: now, tells_time=True)
    storage.put(
        "feed",
        status="running",
        last_successful_timestamp=at(1),
        last_run_timestamp=now - timedelta(seconds=seconds),
        lease_seconds=lease,
    )
    sink = sink_of(tmp_path)
    async with sink:
        await sink.write("feed", Page([record("1", 1)]))
    result = await again(tmp_path, storage, [[record("1", 1, "later")]])
    assert result.changed == 1


async def test_service_that_does_not_date_its_writes_leaves_no_reading_alone(
    tmp_path: Path,
) -> None:
    """Neither a version nor a time says that nobody wrote meanwhile."""
    storage = ScriptedStorage(etags=False)
    storage.put("feed", status="success", last_successful_timestamp=at(1))
    sink = sink_of(tmp_path)
    async with sink:
        await sink.write("feed", Page([record("1", 1)]))
    source = ScriptedSource([[record("1", 1, "later")]], [[]], overlap=OVERLAP)
    await reconcile(source, sink_of(tmp_path), storage, run_id="again", clock=lambda: at(1_000))
    assert not source.runs


async def test_reading_that_changes_nothing_is_not_repeated(tmp_path: Path) -> None:
    """A regular run beside it is no reason to ask the source twice."""
    storage = await collected(tmp_path, [[record("1", 1)]])
    pages: list[Step] = [lambda: regular(tmp_path, storage, []), [record("1", 1)]]
    assert (await again(tmp_path, storage, pages)).changed == 0


async def test_reading_alone_is_not_repeated(tmp_path: Path) -> None:
    """What it changed is what the source has now."""
    storage = await collected(tmp_path, [[record("1", 1)]])
    result = await again(tmp_path, storage, [[record("1", 1, "later")]])
    assert result.changed == 1


async def test_reading_that_is_never_alone_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A source that changes in each of several readings beside regular runs may need another."""
    storage = await collected(tmp_path, [[record("1", 1)]])
    storage.put("feed", status="running", last_successful_timestamp=at(1))
    runs: list[list[Step]] = [[[record("1", 1, str(number))]] for number in range(MOST_READINGS)]
    source = ScriptedSource(*runs, overlap=OVERLAP)
    await reconcile(source, sink_of(tmp_path), storage, run_id="again", clock=lambda: at(1_000))
    assert not source.runs
    assert "'feed' was read 3 times, changed records each time" in caplog.text


async def test_record_that_went_back_is_counted_named_and_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The sink keeps its later version, which the report says, and what makes the other current."""
    storage = await collected(tmp_path, [[record("1", 50, "B"), record("100", 100)]])
    shown: list[Step] = [[record("1", 5, "A"), record("100", 100)]]
    report = await again(tmp_path, storage, shown)
    assert (report.missed, report.changed, report.superseded) == (0, 0, 1)
    assert (report.superseded_ids, report.ledger.records_superseded) == (("1",), 1)
    assert f"reset the watermark to before {at(5).isoformat()} and collect" in caplog.text
    assert {each for (each,) in table(tmp_path / "records.db", "record_timestamp")} == {
        each.isoformat(timespec="microseconds") for each in (at(50), at(100))
    }


async def test_advice_for_a_record_that_went_back_makes_it_current(tmp_path: Path) -> None:
    """A run from before it shows what the source says last, and then nothing is superseded."""
    storage = await collected(tmp_path, [[record("1", 50, "B"), record("100", 100)]])
    shown: list[Step] = [[record("1", 5, "A"), record("100", 100)]]
    storage.put("feed", status="success", last_successful_timestamp=at(4))
    await regular(tmp_path, storage, *shown)
    assert (await again(tmp_path, storage, shown)).superseded == 0


@pytest.mark.parametrize("keep", ["latest", "all"])
@pytest.mark.parametrize("size", [1, 2])
async def test_history_of_a_record_is_not_superseded(
    tmp_path: Path, size: int, keep: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A source that delivers all versions of a record has not gone back to its first."""
    history = [record("1", 5, "A"), record("1", 50, "B")]
    pages: list[Step] = [history[first : first + size] for first in range(0, 2, size)]
    storage = await collected(tmp_path, pages, [[record("100", 100)]], keep=keep)
    source = ScriptedSource(pages, overlap=OVERLAP)
    report = await reconcile(
        source, sink_of(tmp_path, keep), storage, run_id="again", clock=lambda: at(1_000)
    )
    assert (report.changed, report.superseded, report.superseded_ids) == (0, 0, ())
    assert "older version" not in caplog.text


async def test_repeated_reading_counts_what_is_superseded_once(tmp_path: Path) -> None:
    """It is the state of the sink after the last reading."""
    storage = await collected(tmp_path, [[record("1", 50, "B"), record("100", 100)]])

    async def collect() -> None:
        await regular(tmp_path, storage, [record("2", 2)])

    old = record("1", 5, "A")
    source = ScriptedSource([collect, [old, record("100", 101, "b")]], [[old]], overlap=OVERLAP)
    report = await reconcile(
        source, sink_of(tmp_path), storage, run_id="again", clock=lambda: at(1_000)
    )
    assert (len(source.ranges), report.superseded) == (2, 1)
