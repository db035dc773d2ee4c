"""The sink that is a Delta table: what it counts, keeps, refuses, and what a crash leaves.

Read back with DuckDB from the files that the log names, as an engine that knows the format would.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

duckdb = pytest.importorskip("duckdb")
deltalake = pytest.importorskip("deltalake")
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from ladon_storage.collection.protocols import (  # noqa: E402
    Position,
)
from ladon_storage.collection.records import Page, Record, Reject  # noqa: E402
from ladon_storage.errors import ConfigurationError, SinkError  # noqa: E402
from ladon_storage.sinks.delta import disk  # noqa: E402
from ladon_storage.sinks.delta import index as delta_known  # noqa: E402
from ladon_storage.sinks.delta import rewrite as delta_rewrite  # noqa: E402
from ladon_storage.sinks.delta import sink as delta_module  # noqa: E402
from ladon_storage.sinks.delta import table as delta_table  # noqa: E402
from ladon_storage.sinks.delta import writer as delta_store  # noqa: E402
from ladon_storage.sinks.delta.sink import DeltaSink  # noqa: E402
from ladon_storage.testing.doubles import MemorySink, at, record  # noqa: E402

KEEPS = pytest.mark.parametrize("keep", ["latest", "all"])


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


def sink(lake: Path, keep: Any = "latest", name: str = "records") -> DeltaSink:
    return DeltaSink(f"delta://{lake}", name, keep)


async def write(
    target: DeltaSink, *pages: list[Record] | Page, source_id: str = "feed", run_id: str = "r"
) -> list[int]:
    async with target:
        return [
            (
                await target.write(
                    source_id, each if isinstance(each, Page) else Page(each), run_id=run_id
                )
            ).written
            for each in pages
        ]


def live(lake: Path, name: str = "records") -> list[dict[str, Any]]:
    """Return the additions that the log leaves, from all of its commits."""
    found: dict[str, dict[str, Any]] = {}
    for commit in sorted((lake / name / "_delta_log").glob("*[0-9].json")):
        for line in commit.read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                found[action["add"]["path"]] = action["add"]
            elif "remove" in action:
                del found[action["remove"]["path"]]
    return list(found.values())


def rows(lake: Path, columns: str, name: str = "records", where: str = "true") -> list[Any]:
    """Return what DuckDB reads of the files that belong to the table."""
    with duckdb.connect() as engine:
        parts = []
        for add in live(lake, name):
            path = lake / name / unquote(add["path"])
            partition = dict(sorted(add["partitionValues"].items()))
            texts = [str(text).replace("'", "''") for text in (path, *partition.values())]
            names = ", ".join(
                f"'{text}' AS {key}" for key, text in zip(partition, texts[1:], strict=True)
            )
            parts.append(f"SELECT *, {names} FROM read_parquet('{texts[0]}')")
        if not parts:
            return []
        union = " UNION ALL BY NAME ".join(parts)
        found: list[Any] = engine.execute(
            f"SELECT {columns} FROM ({union}) WHERE {where} ORDER BY ALL"
        ).fetchall()
        return found


def commits(lake: Path, name: str = "records") -> int:
    return len(list((lake / name / "_delta_log").glob("*[0-9].json")))


VALUES = "record_id, payload->>'$.value'"


def test_sink_is_shown_by_its_address(lake: Path) -> None:
    """So do errors and logs that name a sink."""
    assert repr(sink(lake)) == f"DeltaSink('delta://{lake}', table='records', keep='latest')"


async def test_table_has_the_columns_and_partitions_that_were_promised(lake: Path) -> None:
    """Other engines read the table: names and types of its columns are a contract."""
    made = [record("1", at(0)), record("2", at(24 * 60))]
    assert await write(sink(lake), made) == [2]

    table = deltalake.DeltaTable(lake / "records")
    types = {field.name: field.type.type for field in table.schema().fields}
    instants = dict.fromkeys(("record_timestamp", "collected_at", "removed_at"), "timestamp")
    texts = dict.fromkeys(("source_id", "record_id", "version", "payload"), "string")
    assert types == {"day": "date", **texts, **instants}
    assert table.metadata().partition_columns == ["source_id", "day"]
    partitions = [add["partitionValues"] for add in live(lake)]
    assert sorted(each["day"] for each in partitions) == ["2024-01-01", "2024-01-02"]
    assert {each["source_id"] for each in partitions} == {"feed"}
    [(version, payload, removed_at), _] = rows(lake, "version, payload, removed_at")
    assert {version} <= {each.version for each in made}
    assert json.loads(payload)["value"] == "a"
    assert removed_at is None


async def test_other_engine_that_knows_the_format_reads_the_same(lake: Path) -> None:
    """Rows, partitions and bounds of the log agree with the files."""
    await write(sink(lake), [record(str(n), n * 60.0) for n in range(48)])

    table = deltalake.DeltaTable(lake / "records")
    found = table.to_pyarrow_dataset()
    assert found.count_rows(filter=pa.compute.field("record_id") == "47") == 1
    assert found.count_rows(filter=pa.compute.field("source_id") == "feed") == 48
    assert {len(each) for each in zip(*rows(lake, "record_id"), strict=True)} == {48}


@KEEPS
async def test_known_records_are_no_commit(lake: Path, keep: str) -> None:
    """A replay within a page, in a later page and in a later run counts no row, and no commit."""
    page = [record("1", 1), record("2", 2), record("1", 1)]

    assert await write(sink(lake, keep), page, page) == [2, 0]
    before, made = rows(lake, "*"), commits(lake)
    assert await write(sink(lake, keep), page, Page()) == [0, 0]
    assert rows(lake, "*") == before
    assert commits(lake) == made


@KEEPS
async def test_same_version_at_another_time_is_no_other_row(lake: Path, keep: str) -> None:
    """What a source calls by another day, and has the same content, is in one partition."""
    one, other = (Record.of("1", at(day * 24 * 60), {"a": 1}) for day in (0, 1))

    assert await write(sink(lake, keep), [one], [other]) == [1, 0]
    assert rows(lake, "day") == [("2024-01-01",)]


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(
    ("pages", "counts", "expected"),
    [
        ([[("1", 1, "a")], [("1", 2, "b")]], [1, 1], "b"),
        ([[("1", 2, "b")], [("1", 1, "a")]], [1, 0], "b"),
        ([[("1", 1, "a")], [("1", 1, "b")]], [1, 1], "b"),
        ([[("1", 2, "b"), ("1", 1, "a")]], [1], "b"),
        ([[("1", 1, "a"), ("1", 2, "b")]], [1], "b"),
        ([[("1", 1, "a"), ("1", 1, "b")]], [1], "b"),
        ([[("1", 1, "a")], [("1", 1, "b"), ("1", 1, "a")]], [1, 0], "a"),
        ([[("1", 2, "a")], [("1", 1, "b"), ("1", 2, "c")]], [1, 1], "c"),
        ([[("1", 2, "a")], [("1", 2, "b")], [("1", 2, "a")], [("1", 2, "b")]], [1] * 4, "b"),
        ([[("1", 2, "a")], [("1", 3000, "b")], [("1", 9, "c")]], [1, 1, 0], "b"),
    ],
)
async def test_keep_latest_has_the_newest_content_however_it_arrives(
    lake: Path,
    monkeypatch: pytest.MonkeyPatch,
    held: bool,
    pages: list[list[tuple[str, int, str]]],
    counts: list[int],
    expected: str,
) -> None:
    """Older content never replaces newer; at equal times what arrived later wins."""
    if not held:
        monkeypatch.setattr(delta_known, "HELD_ROWS", 0)
    made = [[record(*each) for each in page] for page in pages]

    assert await write(sink(lake), *made) == counts
    assert rows(lake, VALUES) == [("1", expected)]


async def test_replaced_row_leaves_the_others_of_its_file(lake: Path) -> None:
    """A change of one record, also into another day, keeps each other one as it was."""
    await write(sink(lake), [record(str(n), n) for n in range(10)])
    untouched = rows(lake, "*", where="record_id NOT IN ('3', '4')")
    changed = [record("3", 3, "b"), record("4", 5000, "b"), record("new", 4)]

    assert await write(sink(lake), changed) == [3]
    assert rows(lake, "*", where="record_id NOT IN ('3', '4', 'new')") == untouched
    assert rows(lake, f"{VALUES}, day", where="record_id IN ('3', '4')") == [
        ("3", "b", "2024-01-01"),
        ("4", "b", "2024-01-04"),
    ]
    assert len(live(lake)) == 2


async def test_page_is_one_commit(lake: Path) -> None:
    """New rows, replaced ones and the position become visible at once."""
    async with sink(lake) as target:
        await target.write("feed", Page([record("1", 1), record("2", 5000)]))
        before = commits(lake)
        page = Page([record("1", 2, "b"), record("2", 5001, "b"), record("3", 9000)])
        assert (await target.write("feed", page, position=Position(timestamp=at(2)))).written == 3
    assert commits(lake) == before + 1


async def test_position_lives_beside_the_records(lake: Path) -> None:
    """What was written last is read back, by this sink and the next, of each source its own."""
    first = Position(timestamp=at(1))
    second = Position(timestamp=at(0.5), watermark=at(0), origin=datetime.min.replace(tzinfo=UTC))
    async with sink(lake) as target:
        assert await target.position("feed") is None
        await target.write("feed", Page([record("1", 1)]), position=first)
        assert await target.position("feed") == first
        await target.write("feed", Page([record("2", 1)]))
        assert await target.position("feed") == first
        await target.write("feed", Page(), position=second)
        assert await target.position("feed") == second
        await target.write("other", Page(), position=first)
    async with sink(lake) as target:
        assert await target.position("feed") == second
        assert await target.position("other") == first
        assert await target.position("third") is None


async def test_same_position_again_is_no_commit(lake: Path) -> None:
    """A run that finds nothing new leaves the log as it is."""
    position = Position(timestamp=datetime.max.replace(tzinfo=UTC), origin=at(1))
    async with sink(lake) as target:
        await target.write("feed", Page(), position=position)
        before = commits(lake)
        await target.write("feed", Page(), position=position)
        await target.write("feed", Page(), position=None)
    assert commits(lake) == before


async def test_position_survives_what_keeps_a_table_small(lake: Path) -> None:
    """Neither a checkpoint, nor the cleaning of the log, nor vacuum takes it."""
    position = Position(timestamp=at(7), watermark=at(3))
    async with sink(lake) as target:
        await target.write("feed", Page([record("1", 1)]), position=position)
        for n in range(25):
            await target.write("feed", Page([record("1", 2 + n, str(n))]))
    table = deltalake.DeltaTable(lake / "records")
    table.alter.set_table_properties({"delta.logRetentionDuration": "interval 0 days"})
    table.create_checkpoint()
    table.cleanup_metadata()
    table.vacuum(0, dry_run=False, enforce_retention_duration=False)
    assert commits(lake) < 25

    async with sink(lake) as target:
        assert await target.position("feed") == position
        assert (await target.write("feed", Page([record("1", 26, "24")]))).written == 0


async def test_table_that_was_dropped_has_no_position(lake: Path) -> None:
    """So the engine sees that the sink is behind its watermark."""
    async with sink(lake) as target:
        await target.write("feed", Page([record("1", 1)]), position=Position(timestamp=at(1)))
    (lake / "records").rename(lake / "gone")

    async with sink(lake) as target:
        assert await target.position("feed") is None
        assert (await target.write("feed", Page([record("1", 1)]))).written == 1


async def test_quarantine_has_the_columns_that_were_promised(lake: Path) -> None:
    """Each reject has its source, the run that met it, the reason, the text and the id."""
    reject = Reject("no timestamp", '{"id":"9"}', "9")
    page = Page([record("1", 1)], [reject])

    assert await write(sink(lake), page, run_id="first") == [1]
    assert await write(sink(lake), page, source_id="other", run_id="third") == [1]
    columns = "source_id, run_id, reason, raw, record_id"
    assert rows(lake, columns, "records_quarantine") == [
        ("feed", "first", "no timestamp", '{"id":"9"}', "9"),
        ("other", "third", "no timestamp", '{"id":"9"}', "9"),
    ]


async def test_crash_between_quarantine_and_page_replays_both(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page whose records were not committed is written again, and its rejects stay one."""
    page = Page([record("1", 1)], [Reject("bad", "{}")])
    with monkeypatch.context() as broken:

        def fail(*_: object) -> int:
            raise OSError("the disk is full")

        broken.setattr(delta_store.DeltaWriter, "_store", fail)
        with pytest.raises(SinkError, match="could not store a page: OSError: the disk is full"):
            await write(sink(lake), page)
    assert rows(lake, "record_id") == []

    assert await write(sink(lake), page) == [1]
    assert rows(lake, "reason", "records_quarantine") == [("bad",)]


