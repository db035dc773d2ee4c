"""The Delta sink on an object storage: a real server of S3's protocol, killed writers, two writers.

What every sink promises is asked by the contract; what a storage may do besides is asked here.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import duckdb
import pytest
from deltalake import DeltaTable

from ladon_storage import ConfigurationError, SinkError
from ladon_storage.collection.credentials import secret_lookup
from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Page
from ladon_storage.sinks import sink_from
from ladon_storage.sinks.delta import object_store
from ladon_storage.testing import SinkContract, SinkPlace, record
from ladon_storage.testing.contracts.sink_crashes import CrashRules
from ladon_storage.testing.doubles import at
from tests.s3_server import KEY_ID, SECRET, S3Server
from tests.sinks import places

PAGES = 12
"""The pages of a writer that is killed."""


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test without settings of a storage, and without what was checked before."""
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(object_store, "_tried", set())


@pytest.fixture
def lake(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a bucket, with the settings of its server in the environment."""
    for name, value in s3.options.items():
        monkeypatch.setenv(name, value)
    return f"{s3.bucket()}/lake"


def count(lake: str) -> tuple[int, int]:
    """Return the numbers of rows and of different records, as DuckDB counts them."""
    rows = DeltaTable(f"{lake}/records").to_pyarrow_table()
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        found = connection.sql("SELECT count(*), count(DISTINCT (source_id, record_id)) FROM rows")
        return found.fetchall()[0]


async def write(sink: Any, *numbers: int) -> list[int]:
    """Write a page of ten records for each number, and return how many were new."""
    async with sink:
        return [len((await sink.write("feed", page(number))).new) for number in numbers]


def page(number: int) -> Page:
    """Return a page of ten records."""
    return Page([record(f"{number}-{n}", number) for n in range(10)])


@pytest.mark.slow
class TestKilledOnObjectStorage(CrashRules):
    """A commit to an object storage is there whole or not at all, and once."""

    @pytest.fixture
    def place(self, lake: str) -> SinkPlace:
        """Return an empty place in a bucket of its own."""
        return places.delta(lake, "latest")


@pytest.mark.slow
class TestObjectStorage(SinkContract):
    """A Delta table on an object storage keeps the contract of sinks."""

    @pytest.fixture(params=["latest", "all"])
    def place(self, request: pytest.FixtureRequest, lake: str) -> SinkPlace:
        """Return an empty place in a bucket of its own."""
        return places.delta(lake, request.param)


_WRITER = """
import asyncio, sys
from ladon_storage.sinks import sink_from
from tests.sinks.test_delta_s3 import PAGES, page

async def main():
    async with sink_from({"url": sys.argv[1]}) as sink:
        for number in range(PAGES):
            await sink.write("feed", page(number))
            print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
def test_writers_of_one_source_that_are_killed_store_each_record_once(lake: str) -> None:
    """Two processes write the same pages at once, are killed at any moment, and start again."""
    chance = random.Random(lake)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    finished = kills = 0
    running: list[tuple[subprocess.Popen[bytes], float]] = []
    while finished < 2:
        while len(running) < 2 - finished:
            process = subprocess.Popen(
                [sys.executable, "-c", _WRITER, lake],
                cwd=root,
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            patience = chance.uniform(0.5, 1.5) if kills < 12 else 60
            running.append((process, time.monotonic() + patience))
        for each in list(running):
            process, end = each
            if process.poll() is None and time.monotonic() < end:
                continue
            finished += process.poll() == 0
            kills += process.poll() is None
            process.kill()
            process.wait()
            running.remove(each)
        time.sleep(0.01)
    assert kills
    assert count(lake) == (10 * PAGES, 10 * PAGES)


async def test_commit_whose_answer_was_lost_is_there_once(s3: S3Server, lake: str) -> None:
    """The storage kept it, and said that it failed: nothing doubles, and the run counts it."""
    async with sink_from({"url": lake}) as sink:
        await sink.write("feed", page(0))
        s3.lose_answers(1)
        lost = await sink.write("feed", page(1), position=Position(timestamp=at(1)))
        assert isinstance(lost, WriteResult)
        assert len(lost.new) == 10
        changed = Page([record("1-0", 3, "b"), record("2-0", 3)])
        s3.lose_answers(1)
        found = await sink.write("feed", changed)
        assert isinstance(found, WriteResult)
        assert (len(found.new), len(found.changed)) == (1, 1)
        await sink.write("feed", page(2))
        position = await sink.position("feed")  # type: ignore[attr-defined]
    assert position is not None
    assert position.timestamp == at(1)
    assert count(lake) == (30, 30)


async def test_storage_that_ignores_conditions_is_refused(s3: S3Server, lake: str) -> None:
    """There two runs would lose each other's commits; nothing is made, and nothing is left."""
    bucket = s3.bucket("ignoring")
    with pytest.raises(SinkError, match="ignores If-None-Match") as caught:
        await write(sink_from({"url": f"{bucket}/lake"}), 1)
    assert "conditional writes" in str(caught.value)
    assert s3.keys(bucket) == []


async def test_storage_is_tried_once_in_a_process(
    lake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next sink in the same bucket is opened without it; the trial leaves no object."""
    tries = []
    once = object_store.Location._try

    def note(self: Any, endpoint: str) -> None:
        tries.append(endpoint)
        once(self, endpoint)

    monkeypatch.setattr(object_store.Location, "_try", note)
    assert await write(sink_from({"url": lake}), 1) == [10]
    assert await write(sink_from({"url": f"{lake}/other"}), 1) == [10]
    assert len(tries) == 1


async def test_trial_leaves_nothing_beside_the_tables(s3: S3Server, lake: str) -> None:
    """Each object of the bucket belongs to a table."""
    await write(sink_from({"url": lake}), 1)
    bucket = lake.rpartition("/")[0]
    assert {key.split("/")[1] for key in s3.keys(bucket)} == {"records"}


async def test_storage_of_aws_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """It promises conditional writes, and its endpoint may be named."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.eu-central-1.amazonaws.com")
    object_store.Location("s3://bucket/lake").check()
    object_store.Location("gs://bucket/lake").check()
    object_store.Location("/var/lib/lake").check()


WRONG: list[Any] = [
    ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot be reached", "the network"),
    ({"AWS_ACCESS_KEY_ID": "another-id"}, "does not accept the credentials", "Check the access"),
    ({"AWS_ALLOW_HTTP": "false"}, "encrypts nothing", "AWS_ALLOW_HTTP to true"),
    ({"AWS_ENDPOINT_URL": "http://store.invalid:9"}, "name of its endpoint", "AWS_ENDPOINT_URL"),
]


@pytest.mark.parametrize(("wrong", "said", "step"), WRONG)
@pytest.mark.parametrize("is_tried", [True, False], ids=["first", "later"])
async def test_storage_that_cannot_be_used_is_one_sentence_and_its_remedy(
    lake: str,
    monkeypatch: pytest.MonkeyPatch,
    wrong: dict[str, str],
    said: str,
    step: str,
    is_tried: bool,
) -> None:
    """The trial and the table say the same: a fact and the next step, and no secret."""
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(object_store._BOUNDS, "max_retries", "1")
    if not is_tried:
        monkeypatch.setattr(object_store.Location, "_try", lambda *_: None)
    await refused(lake, said, step)


async def refused(lake: str, said: str, step: str) -> None:
    """Open a sink, and see that it says why not."""
    with pytest.raises(SinkError) as caught:
        await write(sink_from({"url": lake}), 1)
    message = str(caught.value)
    assert said in message
    assert step in message
    assert "\n" not in message
    assert "\x1b" not in message
    whole = "".join(traceback.format_exception(caught.value))
    assert SECRET not in whole
    assert "Signature" not in whole
    assert caught.value.__context__ is None


@pytest.mark.parametrize("is_tried", [True, False], ids=["first", "later"])
async def test_missing_bucket_is_named_as_that(
    lake: str, monkeypatch: pytest.MonkeyPatch, is_tried: bool
) -> None:
    """The sink makes tables, and no buckets."""
    if not is_tried:
        monkeypatch.setattr(object_store.Location, "_try", lambda *_: None)
    await refused("s3://no-such-bucket/lake", "bucket does not exist", "Create the bucket")


async def test_settings_and_secrets_of_the_description_are_used(s3: S3Server) -> None:
    """Settings are in the description, secrets by name; nothing is in the environment."""
    asked = []

    async def vault(name: str) -> str | None:
        asked.append(name)
        return {"lake-id": KEY_ID, "lake-secret": SECRET}.get(name)

    options = {name: each for name, each in s3.options.items() if "ACCESS_KEY" not in name}
    description = {
        "url": f"{s3.bucket()}/lake",
        "options": options,
        "secrets": {"AWS_ACCESS_KEY_ID": "lake-id", "AWS_SECRET_ACCESS_KEY": "lake-secret"},
    }
    sink = sink_from(description)
    assert asked == []
    with secret_lookup(vault):
        assert await write(sink, 1, 1, 2) == [10, 0, 10]
        # A second table, of another kind, has the same settings.
        async with sink as opened:
            assert await opened.position("feed") is None  # type: ignore[attr-defined]
    assert asked[:2] == ["lake-id", "lake-secret"]
    assert SECRET not in repr(sink)
    assert SECRET not in json.dumps(description)


async def test_secret_that_is_not_set_is_named(s3: S3Server) -> None:
    """By its own name, and by where it is looked up."""
    sink = sink_from({"url": s3.bucket(), "secrets": {"AWS_SECRET_ACCESS_KEY": "lake-secret"}})
    with pytest.raises(ConfigurationError, match="'lake-secret' of the sink is not set"):
        await write(sink, 1)
