"""What Prefect's database has of a run: no password, whoever began it and however it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_HOME
from prefect.types import SecretDict
from pydantic import SecretStr

from ladon_storage import cli
from ladon_storage.blocks import RecordSink
from ladon_storage.collection.credentials import holds_secret
from ladon_storage.errors import ConfigurationError, LadonStorageError, SinkError
from ladon_storage.flows import backfill, collect, collect_kev, collect_many
from ladon_storage.flows.parameters import refuse_secrets
from ladon_storage.settings import StorageSettings
from ladon_storage.sinks import sink_from
from ladon_storage.testing.doubles import ScriptedSource, at, record

PASSWORD = "hunter2-0f-the-sink"
ADDRESS = f"postgresql://ladon:{PASSWORD}@127.0.0.1:1/records"


def stored_in_prefect() -> bytes:
    """Return all that Prefect's server keeps on disk."""
    database = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition(":///")[2])
    folder = Path(PREFECT_HOME.value())
    files = {*database.parent.glob(f"{database.name}*"), *folder.rglob("*")}
    content = b"".join(each.read_bytes() for each in files if each.is_file())
    assert b"flow_run" in content
    return content


@pytest.mark.parametrize(
    "address",
    [
        ADDRESS,
        "postgresql://ladon:p/w#?d@db/records",
        "postgresql://:pw@db/records",
        "postgresql://ladon@db/records?password=x",
        "s3://bucket/records?aws_secret_access_key=x",
        "abfss://box@account/records?sv=1&sig=x",
        "s3://bucket/records?session_token=x",
        "postgresql://ladon@db/records?options=-c%20password%3Dx",
        "postgresql://ladon@db/records?options=-cpassword=x",
    ],
)
def test_address_with_a_secret_is_told_from_others(address: str) -> None:
    """Whatever its characters are, and wherever it stands."""
    assert holds_secret(address)


@pytest.mark.parametrize(
    "address",
    [
        "sqlite:///records.db",
        "postgresql://ladon@db:5432/records?sslmode=verify-full",
        "delta:///data/a:b@c",
        "abfss://box@account.dfs.core.windows.net/records",
        "s3://bucket/records?region=eu-central-1&keyspace=x",
    ],
)
def test_address_without_a_secret_is_taken(address: str) -> None:
    """A user's name, a port and an option are none."""
    assert not holds_secret(address)


@pytest.mark.parametrize("sink", [{"url": ADDRESS}, ADDRESS], ids=["dictionary", "text"])
async def test_sink_with_a_password_is_refused_before_there_is_a_run(
    sink: Any, storage: StorageSettings
) -> None:
    """Each flow says where it belongs, and nothing of it is in Prefect's database."""
    source = {"kind": "kev"}
    flows: list[Any] = [
        lambda: collect(source, sink, storage),
        lambda: collect.with_options(name="other")(source, sink=sink, storage=storage),
        lambda: collect_kev(source, sink, storage),
        lambda: collect_many([source], sink=sink, storage=storage),
        lambda: backfill(source, at(0), at(1), sink, storage),
    ]
    for begin in flows:
        with pytest.raises(ConfigurationError, match="save the address in a Record Sink block"):
            await begin()
    assert PASSWORD.encode() not in stored_in_prefect()


@pytest.mark.parametrize(
    "secret", [{"url": f"http://ladon:{PASSWORD}@127.0.0.1:1"}, {"token": PASSWORD}]
)
async def test_storage_with_a_password_is_refused_before_there_is_a_run(
    secret: dict[str, str], tmp_path: Path
) -> None:
    """Its settings go into a block, and nothing of them into Prefect's database."""
    storage: Any = {"url": "http://127.0.0.1:1", **secret}
    with pytest.raises(ConfigurationError, match="Save them in a Storage Service block"):
        await collect({"kind": "kev"}, {"url": f"sqlite:///{tmp_path}/r.db"}, storage)
    assert PASSWORD.encode() not in stored_in_prefect()


async def test_secret_among_the_options_of_a_sink_is_refused_before_there_is_a_run(
    storage: StorageSettings,
) -> None:
    """Whatever it looks like: a secret is in a block, or named under ``secrets``."""
    for value in (PASSWORD, "lake-key"):
        sink = {"url": "s3://bucket/lake", "options": {"AWS_SECRET_ACCESS_KEY": value}}
        with pytest.raises(ConfigurationError, match="Save it in a Record Sink block"):
            await collect({"kind": "kev"}, sink, storage)
    assert PASSWORD.encode() not in stored_in_prefect()
    refuse_secrets({"sink": {"url": "s3://bucket/lake", "secrets": {"AWS_REGION": "lake-key"}}})


async def test_options_of_a_block_reach_the_sink_and_are_not_shown(tmp_path: Path) -> None:
    """The block hands them to the sink; where it is printed or saved in the clear, they are not."""
    options = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_SECRET_ACCESS_KEY": PASSWORD}
    block = RecordSink(url=SecretStr("s3://bucket/lake"), options=SecretDict(options))
    sink = block.get_sink()
    with pytest.raises(SinkError, match=r"endpoint http://127\.0\.0\.1:9\)") as caught:
        await sink.__aenter__()
    assert PASSWORD not in f"{block!r}{block.model_dump_json()}{sink!r}{caught.value}"
    records = RecordSink(url=SecretStr(f"sqlite:///{tmp_path}/records.db")).get_sink()
    assert "SqlSink" in repr(records)