async def test_marks_that_change_are_one_commit(lake: Path) -> None:
    """Marks of records that are no longer listed or are back go together; none is no commit."""
    async with sink(lake) as target:
        await target.write("feed", Page([record(str(n), n * 1000) for n in range(10)]))
        await target.write("other", Page([record("3", 1)]))
        present = {str(n) for n in range(10)}
        assert await target.mark_removed("feed", present, 0.5) == 0
        before = commits(lake)
        assert await target.mark_removed("feed", present, 0.5) == 0
        assert commits(lake) == before
        assert await target.mark_removed("feed", present - {"3", "7"}, 0.5) == 2
        marks = rows(lake, "record_id, removed_at", where="removed_at IS NOT NULL")
        assert [row[0] for row in marks] == ["3", "7"]
        assert await target.mark_removed("feed", present - {"7", "8"}, 0.5) == 1
        again = rows(lake, "record_id, removed_at", where="removed_at IS NOT NULL")
        assert [row[0] for row in again] == ["7", "8"]
        assert again[0] == marks[1]
        assert commits(lake) == before + 2
    assert len(rows(lake, "*")) == 11


async def test_all_versions_of_a_missing_record_are_marked(lake: Path) -> None:
    """One record that disappeared counts once, however many rows it has."""
    async with sink(lake, "all") as target:
        await target.write("feed", Page([record("1", 1, "a"), record("1", 2, "b"), record("2", 1)]))
        assert await target.mark_removed("feed", {"2"}, 0.5) == 1
        assert len(rows(lake, "*", where="removed_at IS NOT NULL")) == 2
        assert (await target.write("feed", Page([record("1", 3, "c")]))).written == 1
        assert rows(lake, "*", where="removed_at IS NOT NULL") == []
        assert await target.mark_removed("feed", {"2"}, 0.5) == 1
        assert len(rows(lake, "*", where="removed_at IS NOT NULL")) == 3


