"""A Delta table that its owner touches: collecting goes on, and what was deleted stays deleted.

The owner uses deltalake, as another program would.
"""

from __future__ import annotations

import json
import random
import sqlite3
import struct
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

deltalake = pytest.importorskip("deltalake")
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from deltalake import DeltaTable, Field  # noqa: E402
from deltalake.schema import ArrayType, PrimitiveType  # noqa: E402

from ladon_storage.collection.protocols import Position, WriteResult  # noqa: E402
from ladon_storage.collection.records import Page, Record  # noqa: E402
from ladon_storage.errors import SinkError  # noqa: E402
from ladon_storage.sinks import SqlSink  # noqa: E402
from ladon_storage.sinks.delta import history as delta_history  # noqa: E402
from ladon_storage.sinks.delta import index as delta_known  # noqa: E402
from ladon_storage.sinks.delta import rewrite as delta_rewrite  # noqa: E402
from ladon_storage.sinks.delta import table as delta_table  # noqa: E402
from ladon_storage.sinks.delta import versions as delta_versions  # noqa: E402
from ladon_storage.sinks.delta import writer as delta_writer  # noqa: E402
from ladon_storage.sinks.delta.sink import DeltaSink  # noqa: E402
from ladon_storage.testing.doubles import at, record  # noqa: E402

TEXT = PrimitiveType("string")
KEEPS = pytest.mark.parametrize("keep", ["latest", "all"])


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


def sink(lake: Path, keep: Any = "latest") -> DeltaSink:
    return DeltaSink(f"delta://{lake}", keep=keep)


def owned(lake: Path, name: str = "records") -> DeltaTable:
    """Return the table as its owner opens it."""
    return DeltaTable(str(lake / name))


async def write(
    lake: Path,
    keep: str,
    *pages: MutableSequence[Record],
    source_id: str = "feed",
    position: Position | None = None,
) -> list[WriteResult]:
    """Write pages in a run of their own."""
    async with sink(lake, keep) as target:
        return [await target.write(source_id, Page(each), position=position) for each in pages]


async def position_of(lake: Path, keep: str, source_id: str = "feed") -> Position | None:
    async with sink(lake, keep) as target:
        return await target.position(source_id)


def rows(lake: Path, *columns: str, source_id: str = "feed") -> list[tuple[Any, ...]]:
    """Return columns of all rows of a source, in order."""
    found: Any = owned(lake).to_pyarrow_table()
    return sorted(
        tuple(json.loads(each[c])["value"] if c == "payload" else each[c] for c in columns)
        for each in found.to_pylist()
        if each["source_id"] == source_id
    )


def ids(lake: Path, source_id: str = "feed") -> list[str]:
    return [each[0] for each in rows(lake, "record_id", source_id=source_id)]


def vacuum(lake: Path) -> None:
    owned(lake).vacuum(0, dry_run=False, enforce_retention_duration=False)


def clean(lake: Path) -> None:
    """Leave nothing of the log but its last checkpoint."""
    table = owned(lake)
    table.alter.set_table_properties({"delta.logRetentionDuration": "interval 0 days"})
    table.create_checkpoint()
    owned(lake).cleanup_metadata()


def merge(lake: Path) -> None:
    source = pa.table({"source_id": ["feed"], "record_id": ["1"], "payload": ['{"value":"m"}']})
    how = "s.source_id = t.source_id AND s.record_id = t.record_id"
    merging = owned(lake).merge(source, how, source_alias="s", target_alias="t")
    merging.when_matched_update({"payload": "s.payload"}).execute()


def without_statistics(lake: Path) -> None:
    owned(lake).alter.set_table_properties({"delta.dataSkippingNumIndexedCols": "0"})
    owned(lake).optimize.z_order(["record_id"])


ACTS: dict[str, Callable[[Path], Any]] = {
    "delete": lambda lake: owned(lake).delete("record_id = '9'"),
    "update": lambda lake: owned(lake).update(
        predicate="record_id = '1'", new_values={"payload": '{"value":"u"}'}
    ),
    "merge": merge,
    "add a column": lambda lake: owned(lake).alter.add_columns(
        [Field("note", TEXT, nullable=True)]
    ),
    "describe": lambda lake: owned(lake).alter.set_table_description("threats"),
    "optimize": lambda lake: owned(lake).optimize.compact(),
    "z-order": lambda lake: owned(lake).optimize.z_order(["record_id"]),
    "vacuum": vacuum,
    "checkpoint": lambda lake: owned(lake).create_checkpoint(),
    "clean": clean,
    "no statistics": without_statistics,
    "change feed": lambda lake: owned(lake).alter.set_table_properties(
        {"delta.enableChangeDataFeed": "true"}
    ),
    "check": lambda lake: owned(lake).alter.add_constraint({"known": "record_id <> ''"}),
    "repair": lambda lake: owned(lake).repair(),
}
ALL_ACTS = [list(ACTS), list(reversed(ACTS))]
STRANGE = "a b/ü%=?#\u2028"


