"""The files of one source in a folder of newline-delimited JSON.

- A writer holds the source's lock, which is released when its process ends, and first reads the
  files written since.
- A file name is derived from the content: writing the same page again is idempotent.
- Rejects are moved to their place before the records, removal marks after them, the position last,
  so that a crash in between does no harm.
- The position records the number of files and bytes. If there are fewer, it is discarded. If that
  happens during a run, the run fails: its own position would hide the missing files.
"""

from __future__ import annotations

import fcntl
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import orjson

from ladon_storage.collection.protocols import Position, WriteResult, run_digest, utc_now
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.errors import SinkError
from ladon_storage.sinks.jsonl.current import Current, Rejects, digest, record_key
from ladon_storage.sinks.jsonl.lines import (
    AtomicReplace,
    Extent,
    LineFiles,
    TornFileError,
    flush_folder,
    make_folder,
    mend,
)
from ladon_storage.sinks.removal import refuse_implausible_removal
from ladon_storage.sinks.versions import last_said, latest, latest_of_versions

logger = logging.getLogger(__name__)

WAIT_SECONDS = 30
"""The time limit for a write that waits for another process with the same source."""

_POLL_SECONDS = 0.01
_as_given = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_as_ascii = json.JSONEncoder(separators=(",", ":")).encode


class _NotedPosition(Position):
    """A position, with the extent of the source's files when it was written.

    A run on an unchanged source reads no record: without the extent, missing files would not be
    noticed.
    """

    extent: Extent | None = None  # absent in an older release


MAX_FOLDER_NAME = 200
"""The longest name of a source's folder: a file system takes 255 bytes, some of them ours."""


def folder_name(source_id: str) -> str:
    """Return the name of a source's folder; a long one is cut, and ends in its digest.

    >>> folder_name("kev/2.0")
    'kev%2F2%2E0'
    """
    # A dot needs no encoding, but ".." is another folder.
    name = quote(source_id, safe="").replace(".", "%2E")
    if len(name) <= MAX_FOLDER_NAME:
        return name
    whole = blake2b(name.encode(), digest_size=16).hexdigest()
    return f"{name[: MAX_FOLDER_NAME - len(whole) - 1]}-{whole}"