async def test_known_record_that_is_back_is_a_commit_and_no_new_row(lake: Path) -> None:
    """The mark goes with the page, also in a later run, and only one time."""
    async with sink(lake) as target:
        await target.write("feed", Page([record("1", 1), record("2", 1)]))
        await target.mark_removed("feed", {"2"}, 0.5)
        before = commits(lake)
    for count in (1, 1):
        assert await write(sink(lake), [record("1", 1)]) == [0]
        assert commits(lake) == before + count
    assert rows(lake, "removed_at") == [(None,), (None,)]


STRANGE = ["sø:urce/1", "..", "a'b\"c", "100%/ä?x=1#y", " ", "x" * 300, "a=b/day=1"]


@pytest.mark.parametrize("source_id", STRANGE)
async def test_name_of_a_source_leads_to_no_other_partition(lake: Path, source_id: str) -> None:
    """No name leads out of the table's folder, or to another source's records."""
    other = source_id + "/"
    for _ in range(2):
        async with sink(lake) as target:
            await target.write(
                source_id, Page([record("1", 1)]), position=Position(timestamp=at(1))
            )
            await target.write(other, Page([record("1", 1)], [Reject("r", "x")]))
            assert await target.position(source_id) == Position(timestamp=at(1))
            assert await target.position(other) is None
            assert await target.mark_removed(source_id, {"1"}, 0.5) == 0

    assert sorted(rows(lake, "source_id, record_id")) == sorted([(source_id, "1"), (other, "1")])
    assert set(os.listdir(lake)) == {"records", "records_quarantine"}
    found = deltalake.DeltaTable(lake / "records").to_pyarrow_table()
    assert sorted(found["source_id"].to_pylist()) == sorted([source_id, other])


