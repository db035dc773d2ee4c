"""The index beside a folder of lines: it saves reading, and is never believed against the files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ladon_storage.collection.protocols import Position
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.sinks.jsonl import index, lines
from ladon_storage.sinks.jsonl.sink import JsonlSink
from ladon_storage.testing.doubles import at, record


@pytest.fixture(autouse=True)
def _index_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "INDEXED_LINES", 1)
    monkeypatch.setattr(index, "_RECENT", 2)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the lines that are read from files from now on."""
    found: list[bytes] = []
    parse = lines.parsed

    def parsed(line: bytes) -> object:
        found.append(line)
        return parse(line)

    monkeypatch.setattr(lines, "parsed", parsed)
    return found


async def write(folder: Path, *records: Record, rejects: tuple[Reject, ...] = ()) -> list[str]:
    """Write a page in a run of its own, and return the ids that were new or changed."""
    async with JsonlSink(f"jsonl://{folder}") as sink:
        result = await sink.write("feed", Page(list(records), list(rejects)))
        return [each.record_id for each in (*result.new, *result.changed)]


def indexes(folder: Path) -> list[Path]:
    return list((folder / "records" / "feed").glob(".index-*"))


async def test_indexed_files_are_not_read(tmp_path: Path, read: list[bytes]) -> None:
    """A run finds its records by their ids, however many others there are."""
    reject = Reject.of("no id", 7)
    assert await write(tmp_path, record("1", 1), record("2", 2), rejects=(reject,)) == ["1", "2"]
    assert await write(tmp_path, record("2", 2), record("3", 3), rejects=(reject,)) == ["3"]
    async with JsonlSink(f"jsonl://{tmp_path}") as sink:
        assert await sink.lacking("feed", {"1": at(1), "2": at(3), "9": at(1)}) == {"2", "9"}
        assert await sink.count_records("feed", at(1), at(9), 100) == 2
        assert await sink.mark_removed("feed", {"1", "2"}, 1) == 1
        assert await sink.count_records("feed", None, at(9), 100) == 2

    assert not read
    assert len(indexes(tmp_path)) == 1
    assert len(list((tmp_path / "records_quarantine" / "feed").glob("*.jsonl"))) == 1


async def test_current_version_is_found_in_the_index(tmp_path: Path, read: list[bytes]) -> None:
    """What is current, and by which mark, is the same whether files were read or not."""
    one, two, three = record("1", 1, "a"), record("1", 2, "b"), record("1", 2, "c")
    for each in (one, two, three):
        assert await write(tmp_path, each) == ["1"]
    async with JsonlSink(f"jsonl://{tmp_path}") as sink:
        assert (await sink.write("feed", Page([one]))).superseded == [one]
        assert await sink.revert("feed", [one]) == 1
    async with JsonlSink(f"jsonl://{tmp_path}") as sink:
        assert await sink.revert("feed", [one]) == 0
        assert (await sink.write("feed", Page([one]))).written == 0
        assert (await sink.write("feed", Page([three]))).changed == [three]
        assert await sink.count_records("feed", at(1), at(3), 9) == 1

    assert not read


