"""``ladon-storage watermarks``: the watermarks of the storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ladon_storage.cli.options import File
from ladon_storage.cli.output import Json, log_to_notes, print_facts, print_json
from ladon_storage.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from ladon_storage.models import Watermark


def show(
    source_id: Annotated[str, Parameter(help="Name of the watermark.")],
    /,
    *,
    file: File = None,
    json: Json = False,
) -> int:
    """Show one watermark."""
    from ladon_storage.cli import running
    from ladon_storage.cli.output import note
    from ladon_storage.values import check_source_id

    log_to_notes()
    try:
        check_source_id(source_id)
    except ValueError as error:
        raise ConfigurationError(f"{source_id[:100]!r} names no watermark: {error}.") from None
    found = running.run(_show(file, source_id))
    if found is None:
        note(f"ladon-storage: There is no watermark {source_id!r}; it was never collected.")
        return 1
    fields: dict[str, Any] = found.model_dump(mode="json")
    if json:
        print_json(fields)
    else:
        ledger = fields.pop("ledger", None) or {}
        print_facts([(name, str(value)) for name, value in fields.items() if value is not None])
        print_facts([(name, str(value)) for name, value in ledger.items() if value])
    return 0


async def _show(file: Path | None, source_id: str) -> Watermark | None:
    from ladon_storage.cli.choosing import load_project, settings_of
    from ladon_storage.connect import shared_client

    settings = await settings_of(load_project(file))
    return await shared_client(settings).get_watermark(source_id)