async def test_source_without_a_name_is_refused(lake: Path) -> None:
    """Delta reads an empty partition value as none at all."""
    with pytest.raises(SinkError, match="without a name"):
        await write(sink(lake), [record("1", 1)], source_id="")


async def test_lone_surrogates_are_escaped(lake: Path) -> None:
    """What JSON can say, the table can hold."""
    content = {"nul": "\0", "lone": "\ud800", "emoji": "🦜", "quote": "';--"}
    one = Record.of("é';--", at(0), content)
    page = Page([one], [Reject("lone \ud800", "nul \0 lone \udfff", "id \ud800")])
    assert await write(sink(lake), page, page, run_id="r\ud800") == [1, 0]

    assert rows(lake, "record_id, payload") == [("é';--", one.payload)]
    assert rows(lake, "reason, raw, record_id", "records_quarantine") == [
        ("lone \\ud800", "nul \0 lone \\udfff", "id \\ud800")
    ]


@KEEPS
async def test_first_and_last_day_are_partitions(lake: Path, keep: str) -> None:
    """From the year 1 to 9999, to the microsecond, in the table and the position."""
    first = datetime.min.replace(tzinfo=UTC)
    last = datetime.max.replace(tzinfo=UTC)
    page = [record("1", first), record("2", last), record("3", at(0) + timedelta(microseconds=1))]
    async with sink(lake, keep) as target:
        position = Position(timestamp=last, watermark=first, origin=first)
        assert (await target.write("feed", Page(page), position=position)).written == 3
        assert (await target.write("feed", Page(page))).written == 0
        assert await target.position("feed") == position
    texts = [str(row[0]) for row in rows(lake, "record_timestamp::TIMESTAMP")]
    assert texts == [
        "0001-01-01 00:00:00",
        "2024-01-01 00:00:00.000001",
        "9999-12-31 23:59:59.999999",
    ]
    assert [row[0] for row in rows(lake, "day")] == ["0001-01-01", "2024-01-01", "9999-12-31"]


