"""Settings: from the environment to a client, and to the mock only where it is said so."""

from __future__ import annotations

import asyncio
import base64
import inspect
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from ladon_storage import (
    CircuitBreaker,
    CircuitOpenError,
    ConfigurationError,
    MockStorageClient,
    StorageServiceClient,
    StorageUnhealthyError,
    connect,
)
from ladon_storage.circuit.urls import SharedCircuit
from ladon_storage.connect import check_health, new_client, shared_client
from ladon_storage.errors import StorageResponseError
from ladon_storage.settings import StorageSettings
from tests.raw_server import RawServer, http, watermark

ADDRESS = "https://storage.example:8000"
HEALTHY = http(200, b'{"status": "healthy"}')
SECRET = "s3cret-7Hq"


@pytest.fixture(autouse=True)
def _clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the process's clients of other tests apart."""
    monkeypatch.setattr(connect, "_clients", {})
    monkeypatch.setattr(connect, "_fallbacks", {})


def test_environment_says_where_and_how() -> None:
    """Each variable becomes its setting."""
    read = StorageSettings.from_environment(
        {
            "STORAGE_SERVICE_URL": ADDRESS,
            "STORAGE_SERVICE_TOKEN": SECRET,
            "ENVIRONMENT": "staging",
            "STORAGE_CIRCUIT_URL": f"redis://:{SECRET}@redis",
            "OTHER": "x",
        }
    )
    assert read == StorageSettings(
        url=ADDRESS,
        token=SecretStr(SECRET),
        environment="staging",
        circuit_url=SecretStr(f"redis://:{SECRET}@redis"),
    )


def test_environment_is_the_process_own_and_production_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without an argument the process's variables are read, when they are asked for."""
    monkeypatch.setenv("STORAGE_SERVICE_URL", ADDRESS)
    read = StorageSettings.from_environment()
    assert (read.url, read.token, read.environment) == (ADDRESS, None, "production")


def test_empty_variable_is_one_that_is_not_set() -> None:
    """Compose files and charts set what is empty; that is no token and no environment."""
    empty = {"STORAGE_SERVICE_TOKEN": "", "ENVIRONMENT": ""}
    read = StorageSettings.from_environment({"STORAGE_SERVICE_URL": ADDRESS, **empty})
    assert (read.token, read.environment) == (None, "production")
    development = {"STORAGE_SERVICE_URL": "", "ENVIRONMENT": "development"}
    assert not StorageSettings.from_environment(development).url


def test_emptied_field_of_a_form_is_unset() -> None:
    """Prefect's form keeps an empty text, which is no file, no token and no store."""
    optional = [name for name, each in StorageSettings.model_fields.items() if each.default is None]
    emptied = dict.fromkeys(optional, "") | {"environment": "development"}
    assert StorageSettings.model_validate(emptied) == StorageSettings(environment="development")
    assert {"ca_file", "token", "circuit_url"} < set(optional)


@pytest.mark.parametrize("url", [None, "", " "])
@pytest.mark.parametrize("environment", [None, "production", "staging", "dev"])
def test_missing_url_beyond_development_says_what_to_set(
    url: str | None, environment: str | None
) -> None:
    """A forgotten variable does not lose watermarks: it is an error with the next step in it."""
    variables = {"STORAGE_SERVICE_URL": url, "ENVIRONMENT": environment}
    with pytest.raises(ConfigurationError, match=r"set STORAGE_SERVICE_URL") as caught:
        StorageSettings.from_environment({name: text for name, text in variables.items() if text})
    assert "ENVIRONMENT=development" in str(caught.value)


