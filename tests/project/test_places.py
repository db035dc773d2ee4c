"""The files that a ``ladon.toml`` names, in folders whose names an address has to encode."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy.engine

from ladon_storage.circuit.stores.sqlite import SqliteStore
from ladon_storage.circuit.urls import store_at
from ladon_storage.collection.protocols import Sink
from ladon_storage.collection.records import Page
from ladon_storage.databases import parsed
from ladon_storage.embedded import file_of
from ladon_storage.errors import ConfigurationError
from ladon_storage.project.project import Project
from ladon_storage.sinks.delta.sink import DeltaSink
from ladon_storage.sinks.jsonl.sink import JsonlSink
from ladon_storage.sinks.sql.sink import SqlSink
from ladon_storage.sources.sql.source import SqlTable
from ladon_storage.testing.doubles import record
from tests.documents import ROOT

FOLDERS = ["a%20b", "a%2Fb", "100%", "a b", "ä", "a+b", "a&b", "a;b", "a?b#c"]
REFUSED = [("a%20b", "delta"), ("a%2Fb", "delta"), ("a?b#c", "duckdb")]
ADDRESSES = ["sqlite:///r.db", "duckdb:///r.duckdb", "jsonl://lines", "delta://lake"]


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder beside the ones for which it could be taken."""
    for each in ("a", "a b", "a%2520b", "a/b"):
        (tmp_path / each).mkdir(exist_ok=True)
    folder: Path = tmp_path / request.param
    folder.mkdir(exist_ok=True)
    return folder


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> tuple[Project, Project]:
    """Return a file as it is read from elsewhere, and in its folder, where this process stays."""
    (folder / "ladon.toml").write_text(text)
    far = Project.load(folder / "ladon.toml", check_sources=False)
    monkeypatch.chdir(folder)
    return far, Project.load("ladon.toml", check_sources=False)


def direct(address: str, folder: Path) -> Sink:
    """Return the sink at an absolute path of which nothing else is made."""
    scheme, _, name = address.partition("://")
    if scheme == "jsonl":
        return JsonlSink(f"jsonl://{folder}/{name}")
    if scheme == "delta":
        return DeltaSink(f"delta://{folder}/{name}")
    return SqlSink(f"{scheme}:///{quote(str(folder))}{name}")


def files_outside(folder: Path) -> list[Path]:
    """Return the files of the folders beside one."""
    files = [each for each in folder.parent.rglob("*") if each.is_file()]
    return [each for each in files if folder not in each.parents]


@pytest.mark.parametrize("address", ADDRESSES)
async def test_sink_is_in_the_folder_of_its_file_from_everywhere(
    address: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wrote first, the others find the record there, and no other folder has a file."""
    if (folder.name, address.partition(":")[0]) in REFUSED:
        return
    far, near = loaded(folder, monkeypatch, f'[sinks.records]\nurl = "{address}"\n')
    written = []
    for sink in (far.sink("records"), near.sink("records"), direct(address, folder)):
        async with sink:
            result = await sink.write("feed", Page([record("a", 1)]))
            written.append(result if isinstance(result, int) else result.written)
    assert written == [1, 0, 0]
    assert not files_outside(folder)


@pytest.mark.parametrize(("name", "scheme"), REFUSED)
def test_folder_that_a_library_takes_for_another_is_refused(
    name: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delta Lake would list one and read the files of another one; DuckDB's log would be there."""
    folder = tmp_path / name
    folder.mkdir()
    address = next(each for each in ADDRESSES if each.startswith(scheme))
    for project in loaded(folder, monkeypatch, f'[sinks.records]\nurl = "{address}"\n'):
        with pytest.raises(ConfigurationError, match=r"Use (a folder|one) without"):
            project.sink("records")


def test_circuit_and_table_are_those_of_the_folder_from_everywhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both addresses have codes, as that of a sink."""
    far, near = loaded(
        folder, monkeypatch,
        '[storage]\nurl = "https://storage.example"\ncircuit_url = "sqlite:///c%23.db?timeout=3"\n'
        '[sources.logins]\nkind = "sql"\nurl = "sqlite+pysqlite:///a%23.db"\ntable = "t"\n'
        'timestamp_column = "at"\nid_column = "id"\n',
    )  # fmt: skip
    for project in (far, near):
        store = store_at(project.storage.circuit_url or "")
        assert isinstance(store, SqliteStore)
        assert Path(store.place).absolute() == folder / "c#.db"
        source = project.source("logins")
        assert isinstance(source, SqlTable)
        assert Path(parsed(source.url or "").database or "").absolute() == folder / "a#.db"


@pytest.mark.parametrize("scheme", ["sqlite", "SQLite"])
def test_storage_is_in_the_folder_of_its_file_from_everywhere(
    folder: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path has no codes. A folder that it cannot name is refused in its file, here or there."""
    text = f'[storage]\nurl = "{scheme}:///s%41.db"\n'
    if "#" in folder.name:
        for place in (folder.parent, folder):
            monkeypatch.chdir(place)
            with pytest.raises(ConfigurationError, match="a name that no address can carry"):
                loaded(folder, monkeypatch, text)
        return
    far, near = loaded(folder, monkeypatch, text)
    assert far.storage.url == f"{scheme}:///{folder}/s%41.db"
    assert file_of(near.storage.url or "") == folder / "s%41.db"


def test_file_is_absolute_where_it_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run elsewhere is given says the same from both places."""
    text = (
        '[storage]\nurl = "https://storage.example"\ncircuit_url = "sqlite:///c.db"\n'
        'ca_file = "ca.pem"\n[sinks.records]\nurl = "sqlite:///r.db"\n'
    )
    far, near = loaded(folder, monkeypatch, text)
    assert far != near
    given = Project.load("ladon.toml", absolute=True)
    assert (given.storage, given.sinks) == (far.storage, far.sinks)


async def test_file_of_a_sink_is_the_same_with_every_sqlalchemy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.0 leaves the codes of a database as they are, and 2.1 decodes them."""
    real = sqlalchemy.engine.make_url

    def older(address: str) -> sqlalchemy.engine.URL:
        return real(address).set(database=address.partition(":///")[2])

    monkeypatch.setattr("sqlalchemy.engine.make_url", older)
    async with SqlSink(f"sqlite:///{tmp_path}/a%20b.db") as sink:
        await sink.write("feed", Page([record("a", 1)]))
    assert (tmp_path / "a b.db").exists()


def test_addresses_of_the_reference_are_relative_and_absolute_as_it_says(tmp_path: Path) -> None:
    """Those of its table start at the file's folder, and those of the sentence below it stay."""
    text = (ROOT / "docs" / "reference" / "sinks.md").read_text()
    relative = re.findall(r"^\| `((?:sqlite|duckdb|delta|jsonl)://[^`]+)`", text, re.MULTILINE)
    absolute = re.findall(r"`(\w+:/+srv/[^`]+)`", text)
    assert (len(relative), len(absolute)) == (4, 4)
    for address in relative + absolute:
        file = tmp_path / "ladon.toml"
        file.write_text(f'[sinks.records]\nurl = "{address}"\n')
        read = Project.load(file, check_sources=False).sinks["records"].url or ""
        assert (read == address) is (address in absolute)
        assert (f"{tmp_path}/" in read) is (address in relative)
