"""``ladon-storage watermarks list``, ``show`` and ``history``: what the storage knows."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ladon_storage.cli.options import File, check_text
from ladon_storage.cli.output import Json, log_to_notes, note, print_facts, print_json, print_table
from ladon_storage.cli.stored import (
    MISSING,
    NOT_OFFERED,
    SMALL_PAGE,
    Filters,
    NotListedError,
    StorageAddress,
    checked_id,
    listed,
    opened,
    state,
)
from ladon_storage.errors import ConfigurationError, InvalidResponseError
from ladon_storage.models import Watermark, WatermarkChange, WatermarkStatus, is_ahead

if TYPE_CHECKING:
    from pathlib import Path

SourceName = Annotated[str, Parameter(help="Name of the watermark.")]
Prefix = Annotated[
    str, Parameter(help="Only watermarks whose names begin with it.", validator=check_text)
]


def list_(
    *,
    prefix: Prefix = "",
    status: Annotated[
        Literal["success", "failed", "running"] | None,
        Parameter(help="Only watermarks whose last run had this outcome."),
    ] = None,
    older_than: Annotated[
        float | None,
        Parameter(
            help="Only watermarks that are older than so many hours, were never collected, or are "
            "in the future."
        ),
    ] = None,
    stale: Annotated[
        bool,
        Parameter(show_default=False, help="Only those held by a dead run."),
    ] = False,
    storage: StorageAddress = None,
    file: File = None,
    json: Json = False,
) -> int:
    """List watermarks."""
    from ladon_storage.cli import running

    log_to_notes()
    chosen = None if status is None else WatermarkStatus(status)
    filters = Filters(prefix, chosen, older_than, stale=stale)
    try:
        found = running.run(collected(file, storage, filters))
    except NotListedError:
        return tell_not_listed()
    if json:
        print_json([each.model_dump(mode="json") for each, _ in found])
        return 0
    print_table(
        ("source", "state", "watermark", "hours behind#", "last run", "records#", "error"),
        (_row(each, now) for each, now in found),
    )
    return 0


def tell_not_listed() -> int:
    """Print that a service has no list, and return the exit code."""
    note(
        "ladon-storage: The service has no list of watermarks. Run it where a ladon.toml names "
        "the sources, or show one by its name."
    )
    return NOT_OFFERED


async def collected(
    file: Path | None, storage: str | None, filters: Filters
) -> list[tuple[Watermark, datetime]]:
    """Return the watermarks of a storage, each with the storage's time.

    Raises:
        NotListedError: The service has no list, and there is no file.
    """
    from ladon_storage.cli.choosing import load_project

    async with await opened(file, storage) as client:
        return [each async for each in listed(client, filters, load_project(file))]


def _row(each: Watermark, now: datetime) -> tuple[object, ...]:
    from ladon_storage.collection.summaries import instant_or_never, instant_text

    success = each.last_successful_timestamp
    hours = None if success is None else (now - success).total_seconds() / 3600
    return (
        each.source_id,
        state(each, now),
        f"{instant_or_never(success)}{' (in the future)' if is_ahead(success, now) else ''}",
        None if hours is None else f"{hours:.1f}",
        each.last_run_timestamp and instant_text(each.last_run_timestamp),
        each.records_collected,
        each.error_message,
    )


def show(
    source_id: SourceName,
    /,
    *,
    storage: StorageAddress = None,
    file: File = None,
    json: Json = False,
) -> int:
    """Show one watermark."""
    from ladon_storage.cli import running

    log_to_notes()
    found = running.run(_show(file, storage, checked_id(source_id)))
    if found is None:
        return tell_missing(source_id)
    fields: dict[str, Any] = found.model_dump(mode="json")
    if json:
        print_json(fields)
    else:
        ledger = fields.pop("ledger", None) or {}
        print_facts([(name, str(value)) for name, value in fields.items() if value is not None])
        ledger.pop("lateness", None)  # a histogram; its quantile is a number of its own
        print_facts([(name, str(value)) for name, value in ledger.items() if value])
    return 0


def tell_missing(source_id: str) -> int:
    """Print that a source has no watermark, and return the exit code."""
    note(f"ladon-storage: There is no watermark {source_id!r}; it was never collected.")
    return MISSING


async def _show(file: Path | None, storage: str | None, source_id: str) -> Watermark | None:
    async with await opened(file, storage) as client:
        return await client.get_watermark(source_id)


def history(
    source_id: SourceName,
    /,
    *,
    limit: Annotated[int, Parameter(help="The most changes, the latest first.")] = 20,
    moved: Annotated[
        bool,
        Parameter(show_default=False, help="Only changes that moved or deleted the watermark."),
    ] = False,
    storage: StorageAddress = None,
    file: File = None,
    json: Json = False,
) -> int:
    """Show the changes of one watermark."""
    from ladon_storage.cli import running

    log_to_notes()
    if limit < 1:
        raise ConfigurationError(f"--limit is {limit}. Set it to 1 or more.")
    changes = running.run(_history(file, storage, checked_id(source_id), limit, moved=moved))
    if changes is None:
        note("ladon-storage: The service keeps no history.")
        return NOT_OFFERED
    if json:
        print_json([each.model_dump(mode="json") for each in changes])
    elif changes:
        print_table(
            ("version#", "at", "change", "from", "to", "by", "because"), map(_change, changes)
        )
    if not changes:
        note(f"ladon-storage: There are no {'such ' if moved else ''}changes of {source_id!r}.")
        return MISSING
    return 0


async def _history(
    file: Path | None, storage: str | None, source_id: str, limit: int, *, moved: bool
) -> list[WatermarkChange] | None:
    found: list[WatermarkChange] = []
    before: int | None = None
    size = 25
    async with await opened(file, storage) as client:
        await client.get_watermark(source_id)  # after which it is known whether there is one
        while len(found) < limit:
            wanted = min(size, limit - len(found))
            try:
                page = await client.watermark_history(
                    source_id, moved=moved, limit=wanted, before=before
                )
            except InvalidResponseError:
                if size == SMALL_PAGE:
                    raise
                size = SMALL_PAGE
                continue
            if page is None:
                return None
            found += page.changes
            before = page.next
            if before is None:
                break
    return found


def _change(each: WatermarkChange) -> tuple[object, ...]:
    from ladon_storage.collection.summaries import instant_or_never, instant_text

    done = str(each.status) if each.action == "put" else str(each.action)
    return (
        str(each.version),
        instant_text(each.at),
        done,
        instant_or_never(each.from_timestamp),
        instant_or_never(each.to_timestamp),
        each.run_id if each.action == "put" and each.run_id else each.actor,
        each.reason or each.error_message,
    )
