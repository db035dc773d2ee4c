"""``ladon-storage deploy``: the Prefect deployments of the file.

- Each source has one that collects it. One that is scheduled is read again weekly where its kind
  allows that, and one check watches the freshness of all sources that have a limit.
- ``[collect_many]`` is one that collects all sources in one run. Where it has a schedule, only the
  sources with schedules of their own have deployments that collect them.
- Without a work pool, ``--serve`` runs them in this process; with ``--pool`` workers do.
- A deployment that a user paused or resumed in the UI stays so, and so does a schedule for which
  the file does not say whether it is active.
- No secret is a parameter of a deployment: the file's names of secrets are. The storage's secrets
  are in the environment of runs, which `--serve` gives them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ladon_storage.cli.options import File, Table
from ladon_storage.cli.output import Json, log_to_notes, note, print_json, print_table
from ladon_storage.errors import ConfigurationError

if TYPE_CHECKING:
    from ladon_storage.cli.registering import Change
    from ladon_storage.project.project import Project


_NAMED = 5


def deploy(
    *names: Annotated[str, Parameter(help="Names of sources in the file; by default all.")],
    serve: Annotated[
        bool, Parameter(show_default=False, help="Run what is due in this process, until a signal.")
    ] = False,
    pool: Annotated[
        str | None, Parameter(help="Work pool whose workers run them, instead of --serve.")
    ] = None,
    dry_run: Annotated[
        bool, Parameter(show_default=False, help="Print what would change, and change nothing.")
    ] = False,
    table: Table = None,
    file: File = None,
    json: Json = False,
) -> None:
    """Make or update Prefect deployments of the file."""
    from ladon_storage.cli.running import refuse_without_prefect
    from ladon_storage.project.project import Project

    log_to_notes()
    if table is not None:
        if not serve or pool or dry_run or names or file:
            raise ConfigurationError(
                "--table goes with --serve alone; `prefect deploy --all` gives a prefect.yaml to a "
                "work pool."
            )
        _serve_table(table)
        return
    if serve and pool:
        raise ConfigurationError("Give either --serve or --pool, and not both.")
    if not (serve or pool or dry_run):
        raise ConfigurationError(
            "Say where the deployments run: --serve for this process, or --pool NAME for the "
            "workers of a work pool. --dry-run prints what would change."
        )
    project = Project.load(file, absolute=True)
    for name in names:
        project.limits_of(name)  # refuses a name that is not there
    refuse_without_prefect()
    from ladon_storage.cli import deployments, registering
    from ladon_storage.cli.with_prefect import run_flows
    from ladon_storage.flows.serve import serve_deployments

    variables: dict[str, str] = {}
    if serve:
        try:
            variables = run_flows(lambda: deployments.storage_variables(project))
        except ConfigurationError as error:
            note(f"{error} Its runs take a Storage Service block called default instead.")
    made = deployments.deployments(project, names or deployments.own(project))
    if not names:
        made += deployments.read_again(project)
        made += deployments.collect_many(project, pool=pool) + deployments.freshness(project)
        if twice := deployments.collected_twice(project):
            count = (
                "1 source has a schedule of its own"
                if len(twice) == 1
                else (f"{len(twice):,} sources have schedules of their own")
            )
            more = ", …" if len(twice) > _NAMED else ""
            note(
                f"{count} beside [collect_many], which collects all: "
                f"{', '.join(twice[:_NAMED])}{more}."
            )
    ours = None if names else project.path
    sinks = {} if names else deployments.sinks(project)
    place = registering.ANYWHERE if dry_run and not (pool or serve) else pool
    changes = run_flows(lambda: registering.changes(made, pool=place, file=ours, sinks=sinks))
    if json:
        print_json([each._asdict() for each in changes])
    else:
        _show(changes)
    if (project.storage.token or project.storage.password) and not serve:
        note(
            "The storage's secret is no parameter of a deployment. Give workers "
            "STORAGE_SERVICE_URL and STORAGE_SERVICE_TOKEN, or save a Storage Service block "
            "called default."
        )
    if project.storage.circuit_url_secret and not serve:
        note(
            "The address of the circuit's store is no parameter. Give workers STORAGE_CIRCUIT_URL."
        )
    for kind in _beside(project) if pool else ():
        note(
            f"{kind} is in a module beside {project.path.name}. Workers need the module installed."
        )
    if dry_run:
        return
    left = [each.deployment for each in changes if each.change == registering.UNSCHEDULE]
    if pool:
        differing = {each.deployment for each in changes if each.change != registering.KEEP}
        run_flows(
            lambda: registering.apply([each for each in made if each.full_name in differing], pool)
        )
    run_flows(lambda: registering.unschedule(left))
    if serve:
        os.environ.update(variables)  # runs inherit them
        run_flows(lambda: serve_deployments(made))


def _beside(project: Project) -> list[str]:
    """Return the custom classes that are found in the folder of the file alone."""
    kinds = {each.kind for each in project.sources.values()}
    kinds |= {each.kind for each in project.sinks.values() if each.kind}
    folder = project.path.absolute().parent
    return sorted(each for each in kinds if ":" in each and _is_in(folder, each))


def _is_in(folder: Path, name: str) -> bool:
    top = name.partition(":")[0].partition(".")[0]
    return (folder / f"{top}.py").exists() or (folder / top).is_dir()


def _serve_table(table: Path) -> None:
    """Run the deployments of a prefect.yaml in this process, until a signal."""
    from ladon_storage.cli.with_prefect import run_flows
    from ladon_storage.flows.serve import serve

    file = table.resolve()
    run_flows(lambda: serve(file))


def _show(changes: list[Change]) -> None:
    print_table(
        ("deployment", "change", "schedule", "because"),
        ((each.deployment, each.change, each.schedule, each.because) for each in changes),
    )
