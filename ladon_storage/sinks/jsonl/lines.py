"""Folders of immutable files of lines, and the atomic appearance of several files.

- A file is written and flushed next to its place, and moved there: readers never see a part of it,
  and a visible file survives a loss of power.
- Where writing any of the files fails, none appears.
- Only a complete line counts. Damage by another program or a disk is distinguished from a sink's
  own output, and never hides a record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson

from ladon_storage.errors import SinkError


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

    def add(
        self, place: Path, lines: Iterable[bytes], after: Callable[[], None] | None = None
    ) -> None:
        """Write a file, to be moved to its place; ``after`` is called when all files are."""
        make_folder(place.parent)
        written = place.with_name(f".{place.name}.tmp")
        self._moves.append((written, place))
        if after is not None:
            self._after.append(after)
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


class LineFiles:
    """The lines of a folder's files, by their keys.

    Args:
        folder: The folder, which need not be there.
        learn: A function that takes a line, and returns its key.
        forget: A function that is called before all lines are read again.
    """

    def __init__(
        self,
        folder: Path,
        learn: Callable[[dict[str, Any]], bytes],
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._learn = learn
        self._forget = forget
        self._read: dict[str, int] | None = None  # the bytes of each file
        self._known: set[bytes] = set()

    def refresh(self) -> bool:
        """Read the files that appeared since; all files again, if one no longer exists.

        Returns:
            Whether all known files exist.

        Raises:
            TornFileError: One of them ends in the middle of a line.
            SinkError: One of them has a line that no sink wrote.
        """
        names = self._names()
        are_there = self._read is None or self._read.keys() <= names
        if self._read is None or not are_there:
            for left in self._folder.glob(".*.tmp"):  # of a process that was killed
                left.unlink()
            self._read, self._known = {}, set()
            self._forget()
        for name in sorted(names - self._read.keys()):
            size = (self._folder / name).stat().st_size
            self._known.update(self._lines(name, self._learn))
            self._read[name] = size
        return are_there

    def forget(self) -> None:
        """Read all files again at the next reading."""
        self._read = None

    def read(self, what: Callable[[dict[str, Any]], Any]) -> Iterator[Any]:
        """Yield the results of a function for each line of all files."""
        for name in sorted(self._names()):
            yield from self._lines(name, what)

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return the keys that no line has."""
        return [key for key in keys if key not in self._known]

    def extent(self, added: Mapping[str, int]) -> Extent:
        """Return the extent of the files read and added here, and of files to be added."""
        sizes = {**(self._read or {}), **added}
        return Extent(len(sizes), sum(sizes.values()))

    def found(self) -> Extent:
        """Return the extent of the existing files, which are not read."""
        sizes = [(self._folder / name).stat().st_size for name in self._names()]
        return Extent(len(sizes), sum(sizes))

    def add(
        self, prefix: str, lines: Mapping[bytes, bytes], moves: AtomicReplace, salt: str = ""
    ) -> dict[str, int]:
        """Add a file with these lines, if there are any; its name is derived from all of this.

        Returns:
            The file's name and its bytes.
        """
        if not lines:
            return {}
        digest = blake2b(b"".join(sorted(lines)) + salt.encode(), digest_size=8).hexdigest()
        name = f"{prefix}{digest}.jsonl"

        added = {name: sum(len(line) + 1 for line in lines.values())}

        def know() -> None:
            self._known.update(lines)
            if self._read is not None:
                self._read |= added

        moves.add(self._folder / name, lines.values(), know)
        return added

    def _names(self) -> set[str]:
        try:
            with os.scandir(self._folder) as entries:
                return {each.name for each in entries if each.name.endswith(".jsonl")}
        except FileNotFoundError:
            return set()

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


def parsed(line: bytes) -> Any:
    """Return a line's JSON, parsed completely, since half a line may have a valid beginning.

    Raises:
        ValueError: It is invalid.
    """
    try:
        return orjson.loads(line)
    except ValueError:  # half of a surrogate pair is one, for orjson
        return json.loads(line)


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
