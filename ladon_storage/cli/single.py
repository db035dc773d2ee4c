"""One source with its sink, for verbs that take one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ladon_storage.cli import choosing, running
from ladon_storage.cli.choosing import SinkChoice, SourceChoice
from ladon_storage.collection.protocols import Limits
from ladon_storage.project.project import Project


@dataclass(frozen=True)
class Single:
    """One source, its sink, its limits, and whether Prefect runs it."""

    project: Project | None
    source: SourceChoice
    sink: SinkChoice
    limits: Limits
    with_prefect: bool


def single(
    source: str, sink: str | None, limits: str | None, file: Path | None, prefect: bool | None
) -> Single:
    """Return the source and the sink that the options of a verb name.

    Raises:
        ConfigurationError: One of the options cannot be used.
    """
    project = choosing.load_project(file)
    with_prefect = running.is_prefect_configured() if prefect is None else prefect
    chosen = choosing.choose_source(project, source)
    return Single(
        project,
        chosen,
        choosing.choose_sink(project, chosen, sink, with_prefect=with_prefect),
        choosing.with_limits(chosen.limits, limits),
        with_prefect,
    )
