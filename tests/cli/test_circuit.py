"""``ladon-storage circuit``: what an operator sees and changes of a shared circuit."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from ladon_storage import cli
from ladon_storage.circuit.stores.sqlite import SqliteStore
from ladon_storage.circuit.urls import SharedCircuit, circuit_of, default_url
from ladon_storage.errors import CircuitOpenError
from ladon_storage.testing.feed_server import FeedServer
from tests.cli.called import Command
from tests.cli.feeds import catalogue, kev
from tests.service import embedded_service


@pytest.fixture
def circuit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedCircuit:
    """Return the circuit that the command works on, as another process has it."""
    url = f"sqlite:///{tmp_path}/circuits.db"
    monkeypatch.setenv("STORAGE_CIRCUIT_URL", url)
    monkeypatch.setenv("STORAGE_SERVICE_URL", "http://user:s3cret@storage.example:8000/")
    return circuit_of("http://storage.example:8000", url)


def test_circuit_is_shown_tripped_and_reset(
    circuit: SharedCircuit, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an operator does holds in every process, and each act shows what is now."""
    assert cli.main(["circuit", "show"]) == 0
    assert (
        "state     closed\nfailures  0\nreason    no call has failed\n" in capsys.readouterr().out
    )
    assert cli.main(["circuit", "trip", "--reason", "moving house"]) == 0
    shown = capsys.readouterr().out
    assert "service   http://storage.example:8000\n" in shown
    assert "state     open\n" in shown
    assert "moving house" in shown
    assert re.search(r"probe     in (59|60) s", shown)
    assert "s3cret" not in shown
    with pytest.raises(CircuitOpenError):
        circuit.acquire()
    assert cli.main(["circuit", "reset", "--service", "http://storage.example:8000"]) == 0
    assert "reset by hand" in capsys.readouterr().out
    assert circuit_of("http://storage.example:8000", default_url()).state == "closed"
    assert cli.main(["circuit", "show", "--service", "http://other.example"]) == 0
    assert "no call has failed" in capsys.readouterr().out