def _edited(folder: Path, index_file: Path) -> None:
    [path] = (folder / "records" / "feed").glob("*.jsonl")
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b'"record_id":"2"', b'"record_id":"8"'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _damaged(folder: Path, index_file: Path) -> None:
    content = bytearray(index_file.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    index_file.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path, Path], object], set[str]]] = {
    "index removed": (lambda folder, file: file.unlink(), set()),
    "index emptied": (lambda folder, file: file.write_bytes(b""), set()),
    "index replaced": (lambda folder, file: file.write_bytes(b"{}" * 999), set()),
    "index cut": (lambda folder, file: os.truncate(file, 5_000), set()),
    "index cut within a page": (
        lambda folder, file: os.truncate(file, file.stat().st_size - 200),
        set(),
    ),
    "index overwritten": (_damaged, set()),
    "index doubled": (lambda folder, file: os.link(file, file.with_name(".index-0.db")), set()),
    "file edited at the same size and time": (_edited, {"2"}),
    "file removed": (
        lambda folder, file: next((folder / "records" / "feed").glob("*.jsonl")).unlink(),
        {"1", "2"},
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
async def test_index_is_not_believed_without_its_files(tmp_path: Path, what: str) -> None:
    """Only what the files have is known, and the index is made again from them."""
    damage, lost = DAMAGES[what]
    await write(tmp_path, record("1", 1), record("2", 2))
    [file] = indexes(tmp_path)
    damage(tmp_path, file)

    assert set(await write(tmp_path, record("1", 1), record("2", 2))) == lost
    assert await write(tmp_path, record("1", 1), record("2", 2), record("3", 3)) == ["3"]
    assert await write(tmp_path, record("1", 1), record("2", 2), record("3", 3)) == []


async def test_files_are_indexed_with_all_their_lines_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[bytes]
) -> None:
    """A process that ends while it adds to the index leaves files that are read again."""
    await write(tmp_path, record("1", 1))

    def fail(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(index.Stamp, "__iter__", fail, raising=False)
        with pytest.raises(RuntimeError):
            await write(tmp_path, record("2", 2))
    assert await write(tmp_path, record("1", 1), record("2", 2)) == []
    assert len(read) == 1


async def test_journal_of_a_removed_index_harms_no_other(tmp_path: Path) -> None:
    """What a killed process left is not applied to the index that follows."""
    await write(tmp_path, record("1", 1))
    [file] = indexes(tmp_path)
    file.with_name(f"{file.name}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" * 99)
    file.unlink()

    assert await write(tmp_path, record("1", 1), record("2", 2)) == ["2"]
    assert await write(tmp_path, record("1", 1), record("2", 2)) == []


async def test_runs_that_share_a_folder_know_what_the_other_wrote(tmp_path: Path) -> None:
    """Whichever of them has added to the index."""
    await write(tmp_path, record("0", 0))
    async with JsonlSink(f"jsonl://{tmp_path}") as one:
        assert (await one.write("feed", Page([record("1", 1)]))).written == 1
        assert await write(tmp_path, record("1", 1), record("2", 2)) == ["2"]
        assert (await one.write("feed", Page([record("2", 2)]))).written == 0
    assert await write(tmp_path, *(record(str(n), n) for n in range(4))) == ["3"]


async def test_lines_beyond_a_number_are_indexed_during_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[bytes]
) -> None:
    """Memory is bounded, and what was put into the index or dropped from it is found again."""
    monkeypatch.setattr(lines, "HELD_LINES", 3)
    async with JsonlSink(f"jsonl://{tmp_path}") as sink:
        for n in range(12):
            page = Page([record(str(n), n), record(str(n // 2), n // 2)])
            assert [each.record_id for each in (await sink.write("feed", page)).new] == [str(n)]
        position = Position(timestamp=at(11))
        assert (await sink.write("feed", Page(), position=position)).written == 0
        assert await sink.count_records("feed", None, at(99), 99) == 12
    assert not read
    found = [
        json.loads(line)["record_id"]
        for path in (tmp_path / "records" / "feed").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert sorted(found, key=int) == [str(n) for n in range(12)]


async def test_id_that_no_sink_wrote_is_read_from_its_file(tmp_path: Path) -> None:
    """A line with half of a surrogate pair cannot be indexed, and hides nothing."""
    await write(tmp_path, record("1", 1))
    foreign = record("1", 1).payload
    line = {"record_id": "\ud800", "version": "v", "record_timestamp": "2024-01-01T00:00:00+00:00"}
    path = tmp_path / "records" / "feed" / "mine.jsonl"
    path.write_text(f'{json.dumps(line)[:-1]},"payload":{foreign}}}\n')

    assert await write(tmp_path, record("1", 1), record("2", 2)) == ["2"]
    assert await write(tmp_path, record("1", 1), record("2", 2)) == []
