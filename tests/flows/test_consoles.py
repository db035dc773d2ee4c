"""Runs whose console has gone: their log line is lost, and nothing else."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.logging.handlers import PrefectConsoleHandler

from ladon_storage.consoles import let_consoles_go
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.flaky import Flaky
from tests.flows.test_collect import CATALOGUE, last_state, watermark
from tests.forks import Forks

WITHOUT_READER = """
import os, sys
from ladon_storage.cli import main
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(reader)
sys.exit(main())
"""


@pytest.mark.slow
async def test_run_whose_log_nobody_reads_completes(
    storage: StorageSettings, service: Flaky, tmp_path: Path, forks: Forks
) -> None:
    """A worker that was killed, or `head`, ends no run, and takes no data from standard output."""
    async with FeedServer(Answer.of(CATALOGUE)) as feed:
        source = json.dumps({"kind": "kev", "url": feed.url})
        records = f"sqlite:///{tmp_path}/records.db"
        async with forks.run(
            WITHOUT_READER,
            *("collect", source, "--sink", records, "--prefect", "--json"),
            folder=tmp_path,
            STORAGE_SERVICE_URL=service.url,
        ) as process:
            output, _ = await process.communicate()
    assert process.returncode == 0
    assert json.loads(output)[0]["records_written"] == 2
    stored = await watermark(storage, "kev")
    assert stored
    assert (stored.status, stored.error_message) == ("success", None)
    assert await last_state("collect") == "COMPLETED"


@contextmanager
def console(descriptor: int) -> Iterator[logging.Logger]:
    """Give the logger of Prefect whose console is a file descriptor."""
    logger = logging.getLogger("prefect")
    with open(descriptor, "w", buffering=1, encoding="utf-8") as stream:
        handler = PrefectConsoleHandler(stream)
        logger.addHandler(handler)
        try:
            let_consoles_go()
            yield logger
        finally:
            logger.removeHandler(handler)


def test_console_that_is_read_has_each_line_once() -> None:
    """The protection changes nothing for a reader, however often it is asked for."""
    reader, writer = os.pipe()
    with open(reader, encoding="utf-8") as read:
        with console(writer) as logger:
            let_consoles_go()
            logger.warning("first")
            logger.warning("second")
        assert read.read() == "first\nsecond\n"


def test_lost_console_leaves_standard_output_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """A broken pipe is that of one stream: the other one still has a reader."""
    reader, writer = os.pipe()
    with console(writer) as logger:
        os.close(reader)
        logger.warning("lost")
        logger.warning("lost too")
        os.write(1, b"data")
    assert capfd.readouterr().out == "data"
