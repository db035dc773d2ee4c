"""``ladon-storage doctor``: the requirements of collections on this host, each with a verdict.

It asks Prefect's API itself: importing Prefect takes two seconds, and fails where it is broken.
"""

from __future__ import annotations

import logging
import os
import platform
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ladon_storage.cli.checks import Check, attempted, tell
from ladon_storage.cli.options import File
from ladon_storage.cli.output import Json, counted, log_to_notes

if TYPE_CHECKING:
    import aiohttp

    from ladon_storage.circuit.urls import SharedCircuit
    from ladon_storage.client.client import StorageServiceClient
    from ladon_storage.project.project import Project
    from ladon_storage.settings import StorageSettings

MAX_SKEW = timedelta(seconds=5)
"""The most by which two clocks may differ; a lease of a minute bears more."""

_PREFECT = ((3, 8), (4, 0))
_BLOCKS = (
    ("ladon-storage-service", "Storage Service"),
    ("ladon-record-sink", "Record Sink"),
)
_SECONDS = 5.0
_SAVE = "Register with `prefect block register -m ladon_storage.blocks`, and save it in the UI."
_RESTORE = (
    "Stop the programs that use it, keep it aside, and move the last backup there; the next runs "
    "start at their sinks' positions."
)
_FORGET = "Delete it: circuits are closed until the service fails again."


def doctor(
    *,
    database: Annotated[
        tuple[str, ...],
        Parameter(
            help="The file of a Storage Service on this host, which may be running, another "
            "SQLite file, or a service's database in PostgreSQL; repeatable."
        ),
    ] = (),
    file: File = None,
    json: Json = False,
) -> int:
    """Check Prefect, the service, files, blocks, versions and clocks."""
    from ladon_storage.cli import running
    from ladon_storage.cli.choosing import load_project
    from ladon_storage.errors import ConfigurationError

    log_to_notes()
    checks = [_versions(), _prefect_version()]
    project = None
    try:
        project = load_project(file)
    except ConfigurationError as error:
        checks.append(Check("file", "failed", str(error)))
    else:
        checks.append(_file(project))
    checks += [_named(each) for each in database]
    checks += running.run(_asked(project))
    checks.append(_log_settings())
    return tell(checks, as_json=json)


def _versions() -> Check:
    return Check(
        "versions",
        "ok",
        f"ladon-storage {version('ladon-storage')}, Python {platform.python_version()}",
    )


def _prefect_version() -> Check:
    try:
        found = version("prefect")
    except PackageNotFoundError:
        return Check("Prefect", "failed", "it is not installed", "pip install ladon-storage")
    numbers = tuple(int(each) for each in found.split(".")[:2] if each.isdigit())
    least, beyond = _PREFECT
    if not least <= numbers < beyond:
        wanted = f"prefect>={'.'.join(map(str, least))},<{beyond[0]}"
        return Check("Prefect", "failed", f"version {found}", f"pip install '{wanted}'")
    return Check("Prefect", "ok", f"version {found}")


def _file(project: Project | None) -> Check:
    if project is None:
        return Check("file", "warning", "there is no ladon.toml here", "ladon-storage init")
    wrong = [str(error) for _, error in project.problems() if error is not None]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return Check("file", "failed", f"{wrong[0]}{more}", "ladon-storage source check")
    return Check("file", "ok", f"{project.path}: {counted(len(project.sources), 'source')}")


def _named(given: str) -> Check:
    from ladon_storage.cli.databases import database_of
    from ladon_storage.cli.integrity import integrity
    from ladon_storage.errors import ConfigurationError

    try:
        path = database_of(given)
        if isinstance(path, str):
            return _postgresql(path)
    except ConfigurationError as error:
        return Check("database", "failed", str(error))
    if not path.exists():
        return Check("database", "failed", f"there is no {path}", "Name the file of the service.")
    return integrity("database", path, _RESTORE)


def _postgresql(url: str) -> Check:
    """Return the check of a database in PostgreSQL, which is neither made nor migrated."""
    from ladon_storage.server.postgresql_schema import address_of, inspected, migrations
    from ladon_storage.server.postgresql_servers import refuse_other_systems

    address = address_of(url)
    refuse_other_systems(address)
    found = inspected(address)
    latest = len(migrations())
    text = f"{address.shown}: PostgreSQL {found.server}, schema version {found.version}"
    if found.version < latest:
        step = "`ladon-storage migrate`, or start the service."
        return Check("database", "warning", f"{text} of {latest}", step)
    if found.loses:
        step = f"Set {found.loses} to on: an acknowledged write may be lost."
        return Check("database", "warning", f"{text}, {found.loses} is off", step)
    return Check("database", "ok", text)


