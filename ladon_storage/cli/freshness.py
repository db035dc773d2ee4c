"""``ladon-storage freshness``: the check that watermarks are not too old."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ladon_storage.cli.options import File, Prefect
from ladon_storage.cli.output import Json, log_to_notes, print_json, print_table
from ladon_storage.errors import ConfigurationError

if TYPE_CHECKING:
    from ladon_storage.collection.freshness import Age, Freshness
    from ladon_storage.project.project import Project


def freshness(
    *names: Annotated[
        str,
        Parameter(
            help="Names of sources in the file, or of watermarks with their limits in hours, as "
            "kev=48; by default every source in the file that has a limit."
        ),
    ],
    file: File = None,
    prefect: Prefect = None,
    json: Json = False,
) -> None:
    """Fail where watermarks are too old."""
    from ladon_storage.cli import choosing, running
    from ladon_storage.collection.freshness import check_fresh

    log_to_notes()
    project = choosing.load_project(file)
    limits = _limits(project, names)
    if running.is_prefect_configured() if prefect is None else prefect:
        _by_flow(project, limits, as_json=json)
        return
    found = running.run(_ages(project, limits))
    if json:
        print_json([each.model_dump(mode="json") for each in found])
    else:
        print_table(
            ("source", "verdict", "hours behind#", "limit#", "last run", "last failure"),
            (
                (
                    each.source_id,
                    str(each.verdict),
                    None if each.age_hours is None else f"{each.age_hours:.1f}",
                    f"{each.max_age_hours:g}",
                    each.last_run and f"{each.last_run:%Y-%m-%d %H:%M:%S} UTC",
                    each.last_failure,
                )
                for each in found
            ),
        )
    check_fresh(found)


def _limits(project: Project | None, names: Sequence[str]) -> list[Freshness]:
    tables = project.sources if project else {}
    chosen = names or [name for name, table in tables.items() if table.freshness is not None]
    if not chosen:
        raise ConfigurationError(
            "No source has a limit; write freshness.max_age_hours = 48 into its table of "
            "ladon.toml, or name it with its hours, as kev=48."
        )
    return [_limit(project, each) for each in chosen]


def _limit(project: Project | None, text: str) -> Freshness:
    from pydantic import ValidationError

    from ladon_storage.cli.choosing import name_of
    from ladon_storage.collection.freshness import Freshness

    name, equals, hours = text.rpartition("=")
    if project is not None and name_of(project, text) is not None:
        # The name itself may have an equals sign.
        name, equals = text, ""
    in_file = None if project is None else name_of(project, name or text)
    if project is not None and in_file is not None:
        source_id = project.source(in_file).source_id
        limit = project.sources[in_file].freshness
        if not equals and limit is not None:
            return Freshness(source_id=source_id, max_age_hours=limit.max_age_hours)
        name = source_id
    try:
        return Freshness(source_id=name, max_age_hours=float(hours) if equals else float("nan"))
    except (ValueError, ValidationError):
        raise ConfigurationError(
            f"{text[:100]!r} is no source with its limit in hours; write it as kev=48."
        ) from None


async def _ages(project: Project | None, limits: Sequence[Freshness]) -> list[Age]:
    from ladon_storage.cli.choosing import settings_of
    from ladon_storage.collection.freshness import ages
    from ladon_storage.connect import check_health, shared_client

    settings = await settings_of(project)
    await check_health(settings)
    return await ages(shared_client(settings), limits)


def _by_flow(project: Project | None, limits: Sequence[Freshness], *, as_json: bool) -> None:
    from ladon_storage.cli.choosing import file_settings
    from ladon_storage.cli.with_prefect import run_flows
    from ladon_storage.flows.freshness import check_freshness as flow

    async def run() -> dict[str, float]:
        hours: dict[str, float] = await flow(list(limits), await file_settings(project))
        return hours

    found = run_flows(run)
    if as_json:
        print_json(found)
    else:
        print_table(
            ("source", "verdict", "hours behind#"),
            ((name, "fresh", f"{hours:.1f}") for name, hours in found.items()),
        )