def test_circuit_that_is_probed_says_so(
    circuit: SharedCircuit, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half open is shown with the end of the probe's lease."""
    circuit.trip()
    assert isinstance(circuit.store, SqliteStore)
    circuit.store._clock = lambda: time.monotonic() + 61
    circuit._fresh_until = 0
    circuit.acquire()
    assert cli.main(["circuit", "show"]) == 0
    assert "state     half_open" in (shown := capsys.readouterr().out)
    assert "given up in" in shown


def test_circuit_without_a_service_or_a_shared_store_is_refused(
    circuit: SharedCircuit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence says which variable to set."""
    monkeypatch.setenv("STORAGE_CIRCUIT_URL", "memory:// ")
    assert cli.main(["circuit", "show"]) == 2
    assert "STORAGE_CIRCUIT_URL" in capsys.readouterr().err
    monkeypatch.delenv("STORAGE_SERVICE_URL")
    assert cli.main(["circuit", "trip"]) == 2
    assert "STORAGE_SERVICE_URL" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["circuit_url", "circuit_url_secret"])
def test_circuit_of_the_file_is_where_its_runs_have_it(
    circuit: SharedCircuit,
    key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file that names the service may name its store, too; another service's is the usual one."""
    own = f"sqlite:///{tmp_path}/own.db"
    monkeypatch.setenv("OWN_STORE", own)
    value = own if key == "circuit_url" else "OWN_STORE"
    storage = (
        f'[storage]\nurl = "http://storage.example:8000"\ntoken = "UNSET"\n{key} = "{value}"\n'
    )
    (tmp_path / "ladon.toml").write_text(storage)
    monkeypatch.setenv("LADON_FILE", str(tmp_path / "ladon.toml"))
    assert cli.main(["circuit", "trip"]) == 0
    assert f"store     {tmp_path}/own.db\n" in capsys.readouterr().out
    assert circuit_of(circuit.key, own).state == "open"
    assert circuit.state == "closed"
    assert cli.main(["circuit", "show", "--service", "http://other.example"]) == 0
    assert f"store     {tmp_path}/circuits.db\n" in capsys.readouterr().out


@pytest.mark.parametrize("act", ["show", "trip", "reset"])
@pytest.mark.parametrize(
    "address",
    ["storage.example:8000", "user:s3cret@storage.example:8000", "http://h:99999/s3cret",
     "http://[::1", "http://h/?token=s3cret", "sqlite:///ladon.db"],
)  # fmt: skip
def test_circuit_of_an_address_that_no_client_has_is_refused(
    circuit: SharedCircuit,
    act: str,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A circuit that no process reads protects nothing, and the address may have a password."""
    monkeypatch.setenv("STORAGE_SERVICE_URL", address)
    assert cli.main(["circuit", act]) == 2
    output = capsys.readouterr()
    assert "https://storage.example:8000" in output.err
    assert "s3cret" not in output.err
    assert not Path(circuit.store.place).exists()


def test_reason_of_a_circuit_is_one_visible_line(
    circuit: SharedCircuit, capsys: pytest.CaptureFixture[str]
) -> None:
    """No reason writes to a terminal, whoever gave it, and none fills the store."""
    circuit.trip("\x1b[31mred\nstate     closed")
    assert cli.main(["circuit", "show"]) == 0
    assert "reason    [31mred state closed\n" in capsys.readouterr().out
    assert cli.main(["circuit", "reset", "--reason", "\x1b[31mred\n" + "x" * 100_000]) == 0
    reason = circuit_of(circuit.key, default_url()).shared_record().reason
    assert reason.isprintable()
    assert len(reason) < 400


@pytest.mark.parametrize("act", ["show", "trip", "reset"])
def test_circuit_whose_store_fails_exits_with_1(
    circuit: SharedCircuit, act: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An operator is not told that something was done which no other process knows of."""
    (tmp_path / "circuits.db").write_bytes(b"no database" * 100)
    assert cli.main(["circuit", act]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "not a database" in output.err.splitlines()[-1]


def test_circuit_is_data_for_programs(
    circuit: SharedCircuit, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ``--json``, before or behind the verb, the state is one JSON object."""
    circuit.trip("moving house")
    for arguments in (["--json", "circuit", "show"], ["circuit", "show", "--json"]):
        assert cli.main(arguments) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["state"], facts["service"]) == ("open", "http://storage.example:8000")
        assert 0 < facts["probe_in_seconds"] <= 60


@pytest.mark.parametrize("verb", ["collect", "reconcile", "backfill"])
@pytest.mark.parametrize("place", ["file", "variable"])
@pytest.mark.parametrize("store", ["default", "STORAGE_CIRCUIT_URL"])
async def test_tripped_circuit_stops_runs_without_prefect(
    ladon: Command, verb: str, place: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an operator trips, runs do not call, wherever the service and the store are named."""
    if store != "default":
        monkeypatch.setenv(store, f"sqlite:///{ladon.folder}/own.db")
    async with embedded_service(ladon.folder / "w.db") as address, FeedServer() as feed:
        if place == "file":
            ladon.write("ladon.toml", f'[storage]\nurl = "{address}"\n')
        else:
            monkeypatch.setenv("STORAGE_SERVICE_URL", address)
        assert (await ladon.later("circuit", "trip", "--reason", "moving")).code == 0
        span = ("2024-01-01", "2024-01-02") if verb == "backfill" else ()
        ran = await ladon.later(verb, kev(feed), *span, "--sink", "sqlite:///r.db", "--no-prefect")
    assert ran.code == 1
    assert "circuit" in ran.out + ran.err
    assert not feed.requests


@pytest.mark.parametrize("home", ["file", "~no-such-user-of-this-host"])
async def test_run_whose_circuit_cannot_be_shared_has_its_own(
    ladon: Command, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home in which nothing can be written, or none at all, does not fail a run."""
    ladon.write("file", "no folder")
    monkeypatch.setenv("PREFECT_HOME", home)
    async with embedded_service(ladon.folder / "w.db") as address, FeedServer(catalogue(1)) as feed:
        monkeypatch.setenv("STORAGE_SERVICE_URL", address)
        ran = await ladon.later("collect", kev(feed), "--sink", "sqlite:///r.db", "--no-prefect")
    assert ran.code == 0, ran.err
