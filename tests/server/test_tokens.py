"""Named tokens, what each may do, and requests that a web page makes a browser send."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ladon_storage.errors import ConfigurationError
from ladon_storage.server.access import add_token, check_token, revoke_token, stored_tokens
from ladon_storage.server.database import open_database
from ladon_storage.server.serving import serving
from tests.service import Caller, calling, embedded_service, path, success

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BODY = success("2025-01-01T00:00:00Z")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The service's file."""
    return tmp_path / "w.db"


def added(database: Path, name: str, *, read_only: bool = False, prefix: str = "") -> str:
    connection = open_database(database)
    try:
        return add_token(connection, name, NOW, read_only=read_only, prefix=prefix)
    finally:
        connection.close()


@pytest.fixture
async def call(database: Path) -> AsyncIterator[Caller]:
    """Call a service without a token of its operator."""
    async with embedded_service(database) as address, calling(address) as caller:
        yield caller


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_stored_token_is_asked_for(database: Path, call: Caller) -> None:
    """A service without any token answers; with the first one stored it asks for one at once."""
    assert (await call("PUT", path("kev"), BODY)).status == 201
    token = added(database, "collector")
    assert (await call("GET", path("kev"))).status == 401
    assert (await call("GET", path("kev"), headers=bearer(token + "x"))).status == 401
    assert (await call("GET", path("kev"), headers=bearer(token))).status == 200


async def test_revoked_token_is_refused_from_the_next_request_on(
    database: Path, call: Caller
) -> None:
    """No restart is needed; other tokens stay."""
    first, second = added(database, "first"), added(database, "second")
    assert (await call("GET", path("kev"), headers=bearer(first))).status == 404
    connection = open_database(database)
    assert revoke_token(connection, "first")
    assert not revoke_token(connection, "first")
    assert [each.name for each in stored_tokens(connection)] == ["second"]
    connection.close()
    assert (await call("GET", path("kev"), headers=bearer(first))).status == 401
    assert (await call("GET", path("kev"), headers=bearer(second))).status == 404


def test_token_is_nowhere_in_the_file(database: Path) -> None:
    """Only its digest is stored, so that a copy of the file opens no door."""
    token = added(database, "collector")
    content = database.read_bytes()
    assert token.encode() not in content
    assert token.removeprefix("ladon_").encode() not in content


@pytest.mark.parametrize(
    ("method", "route", "body"),
    [
        ("PUT", path("kev"), BODY),
        ("DELETE", path("kev"), None),
        ("POST", path("kev", "/reset"), {"timestamp": "2024-01-01T00:00:00Z", "reason": "x"}),
    ],
)
async def test_read_only_token_changes_nothing(
    database: Path, call: Caller, method: str, route: str, body: object
) -> None:
    """It reads watermarks, lists, history and metrics; each change is a 403."""
    writer, reader = added(database, "writer"), added(database, "reader", read_only=True)
    assert (await call("PUT", path("kev"), BODY, headers=bearer(writer))).status == 201
    refused = await call(method, route, body, headers=bearer(reader))
    assert refused.status == 403
    assert "'reader'" in refused.json["error"]
    for readable in (path("kev"), "/api/v1/watermarks", path("kev", "/history"), "/metrics"):
        assert (await call("GET", readable, headers=bearer(reader))).status == 200


async def test_token_of_a_prefix_sees_no_other_source(database: Path, call: Caller) -> None:
    """A team's token is for its sources: no other watermark, no list of all, no metrics."""
    token = bearer(added(database, "team", prefix="team-a/"))
    assert (await call("PUT", path("team-a/kev"), BODY, headers=token)).status == 201
    for method in ("GET", "PUT", "DELETE"):
        body = BODY if method == "PUT" else None
        assert (await call(method, path("team-b/kev"), body, headers=token)).status == 403
    for route in ("/api/v1/watermarks", "/metrics", "/api/v1/watermarks?prefix=team"):
        assert (await call("GET", route, headers=token)).status == 403
    own = await call("GET", "/api/v1/watermarks?prefix=team-a/", headers=token)
    assert [each["source_id"] for each in own.json["watermarks"]] == ["team-a/kev"]


async def test_list_by_prefix_takes_no_pattern(call: Caller) -> None:
    """A prefix is text: its percent sign and its underscore stand for themselves."""
    for source_id in ("a_1", "ab1", "a%1", "b"):
        assert (await call("PUT", path(source_id), BODY)).status == 201
    for prefix, found in (("a_", ["a_1"]), ("a%25", ["a%1"]), ("a", ["a%1", "a_1", "ab1"])):
        answer = await call("GET", f"/api/v1/watermarks?prefix={prefix}")
        assert [each["source_id"] for each in answer.json["watermarks"]] == found