REST = {"kind": "rest", "source_id": "r", "url": "https://127.0.0.1/", "timestamps": ["at"]}
OWN = "tests.own_classes:TicketsOfAny"


@pytest.mark.parametrize(
    "parameters",
    [
        {"sink": {"kind": "tests.own_classes:Memory", "name": f"amqp://me:{PASSWORD}@queue"}},
        {"sink": {"kind": "tests.own_classes:Memory", "token": f"{PASSWORD} x"}},
        {"source": {"kind": OWN, "address": f"https://me:{PASSWORD}@api"}},
        {"source": {"kind": OWN, "deep": [{"api_key": f"{PASSWORD}.{PASSWORD}"}]}},
        {"sources": [{"kind": "kev"}, {"kind": OWN, "password": f"{PASSWORD}!"}]},
    ],
)
def test_secret_for_a_class_of_ones_own_is_refused(parameters: dict[str, Any]) -> None:
    """A class of one's own does not know that Prefect shows its fields, so it is asked for them."""
    with pytest.raises(ConfigurationError, match="Give the class the name of the secret") as caught:
        refuse_secrets(parameters)
    assert PASSWORD not in str(caught.value)


def test_name_of_a_secret_for_a_class_of_ones_own_is_allowed() -> None:
    """What names a secret holds none."""
    refuse_secrets({"source": {"kind": OWN, "token": "TICKETS_TOKEN", "address": "https://api"}})
    refuse_secrets({"sink": {"url_secret": "RECORDS_URL", "table": "tokens"}})


KINDS = ("kev", "threatfox", "urlhaus", "otx", "nvd", "misp", "taxii")
ELSEWHERE: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind, "url": f"https://u:{PASSWORD}@127.0.0.1/"} for kind in KINDS},
    "user alone": {"kind": "kev", "url": f"https://{PASSWORD}@127.0.0.1/"},
    "query of kev": {"kind": "kev", "url": f"https://127.0.0.1/?accessKey={PASSWORD}"},
    "query": {**REST, "url": f"https://127.0.0.1/?api_key={PASSWORD}"},
    "params": {**REST, "params": {"X-Api-Key": PASSWORD}},
    "key": {**REST, "params": {"key": f"{PASSWORD}-1"}},
    "body": {**REST, "method": "POST", "body": {"auth": [{"token": PASSWORD}]}},
}


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "sql", "source_id": "t", "table": "t", "url": ADDRESS},
        {"kind": "rest", "source_id": "r", "url": f"https://u:{PASSWORD}@127.0.0.1/"},
        {
            "kind": "rest",
            "source_id": "r",
            "url": "https://127.0.0.1/",
            "headers": {"Authorization": PASSWORD},
        },
        *ELSEWHERE.values(),
    ],
    ids=["sql", "rest", "header", *ELSEWHERE],
)
async def test_source_with_a_password_is_refused_before_there_is_a_run(
    source: dict[str, Any], storage: StorageSettings, tmp_path: Path
) -> None:
    """Its validator speaks before Prefect has the parameters, and does not say the password."""
    with pytest.raises(ConfigurationError) as caught:
        await collect(source, {"url": f"sqlite:///{tmp_path}/r.db"}, storage)
    assert PASSWORD not in str(caught.value)
    with pytest.raises(ConfigurationError):
        await collect_many([source], sink="records", storage=storage)
    assert PASSWORD.encode() not in stored_in_prefect()


@pytest.mark.parametrize("name", ["collect", "collect-many", "backfill"])
def test_command_line_refuses_a_sink_with_a_password(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the place of the address, does not repeat it, and begins no run."""
    listed = tmp_path / "sources.json"
    listed.write_text(json.dumps([{"kind": "kev"}]))
    arguments = {
        "collect": ["kev"],
        "collect-many": [str(listed)],
        "backfill": ["kev", "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"],
    }[name]
    assert cli.main([name, *arguments, "--sink", ADDRESS]) == 2
    told = capsys.readouterr().err
    assert "url_secret" in told
    assert PASSWORD not in told
    assert PASSWORD.encode() not in stored_in_prefect()


async def test_secret_of_a_block_or_an_object_stays_out_of_prefect(
    storage: StorageSettings,
) -> None:
    """A block that is not saved, a sink and a source of one's own are no text in the database."""
    own = ScriptedSource([[record("1", 1)]], source_id="own")
    own.key = PASSWORD  # type: ignore[attr-defined]
    for sink in (RecordSink(url=SecretStr(ADDRESS)), sink_from({"url": ADDRESS})):
        with pytest.raises(LadonStorageError) as caught:
            await collect(own, sink, storage)
        assert PASSWORD not in str(caught.value)
    assert PASSWORD.encode() not in stored_in_prefect()
