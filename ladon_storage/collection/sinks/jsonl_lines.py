"""Folders of files of lines that never change, and how several files appear together.

- A file is written and flushed beside its place, and moved there: nobody sees a part of it, and
  what is seen survives a loss of power.
- Where writing any of the files fails, none appears.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Self

from ladon_storage.errors import SinkError


class Moves:
    """Write files beside their places, and move all of them there, in order, where none failed."""

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
                    _flush_folder(place.parent)
                for each in self._after:
                    each()
        finally:
            for written, _ in self._moves:
                written.unlink(missing_ok=True)

    def add(
        self, place: Path, lines: Iterable[bytes], after: Callable[[], None] | None = None
    ) -> None:
        """Write a file, to be moved to its place; ``after`` is called when all are."""
        make_folder(place.parent)
        written = place.with_name(f".{place.name}.tmp")
        self._moves.append((written, place))
        if after is not None:
            self._after.append(after)
        with written.open("wb") as file:
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())


class Lines:
    """Know the lines of a folder's files by their keys.

    Args:
        folder: The folder, which need not be there.
        key: Return the key of a line.
    """

    def __init__(self, folder: Path, key: Callable[[bytes], bytes]) -> None:
        self._folder = folder
        self._key = key
        self._read: set[str] | None = None
        self._known: set[bytes] = set()

    def refresh(self) -> None:
        """Read the files that appeared since; all of them again, where one is no longer there."""
        names = self._names()
        if self._read is None or not self._read <= names:
            for left in self._folder.glob(".*.tmp"):  # of a process that was killed
                left.unlink()
            self._read, self._known = set(), set()
        for name in sorted(names - self._read):
            self._known.update(map(self._key_of(name), self._lines(name)))
            self._read.add(name)

    def read(self) -> Iterator[bytes]:
        """Yield the lines of all files."""
        for name in sorted(self._names()):
            yield from self._lines(name)

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return the keys that no line has."""
        return [key for key in keys if key not in self._known]

    def add(self, prefix: str, lines: Mapping[bytes, bytes], moves: Moves) -> None:
        """Add a file with these lines, if there are any."""
        if not lines:
            return
        digest = blake2b(b"".join(sorted(lines)), digest_size=8).hexdigest()
        name = f"{prefix}{digest}.jsonl"

        def know() -> None:
            self._known.update(lines)
            if self._read is not None:
                self._read.add(name)

        moves.add(self._folder / name, lines.values(), know)

    def _names(self) -> set[str]:
        try:
            with os.scandir(self._folder) as entries:
                return {each.name for each in entries if each.name.endswith(".jsonl")}
        except FileNotFoundError:
            return set()

    def _lines(self, name: str) -> Iterator[bytes]:
        with (self._folder / name).open("rb") as file:
            yield from file

    def _key_of(self, name: str) -> Callable[[bytes], bytes]:
        def key(line: bytes) -> bytes:
            try:
                return self._key(line)
            except (ValueError, KeyError, TypeError) as error:
                raise SinkError(
                    f"The file {self._folder / name} has a line that no sink wrote; move it "
                    "elsewhere, and run again."
                ) from error

        return key


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it, so that a loss of power does not take it away."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