@pytest.mark.parametrize("environment", ["development", " Development "])
async def test_missing_url_in_development_is_the_mock_with_a_warning(
    environment: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Development works without a service, and says that nothing will last."""
    read = StorageSettings.from_environment({"ENVIRONMENT": environment})
    assert isinstance(shared_client(read), MockStorageClient)
    assert await check_health(read) is True
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "will not persist" in record.getMessage()
    assert "STORAGE_SERVICE_URL" in record.getMessage()


async def test_unhealthy_service_in_development_is_the_mock_until_it_is_healthy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The mock stands in, keeps what is written, is warned of once, and gives the place back."""
    async with RawServer(http(503), http(503), HEALTHY, http(503)) as server:
        here = StorageSettings(url=server.url, environment="development")
        service = shared_client(here)
        assert isinstance(service, StorageServiceClient)
        assert await check_health(here) is False
        mock = shared_client(here)
        assert isinstance(mock, MockStorageClient)
        assert await check_health(here) is False
        assert shared_client(here) is mock
        assert await check_health(here) is True
        assert shared_client(here) is service
        assert await check_health(here) is False
        assert shared_client(here) is not mock
        await service.close()
    warnings = [each for each in caplog.messages if "will not persist" in each]
    assert len(warnings) == 2
    assert server.url in warnings[0]


@pytest.mark.parametrize("environment", ["production", "staging"])
async def test_unhealthy_service_beyond_development_is_not_replaced(environment: str) -> None:
    """Nowhere else does a watermark go to memory instead of the service."""
    async with RawServer(http(503)) as server:
        there = StorageSettings(url=server.url, environment=environment)
        if environment == "production":
            with pytest.raises(StorageUnhealthyError):
                await check_health(there)
        else:
            assert await check_health(there) is False
        service = shared_client(there)
        assert isinstance(service, StorageServiceClient)
        await service.close()


def test_equal_settings_share_one_client() -> None:
    """A process has one circuit and one pool for a service, whoever asks, from whatever thread."""

    class Block(StorageSettings):
        """Be settings with a document of their own, as a block has."""

        document: str = "x"

    with ThreadPoolExecutor(8) as threads:
        clients = set(threads.map(lambda _: shared_client(StorageSettings(url=ADDRESS)), range(64)))
    assert len(clients) == 1
    assert shared_client(Block(url=ADDRESS)) in clients
    assert shared_client(Block(url=ADDRESS, document="y")) in clients


@pytest.mark.parametrize(
    "other",
    [
        {"url": "https://another.example:8000"},
        {"token": SECRET},
        {"username": "collector", "password": SECRET},
        {"environment": "development"},
        {"timeout": 7},
        {"max_connections": 7},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_settings_have_a_client_of_their_own(other: dict[str, Any]) -> None:
    """A failing service opens no other one's circuit, and a token goes nowhere else."""
    mine = StorageSettings(url=ADDRESS)
    theirs = StorageSettings.model_validate({"url": ADDRESS, **other})
    assert shared_client(mine) is not shared_client(theirs)


def test_client_that_is_asked_for_is_a_new_one() -> None:
    """What the caller closes is the caller's own."""
    mine = StorageSettings(url=ADDRESS)
    assert len({new_client(mine), new_client(mine), shared_client(mine)}) == 3


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        (
            f"https://collector:{SECRET}@storage.example/a",
            ("https://storage.example/a", "collector"),
        ),
        (f" https://collector:{SECRET}@storage.example ", ("https://storage.example", "collector")),
        (f"https://a%40b:{SECRET}@storage.example", ("https://storage.example", "a@b")),
    ],
)
def test_credentials_are_taken_out_of_the_url(url: str, taken: tuple[str, str]) -> None:
    """What is kept of the address can be shown to anybody."""
    read = StorageSettings(url=url)
    assert (str(read.url).rstrip("/"), read.username) == taken
    assert read.password == SecretStr(SECRET)


async def test_credentials_reach_the_service() -> None:
    """A password with any characters arrives as it is meant, and a token as a bearer's."""
    async with RawServer(watermark()) as server:
        host = server.url.removeprefix("http://")
        password = {"url": f"http://us%40er:p%2Fw%3A%C3%BC@{host}"}
        for given in (password, {"url": server.url, "token": SECRET}):
            async with new_client(StorageSettings.model_validate(given)) as client:
                await client.get_watermark("kev")
    basic = base64.b64encode("us@er:p/w:ü".encode())
    assert b"Authorization: Basic " + basic in server.requests[0]
    assert b"Authorization: Bearer " + SECRET.encode() in server.requests[1]


@pytest.mark.parametrize(
    "form", [repr, str, StorageSettings.model_dump_json, StorageSettings.model_dump]
)
def test_secrets_are_hidden_in_each_form(form: Any) -> None:
    """No debugger, log, stored parameter or document shows a token or a password."""
    for read in (
        StorageSettings(url=ADDRESS, token=SecretStr(SECRET)),
        StorageSettings(url=f"https://collector:{SECRET}@storage.example"),
        StorageSettings(url=ADDRESS, circuit_url=SecretStr(f"redis://:{SECRET}@redis")),
    ):
        assert SECRET not in str(form(read))


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": f"https://collector:{SECRET}@[storage"},
        {"url": f"https://collector:{SECRET}@storage:port"},
        {"url": f"https://collector:{SECRET}@storage", "timeout": 0},
        {"url": ADDRESS, "token": SECRET, "max_connections": 0},
        {"url": ADDRESS, "token": SECRET, "max_connections_per_host": 0},
        {"token": SECRET},
        {"token": [SECRET], "url": ADDRESS},
    ],
)
def test_mistake_tells_no_secret(wrong: dict[str, Any]) -> None:
    """Settings that are refused are not quoted."""
    with pytest.raises(ValidationError) as caught:
        StorageSettings.model_validate(wrong)
    assert SECRET not in str(caught.value)


