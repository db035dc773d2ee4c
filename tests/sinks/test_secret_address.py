"""A sink whose address is a secret: looked up when it is opened, and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from ladon_storage import ConfigurationError, SinkError
from ladon_storage.client.mock import MockStorageClient
from ladon_storage.collection.credentials import secret_lookup
from ladon_storage.collection.protocols import (
    Sink,
    SupportsCount,
    SupportsLookup,
    SupportsPosition,
    SupportsRemoval,
    SupportsReversion,
)
from ladon_storage.collection.run import run
from ladon_storage.sinks import sink_from
from ladon_storage.sinks.sql.sqlite import Sqlite
from ladon_storage.testing.doubles import ScriptedSource, record
from tests.tables import table

OPTIONAL = (
    SupportsPosition,
    SupportsRemoval,
    SupportsReversion,
    SupportsLookup,
    SupportsCount,
)


async def test_address_is_looked_up_when_the_sink_is_opened(tmp_path: Path) -> None:
    """A run collects into the address that the secret holds at that time, position included."""

    async def vault(name: str) -> str | None:
        return f"sqlite:///{tmp_path}/records.db" if name == "RECORDS" else None

    sink = sink_from({"url_secret": "RECORDS"})
    storage = MockStorageClient()
    source = ScriptedSource([[record("1", 1)]], [[record("1", 1), record("2", 2)]])
    with secret_lookup(vault):
        await run(source, sink, storage, run_id="one")
        report = await run(source, sink, storage, run_id="two")
    assert (report.records_new, report.records_known) == (1, 1)
    assert table(tmp_path / "records.db") == [("1",), ("2",)]


async def test_open_sink_has_the_members_of_the_one_at_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the sink can do beyond writing it can do here, while it is open."""
    monkeypatch.setenv("RECORDS", f"sqlite:///{tmp_path}/records.db")
    hidden, plain = (
        sink_from({"url_secret": "RECORDS"}),
        sink_from({"url": f"sqlite:///{tmp_path}/records.db"}),
    )
    assert isinstance(hidden, Sink)
    async with hidden, plain:
        for protocol in OPTIONAL:
            assert isinstance(hidden, protocol) is isinstance(plain, protocol)
        assert getattr(hidden, "batch_characters", None) == Sqlite.batch_characters
        with pytest.raises(SinkError, match="serves another run"):
            await hidden.__aenter__()
    assert not any(isinstance(hidden, protocol) for protocol in OPTIONAL)


async def test_missing_secret_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run fails with the name of what to set, and the sink may be opened later."""
    monkeypatch.delenv("RECORDS_URL", raising=False)
    sink = sink_from({"url_secret": "RECORDS_URL"})
    with pytest.raises(ConfigurationError, match="'RECORDS_URL' of the sink is not set; make"):
        await sink.__aenter__()


async def test_wrong_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that cannot be used is not repeated."""
    monkeypatch.setenv("RECORDS_URL", "postgres://me:SECRET@host/db")
    sink = sink_from({"url_secret": "RECORDS_URL"})
    with pytest.raises(ConfigurationError) as caught:
        await sink.__aenter__()
    assert "SECRET" not in str(caught.value) + repr(sink)


async def test_password_in_the_query_of_an_address_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PostgreSQL takes it there too, and an error of a run names the address."""
    monkeypatch.setenv("RECORDS_URL", "postgresql://me@127.0.0.1:9/db?password=SECRET")
    with pytest.raises(SinkError, match=r"me@127\.0\.0\.1:9/db") as caught:
        await sink_from({"url_secret": "RECORDS_URL"}).__aenter__()
    assert "SECRET" not in str(caught.value)