@pytest.mark.slow
@KEEPS
@pytest.mark.parametrize("after", [0, 2, 1000])
async def test_table_that_is_too_large_to_hold_is_asked(
    lake: Path, monkeypatch: pytest.MonkeyPatch, keep: str, after: int
) -> None:
    """Beyond what is held in memory, with and without a filter, nothing is added twice."""
    monkeypatch.setattr(delta_known, "HELD_ROWS", 15)
    monkeypatch.setattr(delta_known, "FILTER_AFTER", after)
    pages = [[record(str(n), n) for n in range(k, k + 10)] for k in range(0, 60, 10)]
    overlapping = [[record(str(n), n) for n in range(k, k + 10)] for k in range(5, 75, 10)]

    assert await write(sink(lake, keep), *pages) == [10] * 6
    assert await write(sink(lake, keep), *overlapping) == [0] * 5 + [5, 10]
    more = [[record(str(n), n) for n in range(k, k + 5)] for k in (75, 80, 75, 80)]
    assert await write(sink(lake, keep), *more) == [5, 5, 0, 0]
    changed = [record("3", 4, "b"), record("70", 80, "b"), record("71", 1, "b")]
    assert await write(sink(lake, keep), changed, changed) == [2 + (keep == "all"), 0]
    assert len(rows(lake, "*")) == 85 + (3 if keep == "all" else 0)


