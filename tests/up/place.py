"""One Prefect server and one Storage Service for the tests of this folder that start no own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from demo.stage import StorageService, prefect_server
from ladon_storage.cli.up import RUNS, SERVER
from tests.up.prefect_api import STEP_SECONDS, PrefectApi, module


@dataclass
class Place:
    """Know the folder and the servers of this file's tests."""

    folder: Path
    api: PrefectApi
    service: str

    @property
    def known(self) -> dict[str, str]:
        """The variables that name the servers."""
        return {"PREFECT_API_URL": self.api.api, "STORAGE_SERVICE_URL": self.service}

    @asynccontextmanager
    async def running(
        self, *command: str, **variables: str
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run a module that knows them."""
        async with module(self.folder, *command, **RUNS, **self.known, **variables) as process:
            yield process

    async def done(self, *command: str) -> str:
        """Run a module to its end, and return what it printed."""
        async with self.running(*command) as process:
            output, _ = await asyncio.wait_for(process.communicate(), STEP_SECONDS)
            assert process.returncode == 0, output.decode()
            return output.decode()

    def table(self, name: str, url: str, schedules: Any = ({"interval": 4},)) -> Path:
        """Write a table with one deployment, which is due every 4 seconds unless told otherwise."""
        deployment = {
            "name": name,
            "entrypoint": "flows/collect.py:collect_kev",
            "description": "A feed of this test.",
            "tags": ["ladon"],
            "parameters": {"source": {"kind": "kev", "source_id": name, "url": url}},
            "schedules": list(schedules),
            "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
            "work_pool": {"name": "scheduled"},
        }
        table = self.folder / f"{name}.yaml"
        table.write_text(json.dumps({"deployments": [deployment]}))  # which is YAML, too
        return table


@asynccontextmanager
async def storage_service(folder: Path) -> AsyncIterator[str]:
    """Run a Storage Service, and give its address."""
    service = StorageService(folder)
    try:
        await service.start()
        yield service.url
    finally:
        await service.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """Run a Prefect server whose scheduler hurries, and a Storage Service."""
    folder = tmp_path_factory.mktemp("schedules")
    hurry = SERVER | {
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "5",
    }
    async with (
        prefect_server(folder, None, **hurry) as api,
        storage_service(folder) as service,
    ):
        place = Place(folder, PrefectApi(api), service)
        await place.done(
            "ladon_storage.cli.default_blocks", service, f"sqlite:///{folder}/records.db"
        )
        yield place
