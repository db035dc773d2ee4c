"""The sink of newline-delimited JSON: its files, and what is left when something goes wrong."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection.json_values import Number
from ladon_storage.collection.protocols import Position
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.errors import SinkError
from ladon_storage.sinks.jsonl import files as jsonl_files
from ladon_storage.sinks.jsonl.lines import Extent, LineFiles
from ladon_storage.sinks.jsonl.sink import JsonlSink
from ladon_storage.testing.doubles import at, record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


async def write(folder: Path, *pages: list[Record], source_id: str = "feed") -> list[int]:
    async with JsonlSink(f"jsonl://{folder}") as sink:
        return [(await sink.write(source_id, Page(page))).written for page in pages]


def names(folder: Path, source_id: str = "feed") -> list[str]:
    return sorted(path.name for path in (folder / "records" / source_id).glob("*.jsonl"))


def every_file(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


async def test_page_is_a_file_of_lines_in_its_order(folder: Path) -> None:
    """Names and forms of a line are a contract; the payload is as the source gave it."""
    made = Record.of("é", at(1) + timedelta(microseconds=1), {"b": 1.0, "a": "\u2028"})
    await write(folder, [made, record("0", 0)])

    [name] = names(folder)
    lines = (folder / "records" / "feed" / name).read_text().split("\n")
    assert lines[0] == (
        f'{{"source_id":"feed","record_id":"é","version":"{made.version}",'
        '"record_timestamp":"2024-01-01T00:01:00.000001+00:00",'
        '"payload":{"b":1.0,"a":"\u2028"}}'
    )
    assert json.loads(lines[1])["record_id"] == "0"
    assert lines[2:] == [""]


async def test_files_order_by_their_oldest_record(folder: Path) -> None:
    """Who looks into the folder sees the story in order; far years too."""
    early = Record.of("0", at(-(10**9)), {})
    await write(folder, [record("2", 2)], [record("1", 1), record("9", 9)], [early])

    assert [name[:17] for name in names(folder)] == [
        "0122-09-04T132000",
        "2024-01-01T000100",
        "2024-01-01T000200",
    ]


async def test_same_page_has_the_same_name_everywhere(tmp_path: Path) -> None:
    """A page that is written twice replaces its own file."""
    page = [record("1", 1), record("2", 2)]
    for name in ("a", "b"):
        await write(tmp_path / name, page)

    assert names(tmp_path / "a") == names(tmp_path / "b")


async def test_replay_touches_no_file(folder: Path) -> None:
    """Whatever the borders of its pages are; only what is new makes a file."""
    await write(folder, [record("1", 1), record("2", 2)], [record("3", 3)])
    before = every_file(folder)
    assert await write(folder, [record("1", 1)], [record("2", 2), record("3", 3)]) == [0, 0]
    assert every_file(folder) == before

    assert await write(folder, [record("3", 3), record("4", 4)]) == [1]
    assert len(names(folder)) == 3


async def test_payload_of_several_lines_is_one(folder: Path) -> None:
    """A source may hand over JSON that was printed for people."""
    await write(folder, [Record("1", at(1), '{\r\n "a": "\\n"\n}', "v")])

    [name] = names(folder)
    [line, _] = (folder / "records" / "feed" / name).read_bytes().split(b"\n")
    assert json.loads(line)["payload"] == {"a": "\n"}


@pytest.mark.parametrize("source_id", ["..", ".", "../../x", "a/b", "é ?", "A%2F"])
async def test_source_stays_in_its_own_folder(folder: Path, source_id: str) -> None:
    """A source's name is never a path."""
    await write(folder, [record("1", 1)], source_id=source_id)
    await write(folder, [record("1", 1)], source_id="other")

    assert len(list((folder / "records").iterdir())) == 2
    assert len(list(folder.parent.iterdir())) == 1