def test_settings_are_values() -> None:
    """They are compared, hashed, pickled to another process with their secrets, and not changed."""
    mine = StorageSettings(url=ADDRESS, token=SecretStr(SECRET))
    assert pickle.loads(pickle.dumps(mine)) == mine
    assert len({mine, StorageSettings(url=ADDRESS, token=SecretStr(SECRET))}) == 1
    with pytest.raises(ValidationError, match="frozen"):
        mine.url = "https://another.example"  # type: ignore[misc]


def test_every_setting_reaches_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client made of settings has each of them, and each argument of a client is a setting."""
    given: dict[str, Any] = {
        "timeout": 7.0,
        "verify_ssl": False,
        "allow_unverified_ssl": True,
        "environment": "staging",
        "max_connections": 8,
        "max_connections_per_host": 9,
        "token": SECRET,
        "ca_file": Path("ca.pem"),
        "client_cert": Path("cert.pem"),
        "client_key": Path("key.pem"),
    }
    made: dict[str, Any] = {}
    monkeypatch.setattr(
        connect, "StorageServiceClient", lambda url, **options: made.update(url=url, **options)
    )
    there = StorageSettings.model_validate({"url": ADDRESS, **given, "circuit_url": "memory://"})
    new_client(there)
    circuit = made.pop("circuit_breaker")
    assert isinstance(circuit, SharedCircuit)
    assert circuit.key == f"{ADDRESS}"
    assert made == {"url": ADDRESS, **given}
    arguments = set(inspect.signature(StorageServiceClient.__init__).parameters)
    assert arguments - set(made) == {"self", "base_url", "circuit_breaker", "max_response_bytes"}


def test_circuit_is_shared_where_a_store_is_named(tmp_path: Path) -> None:
    """Clients of a service have its circuit, whatever else their settings are; no others do."""
    there = {"url": ADDRESS, "circuit_url": f"sqlite:///{tmp_path}/circuits.db"}
    one = new_client(StorageSettings.model_validate(there))
    one.circuit_breaker.trip()
    beside = {**there, "url": f"{ADDRESS}/", "timeout": 3}
    another = new_client(StorageSettings.model_validate(beside))
    assert another.circuit_breaker.state == "open"
    elsewhere = new_client(StorageSettings.model_validate({**there, "url": "http://other.example"}))
    assert elsewhere.circuit_breaker.state == "closed"
    plain = new_client(StorageSettings(url=ADDRESS))
    assert type(plain.circuit_breaker) is CircuitBreaker


def test_circuit_store_of_flow_runs_is_the_default_and_not_forced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Settings that name a store keep it; without a service there is nothing to protect."""
    monkeypatch.setenv("PREFECT_HOME", "/home")
    here = StorageSettings(url=ADDRESS).with_shared_circuit()
    assert here.circuit_url == SecretStr("sqlite:////home/ladon-storage-circuits.db")
    monkeypatch.setenv("STORAGE_CIRCUIT_URL", "redis://redis.example")
    assert StorageSettings(url=ADDRESS).with_shared_circuit().circuit_url == SecretStr(
        "redis://redis.example"
    )
    own = StorageSettings(url=ADDRESS, circuit_url=SecretStr("memory://"))
    assert own.with_shared_circuit() is own
    nowhere = StorageSettings(environment="development")
    assert nowhere.with_shared_circuit() is nowhere


def test_circuit_store_that_does_not_exist_is_told_when_the_client_is_made() -> None:
    """The sentence quotes nothing of an address that may hold a password."""
    wrong = StorageSettings(url=ADDRESS, circuit_url=SecretStr(f"reddis://:{SECRET}@redis"))
    with pytest.raises(ConfigurationError, match="STORAGE_CIRCUIT_URL") as caught:
        new_client(wrong)
    assert SECRET not in str(caught.value)


