"""The files of one source in a folder of newline-delimited JSON.

- Whoever writes holds the source's lock, which ends with its process, and first reads what others
  wrote since.
- A name is made of the content: who writes the same page writes the same file.
- What cannot be used is moved to its place before the records, the marks after them, the position
  last: a crash in between does no harm.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from datetime import UTC
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ladon_storage.collection.interfaces import Position, utc_now
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.collection.sinks.jsonl_lines import Lines, Moves, make_folder
from ladon_storage.collection.sinks.removal import refuse_implausible_removal
from ladon_storage.errors import SinkError

WAIT_SECONDS = 30
"""How long a write waits for another process that writes the same source."""

_POLL_SECONDS = 0.01
_KEY_END = b',"record_timestamp":'
"""What follows the id and the version in a line. In a text its quotes would be escaped."""

_as_given = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_as_ascii = json.JSONEncoder(separators=(",", ":")).encode


class SourceFiles:
    """Write and read one source's files, in one thread.

    Args:
        folder: The sink's folder.
        table: The name of the folder of records in it.
        source_id: The source.
    """

    def __init__(self, folder: Path, table: str, source_id: str) -> None:
        # A dot needs no encoding, but two of them are another folder.
        name = quote(source_id, safe="").replace(".", "%2E")
        self._source_id = source_id
        self._folder = folder / table / name
        self._records = Lines(self._folder, lambda line: _record_key(*_id_and_version(line)))
        self._rejects = Lines(
            folder / f"{table}_quarantine" / name, lambda line: _digest(json.loads(line)["raw"])
        )
        self._removed_path = folder / f"{table}_removed" / f"{name}.jsonl"
        self._position_path = self._folder / "position.json"

    def write(self, page: Page, run_id: str, position: Position | None) -> int:
        """Add what is new of a page, and return how many versions are."""
        if not len(page) and position is None:
            return 0
        rejects = {_digest(reject.raw): reject for reject in page.rejects}
        records = {_record_key(each.record_id, each.version): each for each in page.records}
        with self._locked(), Moves() as moves:
            new_rejects = self._rejects.missing(rejects)
            self._rejects.add(
                "", {k: self._rejected(rejects[k], run_id) for k in new_rejects}, moves
            )
            new = self._records.missing(records)
            if new:
                lines = {key: self._line(records[key]) for key in new}
                self._records.add(_prefix([records[key] for key in new]), lines, moves)
            self._restore({record.record_id for record in page.records}, moves)
            if position is not None:
                moves.add(self._position_path, [position.model_dump_json().encode()])
        return len(new)

    def position(self) -> Position | None:
        """Return the last position that was written."""
        try:
            return Position.model_validate_json(self._position_path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise SinkError(
                f"The file {self._position_path} is no position that a sink wrote; delete it, and "
                "the source is collected from its beginning.",
                self._source_id,
            ) from error

    def mark_removed(self, present: Set[str], most: float) -> int:
        """List the records that are not in ``present`` as removed, and no others."""
        with self._locked(), Moves() as moves:
            marked = self._marked()
            known = {_id_and_version(line)[0] for line in self._records.read()} - marked.keys()
            missing = known - present
            refuse_implausible_removal(self._source_id, len(missing), len(known), most)
            kept = {each: line for each, line in marked.items() if each not in present}
            if missing or len(kept) < len(marked):
                at = utc_now().isoformat()
                for record_id in sorted(missing):
                    kept[record_id] = _as_given(
                        {"source_id": self._source_id, "record_id": record_id, "removed_at": at}
                    ).encode()
                moves.add(self._removed_path, kept.values())
        return len(missing)

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
                            f"The folder {self._folder} is locked for more than {WAIT_SECONDS} s; "
                            "end the program that holds it, and run again.",
                            self._source_id,
                        ) from None
                time.sleep(_POLL_SECONDS)
            self._records.refresh()
            self._rejects.refresh()
            yield

    def _restore(self, ids: set[str], moves: Moves) -> None:
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
                f"The file {self._removed_path} has a line that no sink wrote; delete the file, "
                "and the marks are made again.",
                self._source_id,
            ) from error

    def _line(self, record: Record) -> bytes:
        head: dict[str, Any] = {
            "source_id": self._source_id,
            "record_id": record.record_id,
            "version": record.version,
            "record_timestamp": record.timestamp.isoformat(),
        }
        # Line breaks are only between the values of JSON, where a space is as good.
        payload = record.payload.replace("\r", " ").replace("\n", " ")
        return f'{_as_given(head)[:-1]},"payload":{payload}}}'.encode()

    def _rejected(self, reject: Reject, run_id: str) -> bytes:
        # Escaped: nobody has checked these texts.
        return _as_ascii(
            {
                "source_id": self._source_id,
                "run_id": run_id,
                "reason": reject.reason,
                "raw": reject.raw,
                "quarantined_at": utc_now().isoformat(),
            }
        ).encode()


def _id_and_version(line: bytes) -> tuple[str, str]:
    """Read the head of a line alone: its payload may be large."""
    head = json.loads(line[: line.index(_KEY_END)] + b"}")
    return head["record_id"], head["version"]


def _record_key(record_id: str, version: str) -> bytes:
    return _digest(f"{version}\0{record_id}")


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _prefix(records: list[Record]) -> str:
    """Return what orders files by the oldest record within."""
    oldest = min(record.timestamp for record in records).astimezone(UTC)
    return oldest.replace(tzinfo=None).isoformat(timespec="seconds").replace(":", "") + "Z-"