async def test_what_other_sinks_wrote_is_known(folder: Path) -> None:
    """Two runs that share a folder read each other's files before they write."""
    one, two = (JsonlSink(f"jsonl://{folder}") for _ in range(2))
    async with one, two:
        for n in range(3):
            assert (await one.write("feed", Page([record(str(n), n)]))).written == 1
            assert (await two.write("feed", Page([record(str(n), n)]))).written == 0


async def test_folder_that_is_deleted_is_filled_again(folder: Path) -> None:
    """Files that are gone are not known, also to a sink that is open; nor is the position."""
    async with JsonlSink(f"jsonl://{folder}") as sink:
        await sink.write("feed", Page([record("1", 1)]), position=Position(timestamp=at(1)))
        for path in (folder / "records" / "feed").iterdir():
            path.unlink()
        assert await sink.position("feed") is None
        assert (await sink.write("feed", Page([record("1", 1)]))).written == 1


async def test_crash_before_the_position_replays_the_page(folder: Path) -> None:
    """The position is the last file that is moved; without it the page comes again, for nothing."""
    position = Position(timestamp=at(1), watermark=at(0))
    page = Page([record("1", 1)], [Reject.of("no id", 7)])
    async with JsonlSink(f"jsonl://{folder}") as sink:
        await sink.write("feed", page, position=position)
    before = every_file(folder)
    (folder / "records" / "feed" / "position.json").unlink()
    async with JsonlSink(f"jsonl://{folder}") as sink:
        assert (await sink.write("feed", page, position=position)).written == 0

    assert every_file(folder) == before


