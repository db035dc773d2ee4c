"""``ladon-storage watermarks set``, ``reset``, ``release`` and ``delete``: an operator's changes.

- Each wants a reason. The service's history keeps it with the author.
- A change goes to the version that was read. A run or another operator that is faster wins.
- A source that a run holds is left alone, unless the change is forced. The run ends at its next
  write, because the version is no longer its own.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import sys
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import ValidationError

from ladon_storage.cli.options import File
from ladon_storage.cli.output import Json, log_to_notes, note, print_facts, print_json
from ladon_storage.cli.stored import (
    NOT_OFFERED,
    REFUSED,
    Storage,
    StorageAddress,
    checked_id,
    held_until,
    now_of,
    opened,
)
from ladon_storage.cli.watermarks import SourceName, tell_missing
from ladon_storage.errors import ConfigurationError, WatermarkConflictError
from ladon_storage.models import (
    Precondition,
    Watermark,
    WatermarkDelete,
    WatermarkReset,
    WatermarkStatus,
    WatermarkUpdate,
    collected_up_to,
    is_ahead,
)

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

REASON_LENGTH = 1024

Timestamp = Annotated[
    str, Parameter(help="The new one, with its UTC offset: 2024-01-01 or 2024-01-01T06:00:00Z.")
]
Reason = Annotated[
    str | None,
    Parameter(help="Why, for the history; asked for on a terminal where it is not given."),
]
Force = Annotated[
    bool,
    Parameter(show_default=False, help="Change it while a run holds the source; the run fails."),
]


@dataclass(frozen=True)
class Done:
    """The outcome of an operator's change.

    Args:
        before: The watermark that was read.
        after: The watermark that is stored now; ``None``: it was deleted.
        is_recorded: Whether the service's history has the reason.
        consequence: What an operator should know of the next run.
    """

    before: Watermark | None
    after: Watermark | None
    is_recorded: bool = True
    consequence: str | None = None


class RefusedError(Exception):
    """Raised when a change is not made; carries the exit code.

    Args:
        sentence: The reason, for a user.
        code: The exit code.
    """

    def __init__(self, sentence: str, code: int = REFUSED) -> None:
        super().__init__(sentence)
        self.code = code


class MissingError(Exception):
    """Raised when there is no watermark to change."""


def set_(
    source_id: SourceName,
    timestamp: Timestamp,
    /,
    *,
    reason: Reason = None,
    force: Force = False,
    storage: StorageAddress = None,
    file: File = None,
    json: Json = False,
) -> int:
    """Move a watermark forward, or make the first one of a source."""
    return _move(source_id, timestamp, reason, file, storage, force=force, json=json, back=False)


def reset(
    source_id: SourceName,
    timestamp: Timestamp,
    /,
    *,
    reason: Reason = None,
    force: Force = False,
    storage: StorageAddress = None,
    file: File = None,
    json: Json = False,
) -> int:
    """Move a watermark to any timestamp, back too."""
    return _move(source_id, timestamp, reason, file, storage, force=force, json=json, back=True)


def release(
    source_id: SourceName,
    /,
    *,
    reason: Reason = None,
    storage: StorageAddress = None,
    file: File = None,
    json: Json = False,
) -> int:
    """End the hold of a dead run."""
    log_to_notes()
    source_id, why = checked_id(source_id), asked_reason(reason)
    return _done(source_id, why, _release(file, storage, source_id, why), as_json=json)


def delete(
    source_id: SourceName,
    /,
    *,
    reason: Reason = None,
    force: Force = False,
    storage: StorageAddress = None,
    file: File = None,
    json: Json = False,
) -> int:
    """Delete a watermark: the next run collects as if it were the first."""
    log_to_notes()
    source_id, why = checked_id(source_id), asked_reason(reason)
    done = _delete(file, storage, source_id, why, force=force)
    return _done(source_id, why, done, as_json=json)


def _move(
    source_id: str,
    timestamp: str,
    reason: str | None,
    file: Path | None,
    storage: str | None,
    *,
    force: bool,
    json: bool,
    back: bool,
) -> int:
    from ladon_storage.cli.choosing import instant

    log_to_notes()
    source_id, to = checked_id(source_id), instant(timestamp, "TIMESTAMP")
    try:
        wanted = WatermarkReset(timestamp=to, reason=asked_reason(reason), actor=author())
    except ValidationError:
        raise ConfigurationError(
            "TIMESTAMP lies outside of the years 1 to 9999 in UTC; correct it."
        ) from None

    async def work() -> Done:
        async with await opened(file, storage, make=True) as client:
            done = await move(client, source_id, wanted, force=force, back=back)
        return replace(done, consequence=_consequence(done, to))

    return _done(source_id, wanted.reason, work(), as_json=json)


def _consequence(done: Done, to: datetime) -> str | None:
    """Return where the next run begins, where that is not simply the new timestamp."""
    before = None if done.before is None else done.before.last_successful_timestamp
    if before is not None and to <= before:
        return None
    if done.after is not None and is_ahead(to, now_of(done.after)):
        return "That is in the future, where no run begins. Set a time that is past."
    if not done.is_recorded:
        return (
            "The service keeps no history, so a sink that remembers its position cannot tell this "
            "from a backup: the next run begins at that position, and only with another sink here."
        )
    if before is None:
        return (
            "The next run begins there if its sink has nothing of the source, and otherwise at "
            "the sink's position."
        )
    return (
        f"The next run begins there, and leaves out what is after {before.isoformat()}. A sink "
        "that does not reach up to that is filled from its own position instead."
    )


async def move(
    client: Storage, source_id: str, wanted: WatermarkReset, *, force: bool, back: bool
) -> Done:
    """Move a watermark, with the reason in the history where the service has one.

    Raises:
        RefusedError: A run holds the source, it would go back, or the service offers no reset.
        InvalidResponseError: The service answers that it did not store it.
    """
    from ladon_storage.collection.lease import check_stored

    before = await client.get_watermark(source_id)
    _refuse_if_held(before, force=force)
    if before is not None and not back:
        success, now = before.last_successful_timestamp, now_of(before)
        if success is not None and wanted.timestamp < success and not is_ahead(success, now):
            raise RefusedError(
                f"Watermark {source_id!r} is at {success.isoformat()}, later than "
                f"{wanted.timestamp.isoformat()}; move it back with `ladon-storage watermarks "
                "reset`."
            )
    unchanged = Precondition.unchanged(before)
    if client.has_additions:
        after = await client.reset_watermark(source_id, wanted, unchanged)
        if after is not None:
            check_stored(after, None, wanted.timestamp)
            return Done(before, after)
    if back and before is not None:
        raise RefusedError("The service offers no reset.", NOT_OFFERED)
    update = WatermarkUpdate(timestamp=wanted.timestamp)
    after = await client.put_watermark(source_id, update, unchanged)
    check_stored(after, update.status, wanted.timestamp)
    return Done(before, after, is_recorded=False)


async def _release(file: Path | None, storage: str | None, source_id: str, why: str) -> Done:
    from ladon_storage.collection.lease import check_stored

    async with await opened(file, storage) as client:
        before = await client.get_watermark(source_id)
        if before is None:
            raise MissingError
        if before.status != WatermarkStatus.RUNNING:
            raise RefusedError(
                f"No run holds {source_id!r}: its last run ended, with {before.status}."
            )
        if before.etag is None:
            raise RefusedError(
                "The service gives no versions, so a live run could still write after this. Wait "
                "until its lease is over.",
                NOT_OFFERED,
            )
        run = "a run" if before.run_id is None else f"run {before.run_id!r}"
        # An outcome, as the run itself would have written it. If the run is alive after all, its
        # next write fails: the version is no longer its own.
        text = f"released from {run} by {author()}: {why}"
        update = WatermarkUpdate.of(now_of(before), WatermarkStatus.FAILED, text)
        after = await client.put_watermark(source_id, update, Precondition(before.etag))
        check_stored(after, update.status, update.timestamp)
        return Done(before, after)


async def _delete(
    file: Path | None, storage: str | None, source_id: str, why: str, *, force: bool
) -> Done:
    async with await opened(file, storage) as client:
        before = await client.get_watermark(source_id)
        if before is None:
            raise MissingError
        _refuse_if_held(before, force=force)
        deletion = WatermarkDelete(reason=why, actor=author())
        if client.has_additions and await client.delete_watermark(
            source_id, deletion, Precondition(before.etag)
        ):
            return Done(before, None)
        raise RefusedError("The service offers no deletion with a reason.", NOT_OFFERED)


def _refuse_if_held(watermark: Watermark | None, *, force: bool) -> None:
    until = None if watermark is None else held_until(watermark, now_of(watermark))
    if watermark is None or until is None or force:
        return
    run = "A run" if watermark.run_id is None else f"Run {watermark.run_id!r}"
    raise RefusedError(
        f"{run} holds {watermark.source_id!r}, at least until {until.isoformat()}. Wait until it "
        "ends; release the source if the run is dead; or give --force, and the run fails."
    )


def author() -> str:
    """Return the user and the host, for the history."""
    user = f"uid {os.getuid()}"
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"[:255].encode(errors="replace").decode()


def asked_reason(reason: str | None) -> str:
    """Return the reason of a change, which a terminal is asked for.

    Raises:
        ConfigurationError: There is none, or it is too long for the history.
    """
    if reason is None and sys.stdin is not None and sys.stdin.isatty():
        sys.stderr.write("Reason, for the history: ")
        sys.stderr.flush()
        reason = sys.stdin.readline()
    # A command line may hold bytes that are no text.
    text = (reason or "").strip().encode(errors="replace").decode()
    if not text:
        raise ConfigurationError("There is no reason for the history; give --reason.")
    if len(text) > REASON_LENGTH:
        raise ConfigurationError(
            f"The reason has {len(text):,} characters. Shorten it to {REASON_LENGTH:,}."
        )
    return text


def _done(source_id: str, why: str, work: Coroutine[Any, Any, Done], *, as_json: bool) -> int:
    """Make a change, print the old and the new watermark, and return the exit code."""
    from ladon_storage.cli import running

    try:
        done = running.run(work)
    except MissingError:
        return tell_missing(source_id)
    except RefusedError as error:
        note(f"ladon-storage: {error}")
        return error.code
    except WatermarkConflictError as error:
        note(f"ladon-storage: {error}")
        return REFUSED
    if as_json:
        print_json({"source_id": source_id, "reason": why, **fields_of(done)})
    else:
        print_facts(
            [
                ("source", source_id),
                ("before", shown(done.before)),
                ("after", shown(done.after)),
                ("reason", why),
            ]
        )
    if not done.is_recorded:
        note("The service's history has no place for the reason.")
    if done.consequence is not None:
        note(done.consequence)
    return 0


def fields_of(done: Done) -> dict[str, Any]:
    """Return the old and the new watermark of a change as JSON."""
    pairs = (("before", done.before), ("after", done.after))
    return {name: each and each.model_dump(mode="json") for name, each in pairs}


def shown(watermark: Watermark | None) -> str:
    """Return a watermark and its last outcome in one line."""
    from ladon_storage.collection.summaries import instant_or_never

    if watermark is None:
        return "none"
    return f"{instant_or_never(collected_up_to(watermark))}, {watermark.status}"
