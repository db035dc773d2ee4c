"""One Prefect server for the tests of this folder; the rest of the suite needs none."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import get_client
from prefect.client import base
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.tasks import Task
from yarl import URL

from ladon_storage import tasks
from ladon_storage.settings import StorageSettings
from tests.flaky import Flaky, flaky_service
from tests.forks import Forks, forking

# Schedules are tested with servers of their own; here each would put a hundred runs into one. Each
# service writes to Prefect's SQLite besides, which refuses a request while it is locked.
UNNEEDED = {
    f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false"
    for name in ("SCHEDULER", "LATE_RUNS", "FOREMAN", "PAUSE_EXPIRATIONS", "CANCELLATION_CLEANUP")
}


@pytest.fixture(scope="session", autouse=True)
def prefect_server(pytestconfig: pytest.Config) -> Iterator[None]:
    """Run Prefect over a database of its own; a fresh one takes longer than Prefect waits."""
    # Not above: it imports the whole server, also where no test of this folder runs.
    from prefect.testing.utilities import prefect_test_harness

    os.environ |= UNNEEDED
    with (
        prefect_test_harness(server_startup_timeout=180),
        # At the pace of `no_waiting`, its five attempts end before a lock of the server's SQLite.
        temporary_settings(updates={PREFECT_CLIENT_MAX_RETRIES: 200}),
    ):
        # Prefect leaves connections to its own server open; any other that is left is our fault.
        port = URL(str(PREFECT_API_URL.value())).port
        unclosed = rf"unclosed <socket\.socket .*raddr=\('127\.0\.0\.1', {port}\)"
        warnings.filterwarnings("ignore", unclosed, ResourceWarning)  # in the test that began it
        pytestconfig.addinivalue_line("filterwarnings", f"ignore:{unclosed}:ResourceWarning")
        yield
    gc.collect()  # where the warnings about them are still ignored


@pytest.fixture(scope="session")
def forks(prefect_server: None) -> Iterator[Forks]:
    """Import the flows once for the processes that run them at this server."""
    with forking(PREFECT_API_URL=str(PREFECT_API_URL.value())) as made:
        yield made


@pytest.fixture
async def nothing_deployed() -> None:
    """Take away the deployments of other tests: all of them have one Prefect server."""
    async with get_client() as client:
        for each in await client.read_deployments():
            await client.delete_deployment(each.id)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Prefect retry at once: a task, and a request that its server was too busy for."""
    monkeypatch.setattr(base, "clamped_poisson_interval", lambda *_: 0.05)
    values = list(vars(tasks).values())
    values += [inner for each in values if isinstance(each, dict) for inner in each.values()]
    for each in values:
        if isinstance(each, Task) and each.retries:
            monkeypatch.setattr(each, "retry_delay_seconds", 0)


@pytest.fixture(autouse=True)
def circuit_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep circuits apart: a service may get the port that another test's had."""
    monkeypatch.setenv("STORAGE_CIRCUIT_URL", f"sqlite:///{tmp_path}/circuits.db")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Flaky]:
    """Run a Storage Service that fails on demand."""
    with flaky_service(tmp_path / "storage.db") as flaky:
        yield flaky


@pytest.fixture
def storage(service: Flaky, circuit_file: None) -> StorageSettings:
    """Return settings for ``service``, as strict as in production."""
    return StorageSettings(url=service.url).with_shared_circuit()
