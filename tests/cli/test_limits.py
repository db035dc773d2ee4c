"""The limits of freshness of a file that is edited while a service runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from ladon_storage.cli.limits import LimitsFile
from ladon_storage.errors import ConfigurationError
from ladon_storage.server import serving as serving_module
from ladon_storage.server.serving import serving
from tests.service import calling, path, success

TABLE = """\
[sources.kev]
kind = "kev"
freshness.max_age_hours = {hours}
"""


_times = count(1)


def write(file: Path, text: str) -> None:
    """Write a file whose time of change is another one each time."""
    file.write_text(text)
    os.utime(file, ns=(0, next(_times)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a limit of two hours."""
    file = tmp_path / "ladon.toml"
    write(file, TABLE.format(hours=2))
    return file


def test_edited_limit_is_used_once(file: Path) -> None:
    """A changed file gives its new limits, and an unchanged one none."""
    watched = LimitsFile(file)
    assert watched.limits == {"kev": timedelta(hours=2)}
    assert watched.renewed() is None
    write(file, TABLE.format(hours=5))
    assert watched.renewed() == {"kev": timedelta(hours=5)}
    assert watched.renewed() is None


@pytest.mark.parametrize("broken", ["[sources", TABLE.format(hours='"x"'), None])
def test_broken_file_keeps_the_limits_and_says_so_once(
    file: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that cannot be used leaves the limits, with one warning, until it is mended."""
    watched = LimitsFile(file)
    if broken is None:
        file.unlink()
    else:
        write(file, broken)
    assert [watched.renewed() for _ in range(3)] == [None] * 3
    assert watched.limits == {"kev": timedelta(hours=2)}
    [warning] = caplog.messages
    assert warning.startswith("The limits of freshness stay as they were. ")
    write(file, TABLE.format(hours=3))
    assert watched.renewed() == {"kev": timedelta(hours=3)}


def test_file_that_is_broken_at_the_start_is_refused(file: Path) -> None:
    """A service does not start with limits that nobody wrote."""
    write(file, "[sources")
    with pytest.raises(ConfigurationError):
        LimitsFile(file)


async def test_service_judges_by_the_renewed_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that changes while the service runs changes what it says of a source."""
    monkeypatch.setattr(serving_module, "LOOK_SECONDS", 0.001)
    renewals: list[Mapping[str, timedelta]] = []
    async with (
        serving(
            tmp_path / "w.db",
            limits={"kev": timedelta(days=365_000)},
            renewed_limits=lambda: renewals.pop() if renewals else None,
        ) as address,
        calling(address) as call,
    ):
        await call("PUT", path("kev"), success("2024-01-01T00:00:00Z"))
        stale = 'storage_service_source_state{source_id="kev",state="stale"} 1.0'
        assert stale not in (await call("GET", "/metrics")).text
        renewals.append({"kev": timedelta(hours=1)})
        async with asyncio.timeout(30):
            while stale not in (await call("GET", "/metrics")).text:
                await asyncio.sleep(0)