@pytest.mark.parametrize("held", [True, False])
async def test_known_version_takes_over_with_its_page(
    lake: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """It is one commit with what is new and the position; what is current already is none."""
    if not held:
        monkeypatch.setattr(delta_known, "HELD_ROWS", 0)
    one, two = record("1", 1, "a"), record("1", 1, "b")
    other, far = record("2", 5000, "a"), record("2", 5000, "b")
    async with sink(lake, "all") as target:
        for page in ([one, other], [two, far]):
            await target.write("feed", Page(page))
        for n, page in enumerate(([one, other], [two, far]) * 3):
            before = commits(lake)
            new = record(f"new-{n}", 1)
            position = Position(timestamp=at(n))
            result = await target.write("feed", Page([*page, new]), position=position)
            assert (list(result.new), list(result.changed)) == ([new], page)
            assert await target.position("feed") == position
            assert (await target.write("feed", Page([*page, new]), position=position)).written == 0
            assert commits(lake) == before + 1
    order = "ORDER BY returned_at DESC NULLS LAST, record_timestamp DESC, collected_at DESC"
    first = f"row_number() OVER (PARTITION BY record_id {order})"
    found = rows(lake, f"{first} AS place, {VALUES}", where="record_id IN ('1', '2')")
    assert found == [(1, "1", "b"), (1, "2", "b"), (2, "1", "a"), (2, "2", "a")]


async def test_last_of_a_history_stays_current_whatever_is_added_with_it(lake: Path) -> None:
    """Its row has an earlier time than what the page says of it, and than what is new."""
    one, two = record("1", 1, "a"), record("1", 2, "b")
    again = Record(one.record_id, at(3), one.payload, one.version)

    assert await write(sink(lake, "all"), [one], [two, again], [again]) == [1, 1, 0]
    order = "returned_at IS NOT NULL, payload->>'$.value'"
    assert rows(lake, order) == [(False, "b"), (True, "a")]


async def test_version_of_several_times_in_a_page_is_of_the_latest(lake: Path) -> None:
    """So that it is in front of what the page says in between."""
    one, two = record("1", 1, "a"), record("1", 2, "b")
    again = Record(one.record_id, at(3), one.payload, one.version)

    assert await write(sink(lake, "all"), [one, two, again], [one, two, again]) == [2, 0]
    assert rows(lake, "payload->>'$.value', record_timestamp = '2024-01-01 00:03:00+00'") == [
        ("a", True),
        ("b", False),
    ]


def test_filter_never_misses_what_was_added() -> None:
    """A text that was added may be there; nearly all others are known not to be."""
    known = delta_known.BloomFilter()
    added = [f"id-{n}" for n in range(20_000)]
    known.add(added)
    assert known.maybe(added) == added
    assert len(known.maybe(f"other-{n}" for n in range(20_000))) < 20


@pytest.mark.slow
@KEEPS
async def test_small_files_of_a_day_become_one(
    lake: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    """On the way and at the end, without a change of any row."""
    monkeypatch.setattr(delta_store, "COMPACTED_FILES", 8)
    pages = [[record(str(n), n)] for n in range(20)]
    assert await write(sink(lake, keep), *pages) == [1] * 20
    assert len(live(lake)) < 8
    for n in range(20, 40):
        assert await write(sink(lake, keep), [record(str(n), n)]) == [1]
    assert len(live(lake)) < 16
    assert not [add for add in live(lake) if add["path"].startswith("/")]

    assert len({row[0] for row in rows(lake, "record_id")}) == len(rows(lake, "*")) == 40
    assert await write(sink(lake, keep), *pages) == [0] * 20


async def test_compaction_writes_parts_of_bounded_size(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not grow with a day; large files are left alone."""
    monkeypatch.setattr(delta_store, "COMPACTED_FILES", 4)
    monkeypatch.setattr(delta_rewrite, "ROWS_AT_ONCE", 20)
    pages = [[record(f"{k}-{n}", n) for n in range(5)] for k in range(20)]
    assert await write(sink(lake), *pages) == [5] * 20
    sizes = [json.loads(add["stats"])["numRecords"] for add in live(lake)]
    assert sum(sizes) == 100
    assert max(sizes) == 20
    changed = [record(f"{k}-0", 9, "b") for k in range(20)]
    assert await write(sink(lake), changed) == [20]
    assert len(rows(lake, "*")) == 100


async def test_run_sees_what_another_committed_between_its_pages(lake: Path) -> None:
    """What is held in memory is thrown away when the source's number is another's."""
    async with sink(lake) as one, sink(lake) as other:
        await one.write("feed", Page([record("1", 1)]))
        assert (await other.write("feed", Page([record("1", 1), record("2", 2)]))).written == 1
        assert await one.position("feed") is None  # reads the log
        assert (await one.write("feed", Page([record("2", 2), record("3", 3)]))).written == 1
        assert (await other.write("feed", Page([record("3", 3, "b")]))).written == 1
        assert await other.mark_removed("feed", {"2", "3"}, 0.5) == 1
        assert (
            await one.write("feed", Page([record("1", 5, "c"), record("3", 3, "b")]))
        ).written == 1
    assert rows(lake, f"{VALUES}, removed_at") == [
        ("1", "c", None), ("2", "a", None), ("3", "b", None),
    ]  # fmt: skip


async def test_page_that_always_comes_too_late_fails(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conflicts are retried a bounded number of times, and then told."""
    tries = 0

    def refuse(*_: object, **__: object) -> None:
        nonlocal tries
        tries += 1
        raise deltalake.exceptions.CommitFailedError("Concurrent transaction failed")

    async with sink(lake) as target:
        monkeypatch.setattr(delta_table.ManagedTable, "commit", refuse)
        with pytest.raises(SinkError, match="could not store a page: CommitFailedError") as caught:
            await target.write("feed", Page([record("1", 1)]))
    assert tries == delta_store.ATTEMPTS
    assert caught.value.source_id == "feed"


async def test_page_that_is_overtaken_each_time_fails_and_says_by_whom(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounded number of times, each with a plan for the table as it is then."""
    monkeypatch.setattr(delta_store, "ATTEMPTS", 3)
    plan, plans = delta_store.DeltaWriter._plan, 0

    def overtaken(*arguments: Any) -> Any:
        nonlocal plans
        plans += 1
        deltalake.DeltaTable(str(lake / "records")).alter.set_table_description(f"n. {plans}")
        return plan(*arguments)

    async with sink(lake) as target:
        await target.write("feed", Page([record("1", 1)]))
        monkeypatch.setattr(delta_store.DeltaWriter, "_plan", overtaken)
        with pytest.raises(SinkError, match=r"page: other writers .* Run again when fewer"):
            await target.write("feed", Page([record("1", 2, "b")]))
    assert plans == 3
    assert rows(lake, VALUES) == [("1", "a")]


async def test_page_is_not_planned_again_for_the_pages_of_other_sources(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run writes to files of its own, so a slow one comes through beside any number."""
    monkeypatch.setattr(delta_store, "ATTEMPTS", 1)
    async with sink(lake) as one, sink(lake) as other:
        for n in range(4):
            await one.write("feed", Page([record("1", n, str(n))]))
            for source_id in ("a", "b"):
                await other.write(source_id, Page([record("1", n, str(n))]))
    assert rows(lake, VALUES) == [("1", "3")] * 3


@pytest.mark.parametrize("source_id", ["theirs", "feed"])
async def test_appends_of_another_program_to_other_sources_overtake_nothing(
    lake: Path, monkeypatch: pytest.MonkeyPatch, source_id: str
) -> None:
    """A large page would never be stored beside one that appends each moment."""
    monkeypatch.setattr(delta_store, "ATTEMPTS", 1)
    plan = delta_store.DeltaWriter._plan

    def beside(*arguments: Any) -> Any:
        made = plan(*arguments)
        [add] = live(lake)[:1]
        their = pq.read_table(lake / "records" / add["path"], partitioning=None).slice(0, 1)
        for name, value in {**add["partitionValues"], "source_id": source_id}.items():
            their = their.append_column(name, pa.array([value], pa.string()))
        deltalake.write_deltalake(str(lake / "records"), their, mode="append")
        return made

    async with sink(lake) as target:
        await target.write("feed", Page([record("1", 1)]))
        monkeypatch.setattr(delta_store.DeltaWriter, "_plan", beside)
        page = Page([record("1", 2, "b"), record("2", 2)])
        if source_id == "feed":
            with pytest.raises(SinkError, match="other writers"):
                await target.write("feed", page)
        else:
            assert (await target.write("feed", page)).written == 2
            assert (await target.write("feed", page)).written == 0


_WRITER = """
import asyncio, sys
from ladon_storage.collection.protocols import Position
from ladon_storage.collection.records import Page
from ladon_storage.sinks.delta.sink import DeltaSink
from ladon_storage.testing.doubles import at, record

async def main():
    async with DeltaSink(sys.argv[1]) as sink:
        for page in range(1_000_000):
            records = [record(f"{page}-{n}", n, "a") for n in range(10)]
            records += [record(f"{page - 1}-0", 0, "b")] if page else []
            await sink.write("feed", Page(records), position=Position(timestamp=at(page)))
            print(page, flush=True)

asyncio.run(main())
"""


def test_killed_process_leaves_replaced_rows_once_with_their_position(lake: Path) -> None:
    """After kill -9 every page for which `write` returned is there, whole, with its position."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, f"delta://{lake}"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent.parent,
        env={**os.environ, "PYTHONPATH": "."},
    )
    with process:
        assert process.stdout is not None
        last = -1
        while last < 15:
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        last = int(process.stdout.read().split("\n")[-2:][0] or last)

    ids = [row[0] for row in rows(lake, "record_id")]
    pages = {int(record_id.split("-")[0]) for record_id in ids}
    assert pages >= set(range(last + 1))
    assert len(ids) == len(set(ids)) == 10 * len(pages)
    assert len(rows(lake, "*", where="payload->>'$.value' = 'b'")) == max(pages)

    async def replay() -> tuple[Position | None, int]:
        async with sink(lake) as target:
            again = Page([record(f"{max(pages)}-{n}", n, "a") for n in range(10)])
            written = (await target.write("feed", again)).written
            return await target.position("feed"), written

    assert asyncio.run(replay()) == (Position(timestamp=at(max(pages))), 0)


@KEEPS
async def test_table_of_another_keep_is_refused(lake: Path, keep: str) -> None:
    """One table cannot be both; the error says what it was made for."""
    other = "all" if keep == "latest" else "latest"
    await write(sink(lake, keep), [record("1", 1)])

    with pytest.raises(SinkError, match=f"created with keep='{keep}', not keep='{other}'"):
        await write(sink(lake, other))
    assert len(rows(lake, "*")) == 1


async def test_table_that_the_sink_did_not_make_is_refused(lake: Path) -> None:
    """Somebody else's table is left as it is."""
    deltalake.write_deltalake(str(lake / "records"), pa.table({"id": [1], "name": ["x"]}))

    with pytest.raises(SinkError, match=r"not created by this sink: .* id, name\. Use another"):
        await write(sink(lake))
    assert commits(lake) == 1


async def test_folder_with_other_files_is_refused(lake: Path) -> None:
    """A folder that happens to be there is no table."""
    (lake / "records").mkdir(parents=True)
    (lake / "records" / "notes.txt").write_text("mine")

    with pytest.raises(SinkError, match=r"contains other files, such as 'notes\.txt'"):
        await write(sink(lake))
    assert [path.name for path in (lake / "records").iterdir()] == ["notes.txt"]


@KEEPS
async def test_table_that_is_removed_during_a_run_is_made_again_once_its_remains_are_gone(
    lake: Path, keep: str
) -> None:
    """The run wrote a file of another day before its commit failed; the next says what to do."""
    target = sink(lake, keep)
    async with target:
        await target.write("feed", Page([record("1", 1)]))
        shutil.rmtree(lake / "records")
        with pytest.raises(SinkError, match="could not store a page"):
            await target.write("feed", Page([record("2", 9999)]))
    with pytest.raises(SinkError, match="or remove the folder if these are the remains of a table"):
        await write(target)
    shutil.rmtree(lake / "records")
    assert await write(target, [record("1", 1), record("2", 9999)]) == [2]


async def test_folder_whose_making_was_killed_is_used(lake: Path) -> None:
    """An empty log is no table yet."""
    (lake / "records" / "_delta_log").mkdir(parents=True)
    assert await write(sink(lake), [record("1", 1)]) == [1]


async def test_log_that_is_broken_is_an_error_of_ours(lake: Path) -> None:
    """What the library says is told in one sentence."""
    (lake / "records" / "_delta_log").mkdir(parents=True)
    (lake / "records" / "_delta_log" / f"{0:020}.json").write_text("this is no commit")

    with pytest.raises(SinkError, match="could not be opened"):
        await write(sink(lake))


async def test_relative_address_is_beside_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the address of a folder is read everywhere."""
    monkeypatch.chdir(tmp_path)
    await write(DeltaSink("delta://a lake/100%"), [record("1", 1)])
    assert len(rows(tmp_path / "a lake" / "100%", "*")) == 1


async def test_address_of_a_storage_is_read_and_written_by_its_own_means(lake: Path) -> None:
    """Without a folder, files go through the library's storage: the same table in the end."""
    pages = [[record(str(n), n) for n in range(k, k + 10)] for k in (0, 5)]
    target = sink(lake)
    target._root = lake.as_uri()
    assert await write(target, *pages, [record("1", 1, "b")]) == [10, 5, 1]

    assert await write(sink(lake), *pages) == [1, 0]
    assert len(rows(lake, "*")) == 15


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("s3://bucket/lake/", "s3://bucket/lake"),
        ("gs://bucket", "gs://bucket"),
        ("abfss://container@account.dfs.core.windows.net/lake", None),
        ("az://container/lake", None),
        ("delta:///var/lib/ladon", "/var/lib/ladon"),
    ],
)
def test_address_says_where_the_tables_are(url: str, root: str | None) -> None:
    """A folder, or what the library takes for a storage."""
    assert DeltaSink(url)._root == (root or url)


@pytest.mark.parametrize(
    "url",
    [
        "delta://",
        "delta:///",
        "records",
        "delta:lake",
        "http://host/lake",
        "s3://",
        "s3:///lake",
        "s3://me:SECRET@bucket/lake",
        "az://container/lake?sig=SECRET",
        "s3://bucket/lake#SECRET",
        "delta://s3://SECRET",
        "delta://me:SECRET@host/lake",
        None,
    ],
)
def test_address_that_cannot_be_used_is_refused_and_not_shown(url: Any) -> None:
    """Credentials come from the environment, and an address may hold a password."""
    with pytest.raises(ConfigurationError, match="address cannot be used") as caught:
        DeltaSink(url)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": "first"}, "'latest' or 'all', not 'first'"),
        ({"table": "a b"}, "cannot be named 'a b'"),
        ({"table": "../x"}, "cannot be named"),
        ({"table": None}, "cannot be named None"),
        ({"table": "x" * 64}, "cannot be named"),
    ],
)
def test_argument_that_makes_no_sense_is_refused(arguments: Any, message: str) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigurationError, match=message):
        DeltaSink("delta:///lake", **arguments)