class SourceFiles:
    """One source's files, read and written in one thread.

    Args:
        folder: The sink's folder.
        table: The name of the folder of records in it.
        source_id: The source.
    """

    def __init__(self, folder: Path, table: str, source_id: str) -> None:
        name = folder_name(source_id)
        self._source_id = source_id
        self._folder = folder / table / name
        self._current = Current()
        self._older: set[bytes] = set()
        self._found: Extent | None = None
        """The extent for which a position was accepted, until the files are read."""
        self._records = LineFiles(self._folder, self._current)
        self._rejects = LineFiles(folder / f"{table}_quarantine" / name, Rejects())
        self._removed_path = folder / f"{table}_removed" / f"{name}.jsonl"
        self._position_path = self._folder / "position.json"

    def write(self, page: Page, run_id: str, position: Position | None) -> WriteResult:
        """Add the new records of a page."""
        if not len(page) and position is None:
            return WriteResult()
        rejects: dict[bytes, Reject] = {}
        for reject in page.rejects:
            rejects.setdefault(digest(reject.raw), reject)
        records = {
            record_key(*version): each for version, each in latest_of_versions(page.records).items()
        }
        ids = {key: each.record_id for key, each in records.items()}
        with self._locked(), AtomicReplace() as moves:
            self._add_rejects(rejects, run_id, moves)
            self._records.load(ids.values())
            added = {key: records[key] for key in self._records.missing(records)}
            returned, older = self._current.placed(added)
            new = [each for each in added.values() if each.record_id not in self._current]
            overtaken = {added[key].record_id for key in added.keys() - older.keys()}
            passed = [
                each
                for key, each in (records.items() if len(added) < len(records) else ())
                if key not in added
                and (each.record_id in overtaken or not self._current.has(each, key))
            ]
            again, superseded = self._current.again(last_said(page.records, passed), returned)
            superseded += last_said(page.records, list(older.values()))
            placed, files = added | again, {}
            if placed:
                lines = {key: self._line(placed[key], returned.get(key)) for key in placed}
                salt = returned[next(iter(again))] if again else ""
                files = self._records.add(_prefix(placed.values()), lines, ids, moves, salt)
            self._restore({record.record_id for record in page.records}, moves)
            self._note(None if superseded else position, files, moves)
            moves.then(lambda: self._see(placed, returned))
        self._older |= older.keys()
        by_time = {each.record_id: each for each in new}
        if len(by_time) < len(new):
            new.sort(key=lambda each: each.timestamp)
            by_time = {each.record_id: each for each in new}
        are_new = {id(each) for each in by_time.values()}
        changed = [each for each in placed.values() if id(each) not in are_new]
        return WriteResult(list(by_time.values()), changed, superseded)

    def revert(self, records: Sequence[Record]) -> int:
        """Add versions again, as the current ones; return how many of older runs were not."""
        with self._locked(), AtomicReplace() as moves:
            self._records.load(each.record_id for each in records)
            back = {
                record_key(each.record_id, each.version): each
                for each in latest(records)
                if not self._current.has(each)
            }
            returned = {key: self._current.mark(each) for key, each in back.items()}
            if back:
                lines = {key: self._line(back[key], returned[key]) for key in back}
                salt = max(returned.values())
                ids = {key: each.record_id for key, each in back.items()}
                files = self._records.add(_prefix(back.values()), lines, ids, moves, salt)
                self._note(None, files, moves)
            moves.then(lambda: self._see(back, returned))
        return len(back.keys() - self._older)

    def lacking(self, listed: Mapping[str, datetime]) -> set[str]:
        """Return the ids whose current line is older, or that have none."""
        with self._locked():
            self._records.load(listed)
            return {each for each, at in listed.items() if self._current.is_before(each, at)}

    def count_records(self, after: datetime | None, before: datetime, limit: int) -> int:
        """Return how many unmarked records have a current line between two times."""
        with self._locked():
            marked = self._marked()
            counted = self._records.through_index(
                lambda lines: self._current.count(lines, after, before, marked)
            )
        return min(limit, counted)

    def position(self) -> Position | None:
        """Return the last position that was written; ``None`` if files lost content since."""
        noted = self._noted()
        # Behind it: another process moves a file to its place before it notes it.
        found = self._records.found()
        if noted is None or self._is_discarded(noted, found):
            self._records.forget()
            return None
        self._found = found
        return Position(**noted.model_dump(exclude={"extent"}))

    def _noted(self) -> _NotedPosition | None:
        try:
            return _NotedPosition.model_validate_json(self._position_path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise SinkError(
                f"The file {self._position_path} does not contain a position that a sink wrote. "
                "Delete it, and the source is collected from its beginning.",
                self._source_id,
            ) from error

    def _is_discarded(self, noted: _NotedPosition, found: Extent) -> bool:
        """Return whether a position is no more, since the files lost content after it."""
        if noted.extent is None or found.holds(noted.extent):
            return False
        logger.warning(
            "The folder %s had %d files of %d bytes, and has %d of %d. The position of the "
            "source %r is discarded, and it is collected from its beginning.",
            *(self._folder, *noted.extent, *found, self._source_id),
        )
        self._forget_position()
        return True

    def _note(
        self, position: Position | None, files: Mapping[str, int], moves: AtomicReplace
    ) -> None:
        """Note a position with all files; without one, files that are added with the last one.

        A file that is not noted would stand for one that is removed later.
        """
        if position is None and files:
            position = self._noted()
            if position is not None and self._is_discarded(position, self._records.extent({})):
                return
        if position is not None:
            fields = position.model_dump(exclude={"extent"})
            noted = _NotedPosition(**fields, extent=self._records.extent(files))
            moves.add(self._position_path, [_position_text(noted).encode()])

    def _forget_position(self) -> None:
        self._position_path.unlink(missing_ok=True)
        flush_folder(self._folder)

    def mark_removed(self, listed_ids: Set[str], max_share: float) -> int:
        """List the records that are not in ``listed_ids`` as removed, and no others."""
        with self._locked(), AtomicReplace() as moves:
            marked = self._marked()
            ids = self._records.through_index(lambda lines: {line.id for line in lines})
            ids |= self._records.held_ids()
            known = ids - marked.keys()
            missing = known - listed_ids
            refuse_implausible_removal(self._source_id, len(missing), len(known), max_share)
            kept = {each: line for each, line in marked.items() if each not in listed_ids}
            if missing or len(kept) < len(marked):
                at = utc_now().isoformat()
                for record_id in sorted(missing):
                    kept[record_id] = _as_given(
                        {"source_id": self._source_id, "record_id": record_id, "removed_at": at}
                    ).encode()
                moves.add(self._removed_path, kept.values())
        return len(missing)

    def close(self) -> None:
        """Let the next run find the lines without reading the files."""
        if self._records.is_worth_indexing or self._rejects.is_worth_indexing:
            with suppress(SinkError, OSError), self._locked():
                self._records.put_into_index()
                self._rejects.put_into_index()
        self._records.close()
        self._rejects.close()

    def _see(self, placed: Mapping[bytes, Record], returned: Mapping[bytes, str]) -> None:
        for key, record in placed.items():
            self._current.see(record, key, returned.get(key))
        if self._records.is_full:
            self._records.put_into_index()

    def _add_rejects(
        self, rejects: Mapping[bytes, Reject], run_id: str, moves: AtomicReplace
    ) -> None:
        ids = {key: key.hex() for key in rejects}
        self._rejects.load(ids.values())
        lines = {k: self._rejected(rejects[k], run_id) for k in self._rejects.missing(rejects)}
        self._rejects.add("", lines, {key: ids[key] for key in lines}, moves)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_folder(self._folder)
        deadline = time.monotonic() + WAIT_SECONDS
        with (self._folder / ".lock").open("wb") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise SinkError(
                            f"The folder {self._folder} has been locked for more than "
                            f"{WAIT_SECONDS} s. Stop the program that holds it, and run again.",
                            self._source_id,
                        ) from None
                time.sleep(_POLL_SECONDS)
            try:
                are_there = self._records.refresh()
                self._rejects.refresh()
                found, self._found = self._found, None
                if not are_there or (found and not self._records.extent({}).holds(found)):
                    self._refuse_lost_files()
                yield
            except TornFileError as torn:
                self._mend(torn)

    def _refuse_lost_files(self) -> NoReturn:
        self._forget_position()
        raise SinkError(
            f"Files of the folder {self._folder} were removed or shortened while a run collected "
            "into it. Run again: the source is collected from its beginning, which brings back "
            "what was lost.",
            self._source_id,
        )

    def _mend(self, torn: TornFileError) -> NoReturn:
        """Move a torn file away, and ensure that its content is collected again."""
        # First: a crash in between must not leave a position that declares everything stored.
        self._forget_position()
        aside = mend(torn)
        raise SinkError(
            f"The file {torn.path} ended in the middle of line {torn.number}; it is now {aside}, "
            "and its whole lines are in its place. Run again: the source is collected from its "
            "beginning, which brings back what was lost.",
            self._source_id,
        )

    def _restore(self, ids: set[str], moves: AtomicReplace) -> None:
        marked = self._marked()
        if not marked.keys().isdisjoint(ids):
            kept = [line for record_id, line in marked.items() if record_id not in ids]
            moves.add(self._removed_path, kept)

    def _marked(self) -> dict[str, bytes]:
        try:
            lines = self._removed_path.read_bytes().splitlines()
            return {json.loads(line)["record_id"]: line for line in lines}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise SinkError(
                f"The file {self._removed_path} has a line that no sink wrote. Delete the file, "
                "and the marks are made again.",
                self._source_id,
            ) from error

    def _line(self, record: Record, returned: str | None = None) -> bytes:
        head: dict[str, Any] = {
            "source_id": self._source_id,
            "record_id": record.record_id,
            "version": record.version,
            "record_timestamp": record.timestamp.isoformat(),
        }
        if returned is not None:
            head["returned_at"] = returned
        # Line breaks occur only between the values of JSON, where a space is equivalent.
        payload = record.payload.replace("\r", " ").replace("\n", " ")
        return b'%b,"payload":%b}' % (orjson.dumps(head)[:-1], payload.encode())

    def _rejected(self, reject: Reject, run_id: str) -> bytes:
        # Escaped: these texts are not validated.
        return _as_ascii(
            {
                "source_id": self._source_id,
                "run_id": run_id,
                "reason": reject.reason,
                "raw": reject.raw,
                "quarantined_at": utc_now().isoformat(),
            }
        ).encode()


def _position_text(position: Position) -> str:
    try:
        return position.model_dump_json()
    except ValueError:  # half of a surrogate pair in the run's name
        run_id = run_digest(position.run_id or "")
        return position.model_copy(update={"run_id": run_id}).model_dump_json()


def _prefix(records: Iterable[Record]) -> str:
    """Return the prefix that sorts files by the oldest record within."""
    oldest = min(record.timestamp for record in records).astimezone(UTC)
    return oldest.replace(tzinfo=None).isoformat(timespec="seconds").replace(":", "") + "Z-"