async def _asked(project: Project | None) -> list[Check]:
    from ladon_storage.cli.choosing import settings_of
    from ladon_storage.errors import ConfigurationError

    try:
        settings = await settings_of(project)
        files = [*_storage_file(settings), *_circuits(settings)]
    except ConfigurationError as error:
        return [Check("storage", "failed", str(error)), *await _prefect()]
    if not any(each.what == "storage" for each in files):
        files.append(await attempted("storage", _storage(settings, project)))
    return [*files, *await _prefect()]


def _storage_file(settings: StorageSettings) -> list[Check]:
    """Return the check of the file that is the storage; one that is not there is not made."""
    from ladon_storage.cli.integrity import integrity
    from ladon_storage.embedded import file_of

    if not settings.url or not settings.is_file:
        return []
    path = file_of(settings.url)
    if not path.exists() and path.parent.is_dir():
        if not os.access(path.parent, os.W_OK):
            step = "Let this user write there, or set another storage."
            return [Check("storage", "failed", f"{path.parent} cannot be written", step)]
        return [Check("storage", "ok", f"{path} is not there yet; the first run makes it")]
    if not path.exists():
        return []
    # One that is damaged is not opened further: that could change it.
    check = integrity("database", path, _RESTORE)
    return [check] if check.verdict != "failed" else [replace(check, what="storage")]


def _circuits(settings: StorageSettings) -> list[Check]:
    """Return the checks of the store of circuits, which is not made, and of the service's one."""
    from ladon_storage.circuit.stores import MemoryStore
    from ladon_storage.circuit.stores.sqlite import SqliteStore
    from ladon_storage.circuit.urls import SharedCircuit, default_url, service_key, store_at
    from ladon_storage.cli.integrity import integrity
    from ladon_storage.errors import ConfigurationError

    if not settings.url or settings.is_file:
        return []
    try:
        given = settings.circuit_url
        url = given.get_secret_value() if given is not None else default_url()
        store = store_at(url, _SECONDS)
    except ConfigurationError as error:
        return [Check("circuits", "failed", str(error))]
    checks = []
    if isinstance(store, SqliteStore):
        if not Path(store.place).exists():
            return []
        checks = [integrity("circuits", Path(store.place).absolute(), _FORGET)]
    if isinstance(store, MemoryStore) or any(each.verdict == "failed" for each in checks):
        return checks
    return [*checks, _circuit(SharedCircuit(store, service_key(settings.url)))]


def _circuit(circuit: SharedCircuit) -> Check:
    from ladon_storage.circuit.breaker import CircuitState

    record = circuit.shared_record()
    if circuit.store_error is not None:
        step = "Start the store, or correct STORAGE_CIRCUIT_URL."
        return Check("circuit", "failed", str(circuit.store_error), step)
    if record.circuit.state is CircuitState.CLOSED:
        return Check("circuit", "ok", "it is closed")
    text = f"no run calls the service: it is {record.circuit.state} ({record.reason})"
    step = "Mend the service, and wait for the probe or give `ladon-storage circuit reset`."
    return Check("circuit", "warning", text, step)


async def _storage(settings: StorageSettings, project: Project | None) -> Check:
    from ladon_storage.client.client import StorageServiceClient
    from ladon_storage.connect import new_client
    from ladon_storage.errors import StorageError

    if not settings.url:
        text = "watermarks are kept in memory"
        return Check("storage", "warning", text, "Set [storage] url, or STORAGE_SERVICE_URL.")
    # Whatever the state of its circuit, which is a check of its own.
    strict = settings.model_copy(update={"environment": "production", "circuit_url": None})
    source_id = _first(project)
    is_read = False
    try:
        async with new_client(strict) as client:
            await client.health_check()
            # The response with a watermark has the service's time.
            watermark = await client.get_watermark(source_id)
            is_read = True
            if isinstance(client, StorageServiceClient) and client.has_additions:
                await _try_to_write(client, f"{source_id[:240]}.doctor")
    except StorageError as error:
        status = getattr(error, "status", None)
        if status == 403 and project is None and not is_read:
            step = "Run it where a ladon.toml names the sources."
            return Check("storage", "warning", str(error), step)
        return Check("storage", "failed", str(error), _step(status))
    told = watermark.answered_at if watermark is not None else None
    skew = _skew(told)
    if skew is not None and abs(skew) > MAX_SKEW:
        return Check(
            "storage", "warning", f"its clock is {_apart(skew)}", "Synchronise the clocks."
        )
    return Check("storage", "ok", f"{settings.url} is healthy")


async def _try_to_write(client: StorageServiceClient, source_id: str) -> None:
    """Ask for a change that no service makes: of a version that none has, where nothing is.

    Raises:
        StorageError: The token may not write, or the service cannot.
    """
    from ladon_storage.errors import WatermarkConflictError
    from ladon_storage.models import Precondition, WatermarkDelete

    with suppress(WatermarkConflictError):
        deletion = WatermarkDelete(reason="ladon-storage doctor")
        await client.delete_watermark(source_id, deletion, Precondition('"doctor"'))