async def test_history_names_the_token(database: Path, call: Caller) -> None:
    """The author of a change is the token's name with the address."""
    token = bearer(added(database, "collector"))
    await call("PUT", path("kev"), BODY, headers=token)
    changes = await call("GET", path("kev", "/history"), headers=token)
    assert changes.json["changes"][0]["actor"] == "collector 127.0.0.1"


async def test_stored_token_is_enough_beyond_loopback(database: Path) -> None:
    """A service that others can reach starts with a stored token, and not without any."""
    with pytest.raises(ConfigurationError, match="token"):
        async with serving(database, "0.0.0.0"):
            pytest.fail("it started")
    token = added(database, "collector")
    async with (
        serving(database, "0.0.0.0") as address,
        calling(address.replace("0.0.0.0", "127.0.0.1")) as call,
    ):
        assert (await call("GET", path("kev"))).status == 401
        assert (await call("GET", path("kev"), headers=bearer(token))).status == 404


async def test_last_token_revoked_opens_nothing_beyond_loopback(database: Path) -> None:
    """A service that others reach answers 401 without any token, until there is one again."""
    added(database, "only")
    async with (
        serving(database, "0.0.0.0") as address,
        calling(address.replace("0.0.0.0", "127.0.0.1")) as call,
    ):
        connection = open_database(database)
        assert revoke_token(connection, "only")
        connection.close()
        for method in ("GET", "PUT"):
            body = BODY if method == "PUT" else None
            assert (await call(method, path("kev"), body)).status == 401
        token = added(database, "next")
        assert (await call("PUT", path("kev"), BODY, headers=bearer(token))).status == 201


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example"])
async def test_foreign_name_is_no_way_in(call: Caller, host: str) -> None:
    """A web page whose name was pointed at loopback neither reads nor writes."""
    for method in ("GET", "PUT"):
        body = BODY if method == "PUT" else None
        refused = await call(method, path("kev"), body, headers={"Host": host})
        assert (refused.status, refused.json["field"]) == (421, "Host")
    assert (await call("GET", path("kev"))).status == 404


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:80", "a.localhost:8080"])
async def test_names_of_loopback_are_this_service(call: Caller, host: str) -> None:
    """Each name of this machine is answered, with any port."""
    assert (await call("GET", path("kev"), headers={"Host": host})).status == 404


async def test_allowed_host_is_answered(database: Path) -> None:
    """A name that the operator allows is this service, as behind a proxy of the same machine."""
    async with (
        serving(database, allowed_hosts=["Storage.example"]) as address,
        calling(address) as call,
    ):
        named = {"Host": "storage.EXAMPLE:8080"}
        assert (await call("GET", path("kev"), headers=named)).status == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://["},
        {"Origin": "http://a\u2100b"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
@pytest.mark.parametrize("with_token", [False, True])
async def test_page_of_another_site_is_refused(
    database: Path, call: Caller, headers: dict[str, str], with_token: bool
) -> None:
    """A browser that says where a request comes from is believed, with and without a token."""
    token = bearer(added(database, "any")) if with_token else {}
    refused = await call("PUT", path("kev"), BODY, headers=headers | token)
    assert (refused.status, refused.json["field"]) == (403, "Origin")
    assert (await call("GET", path("kev"), headers=token)).status == 404


async def test_page_of_the_service_itself_is_answered(call: Caller) -> None:
    """A request whose origin is the service passes."""
    own = {"Origin": call.address, "Sec-Fetch-Site": "same-origin"}
    assert (await call("PUT", path("kev"), BODY, headers=own)).status == 201


async def test_files_are_the_owners_alone(database: Path, call: Caller) -> None:
    """The database, its log and its index can be read by no other user."""
    assert (await call("PUT", path("kev"), BODY)).status == 201
    files = list(database.parent.glob("w.db*"))
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_short_token_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A token that can be guessed is warned of, and never shown."""
    assert check_token("q", "the file") == "q"
    assert "shorter than 16 characters" in caplog.text
    caplog.clear()
    assert check_token("correct-horse-battery", "the file")
    assert not caplog.records


def test_tokens_name_is_taken_once(database: Path) -> None:
    """A second token of a name is refused, and the first one stays."""
    added(database, "collector")
    with pytest.raises(ConfigurationError, match="'collector' already"):
        added(database, "collector")
    connection = sqlite3.connect(database)
    assert connection.execute("SELECT count(*) FROM tokens").fetchone() == (1,)
    connection.close()
