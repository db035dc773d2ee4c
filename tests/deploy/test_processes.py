"""The commands of the compose file as processes: two services over one PostgreSQL, and nginx.

Only addresses differ: each service has a free port of loopback in place of a host name.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import psycopg
import pytest

from ladon_storage.cli.local import free_port, prefect_server
from tests.deploy.files import DEPLOY, ROOT, compose
from tests.postgres import PASSWORD, PostgresServer, running
from tests.service import ServiceProcess, calling, path, service_process, success

SERVICES = compose()["services"]
TOKEN = "token-of-the-compose-file-0123456789"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
SECONDS = 30


class Host:
    """Be the host of the containers: their secrets, their database and their ports.

    Args:
        folder: A folder of its own.
        postgres: The server in place of the service `postgres`.
    """

    def __init__(self, folder: Path, postgres: PostgresServer) -> None:
        self.folder = folder
        self.database = f"127.0.0.1:{postgres.port}/{postgres.database()}"
        self.ports = {name: free_port() for name in ("storage-1", "storage-2", "balancer")}
        secrets = folder / "secrets"
        secrets.mkdir()
        (secrets / "PGPASSWORD").write_text(f"{PASSWORD}\n")
        (secrets / "STORAGE_SERVICE_TOKEN").write_text(f"{TOKEN}\n")
        python = str(Path(sys.executable).parent)
        kept = {name: each for name, each in os.environ.items() if not name.startswith("STORAGE_")}
        self.environment = {
            **kept,
            "PATH": f"{python}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "LADON_SECRETS": str(secrets),
        }

    def command(self, name: str) -> list[str]:
        """Return the command of a service, by the entry point of the image."""
        words = [str(each) for each in SERVICES[name]["command"]]
        words = [each.replace("postgres/storage", self.database) for each in words]
        if words[0] == "ladon-storage":
            words[:1] = [sys.executable, "-m", "ladon_storage.cli"]
        if "--port" in words:
            words[words.index("--port") + 1] = str(self.ports[name])
            words[words.index("--host") + 1] = "127.0.0.1"
        return [str(DEPLOY / "entrypoint"), *words]

    def address(self, name: str) -> str:
        """Return the address of a service."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run the command of a service to its end."""
        return subprocess.run(
            self.command(name), env=self.environment, cwd=self.folder, capture_output=True,
            text=True, timeout=SECONDS,
        )  # fmt: skip

    async def start(self, name: str) -> asyncio.subprocess.Process:
        """Start a service, and wait until it prints its address."""
        process = await asyncio.create_subprocess_exec(
            *self.command(name), env=self.environment, cwd=self.folder,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        printed = await asyncio.wait_for(process.stdout.readline(), SECONDS)
        assert urlsplit(printed.decode().strip()).port == self.ports[name]
        return process

    @contextmanager
    def balancer(self) -> Iterator[str]:
        """Run nginx with the shipped configuration."""
        assert NGINX is not None
        configuration = self.folder / "nginx.conf"
        configuration.write_text(self.configuration())
        process = subprocess.Popen([NGINX, "-c", configuration, "-g", "daemon off;"])
        try:
            yield self.address("balancer")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(SECONDS)

    def configuration(self) -> str:
        """Return the shipped configuration, with the ports and the folder of this host."""
        text = (DEPLOY / "nginx.conf").read_text()
        for name in ("storage-1", "storage-2"):
            text = text.replace(f"{name}:8080", f"127.0.0.1:{self.ports[name]}")
        text = text.replace("listen 8080", f"listen 127.0.0.1:{self.ports['balancer']}")
        return text.replace("/tmp/", f"{self.folder}/")


@pytest.fixture
def host(tmp_path: Path, postgres: PostgresServer) -> Host:
    """Return a host with a database of its own."""
    return Host(tmp_path, postgres)


@asynccontextmanager
async def two_services(host: Host) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Run both services of the compose file over a migrated database."""
    migrated = await asyncio.to_thread(host.run, "migrate")
    assert migrated.returncode == 0, migrated.stderr
    processes = [await host.start(name) for name in ("storage-1", "storage-2")]
    try:
        yield processes
    finally:
        for each in processes:
            if each.returncode is None:
                each.terminate()
            await asyncio.wait_for(each.wait(), SECONDS)


@pytest.mark.slow
async def test_services_of_the_compose_file_share_one_database(host: Host) -> None:
    """What one stored, the other one has, and a version is refused by both; both are healthy."""
    async with (
        two_services(host),
        calling(host.address("storage-1"), TOKEN) as one,
        calling(host.address("storage-2"), TOKEN) as two,
    ):
        first = await one("PUT", path("kev"), success("2024-01-01T00:00:00Z"))
        assert first.status == 201
        second = await two(
            "PUT", path("kev"), success("2024-01-02T00:00:00Z"), headers={"If-Match": first.etag}
        )
        assert second.status == 200
        late = await one(
            "PUT", path("kev"), success("2024-01-03T00:00:00Z"), headers={"If-Match": first.etag}
        )
        assert late.status == 412
        async with calling(host.address("storage-1")) as stranger:
            assert (await stranger("GET", path("kev"))).status == 401
        assert SERVICES["storage-1"]["healthcheck"]["test"][1:] == ["ladon-storage", "health"]
        for name in ("storage-1", "storage-2"):
            probe = [sys.executable, "-m", "ladon_storage.cli", "health", host.address(name)]
            done = await asyncio.create_subprocess_exec(*probe, env=host.environment)
            assert await done.wait() == 0
    assert (await asyncio.to_thread(host.run, "migrate")).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(
    NGINX is None, reason="there is no nginx; install it: apt-get install nginx-light"
)
async def test_balancer_refuses_no_write_while_a_service_is_replaced(host: Host) -> None:
    """One ends in order and comes again, as in an update; then the other one is killed."""
    async with two_services(host) as processes:
        with host.balancer() as address:
            async with calling(address, TOKEN) as call:
                await _answers(host, address)
                stop = asyncio.Event()
                writing = [asyncio.create_task(_write(call, n, stop)) for n in range(4)]
                await asyncio.sleep(0.3)
                processes[0].terminate()
                await processes[0].wait()
                processes[0] = await host.start("storage-1")
                await asyncio.sleep(0.3)
                processes[1].kill()
                await asyncio.sleep(0.3)
                stop.set()
                counts = await asyncio.gather(*writing)
                assert all(counts)
                for number, count in enumerate(counts):
                    stored = await call("GET", path(f"s{number}"))
                    assert stored.json["records_collected"] == count


async def _write(call: object, number: int, stop: asyncio.Event) -> int:
    """Write conditionally until told otherwise, and return how many writes were answered."""
    count, condition = 0, {"If-None-Match": "*"}
    while not stop.is_set():
        body = success("2024-01-01T00:00:00Z", records_collected=count + 1, run_id=f"r{count}")
        answer = await call("PUT", path(f"s{number}"), body, headers=condition)  # type: ignore[operator]
        assert answer.status in (200, 201), (answer.status, answer.text)
        count, condition = count + 1, {"If-Match": answer.etag}
    return count


async def _answers(host: Host, address: str) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(20 * SECONDS):
            try:
                async with session.get(f"{address}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
    raise AssertionError("nginx does not answer")


@pytest.mark.slow
async def test_watermarks_of_a_file_move_to_the_services(host: Host) -> None:
    """As the guide says it, by a copy: both services have what the one over SQLite had."""
    async with _old_service(host) as old:
        exported = await _ladon(host, "watermarks", "export", "--storage", old.address)
        await old.end()
    await _ladon(host, "backup", "old.db", "--database", "storage.db")
    database = host.command("migrate")[-1]
    await _ladon(host, "migrate", "--database", database, "--from", "old.db")
    async with two_services(host):
        there = [
            await _ladon(host, "watermarks", "export", "--storage", host.address(name))
            for name in ("storage-1", "storage-2")
        ]
        history = await _ladon(
            host, "watermarks", "history", "s 1/ä", "--json", "--storage", host.address("storage-1")
        )
    assert len(_times(exported)) == 31
    assert [_times(each) for each in there] == [_times(exported)] * 2
    assert history.count("failed")


@pytest.mark.slow
async def test_exported_watermarks_are_imported_by_the_services(host: Host) -> None:
    """From a service that goes on; an import that is repeated changes nothing."""
    async with _old_service(host) as old:
        exported = await _ladon(host, "watermarks", "export", "--storage", old.address)
        (host.folder / "watermarks.json").write_text(exported)
        move = ("watermarks", "import", "watermarks.json", "--reason", "moved", "--storage")
        async with two_services(host):
            there = []
            for name in ("storage-1", "storage-2"):
                await _ladon(host, *move, host.address(name))
                address = host.address("storage-2")
                there.append(await _ladon(host, "watermarks", "export", "--storage", address))
    assert [_times(each) for each in there] == [_times(exported)] * 2


@asynccontextmanager
async def _old_service(host: Host) -> AsyncIterator[ServiceProcess]:
    """Run a service over a file, with thirty collected sources and one that never succeeded."""
    token = {"STORAGE_SERVICE_TOKEN": TOKEN}
    async with service_process(host.folder / "storage.db", environment=token) as old:
        async with calling(old.address, TOKEN) as call:
            for number in range(30):
                body = success(f"2024-01-01T00:{number:02}:00.000001Z", records_collected=number)
                await call("PUT", path(f"s {number}/ä"), body)
            failed = {"timestamp": "2024-01-02T00:00:00Z", "status": "failed", "error_message": "-"}
            await call("PUT", path("s 1/ä"), failed)
            await call("PUT", path("never"), failed)
        yield old


async def _ladon(host: Host, *words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(str(DEPLOY / "entrypoint"), sys.executable, "-m", "ladon_storage.cli", *words),
        env=host.environment, cwd=host.folder,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed, said = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 0, said.decode()
    return printed.decode()


def _times(exported: str) -> dict[str, str | None]:
    """Return how far each source was collected, by an export."""
    document = json.loads(exported)
    return {each["source_id"]: each["last_successful_timestamp"] for each in document["watermarks"]}


@pytest.mark.slow
async def test_prefect_server_has_a_database_of_its_own(tmp_path: Path) -> None:
    """It starts over the one that the first start of PostgreSQL makes, and opens no other one."""
    secret = tmp_path / "secrets" / "PREFECT_SERVER_DATABASE_PASSWORD"
    secret.parent.mkdir()
    secret.write_text("prefect's own\n")
    script = tmp_path / "databases.sql"
    script.write_text(
        (DEPLOY / "databases.sql").read_text().replace("/run/secrets", str(secret.parent))
    )
    with running() as server:
        server.execute("CREATE DATABASE storage")
        made = [str(server.programs / "psql"), "--set", "ON_ERROR_STOP=1", "--file", str(script)]
        await asyncio.to_thread(
            subprocess.run, [*made, server.url()], check=True, capture_output=True
        )
        given = {
            **SERVICES["prefect"]["environment"],
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
            "PREFECT_SERVER_DATABASE_PORT": str(server.port),
            secret.name: secret.read_text().strip(),
        }
        async with (
            prefect_server(tmp_path, **given) as api,
            aiohttp.ClientSession() as session,
            session.post(f"{api}/flows/count", json={}) as answer,
        ):
            assert (answer.status, await answer.json()) == (200, 0)
        assert server.execute("SELECT count(*) FROM flow_run", "prefect") == [(0,)]
        assert not (tmp_path / "prefect" / "prefect.db").exists()
        for database in ("storage", "records"):
            address = f"host=127.0.0.1 port={server.port} user=prefect dbname={database}"
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(address, password=given[secret.name])


@pytest.mark.skipif(
    NGINX is None, reason="there is no nginx; install it: apt-get install nginx-light"
)
def test_configuration_of_the_balancer_passes_its_own_check(host: Host) -> None:
    """With the names of the services replaced, which only their network knows."""
    assert NGINX is not None
    configuration = host.folder / "nginx.conf"
    configuration.write_text(host.configuration())
    done = subprocess.run([NGINX, "-t", "-c", configuration], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr
