"""Folders of immutable files of lines, and the atomic appearance of several files.

- A file is written and flushed next to its place, and moved there: readers never see a part of it,
  and a visible file survives a loss of power.
- Where writing any of the files fails, none appears.
- Only a complete line counts. Damage by another program or a disk is distinguished from a sink's
  own output, and never hides a record.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import orjson

from ladon_storage.collection.json_values import parse_json
from ladon_storage.errors import SinkError
from ladon_storage.sinks.jsonl.index import Line, LineIndex, Stamp

T = TypeVar("T")

INDEXED_LINES, INDEXED_FILES = 1_000, 100
"""The lines, and the files, outside of the index from which the end of a run adds them to it."""

HELD_LINES = 2**20
"""The most lines in memory: more are added to the index during a run, and then found there."""


class AtomicReplace:
    """The writing of several files, which are moved to their places, in order, if none failed."""

    def __init__(self) -> None:
        self._moves: list[tuple[Path, Path]] = []
        self._after: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                for written, place in self._moves:
                    written.replace(place)
                    flush_folder(place.parent)
                for each in self._after:
                    each()
        finally:
            for written, _ in self._moves:
                written.unlink(missing_ok=True)

    def then(self, work: Callable[[], None]) -> None:
        """Do work after all files are moved."""
        self._after.append(work)

    def add(self, place: Path, lines: Iterable[bytes]) -> None:
        """Write a file, to be moved to its place."""
        make_folder(place.parent)
        written = place.with_name(f".{place.name}.tmp")
        self._moves.append((written, place))
        with written.open("wb") as file:
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())


class Extent(NamedTuple):
    """The number of files in a folder, and of bytes in all of them."""

    files: int
    bytes: int

    def holds(self, noted: Extent) -> bool:
        """Return whether files that were noted can all be among these, and complete.

        A further file was added and not noted, since its process was killed.
        """
        if self.files == noted.files:
            return self.bytes == noted.bytes
        return self.files > noted.files and self.bytes >= noted.bytes


class TornFileError(Exception):
    """Raised when a file ends in the middle of a line.

    Args:
        path: The file.
        number: The line, counted from one.
    """

    def __init__(self, path: Path, number: int) -> None:
        super().__init__(path, number)
        self.path = path
        self.number = number


class Learner(Protocol):
    """What is known of lines, besides their keys."""

    def learn(self, line: dict[str, Any]) -> tuple[str, bytes]:
        """Add a parsed line, and return the id and the key by which it is found."""
        ...

    def restore(self, line: Line) -> None:
        """Add a line from the index."""
        ...

    def rank(self, record_id: str, key: bytes) -> bytes:
        """Return the sort key of a line, if it is the current one; else nothing."""
        ...

    def forget(self) -> None:
        """Forget all lines."""
        ...


class LineFiles:
    """The lines of a folder's files, by their keys.

    Args:
        folder: The folder, which need not be there.
        learner: What else is to be known of them.
    """

    def __init__(self, folder: Path, learner: Learner) -> None:
        self._folder = folder
        self._learner = learner
        self._index = LineIndex(folder)
        self._read: dict[str, Stamp] | None = None
        self._indexed = 0
        """The number of the files that are in the index."""
        self._held: dict[bytes, str] = {}
        """The ids of the lines outside of the index, by their keys."""
        self._found: set[bytes] = set()
        """The keys that were found in the index."""
        self._asked: set[str] = set()
        """The ids that were looked up there."""

    def refresh(self) -> bool:
        """Read the files that appeared since; all that are not indexed, if one no longer exists.

        Returns:
            Whether all known files exist.

        Raises:
            TornFileError: One of them ends in the middle of a line.
            SinkError: One of them has a line that no sink wrote.
        """
        files = self._files()
        are_there = self._read is None or self._read.keys() <= files.keys()
        if self._read is None or not are_there:
            for left in self._folder.glob(".*.tmp"):  # of a process that was killed
                left.unlink()
            self._forget_lines()
            self._read = self._index.open({name: _stamp(each) for name, each in files.items()})
            self._indexed = len(self._read)
        for name in sorted(files.keys() - self._read.keys()):
            stamp = _stamp(files[name])
            for record_id, key in self._lines(name, self._learner.learn):
                self._held[key] = record_id
            self._read[name] = stamp
        return are_there

    def forget(self) -> None:
        """Read all files again at the next reading."""
        self._read = None

    def load(self, ids: Iterable[str]) -> None:
        """Look ids up in the index, before `missing` and the learner are asked for them."""
        if not self._index.is_open:
            return
        if len(self._asked) + len(self._found) > HELD_LINES:
            self._forget_found()
        asked = set(ids) - self._asked
        try:
            for line in self._index.find(asked):
                self._found.add(line.key)
                self._learner.restore(line)
        except sqlite3.Error:
            self._do_without_index()
        else:
            self._asked |= asked

    def through_index(self, work: Callable[[Iterator[Line]], T]) -> T:
        """Return the result of a function of all lines in the index, those of an id together.

        What is known outside of it about these ids is complete then.
        """
        self.load(self._held.values())
        try:
            return work(self._index.lines())
        except sqlite3.Error:
            self._do_without_index()
            return work(iter(()))

    def held_ids(self) -> set[str]:
        """Return the ids of the lines outside of the index."""
        return set(self._held.values())

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return the keys that no line has."""
        return [key for key in keys if key not in self._held and key not in self._found]

    @property
    def is_worth_indexing(self) -> bool:
        """Whether lines outside of the index would take the next run longer than the index does."""
        are_many = len(self._read or ()) - self._indexed >= INDEXED_FILES
        return are_many or len(self._held) >= INDEXED_LINES

    @property
    def is_full(self) -> bool:
        """Whether so many lines are outside of the index that it should take them."""
        return len(self._held) >= HELD_LINES

    def put_into_index(self) -> None:
        """Add the lines to the index that are not in it."""
        if self._read is not None and self._index.add(self._lines_held(), self._read):
            self._forget_lines()
            self._indexed = len(self._read)

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def extent(self, added: Mapping[str, int]) -> Extent:
        """Return the extent of the files read and added here, and of files to be added."""
        sizes = {**{name: stamp.size for name, stamp in (self._read or {}).items()}, **added}
        return Extent(len(sizes), sum(sizes.values()))

    def found(self) -> Extent:
        """Return the extent of the existing files, which are not read."""
        sizes = [each.stat().st_size for each in self._files().values()]
        return Extent(len(sizes), sum(sizes))

    def add(
        self,
        prefix: str,
        lines: Mapping[bytes, bytes],
        ids: Mapping[bytes, str],
        moves: AtomicReplace,
        salt: str = "",
    ) -> dict[str, int]:
        """Add a file with these lines, if there are any; its name is derived from all of this.

        Args:
            prefix: The beginning of its name.
            lines: The lines by their keys.
            ids: The ids by which they are found, by their keys.
            moves: The writing to which this belongs.
            salt: What distinguishes the file from one with the same lines.

        Returns:
            The file's name and its bytes.
        """
        if not lines:
            return {}
        digest = blake2b(b"".join(sorted(lines)) + salt.encode(), digest_size=8).hexdigest()
        name = f"{prefix}{digest}.jsonl"
        path = self._folder / name

        def know() -> None:
            self._held.update({key: ids[key] for key in lines})
            if self._read is not None:
                self._read[name] = Stamp.of(path.stat())

        moves.add(path, lines.values())
        moves.then(know)
        return {name: sum(len(line) + 1 for line in lines.values())}

    def _files(self) -> dict[str, os.DirEntry[str]]:
        try:
            with os.scandir(self._folder) as entries:
                return {each.name: each for each in entries if each.name.endswith(".jsonl")}
        except FileNotFoundError:
            return {}

    def _lines_held(self) -> Iterator[Line]:
        for key, record_id in self._held.items():
            yield Line(record_id, key, self._learner.rank(record_id, key))

    def _forget_lines(self) -> None:
        self._held, self._found, self._asked = {}, set(), set()
        self._learner.forget()

    def _forget_found(self) -> None:
        """Forget what was found in the index; it is looked up again."""
        held = list(self._lines_held())
        self._found, self._asked = set(), set()
        self._learner.forget()
        for line in held:
            self._learner.restore(line)

    def _do_without_index(self) -> None:
        self._index.discard()
        self._read = None
        self.refresh()

    def _lines(self, name: str, what: Callable[[dict[str, Any]], Any]) -> Iterator[Any]:
        path = self._folder / name
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield what(parsed(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    if not line.strip():  # the file of an editor
                        continue
                    if not line.endswith(b"\n"):
                        raise TornFileError(path, number) from error
                    raise SinkError(
                        f"The file {path} has a line that no sink wrote, line {number}. Move it "
                        "elsewhere, delete position.json next to the records, and run again: the "
                        "source is collected from its beginning."
                    ) from error


def _stamp(file: os.DirEntry[str]) -> Stamp:
    return Stamp.of(file.stat())


def parsed(line: bytes) -> Any:
    """Return a line's JSON, parsed completely, since half a line may have a valid beginning.

    Raises:
        ValueError: It is invalid.
    """
    try:
        return orjson.loads(line)
    except ValueError:  # half of a surrogate pair, or a number of hundreds of digits
        return parse_json(line)


def mend(torn: TornFileError) -> Path:
    """Move a torn file away, put its complete lines in its place, and return its new path."""
    path = torn.path
    aside = path.with_name(f"{path.name}.torn")
    lines = path.read_bytes().split(b"\n")[: torn.number - 1]
    with AtomicReplace() as moves:
        if lines:
            moves.add(path, lines)
        aside.unlink(missing_ok=True)
        os.link(path, aside)
    if not lines:
        path.unlink()
    flush_folder(path.parent)
    return aside


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, so that it survives a loss of power."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Flush the list of a folder's files to the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
