"""Sinks told by their address: which there are, what is wrong with the others, and no password."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from ladon_storage import sinks
from ladon_storage.errors import ConfigurationError
from ladon_storage.sinks import sink_from
from ladon_storage.testing.doubles import MemorySink

SQLITE = {"url": "sqlite:///a.db"}
SCHEMES = "there are: sqlite://, duckdb://, postgresql://, jsonl://, delta://, s3://"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "must be a mapping"),
        ("sqlite:///records.db", "must be a mapping"),
        ({}, "requires its address as the text 'url'"),
        ({"url": 7}, "requires its address as the text 'url'"),
        ({"url": "records.db"}, f"address without a scheme; {SCHEMES}"),
        ({"url": "mysql:///records"}, f"address of the scheme 'mysql'; {SCHEMES}"),
        (SQLITE | {"mode": "x"}, "no field 'mode'. Its fields are url, table, keep"),
        (SQLITE | {"keep": "first"}, "'latest' or 'all', not 'first'"),
        (SQLITE | {"table": "a b"}, "cannot be named 'a b'"),
        (SQLITE | {"table": ""}, "cannot be named ''"),
        (SQLITE | {"table": None}, "cannot be named None"),
        (SQLITE | {"table": 'x"; DROP TABLE y; --'}, "cannot be named"),
        (SQLITE | {"table": "sqlite_master"}, "cannot be named"),
        (SQLITE | {"table": "ladon_positions"}, "cannot be named"),
        (SQLITE | {"table": "x_quarantine"}, "cannot be named"),
        (SQLITE | {"table": "x" * 53}, "cannot be named"),
        ({"url": "sqlite://"}, "is not a file, so it is not durable"),
        ({"url": "sqlite:///:memory:"}, "is not a file, so it is not durable"),
        ({"url": "sqlite:///file:x?mode=memory&uri=true"}, "is not a file, so it is not durable"),
        ({"url": "sqlite://host:port/x"}, "The sink's address cannot be used"),
        ({"url": "sqlite://host/x"}, "Write it as sqlite:///records.db"),
        ({"url": "duckdb://"}, "is not a file, so it is not durable"),
        ({"url": "duckdb:///:memory:"}, "is not a file, so it is not durable"),
        ({"url": "duckdb:///md:mine"}, "is not a file, so it is not durable"),
        ({"url": "duckdb://host/x"}, "Write it as duckdb:///records.duckdb"),
        ({"url": "duckdb:///x?access_mode=READ_ONLY"}, "Write it as duckdb:///records.duckdb"),
        ({"url": "postgresql://host"}, "names no database. Write its address as postgresql://"),
        ({"url": "postgresql://host:x/db"}, "The sink's address cannot be used"),
        ({"url": "postgresql+psycopg2://host/db"}, "scheme 'postgresql+psycopg2'"),
        ({"url": "jsonl://"}, "Write it as jsonl://lines, or as jsonl:///var/lib"),
        ({"url": "jsonl:///x\0"}, "The sink's address cannot be used"),
        ({"url": "jsonl:///x", "table": "../y"}, "cannot be named '../y'"),
        ({"url": "jsonl:///x", "table": "x_removed"}, "cannot be named 'x_removed'"),
        ({"url": "jsonl:///x", "keep": "latest"}, "cannot keep 'latest', since it never changes"),
    ],
)
def test_wrong_description_says_what_is_wrong(value: Any, message: str) -> None:
    """What cannot be a sink is a `ConfigurationError` before anything is opened."""
    with pytest.raises(ConfigurationError) as caught:
        sink_from(value)

    assert message in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://me:SECRET@/",
        "postgres://me:SECRET@host/db",
        "sqlite://me:SECRET@host:x/db",
        "duckdb://me:SECRET@host/db",
        "duckdb:///db?motherduck_token=SECRET",
        "postgresql://me:SECRET@host:x/db",
        "postgresql://me:SECRET@host",
        "SECRET",
    ],
)
def test_no_error_shows_a_password(url: str) -> None:
    """An address that cannot be used is not repeated with its password."""
    with pytest.raises(ConfigurationError) as caught:
        sink_from({"url": url})

    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///r.db", "SqlSink('sqlite:///r.db', table='records', keep='latest')"),
        (
            "postgresql://me:SECRET@host/db",
            "SqlSink('postgresql://me:***@host/db', table='records', keep='latest')",
        ),
        ("duckdb:///r.duckdb", "SqlSink('duckdb:///r.duckdb', table='records', keep='latest')"),
        ("jsonl://folder", "JsonlSink('jsonl://folder', table='records', keep='all')"),
    ],
)
def test_dictionary_becomes_the_sink_of_its_scheme(url: str, shown: str) -> None:
    """The defaults are the table `records` and what the sink keeps best; no password is shown."""
    assert repr(sink_from({"url": url})) == shown


@pytest.mark.parametrize("url", ["delta:///lake", "s3://bucket/lake"])
def test_address_of_a_lake_becomes_a_delta_sink(url: str) -> None:
    """A folder and a path on object storage are the same kind of table."""
    pytest.importorskip("deltalake")

    assert repr(sink_from({"url": url})).startswith("DeltaSink(")


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("postgresql://host/db", "psycopg", "postgresql"),
        ("duckdb:///r.duckdb", "duckdb", "duckdb"),
        ("delta:///lake", "deltalake", "delta"),
        ("s3://bucket/lake", "pyarrow", "delta"),
    ],
)
def test_missing_extra_is_named(
    url: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has not installed a sink's packages is told what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(f"{sinks.__name__}.delta")]:
        monkeypatch.delitem(sys.modules, name)

    with pytest.raises(ConfigurationError, match=rf"{package}\. Install ladon-storage\[{extra}\]"):
        sink_from({"url": url})


def test_broken_module_is_not_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours is not blamed on the installation."""
    monkeypatch.setitem(sys.modules, f"{sinks.__name__}.jsonl.sink", None)

    with pytest.raises(ModuleNotFoundError):
        sink_from({"url": "jsonl://folder"})


def test_sink_of_ones_own_is_taken_as_it_is() -> None:
    """A class needs the methods, not a base."""
    own = MemorySink()

    assert sink_from(own) is own


def test_making_a_sink_opens_nothing(tmp_path: Path) -> None:
    """A form can check an address that is not there yet."""
    sink_from({"url": f"sqlite:///{tmp_path}/r.db"})
    sink_from({"url": f"duckdb:///{tmp_path}/r.duckdb"})
    sink_from({"url": f"jsonl://{tmp_path}/r"})
    sink_from({"url": "postgresql://127.0.0.1:1/db"})

    assert not list(tmp_path.iterdir())
