"""``ladon-storage watermarks export`` and ``import``: all watermarks, from one storage to another.

- The document is one JSON object, so a part of one is no document.
- An import is repeatable. A watermark moves forward only, and the outcome of its last run moves
  with it. A run in flight is no outcome: the run belongs to the other storage.
- Nothing is written before the whole document is known to be storable. A source that fails then is
  a row of the table: the others are imported.
- What sinks know of a source (its position, its versions) is in the sinks, and stays there.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, ValidationError

from ladon_storage.cli import FAILED
from ladon_storage.cli.options import File
from ladon_storage.cli.output import Json, log_to_notes, note, print_json, print_table, said
from ladon_storage.cli.stored import Filters, NotListedError, Storage, StorageAddress, opened
from ladon_storage.cli.watermarks import Prefix, collected, tell_not_listed
from ladon_storage.cli.watermarks_changing import (
    REASON_LENGTH,
    Force,
    Reason,
    RefusedError,
    asked_reason,
    author,
    move,
)
from ladon_storage.errors import ConfigurationError
from ladon_storage.models import (
    EMPTY_WATERMARK,
    IMPORTED,
    ChangeAction,
    Precondition,
    Watermark,
    WatermarkReset,
    WatermarkStatus,
    WatermarkUpdate,
    collected_up_to,
)
from ladon_storage.values import SourceId

_AT_ONCE = 16
"""The watermarks that are imported at the same time: each takes three requests."""


class Exported(BaseModel):
    """The document of an export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    watermarks: list[Watermark]


class Moved(BaseModel):
    """The import of one watermark."""

    model_config = ConfigDict(frozen=True)

    source_id: SourceId
    change: str
    before: str = ""
    after: str = ""
    because: str = ""


def export(
    *,
    prefix: Prefix = "",
    storage: StorageAddress = None,
    file: File = None,
) -> int:
    """Print all watermarks as JSON, for an import."""
    from ladon_storage.cli import running

    log_to_notes()
    try:
        found = running.run(collected(file, storage, Filters(prefix)))
    except NotListedError:
        return tell_not_listed()
    document = Exported(format=1, watermarks=[each for each, _ in found])
    print_json(document.model_dump(mode="json"))
    for each, _ in found:
        if each.status == WatermarkStatus.RUNNING:
            note(
                f"A run of {each.source_id} is in flight: what it collects from now on is missing."
            )
    return 0


def import_(
    document: Annotated[
        Path, Parameter(help="File with the output of an export; - is standard input.")
    ],
    /,
    *,
    reason: Reason = None,
    force: Force = False,
    storage: StorageAddress = None,
    file: File = None,
    json: Json = False,
) -> int:
    """Take over the watermarks of an export."""
    from ladon_storage.cli import running

    log_to_notes()
    given = _read(document)
    # It begins alike: what an import moves is no range that an operator left out.
    why = IMPORTED if reason is None else f"{IMPORTED}: {asked_reason(reason)}"[:REASON_LENGTH]
    moved = running.run(_import(file, storage, given, why, force=force))
    if json:
        print_json([each.model_dump(mode="json") for each in moved])
    else:
        print_table(
            ("source", "change", "before", "after", "because"),
            (
                (each.source_id, each.change, each.before, each.after, each.because)
                for each in moved
            ),
        )
    return FAILED if any(each.change == "failed" for each in moved) else 0


def _read(document: Path) -> list[Watermark]:
    """Return the watermarks of a document.

    Raises:
        ConfigurationError: It cannot be read, or is none.
    """
    try:
        text = _piped() if str(document) == "-" else document.read_text(encoding="utf-8")
        found = Exported.model_validate_json(text)
        if found.format != 1:
            problem = f"its format is {found.format}, and not 1"
        else:
            for each in found.watermarks:
                _check(each)
            names = [each.source_id for each in found.watermarks]
            if len(set(names)) == len(names):
                return found.watermarks
            problem = "it names a source twice"
    except (OSError, UnicodeError) as error:
        problem = f"it cannot be read ({error})"
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    except ValueError as error:
        problem = str(error)
    raise ConfigurationError(
        f"{str(document)!r} is no output of `ladon-storage watermarks export`: {problem}."
    )