async def test_error_of_the_storage_shows_no_secret(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the signature of a request nor a key of the environment, anywhere in the chain."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "KEY-SECRET")

    def fail(*_: object) -> int:
        raise OSError("PUT https://account/lake?sig=SIGNED-SECRET said KEY-SECRET is wrong\nmore")

    async with sink(lake) as target:
        monkeypatch.setattr(delta_store.DeltaWriter, "_store", fail)
        with pytest.raises(SinkError, match=r"account/lake\?… said … is wrong") as caught:
            await target.write("feed", Page([record("1", 1)]))
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


async def test_files_are_on_the_disk_before_the_commit_that_names_them(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power may fail: a log never names a file that is not there, and is itself flushed."""
    flushed: list[str] = []
    real = disk.flush

    def note(*paths: Path) -> None:
        flushed.extend(path.name for path in paths if path.exists())
        real(*paths)

    async with sink(lake) as target:
        monkeypatch.setattr(disk, "flush", note)
        await target.write("feed", Page([record("1", 1)]))
    [add] = live(lake)
    name = add["path"].rpartition("/")[2]
    assert flushed == [
        name, "2024-01-01", "feed", "records", f"{1:020}.json", "_delta_log",
    ]  # fmt: skip


async def test_cancelled_write_waits_for_its_commit(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving waits for the commit that is under way; no thread remains, and the loop goes on."""
    threads = set(threading.enumerate())
    target = sink(lake)
    writing, go = threading.Event(), threading.Event()
    real = delta_table.ManagedTable.commit

    def slow(*arguments: Any, **named: Any) -> None:
        writing.set()
        assert go.wait(10)
        real(*arguments, **named)

    monkeypatch.setattr(delta_table.ManagedTable, "commit", slow)
    running = asyncio.create_task(write(target, [record("1", 1)]))
    assert await asyncio.to_thread(writing.wait, 10)
    running.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    for thread in set(threading.enumerate()) - threads:
        if thread.name.startswith("ladon-sink"):
            thread.join(5)
            assert not thread.is_alive()

    assert await write(target, [record("1", 1), record("2", 2)]) == [1]
    assert len(rows(lake, "*")) == 2


async def test_sink_that_could_not_be_opened_can_be_tried_again(lake: Path) -> None:
    """A failed opening leaves no thread that blocks the next."""
    target = sink(lake)
    await asyncio.to_thread(lake.write_text, "a file")
    with pytest.raises(SinkError, match="could not be opened"):
        await write(target)
    await asyncio.to_thread(lake.unlink)

    assert await write(target, [record("1", 1)]) == [1]


def test_schemes_are_those_of_the_storages() -> None:
    """What tells sinks apart by their scheme can ask which are this one's."""
    assert delta_module.SCHEMES[0] == "delta"
    assert not isinstance(MemorySink(), DeltaSink)