@pytest.mark.parametrize("failing", [1, 2, 3])
async def test_full_disk_leaves_nothing_of_a_page(
    folder: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rejects, records and position are flushed before the first of them appears."""
    await write(folder, [record("0", 0)])
    page, position = Page([record("1", 1)], [Reject.of("no id", 7)]), Position(timestamp=at(1))
    before, synced, flush = every_file(folder), 0, os.fsync

    def full(file: int) -> None:
        nonlocal synced
        synced += not os.path.isdir(f"/proc/self/fd/{file}")
        if synced == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(file)

    async with JsonlSink(f"jsonl://{folder}") as sink:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(SinkError, match="could not store a page: No space left") as caught:
            await sink.write("feed", page, position=position)
        assert caught.value.source_id == "feed"
        assert every_file(folder) == before
        monkeypatch.undo()
        assert (await sink.write("feed", page, position=position)).written == 1
        assert await sink.position("feed") == position


async def test_temporary_files_of_a_killed_process_go(folder: Path) -> None:
    """What was not moved to its place is not read, and not left for ever."""
    await write(folder, [record("1", 1)])
    left = folder / "records" / "feed" / ".2024-x.jsonl.tmp"
    left.write_text("half a li")

    assert await write(folder, [record("1", 1)]) == [0]
    assert not left.exists()


async def test_source_that_is_locked_for_too_long_fails_the_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that never lets go is an error of ours; other sources go on."""
    await write(folder, [record("1", 1)])
    monkeypatch.setattr(jsonl_files, "WAIT_SECONDS", 0.02)
    with (folder / "records" / "feed" / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SinkError, match=r"records/feed has been locked for more than 0\.02 s"):
            await write(folder, [record("2", 2)])
        assert await write(folder, [record("2", 2)], source_id="other") == [1]
    assert await write(folder, [record("2", 2)]) == [1]


WHOLE = '{"record_id":"9","version":"v","record_timestamp":"2024-01-01T00:00:00+00:00"}\n'


@pytest.mark.parametrize(
    "line",
    [
        "half a li\n",
        "{}\n",
        "7\n",
        "null\n",
        '{"record_id":1,"record_timestamp":1}\n',
        WHOLE[:-20] + WHOLE,
        "\0" * 9 + "\n",
    ],
)
async def test_file_that_no_sink_wrote_is_named(folder: Path, line: str) -> None:
    """Somebody edited a file: what it has is not guessed, and the way out loses nothing."""
    await write(folder, [record("1", 1)])
    (folder / "records" / "feed" / "mine.jsonl").write_text(WHOLE + line + WHOLE)

    with pytest.raises(
        SinkError,
        match=r"records/feed/mine\.jsonl has a line that no sink wrote, line 2\. .*position\.json",
    ):
        await write(folder, [record("1", 1)])


@pytest.mark.parametrize("number", ["7" * 5_000, "1e400", "0." + "7" * 5_000])
async def test_number_of_any_length_is_read_again(folder: Path, number: str) -> None:
    """As the modulus of a large key: the next run knows the line as one of its own."""
    made = Record.of("1", at(1), {"n": Number(number)})
    assert await write(folder, [made]) == [1]
    assert await write(folder, [made]) == [0]


async def test_line_that_is_torn_hides_no_record(folder: Path) -> None:
    """Wherever it was cut: the file is mended and put aside, and the source collected again."""
    page, position = [record("1", 1), record("2", 2)], Position(timestamp=at(2))
    async with JsonlSink(f"jsonl://{folder}") as sink:
        await sink.write("feed", Page(page), position=position)
    [name] = names(folder)
    path = folder / "records" / "feed" / name
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (first + 1, first + 60, len(whole) - 30, len(whole) - 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(SinkError, match=r"ended in the middle of line 2.*Run again"):
            await write(folder, page)
        assert path.with_name(f"{name}.torn").read_bytes() == whole[:cut]
        assert path.read_bytes() == whole[:first]
        async with JsonlSink(f"jsonl://{folder}") as sink:
            assert await sink.position("feed") is None
            assert (await sink.write("feed", Page(page), position=position)).new == [page[1]]
        [added] = set(names(folder)) - {name}
        (path.parent / added).unlink()


async def test_file_of_which_half_a_line_is_left_goes(folder: Path) -> None:
    """Nothing of it is whole; a quarantine's file is mended as well."""
    page = Page([record("1", 1)], [Reject.of("no id", 7)])
    async with JsonlSink(f"jsonl://{folder}") as sink:
        await sink.write("feed", page, position=Position(timestamp=at(1)))
    for kind in ("records", "records_quarantine"):
        [path] = (folder / kind / "feed").glob("*.jsonl")
        path.write_bytes(path.read_bytes()[:10])
        with pytest.raises(SinkError, match="ended in the middle of line 1"):
            await write(folder, [record("1", 1)])
        assert not path.exists()
    async with JsonlSink(f"jsonl://{folder}") as sink:
        assert await sink.position("feed") is None
        assert (await sink.write("feed", page)).new == page.records


async def test_last_line_without_its_end_and_blank_lines_are_whole(folder: Path) -> None:
    """What an editor leaves costs nothing; nor are two lines ever on one."""
    await write(folder, [record("1", 1), record("2", 2)])
    [name] = names(folder)
    path = folder / "records" / "feed" / name
    path.write_bytes(b"\n" + path.read_bytes().replace(b"\n", b"\r\n\n").rstrip())
    before = path.read_bytes()

    assert await write(folder, [record("1", 1), record("2", 2)], [record("3", 3)]) == [0, 1]
    assert path.read_bytes() == before


async def test_names_of_files_are_flushed_after_they_were_moved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power must not take a file away whose page was said to be durable."""
    steps: list[str] = []
    replace, flush = Path.replace, os.fsync

    def replaced(self: Path, target: Path) -> Path:
        steps.append(f"move {target.parent}")
        return replace(self, target)

    def flushed(file: int) -> None:
        path = os.readlink(f"/proc/self/fd/{file}")
        if os.path.isdir(path):
            steps.append(f"flush {path}")
        flush(file)

    page = Page([record("2", 2)], [Reject.of("no id", 7)])
    async with JsonlSink(f"jsonl://{folder}") as sink:
        await sink.write("feed", Page([record("1", 1)], [Reject.of("no id", 6)]))
        monkeypatch.setattr(Path, "replace", replaced)
        monkeypatch.setattr(os, "fsync", flushed)
        await sink.write("feed", page, position=Position(timestamp=at(2)))

    quarantine, records = folder / "records_quarantine" / "feed", folder / "records" / "feed"
    assert steps == [
        f"{what} {place}" for place in (quarantine, records, records) for what in ("move", "flush")
    ]


def marked(folder: Path) -> list[tuple[bool, str]]:
    """Return of each line whether it is marked as a return, and its value."""
    texts = [(folder / "records" / "feed" / name).read_text() for name in names(folder)]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    lines.sort(key=lambda line: (line.get("returned_at", ""), line["record_timestamp"]))
    return [("returned_at" in line, line["payload"]["value"]) for line in lines]


async def test_line_is_marked_only_where_its_time_would_not_do(folder: Path) -> None:
    """The greatest by mark and time is the current one; no file is changed for it."""
    one, two, three = record("1", 1, "a"), record("1", 2, "b"), record("1", 2, "c")
    await write(folder, [one], [two])
    assert marked(folder) == [(False, "a"), (False, "b")]
    before = every_file(folder)

    await write(folder, [three])
    assert marked(folder) == [(False, "a"), (False, "b"), (True, "c")]
    for _ in range(2):
        async with JsonlSink(f"jsonl://{folder}") as sink:
            assert await sink.revert("feed", [one], run_id="R") == 1
            assert await sink.revert("feed", [two], run_id="R") == 1
    values = [value for _, value in marked(folder)]
    assert values == ["a", "b", "c", "a", "b", "a", "b"]
    assert every_file(folder).items() >= before.items()


async def test_state_that_no_sink_wrote_is_named(folder: Path) -> None:
    """A position or a list of marks that cannot be read is an error with the way out."""
    async with JsonlSink(f"jsonl://{folder}") as sink:
        await sink.write("feed", Page([record("1", 1)]), position=Position(timestamp=at(1)))
        (folder / "records" / "feed" / "position.json").write_text("{")
        with pytest.raises(
            SinkError, match=r"position\.json does not contain a position.*Delete it"
        ):
            await sink.position("feed")
        (folder / "records_removed").mkdir()
        (folder / "records_removed" / "feed.jsonl").write_text("{")
        with pytest.raises(SinkError, match=r"feed\.jsonl has a line that no sink wrote"):
            await sink.write("feed", Page([record("1", 1)]))


async def test_marks_and_rejects_are_beside_the_records(folder: Path) -> None:
    """Who reads all files of records reads nothing else; the others say what they are about."""
    async with JsonlSink(f"jsonl://{folder}") as sink:
        page = Page([record("1", 1), record("2", 2)], [Reject.of("no id", {"a": "é"})])
        await sink.write("feed", page, run_id="R")
        await sink.mark_removed("feed", {"1"}, 1)
    [mark] = (folder / "records_removed" / "feed.jsonl").read_text().splitlines()
    [path] = (folder / "records_quarantine" / "feed").glob("*.jsonl")
    reject: dict[str, Any] = json.loads(path.read_text())

    assert list(json.loads(mark)) == ["source_id", "record_id", "removed_at"]
    assert list(reject) == ["source_id", "run_id", "reason", "raw", "quarantined_at"]
    assert json.loads(reject["raw"]) == {"a": "é"}
    assert len(names(folder)) == 1


async def test_table_is_a_folder_with_a_position_of_its_own(folder: Path) -> None:
    """Two tables in one place know nothing of each other."""
    for table in ("one", "two"):
        async with JsonlSink(f"jsonl://{folder}", table) as sink:
            assert await sink.position("feed") is None
            page = Page([record("1", 1)])
            assert (await sink.write("feed", page, position=Position(timestamp=at(1)))).written == 1


async def test_relative_address_is_beside_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slashes are relative, three are not."""
    monkeypatch.chdir(tmp_path)
    async with JsonlSink("jsonl://here") as sink:
        await sink.write("feed", Page([record("1", 1)]))

    assert len(names(tmp_path / "here")) == 1


async def test_missing_parent_and_a_file_in_the_way_are_named(tmp_path: Path) -> None:
    """The folder is made, but not the one that it is in."""
    with pytest.raises(SinkError, match=rf"folder {tmp_path}/nowhere does not exist\. Create it"):
        await write(tmp_path / "nowhere" / "files", [])
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="could not be opened: File exists"):
        await write(tmp_path / "file", [])


async def test_position_is_moved_after_what_it_is_about(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between two moves never leaves a position without its records."""
    moved: list[str] = []
    replace = Path.replace

    def noted(self: Path, target: Path) -> Path:
        moved.append(target.relative_to(folder).parts[0] + target.suffix)
        return replace(self, target)

    page = Page([record("1", 1)], [Reject.of("no id", 7)])
    async with JsonlSink(f"jsonl://{folder}") as sink:
        monkeypatch.setattr(Path, "replace", noted)
        await sink.write("feed", page, position=Position(timestamp=at(1)))

    assert moved == ["records_quarantine.jsonl", "records.jsonl", "records.json"]


DAMAGED = {
    "torn line": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "cut at a line's end": lambda path: path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n"),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
    "other line": lambda path: path.write_bytes(b"{}\n" + path.read_bytes()),
    "zeros behind": lambda path: path.write_bytes(path.read_bytes() + b"\0" * 4096),
}


@pytest.mark.parametrize("what", DAMAGED)
async def test_position_is_forgotten_once_a_file_was_damaged(
    folder: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An unchanged source is never read again behind it, and the hole would stay for ever."""
    position = Position(timestamp=at(3), document="d")
    async with JsonlSink(f"jsonl://{folder}") as sink:
        await sink.write("feed", Page([record("1", 1), record("2", 2)]), position=position)
        await sink.write("feed", Page([record("3", 3)]), position=position)
    async with JsonlSink(f"jsonl://{folder}") as sink:
        assert await sink.position("feed") == position
        assert not caplog.records

    DAMAGED[what](folder / "records" / "feed" / names(folder)[0])
    async with JsonlSink(f"jsonl://{folder}") as sink:
        assert await sink.position("feed") is None
        assert "The position of the source 'feed' is discarded" in caplog.text
        assert await sink.position("other") is None
    assert not (folder / "records" / "feed" / "position.json").exists()


@pytest.mark.parametrize("has_written", [False, True])
async def test_files_that_are_removed_during_a_run_fail_it(folder: Path, has_written: bool) -> None:
    """The position that it would write says nothing of what was in them."""
    position = Position(timestamp=at(1))
    await write(folder, [record("1", 1)], [record("2", 2)])
    async with JsonlSink(f"jsonl://{folder}") as sink:
        await sink.write("feed", Page(), position=position)
    async with JsonlSink(f"jsonl://{folder}") as sink:
        assert await sink.position("feed") == position
        if has_written:
            await sink.write("feed", Page([record("3", 3)]))
        (folder / "records" / "feed" / names(folder)[0]).unlink()
        with pytest.raises(SinkError, match="removed or shortened while a run"):
            await sink.write("feed", Page([record("4", 4)]), position=Position(timestamp=at(4)))
    async with JsonlSink(f"jsonl://{folder}") as sink:
        assert await sink.position("feed") is None
        assert (await sink.write("feed", Page([record("1", 1)]))).written == 1


@pytest.mark.parametrize("is_reverted", [False, True])
async def test_files_without_a_position_of_their_own_are_noted(
    folder: Path, is_reverted: bool
) -> None:
    """Where only late records came the position did not move; later no file can be missing."""
    lines = [record("1", 1), record("2", 2)]
    async with JsonlSink(f"jsonl://{folder}") as sink:
        await sink.write("feed", Page(lines), position=Position(timestamp=at(2)))
        await sink.write("feed", Page([record("3", 1, "b")]))
        if is_reverted:
            await sink.write("feed", Page([record("1", 3, "b")]))
            await sink.revert("feed", lines[:1])
        assert await sink.position("feed") == Position(timestamp=at(2))
    (folder / "records" / "feed" / names(folder)[0]).unlink()
    async with JsonlSink(f"jsonl://{folder}") as sink:
        assert await sink.position("feed") is None


async def test_file_that_comes_while_the_position_is_read_is_no_loss(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has moved it to its place, and notes it a moment later."""
    async with JsonlSink(f"jsonl://{folder}") as sink, JsonlSink(f"jsonl://{folder}") as other:
        await sink.write("feed", Page([record("1", 1)]), position=Position(timestamp=at(1)))
        found, noted = LineFiles.found, list[int]()

        def written(files: LineFiles) -> Extent:
            before = found(files)
            if not noted:
                noted.append(1)
                path = folder / "records" / "feed"
                (path / "late.jsonl").write_text((path / names(folder)[0]).read_text())
                position = json.loads((path / "position.json").read_text())
                position["extent"] = [2 * each for each in position["extent"]]
                (path / "position.json").write_text(json.dumps(position))
            return before

        monkeypatch.setattr(LineFiles, "found", written)
        assert await other.position("feed") == Position(timestamp=at(1))


async def test_backfill_hides_no_files_that_were_removed_before(folder: Path) -> None:
    """It asks for no position; the next run, which does, collects from the beginning."""
    async with JsonlSink(f"jsonl://{folder}") as sink:
        for number in range(3):
            position = Position(timestamp=at(number))
            await sink.write("feed", Page([record(str(number), number)]), position=position)
    (folder / "records" / "feed" / names(folder)[0]).unlink()
    await write(folder, [record("8", 8)], [record("9", 9)])
    async with JsonlSink(f"jsonl://{folder}") as sink:
        assert await sink.position("feed") is None


async def test_rejects_that_are_removed_during_a_run_are_no_loss(folder: Path) -> None:
    """The quarantine is for people, who may empty it at any time."""
    async with JsonlSink(f"jsonl://{folder}") as sink:
        await sink.write("feed", Page([], [Reject.of("no id", 7)]))
        for path in (folder / "records_quarantine" / "feed").iterdir():
            path.unlink()
        assert (await sink.write("feed", Page([record("1", 1)]))).written == 1


async def test_position_holds_behind_what_was_added_after_it(folder: Path) -> None:
    """A page without a position, a return, or a crash before the position took nothing away."""
    position = Position(timestamp=at(1), run_id="\ud800")
    one = record("1", 1)
    async with JsonlSink(f"jsonl://{folder}") as sink:
        await sink.write("feed", Page([one]), position=position)
        await sink.write("feed", Page([record("1", 2, "b")]))
        await sink.revert("feed", [one])
        held = await sink.position("feed")
        assert held is not None
        assert held.timestamp == at(1)
        await sink.write("feed", Page(), position=position)
    (folder / "records" / "feed" / names(folder)[1]).unlink()
    async with JsonlSink(f"jsonl://{folder}") as sink:
        assert await sink.position("feed") is None


async def test_position_of_an_older_release_is_believed(folder: Path) -> None:
    """It notes nothing of the files, and the next one does."""
    position = Position(timestamp=at(1))
    await write(folder, [record("1", 1)])
    path = folder / "records" / "feed" / "position.json"
    path.write_text(position.model_dump_json())
    async with JsonlSink(f"jsonl://{folder}") as sink:
        assert await sink.position("feed") == position
        await sink.write("feed", Page(), position=position)
        assert json.loads(path.read_bytes())["extent"][0] == 1


@pytest.mark.parametrize("source_id", ["漢" * 255, "/" * 255, "漢" * 254 + "字", "a" * 255, ".x"])
async def test_any_source_id_has_a_folder(folder: Path, source_id: str) -> None:
    """Each name that the service takes has files of its own, however long its encoding is."""
    other = "漢" * 254 + "文"
    assert await write(folder, [record("1", 0)], source_id=source_id) == [1]
    assert await write(folder, [record("1", 0)], source_id=other) == [1]
    assert await write(folder, [record("1", 0)], source_id=source_id) == [0]
    assert len(list((folder / "records").iterdir())) == 2