def _step(status: int | None) -> str:
    """Return the remedy of an answer; ``None``: there was none."""
    if status is None:
        return "Start it, or correct its address."
    if status == 401:
        return "Set STORAGE_SERVICE_TOKEN to one of the service's; `ladon-storage tokens add`."
    if status == 403:
        return "Set STORAGE_SERVICE_TOKEN to one that may write the source; see `tokens list`."
    return "See the service's log." if status >= 500 else "Correct its address."


def _first(project: Project | None) -> str:
    from ladon_storage.errors import ConfigurationError

    if project is not None:
        for name in project.sources:
            with suppress(ConfigurationError):  # which the check of the file has
                return project.source(name).source_id
    return "doctor"


async def _prefect() -> list[Check]:
    import aiohttp

    from ladon_storage.cli.running import prefect_setting
    from ladon_storage.sources.http.urls import check_url, redact_url

    address = (prefect_setting("PREFECT_API_URL") or "").rstrip("/")
    if not address:
        return [
            Check(
                "Prefect API", "warning", "none is configured: verbs run without Prefect",
                "ladon-storage up, or set PREFECT_API_URL.",
            )
        ]  # fmt: skip
    key = prefect_setting("PREFECT_API_KEY")
    login = prefect_setting("PREFECT_API_AUTH_STRING")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    auth = aiohttp.BasicAuth(*login.split(":", 1)) if login and ":" in login else None
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    try:
        shown = redact_url(check_url(address))
    except ValueError:  # its text may have a password in it
        step = "Write it as http://127.0.0.1:4200/api."
        return [Check("Prefect API", "failed", "PREFECT_API_URL is no address", step)]
    try:
        async with aiohttp.ClientSession(headers=headers, auth=auth, timeout=timeout) as session:
            return await _api(session, address, shown)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        text = f"{shown} does not answer ({type(error).__name__})"
        return [Check("Prefect API", "failed", text, "Start it, or correct PREFECT_API_URL.")]


async def _api(session: aiohttp.ClientSession, address: str, shown: str) -> list[Check]:
    async with session.get(f"{address}/health") as answer:
        if answer.status != 200:
            step = "Correct PREFECT_API_URL, which ends with /api, and PREFECT_API_KEY."
            return [Check("Prefect API", "failed", f"{shown} answers {answer.status}", step)]
        date = answer.headers.get("Date")
    checks = [Check("Prefect API", "ok", shown)]
    async with session.get(f"{address}/admin/version") as answer:
        if answer.status == 200:
            checks.append(_server(str(await answer.json())))
    told = parsedate_to_datetime(date) if date else None
    skew = _skew(told)
    if skew is not None:
        # The header has whole seconds.
        is_far = abs(skew) > MAX_SKEW + timedelta(seconds=1)
        text = f"Prefect's is {_apart(skew)}" if is_far else "Prefect's is that of this host"
        step = "Synchronise the clocks: schedules go by Prefect's." if is_far else ""
        checks.append(Check("clock", "warning" if is_far else "ok", text, step))
    for slug, title in _BLOCKS:
        path = f"block_types/slug/{slug}/block_documents/name/default"
        async with session.get(f"{address}/{path}") as answer:
            checks.append(_block(title, answer.status))
    return checks


def _server(told: str) -> Check:
    here = version("prefect")
    if _minor(told) != _minor(here):
        text = f"version {told}, and {here} here"
        return Check("Prefect server", "warning", text, "Install the same minor version.")
    return Check("Prefect server", "ok", f"version {told}")


def _minor(text: str) -> list[str]:
    return text.split(".")[:2]


def _block(title: str, status: int) -> Check:
    what = f"block {title}"
    if status == 200:
        return Check(what, "ok", "default is saved")
    if status == 404:
        text = "default is not saved: runs need the environment or the file"
        return Check(what, "warning", text, _SAVE)
    return Check(what, "failed", f"Prefect answers {status}", "Check PREFECT_API_KEY.")


def _log_settings() -> Check:
    from ladon_storage.cli.running import prefect_setting

    level = (prefect_setting("PREFECT_LOGGING_LEVEL") or "INFO").upper()
    number: Any = logging.getLevelName(level)
    if not isinstance(number, int):
        step = "Set PREFECT_LOGGING_LEVEL to INFO."
        return Check("log", "failed", f"PREFECT_LOGGING_LEVEL is {level!r}", step)
    if number > logging.INFO:
        text = f"PREFECT_LOGGING_LEVEL is {level}: the UI shows less than a run says"
        return Check("log", "warning", text, "Set PREFECT_LOGGING_LEVEL to INFO.")
    return Check("log", "ok", f"PREFECT_LOGGING_LEVEL is {level}")


def _skew(told: datetime | None) -> timedelta | None:
    return None if told is None else told - datetime.now(UTC)


def _apart(skew: timedelta) -> str:
    seconds = skew.total_seconds()
    return f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} this host's"