def owners() -> Iterator[Any]:
    """Yield every combination; one whose parts others have too is slow."""
    for keep, held, name in product(["latest", "all"], [True, False], ["feed", STRANGE]):
        for acts in ([each] for each in ACTS):
            usual = (keep, held, name) == ("latest", True, "feed")
            yield pytest.param(keep, held, name, acts, marks=() if usual else pytest.mark.slow)
        for acts in ALL_ACTS:
            usual = name == STRANGE and held == (keep == "latest")
            yield pytest.param(keep, held, name, acts, marks=() if usual else pytest.mark.slow)


@pytest.mark.parametrize(("keep", "held", "source_id", "acts"), list(owners()))
async def test_table_is_collected_into_after_what_its_owner_did(
    lake: Path,
    keep: str,
    acts: list[str],
    source_id: str,
    held: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Known rows are known, changed ones replaced, new ones added, none twice; marks are set."""
    if not held:
        monkeypatch.setattr(delta_known, "HELD_ROWS", 0)
    first = [record(str(n), n) for n in range(10)]
    position = Position(timestamp=at(9), run_id="r", document="0" * 29 + "f", order_shown=True)
    await write(lake, keep, first[:5], first[5:], source_id=source_id, position=position)
    await write(lake, keep, first)
    before = await position_of(lake, keep, source_id)
    for act in acts:
        ACTS[act](lake)
        assert await position_of(lake, keep, source_id) == before
    gone = ["9"] if "delete" in acts else []
    page = [*first, record("2", 20, "b"), record("new", 11)]
    [result, again] = await write(lake, keep, page, page, source_id=source_id)
    assert [each.record_id for each in result.new] == ["new"]
    assert len(result.changed) == 1
    assert again.written == 0
    left = [*(str(n) for n in range(10) if str(n) not in gone), "new"]
    assert sorted(set(ids(lake, source_id))) == left
    assert len(ids(lake, source_id)) == len(left) + (keep == "all")
    async with sink(lake, keep) as target:
        assert await target.mark_removed(source_id, {str(n) for n in range(9)}, 1) == 2 - len(gone)
        assert await target.lacking(source_id, {"1": at(1), "2": at(21), "9": at(9)}) == {"2"}
    if "add a column" in acts:
        assert owned(lake).schema().fields[-1].name == "note"


@KEEPS
async def test_deleted_record_stays_deleted_until_it_changes(lake: Path, keep: str) -> None:
    """In this run, the next, after VACUUM, and after the log was cleaned; a change is stored."""
    first = [record(str(n), n) for n in range(4)]
    await write(lake, keep, first)
    owned(lake).delete("record_id IN ('1', '2')")
    [result] = await write(lake, keep, first)
    assert result == WriteResult()
    vacuum(lake)
    clean(lake)
    [result] = await write(lake, keep, first)
    assert result == WriteResult()
    assert ids(lake) == ["0", "3"]

    changed = record("1", 5, "b")
    [result, again] = await write(lake, keep, [*first, changed], [*first, changed])
    assert (list(result.new), len(result.changed)) == ([], 1)
    assert again.written == 0
    assert rows(lake, "record_id", "payload") == [("0", "a"), ("1", "b"), ("3", "a")]


@KEEPS
async def test_record_deleted_during_a_run_stays_deleted(lake: Path, keep: str) -> None:
    """The run notices it before its next page, and whoever comes next knows it."""
    first = [record(str(n), n) for n in range(4)]
    async with sink(lake, keep) as target:
        await target.write("feed", Page(first))
        owned(lake).delete("record_id = '1'")
        page = Page([*first, record("4", 4)])
        assert (await target.write("feed", page)).written == 1
        assert (await target.write("feed", page)).written == 0
    assert (await write(lake, keep, page.records))[0].written == 0
    assert ids(lake) == ["0", "2", "3", "4"]


@KEEPS
@pytest.mark.parametrize("act", ["optimize", "z-order"])
async def test_files_that_their_owner_merges_during_a_run_are_not_removed_twice(
    lake: Path, monkeypatch: pytest.MonkeyPatch, keep: str, act: str
) -> None:
    """The library would remove them again, and each of their rows would be there twice."""
    one, two = record("1", 1), record("2", 2)
    async with sink(lake, keep) as target:
        for page in ([one, record("0", 0)], [two, record("3", 3)]):
            await target.write("feed", Page(page))
        ACTS[act](lake)
        result = await target.write("feed", Page([record("1", 5, "b"), record("4", 4)]))
        assert (len(result.new), result.written) == (1, 2)
        ACTS[act](lake)
        assert await target.mark_removed("feed", {"1", "2", "4"}, 0.5) == 2
        ACTS[act](lake)
        assert await target.revert("feed", [one]) == 1
        ACTS[act](lake)
        await target.write("feed", Page([record("5", 5)]))
        monkeypatch.setattr(delta_writer, "COMPACTED_FILES", 2)
        ACTS[act](lake)
    both = [("1", "a"), ("1", "b")] if keep == "all" else [("1", "a")]
    assert rows(lake, "record_id", "payload") == [
        ("0", "a"), *both, ("2", "a"), ("3", "a"), ("4", "a"), ("5", "a"),
    ]  # fmt: skip


@KEEPS
async def test_own_merging_of_files_that_their_owner_merged_is_dropped(
    lake: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    """The two merge the same files, and the second one would add their rows again."""
    commit = delta_table.ManagedTable.commit

    def late(table: Any, actions: Any, names: Any) -> None:
        if actions and not actions[0].data_change:
            owned(lake).optimize.compact()
        commit(table, actions, names)

    monkeypatch.setattr(delta_writer, "COMPACTED_FILES", 3)
    monkeypatch.setattr(delta_table.ManagedTable, "commit", late)
    await write(lake, keep, *([record(str(n), n)] for n in range(4)))
    assert ids(lake) == ["0", "1", "2", "3"]


@KEEPS
async def test_whole_days_and_sources_that_are_deleted_stay_deleted(lake: Path, keep: str) -> None:
    """No file is left of them; other sources are untouched."""
    first = [record(str(n), n * 24 * 60) for n in range(4)]
    for source_id in ("feed", "other"):
        await write(lake, keep, first, source_id=source_id)
    owned(lake).delete("source_id = 'feed' AND day < '2024-01-03'")
    owned(lake).delete("source_id = 'other'")

    for source_id in ("feed", "other"):
        assert (await write(lake, keep, first, source_id=source_id))[0].written == 0
    assert (ids(lake), ids(lake, "other")) == (["2", "3"], [])
    (other,) = await write(lake, keep, [record("0", 9, "b")], source_id="other")
    assert len(other.changed) == 1


async def test_version_that_was_deleted_is_no_return(lake: Path) -> None:
    """Of two versions the later one was deleted: that the source still says it is no change."""
    one, two, three = record("1", 1, "a"), record("1", 2, "b"), record("1", 3, "c")
    await write(lake, "all", [one], [two])
    owned(lake).delete("payload LIKE '%b%'")
    [result] = await write(lake, "all", [one, two])
    assert result.written == 0
    assert two not in result.superseded
    assert rows(lake, "payload") == [("a",)]

    await write(lake, "all", [three])
    [result] = await write(lake, "all", [two])
    assert result.superseded == (two,)
    async with sink(lake, "all") as target:  # the source went back to it: that is a change
        assert await target.revert("feed", [two]) == 1
    assert rows(lake, "payload") == [("a",), ("b",), ("c",)]


@KEEPS
async def test_deletion_that_is_restored_is_none(lake: Path, keep: str) -> None:
    """What is in the table counts, and the table of deletions may be dropped to forget all."""
    first = [record(str(n), n) for n in range(4)]
    await write(lake, keep, first)
    version = owned(lake).version()
    owned(lake).delete("record_id = '1'")
    assert (await write(lake, keep, first))[0].written == 0
    owned(lake).restore(version)

    assert (await write(lake, keep, first))[0].written == 0
    assert ids(lake) == ["0", "1", "2", "3"]
    (lake / "records_deleted").rename(lake / "gone")
    owned(lake).delete("record_id = '2'")
    assert (await write(lake, keep, first))[0].written == 0


@KEEPS
@pytest.mark.parametrize("is_cleaned", [False, True])
async def test_position_goes_back_with_the_table_that_is_restored(
    lake: Path, keep: str, is_cleaned: bool
) -> None:
    """Rows of after it are gone, so that a position of after it would be a hole in green."""
    positions = [Position(timestamp=at(n), watermark=at(0)) for n in range(4)]
    versions = []
    for n, position in enumerate(positions):
        await write(lake, keep, [record(str(n), n)], position=position)
        versions.append(owned(lake).version())
    owned(lake).restore(versions[1])
    if is_cleaned:
        clean(lake)
    expected = None if is_cleaned else positions[1]
    assert await position_of(lake, keep) == expected
    noted = owned(lake).version()
    assert await position_of(lake, keep) == expected
    assert owned(lake).version() == noted

    # A page without its position, as of a source without order, does not bring the old one back.
    assert (await write(lake, keep, [record("2", 2)]))[0].written == 1
    assert await position_of(lake, keep) == expected
    await write(lake, keep, [record("3", 3)], position=positions[3])
    assert await position_of(lake, keep) == positions[3]
    assert ids(lake) == ["0", "1", "2", "3"]


async def test_table_may_be_restored_any_number_of_times(lake: Path) -> None:
    """Also one right after the other, to a version of before or behind the first."""
    positions = [Position(timestamp=at(n)) for n in range(3)]
    versions = []
    for n, position in enumerate(positions):
        await write(lake, "all", [record(str(n), n)], position=position)
        versions.append(owned(lake).version())
    owned(lake).restore(versions[0])
    owned(lake).restore(versions[1])
    owned(lake).restore(owned(lake).version() - 2)
    assert await position_of(lake, "all") == positions[0]
    owned(lake).restore(versions[1])
    assert await position_of(lake, "all") == positions[1]
    restored = owned(lake).version()
    await write(lake, "all", [record("9", 9)], position=Position(timestamp=at(9)))
    owned(lake).restore(restored)
    assert await position_of(lake, "all") == positions[1]
    moment = {each["version"]: each["timestamp"] for each in owned(lake).history()}[restored]
    owned(lake).restore(datetime.fromtimestamp(moment / 1000, UTC) + timedelta(milliseconds=1))
    assert await position_of(lake, "all") is None  # which version that is the log does not say


async def test_table_that_is_restored_while_a_run_writes_fails_the_run(lake: Path) -> None:
    """What it had written is gone; the next run goes on from the restored position."""
    async with sink(lake) as target:
        await target.write("feed", Page([record("1", 1)]), position=Position(timestamp=at(1)))
        version = owned(lake).version()
        await target.write("feed", Page([record("2", 2)]), position=Position(timestamp=at(2)))
        owned(lake).restore(version)
        with pytest.raises(SinkError, match=r"was restored while a run .* Run again"):
            await target.write("feed", Page([record("3", 3)]), position=Position(timestamp=at(3)))

    assert await position_of(lake, "latest") == Position(timestamp=at(1))
    assert ids(lake) == ["1"]


async def test_files_that_were_lost_are_read_again(lake: Path) -> None:
    """A repair takes out files that are missing: nobody meant to delete what was in them."""
    first = [record(str(n), n) for n in range(4)]
    await write(lake, "latest", first, position=Position(timestamp=at(4)))
    [path] = (lake / "records" / "feed").rglob("*.parquet")
    path.unlink()
    owned(lake).repair()

    assert await position_of(lake, "latest") is None
    assert (await write(lake, "latest", first))[0].written == 4


async def test_rows_that_are_missing_behind_a_cleaned_log_are_read_again(lake: Path) -> None:
    """Whether the table was restored or they were deleted nobody can know any more."""
    await write(lake, "all", [record("1", 1)], position=Position(timestamp=at(1)))
    version = owned(lake).version()
    await write(lake, "all", [record("2", 2)], position=Position(timestamp=at(2)))
    owned(lake).restore(version)
    clean(lake)

    assert await position_of(lake, "all") is None
    assert (await write(lake, "all", [record("1", 1), record("2", 2)]))[0].written == 1


async def test_vacuum_before_a_run_looked_is_said(
    lake: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was in the files cannot be known, and is stored when the source delivers it."""
    first = [record(str(n), n) for n in range(4)]
    await write(lake, "latest", first)
    owned(lake).delete("record_id = '1'")
    vacuum(lake)

    [result] = await write(lake, "latest", first)
    assert result.written == 1
    assert "were vacuumed before a run examined them" in caplog.text


@pytest.mark.slow
@KEEPS
@pytest.mark.parametrize("held", [0, 1_000_000])
@pytest.mark.parametrize("between", ["optimize", "z-order"])
@pytest.mark.parametrize("run_after", ["delete", "optimize"])
async def test_deletion_that_a_run_noticed_outlives_its_purged_files(
    lake: Path,
    keep: str,
    held: int,
    between: str,
    run_after: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """DELETE, OPTIMIZE, VACUUM: the run may come before or after the second; the rest is known."""
    monkeypatch.setattr(delta_known, "HELD_ROWS", held)
    first = [record(str(n), n) for n in range(6)]
    await write(lake, keep, first[:3], first[3:])
    owned(lake).delete("record_id IN ('1', '4')")
    if run_after == "delete":
        assert (await write(lake, keep, [first[0]]))[0].written == 0
    ACTS[between](lake)
    if run_after == "optimize":
        assert (await write(lake, keep, [first[0]]))[0].written == 0
    vacuum(lake)

    [result, again] = await write(lake, keep, [*first, record("6", 6)], first)
    assert [each.record_id for each in result.new] == ["6"]
    assert (len(result.changed), again.written) == (0, 0)
    assert ids(lake) == ["0", "2", "3", "5", "6"]
    assert (await write(lake, keep, [record("4", 9, "b")]))[0].written == 1
    assert not caplog.messages


@KEEPS
@pytest.mark.parametrize("between", ["optimize", "z-order"])
async def test_files_purged_before_a_run_cost_their_deletion_and_nothing_else(
    lake: Path, keep: str, between: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was in them is stored once more and a warning says so; later deletions are noticed."""
    first, position = [record(str(n), n) for n in range(6)], Position(timestamp=at(5))
    await write(lake, keep, first[:3], first[3:], position=position)
    owned(lake).delete("record_id IN ('1', '4')")
    ACTS[between](lake)
    vacuum(lake)

    assert await position_of(lake, keep) == position
    [result, again] = await write(lake, keep, [*first, record("6", 6)], first)
    assert sorted(each.record_id for each in result.new) == ["1", "4", "6"]
    assert (len(result.changed), again.written) == (0, 0)
    assert sum("were vacuumed before a run examined" in each for each in caplog.messages) == 1
    owned(lake).delete("record_id IN ('1', '5')")
    assert (await write(lake, keep, first))[0].written == 0
    vacuum(lake)
    assert (await write(lake, keep, first))[0].written == 0
    assert ids(lake) == ["0", "2", "3", "4", "6"]


@KEEPS
async def test_columns_of_the_owner_keep_their_values(
    lake: Path, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a replaced row, a mark, a return, and files that are made one; new rows have none."""
    monkeypatch.setattr(delta_rewrite, "ROWS_AT_ONCE", 1000)
    monkeypatch.setattr(delta_writer, "COMPACTED_FILES", 2)
    first = [record(str(n), n) for n in range(6)]
    await write(lake, keep, first)
    tags = Field("tags", ArrayType(TEXT, contains_null=True), nullable=True)
    owned(lake).alter.add_columns([Field("note", TEXT, nullable=True), tags])
    owned(lake).update(
        updates={"note": "concat('n', record_id)", "tags": "make_array('t', record_id)"}
    )
    await write(lake, keep, [record("1", 7, "b")], [record("new", 8)])
    async with sink(lake, keep) as target:
        assert await target.mark_removed("feed", {"0", "1", "2", "new"}, 1) == 3
        assert await target.revert("feed", [first[1]]) == 1

    found: Any = owned(lake).to_pyarrow_table(columns=["record_id", "version", "note", "tags"])
    kept = {each["record_id"]: each for each in found.to_pylist() if each["note"]}
    assert set(kept) == {str(n) for n in range(6)} - ({"1"} if keep == "latest" else set())
    assert all(each["note"] == "n" + each["record_id"] for each in kept.values())
    assert all(each["tags"] == ["t", each["record_id"]] for each in kept.values())


async def test_column_that_must_have_a_value_is_refused(lake: Path) -> None:
    """The sink has none for it, and says so before anything is collected."""
    await write(lake, "latest", [record("1", 1)])
    log = lake / "records" / "_delta_log"
    [text] = [
        line for line in (log / f"{0:020}.json").read_text().splitlines() if "metaData" in line
    ]
    action = json.loads(text)
    schema = json.loads(action["metaData"]["schemaString"])
    schema["fields"].append({"name": "who", "type": "string", "nullable": False, "metadata": {}})
    action["metaData"]["schemaString"] = json.dumps(schema)
    (log / f"{owned(lake).version() + 1:020}.json").write_text(json.dumps(action))

    with pytest.raises(SinkError, match=r"the column 'who', .* Make it nullable"):
        await write(lake, "latest", [record("2", 2)])


def add_file(lake: Path, rows: pa.Table, stats: Any, **fields: Any) -> None:
    """Commit a file as another engine would: with its types, names and statistics."""
    table = owned(lake)
    path = fields.pop("path", f"other-{table.version()}.parquet")
    target = lake / "records" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, target)
    add = {
        "path": quote(path, safe="/="),
        "partitionValues": {"source_id": "feed", "day": "2024-01-01"},
        "size": target.stat().st_size,
        "modificationTime": 0,
        "dataChange": True,
        **({} if stats is None else {"stats": json.dumps(stats)}),
        **fields,
    }
    commit = lake / "records" / "_delta_log" / f"{table.version() + 1:020}.json"
    commit.write_text(json.dumps({"add": add}) + "\n")


def foreign(*records: Record, **types: pa.DataType) -> pa.Table:
    """Return rows in the types of another engine."""
    columns: dict[str, pa.Array] = {
        "payload": pa.array([each.payload for each in records], pa.large_string()),
        "version": pa.array([each.version for each in records]).dictionary_encode(),
        "record_id": pa.array([each.record_id for each in records], pa.string_view()),
        "record_timestamp": pa.array([each.timestamp for each in records], pa.timestamp("ms")),
        "collected_at": pa.array([at(0)] * len(records), pa.timestamp("us", "Europe/Berlin")),
    }
    return pa.table({name: each.cast(types.get(name, each.type)) for name, each in columns.items()})


@KEEPS
@pytest.mark.parametrize(
    "stats",
    [
        None,
        {},
        {"numRecords": 2},
        {"numRecords": 2, "minValues": {"record_id": "x"}, "maxValues": {"record_id": "x"}},
        {"numRecords": 2, "minValues": {"record_id": "xxx"}, "nullCount": {"removed_at": 2}},
    ],
    ids=["none", "empty", "count alone", "cut off", "half"],
)
async def test_file_of_another_engine_is_read_by_its_own_types(
    lake: Path, keep: str, stats: Any
) -> None:
    """Views, large texts, dictionaries, another order, no marks; nothing is passed over."""
    await write(lake, keep, [record("1", 1)])
    one, two = record("xxx1", 2), record("xxx2", 3)
    add_file(lake, foreign(one, two), stats, path="source_id=a b/ü 100%.parquet")

    [known, changed] = await write(lake, keep, [one, two], [record("xxx1", 4, "b")])
    assert known.written == 0
    assert (list(changed.new), len(changed.changed)) == ([], 1)
    assert sorted(set(ids(lake))) == ["1", "xxx1", "xxx2"]
    assert len(ids(lake)) == 3 + (keep == "all")
    async with sink(lake, keep) as target:
        assert await target.lacking("feed", {"xxx2": at(3), "no": at(0)}) == {"no"}
        assert await target.mark_removed("feed", {"1"}, 1) == 2
        assert await target.revert("feed", [one]) == 1
    assert len(ids(lake)) == 3 + (keep == "all")


async def test_file_that_could_not_be_taken_out_is_refused_and_not_doubled(lake: Path) -> None:
    """Its name in the log is written in a way that the library does not write."""
    await write(lake, "latest", [record("1", 1)])
    add_file(lake, foreign(record("2", 2)), None, path="x(1).parquet")
    assert (await write(lake, "latest", [record("2", 2)]))[0].written == 0

    with pytest.raises(SinkError, match=r"name that only its writer understands.* OPTIMIZE"):
        await write(lake, "latest", [record("2", 3, "b")])
    assert ids(lake) == ["1", "2"]


async def test_look_at_the_log_stays_short(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other sources commit: it is noted now and then that it was looked at."""
    monkeypatch.setattr(delta_history, "LOOKED_AT", 4)
    await write(lake, "latest", [record("1", 1)], source_id="idle")
    for n in range(20):
        await write(lake, "latest", [record(str(n), n)])
    looked: list[int] = []
    real = delta_table.ManagedTable.commit_text

    def note(self: Any, version: int) -> str | None:
        looked.append(version)
        return real(self, version)

    monkeypatch.setattr(delta_table.ManagedTable, "commit_text", note)
    await write(lake, "latest", [record("1", 1)], source_id="idle")
    assert len(looked) <= 8


async def test_numbers_of_the_last_commits_are_read_once(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run searches the whole log only for what the last commits do not have."""
    position = Position(timestamp=at(1), run_id="r", origin=at(0), document="0" * 29 + "f")
    moved = position.model_copy(update={"timestamp": at(2)})
    await write(lake, "latest", [record("1", 1)], position=position)
    await write(lake, "latest", [record("2", 2)], position=moved)
    asked: list[str] = []
    real = DeltaTable.transaction_version

    def note(self: DeltaTable, name: str) -> int | None:
        asked.append(name)
        return real(self, name)

    monkeypatch.setattr(DeltaTable, "transaction_version", note)
    found = await position_of(lake, "latest")
    assert found is not None
    assert (found.timestamp, found.origin, found.document) == (at(2), at(0), position.document)
    unmoved = ("run", "origin", "document-1", "document-2")
    assert set(asked) == {f"ladon-{each}:feed" for each in (*unmoved, "watermark")}
    await write(lake, "latest", [record("3", 3)], source_id="other", position=moved)
    asked.clear()
    assert await position_of(lake, "latest") == found
    assert "ladon-page:feed" in asked
    assert "ladon-timestamp:feed" not in asked


async def test_table_of_before_is_read_by_its_own_columns(lake: Path) -> None:
    """One that was made without `returned_at` gets it when it is needed, and its files stay."""
    from ladon_storage.sinks.delta.rows import RECORDS

    DeltaTable.create(
        str(lake / "records"),
        RECORDS,
        partition_by=["source_id", "day"],
        description="Made by ladon-storage: keep='all'",
    )
    one, two = record("1", 1, "a"), record("1", 2, "b")
    assert [each.written for each in await write(lake, "all", [one], [two], [one])] == [1, 1, 0]
    assert "returned_at" not in [field.name for field in owned(lake).schema().fields]
    async with sink(lake, "all") as target:
        assert await target.revert("feed", [one]) == 1
    assert owned(lake).schema().fields[-1].name == "returned_at"
    known, again = await write(lake, "all", [one], [two])
    assert (known.written, known.superseded) == (0, ())
    assert (again.changed, again.superseded) == ((two,), ())


async def test_version_is_current_whatever_the_clocks_of_workers_say(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose clock is behind does not add a version behind the one before it."""
    clock = [10**15, 10**15 - 10**9, 10**15 - 2 * 10**9]
    monkeypatch.setattr(delta_versions, "now_in_microseconds", lambda: clock[0])
    made = [record("1", 1, value) for value in "abc"]
    for page in made:
        await write(lake, "all", [page])
        clock.pop(0)
        clock.append(0)
    found = rows(lake, "collected_at", "payload")
    assert [value for _, value in found] == ["a", "b", "c"]


def vector(*rows: int) -> dict[str, Any]:
    """Return the deletion vector of a few rows: a bitmap within the log, as Delta has it."""
    bitmap = struct.pack("<II", 12346, 1) + struct.pack("<HH", 0, len(rows) - 1)
    bitmap += struct.pack("<I", 16) + struct.pack(f"<{len(rows)}H", *rows)
    whole = struct.pack("<IQI", 1681511377, 1, 0) + bitmap
    whole += bytes(-len(whole) % 4)
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    text = ""
    for (word,) in struct.iter_unpack(">I", whole):
        text += "".join(digits[word // 85**power % 85] for power in (4, 3, 2, 1, 0))
    inline = {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(whole)}
    return {**inline, "cardinality": len(rows)}


@KEEPS
async def test_rows_that_a_deletion_vector_took_out_are_gone(lake: Path, keep: str) -> None:
    """They are not known, not doubled, and stay deleted; a file that has one is not replaced."""
    first = [record(str(n), n) for n in range(6)]
    await write(lake, keep, first)
    owned(lake).alter.set_table_properties(
        {"delta.enableDeletionVectors": "true"}, raise_if_not_exists=False
    )
    table = owned(lake)
    [add] = [
        json.loads(line)["add"]
        for path in (lake / "records" / "_delta_log").glob("*.json")
        for line in path.read_text().splitlines()
        if line.startswith('{"add"')
    ]
    partition = {"path": add["path"], "partitionValues": add["partitionValues"]}
    remove = {**partition, "deletionTimestamp": 1, "dataChange": True, "size": add["size"]}
    actions: list[dict[str, Any]] = [
        {"commitInfo": {"operation": "DELETE"}},
        {"remove": remove},
        {"add": {**add, "deletionVector": vector(1, 3)}},
    ]
    commit = lake / "records" / "_delta_log" / f"{table.version() + 1:020}.json"
    commit.write_text("".join(json.dumps(each) + "\n" for each in actions))

    async with sink(lake, keep) as target:
        page = Page([*first, record("6", 6)])
        assert (await target.write("feed", page)).written == 1
        assert (await target.write("feed", page)).written == 0
        assert await target.lacking("feed", {"0": at(0), "1": at(1), "9": at(1)}) == {"9"}
        result = await target.write("feed", Page([record("3", 8, "b")]))
        assert len(result.changed) == 1
        with pytest.raises(SinkError, match=r"has a deletion vector, .* REORG TABLE"):
            await target.mark_removed("feed", {"0"}, 1)
        if keep == "latest":
            with pytest.raises(SinkError, match="has a deletion vector"):
                await target.write("feed", Page([record("0", 9, "b")]))


@KEEPS
async def test_commit_that_fails_in_the_middle_leaves_nothing_wrong(
    lake: Path, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of looking, of a page and of a return: what is done again is done whole."""
    first = [record(str(n), n) for n in range(4)]
    await write(lake, keep, first, position=Position(timestamp=at(4)))
    owned(lake).delete("record_id = '1'")
    real = delta_table.ManagedTable.commit
    # The note of a deletion, that it was seen, and the page.
    for failing in (0, 1, 1):
        done, changed = 0, record("0", 9, "z")

        def fail(self: Any, actions: Any, names: Any, last: int = failing) -> None:
            nonlocal done
            if done == last:
                raise OSError("the disk is full")
            done += 1
            real(self, actions, names)

        with monkeypatch.context() as broken:
            broken.setattr(delta_table.ManagedTable, "commit", fail)
            with pytest.raises(SinkError, match="the disk is full"):
                await write(lake, keep, [*first, changed], position=Position(timestamp=at(9)))

    assert await position_of(lake, keep) == Position(timestamp=at(4))
    [result] = await write(lake, keep, [*first, record("0", 9, "z")])
    assert (list(result.new), len(result.changed)) == ([], 1)
    assert sorted(set(ids(lake))) == ["0", "2", "3"]


async def test_return_is_current_whatever_the_clocks_of_workers_say(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose clock is behind goes back to a version behind the return before it."""
    now = 2 * 10**15
    monkeypatch.setattr(delta_versions, "now_in_microseconds", lambda: now)
    one, two = record("1", 1, "a"), record("1", 2, "b")
    await write(lake, "all", [one], [two])
    for version in (one, two):
        async with sink(lake, "all") as target:
            assert await target.revert("feed", [version]) == 1
        now -= 10**9
    assert [each.written for each in await write(lake, "all", [two], [one])] == [0, 0]
    found = rows(lake, "returned_at", "payload")
    assert [value for _, value in found] == ["a", "b"]


async def test_row_that_its_owner_gave_another_time_is_replaced(lake: Path) -> None:
    """Its file is of the day that it had, and is found all the same."""
    await write(lake, "latest", [record("1", 1), record("2", 2)])
    owned(lake).update(
        predicate="record_id = '1'",
        updates={"record_timestamp": "timestamp '2023-01-01T00:00:00Z'"},
    )
    [result] = await write(lake, "latest", [record("1", 3, "b")])

    assert len(result.changed) == 1
    assert rows(lake, "record_id", "payload") == [("1", "b"), ("2", "a")]


async def test_version_that_its_owner_gave_another_time_may_take_over(lake: Path) -> None:
    """Its file is of the day that it had, where another version may be in the file of the new."""
    day = 24 * 60
    one, two, three = record("1", 1, "a"), record("1", 1, "b"), record("1", day, "c")
    await write(lake, "all", [one], [two])
    owned(lake).update(
        predicate="payload LIKE '%\"a\"%'",
        updates={"record_timestamp": "timestamp '2024-01-02T00:00:00Z'"},
    )
    await write(lake, "all", [three])
    again = Record(one.record_id, at(2 * day), one.payload, one.version)
    [result] = await write(lake, "all", [again])

    assert (result.changed, result.superseded) == ((again,), ())
    found = rows(lake, "payload", "returned_at")
    assert [(value, when is not None) for value, when in found] == [
        ("a", True),
        ("b", False),
        ("c", False),
    ]


async def test_version_that_was_deleted_is_there_again_once_the_source_says_it_anew(
    lake: Path,
) -> None:
    """Of two at one time it was the former; to come back after the other is a change."""
    one, two = record("1", 1, "a"), record("1", 1, "b")
    await write(lake, "all", [one], [two])
    owned(lake).delete("payload LIKE '%\"a\"%'")

    [history] = await write(lake, "all", [one, two])
    assert (history.written, history.superseded) == (0, ())
    assert rows(lake, "payload") == [("b",)]
    again, known = await write(lake, "all", [one], [one])
    assert (again.changed, known.written) == ((one,), 0)
    found = rows(lake, "payload", "returned_at")
    assert [(value, when is not None) for value, when in found] == [("a", True), ("b", False)]


@KEEPS
async def test_removed_record_that_was_deleted_is_stored_when_it_is_listed_again(
    lake: Path, keep: str
) -> None:
    """The source took it back; what was not marked, and is deleted beside it, stays deleted."""
    page = [record(str(n), 1) for n in range(4)]
    await write(lake, keep, page)
    async with sink(lake, keep) as target:
        assert await target.mark_removed("feed", {"0", "2", "3"}, 1) == 1
    owned(lake).delete("removed_at IS NOT NULL OR record_id = '2'")

    [result, again] = await write(lake, keep, page, page)
    assert (list(result.new), again.written) == ([page[1]], 0)
    vacuum(lake)
    assert (await write(lake, keep, page))[0].written == 0
    assert ids(lake) == ["0", "1", "3"]


async def test_removed_records_that_were_all_deleted_leave_a_table_in_order(lake: Path) -> None:
    """There is nothing to note, and the position holds."""
    page, position = [record("1", 1)], Position(timestamp=at(1))
    await write(lake, "all", page, position=position)
    async with sink(lake, "all") as target:
        assert await target.mark_removed("feed", set(), 1) == 1
    owned(lake).delete("removed_at IS NOT NULL")

    assert await position_of(lake, "all") == position
    assert list((await write(lake, "all", page))[0].new) == page


@KEEPS
async def test_version_that_was_deleted_twice_stays_deleted(lake: Path, keep: str) -> None:
    """What its source said last before the last deletion is what is not stored again."""
    a, b = record("1", 1, "a"), record("1", 1, "b")
    for each in (a, b, a, b, a):
        [result] = await write(lake, keep, [each])
        assert result.written == 1
        owned(lake).delete("record_id = '1'")
        [result] = await write(lake, keep, [each])
        assert (result.written, result.superseded) == (0, ())


@KEEPS
async def test_removal_makes_nothing_of_what_was_deleted_before(lake: Path, keep: str) -> None:
    """A record that is listed again after it was removed, and taken out for that, is stored."""
    one, two = record("1", 1, "a"), record("1", 2, "b")
    await write(lake, keep, [one])
    owned(lake).delete("record_id = '1'")
    await write(lake, keep, [two])
    async with sink(lake, keep) as target:
        await target.mark_removed("feed", set(), 1)
    owned(lake).delete("removed_at IS NOT NULL")

    async with sink(lake, keep) as target:
        assert await target.lacking("feed", {"1": at(1)}) == {"1"}
        assert list((await target.write("feed", Page([one]))).new) == [one]


async def test_deleted_version_is_not_brought_back_by_an_older_one(lake: Path) -> None:
    """It is still what the source says, and the older one is new."""
    one, two = record("1", 3, "a"), record("1", 3, "b")
    await write(lake, "all", [one])
    owned(lake).delete("record_id = '1'")
    [result] = await write(lake, "all", [record("1", 5, "a"), two])

    assert list(result.changed) == [two]
    assert rows(lake, "payload") == [("b",)]


@KEEPS
async def test_deletion_that_another_run_noted_holds_for_a_run_that_knew_of_others(
    lake: Path, keep: str
) -> None:
    """What was noted is read again."""
    page = [record("1", 1), record("2", 1), record("3", 1)]
    await write(lake, keep, page)
    owned(lake).delete("record_id = '1'")
    async with sink(lake, keep) as target:
        assert (await target.write("feed", Page(page))).written == 0
        owned(lake).delete("record_id = '2'")
        await write(lake, keep, [record("1", 1)], source_id="other")
        assert (await target.write("feed", Page([record("4", 1)]))).written == 1
        assert (await target.write("feed", Page(page))).written == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@KEEPS
async def test_deletions_are_treated_as_those_of_a_table_of_sqlite(
    lake: Path, tmp_path: Path, keep: Any, seed: int
) -> None:
    """Whatever is said, removed and deleted in whatever order: rows and counts are the same."""
    chance = random.Random(seed)
    path = tmp_path / "records.db"

    def table(columns: str) -> list[Any]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(f"SELECT {columns} FROM records").fetchall()

    def delete(where: str) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(f"DELETE FROM records WHERE {where}")
        owned(lake).delete(where)

    for _ in range(8):
        page = [
            record(chance.choice("123"), chance.choice([1, 2, 3, 3]), chance.choice("abc"))
            for _ in range(chance.randint(1, 3))
        ]
        told = []
        for target in (SqlSink(f"sqlite:///{path}", keep=keep), sink(lake, keep)):
            async with target:
                result = await target.write("feed", Page(page))
                counts = [sorted(map(id, each)) for each in (result.new, result.superseded)]
                returned = await target.revert("feed", list(result.superseded), run_id="R")
                removed = await target.mark_removed("feed", {each.record_id for each in page}, 1)
                told.append((counts, result.written + returned, removed))
        assert told[0] == told[1]
        found = [
            (*each[:2], each[2] is not None) for each in table("record_id, version, removed_at")
        ]
        same = rows(lake, "record_id", "version", "removed_at")
        assert sorted((*each[:2], each[2] is not None) for each in same) == sorted(found)
        wheres = [f"record_id = '{page[0].record_id}'", "removed_at IS NOT NULL", "1 = 1"]
        wheres += [f"version = '{page[0].version}'"]
        if chance.random() < 0.5:
            delete(chance.choice(wheres))