def test_changes_of_shared_circuits_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever asked is told of each change that is made here, with the service's address."""
    monkeypatch.setattr(connect, "_listeners", [])
    told: list[tuple[str, str]] = []
    connect.on_circuit_change(lambda service, change: told.append((service, change.after)))
    there = StorageSettings(url=ADDRESS, circuit_url=SecretStr(f"sqlite:///{tmp_path}/c.db"))
    one, another = new_client(there), new_client(there)
    one.circuit_breaker.trip()
    another.circuit_breaker.reset()
    assert told == [(ADDRESS, "open"), (ADDRESS, "closed")]


async def test_health_checks_of_runs_find_out_that_the_service_is_down() -> None:
    """Five that fail open the circuit; then the service is not asked, and nothing is repeated."""
    async with RawServer(*[http(503)] * 5) as server:
        there = StorageSettings(url=server.url)
        for _ in range(5):
            with pytest.raises(StorageUnhealthyError) as unhealthy:
                await check_health(there)
            assert unhealthy.value.transient
        with pytest.raises(StorageUnhealthyError, match="circuit") as rejected:
            await check_health(there)
        assert isinstance(rejected.value.__cause__, CircuitOpenError)
        assert not rejected.value.transient
        assert len(server.requests) == 5
        await shared_client(there).close()


async def test_health_check_that_succeeds_proves_nothing() -> None:
    """A service may say that it is healthy and fail at its work: those failures count on."""
    answers = [HEALTHY, http(500)] * 5
    async with RawServer(*answers) as server:
        there = StorageSettings(url=server.url)
        for _ in range(5):
            assert await check_health(there)
            with pytest.raises(StorageResponseError):
                await shared_client(there).get_watermark("kev")
        assert shared_client(there).circuit_breaker.state == "open"
        await shared_client(there).close()


async def test_health_check_that_does_not_speak_of_the_service_is_no_failure() -> None:
    """A 4xx and an answer that says *unhealthy* leave the circuit alone."""
    async with RawServer(*[http(404), http(200, b"{}")] * 3) as server:
        there = StorageSettings(url=server.url)
        for _ in range(6):
            with pytest.raises(StorageUnhealthyError):
                await check_health(there)
        assert shared_client(there).circuit_breaker.failure_count == 0
        await shared_client(there).close()


def test_file_that_is_missing_is_told_when_the_client_is_made() -> None:
    """A block may be saved before its files are where it runs; a run finds out at once."""
    with pytest.raises(ConfigurationError, match="ca_file"):
        new_client(StorageSettings(url=ADDRESS, ca_file=Path("missing.pem")))


async def test_checks_at_once_share_one_mock() -> None:
    """Flows that check together in development write to the same memory."""
    async with RawServer(http(503)) as server:
        here = StorageSettings(url=server.url, environment="development")
        service = shared_client(here)
        assert not any(await asyncio.gather(*(check_health(here) for _ in range(5))))
        mock = shared_client(here)
        assert isinstance(mock, MockStorageClient)
        assert shared_client(StorageSettings(url=server.url, environment="development")) is mock
        await service.close()


@pytest.mark.parametrize(
    "url",
    [
        f"collector:{SECRET}@storage.example",
        f"//collector:{SECRET}@storage.example",
        f"http:/collector:{SECRET}@h",
        f"http://h/?token={SECRET}",
        f"http://u:{SECRET}@[x",
    ],
)
def test_address_that_cannot_be_read_is_refused_and_not_kept(url: str) -> None:
    """It may hold a password, which neither the settings nor the error show."""
    with pytest.raises(ValidationError, match="url should look like") as caught:
        StorageSettings(url=url)
    assert SECRET not in str(caught.value)


def test_error_of_the_environment_has_no_values_behind_it() -> None:
    """Not even the chain of the error leads to the token."""
    with pytest.raises(ConfigurationError) as caught:
        StorageSettings.from_environment({"STORAGE_SERVICE_TOKEN": SECRET})
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


async def test_password_without_a_user_is_sent() -> None:
    """Some proxies ask for nothing else."""
    async with RawServer(watermark()) as server:
        url = server.url.replace("//", f"//:{SECRET}@")
        async with new_client(StorageSettings(url=url)) as client:
            await client.get_watermark("kev")
    assert b"Authorization" in server.requests[0]
