"""The service does what its description says, as a tool finds that knows nothing else of it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.service import service_process

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("token", [None, TOKEN], ids=["open", "token"])
async def test_schemathesis_finds_nothing(tmp_path: Path, token: str | None) -> None:
    """All its checks hold, in a service that asks for a token and in one that asks for none."""
    seconds = os.environ.get("CONTRACT_SECONDS", "25")
    environment = {} if token is None else {"STORAGE_SERVICE_TOKEN": token}
    header = [] if token is None else ["--header", f"Authorization: Bearer {token}"]
    async with service_process(tmp_path / "w.db", environment=environment) as service:
        process = await asyncio.create_subprocess_exec(
            *(os.environ["SCHEMATHESIS"], "--config-file", str(CONFIGURATION), "run"),
            *(f"{service.address}/openapi.json", "--no-color", *header),
            *("--max-time", seconds, "--seed", os.environ.get("SEED", "1")),
            cwd=tmp_path,  # for what it leaves behind
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        log = service.log.read_text()
    assert process.returncode == 0, output.decode()
    assert " ERROR " not in log