def _piped() -> str:
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return sys.stdin.read()


def _check(given: Watermark) -> None:
    """Refuse what no storage takes.

    Raises:
        ValueError: The watermark or its outcome cannot be stored.
    """
    Moved(source_id=given.source_id, change="")
    WatermarkStatus(given.status or "success")
    try:
        _outcome(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(
            f"{'.'.join(map(str, first['loc']))} of {given.source_id!r}: {first['msg']}"
        ) from None


async def _import(
    file: Path | None, storage: str | None, given: list[Watermark], why: str, *, force: bool
) -> list[Moved]:
    at_once = asyncio.Semaphore(_AT_ONCE)
    async with await opened(file, storage, make=True) as client:

        async def moved(each: Watermark) -> Moved:
            async with at_once:
                return await _import_one(client, each, why, force=force)

        return await asyncio.gather(*map(moved, given))


async def _import_one(client: Storage, given: Watermark, why: str, *, force: bool) -> Moved:
    from ladon_storage.collection.summaries import instant_or_never

    before = after = ""
    try:
        stored = await client.get_watermark(given.source_id)
        before = instant_or_never(collected_up_to(stored))
        change, because = await _take_over(client, given, stored, why, force=force)
        after = before if change == "keep" else instant_or_never(collected_up_to(given))
    except RefusedError as error:
        change, because = "failed", str(error)
    except Exception as error:  # of one source: the table has the others too
        change, because = "failed", said(error)
    return Moved(
        source_id=given.source_id, change=change, before=before, after=after, because=because
    )


async def _take_over(
    client: Storage, given: Watermark, stored: Watermark | None, why: str, *, force: bool
) -> tuple[str, str]:
    """Write a watermark and its outcome where they are not there; return the change and why."""
    wanted, outcome = _wanted(given), _outcome(given)
    there = collected_up_to(stored)
    change = "create" if there is None else "move", ""
    if stored is not None and (wanted is None or there == collected_up_to(given)):
        if outcome is None or not await _is_unfinished(client, given.source_id, why):
            return "keep", "it is there"
        change = "move", "an import had left out the outcome"
    elif wanted is not None:
        reset = WatermarkReset(timestamp=wanted, reason=why, actor=author())
        stored = (await move(client, given.source_id, reset, force=force, back=force)).after
    elif given.status != WatermarkStatus.FAILED:
        return "keep", "it was never collected"
    if outcome is not None:
        await client.put_watermark(given.source_id, outcome, Precondition.unchanged(stored))
    return change


async def _is_unfinished(client: Storage, source_id: str, why: str) -> bool:
    """Return whether the last change is an import whose outcome was not written."""
    history = await client.watermark_history(source_id, limit=1)
    last = history.changes[0] if history is not None and history.changes else None
    return last is not None and (last.action, last.reason) == (ChangeAction.RESET, why)


def _wanted(given: Watermark) -> datetime | None:
    """Return the timestamp to store; ``None``: the source was never collected."""
    if given.last_successful_timestamp is not None:
        return given.last_successful_timestamp
    return EMPTY_WATERMARK if given.status == WatermarkStatus.SUCCESS else None


def _outcome(given: Watermark) -> WatermarkUpdate | None:
    """Return the write of the last run's outcome; ``None``: there is none.

    Raises:
        ValueError: It cannot be stored.
    """
    timestamp = _wanted(given) or given.last_run_timestamp
    if given.status in (None, WatermarkStatus.RUNNING) or timestamp is None:
        return None
    return WatermarkUpdate.of(
        timestamp,
        str(given.status),
        given.error_message,
        records_collected=given.records_collected,
        run_id=given.run_id,
        ledger=given.ledger,
    )
